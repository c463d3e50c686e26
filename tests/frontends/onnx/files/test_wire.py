"""What is written a tensor at a time is, byte for byte, what protobuf writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import bnfold
from bnfold.frontends.onnx.files import loading, saving, wire
from tests.toys.onnx_graphs import model, node, norm, random, statistics


def small() -> onnx.ModelProto:
    nodes = [node("Conv", "x w", "c"), norm("c", "y")]
    return model(nodes, {"w": random(16, 8, 3, 3, dtype=np.float32), **statistics(16, dtype=np.float32)}, (1, 8, 5, 5))


def typed(proto: onnx.ModelProto) -> None:
    """A large tensor that is stored as numbers, not as raw bytes."""
    proto.graph.initializer.append(helper.make_tensor("t", onnx.TensorProto.INT64, [300], range(300)))


def described(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.doc_string = "about the weight"
    proto.graph.node[0].doc_string = "about the convolution"
    proto.graph.value_info.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, ["N", 16, 3, 3]))
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "somebody", "1", "d", 300


def sparse(proto: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(2, np.float32), "s")
    places = numpy_helper.from_array(np.asarray([1, 5]), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2000]))
    proto.training_info.add().algorithm.name = "training"


def narrow(proto: onnx.ModelProto) -> None:
    for index, dtype in enumerate((np.float16, ml_dtypes.bfloat16, np.bool_, ml_dtypes.int4, ml_dtypes.float8_e5m2)):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((3, 1111), dtype), f"n{index}"))
    proto.graph.initializer.append(helper.make_tensor("e", onnx.TensorProto.FLOAT, [0, 4], b"", raw=True))


@pytest.mark.parametrize("change", [lambda proto: None, typed, described, sparse, narrow])
@pytest.mark.parametrize("folded", ["not", "a copy", "in place"])
def test_a_written_model_has_the_bytes_of_protobuf(change: Any, folded: str, tmp_path: Path) -> None:
    proto = small()
    change(proto)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    loaded = loading.load(tmp_path / "m.onnx")
    if folded != "not":
        loaded = bnfold.fuse(loaded, inplace=folded == "in place")
    saving.save(loaded, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == saving.serialize(loaded).SerializeToString()


@given(st.integers(0, 1 << 40))
def test_a_length_is_read_back(number: int) -> None:
    made = wire.varint(number)
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(made)) == number
    assert [byte >> 7 for byte in made] == [1] * (len(made) - 1) + [0]


def test_what_no_protobuf_can_hold_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "PROTOBUF_LIMIT", 1000)
    with pytest.raises(bnfold.OutputError, match="too many for a protobuf"):
        saving.save(loading.parse(small()), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
