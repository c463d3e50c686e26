"""Quantised weights: a constant DequantizeLinear absorbs a per-channel scale in its own scales.

    (q - zero_point) * scale[c] * s[c]  =  (q - zero_point) * (scale[c] * s[c])

Integers stay as they are where s is positive. Where it is negative, q becomes ``2 zero_point - q``, if its type has
that; where it is zero, q becomes the zero point, and the scale stays. So this is exact up to the one rounding of the
scales.

Where QuantizeLinear makes the integers of a float weight w, as training that knows of quantisation exports it, the
weight takes in s as well. Mostly ``w * s`` then has the same integer under the new scale. Near a tie or beyond the
range of its type it may have another, or one that depends on the runtime. Such an element becomes ``(q - zero_point) *
scale``, the number that q stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.algebra.affine import Array
from bnfold.algebra.linear import Layout
from bnfold.algebra.rounding import round_once
from bnfold.frontends.onnx.operators import quantizers
from bnfold.frontends.onnx.operators.constants import FOLDABLE
from bnfold.frontends.onnx.operators.quantizers import Quantizer
from bnfold.frontends.onnx.operators.reader import Facts
from bnfold.frontends.reading import AnyArray, Unreadable
from bnfold.graph.outcome import Reason

DOUBT = 2.0**-20
"""How far from a tie a weight must lie, relatively. Runtimes divide by a scale, or multiply by its inverse."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A constant DequantizeLinear.

    Attributes:
        node: the DequantizeLinear.
        integers, scales, zero_points: its inputs; scales and zero points are vectors, of one entry if per tensor.
        axis: along which scales differ, for more than one.
        weights: the float32 numbers of which a QuantizeLinear makes the integers; None where these are stored.
    """

    node: ir.Node
    integers: AnyArray
    scales: AnyArray
    zero_points: AnyArray
    axis: int
    weights: AnyArray | None = None

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

    def reweighted(self, factor: Array, axis: int) -> AnyArray | None:
        """The weights times `factor`, with the integers of `resigned` under the scales of `rescaled`; None without any.

        They may miss an integer where a new scale or weight leaves the range of normal numbers; see `requantizes`.
        """
        if self.weights is None:
            return None
        wanted, quantize = self.resigned(factor, axis), self._requantizer(factor, axis)
        scaled = round_once(self.weights.astype(np.float64) * self._along(factor, axis), self.weights.dtype)
        points, scales = (quantize.along(vector, wanted.ndim) for vector in (quantize.zero_points, quantize.scales))
        steps = wanted.astype(np.float64) - points.astype(np.float64)
        meant = round_once(steps * scales.astype(np.float64), self.weights.dtype)
        is_same = np.isfinite(scaled)
        for doubt in (1 - DOUBT, 1 + DOUBT):
            is_same &= quantize(np.multiply(scaled, doubt, dtype=np.float32)) == wanted
        return np.where(is_same, scaled, meant)

    def requantizes(self, factor: Array, axis: int) -> npt.NDArray[np.bool_]:
        """The channels along `axis` whose weights, as `reweighted` gives them, have the integers of `resigned`."""
        channels = self.integers.shape[axis]
        weights = self.reweighted(factor, axis)
        if weights is None:
            return np.ones(channels, bool)
        is_same = np.isfinite(weights) & (self._requantizer(factor, axis)(weights) == self.resigned(factor, axis))
        return np.asarray(np.moveaxis(is_same, axis, 0).reshape(channels, -1).all(axis=1))

    def _requantizer(self, factor: Array, axis: int) -> Quantizer:
        scales = round_once(self.rescaled(factor), self.scales.dtype)
        return Quantizer(scales, np.broadcast_to(self.zero_points, scales.shape), axis)

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
    weights, quantizer = _find_weights(node.inputs[0], facts)
    integers, scales, *rest = [facts.constants.get(operand) for operand in node.inputs if operand is not None]
    if integers.dtype.kind in "OSUc" or scales.dtype.kind in "OSUc":
        raise Unreadable(Reason.INVALID_PARAMETERS, "its quantised weight holds no numbers")
    zero_points = rest[0].reshape(-1) if rest else np.zeros(scales.size, integers.dtype)
    axis = node.attributes.get_int("axis", 1)
    axis %= max(1, integers.ndim)
    channels = integers.shape[axis] if integers.ndim else 1
    if scales.size not in (1, channels) or zero_points.size != scales.size:
        raise Unreadable(Reason.INVALID_PARAMETERS, "the scales of its quantised weight do not fit it")
    source = Quantized(node, integers, scales.reshape(-1), zero_points, axis, weights)
    if quantizer is not None and not _is_inverse(source, quantizer):
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised and dequantised by different scales")
    return source


def _find_weights(value: ir.Value | None, facts: Facts) -> tuple[AnyArray, Quantizer] | tuple[None, None]:
    """The float weights of which a QuantizeLinear makes a value, and how; None where no such node is above it.

    Raises:
        Unreadable: the integers are changed before they are dequantised, or of a form that is not read.
    """
    node = None if value is None else value.producer()
    if node is None or node.op_type != "QuantizeLinear":
        if _is_made_by("QuantizeLinear", value, facts):
            raise Unreadable(Reason.QUANTIZED, "its weight is quantised, and changed before it is dequantised")
        return None, None
    operands = [None if operand is None else facts.constants.get(operand) for operand in node.inputs]
    try:
        quantizer = quantizers.read(node, operands)
    except ValueError as error:
        raise Unreadable(Reason.QUANTIZED, f"its weight is quantised in a form that is not read: {error}") from error
    assert operands[0] is not None
    return operands[0], quantizer


def _is_inverse(source: Quantized, quantizer: Quantizer) -> bool:
    """Whether a weight is dequantised by what quantised it."""
    pairs = (source.scales, quantizer.scales), (source.zero_points, quantizer.zero_points)
    is_same = all(np.array_equal(one, other) and one.dtype == other.dtype for one, other in pairs)
    return is_same and (source.scales.size == 1 or source.axis == quantizer.axis)


def insist_on_direct(value: ir.Value | None, facts: Facts) -> None:
    """Refuse a weight that is dequantised and then changed, by a Transpose for example."""
    if _is_made_by("DequantizeLinear", value, facts):
        raise Unreadable(Reason.QUANTIZED, "its weight is dequantised, and changed before it is read")


def _is_made_by(operator: str, value: ir.Value | None, facts: Facts) -> bool:
    """Whether a value is computed by an operator of this kind, at some distance, and from constants alone."""
    stack, seen, is_made = [value], set[ir.Value](), False
    while stack:
        top = stack.pop()
        if top is None or top in seen:
            continue
        seen.add(top)
        node = top.producer()
        if node is None or node.domain != "" or node.op_type not in (*FOLDABLE, operator, "Constant"):
            if not facts.constants.holds(top):
                return False
            continue
        is_made |= node.op_type == operator
        stack.extend(node.inputs)
    return is_made


def kernel_axis(quantized: Quantized, layout: Layout) -> int:
    """The axis of the stored kernel along which the output channels lie."""
    rank = quantized.integers.ndim
    return {Layout.CONV: 0, Layout.CONV_TRANSPOSE: 1, Layout.IN_OUT: rank - 1, Layout.OUT_IN: rank - 2}[layout]


def insist_on_output_scales(quantized: Quantized, layout: Layout, groups: int, version: int) -> int:
    """The axis of the output channels in the stored kernel, where each channel can have a scale of its own.

    Raises:
        Unreadable: the scales differ along another axis, or the opset has one scale for the whole tensor.
    """
    if layout is Layout.STACKED:
        raise Unreadable(Reason.QUANTIZED, "its stacked weight is quantised")
    axis = kernel_axis(quantized, layout)
    if quantized.scales.size > 1 and quantized.axis != axis:
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised along another axis than its output channels")
    if layout is Layout.CONV_TRANSPOSE and groups > 1:
        raise Unreadable(Reason.QUANTIZED, "its groups share the scales of its quantised weight")
    if version < 13:
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised, before opset 13 with one scale for all channels")
    return axis
