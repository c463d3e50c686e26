"""Quantised weights of ONNX: a constant DequantizeLinear, maybe with a QuantizeLinear of a float weight before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnfold.algebra.linear import Layout
from bnfold.frontends.onnx.operators import quantizers
from bnfold.frontends.onnx.operators.constants import FOLDABLE
from bnfold.frontends.onnx.operators.reader import Facts
from bnfold.frontends.quantized import Quantized, Quantizer, kernel_axis
from bnfold.frontends.reading import AnyArray, Unreadable
from bnfold.graph.outcome import Reason

QUANTISERS = ("DequantizeLinear", "QuantizeLinear")
"""Of ONNX and, for some types, of ONNX Runtime."""


def find(value: ir.Value | None, facts: Facts) -> Quantized | None:
    """The constant DequantizeLinear that makes a value, maybe of a transposed matrix; None for any other value.

    Raises:
        Unreadable: it is quantised in blocks.
    """
    node = None if value is None else value.producer()
    if node is not None and is_turning(node):
        source = find(node.inputs[0], facts)
        return source.turned() if source is not None and source.integers.ndim == 2 and not source.is_turned else None
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
    source = Quantized(integers, scales.reshape(-1), zero_points, axis, weights)
    if quantizer is not None and not _is_inverse(source, quantizer):
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised and dequantised by different scales")
    return source


def is_turning(node: ir.Node) -> bool:
    """Whether a node transposes a matrix."""
    if (node.domain, node.op_type) != ("", "Transpose"):
        return False
    order = node.attributes.get("perm")
    return order is None or (not order.is_ref() and list(order.value) == [1, 0])


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
    """Refuse a weight that is dequantised and then changed, by a Transpose for example, or by another operator."""
    if _is_made_by("DequantizeLinear", value, facts):
        maker = value.producer() if value is not None else None
        assert maker is not None
        if maker.domain != "":
            raise Unreadable(Reason.QUANTIZED, f"its weight is quantised for {maker.domain}.{maker.op_type}")
        raise Unreadable(Reason.QUANTIZED, "its weight is dequantised, and changed before it is read")


def _is_made_by(operator: str, value: ir.Value | None, facts: Facts) -> bool:
    """Whether a value is computed by an operator of this kind, at some distance, and from constants alone."""
    if value is None or value.producer() is None:
        return False
    stack: list[ir.Value | None] = [value]
    seen, is_made = set[ir.Value](), False
    while stack:
        top = stack.pop()
        if top is None or top in seen:
            continue
        seen.add(top)
        node = top.producer()
        is_plain = node is not None and node.domain == "" and node.op_type in (*FOLDABLE, "Constant")
        if node is None or not (is_plain or node.op_type in QUANTISERS):
            if not facts.constants.holds(top):
                return False
            continue
        is_made |= node.op_type == operator
        stack.extend(node.inputs)
    return is_made


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
