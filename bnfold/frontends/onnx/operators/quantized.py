"""Quantised weights: a constant DequantizeLinear absorbs a per-channel scale in its own scales.

    (q - zero_point) * scale[c] * s[c]  =  (q - zero_point) * (scale[c] * s[c])

Integers stay as they are where s is positive. Where it is negative, q becomes ``2 zero_point - q``, if its type has
that; where it is zero, q becomes the zero point, and the scale stays. So this is exact up to the one rounding of the
scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.algebra.affine import Array
from bnfold.algebra.linear import Layout
from bnfold.frontends.onnx.operators.reader import Facts
from bnfold.frontends.reading import AnyArray, Unreadable
from bnfold.graph.outcome import Reason


@dataclass(frozen=True, eq=False)
class Quantized:
    """A constant DequantizeLinear.

    Attributes:
        node: the DequantizeLinear.
        integers, scales, zero_points: its inputs; scales and zero points are vectors, of one entry if per tensor.
        axis: along which scales differ, for more than one.
    """

    node: ir.Node
    integers: AnyArray
    scales: AnyArray
    zero_points: AnyArray
    axis: int

    def dequantize(self) -> AnyArray:
        """The values, in the type of the scales."""
        axis = self.axis if self.scales.size > 1 else 0
        wide = self.integers.astype(np.float64) - self._along(self.zero_points, axis).astype(np.float64)
        return (wide * self._along(self.scales, axis).astype(np.float64)).astype(self.scales.dtype)

    def rescaled(self, factor: Array) -> Array:
        """The scales, one for each output channel, times the size of `factor` where that is not zero; float64."""
        sizes = np.where(factor == 0, 1.0, np.abs(factor))
        return np.broadcast_to(self.scales.astype(np.float64), factor.shape) * sizes

    def mirrored(self, axis: int) -> npt.NDArray[np.bool_]:
        """The channels along `axis` of which every integer has a negative in its type."""
        channels = self.integers.shape[axis]
        try:
            limits = ml_dtypes.iinfo(self.integers.dtype)  # type: ignore[no-untyped-call]
        except ValueError:  # of floating point
            return np.zeros(channels, bool)
        by_channel = np.moveaxis(self._negatives(axis), axis, 0).reshape(channels, -1)
        return np.asarray(((by_channel >= limits.min) & (by_channel <= limits.max)).all(axis=1))

    def resigned(self, factor: Array, axis: int) -> AnyArray:
        """The integers times the sign of `factor`, which has an entry for each channel along `axis`."""
        if (factor > 0).all():
            return self.integers
        signs = self._along(factor, axis)
        zero_points = self._along(self.zero_points, axis).astype(np.int64)
        signed = np.where(signs < 0, self._negatives(axis), self.integers.astype(np.int64))
        return np.where(signs == 0, zero_points, signed).astype(self.integers.dtype)

    def _negatives(self, axis: int) -> npt.NDArray[np.int64]:
        zero_points = self._along(self.zero_points, axis).astype(np.int64)
        return np.asarray(2 * zero_points - self.integers.astype(np.int64), np.int64)

    def _along(self, vector: AnyArray, axis: int) -> AnyArray:
        """A vector with an entry for each channel along `axis`, or one for all, beside the integers."""
        shape = [1] * self.integers.ndim
        if vector.size > 1:
            shape[axis] = vector.size
        return vector.reshape(shape)


def find(value: ir.Value | None, facts: Facts) -> Quantized | None:
    """The constant DequantizeLinear that makes a value; None for any other value.

    Raises:
        Unreadable: it is quantised in blocks.
    """
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    if not all(operand is None or facts.constants.holds(operand) for operand in node.inputs):
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        raise Unreadable(
            Reason.FUNCTION_INPUT, "an attribute of its quantised weight is given by the caller of a function"
        )
    if node.attributes.get_int("block_size", 0):
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised in blocks")
    integers, scales, *rest = [facts.constants.get(operand) for operand in node.inputs if operand is not None]
    if integers.dtype.kind in "OSUc" or scales.dtype.kind in "OSUc":
        raise Unreadable(Reason.INVALID_PARAMETERS, "its quantised weight holds no numbers")
    zero_points = rest[0].reshape(-1) if rest else np.zeros(scales.size, integers.dtype)
    axis = node.attributes.get_int("axis", 1)
    axis %= max(1, integers.ndim)
    channels = integers.shape[axis] if integers.ndim else 1
    if scales.size not in (1, channels) or zero_points.size != scales.size:
        raise Unreadable(Reason.INVALID_PARAMETERS, "the scales of its quantised weight do not fit it")
    return Quantized(node, integers, scales.reshape(-1), zero_points, axis)


def insist_on_output_scales(quantized: Quantized, layout: Layout, groups: int, version: int) -> int:
    """The axis of the stored kernel along which the output channels lie, where each can have a scale of its own.

    Raises:
        Unreadable: the scales differ along another axis, or the opset has one scale for the whole tensor.
    """
    if layout is Layout.STACKED:
        raise Unreadable(Reason.QUANTIZED, "its stacked weight is quantised")
    rank = quantized.integers.ndim
    axis = {Layout.CONV: 0, Layout.CONV_TRANSPOSE: 1, Layout.IN_OUT: rank - 1, Layout.OUT_IN: rank - 2}[layout]
    if quantized.scales.size > 1 and quantized.axis != axis:
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised along another axis than its output channels")
    if layout is Layout.CONV_TRANSPOSE and groups > 1:
        raise Unreadable(Reason.QUANTIZED, "its groups share the scales of its quantised weight")
    if version < 13:
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised, before opset 13 with one scale for all channels")
    return axis
