"""Operators that move elements and change none. Each element keeps its channel, so the affine follows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from math import prod

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Affine, Grid, lay_out
from bnfold.graph.ops import (
    CHANNEL_LIMIT,
    Concat,
    Dim,
    PixelShuffle,
    PixelUnshuffle,
    Reshape,
    Shape,
    Split,
    Take,
    Transpose,
)
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.rules.registry import AXIS, CONFLICT, MIXED, Carried, pull, push, variants

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
    known = [affine for affine in affines if affine]
    if known[0].axis != op.axis:
        same = len(known) == len(affines) and all(known[0].equals(other) for other in known)
        return (known[0],) if same else CONFLICT
    parts: list[Affine] = []
    for affine, size in zip(affines, op.sizes, strict=True):
        if size not in (None, affine.size) if affine else size is None or size > CHANNEL_LIMIT:
            return SIZES
        parts.append(affine or Affine.identity(size or 0, op.axis))
    return (Affine.join(parts),)


def _complete(sizes: tuple[int | None, ...], total: int) -> tuple[int, ...] | None:
    """Sizes with the only unknown one filled in from their total; None where they cannot be right."""
    known = [size for size in sizes if size is not None]
    rest = total - sum(known)
    if len(known) < len(sizes) - 1 or rest < 0 or (len(known) == len(sizes) and rest):
        return None
    return tuple(rest if size is None else size for size in sizes)


@pull.register
def _(op: Split, *affines: Affine | None) -> Carried:
    known = [affine for affine in affines if affine]
    if known[0].axis != op.axis:
        same = len(known) == len(affines) and all(known[0].equals(other) for other in known)
        return (known[0],) if same else CONFLICT
    if any(a.size != size if a else size > CHANNEL_LIMIT for a, size in zip(affines, op.sizes, strict=True)):
        return SIZES
    parts = [a or Affine.identity(size, op.axis) for a, size in zip(affines, op.sizes, strict=True)]
    return (Affine.join(parts),)


@push.register
def _(op: Split, affine: Affine) -> Carried:
    if affine.axis != op.axis:
        return (affine,) * len(op.sizes)
    return affine.split(op.sizes) if sum(op.sizes) == affine.size else SIZES


@pull.register
def _(op: Take, affine: Affine) -> Carried:
    if affine.axis in op.others or (affine.axis == op.axis and affine.size != len(op.index)):
        return SIZES
    return _found(affine.spread(op.index, op.size)) if affine.axis == op.axis else (affine,)


@push.register
def _(op: Take, affine: Affine) -> Carried:
    if affine.axis in op.others or (affine.axis == op.axis and affine.size != op.size):
        return SIZES
    return (affine.take(op.index),) if affine.axis == op.axis else (affine,)


def _found(affine: Affine | None) -> Carried:
    return (affine,) if affine else MIXED


@pull.register
def _(op: Transpose, affine: Affine) -> Carried:
    return _moved(affine, op.order)


@push.register
def _(op: Transpose, affine: Affine) -> Carried:
    return _moved(affine, [op.order.index(axis) for axis in range(len(op.order))])


def _moved(affine: Affine, places: Sequence[int]) -> Carried:
    """A map with its axes moved to other places."""
    if any(axis >= len(places) for axis, _ in affine.places):
        return SHAPES
    axes, lengths = zip(*affine.places, strict=True)
    return (lay_out(affine, [places[axis] for axis in axes], lengths),)


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
    """The channel of which each of the ``factor^2 * channels`` packed channels is a part."""
    packed = np.arange(factor**2 * channels)
    return packed // factor**2 if channel_first else packed % channels


def _onto_blocks(affine: Affine, factor: int, channels: int | None, channel_first: bool) -> Carried:
    if affine.axis == 0:
        return (affine,)
    if affine.axis != 1:
        return AXIS
    if channels not in (None, affine.size) or factor**2 * affine.size > CHANNEL_LIMIT:
        return SIZES
    return (affine.take(_block_channels(factor, affine.size, channel_first)),)


def _off_blocks(affine: Affine, factor: int, channels: int | None, channel_first: bool) -> Carried:
    if affine.axis == 0:
        return (affine,)
    if affine.axis != 1:
        return AXIS
    channels = affine.size // factor**2 if channels is None else channels
    if affine.size != factor**2 * channels:
        return SIZES
    return _found(affine.spread(_block_channels(factor, channels, channel_first), channels))


@pull.register
def _(op: Reshape, affine: Affine) -> Carried:
    return _follow(affine, op.after, op.before, op.choice)


@variants.register
def _(op: Reshape) -> tuple[object, ...]:
    """Each choice among the axes that a uniform affine fits. Operators in front may absorb it on only one of them."""
    return tuple(replace(op, choice=choice) for choice in range(len(op.before)))


@push.register
def _(op: Reshape, affine: Affine) -> Carried:
    return _follow(affine, op.before, op.after, op.choice)


Monomial = tuple[Fraction, tuple[str, ...]]
"""A product of sizes: a number and sorted symbols."""

Sizes = tuple[Monomial | None, ...]


def _monomial(dim: Dim) -> Monomial | None:
    if dim is None:
        return None
    return (Fraction(1), (dim,)) if isinstance(dim, str) else (Fraction(dim), ())


def _product(sizes: Sizes) -> Monomial | None:
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    return prod((size[0] for size in known), start=Fraction(1)), tuple(sorted(s for size in known for s in size[1]))


def _quotient(upper: Monomial | None, lower: Monomial | None) -> Monomial | None:
    """The quotient, where it is a number and symbols again."""
    if upper is None or lower is None or not lower[0]:
        return None
    symbols = list(upper[1])
    for symbol in lower[1]:
        if symbol not in symbols:
            return None
        symbols.remove(symbol)
    return upper[0] / lower[0], tuple(symbols)


def _fill_in(sizes: Sizes, other: Sizes) -> Sizes:
    """`sizes` with the only unknown one computed from the number of elements of `other`.

    If all sizes have a name, it is the size whose name occurs nowhere else. Shape inference gives a new name to each
    size that it cannot follow.
    """
    unknown = [place for place, size in enumerate(sizes) if size is None]
    if not unknown:
        named = [symbol for size in (*sizes, *other) if size is not None for symbol in size[1]]
        unknown = [
            place for place, size in enumerate(sizes) if size and any(named.count(name) == 1 for name in size[1])
        ]
    if len(unknown) != 1:
        return sizes
    (place,) = unknown
    missing = _quotient(_product(other), _product((*sizes[:place], *sizes[place + 1 :])))
    if missing is None or (not missing[1] and missing[0].denominator > 1):
        return sizes  # not known, or the shapes contradict each other
    return *sizes[:place], missing, *sizes[place + 1 :]


def _follow(affine: Affine, before: Shape, after: Shape, choice: int) -> Carried:
    """Follow the channels of the shape `before` to one axis of `after`, else to several."""
    carried: Carried = MIXED if isinstance(affine, Grid) else _transport(affine, before, after, choice)
    if choice or not isinstance(carried, Stop):
        return carried
    return _regroup(affine, before, after) or carried


def _regroup(affine: Affine, before: Shape, after: Shape) -> Carried | None:
    """Follow a map to all axes on which the elements of its own axes lie; None where their sizes are not known.

    Both shapes fall into groups of consecutive axes with the same number of elements, each a Reshape of its own.
    """
    places = dict(affine.places)
    if any(axis >= len(before) or (isinstance(before[axis], int) and before[axis] != places[axis]) for axis in places):
        return None
    filled = [places.get(axis, size) for axis, size in enumerate(before)]
    monomials = tuple(_monomial(dim) for dim in filled), tuple(_monomial(dim) for dim in after)
    source, target = _fill_in(*monomials), _fill_in(*monomials[::-1])
    pairs = [pair for pair in reversed([*_groups(source, target)]) if places.keys() & set(pair[0])]
    old_axes, new_axes = ([axis for pair in pairs for axis in pair[side]] for side in (0, 1))
    if not places.keys() <= set(old_axes):
        return None
    old_sizes, new_sizes = (_numbers(sizes, axes) for sizes, axes in ((source, old_axes), (target, new_axes)))
    if old_sizes is None or new_sizes is None or not 0 < prod(old_sizes) == prod(new_sizes) <= CHANNEL_LIMIT:
        return None
    own = np.arange(affine.size).reshape([places.get(axis, 1) for axis in old_axes])
    index = np.broadcast_to(own, old_sizes).reshape(-1)
    return (lay_out(affine.take(index), new_axes, new_sizes),)


def _groups(source: Sizes, target: Sizes) -> Iterator[tuple[range, range]]:
    """The axes of two shapes of the same elements, in groups with as many on both sides, the last ones first."""
    old_end, new_end = len(source), len(target)
    for old in reversed(range(len(source))):
        for new in reversed(range(new_end)):
            if _divide_alike(source, target, old, new):
                yield range(old, old_end), range(new, new_end)
                old_end, new_end = old, new
                break


def _divide_alike(source: Sizes, target: Sizes, old: int, new: int) -> bool:
    """Whether as many elements lie behind an axis of one shape as behind an axis of the other; or in front of both."""
    pairs = (source[old:], target[new:]), (source[:old], target[:new])
    sizes = [(_product(one), _product(other)) for one, other in pairs]
    return any(one is not None and one == other for one, other in sizes)


def _numbers(sizes: Sizes, axes: Iterable[int]) -> list[int] | None:
    """The sizes of some axes, where all of them are numbers."""
    dims = [sizes[axis] for axis in axes]
    return None if any(size is None or size[1] for size in dims) else [int(size[0]) for size in dims if size]


def _transport(affine: Affine, before: Shape, after: Shape, choice: int) -> Carried:
    """Follow the channels of the shape `before` to an axis of `after`, by the strides of both in row-major order.

    With stride ``s`` an element at flat position ``f`` has channel ``(f // s) % size``. As both shapes have the same
    elements, the ratio of two strides is also that of the sizes in front of them. Two cases are exact:
    (A) a target axis that determines the channel: its affine repeats the channels; (B) a target axis that the channel
    determines: its affine exists where all channels that share an index agree.
    """
    if affine.axis >= len(before) or (isinstance(before[affine.axis], int) and before[affine.axis] != affine.size):
        return SHAPES
    monomials = tuple(_monomial(dim) for dim in before), tuple(_monomial(dim) for dim in after)
    source, target = _fill_in(*monomials), _fill_in(*monomials[::-1])
    stride = _product(source[affine.axis + 1 :])
    front = _product((*source[: affine.axis], _monomial(affine.size)))
    known = stride is not None or front is not None
    candidates: list[tuple[Affine, bool]] = []
    for axis, size in enumerate(target):
        step, ahead = _product(target[axis + 1 :]), _product(target[: axis + 1])
        ratio = _quotient(stride, step) or _quotient(ahead, front)
        inverse = _quotient(step, stride) or _quotient(front, ahead)
        known = known and (step is not None or ahead is not None) and size is not None
        if size is None or not size[0]:
            continue
        if size[1]:
            known = known and (ratio is None or (not ratio[1] and ratio[0].denominator > 1))
            continue
        for quotient, follow in ((ratio, _repeated), (inverse, _merged)):
            if quotient is not None and not quotient[1] and quotient[0].denominator == 1 and affine.size:
                carried = follow(affine, int(quotient[0]), int(size[0]))
                candidates.extend([(carried.along(axis), quotient == _monomial(1))] if carried else [])
    if not candidates:
        return MIXED if known else SHAPES

    def preference(candidate: tuple[Affine, bool]) -> tuple[bool, bool, bool, int, int]:
        """The order of axes that a single channel or a uniform affine fits: the one that stays, else the longest."""
        (carried, has_stride), axis = candidate, candidate[0].axis
        stays = carried.size == affine.size and has_stride
        front = axis == affine.axis and source[:axis] == target[:axis]
        back = len(target) - axis == len(source) - affine.axis
        return stays, stays and front, stays and back, carried.size, -axis

    return (sorted(candidates, key=preference, reverse=True)[choice][0],) if choice < len(candidates) else MIXED


def _repeated(affine: Affine, ratio: int, size: int) -> Affine | None:
    """Case A: an index ``i`` of the target axis has channel ``(i // ratio) % channels``."""
    if not ratio or size > CHANNEL_LIMIT or size % (ratio * affine.size):
        return None
    return affine.take(np.arange(size) // ratio % affine.size)


def _merged(affine: Affine, ratio: int, size: int) -> Affine | None:
    """Case B: channel ``c`` lies at index ``(c // ratio) % size`` of the target axis."""
    if not ratio or affine.size % (ratio * size):
        return None
    return affine.spread(np.arange(affine.size) // ratio % size, size)
