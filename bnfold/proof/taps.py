"""Inputs that single out each weight of a convolution or a matrix product: a one in one place, zeros elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.proof.linear import attribute

AnyArray = npt.NDArray[Any]

BATCH = 1 << 22
"""How many elements of inputs are evaluated at a time."""

WORK = 1 << 35
"""The most multiplications that are spent on the weights of one operator."""


@dataclass(frozen=True)
class Taps:
    """Impulses for which each element of an operator's output is at most one weight, plus the bias.

    Attributes:
        shape: the shape of the input. Its first axis holds the impulses.
        axis: the channel axis.
        groups: the groups of the channels. Channels with the same place in their groups share an impulse, since no
            output reads two of them.
        places: the places of impulses along each other axis but the first.
    """

    shape: tuple[int, ...]
    axis: int
    groups: int
    places: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """How many impulses there are."""
        return self.shape[self.axis] // self.groups * len(self.places)

    def batches(self) -> Iterator[AnyArray]:
        """All impulses, some at a time."""
        channels = self.shape[self.axis] // self.groups
        chosen = list(product(range(channels), self.places))
        step = max(1, BATCH // math.prod(self.shape))
        for start in range(0, len(chosen), step):
            some = chosen[start : start + step]
            images = np.zeros((len(some), *self.shape[1:]))
            for image, (channel, place) in zip(images, some, strict=True):
                for group in range(self.groups):
                    at = list(place)
                    at.insert(self.axis - 1, channel + group * channels)
                    image[tuple(at)] = 1.0
            yield images


def taps_of(node: onnx.NodeProto, kernel: AnyArray, shape: tuple[int, ...]) -> Taps | None:
    """The impulses for one operator with an input of this shape; None for an operator that is not covered."""
    rank = len(shape)
    if node.op_type == "Conv" and attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and rank == kernel.ndim:
        groups = int(attribute(node, "group", 1))
        window = [_axis_places(node, axis, shape[axis + 2], kernel.shape[axis + 2]) for axis in range(rank - 2)]
        return Taps(shape, 1, groups, tuple(product(*window)))
    is_plain = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transA", 0))
    if is_plain and rank >= 2 and kernel.ndim == 2:
        return Taps(shape, rank - 1, 1, ((0,) * (rank - 2),))
    return None


def _axis_places(node: onnx.NodeProto, axis: int, size: int, window: int) -> list[int]:
    """Positions along one axis that together meet every weight that any position meets."""
    rank = len(attribute(node, "pads", [])) // 2
    pads = attribute(node, "pads", [0] * 2)
    begin, end = (pads[axis], pads[rank + axis]) if rank else (0, 0)
    stride, dilation = (_entry(node, name, axis) for name in ("strides", "dilations"))
    outputs = (size + begin + end - dilation * (window - 1) - 1) // stride + 1
    met = {
        place: {
            tap
            for tap in range(window)
            if (place + begin - tap * dilation) % stride == 0
            and 0 <= (place + begin - tap * dilation) // stride < outputs
        }
        for place in range(size)
    }
    chosen: list[int] = []
    missing = set().union(*met.values())
    while missing:
        best = max(met, key=lambda place: len(met[place] & missing))
        chosen.append(best)
        missing -= met[best]
    return chosen


def _entry(node: onnx.NodeProto, name: str, axis: int) -> int:
    numbers = attribute(node, name, None)
    return int(numbers[axis]) if numbers else 1
