"""Operators that move elements without changing one: each element keeps its channel, so the affine follows it."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np
import numpy.typing as npt

from bnfold.affine import Affine
from bnfold.ops import Concat, Dim, PixelShuffle, PixelUnshuffle, Reshape, Shape, Split, Take, Transpose
from bnfold.outcome import Reason, Stop
from bnfold.rules.registry import AXIS, CONFLICT, MIXED, Carried, pull, push

SIZES = Stop(Reason.UNKNOWN_SHAPE, "the sizes along the channel axis are not known")
SHAPES = Stop(Reason.UNKNOWN_SHAPE, "the shapes it reshapes between are not known")


@pull.register
def _(op: Concat, affine: Affine) -> Carried:
    if affine.axis != op.axis:
        return (affine,) * len(op.sizes)
    sizes = _complete(op.sizes, affine.size)
    return affine.split(sizes) if sizes else SIZES


@push.register
def _(op: Concat, *affines: Affine | None) -> Carried:
    given = [affine for affine in affines if affine]
    if given[0].axis != op.axis:
        same = len(given) == len(affines) and all(given[0].equals(other) for other in given)
        return (given[0],) if same else CONFLICT
    parts: list[Affine] = []
    for affine, size in zip(affines, op.sizes, strict=True):
        if affine is None and size is None:
            return SIZES
        parts.append(affine or Affine.identity(size or 0, op.axis))
    return (Affine.join(parts),)


def _complete(sizes: tuple[int | None, ...], total: int) -> tuple[int, ...] | None:
    """Sizes with the one that is not known filled in from their total; None where they cannot be right."""
    known = [size for size in sizes if size is not None]
    rest = total - sum(known)
    if len(known) < len(sizes) - 1 or rest < 0 or (len(known) == len(sizes) and rest):
        return None
    return tuple(rest if size is None else size for size in sizes)


@pull.register
def _(op: Split, *affines: Affine | None) -> Carried:
    given = [affine for affine in affines if affine]
    if given[0].axis != op.axis:
        same = len(given) == len(affines) and all(given[0].equals(other) for other in given)
        return (given[0],) if same else CONFLICT
    parts = [a or Affine.identity(size, op.axis) for a, size in zip(affines, op.sizes, strict=True)]
    return (Affine.join(parts),)


@push.register
def _(op: Split, affine: Affine) -> Carried:
    return affine.split(op.sizes) if affine.axis == op.axis else (affine,) * len(op.sizes)


@pull.register
def _(op: Take, affine: Affine) -> Carried:
    if affine.axis in op.others:
        return SIZES
    return _found(affine.spread(op.index, op.size)) if affine.axis == op.axis else (affine,)


@push.register
def _(op: Take, affine: Affine) -> Carried:
    if affine.axis in op.others:
        return SIZES
    return (affine.take(op.index),) if affine.axis == op.axis else (affine,)


def _found(affine: Affine | None) -> Carried:
    return (affine,) if affine else MIXED


@pull.register
def _(op: Transpose, affine: Affine) -> Carried:
    return (affine.along(op.order[affine.axis]),)


@push.register
def _(op: Transpose, affine: Affine) -> Carried:
    return (affine.along(op.order.index(affine.axis)),)


@pull.register
def _(op: PixelShuffle, affine: Affine) -> Carried:
    return _onto_blocks(affine, op.factor, op.channels, op.channel_first)


@push.register
def _(op: PixelShuffle, affine: Affine) -> Carried:
    return _off_blocks(affine, op.factor, op.channels, op.channel_first)


@pull.register
def _(op: PixelUnshuffle, affine: Affine) -> Carried:
    return _off_blocks(affine, op.factor, op.channels, op.channel_first)


@push.register
def _(op: PixelUnshuffle, affine: Affine) -> Carried:
    return _onto_blocks(affine, op.factor, op.channels, op.channel_first)


def _block_channels(factor: int, channels: int, channel_first: bool) -> npt.NDArray[np.intp]:
    """For each of the ``factor^2 * channels`` packed channels, the channel that it is a part of."""
    packed = np.arange(factor**2 * channels)
    return packed // factor**2 if channel_first else packed % channels


def _onto_blocks(affine: Affine, factor: int, channels: int, channel_first: bool) -> Carried:
    if affine.axis == 0:
        return (affine,)
    return (affine.take(_block_channels(factor, channels, channel_first)),) if affine.axis == 1 else AXIS


def _off_blocks(affine: Affine, factor: int, channels: int, channel_first: bool) -> Carried:
    if affine.axis == 0:
        return (affine,)
    index = _block_channels(factor, channels, channel_first)
    return _found(affine.spread(index, channels)) if affine.axis == 1 else AXIS


@pull.register
def _(op: Reshape, affine: Affine) -> Carried:
    return _transport(affine, op.after, op.before)


@push.register
def _(op: Reshape, affine: Affine) -> Carried:
    return _transport(affine, op.before, op.after)


Monomial = tuple[Fraction, tuple[str, ...]]
"""A product of sizes: a number and sorted symbols."""


def _product(dims: Shape) -> Monomial | None:
    if any(dim is None for dim in dims):
        return None
    number = prod(dim for dim in dims if isinstance(dim, int))
    return Fraction(number), tuple(sorted(dim for dim in dims if isinstance(dim, str)))


def _ratio(upper: Monomial | None, lower: Monomial | None) -> Fraction | None:
    """The quotient where it is a plain number."""
    if upper is None or lower is None or upper[1] != lower[1] or not lower[0]:
        return None
    return upper[0] / lower[0]


def _fill_in(shape: Shape, other: Shape) -> Shape:
    """`shape` with its only unknown size computed from the number of elements of `other`."""
    unknown = [axis for axis, dim in enumerate(shape) if dim is None]
    if len(unknown) != 1:
        return shape
    total, rest = _product(other), _product(tuple(dim for dim in shape if dim is not None))
    if total is None or rest is None or not rest[0]:
        return shape
    symbols = list(total[1])
    for symbol in rest[1]:
        if symbol not in symbols:
            return shape
        symbols.remove(symbol)
    number = total[0] / rest[0]
    dim: Dim = None
    if number.denominator == 1:
        dim = int(number) if not symbols else "*".join([str(number), *symbols])
        if len(symbols) == 1 and number == 1:
            dim = symbols[0]
    return tuple(dim if axis == unknown[0] else known for axis, known in enumerate(shape))


def _transport(affine: Affine, source: Shape, target: Shape) -> Carried:
    """Follow the channels of `source` to an axis of `target`, by the strides of both in row-major order.

    With stride ``s`` an element at flat position ``f`` has channel ``(f // s) % size``. Two cases are exact:
    (A) a target axis that determines the channel: its affine repeats the channels; (B) a target axis that the channel
    determines: its affine exists where all channels that share an index agree.
    """
    source, target = _fill_in(source, target), _fill_in(target, source)
    stride = _product(source[affine.axis + 1 :])
    best: Affine | None = None
    known = stride is not None
    for axis, size in enumerate(target):
        step = _product(target[axis + 1 :])
        known = known and step is not None
        if not isinstance(size, int) or (best is not None and size <= best.size):
            continue
        ratio = _ratio(stride, step)
        carried = None if ratio is None else _onto_axis(affine, ratio, axis, size)
        best = carried or best
    if best is None:
        return MIXED if known else SHAPES
    return (best,)


def _onto_axis(affine: Affine, ratio: Fraction, axis: int, size: int) -> Affine | None:
    if ratio.denominator == 1 and size % (int(ratio) * affine.size) == 0:  # case A
        return affine.take(np.arange(size) // int(ratio) % affine.size).along(axis)
    span = 1 / ratio
    if span.denominator == 1 and affine.size % (int(span) * size) == 0:  # case B
        index = np.arange(affine.size) // int(span) % size
        carried = affine.spread(index, size)
        return carried.along(axis) if carried else None
    return None
