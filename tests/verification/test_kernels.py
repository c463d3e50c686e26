"""Models of which the runtime has no kernels are run by the reference evaluator of ONNX."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest

import bnfold
from bnfold.errors import IncomparableError, NoKernelError
from tests.toys.onnx_graphs import model, node, norm, random, statistics

KINDS = {
    "float64": (np.float64, 17),
    "bfloat16": (ml_dtypes.bfloat16, 17),
    "opset 6": (np.float32, 6),
}


def network(dtype: npt.DTypeLike, opset: int, *, change: float = 0.0) -> onnx.ModelProto:
    constants = {"w": random(4, 3, 3, 3, dtype=dtype), **statistics(4, dtype=dtype)}
    constants["beta"] = (constants["beta"].astype(np.float64) + change).astype(dtype)
    nodes = [node("Conv", "x w", "c"), norm("c", "b"), node("Relu", "b", "y")]
    return model(nodes, constants, (2, 3, 9, 9), dtype=dtype, opset=opset)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fold_is_right_and_a_fault_is_found(kind: str) -> None:
    original = network(*KINDS[kind])
    verdict = bnfold.verify(original, bnfold.fuse(original))
    assert verdict.is_equivalent
    assert any("the reference evaluator of onnx runs it" in each for each in verdict.findings)
    assert not bnfold.verify(original, network(*KINDS[kind], change=0.1)).is_equivalent


def test_a_provider_that_is_asked_for_has_to_run_it() -> None:
    with pytest.raises(NoKernelError, match="Conv"):
        bnfold.verify(network(*KINDS["float64"]), network(*KINDS["float64"]), providers=["cpu"])


def test_external_data_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(*KINDS["float64"]), path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert bnfold.verify(path, network(*KINDS["float64"])).is_equivalent


def test_an_operator_that_nobody_knows_cannot_be_compared() -> None:
    made = network(*KINDS["float64"])
    made.graph.node.append(node("Strange", "y", "z", domain="strange"))
    made.opset_import.append(onnx.helper.make_opsetid("strange", 1))
    made.graph.output[0].name = "z"
    with pytest.raises(IncomparableError):
        bnfold.verify(made, made)
