"""A reference that is off by the same each time, and the truth from values that agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.verification import truth
from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32
SIDE, WIDTH, CLASSES = 64, 48, 400


def network() -> onnx.ModelProto:
    """A BatchNorm that makes nearly constants, their mean over 4096 positions, and classes of it."""
    constants = {
        "w": random(WIDTH, 3, 3, 3, dtype=FLOAT) / 1e3,
        "h": random(CLASSES, WIDTH, dtype=FLOAT, seed=1),
        "b": random(CLASSES, dtype=FLOAT, seed=2),
        **{name: array.astype(FLOAT) for name, array in statistics(WIDTH, "n_").items()},
    }
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Relu", "c", "r"),
        norm("r", "n", "n_"),
        node("GlobalAveragePool", "n", "m"),
        node("Flatten", "m", "f"),
        node("Gemm", "f h b", "y", transB=1),
    ]
    return model(nodes, constants, (1, 3, SIDE, SIDE), dtype=FLOAT)


PART = 2 << 20
"""Bytes that hold what is behind the Relu, and not the whole model."""


@pytest.mark.parametrize("seed", range(3))
def test_what_the_reference_gets_wrong_each_time_is_settled_by_a_part(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of 4096 nearly equal numbers is off by more than any rounding of the weights moves it."""
    original, fused = network(), bnfold.fuse(network())
    monkeypatch.setattr(truth, "BYTES", PART)
    verdict = bnfold.verify(original, fused, seed=seed)
    assert verdict.is_equivalent
    assert any("as near to the float64 result" in finding for finding in verdict.findings)
    monkeypatch.setattr(truth, "SECONDS", -1.0)
    assert not bnfold.verify(original, fused, seed=seed).is_equivalent


def test_it_is_settled_for_the_runtime_that_is_asked_for() -> None:
    assert bnfold.verify(network(), bnfold.fuse(network()), providers=("cpu",)).is_equivalent


@pytest.mark.parametrize("what", ["h", "b", "n_beta"])
def test_a_part_of_the_truth_clears_no_fault(what: str) -> None:
    """One class, or one channel, is off by a thousandth."""
    wrong = network()
    for tensor in wrong.graph.initializer:
        if tensor.name == what:
            array = numpy_helper.to_array(tensor).copy()
            array[7] *= FLOAT(1.001)
            tensor.CopyFrom(numpy_helper.from_array(array, what))
    assert not bnfold.verify(network(), bnfold.fuse(wrong)).is_equivalent
