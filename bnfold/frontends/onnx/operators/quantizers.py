"""QuantizeLinear of constants, as the standard defines it: ``saturate(round_half_even(x / scale) + zero_point)``.

The division is one of float32. A weight of another type is not read: where quotients have few digits many lie on a tie,
and runtimes, which divide in one type or another, round them to different integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Quantizer:
    """What makes integers of float32 numbers.

    Attributes:
        scales, zero_points: vectors, of one entry if per tensor. Zero points have the type of the integers.
        axis: along which they differ, for more than one.
    """

    scales: AnyArray
    zero_points: AnyArray
    axis: int

    def __call__(self, values: AnyArray) -> AnyArray:
        """The integers that stand for these numbers."""
        limits = ml_dtypes.iinfo(self.zero_points.dtype)  # type: ignore[no-untyped-call]
        with np.errstate(over="ignore"):
            rounded = np.rint(values / self.along(self.scales, values.ndim))
        shifted = rounded + self.along(self.zero_points, values.ndim).astype(np.float64)
        integers: AnyArray = np.clip(shifted, float(limits.min), float(limits.max)).astype(np.int64)
        return integers.astype(self.zero_points.dtype)

    def along(self, vector: AnyArray, rank: int) -> AnyArray:
        """One of its vectors beside data of `rank` axes."""
        shape = [1] * rank
        if vector.size > 1:
            shape[self.axis] = vector.size
        return vector.reshape(shape)


def read(node: ir.Node, operands: Sequence[AnyArray | None]) -> Quantizer:
    """A QuantizeLinear with constant operands.

    Raises:
        ValueError: it is one of blocks, of other types, or of numbers that have no integers.
    """
    values, scales, *rest = operands
    if values is None or scales is None:
        raise ValueError("an operand is missing")
    if node.attributes.get_int("block_size", 0):
        raise ValueError("it is quantised in blocks")
    if node.attributes.get_int("precision", 0):
        raise ValueError("it is divided in a precision of its own")
    if {values.dtype, scales.dtype} != {np.dtype(np.float32)}:
        raise ValueError("it is not quantised from float32")
    zero_points = rest[0] if rest else None
    if zero_points is None:
        kind = ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
        zero_points = np.zeros(scales.shape, kind.numpy())
    try:
        ml_dtypes.iinfo(zero_points.dtype)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ValueError("it is not quantised to integers") from error
    axis = node.attributes.get_int("axis", 1) % max(1, values.ndim)
    channels = values.shape[axis] if values.ndim else 1
    if scales.size not in (1, channels) or zero_points.size != scales.size:
        raise ValueError("its scales do not fit it")
    if not (scales > 0).all() or not np.isfinite(scales).all() or not np.isfinite(values).all():
        raise ValueError("its numbers are not finite, or its scales not positive")
    return Quantizer(scales.reshape(-1), zero_points.reshape(-1), axis)
