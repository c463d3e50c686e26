"""Convolutions and matrix products, described: `Linear` with the place of its kernel and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np
import onnx_ir as ir

from bnfold.algebra.affine import Array, per_channel_axis
from bnfold.algebra.kernels import Kernel, row_count
from bnfold.algebra.linear import Border, Layout, Linear, Window
from bnfold.algebra.masks import has_any
from bnfold.frontends import reading
from bnfold.frontends.onnx.operators import quantized
from bnfold.frontends.onnx.operators.modern import align
from bnfold.frontends.onnx.operators.reader import FLOATS, Reader, as_stored
from bnfold.frontends.parameters import Stored, array_rows
from bnfold.frontends.quantized import Quantized
from bnfold.frontends.reading import AnyArray, Unreadable
from bnfold.graph.outcome import Reason


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the parameters of a linear operator are, and how they are laid out.

    Attributes:
        kernel: index of the kernel among the node's inputs.
        bias: the bias, a constant value of the graph, or None.
        bias_index: its index among the node's inputs; None for a matrix product, whose bias is an Add of its own.
        layout, groups: how the kernel is stored.
        behind: how many axes are behind the output channels, for a product that takes no bias.
        has_rows: whether the bias differs from row to row of the output (Gemm's C).
        quantized: the integers that the kernel is made of, if it is.
        kernel_factor, bias_factor: Gemm's alpha and beta, which go into the new parameters.
    """

    kernel: int
    bias: ir.Value | None
    bias_index: int | None
    layout: Layout
    groups: int = 1
    kernel_factor: float = 1.0
    bias_factor: float = 1.0
    quantized: Quantized | None = None
    behind: int = 0
    has_rows: bool = False


def read_linear(reader: Reader, add: ir.Node | None) -> tuple[Linear, Weights] | None:
    """A linear operator with constant weights; None for any other operator.

    Args:
        reader: the node.
        add: for a matrix product, the Add that is its bias.

    Raises:
        Unreadable: it is a linear operator, but not one whose weights can change.
    """
    if reader.node.op_type == "MatMul":
        if reads_two_values(reader):
            return None
        linear, weights = _matmul(reader, add)
    elif is_fused_matmul(reader.node):
        linear, weights = _fused_matmul(reader)
    elif reader.node.op_type in READERS:
        linear, weights = READERS[reader.node.op_type](reader)
    else:
        return None
    value = reader.value(weights.kernel)
    source = quantized.find(value, reader.facts)
    if source is None:
        return linear, weights
    if reader.node.op_type in ("Einsum", "FusedMatMul"):
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised")
    axis = quantized.insist_on_output_scales(source, weights.layout, weights.groups, reader.version)
    if weights.kernel_factor != 1:
        raise Unreadable(Reason.QUANTIZED, "its quantised weight has an alpha as well")
    return replace(linear, is_quantized=True, mirrored=source.mirrored(axis)), replace(weights, quantized=source)


def _kernel_shape(reader: Reader, index: int) -> tuple[int, ...]:
    """The shape of a constant kernel. The data of a stored one is not loaded."""
    value = reader.value(index)
    if value is None:
        raise reading.missing("weight")
    constants = reader.facts.constants
    if (source := quantized.find(value, reader.facts)) is not None:
        return source.integers.shape
    quantized.insist_on_direct(value, reader.facts)
    reader.insist_on_constant(value, "weight")
    dtype, shape = constants.form(value)
    if dtype not in FLOATS:
        raise Unreadable(Reason.NOT_LINEAR, f"its weight {value.name!r} is of type {dtype}")
    return reading.filled(shape)


def _bias(reader: Reader, index: int, channels: int) -> ir.Value | None:
    value = reader.value(index)
    if value is not None:
        _vector(reader, index, channels)
    return value


def _vector(reader: Reader, index: int, channels: int) -> AnyArray:
    """A bias with one entry for each channel."""
    bias = _bias_constant(reader, index)
    if bias.shape != (channels,):
        raise reading.other_bias(bias.shape)
    return bias


def _bias_constant(reader: Reader, index: int) -> AnyArray:
    source = quantized.find(reader.value(index), reader.facts)
    return source.dequantize() if source else reader.numbers(index, "bias")


def _conv(reader: Reader) -> tuple[Linear, Weights]:
    shape, groups = _kernel_shape(reader, 1), int(reader.attribute("group", 1))
    auto_pad = reader.attribute("auto_pad", "NOTSET")
    border = Border.NONE
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        border = Border.PARTIAL if prod(shape[2:]) > 1 else Border.NONE
    elif auto_pad == "NOTSET" and any(reader.attribute("pads", ())):
        border = Border.PADDED
    bias = reader.value(2)
    has_bias = bias is not None and has_any(_vector(reader, 2, shape[0]))
    taps, is_shared = window(reader, shape[2:]), not reader.reads_alone(1) or (has_bias and not reader.reads_alone(2))
    linear, layout = reading.convolution(
        shape, groups, 1, border=border, window=taps, has_bias=has_bias, is_shared=is_shared
    )
    return linear, Weights(1, bias, 2, layout, groups)


def window(reader: Reader, taps: tuple[int, ...]) -> Window | None:
    """Where the taps of a convolution or pooling lie; None where that depends on the size of the data.

    SAME padding does not, with stride 1 and as many zeros on both sides; with dilation the runtimes disagree on it.
    """
    axes = len(taps)
    try:
        auto_pad = reader.attribute("auto_pad", "NOTSET")
        strides, dilations = (tuple(reader.attribute(name, (1,) * axes)) for name in ("strides", "dilations"))
        pads = tuple(reader.attribute("pads", (0,) * 2 * axes)) if auto_pad == "NOTSET" else (0,) * 2 * axes
    except Unreadable:
        return None
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        if set(strides + dilations) != {1} or not all(size % 2 for size in taps):
            return None
        pads = tuple(size // 2 for size in taps) * 2
    output = reading.space(reader.output_shape(), axes)  # which few have, whatever names other sizes have
    return _window(taps, strides, dilations, pads[:axes], pads[axes:], output)


_window = lru_cache(maxsize=4096)(reading.window)
"""Most operators of a model have one of a few windows."""


def _conv_transpose(reader: Reader) -> tuple[Linear, Weights]:
    groups = int(reader.attribute("group", 1))
    pads = *reader.attribute("pads", ()), *reader.attribute("output_padding", ())
    is_sized = "output_shape" in reader.node.attributes or reader.attribute("auto_pad", "NOTSET").startswith("SAME")
    is_dense = set(reader.attribute("strides", ())) <= {1} and not any(pads) and not is_sized
    linear, layout = reading.transposed_convolution(_kernel_shape(reader, 1), groups, 1, is_dense=is_dense)
    return linear, Weights(1, _bias(reader, 2, linear.out_channels), 2, layout, groups)


def _deform_conv(reader: Reader) -> tuple[Linear, Weights]:
    """DeformConv: linear in its data, whose taps may lie outside of it, where they read zeros."""
    shape, groups = _kernel_shape(reader, 1), int(reader.attribute("group", 1))
    linear, layout = reading.convolution(shape, groups, 1, border=Border.PARTIAL)
    return linear, Weights(1, _bias(reader, 3, shape[0]), 3, layout, groups)


def _gemm(reader: Reader) -> tuple[Linear, Weights]:
    layout = Layout.OUT_IN if reader.attribute("transB", 0) else Layout.IN_OUT
    axis_in = 0 if reader.attribute("transA", 0) else 1
    linear = reading.dense(_kernel_shape(reader, 1), layout, axis_in, axis_out=1)
    bias, has_rows = reader.value(2), False
    if bias is not None:
        constant = _bias_constant(reader, 2)
        has_rows = constant.size > 1 and constant.shape[-1] != constant.size
        is_aligned = constant.ndim <= 2 and constant.shape[-1:] in ((), (1,), (linear.out_channels,))
        if not is_aligned or (has_rows and reader.version < 7):
            raise reading.other_bias(constant.shape)
        if has_rows:
            linear = replace(linear, window=None)  # a merged operator has one bias for all rows
    factors = float(reader.attribute("alpha", 1.0)), float(reader.attribute("beta", 1.0))
    return replace(linear, has_bias=bias is not None), Weights(1, bias, 2, layout, 1, *factors, has_rows=has_rows)


def _matmul(reader: Reader, add: ir.Node | None) -> tuple[Linear, Weights]:
    kernel = matmul_kernel(reader)
    linear, layout = reading.product(_kernel_shape(reader, kernel), reader.rank(1 - kernel), on_right=kernel == 1)
    bias = None if add is None else add.inputs[1 - add.inputs.index(reader.node.outputs[0])]
    linear = replace(linear, has_bias_slot=add is not None, has_bias=add is not None)
    return linear, Weights(kernel, bias, None, layout, behind=0 if kernel == 1 else 1)


def _einsum(reader: Reader) -> tuple[Linear, Weights]:
    """A matrix product along any axis. It merges with nothing."""
    constant = [index for index, value in enumerate(reader.node.inputs) if reader.facts.constants.holds(value)]
    kernel = constant[0] if len(reader.node.inputs) == 2 and len(constant) == 1 else None
    describe, layout, behind = reading.einsum(str(reader.attribute("equation", "")), kernel)
    assert kernel is not None
    linear = replace(describe(_kernel_shape(reader, kernel)), window=None)
    return linear, Weights(kernel, None, None, layout, behind=behind)


def is_fused_matmul(node: ir.Node) -> bool:
    """Whether a node is called as the product that ONNX Runtime writes for a MatMul between transposes and a scale."""
    return (node.domain, node.op_type) == ("com.microsoft", "FusedMatMul")


def _fused_matmul(reader: Reader) -> tuple[Linear, Weights]:
    """FusedMatMul: ``alpha op(A) @ op(B)``, where `op` may exchange the last two axes. It merges with nothing."""
    options = reader.node.attributes
    if any(attribute.is_ref() for attribute in options.values()):
        raise Unreadable(Reason.FUNCTION_INPUT, "an attribute of it is set by the function's caller")
    if any(options.get_int(name, 0) for name in ("transBatchA", "transBatchB")):
        raise Unreadable(Reason.NOT_LINEAR, "it moves an axis of the batch")
    kernel = matmul_kernel(reader)
    on_right, turned = kernel == 1, [bool(options.get_int(name, 0)) for name in ("transA", "transB")]
    shape, rank = _kernel_shape(reader, kernel), reader.rank(1 - kernel)
    plain = (*shape[:-2], *shape[:-3:-1]) if turned[kernel] else shape
    linear, layout = reading.product(plain, rank, on_right=on_right)
    if turned[kernel]:
        layout = Layout.OUT_IN if layout is Layout.IN_OUT else Layout.IN_OUT
    assert linear.axis_out is not None
    axis_in = 2 * rank - 3 - linear.axis_out if turned[1 - kernel] else linear.axis_out
    linear = replace(linear, axis_in=axis_in, window=None, has_bias_slot=False, has_bias=False)
    factor = as_stored(options["alpha"]) if "alpha" in options else 1.0
    return linear, Weights(kernel, None, None, layout, kernel_factor=factor, behind=0 if on_right else 1)


def matmul_kernel(reader: Reader) -> int:
    """The index of a matrix product's constant operand."""
    for index in (1, 0):
        value = reader.value(index)
        if reader.facts.constants.holds(value) or quantized.find(value, reader.facts) is not None:
            return index
    for value in (reader.value(1), reader.value(0)):
        if value is not None and reader.facts.constants.is_overridable(value):
            reader.insist_on_constant(value, "weight")
        quantized.insist_on_direct(value, reader.facts)
    raise reading.no_constant_operand()


def reads_two_values(reader: Reader) -> bool:
    """Whether both operands of a matrix product are computed."""
    try:
        matmul_kernel(reader)
    except Unreadable as error:
        return error.stop.reason is Reason.NOT_LINEAR
    return False


def is_bias(reader: Reader, add: ir.Node) -> bool:
    """Whether `add` adds one constant per output channel to the matrix product of `reader`."""
    try:
        return _is_bias(reader, add)
    except Unreadable:
        return False


def _is_bias(reader: Reader, add: ir.Node) -> bool:
    linear = _matmul(reader, None)[0]
    assert linear.axis_out is not None
    product = reader.node.outputs[0]
    if add.inputs[0] is add.inputs[1] or product not in add.inputs:
        return False
    index = 1 - add.inputs.index(product)
    other = add.inputs[index]
    if not reader.facts.constants.holds(other) or (reader.version < 7 and index == 0):  # and cannot be broadcast later
        return False
    assert other is not None
    rank = reader.rank(1 - matmul_kernel(reader))
    constant = reader.facts.constants.get(other)
    shape = operand_shape(Reader(add, reader.facts), index, constant.shape, rank)
    if shape is None or constant.size not in (1, linear.out_channels):
        return False
    return constant.dtype.kind not in "OSUc" and per_channel_axis(shape, rank) in (None, linear.axis_out)


def operand_shape(reader: Reader, index: int, shape: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    """The shape of the constant operand `index` beside data of `rank` axes, as numpy aligns it; None where none fits.

    Opsets below 7 broadcast the second operand alone, from the attribute `axis` on, and only if `broadcast` says so.
    """
    if reader.version >= 7:
        return shape
    if index == 0 or not reader.attribute("broadcast", 0):
        return shape if shape == reader.shape(1 - index) else None
    if prod(shape) == 1:
        return shape if len(shape) <= rank else None
    return align(shape, rank, reader.attribute("axis", None))


def _recurrent(reader: Reader) -> tuple[Linear, Weights]:
    """LSTM, GRU, RNN: linear in the input alone. W is [directions, gates, in], B is [directions, Wb | Rb]."""
    shape = _kernel_shape(reader, 1)
    bias = reader.value(3)
    if len(shape) != 3 or (bias is not None and reader.constant(3, "bias").shape != (shape[0], 2 * shape[1])):
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight of shape {shape} does not fit its bias")
    linear = Linear(1, shape[0] * shape[1], shape[2], axis_in=2, axis_out=None)
    return linear, Weights(1, bias, 3, Layout.STACKED)


READERS: dict[str, Callable[[Reader], tuple[Linear, Weights]]] = {
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DeformConv": _deform_conv,
    "Einsum": _einsum,
    "Gemm": _gemm,
}


@dataclass(frozen=True, eq=False)
class RecurrentStored(Stored[Weights]):
    """The parameters of a recurrent layer, which stores the bias of the recurrence beside that of its input."""

    recurrent_bias: Array

    def native_bias(self, bias: Array) -> Array:
        """Both halves, ``[directions, Wb | Rb]``."""
        return np.concatenate([bias.reshape(self.kernel.shape[0], -1), self.recurrent_bias], axis=1)


def stored(reader: Reader, linear: Linear, weights: Weights) -> Stored[Weights]:
    """The parameters of a node that `read_linear` reads as a linear operator."""
    value = reader.value(weights.kernel)
    assert value is not None
    constants, source = reader.facts.constants, weights.quantized
    known = reader.facts.types.get(value)
    dtype = (constants.form(value)[0] if known is None else known).numpy()
    shape = constants.form(value)[1] if source is None else source.integers.shape
    count = row_count(shape, weights.layout)
    open_rows = constants.capture(value, count) if source is None else lambda: array_rows(source.dequantize(), count)
    kernel = Kernel(shape, weights.layout, weights.groups, open_rows, weights.kernel_factor)
    constant: Array | None = None
    if weights.bias is not None:
        bias_source = quantized.find(weights.bias, reader.facts)
        read_bias = bias_source.dequantize() if bias_source else constants.get(weights.bias)
        constant = read_bias.astype(np.float64) * weights.bias_factor
    if weights.layout is Layout.STACKED:
        own, recurrent = (None, np.zeros(shape[:2])) if constant is None else np.split(constant, 2, axis=1)
        return RecurrentStored(linear, weights, kernel, None if own is None else own.reshape(-1), dtype, recurrent)
    rows = constant.shape[:1] if constant is not None and weights.has_rows else ()
    flat = None if constant is None else constant.reshape(*rows, -1)
    bias = None if flat is None else np.broadcast_to(flat, (*rows, linear.out_channels))
    return Stored(linear, weights, kernel, bias, dtype, quantized=source)
