"""Weights that are stored in float16 and computed with in float32 are judged by the rounding of float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from tests.toys.onnx_graphs import Array, model, node, norm, random

FLOAT = np.float32


def network(
    *, epsilon: float = 1e-5, shift: float = 0.0, gain: float = 1.0, norm_type: type = FLOAT
) -> onnx.ModelProto:
    """Two convolutions with weights behind a Cast, and a BatchNormalization between them."""
    parameters: dict[str, Array] = {
        name: np.abs(random(16, dtype=FLOAT, seed=index)) + FLOAT(0.05)
        for index, name in enumerate(("gamma", "beta", "mean", "var"))
    }
    parameters["beta"] += FLOAT(shift)
    held = {name: array.astype(norm_type) for name, array in parameters.items()}
    second = (random(16, 16, 3, 3, dtype=FLOAT, seed=1) / 12).astype(np.float16)
    second[5] = second[5] * np.float16(gain)
    nodes = [
        node("Cast", "w16", "w", to=onnx.TensorProto.FLOAT),
        node("Conv", "x w", "a", pads=[1] * 4),
        norm("a", "n", epsilon=epsilon),
        node("Relu", "n", "r"),
        node("Cast", "v16", "v", to=onnx.TensorProto.FLOAT),
        node("Conv", "r v", "y", pads=[1] * 4),
    ]
    first = (random(16, 3, 3, 3, dtype=FLOAT) / 5).astype(np.float16)
    return model(nodes, {"w16": first, "v16": second, **held}, (2, 3, 12, 12), dtype=FLOAT)


@pytest.mark.parametrize("norm_type", [FLOAT, np.float16])
def test_parameters_that_are_slightly_off_are_a_difference(norm_type: type) -> None:
    right = network(norm_type=norm_type)
    assert not bnfold.verify(right, network(norm_type=norm_type, epsilon=2e-5)).is_equivalent
    assert not bnfold.verify(network(), network(shift=1e-3)).is_equivalent


@pytest.mark.parametrize("norm_type", [FLOAT, np.float16])
def test_a_fold_is_the_same_model(norm_type: type) -> None:
    right = network(norm_type=norm_type)
    assert bnfold.verify(right, bnfold.fuse(right)).is_equivalent


def test_weights_that_are_rounded_again_may_differ_by_their_own_rounding() -> None:
    """What is stored in float16 again can be no nearer."""
    found = bnfold.verify(network(), network(gain=1.001))
    assert found.is_equivalent
    assert 1e-3 < found.outputs[0].budget < 2e-2


def test_a_difference_is_no_conversion_where_both_store_alike() -> None:
    found = bnfold.verify(network(), network(epsilon=1e-2))
    assert not found.is_equivalent
    assert not any("the candidate is float16" in finding for finding in found.findings)
