"""QuantizeLinear of constants, as the standard defines it: ``saturate(round_half_even(x / scale) + zero_point)``.

The division is one of float32. A weight of another type is not read: where quotients have few digits many lie on a tie,
and runtimes, which divide in one type or another, round them to different integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnfold.frontends.quantized import AnyArray, Quantizer, limits_of


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
    if limits_of(zero_points.dtype) is None:
        raise ValueError("it is not quantised to integers")
    axis = node.attributes.get_int("axis", 1) % max(1, values.ndim)
    channels = values.shape[axis] if values.ndim else 1
    if scales.size not in (1, channels) or zero_points.size != scales.size:
        raise ValueError("its scales do not fit it")
    if not (scales > 0).all() or not np.isfinite(scales).all() or not np.isfinite(values).all():
        raise ValueError("its numbers are not finite, or its scales not positive")
    return Quantizer(scales.reshape(-1), zero_points.reshape(-1), axis)
