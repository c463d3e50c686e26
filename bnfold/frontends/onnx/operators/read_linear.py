"""Convolutions and matrix products, described: `Linear` with the place of its kernel and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from bnfold.algebra import terms
from bnfold.algebra.affine import Array, per_channel_axis
from bnfold.algebra.kernels import Kernel, Rows, row_count
from bnfold.algebra.linear import Border, Layout, Linear, Window
from bnfold.algebra.rounding import Rounding
from bnfold.algebra.terms import Load, Parameters
from bnfold.frontends.onnx.files.pieces import AnyArray, array_rows
from bnfold.frontends.onnx.operators import quantized
from bnfold.frontends.onnx.operators.modern import align
from bnfold.frontends.onnx.operators.quantized import Quantized
from bnfold.frontends.onnx.operators.reader import FLOATS, Reader
from bnfold.frontends.reading import Unreadable
from bnfold.graph.outcome import Reason


@dataclass(frozen=True)
class Weights:
    """Where the parameters of a linear operator are, and how they are laid out.

    Attributes:
        kernel: index of the kernel among the node's inputs.
        bias: the bias, a constant value of the graph, or None.
        bias_index: its index among the node's inputs; None for a matrix product, whose bias is an Add of its own.
        layout, groups: how the kernel is stored.
        quantized: what the kernel is dequantised from.
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


def read_linear(reader: Reader, add: ir.Node | None) -> tuple[Linear, Weights] | None:
    """A linear operator with constant weights; None for any other operator.

    Args:
        reader: the node.
        add: for a matrix product, the Add that is its bias.

    Raises:
        Unreadable: it is a linear operator, but not one whose weights can change.
    """
    if reader.node.op_type == "MatMul":
        linear, weights = _matmul(reader, add)
    elif reader.node.op_type in READERS:
        linear, weights = READERS[reader.node.op_type](reader)
    else:
        return None
    value = reader.value(weights.kernel)
    found = quantized.find(value, reader.facts)
    if found is None:
        return linear, weights
    quantized.insist_on_output_scales(found, weights.layout, weights.groups, reader.version)
    if weights.kernel_factor != 1:
        raise Unreadable(Reason.NOT_CONSTANT, "its quantised weight has an alpha as well")
    return replace(linear, is_quantized=True), replace(weights, quantized=found)


def _kernel_shape(reader: Reader, index: int) -> tuple[int, ...]:
    """The shape of a constant kernel, which is not loaded where it is stored."""
    value = reader.value(index)
    if value is None:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its weight is missing")
    constants = reader.facts.constants
    if (found := quantized.find(value, reader.facts)) is not None:
        return found.integers.shape
    if constants.is_overridable(value):
        raise Unreadable(
            Reason.OVERRIDABLE, f"its weight {value.name!r} is a graph input too, so a caller may replace it"
        )
    if not constants.holds(value):
        raise Unreadable(Reason.NOT_CONSTANT, f"its weight {value.name!r} is not constant")
    dtype, shape = constants.form(value)
    if dtype not in FLOATS:
        raise Unreadable(Reason.NOT_LINEAR, f"its weight {value.name!r} is of type {dtype}")
    if 0 in shape:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight {value.name!r} is empty")
    return shape


def _bias(reader: Reader, index: int, channels: int) -> ir.Value | None:
    value = reader.value(index)
    if value is not None:
        bias = _bias_constant(reader, index)
        if bias.shape != (channels,):
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its bias has shape {bias.shape} for {channels} channels")
    return value


def _bias_constant(reader: Reader, index: int) -> AnyArray:
    found = quantized.find(reader.value(index), reader.facts)
    return found.dequantize() if found else reader.numbers(index, "bias")


def _conv(reader: Reader) -> tuple[Linear, Weights]:
    shape = _kernel_shape(reader, 1)
    groups = int(reader.attribute("group", 1))
    if len(shape) < 3 or groups < 1 or shape[0] % groups:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight of shape {shape} does not fit {groups} groups")
    auto_pad = reader.attribute("auto_pad", "NOTSET")
    border = Border.NONE
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        border = Border.PARTIAL if prod(shape[2:]) > 1 else Border.NONE
    elif auto_pad == "NOTSET" and any(reader.attribute("pads", ())):
        border = Border.PADDED
    linear = Linear(groups, shape[0], shape[1] * groups, axis_in=1, axis_out=1, border=border)
    bias = _bias(reader, 2, shape[0])
    has_bias = bias is not None and bool(np.any(_bias_constant(reader, 2)))
    return replace(linear, window=window(reader, shape[2:]), has_bias=has_bias), Weights(
        1, bias, 2, Layout.CONV, groups
    )


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
    if {len(strides), len(dilations), len(pads) // 2} != {axes} or min(strides + dilations, default=1) < 1:
        return None
    if min(pads, default=0) < 0:
        return None
    shape = reader.output_shape() or ()
    outputs = tuple(size if isinstance(size, int) else None for size in shape[2:])
    outputs = outputs if len(outputs) == axes else (None,) * axes
    return Window(taps, strides, dilations, pads[:axes], pads[axes:], outputs)


def _conv_transpose(reader: Reader) -> tuple[Linear, Weights]:
    shape = _kernel_shape(reader, 1)
    groups = int(reader.attribute("group", 1))
    if len(shape) < 3 or groups < 1 or shape[0] % groups:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight of shape {shape} does not fit {groups} groups")
    out = shape[1] * groups
    linear = Linear(groups, out, shape[0], axis_in=1, axis_out=1, border=Border.PARTIAL)
    return linear, Weights(1, _bias(reader, 2, out), 2, Layout.CONV_TRANSPOSE, groups)


def _gemm(reader: Reader) -> tuple[Linear, Weights]:
    shape = _kernel_shape(reader, 1)
    if len(shape) != 2:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight has shape {shape}")
    layout = Layout.OUT_IN if reader.attribute("transB", 0) else Layout.IN_OUT
    out, fan_in = shape if layout is Layout.OUT_IN else shape[::-1]
    bias = reader.value(2)
    if bias is not None:
        constant = _bias_constant(reader, 2)
        if constant.size not in (1, out) or (constant.size > 1 and constant.shape[-1] != out):
            raise Unreadable(Reason.NOT_LINEAR, f"its C of shape {constant.shape} differs from row to row")
    axis_in = 0 if reader.attribute("transA", 0) else 1
    linear = Linear(1, out, fan_in, axis_in, axis_out=1, window=Window(), has_bias=bias is not None)
    factors = float(reader.attribute("alpha", 1.0)), float(reader.attribute("beta", 1.0))
    return linear, Weights(1, bias, 2, layout, 1, *factors)


def _matmul(reader: Reader, add: ir.Node | None) -> tuple[Linear, Weights]:
    kernel = matmul_kernel(reader)
    shape = _kernel_shape(reader, kernel)
    data = 1 - kernel
    rank = reader.rank(data)
    if len(shape) < 2 or prod(shape[:-2]) != 1 or rank < max(2, len(shape)):
        raise Unreadable(Reason.NOT_LINEAR, f"its weight of shape {shape} is not one matrix")
    layout = Layout.IN_OUT if kernel else Layout.OUT_IN
    axis = rank - 1 if kernel else rank - 2
    fan_in, out = shape[-2:] if kernel else shape[:-3:-1]
    bias = None if add is None else add.inputs[1 - add.inputs.index(reader.node.outputs[0])]
    linear = Linear(
        1, out, fan_in, axis, axis, has_bias_slot=add is not None, window=Window(), has_bias=add is not None
    )
    return linear, Weights(kernel, bias, None, layout)


def matmul_kernel(reader: Reader) -> int:
    """The index of a matrix product's constant operand."""
    for index in (1, 0):
        value = reader.value(index)
        if reader.facts.constants.holds(value) or quantized.find(value, reader.facts) is not None:
            return index
    for index in (1, 0):
        value = reader.value(index)
        if value is not None and reader.facts.constants.is_overridable(value):
            detail = f"its weight {value.name!r} is a graph input too, so a caller may replace it"
            raise Unreadable(Reason.OVERRIDABLE, detail)
    raise Unreadable(Reason.NOT_CONSTANT, "neither of its operands is constant")


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
    "Gemm": _gemm,
}


@dataclass(frozen=True, eq=False)
class Stored:
    """The parameters of a linear operator as they are stored, apart from the graph, which may change meanwhile."""

    linear: Linear
    weights: Weights
    kernel: Kernel
    shape: tuple[int, ...]
    bias: Array | None
    recurrent_bias: Array | None = None

    def parameters(self) -> Parameters:
        """As terms of another operator see them."""
        return Parameters(self.kernel.canonical, self.bias, None if self.kernel.is_input_major else self.kernel.take)

    def source(self, linear: Linear, load: Load) -> Kernel:
        """The kernel that `linear` starts from: the stored one, or that which its terms make up."""
        if not linear.terms:
            return self.kernel
        layout, shape = self.weights.layout, self.native_shape(linear)

        def open_rows() -> Rows:
            if terms.is_by_rows(linear) and not self.kernel.is_input_major:
                return lambda start, stop: terms.kernel_rows(linear, load, slice(start, stop))
            return array_rows(layout.native(terms.kernel(linear, load), shape), row_count(shape, layout))

        return Kernel(shape, layout, linear.groups, open_rows)

    def solve_bias(self, linear: Linear, load: Load) -> Array | None:
        """With everything that `linear` absorbed and is made of; None where none is needed."""
        return self.source(linear, load).solve_bias(linear, self._bias(linear, load))

    def _bias(self, linear: Linear, load: Load) -> Array | None:
        """The bias that `linear` starts from."""
        return terms.bias(linear, load) if linear.terms else self.bias

    def measure(self, linear: Linear, load: Load, dtype: np.dtype[np.generic], unit: float) -> Rounding:
        """What storing everything that `linear` absorbed and is made of in `dtype` would do."""
        source = self.source(linear, load)
        found = source.measure(linear, self.solve_bias(linear, load), dtype, unit).with_fill(linear.fill, dtype, unit)
        for growth in terms.growths(linear, load, lambda: source.measure_growth(linear, self._bias(linear, load))):
            found = found.with_growth(growth)
        return found

    def native_bias(self, bias: Array) -> Array:
        """A bias as the operator stores it; recurrent layers keep the half that belongs to the recurrence."""
        if self.weights.layout is not Layout.STACKED:
            return bias
        rows = bias.reshape(self.shape[0], -1)
        kept = np.zeros_like(rows) if self.recurrent_bias is None else self.recurrent_bias
        return np.concatenate([rows, kept], axis=1)

    def native_shape(self, linear: Linear) -> tuple[int, ...]:
        """The shape that the operator stores; a product may have other channels than the operator had."""
        if (linear.out_channels, linear.in_channels) == (self.linear.out_channels, self.linear.in_channels):
            return self.shape
        match self.weights.layout:
            case Layout.CONV:
                return linear.out_channels, linear.in_channels // linear.groups, *self.shape[2:]
            case Layout.IN_OUT:
                return *self.shape[:-2], linear.in_channels, linear.out_channels
            case Layout.OUT_IN:
                return *self.shape[:-2], linear.out_channels, linear.in_channels
        raise AssertionError(f"nothing merges into a kernel that is stored as {self.weights.layout}")


def stored(reader: Reader, add: ir.Node | None) -> Stored:
    """The parameters of a node that `read_linear` reads as a linear operator."""
    read = read_linear(reader, add)
    assert read is not None
    linear, weights = read
    value = reader.value(weights.kernel)
    assert value is not None
    bias: Array | None = None
    recurrent: Array | None = None
    if weights.bias is not None:
        found = quantized.find(weights.bias, reader.facts)
        constant = found.dequantize() if found else reader.facts.constants.get(weights.bias)
        constant = constant.astype(np.float64) * weights.bias_factor
        if weights.layout is Layout.STACKED:
            constant, recurrent = np.split(constant, 2, axis=1)
        bias = np.broadcast_to(constant.reshape(-1), (linear.out_channels,))
    shape = _kernel_shape(reader, weights.kernel)
    rows = row_count(shape, weights.layout)
    whole = weights.quantized.dequantize if weights.quantized else None
    open_rows = (lambda: array_rows(whole(), rows)) if whole else reader.facts.constants.capture(value, rows)
    kernel = Kernel(shape, weights.layout, weights.groups, open_rows, weights.kernel_factor)
    return Stored(linear, weights, kernel, shape, bias, recurrent)
