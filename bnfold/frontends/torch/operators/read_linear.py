"""Convolutions and matrix products, described: `Linear` with the place of its kernel and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from torch import fx

from bnfold.algebra.affine import Array
from bnfold.algebra.kernels import Kernel, row_count
from bnfold.algebra.linear import Border, Layout, Linear, Window
from bnfold.frontends import reading
from bnfold.frontends.parameters import Stored, array_rows
from bnfold.frontends.quantized import Quantized, kernel_axis
from bnfold.frontends.reading import Unreadable
from bnfold.frontends.torch.operators import quantized
from bnfold.frontends.torch.operators.reader import Reader
from bnfold.frontends.torch.tensors import to_numpy
from bnfold.graph.outcome import Reason


@dataclass(frozen=True)
class Weights:
    """Where the parameters of a linear operator are, and how they are laid out.

    Attributes:
        data, kernel: names of the arguments that are the data and the kernel.
        bias: name of the argument that is, or could be, the bias; None where the operator takes none.
        layout, groups: how the kernel is stored.
        kernel_factor, bias_factor: alpha and beta, which go into the new parameters.
        behind: how many axes of the output lie behind that of its channels, where it is known to take no bias.
        quantized: the integers that the kernel is made of, if it is.
        has_rows: whether the bias differs from row to row of the output.
    """

    data: str
    kernel: str
    bias: str | None
    layout: Layout
    groups: int = 1
    kernel_factor: float = 1.0
    bias_factor: float = 1.0
    behind: int = 0
    quantized: Quantized | None = None
    has_rows: bool = False


def read_linear(reader: Reader) -> tuple[Linear, Weights] | None:
    """A linear operator with constant weights; None for any other operator.

    Raises:
        Unreadable: it is a linear operator, but not one whose weights can change.
    """
    read: Callable[[Reader], tuple[Linear, Weights]] | None = reader.call.operator.linear
    if read is None or (reader.call.operator.carry is not None and reads_two_values(reader)):
        return None
    linear, weights = read(reader)
    source = quantized.find(reader, operand(reader, weights.kernel))
    if source is None:
        return linear, weights
    axis = kernel_axis(source, weights.layout)
    if source.scales.size > 1 and source.axis != axis:
        raise Unreadable(Reason.QUANTIZED, "its weight is quantised along another axis than its output channels")
    if weights.layout is Layout.CONV_TRANSPOSE and weights.groups > 1:
        raise Unreadable(Reason.QUANTIZED, "its groups share the scales of its quantised weight")
    if weights.kernel_factor != 1:
        raise Unreadable(Reason.QUANTIZED, "its quantised weight has an alpha as well")
    return replace(linear, is_quantized=True, mirrored=source.mirrored(axis)), replace(weights, quantized=source)


def conv(reader: Reader) -> tuple[Linear, Weights]:
    op = reader.call.op
    transposed = bool(reader.get("transposed", False)) if op == "convolution" else "transpose" in op
    shape, groups = _kernel_shape(reader, "weight"), int(reader.get("groups", 1))
    axis = reader.rank() - (len(shape) - 2) - 1
    if transposed:
        linear, layout = reading.transposed_convolution(shape, groups, axis, is_dense=_is_dense(reader))
    else:
        linear, layout = reading.convolution(shape, groups, axis)
    if axis not in (0, 1):
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight of shape {shape} does not fit its input")
    _check_bias(reader, "bias", (linear.out_channels,))
    linear = replace(linear, has_bias=_has_bias(reader, "bias"))
    if not transposed:
        linear = replace(linear, border=_border(reader, shape), window=window(reader, shape[2:]))
    return linear, Weights("input", "weight", "bias", layout, groups)


def _is_dense(reader: Reader) -> bool:
    """Whether a transposed convolution has strides of one, and no padding on either side."""
    wanted = (("stride", 1), ("padding", 0), ("output_padding", 0))
    return all(set(_listed(reader.call.get(name, number))) <= {number} for name, number in wanted)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _kernel_shape(reader: Reader, name: str) -> tuple[int, ...]:
    if (source := quantized.find(reader, reader.call.get(name))) is not None:
        return reading.filled(source.integers.shape)
    _insist_on_floats(reader, reader.call.get(name))
    return reading.filled(tuple(reader.tensor(name, "weight").shape))


def _insist_on_floats(reader: Reader, handle: object) -> None:
    """Refuse a weight that is computed from constants by a quantiser: `dequantize_per_channel`, `fake_quantize_...`.

    Its float numbers are no parameter, and without the quantiser they would be others.
    """
    is_computed = isinstance(handle, fx.Node) and not reader.facts.constants.holds(handle)
    stack, seen, quantiser = [handle] if is_computed else [], set[fx.Node](), ""
    while stack:
        node = stack.pop()
        if not isinstance(node, fx.Node) or node in seen or reader.facts.constants.holds(node):
            continue
        if node.op not in ("call_function", "call_method"):
            return  # it depends on an input
        seen.add(node)
        name = str(getattr(node.target, "__name__", node.target))
        quantiser = name.partition(".")[0] if "quantize" in name else quantiser
        stack.extend(node.all_input_nodes)
    if quantiser:
        raise Unreadable(Reason.QUANTIZED, f"its weight is quantised ({quantiser})")


def window(reader: Reader, taps: tuple[int, ...], default_stride: object = 1) -> Window | None:
    """Where the taps of a convolution or pooling lie; None where anything but zeros is padded, or that is not known."""
    axes = len(taps)
    strides, dilations = (
        each(reader.call.get(name) or default, axes) for name, default in (("stride", default_stride), ("dilation", 1))
    )
    if strides is None or dilations is None:
        return None
    padding = reader.call.get("padding", 0)
    if padding == "same":
        spans = [dilation * (size - 1) for size, dilation in zip(taps, dilations, strict=True)]
        begins = tuple(span // 2 for span in spans)
        ends = tuple(span - begin for span, begin in zip(spans, begins, strict=True))
    else:
        pads = each(0 if padding == "valid" else padding, axes)
        if pads is None:
            return None
        begins = ends = pads
    if any(begins + ends) and reader.call.get("padding_mode", "zeros") != "zeros":
        return None
    return reading.window(taps, strides, dilations, begins, ends, reader.shape(reader.node))


def each(value: object, axes: int) -> tuple[int, ...] | None:
    """One number for each axis. In torch, a single number stands for all axes."""
    listed = _listed(value)
    sizes = [number for number in listed if type(number) is int]
    sizes = sizes * axes if len(listed) == 1 else sizes
    return tuple(sizes) if len(sizes) == axes else None


def _has_bias(reader: Reader, name: str) -> bool:
    return reader.call.get(name) is not None and bool(np.any(reader.constant(name, "bias")))


def _border(reader: Reader, shape: tuple[int, ...]) -> Border:
    """Whether zeros are padded: a torch convolution pads with no other constant. Copies of the data are no border."""
    padding = reader.get("padding", 0)
    if reader.get("padding_mode", "zeros") != "zeros":
        return Border.NONE
    if isinstance(padding, str):
        return Border.PARTIAL if padding == "same" and prod(shape[2:]) > 1 else Border.NONE
    return Border.PARTIAL if any(not isinstance(size, int) or size for size in _listed(padding)) else Border.NONE


def _check_bias(reader: Reader, name: str, *shapes: tuple[int, ...]) -> None:
    """Insist that a bias is left out, or constant and of one of the shapes."""
    if reader.call.get(name) is not None:
        shape = tuple(reader.tensor(name, "bias").shape)
        if shape not in shapes:
            raise reading.other_bias(shape)


def linear(reader: Reader) -> tuple[Linear, Weights]:
    axis = reader.rank() - 1
    linear = reading.dense(_kernel_shape(reader, "weight"), Layout.OUT_IN, axis, axis)
    _check_bias(reader, "bias", (linear.out_channels,), (1,))
    return replace(linear, has_bias=_has_bias(reader, "bias")), Weights("input", "weight", "bias", Layout.OUT_IN)


def _product(reader: Reader, first: str, second: str, bias: str | None) -> tuple[Linear, Weights]:
    """``first @ second``, one of them constant."""
    constant_sides = [
        name
        for name in (second, first)
        if reader.holds(name) or quantized.find(reader, reader.call.get(name)) is not None
    ]
    if not constant_sides:
        for name in (second, first):
            _insist_on_floats(reader, reader.call.get(name))
        raise reading.no_constant_operand()
    kernel = constant_sides[0]
    data = first if kernel == second else second
    shape, rank = _kernel_shape(reader, kernel), reader.rank(reader.data(data))
    on_right = kernel == second
    linear, layout = reading.product(shape, rank, on_right=on_right)
    factors, has_rows = (1.0, 1.0), False
    if bias is not None:
        has_rows = reader.call.op == "addmm" and on_right and _has_rows(reader, bias, linear.out_channels)
        if has_rows:
            linear = replace(linear, window=None)  # a merged operator has one bias for all rows
        else:
            _check_bias(reader, bias, *_bias_shapes(linear.out_channels, rank, on_right=on_right))
        factors = float(reader.get("alpha", 1)), float(reader.get("beta", 1))
    has_bias = bias is not None and _has_bias(reader, bias)
    linear = replace(linear, has_bias_slot=bias is not None, has_bias=has_bias)
    return linear, Weights(data, kernel, bias, layout, 1, *factors, behind=0 if on_right else 1, has_rows=has_rows)


def _has_rows(reader: Reader, bias: str, out: int) -> bool:
    """Whether a bias has a row of its own, or a number, for each row of the output."""
    if reader.call.get(bias) is None:
        return False
    shape = tuple(reader.tensor(bias, "bias").shape)
    return len(shape) == 2 and shape[0] > 1 and shape[1] in (1, out)


def _bias_shapes(out: int, rank: int, *, on_right: bool) -> list[tuple[int, ...]]:
    """Shapes of a bias that is one number per output channel, once broadcast."""
    core = (out,) if on_right else (out, 1)
    shapes: list[tuple[int, ...]] = [(1,) * count for count in range(rank + 1)]
    return shapes + [(1,) * count + core for count in range(rank - len(core) + 1)]


def second_operand(reader: Reader) -> str:
    """The name of a product's second operand."""
    return "other" if reader.call.op == "matmul" else "mat2"


def reads_two_values(reader: Reader) -> bool:
    """Whether both operands of a matrix product are computed, and no quantised weights."""
    names = ("input", second_operand(reader))
    if any(reader.holds(name) or quantized.find(reader, reader.call.get(name)) is not None for name in names):
        return False
    for name in names:
        _insist_on_floats(reader, reader.call.get(name))
    return all(isinstance(reader.call.get(name), fx.Node) for name in names)


def matmul(reader: Reader) -> tuple[Linear, Weights]:
    return _product(reader, "input", second_operand(reader), None)


def addmm(reader: Reader) -> tuple[Linear, Weights]:
    return _product(reader, "mat1", "mat2", "input")


def baddbmm(reader: Reader) -> tuple[Linear, Weights]:
    return _product(reader, "batch1", "batch2", "input")


def einsum(reader: Reader) -> tuple[Linear, Weights]:
    """A matrix product along any axis."""
    operands = list(reader.call.get("operands", reader.call.get("tensors", ())))
    constants = [index for index, operand in enumerate(operands) if reader.facts.constants.holds(operand)]
    kernel = constants[0] if len(operands) == 2 and len(constants) == 1 else None
    describe, layout, behind = reading.einsum(str(reader.get("equation", "")), kernel)
    assert kernel is not None
    linear = describe(reading.filled(tuple(reader.facts.constants.get(operands[kernel]).shape)))
    return linear, Weights(f"operands.{1 - kernel}", f"operands.{kernel}", None, layout, behind=behind)


def operand(reader: Reader, name: str) -> object:
    """An argument by name; ``operands.1`` is the second of several."""
    if not name.startswith("operands."):
        return reader.call.get(name)
    operands = reader.call.get("operands", reader.call.get("tensors", ()))
    return operands[int(name.rpartition(".")[2])]


def stored(reader: Reader) -> Stored[Weights]:
    """The parameters of a node that `read_linear` reads as a linear operator."""
    read = read_linear(reader)
    assert read is not None
    linear, weights = read
    handle, source = operand(reader, weights.kernel), weights.quantized
    array = source.dequantize() if source else to_numpy(reader.facts.constants.get(handle))  # type: ignore[arg-type]
    rows = row_count(array.shape, weights.layout)
    kernel = Kernel(array.shape, weights.layout, weights.groups, lambda: array_rows(array, rows), weights.kernel_factor)
    bias: Array | None = None
    if weights.bias is not None and reader.call.get(weights.bias) is not None:
        constant = reader.constant(weights.bias, "bias").astype(np.float64) * weights.bias_factor
        rows_of_bias = constant.shape[:1] if weights.has_rows else ()
        bias = np.broadcast_to(constant.reshape(*rows_of_bias, -1), (*rows_of_bias, linear.out_channels))
    return Stored(linear, weights, kernel, bias, array.dtype, quantized=source)


def data_node(reader: Reader, weights: Weights) -> fx.Node:
    """The value that a linear operator reads as data."""
    data = operand(reader, weights.data)
    if not isinstance(data, fx.Node):
        raise Unreadable(Reason.NOT_LINEAR, "its data is no computed value")
    return data
