"""Operators in the neutral vocabulary, made from plain numbers, arrays and shapes.

A reader of a front end says which argument of a node is what. A maker here makes the `Op`, or raises `Unreadable` with
the reason that users read. Both front ends therefore refuse an operator in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any, Protocol, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Affine, Array, per_channel_axis
from bnfold.algebra.linear import Border, Layout, Linear, Window
from bnfold.algebra.masks import has_all, has_any
from bnfold.algebra.pooling import WHOLLY_PADDING, PoolAxis
from bnfold.algebra.rounding import BatchNorm, solve_batchnorm
from bnfold.graph import ops
from bnfold.graph.ops import CHANNEL_LIMIT, Dim, Shape
from bnfold.graph.outcome import Reason, Stop

AnyArray = npt.NDArray[Any]

FLOATS = frozenset(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
"""The types that weights and statistics may have."""


class Unreadable(Exception):  # noqa: N818 (not an error: an answer)
    """An operator that does not have the form its reader describes, or a constant of it that cannot be evaluated.

    The operator becomes `Opaque`.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.stop = Stop(reason, detail)


def opaque(reason: Reason, detail: str, *, is_batchnorm: bool = False) -> ops.Opaque:
    """An operator that stops every affine, with its reason."""
    return ops.Opaque(Stop(reason, detail), is_batchnorm)


def foreign(operator: str) -> ops.Opaque:
    """An operator that no reader knows, such as Sigmoid."""
    return opaque(Reason.NOT_LINEAR, f"{operator} neither absorbs nor carries a per-channel affine")


def missing(what: str) -> Unreadable:
    """The operator needs a parameter that is left out."""
    return Unreadable(Reason.INVALID_PARAMETERS, f"its {what} is missing")


def not_constant(what: str, name: str | None) -> Unreadable:
    """A parameter depends on an input of the model."""
    return Unreadable(Reason.NOT_CONSTANT, f"its {what} {name!r} is not constant")


def no_floats() -> Unreadable:
    """A sum of integers, which may overflow, or of complex numbers."""
    return Unreadable(Reason.NOT_LINEAR, "it does not add floating-point values")


def in_training_mode() -> Unreadable:
    """The operator behaves as in training: it normalises with each batch's statistics, or drops values."""
    return Unreadable(Reason.TRAINING_MODE, "it is in training mode")


def leads_nowhere() -> Unreadable:
    """The operator reads a value that outputs depend on, but none depends on what it makes."""
    return Unreadable(Reason.NOT_LINEAR, "no output depends on what it makes")


def read_elsewhere() -> Unreadable:
    """An output behind the first, such as a mask or the indices of a maximum, has a reader."""
    return Unreadable(Reason.NOT_LINEAR, "a further output of it is read")


# -------------------------------------------------------------------------------------------------------------- shapes


def known(shape: Shape | None) -> Shape:
    """The shape of an input that the operator cannot be read without."""
    if shape is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the shape of its input is not known")
    return shape


def known_rank(rank: int | None) -> int:
    """The number of axes of an input."""
    if rank is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the rank of its input is not known")
    return rank


def count_axis(axis: object, rank: int | None) -> int:
    """An axis, counted from the front. One that is not negative needs no rank."""
    if not isinstance(axis, int):
        raise Unreadable(Reason.UNKNOWN_SHAPE, "its axis is computed")
    if axis >= 0 and rank is None:
        return axis
    rank = known_rank(rank)
    if not -rank <= axis < rank:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its input has {rank} axes, and no axis {axis}")
    return axis % rank


def size(dim: Dim) -> int | None:
    """A dimension, if it is a number."""
    return dim if isinstance(dim, int) else None


def space(shape: Shape | None, axes: int) -> tuple[int | None, ...]:
    """The sizes of the last axes, over which a window moves."""
    if shape is None or len(shape) < axes:
        return (None,) * axes
    return tuple(size(dim) for dim in shape[len(shape) - axes :])


# ------------------------------------------------------------------------------------------------------------ carriers


def identity(reader: object) -> ops.Identity:
    """An operator that hands its input on, whatever its arguments are."""
    return ops.Identity()


RECTIFIER = ops.Rectifier()
"""One object for all of them."""


def rectifier(reader: object) -> ops.Rectifier:
    """An operator such as Relu, whatever its arguments are."""
    return RECTIFIER


def dropout(*, is_training: bool) -> ops.Identity:
    """Dropout, which hands its input on in eval mode."""
    if is_training:
        raise in_training_mode()
    return ops.Identity()


class Type(Protocol):
    """An element type of a front end's library."""

    @property
    def itemsize(self) -> float:
        """Bytes of an element."""
        ...


T = TypeVar("T", bound=Type)

Operand = TypeVar("Operand", ops.Sum, ops.Select)


def cast(before: T | None, after: T | None, floats: Container[T | None]) -> ops.Identity:
    """Cast, which hands its input on where the type stays or becomes wider."""
    if before is not None and after is not None:
        if before == after:
            return ops.Identity()
        if before in floats and after in floats and after.itemsize > before.itemsize:
            return ops.Identity(is_widening=True)
    raise Unreadable(Reason.NOT_LINEAR, "the cast can change values")


def concat(axis: int, shapes: Sequence[Shape | None]) -> ops.Concat:
    """Concat: joins values of these shapes along an axis."""
    return ops.Concat(axis, tuple(size(shape[axis]) if shape and axis < len(shape) else None for shape in shapes))


def split(axis: int, sizes: Sequence[object], outputs: int | None = None) -> ops.Split:
    """Split: cuts a value into parts of these sizes, one for each output."""
    numbers = tuple(part for part in sizes if isinstance(part, int))
    if len(numbers) != len(sizes) or not sizes:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the sizes of its parts are not known")
    if min(numbers) < 0 or outputs not in (None, len(numbers)):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its sizes do not fit its outputs")
    return ops.Split(axis, numbers)


def take(shape: Shape | None, cuts: Mapping[int, slice]) -> ops.Take:
    """Slice: keeps some positions of axes. Which ones is told for one axis, the channel axis if its size is known."""
    dims = known(shape)
    for axis in sorted(cuts, key=lambda axis: axis != 1):
        length = size(dims[axis]) if axis < len(dims) else None
        if length is not None and length <= CHANNEL_LIMIT:
            return ops.Take(axis, _positions(cuts[axis], length), length, frozenset(cuts) - {axis})
    return take_anywhere(cuts)


def _positions(cut: slice, length: int) -> npt.NDArray[np.intp]:
    """The positions that a slice keeps. As ONNX has it, one backwards from in front of the data begins with the data.

    Python would keep nothing. PyTorch has no slices backwards.
    """
    if cut.start is not None and (cut.step or 1) < 0:
        cut = slice(max(cut.start, -length), cut.stop, cut.step)
    return np.arange(length)[cut]


def take_anywhere(axes: Iterable[int]) -> ops.Take:
    """A Slice or Gather along axes whose positions are not known."""
    return ops.Take(-1, np.zeros(0, np.intp), 0, frozenset(axes))


def gather(axis: int, indices: AnyArray | None, shape: Shape | None) -> ops.Take:
    """Gather: takes positions along an axis. Negative ones count from the end; None stands for a mask or a float."""
    if indices is None or indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise Unreadable(Reason.NOT_LINEAR, "its indices are not a vector of integers")
    length = size(shape[axis]) if shape is not None and axis < len(shape) else None
    if length is None or length > CHANNEL_LIMIT:
        return take_anywhere({axis})
    if indices.size and not (-length <= indices.min() and indices.max() < length):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its indices are out of range")
    return ops.Take(axis, np.where(indices < 0, indices + length, indices).astype(np.intp), length)


def transpose(order: Sequence[int]) -> ops.Transpose:
    """Transpose: puts the axes into another order."""
    if sorted(order) != list(range(len(order))):
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its order {list(order)} is no permutation")
    return ops.Transpose(tuple(order))


def reshape(before: Shape | None, after: Shape | None) -> ops.Reshape:
    """Reshape, Flatten or Squeeze: gives the same elements another shape."""
    return ops.Reshape(*both(before, after))


def both(before: Shape | None, after: Shape | None) -> tuple[Shape, Shape]:
    """The shapes in front of and behind an operator that gives its input another shape."""
    if before is None or after is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the shapes it reshapes between are not known")
    return before, after


def blocks(factor: object, shape: Shape | None) -> tuple[int, int | None]:
    """The two numbers of a DepthToSpace or SpaceToDepth: the side of a block, and the channels of this shape."""
    if shape is None or len(shape) != 4 or not isinstance(factor, int) or factor < 1:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the number of its axes is not known")
    return factor, size(shape[1])


def expand(before: Shape | None, after: Shape | None) -> ops.Broadcast:
    """Expand: repeats a value until it has another shape."""
    before, after = both(before, after)
    added = len(after) - len(before)
    if added < 0:
        raise Unreadable(Reason.INVALID_PARAMETERS, "it has fewer axes than its input")
    pairs = enumerate(zip(before, after[added:], strict=True))
    return ops.Broadcast(frozenset(axis for axis, (old, new) in pairs if old is None or old != new), added)


def repeat(repeats: Sequence[object], added: int = 0) -> ops.Broadcast:
    """Tile: repeats a value along each axis, and adds `added` axes in front."""
    return ops.Broadcast(frozenset(axis for axis, times in enumerate(repeats[added:]) if times != 1), added)


def total(
    signs: Sequence[int], shapes: Sequence[Shape | None], dtypes: Iterable[T | None], floats: Container[T | None]
) -> ops.Sum:
    """Add, Sub or Sum: adds values with signs."""
    types = set(dtypes)
    if None in types:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the types that it adds are not known")
    if not all(dtype in floats for dtype in types):
        raise no_floats()
    if len(types) > 1:
        raise Unreadable(Reason.NOT_LINEAR, "it adds values of different types")
    return ops.Sum(tuple(signs), tuple(shapes), (1.0,) + (0.0,) * (len(signs) - 1))


def with_constant(op: Operand, constants: Collection[int], rank: int) -> Operand:
    """An operator that reads a constant as data, which takes in affines itself.

    Its shape gets as many axes as the output has.
    """
    if len(constants) != 1:
        return op
    index: int = next(iter(constants))
    shape = op.shapes[index] or ()
    shapes = (*op.shapes[:index], (1,) * (rank - len(shape)) + shape, *op.shapes[index + 1 :])
    return replace(op, shapes=shapes, constants=frozenset({index}))


def select(
    shapes: Sequence[Shape | None], condition: Shape | None, dtypes: Iterable[T | None], floats: Container[T | None]
) -> ops.Select:
    """Where: takes each element from one of two values of one floating-point type."""
    if condition is None or None in shapes:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the shapes that it selects from are not known")
    if not all(dtype in floats for dtype in dtypes):
        raise Unreadable(Reason.NOT_LINEAR, "it does not select floating-point values")
    return ops.Select(tuple(shapes), max(len(shape) for shape in (*shapes, condition) if shape is not None))


# ------------------------------------------------------------------------------------------------------------- affines


@cache
def unit(dtype: np.dtype[Any]) -> float:
    """The spacing of a floating-point type at 1."""
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


VECTORS = ("scale", "bias", "mean", "variance")


@dataclass(frozen=True, eq=False, slots=True)
class Normalization:
    """The constants of a BatchNorm: vectors with one entry for each channel, and epsilon.

    Attributes:
        wide: gamma, beta, mean and variance in float64, the rows of one block.
        dtype, mean_dtype, var_dtype: the types in which gamma, mean and variance are stored.
        epsilon: added to the variance.
    """

    wide: Array
    dtype: np.dtype[Any]
    mean_dtype: np.dtype[Any]
    var_dtype: np.dtype[Any]
    epsilon: float

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.wide[0])

    @property
    def statistics(self) -> tuple[AnyArray, AnyArray]:
        """Mean and variance as they are stored."""
        return self.wide[2].astype(self.mean_dtype), self.wide[3].astype(self.var_dtype)

    def op(self, axis: int = 1, stored: tuple[int, ...] | None = None) -> ops.ChannelAffine:
        """The per-channel affine along `axis`; see `ChannelAffine` for `stored`."""
        with np.errstate(all="ignore"):
            gamma, beta = self.wide[:2]
            mean, var = self.wide[2].copy(), self.wide[3].copy()  # which stay, and would keep the whole block
            affine = Affine.from_batchnorm(gamma, beta, mean, var, self.epsilon, axis)
        if not affine.is_finite:
            channel = _first(~(np.isfinite(affine.scale) & np.isfinite(affine.shift)))
            detail = f"the scale or shift of channel {channel} is not finite in any precision"
            raise Unreadable(Reason.INVALID_PARAMETERS, detail)
        known = affine.statistics
        if known is not None and has_any(np.isinf(known.variance)):  # its channel is a constant: nothing is known
            variance = np.where(np.isinf(known.variance), 1.0, known.variance)
            affine = affine.with_statistics(replace(known, variance=variance))
        return ops.ChannelAffine(affine, is_batchnorm=True, stored=stored)

    def solve(self, affine: Affine) -> BatchNorm:
        """The constants that make the BatchNorm another affine."""
        return solve_batchnorm(affine, *self.statistics, self.epsilon, self.dtype, unit(self.dtype))

    def replaced(self, affine: Affine) -> tuple[AnyArray, ...]:
        """The solved constants to write: gamma and beta, and behind them mean and variance if these change."""
        solved, (mean, var) = self.solve(affine), self.statistics
        if np.array_equal(solved.mean, mean) and np.array_equal(solved.var, var):
            return solved.gamma, solved.beta
        return solved.gamma, solved.beta, solved.mean, solved.var


def normalization(
    gamma: AnyArray | None, beta: AnyArray | None, mean: AnyArray, var: AnyArray, epsilon: float
) -> Normalization:
    """A BatchNorm in inference form. One without gamma or beta has ones or zeros in their place."""
    channels = mean.size
    gamma = np.ones(channels, mean.dtype) if gamma is None else gamma
    beta = np.zeros(channels, mean.dtype) if beta is None else beta
    wide, arrays = np.empty((4, channels)), (gamma, beta, mean, var)
    for row, what, array in zip(wide, VECTORS, arrays, strict=True):
        if array.dtype not in FLOATS:
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} is of type {array.dtype}")
        if array.ndim != 1 or array.size != channels:
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} has shape {array.shape} for {channels} channels")
        row[:] = array
    variance = wide[3]
    is_positive = (variance >= 0) & (variance + epsilon > 0)
    if not (has_all(np.isfinite(wide[:3])) and has_all(is_positive)):
        raise Unreadable(Reason.INVALID_PARAMETERS, _fault(wide, is_positive))
    return Normalization(wide, gamma.dtype, mean.dtype, var.dtype, epsilon)


def _fault(wide: Array, is_positive: npt.NDArray[np.bool_]) -> str:
    """The first fault in the vectors of a BatchNorm."""
    for row, what in zip(wide, VECTORS, strict=True):
        channel = _first(np.isnan(row) if what == "variance" else ~np.isfinite(row))
        if channel is not None:
            return f"its {what} is not finite in channel {channel}"
    return f"its variance is negative, or zero with epsilon zero, in channel {_first(~is_positive)}"


def _first(channels: npt.NDArray[np.bool_]) -> int | None:
    """The first of the channels that are marked."""
    return int(np.argmax(channels)) if has_any(channels) else None


def arithmetic(
    operator: str,
    constant: AnyArray,
    shape: Shape,
    *,
    constant_first: bool = False,
    alpha: float = 1.0,
    stored: tuple[int, ...] | None = None,
) -> ops.ChannelAffine | None:
    """Arithmetic of data and a constant that varies along one axis at most; None for anything else.

    Args:
        operator: "add", "sub", "rsub", "mul" or "div".
        constant: the constant operand.
        shape: of the data.
        constant_first: whether the constant is the first operand.
        alpha: factor of the second operand of a sum.
        stored: see `ChannelAffine`.
    """
    axis = per_channel_axis(constant.shape, len(shape))
    if axis is None:  # the same everywhere: where the channels are likely to be
        axis = len(shape) - 1 if len(shape) < 4 else 1
    channels = size(shape[axis]) if axis >= 0 else None
    if channels is None or channels > CHANNEL_LIMIT or constant.size not in (1, channels):
        return None
    values = np.broadcast_to(constant.astype(np.float64).reshape(-1), (channels,))
    if operator == "rsub":
        operator, constant_first = "sub", not constant_first
    scale: npt.ArrayLike = 1.0
    shift: npt.ArrayLike = 0.0
    with np.errstate(all="ignore"):
        match operator, constant_first:
            case "add" | "sub", _:
                factor = alpha if operator == "add" else -alpha
                scale, shift = (factor, values) if constant_first else (1.0, factor * values)
            case "mul", _:
                scale = values
            case "div", False:
                scale = 1.0 / values
            case _:
                return None
        affine = Affine.of(scale, shift, axis)
    return ops.ChannelAffine(affine, is_batchnorm=False, stored=stored) if affine.is_finite else None


# ---------------------------------------------------------------------------------------------------- linear operators


def filled(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a kernel. An empty one is refused."""
    if 0 in shape:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its weight is empty")
    return shape


def other_bias(shape: tuple[int, ...]) -> Unreadable:
    """The bias differs from row to row, or does not fit the kernel."""
    return Unreadable(Reason.NOT_LINEAR, f"its bias of shape {shape} is not one number per output channel")


def no_constant_operand() -> Unreadable:
    """Both operands of a matrix product are computed."""
    return Unreadable(Reason.NOT_LINEAR, "both of its operands are computed")


def product_of_values(first: int, second: int) -> ops.Product:
    """A matrix product both of whose operands are computed, given their numbers of axes."""
    if min(first, second) < 2:
        raise Unreadable(Reason.NOT_LINEAR, "an operand of it is a vector")
    return ops.Product((first, second))


def convolution(shape: tuple[int, ...], groups: int, axis: int, **described: Any) -> tuple[Linear, Layout]:
    """Conv with a kernel of this shape. The channels lie along `axis`; without a word about it, nothing is padded.

    Args:
        shape: of the kernel.
        groups: how many there are.
        axis: of input and output.
        described: other attributes of `Linear`.
    """
    _insist_on_groups(shape, groups)
    return Linear(groups, shape[0], shape[1] * groups, axis, axis, **described), Layout.CONV


def transposed_convolution(shape: tuple[int, ...], groups: int, axis: int, *, is_dense: bool) -> tuple[Linear, Layout]:
    """ConvTranspose with a kernel of this shape. The channels lie along `axis`.

    At its border, outputs do not see every tap, unless there is one, and it `is_dense`: with strides of one, and no
    padding on either side.
    """
    _insist_on_groups(shape, groups)
    border = Border.NONE if is_dense and prod(shape[2:]) == 1 else Border.PARTIAL
    return Linear(groups, shape[1] * groups, shape[0], axis, axis, border), Layout.CONV_TRANSPOSE


def _insist_on_groups(shape: tuple[int, ...], groups: int) -> None:
    if len(shape) < 3 or groups < 1 or shape[0] % groups:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight of shape {shape} does not fit {groups} groups")


def dense(shape: tuple[int, ...], layout: Layout, axis_in: int, axis_out: int) -> Linear:
    """Gemm: a matrix product along one axis of the data, with a matrix of this shape."""
    if len(shape) != 2:
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its weight has shape {shape}")
    out, fan_in = shape if layout is Layout.OUT_IN else shape[::-1]
    return Linear(1, out, fan_in, axis_in, axis_out, window=Window())


def product(shape: tuple[int, ...], rank: int, *, on_right: bool) -> tuple[Linear, Layout]:
    """MatMul: ``data @ kernel`` or ``kernel @ data``, for data of `rank` axes."""
    if len(shape) < 2 or prod(shape[:-2]) != 1 or rank < max(2, len(shape)):
        raise Unreadable(Reason.NOT_LINEAR, f"its weight of shape {shape} is not one matrix")
    axis, layout = (rank - 1, Layout.IN_OUT) if on_right else (rank - 2, Layout.OUT_IN)
    return dense(shape[-2:], layout, axis, axis), layout


def einsum(equation: str, kernel_index: int | None) -> tuple[Callable[[tuple[int, ...]], Linear], Layout, int]:
    """Einsum ``"...i..., io -> ...o..."`` with distinct letters: a matrix product along any axis.

    Args:
        equation: with or without spaces.
        kernel_index: which operand is constant, of two; None for anything else.

    Returns:
        The operator, given the shape of its matrix; how that is laid out; how many axes are behind its output channels.
    """
    operands, arrow, result = equation.replace(" ", "").partition("->")
    terms = operands.split(",")
    if kernel_index is None or len(terms) != 2 or not arrow or "." in equation:
        raise _no_product(equation)
    kernel, data = terms[kernel_index], terms[1 - kernel_index]
    contracted = [letter for letter in kernel if letter in data and letter not in result]
    produced = [letter for letter in kernel if letter in result and letter not in data]
    one_each = all(len(set(term)) == len(term) for term in (kernel, data, result))
    is_matrix = len(kernel) == 2 and len(contracted) == 1 and len(produced) == 1
    if not one_each or not is_matrix or set(data) - set(contracted) != set(result) - set(produced):
        raise _no_product(equation)
    (into,), (out,) = contracted, produced
    layout = Layout.IN_OUT if kernel[0] == into else Layout.OUT_IN
    is_in_place = data.replace(into, out) == result

    def describe(shape: tuple[int, ...]) -> Linear:
        linear = dense(shape, layout, data.index(into), result.index(out))
        linear = replace(linear, has_bias_slot=False, has_bias=False)
        return linear if is_in_place else replace(linear, window=None)

    return describe, layout, len(result) - 1 - result.index(out)


def _no_product(equation: str) -> Unreadable:
    return Unreadable(Reason.NOT_LINEAR, f"einsum {equation!r} is not a product with one constant matrix")


# ------------------------------------------------------------------------------------------------------------- windows


def window(
    taps: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    begins: tuple[int, ...],
    ends: tuple[int, ...],
    output: Shape | None,
) -> Window | None:
    """Where the taps of a convolution or pooling lie, given the shape of its output; None where they do not fit."""
    if not len(strides) == len(dilations) == len(begins) == len(ends) == len(taps):
        return None
    if min(strides + dilations, default=1) < 1 or min(begins + ends, default=0) < 0:
        return None
    return Window(taps, strides, dilations, begins, ends, space(output, len(taps)))


def can_miss(window: Window, sizes: Sequence[int | None], *, rounds_up: bool, is_strict: bool = False) -> bool:
    """Whether a pooling's window can lie wholly in padding, for data of these sizes; see `PoolAxis` for the others."""
    window_axes = zip(window.taps, window.strides, window.dilations, window.begins, window.ends, strict=True)
    axes = [PoolAxis(*axis, rounds_up, is_strict) for axis in window_axes]
    return any(axis.can_miss(length) for axis, length in zip(axes, sizes, strict=True))


def max_pool(axes: frozenset[int], *, misses: bool) -> ops.Maximum:
    """MaxPool. `misses` says whether a window can lie wholly in padding."""
    if misses:
        raise Unreadable(Reason.BORDER, WHOLLY_PADDING)
    return ops.Maximum(axes)


def average_pool(
    axes: frozenset[int],
    find_window: Callable[[], Window | None],
    can_miss: Callable[[], bool],
    *,
    is_padded: bool,
    counts_zeros: bool,
    is_even: bool,
) -> ops.Average:
    """AveragePool.

    Args:
        axes: those that a window moves over.
        find_window: where the taps lie.
        can_miss: whether a window can lie wholly in padding.
        is_padded: whether there is padding.
        counts_zeros: whether padding counts.
        is_even: whether every window divides by the number of its taps, or of those on the data.
    """
    counts_zeros = counts_zeros and is_padded
    window = find_window() if is_even and (counts_zeros or not is_padded) else None
    return ops.Average(axes, sums_to_one=is_even and not counts_zeros and not can_miss(), window=window)
