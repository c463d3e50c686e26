"""The size of a constant, computed before it is evaluated: a few bytes of model can ask for a terabyte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import UnreadableTensorError

FREE = 1 << 26
"""Elements that any constant may have; more only where its operands are large themselves."""

WORK = 1 << 30
"""Elements that all constants of a model may have together, beside 32 times what it stores."""

REARRANGING = frozenset(
    {"Abs", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Exp", "Flatten", "Floor", "Identity", "Neg", "Reciprocal"}
    | {"ReduceMean", "ReduceProd", "ReduceSum", "Reshape", "Shape", "Slice", "Split", "Sqrt", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
"""Operators that make no more elements than they read."""


class Budget:
    """The work that evaluating the constants of one model may still take.

    Args:
        stored: counts the elements of all tensors in the model; called when the first constant is evaluated.
    """

    def __init__(self, stored: Callable[[], int]) -> None:
        self._stored = stored
        self._spent = 0

    @cached_property
    def _whole(self) -> int:
        return WORK + 32 * self._stored()

    def spend(self, operator: str, attributes: Mapping[str, Any], inputs: Sequence[npt.NDArray[Any]]) -> None:
        """Count the cost of evaluating an operator.

        Raises:
            ValueError: it would make too much.
            UnreadableTensorError: with it, all of them would.
        """
        size = result_size(operator, attributes, inputs)
        if not 0 <= size <= max(FREE, 2 * sum(operand.size for operand in inputs)):
            raise ValueError(f"it asks for {size} elements")
        self._spent += size
        if self._spent > self._whole:
            raise UnreadableTensorError("its constants take too much work")


def result_size(operator: str, attributes: Mapping[str, Any], inputs: Sequence[npt.NDArray[Any]]) -> int:
    """The elements that a constant operator makes at most, in the form of opset 18 or later.

    Raises:
        ValueError: its operands do not say.
    """
    if operator in REARRANGING or not inputs:
        return sum(operand.size for operand in inputs)
    match operator:
        case "ConstantOfShape":
            return _product(inputs[0])
        case "Expand":
            return _broadcast([inputs[0].shape, tuple(map(int, inputs[1].reshape(-1)))])
        case "Tile":
            return inputs[0].size * _product(np.maximum(inputs[-1], 1))  # a zero comes after all that is made before it
        case "Range":
            return _range_size(*(operand.reshape(-1)[0] for operand in inputs))
        case "Pad":
            ends = [abs(int(pad)) for pad in inputs[1].reshape(-1)] or [0]
            return prod(dim + 2 * max(ends) for dim in inputs[0].shape)
        case "Gather":
            axis = attributes.get("axis", 0)
            return int(inputs[1].size * inputs[0].size // max(1, inputs[0].shape[axis]))
        case _:
            return _broadcast([operand.shape for operand in inputs])


def _product(dims: npt.NDArray[Any]) -> int:
    sizes = [int(dim) for dim in dims.reshape(-1)]
    return -1 if any(size < 0 for size in sizes) else prod(sizes)


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> int:
    aligned = zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1)
    return prod(0 if 0 in dims else max(dims) for dims in aligned)


def _range_size(start: np.generic, limit: np.generic, delta: np.generic) -> int:
    first, last, step = float(start), float(limit), float(delta)
    if not step or not np.isfinite([first, last, step]).all():
        raise ValueError(f"it counts from {first} to {last} by {step}")
    return max(0, int((last - first) / step) + 1)
