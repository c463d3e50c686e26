"""What callers meet in another way, though both models compute the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.toys.onnx_graphs import model, node, random

FLOAT = np.float32


def network() -> onnx.ModelProto:
    """A convolution whose bias a caller may give."""
    constants = {"w": random(4, 3, 3, 3, dtype=FLOAT), "b": random(4, dtype=FLOAT)}
    made = model([node("Conv", "x w b", "y")], constants, ("N", 3, 8, 8), dtype=FLOAT)
    made.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [4]))
    del made.graph.output[0].type.tensor_type.shape.dim[:]
    for size in ("N", 4, 6, 6):
        dim = made.graph.output[0].type.tensor_type.shape.dim.add()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
    return made


def fix(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def without_default(made: onnx.ModelProto) -> None:
    del made.graph.input[1]


def with_default(made: onnx.ModelProto) -> None:
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))


def declared(made: onnx.ModelProto) -> None:
    made.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 7


CHANGES: dict[str, Callable[[onnx.ModelProto], None]] = {
    "axis 0 of input 'x' was dynamic ('N') and is 2": fix,
    "input 'b' had a default and is a constant now, or gone": without_default,
    "'w' was a constant, or not there, and is an input with a default": with_default,
    "output 'y' was declared [N, 4, 6, 6] and is declared [N, 4, 7, 6]": declared,
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_another_interface_is_a_difference_that_can_be_allowed(sentence: str) -> None:
    other = network()
    CHANGES[sentence](other)
    assert bnfold.verify(network(), network()).is_equivalent
    verdict = bnfold.verify(network(), other)
    assert (verdict.is_equivalent, verdict.interface) == (False, (sentence,))
    allowed = bnfold.verify(network(), other, allow_interface=True)
    assert allowed.is_equivalent
    assert any(sentence in each for each in allowed.findings)
    with pytest.raises(AssertionError, match="interface: "):
        bnfold.testing.assert_equivalent(network(), other)


def test_a_size_that_is_free_now_is_no_difference() -> None:
    other = network()
    fix(other)
    assert bnfold.verify(other, network()).is_equivalent


def test_initializers_that_had_to_be_inputs_are_no_defaults() -> None:
    old = network()
    old.ir_version = 3
    with_default(old)
    other = network()
    without_default(other)
    assert bnfold.verify(old, other).is_equivalent


def test_an_output_that_is_known_better_is_no_difference() -> None:
    other = network()
    other.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert bnfold.verify(network(), other).is_equivalent
    other.graph.output[0].type.tensor_type.ClearField("shape")
    assert bnfold.verify(network(), other).is_equivalent
