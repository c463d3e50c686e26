"""Models that are read one node at a time are what `onnx_ir` makes of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.frontends.onnx.files.loading import load, parse
from bnfold.frontends.onnx.files.original import original_of
from bnfold.frontends.onnx.files.saving import serialize
from bnfold.frontends.onnx.files.stored import StoredModel, StoredTensor, UnstorableError, deserialize
from bnfold.frontends.onnx.files.wire import varint

MODELS = sorted((Path(__file__).resolve().parents[4] / "models").glob("*.onnx"))

TEXT = """<ir_version: 10, opset_import: ["" : 17, "local" : 1], producer_name: "p", doc_string: "model">
g (float["N", 2, 8, 8] x) => (float["N", 2, "H", "W"] y, float[4] z)
<int64[4] target = {0, 2, -1, 4}, float[2, 2, 1, 1] w = {1.0, 2.0, 3.0, 4.0}, float[2, "A", 8, 8] c>
{
    a = Conv<kernel_shape = [1, 1], auto_pad = "VALID">(x, w)
    b = Reshape(a, target)
    c = Clip(b)
    e, unread = local.twice(c)
    y = Relu(e)
    z = Constant<value = float[4] {1.0, 2.0, 3.0, 4.0}>()
}
<domain: "local", opset_import: ["" : 17]> twice (i) => (o, j) { j = Relu(i)
 o = Add(j, j) }
"""


def of_text() -> onnx.ModelProto:
    """Functions, declarations, attributes, tensors that are typed."""
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.doc_string = "graph"
    proto.graph.node[0].doc_string = "node"
    for owner in (proto, proto.graph, proto.graph.node[1], proto.graph.initializer[0], proto.graph.value_info[0]):
        owner.metadata_props.add(key="key", value="value")
    proto.graph.node[2].input.extend(["", "limit"])
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(7), "limit"))
    return proto


def of_tensors() -> onnx.ModelProto:
    """Tensors of every kind, one of them the default of an input, and one of no elements."""
    arrays = [np.arange(3, dtype=kind) for kind in (np.float32, np.float64, np.float16, np.int32, np.int64, np.uint8)]
    tensors = [numpy_helper.from_array(array, f"t{index}") for index, array in enumerate(arrays)]
    tensors += [helper.make_tensor("typed", TensorProto.FLOAT, [2], [1, 2])]
    tensors += [helper.make_tensor("text", TensorProto.STRING, [1], [b"text"])]
    tensors += [helper.make_tensor("empty", TensorProto.FLOAT, [0, 1 << 50], b"", raw=True)]
    tensors += [numpy_helper.from_array(np.float32(7), "scalar"), numpy_helper.from_array(np.ones(2, np.float32), "x")]
    tensors[0].doc_string = "tensor"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "scalar"], ["y"])], "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("make", [of_text, of_tensors])
def test_a_model_in_its_bytes_is_the_model(make: Callable[[], onnx.ModelProto]) -> None:
    proto = make()
    found = deserialize(StoredModel.of(proto.SerializeToString()))
    assert ir.serde.serialize_model(found) == ir.serde.serialize_model(ir.serde.deserialize_model(proto))
    assert any(isinstance(value.const_value, StoredTensor) for value in found.graph.initializers.values())


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_shipped_model_in_its_bytes_is_the_model(path: Path) -> None:
    proto = onnx.load(path)
    found = deserialize(StoredModel.of(path.read_bytes()))
    assert ir.serde.serialize_model(found) == ir.serde.serialize_model(ir.serde.deserialize_model(proto))


@pytest.mark.parametrize("make", [of_text, of_tensors])
def test_a_file_is_written_as_the_whole_protobuf_is(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(make(), path)
    model = load(path)
    original = original_of(model)
    assert original is not None
    assert isinstance(original.held, StoredModel)
    assert serialize(model) == make() == serialize(parse(make()))


def test_a_body_is_read_with_the_whole_model(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, bool c) => (float[2] y) {
        y = If(c) <then_branch = t () => (p) { p = Relu(x) }, else_branch = u () => (q) { q = Neg(x) }>
    }""")
    with pytest.raises(UnstorableError):
        deserialize(StoredModel.of(proto.SerializeToString()))
    onnx.save(proto, tmp_path / "m.onnx")
    assert serialize(load(tmp_path / "m.onnx")) == proto


def test_a_graph_in_two_fields_is_read_as_one(tmp_path: Path) -> None:
    proto, second = of_tensors(), onnx.ModelProto()
    second.graph.initializer.append(numpy_helper.from_array(np.float32(8), "another"))
    content = proto.SerializeToString() + second.SerializeToString()
    with pytest.raises(UnstorableError):
        StoredModel.of(content)
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "another" in load(path).graph.initializers


def test_what_is_in_an_unknown_group_is_no_field_of_the_graph(tmp_path: Path) -> None:
    proto = of_tensors()
    node = helper.make_node("Relu", ["y"], ["hidden"]).SerializeToString()
    inside = varint(1 << 3 | 2) + varint(len(node)) + node
    group = varint(999 << 3 | 3) + inside + varint(999 << 3 | 4)
    graph = proto.graph.SerializeToString() + group
    proto.ClearField("graph")
    content = proto.SerializeToString() + varint(7 << 3 | 2) + varint(len(graph)) + graph
    with pytest.raises(UnstorableError):
        StoredModel.of(content)
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert [node.op_type for node in load(path).graph] == ["Add"]


def test_a_model_that_is_handed_out_has_types_and_tensors_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(of_text(), path)
    values = [*bnfold.fuse(path).graph.initializers.values()]
    assert len({id(value.type) for value in values}) == len(values)
    assert not any(isinstance(value.const_value, StoredTensor) for value in values)
    for value in values:
        array = value.const_value.numpy()
        assert array.flags.aligned
        assert array.size
