"""Convolutions and matrix products, described: `Linear` with the place of its kernel and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from torch import fx

from bnfold.algebra import terms
from bnfold.algebra.affine import Array
from bnfold.algebra.linear import Border, Layout, Linear, Window
from bnfold.algebra.rounding import Rounding, measure_parameters
from bnfold.algebra.terms import Load, Parameters
from bnfold.frontends.reading import Unreadable
from bnfold.frontends.torch.operators.reader import Reader
from bnfold.frontends.torch.tensors import AnyArray, to_numpy
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
    """

    data: str
    kernel: str
    bias: str | None
    layout: Layout
    groups: int = 1
    kernel_factor: float = 1.0
    bias_factor: float = 1.0
    behind: int = 0


def read_linear(reader: Reader) -> tuple[Linear, Weights] | None:
    """A linear operator with constant weights; None for any other operator.

    Raises:
        Unreadable: it is a linear operator, but not one whose weights can change.
    """
    read: Callable[[Reader], tuple[Linear, Weights]] | None = reader.call.operator.linear
    return None if read is None else read(reader)


def conv(reader: Reader) -> tuple[Linear, Weights]:
    op = reader.call.op
    transposed = bool(reader.get("transposed", False)) if op == "convolution" else "transpose" in op
    kernel = reader.tensor("weight", "weight")
    groups = int(reader.get("groups", 1))
    shape = tuple(kernel.shape)
    if len(shape) < 3 or groups < 1 or shape[0] % groups:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight of shape {shape} does not fit {groups} groups")
    axis = reader.rank() - (len(shape) - 2) - 1
    if axis not in (0, 1):
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight of shape {shape} does not fit its input")
    if transposed:
        out, fan_in, border = shape[1] * groups, shape[0], Border.PARTIAL
    else:
        out, fan_in, border = shape[0], shape[1] * groups, _border(reader, shape)
    _check_bias(reader, "bias", (out,))
    layout = Layout.CONV_TRANSPOSE if transposed else Layout.CONV
    linear = Linear(groups, out, fan_in, axis, axis, border, has_bias=_has_bias(reader, "bias"))
    if not transposed:
        linear = replace(linear, window=window(reader, shape[2:]))
    return linear, Weights("input", "weight", "bias", layout, groups)


def window(reader: Reader, taps: tuple[int, ...], default_stride: object = 1) -> Window | None:
    """Where the taps of a convolution or pooling lie; None where anything but zeros is padded, or that is not known."""
    axes = len(taps)
    strides, dilations = (
        each(reader.call.get(name) or default, axes) for name, default in (("stride", default_stride), ("dilation", 1))
    )
    if strides is None or dilations is None or min(strides + dilations, default=1) < 1:
        return None
    padding = reader.call.get("padding", 0)
    if padding == "same":
        spans = [dilation * (size - 1) for size, dilation in zip(taps, dilations, strict=True)]
        begins = tuple(span // 2 for span in spans)
        ends = tuple(span - begin for span, begin in zip(spans, begins, strict=True))
    else:
        given = each(0 if padding == "valid" else padding, axes)
        if given is None or min(given, default=0) < 0:
            return None
        begins = ends = given
    if any(begins + ends) and reader.call.get("padding_mode", "zeros") != "zeros":
        return None
    shape = reader.shape(reader.node) or ()
    outputs = tuple(size if isinstance(size, int) else None for size in shape[len(shape) - axes :])
    outputs = outputs if len(outputs) == axes else (None,) * axes
    return Window(taps, strides, dilations, begins, ends, outputs)


def each(value: object, axes: int) -> tuple[int, ...] | None:
    """One number for each axis, of which torch lets callers give one for all."""
    listed = list(value) if isinstance(value, list | tuple) else [value]
    sizes = [each for each in listed if type(each) is int]
    sizes = sizes * axes if len(listed) == 1 else sizes
    return tuple(sizes) if len(sizes) == axes else None


def _has_bias(reader: Reader, name: str) -> bool:
    return reader.call.get(name) is not None and bool(np.any(reader.constant(name, "bias")))


def _border(reader: Reader, shape: tuple[int, ...]) -> Border:
    """No value but zero can be padded with; padding with copies of the data shows a shift everywhere."""
    padding = reader.get("padding", 0)
    if reader.get("padding_mode", "zeros") != "zeros":
        return Border.NONE
    if isinstance(padding, str):
        return Border.PARTIAL if padding == "same" and prod(shape[2:]) > 1 else Border.NONE
    sizes = padding if isinstance(padding, list | tuple) else [padding]
    return Border.PARTIAL if any(not isinstance(size, int) or size for size in sizes) else Border.NONE


def _check_bias(reader: Reader, name: str, *shapes: tuple[int, ...]) -> None:
    """Insist that a bias is left out, or constant and of one of the shapes."""
    if reader.call.get(name) is not None:
        shape = tuple(reader.tensor(name, "bias").shape)
        if shape not in shapes:
            raise Unreadable(Reason.NOT_LINEAR, f"its bias of shape {shape} is not one number per output channel")


def linear(reader: Reader) -> tuple[Linear, Weights]:
    shape = tuple(reader.tensor("weight", "weight").shape)
    if len(shape) != 2:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight has shape {shape}")
    axis = reader.rank() - 1
    _check_bias(reader, "bias", (shape[0],), (1,))
    linear = Linear(1, shape[0], shape[1], axis, axis, window=Window(), has_bias=_has_bias(reader, "bias"))
    return linear, Weights("input", "weight", "bias", Layout.OUT_IN)


def _product(reader: Reader, first: str, second: str, bias: str | None) -> tuple[Linear, Weights]:
    """``first @ second``, one of them constant."""
    held = [name for name in (second, first) if reader.holds(name)]
    if not held:
        raise Unreadable(Reason.NOT_CONSTANT, "neither of its operands is constant")
    kernel = held[0]
    data = first if kernel == second else second
    shape = tuple(reader.tensor(kernel, "weight").shape)
    rank = reader.rank(reader.data(data))
    if len(shape) < 2 or prod(shape[:-2]) != 1 or rank < max(2, len(shape)):
        raise Unreadable(Reason.NOT_LINEAR, f"its weight of shape {shape} is not one matrix")
    on_right = kernel == second
    layout = Layout.IN_OUT if on_right else Layout.OUT_IN
    axis = rank - 1 if on_right else rank - 2
    fan_in, out = shape[-2:] if on_right else shape[:-3:-1]
    factors = 1.0, 1.0
    if bias is not None:
        _check_bias(reader, bias, *_bias_shapes(out, rank, on_right=on_right))
        factors = float(reader.get("alpha", 1)), float(reader.get("beta", 1))
    has_slot = bias is not None or _is_followed_by_a_bias(reader)
    has_bias = bias is not None and _has_bias(reader, bias)
    linear = Linear(1, out, fan_in, axis, axis, has_bias_slot=has_slot, window=Window(), has_bias=has_bias)
    return linear, Weights(data, kernel, bias, layout, 1, *factors, behind=0 if on_right else 1)


def _bias_shapes(out: int, rank: int, *, on_right: bool) -> list[tuple[int, ...]]:
    """Shapes of a bias that is one number per output channel, once broadcast."""
    core = (out,) if on_right else (out, 1)
    shapes: list[tuple[int, ...]] = [(1,) * count for count in range(rank + 1)]
    return shapes + [(1,) * count + core for count in range(rank - len(core) + 1)]


def _is_followed_by_a_bias(reader: Reader) -> bool:
    """Whether all that reads it adds a constant, so that a bias of its own costs nothing."""
    users = list(reader.node.users)
    if len(users) != 1 or users[0] not in reader.facts.calls:
        return False
    add = Reader(users[0], reader.facts)
    return add.call.op == "add" and (add.holds("other") or add.holds("input"))


def matmul(reader: Reader) -> tuple[Linear, Weights]:
    return _product(reader, "input", "other" if reader.call.op == "matmul" else "mat2", None)


def addmm(reader: Reader) -> tuple[Linear, Weights]:
    return _product(reader, "mat1", "mat2", "input")


def baddbmm(reader: Reader) -> tuple[Linear, Weights]:
    return _product(reader, "batch1", "batch2", "input")


def einsum(reader: Reader) -> tuple[Linear, Weights]:
    """``"...i..., io -> ...o..."`` with distinct letters: a matrix product along any axis."""
    equation = str(reader.get("equation", "")).replace(" ", "")
    operands = list(reader.call.get("operands", reader.call.get("tensors", ())))
    operands_in, arrow, result = equation.partition("->")
    letters = operands_in.split(",")
    held = [index for index, each in enumerate(operands) if reader.facts.constants.holds(each)]
    if len(operands) != 2 or len(letters) != 2 or not arrow or len(held) != 1 or "." in equation:
        raise Unreadable(Reason.NOT_LINEAR, f"einsum {equation!r} is not a product with one constant matrix")
    kernel, data = letters[held[0]], letters[1 - held[0]]
    contracted = [each for each in kernel if each in data and each not in result]
    made = [each for each in kernel if each in result and each not in data]
    rest = set(data) - set(contracted)
    one_each = all(len(set(term)) == len(term) for term in (kernel, data, result))
    is_product = len(kernel) == 2 and len(contracted) == 1 and len(made) == 1 and rest == set(result) - set(made)
    if not (one_each and is_product):
        raise Unreadable(Reason.NOT_LINEAR, f"einsum {equation!r} is not a product with one constant matrix")
    shape = tuple(reader.facts.constants.get(operands[held[0]]).shape)
    layout = Layout.IN_OUT if kernel[0] == contracted[0] else Layout.OUT_IN
    fan_in, out = shape if layout is Layout.IN_OUT else shape[::-1]
    keeps_order = data.replace(contracted[0], made[0]) == result
    linear = Linear(
        1,
        out,
        fan_in,
        data.index(contracted[0]),
        result.index(made[0]),
        has_bias_slot=_is_followed_by_a_bias(reader),
        window=Window() if keeps_order else None,
        has_bias=False,
    )
    behind = len(result) - 1 - result.index(made[0])
    return linear, Weights(f"operands.{1 - held[0]}", f"operands.{held[0]}", None, layout, behind=behind)


@dataclass(frozen=True, eq=False)
class Stored:
    """The parameters of a linear operator as they are stored."""

    linear: Linear
    weights: Weights
    native_kernel: AnyArray
    bias: Array | None

    def kernel(self) -> AnyArray:
        """The original in canonical layout."""
        kernel = self.weights.layout.canonical(self.native_kernel, self.weights.groups)
        factor = self.weights.kernel_factor
        return kernel if factor == 1 else kernel.astype(np.float64) * factor

    def parameters(self) -> Parameters:
        """As terms of another operator see them."""
        return Parameters(self.kernel, self.bias)

    def solve_kernel(self, linear: Linear, load: Load) -> Array:
        """With everything that `linear` absorbed and is made of, in canonical layout."""
        return linear.solve_kernel(self._kernel(linear, load))

    def solve_bias(self, linear: Linear, load: Load) -> Array | None:
        """With everything that `linear` absorbed and is made of; None where none is needed."""
        return linear.solve_bias(lambda: self._kernel(linear, load), self._bias(linear, load))

    def _kernel(self, linear: Linear, load: Load) -> AnyArray:
        """The kernel that `linear` starts from, in canonical layout."""
        return terms.kernel(linear, load) if linear.terms else self.kernel()

    def _bias(self, linear: Linear, load: Load) -> Array | None:
        """The bias that `linear` starts from."""
        return terms.bias(linear, load) if linear.terms else self.bias

    def measure(self, linear: Linear, load: Load, dtype: np.dtype[np.generic], unit: float) -> Rounding:
        """What storing everything that `linear` absorbed and is made of in `dtype` would do."""
        kernel, bias = self.solve_kernel(linear, load), self.solve_bias(linear, load)
        found = measure_parameters(kernel, bias, dtype, unit, linear.input_sizes)
        found = found.with_fill(linear.fill, dtype, unit)
        for growth in terms.growths(
            linear, load, lambda: linear.growth(self._kernel(linear, load), self._bias(linear, load))
        ):
            found = found.with_growth(growth)
        return found

    def native(self, kernel: Array, linear: Linear) -> Array:
        """A canonical kernel in the layout that the operator stores."""
        return self.weights.layout.native(kernel, self._native_shape(linear))

    def _native_shape(self, linear: Linear) -> tuple[int, ...]:
        """The shape that the operator stores; a product may have other channels than the operator had."""
        shape = self.native_kernel.shape
        if (linear.out_channels, linear.in_channels) == (self.linear.out_channels, self.linear.in_channels):
            return shape
        match self.weights.layout:
            case Layout.CONV:
                return linear.out_channels, linear.in_channels // linear.groups, *shape[2:]
            case Layout.IN_OUT:
                return *shape[:-2], linear.in_channels, linear.out_channels
            case Layout.OUT_IN:
                return *shape[:-2], linear.out_channels, linear.in_channels
        raise AssertionError(f"nothing merges into a kernel that is stored as {self.weights.layout}")


def operand(reader: Reader, name: str) -> object:
    """An argument by name; ``operands.1`` is the second of several."""
    if not name.startswith("operands."):
        return reader.call.get(name)
    operands = reader.call.get("operands", reader.call.get("tensors", ()))
    return operands[int(name.rpartition(".")[2])]


def stored(reader: Reader) -> Stored:
    """The parameters of a node that `read_linear` reads as a linear operator."""
    read = read_linear(reader)
    assert read is not None
    linear, weights = read
    handle = operand(reader, weights.kernel)
    kernel = to_numpy(reader.facts.constants.get(handle))  # type: ignore[arg-type]
    bias: Array | None = None
    if weights.bias is not None and reader.call.get(weights.bias) is not None:
        constant = reader.constant(weights.bias, "bias").astype(np.float64) * weights.bias_factor
        bias = np.broadcast_to(constant.reshape(-1), (linear.out_channels,))
    return Stored(linear, weights, kernel, bias)


def data_node(reader: Reader, weights: Weights) -> fx.Node:
    """The value that a linear operator reads as data."""
    found = operand(reader, weights.data)
    if not isinstance(found, fx.Node):
        raise Unreadable(Reason.NOT_LINEAR, "its data is no computed value")
    return found
