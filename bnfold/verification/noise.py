"""Differences between two runs of a model, and the budget that rounding noise gives them.

The reference is run again with each weight moved by a unit in its last place, at random. How far a value moves then is
its noise: what any other correct way to round the same model may do to it. A difference passes where

    |difference_g|  <=  FACTOR sqrt(noise_g^2 + share_g noise^2 + (noise / signal * signal_g)^2 + (unit * signal_g)^2)

for the value as a whole and for each channel `g` of it, in the root mean square and in the largest element. The second
and third term keep a channel whose own few draws happened to cancel from having no budget: the fewer elements it has,
the less its own noise is known, and the larger its share of the whole value's, ``4 / (4 + elements)``. Elements that
move together count as one, and so do those that are one number. With `KNOWN` draws it is known well enough, and needs
no share. The last term is the rounding of the result itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import frexp, isfinite, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Array
from bnfold.verification.metrics import spacing

FACTOR = 8.0
"""How many times its measured noise a value may differ by; docs/verification.md has the resulting error rates."""

KNOWN = 12
"""How many draws tell the noise of a channel by itself: they are not all eight times too small by chance."""

BLOCK = 1 << 18
"""How many elements are compared at a time: as many as fit a cache."""

SCALES = 120
"""The largest power of two that differences are scaled by: within the range of float32."""

MODERATE = 30
"""Up to which power of two they need not be: squares, and sums of as many as a block has, stay normal numbers."""


@dataclass(frozen=True, eq=False)
class Extent:
    """How large an array is, as a whole (entry 0) and in each channel (the entries behind it).

    Channels lie on axis 1. In arrays of three axes, and of four if they do not look like square images, they are on
    the last one too.

    Attributes:
        rms: root mean squares.
        peak: largest absolute values.
        mean: means; zeros where they were not asked for.
        elements: the number of elements behind each of them.
        is_finite: whether all elements were finite.
    """

    rms: Array
    peak: Array
    mean: Array
    elements: Array
    is_finite: bool = True

    @property
    def is_zero(self) -> bool:
        """Whether every element is zero."""
        return not self.peak[0]


@dataclass(frozen=True, eq=False)
class _Sums:
    """For each channel of a block: the sum of squares, the sum, and the largest absolute value."""

    squares: Array
    sums: Array
    peak: Array


@np.errstate(over="ignore", invalid="ignore")  # squares of float64 may overflow
def measure(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None = None, *, with_means: bool = True) -> Extent:
    """The extent of ``array - subtract``; positions where either is not finite count as zero."""
    if array.ndim < 2 or array.size == 0:
        flat = None if subtract is None else subtract.reshape(1, 1, -1)
        return replace(_along(array.reshape(1, 1, -1), flat, with_means), elements=np.array([np.inf]))
    extents = [_along(array, subtract, with_means)]
    if _may_be_last(array.shape):
        last = None if subtract is None else np.moveaxis(subtract, -1, 1)
        extents.append(_along(np.moveaxis(array, -1, 1), last, with_means))
    whole_rms = np.sqrt(np.mean(extents[0].rms ** 2))
    whole_peak = extents[0].peak.max(initial=0.0)
    return Extent(
        np.concatenate([[whole_rms], *(extent.rms for extent in extents)]),
        np.concatenate([[whole_peak], *(extent.peak for extent in extents)]),
        np.concatenate([[0.0], *(extent.mean for extent in extents)]),
        np.concatenate([[np.inf], *(extent.elements for extent in extents)]),
        extents[0].is_finite,
    )


def _may_be_last(shape: tuple[int, ...]) -> bool:
    """Whether channels may lie on the last axis. Where the last two are one size, they are those of an image."""
    return len(shape) == 3 or (len(shape) == 4 and (shape[2] != shape[3] or shape[1] == shape[2]))


def _along(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None, with_means: bool) -> Extent:
    """The extent of each channel."""
    batch, channels, size = *array.shape[:2], prod(array.shape[2:])
    array = array.reshape(batch, channels, size)
    subtract = None if subtract is None else subtract.reshape(batch, channels, size)
    squares, sums, peak = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    is_finite = True
    for part in _parts(batch, channels, size):
        block, is_block_finite = _block(array[part], None if subtract is None else subtract[part], with_means)
        own = part[1]
        squares[own] += block.squares
        sums[own] += block.sums
        np.maximum(peak[own], block.peak, out=peak[own])
        is_finite &= is_block_finite
    count = max(1, batch * size)
    return Extent(np.sqrt(squares / count), peak, sums / count, np.full(channels, float(count)), is_finite)


def _parts(*shape: int) -> Iterator[tuple[slice, ...]]:
    """Blocks of an array: as much of the last axes as fits, and as many steps of the one before them."""
    steps, room = [], BLOCK
    for size in reversed(shape):
        steps.append(min(max(1, room), max(1, size)))
        room //= max(1, size)
    ranges = [range(0, size, step) for size, step in zip(shape, reversed(steps), strict=True)]
    for starts in product(*ranges):
        yield tuple(slice(start, start + block.step) for start, block in zip(starts, ranges, strict=True))


def _block(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None, with_means: bool) -> tuple[_Sums, bool]:
    """The sums of one block, and whether every element is finite; computed in float32 where its range is enough."""
    kind = np.result_type(array, np.float32, *([] if subtract is None else [subtract]))
    sums = _sums(_difference(array, subtract, kind), with_means)
    if sums is not None:
        return sums, True
    wide = _difference(array, subtract, np.dtype(np.float64))
    is_finite = bool(np.isfinite(wide).all())
    sums = _sums(np.nan_to_num(wide, copy=False, nan=0.0, posinf=0.0, neginf=0.0), with_means)
    assert sums is not None
    return sums, is_finite


def _sums(wide: npt.NDArray[Any], with_means: bool) -> _Sums | None:
    """The sums of an array, which is overwritten; None where one of its elements is not finite.

    It is scaled by a power of two first, where the squares or their sums might leave its type's range.
    """
    starts = np.arange(0, wide.size, wide.shape[2])
    peaks = np.maximum.reduceat(np.abs(wide).reshape(-1), starts)  # for short rows twice as fast as a plain maximum
    peak = peaks.reshape(wide.shape[:2]).max(axis=0).astype(np.float64)
    largest = float(peak.max())
    if not isfinite(largest):
        return None
    power = max(-SCALES, min(frexp(largest)[1], SCALES))
    scale = 1.0 if abs(power) <= MODERATE else 2.0**-power
    if scale != 1:
        wide *= wide.dtype.type(scale)
    squares = np.einsum("bcx,bcx->c", wide, wide).astype(np.float64) / scale / scale
    sums = np.einsum("bcx->c", wide).astype(np.float64) / scale if with_means else np.zeros_like(squares)
    return _Sums(squares, sums, peak)


def _difference(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """A fresh array of the given type."""
    with np.errstate(invalid="ignore", over="ignore"):
        return array.astype(kind) if subtract is None else np.subtract(array, subtract, dtype=kind)


@np.errstate(over="ignore", invalid="ignore")  # squares of float64 may overflow
def combine(draws: Sequence[Extent]) -> Extent:
    """The noise of several draws together: root mean squares over them, and the largest of their peaks."""
    return Extent(
        np.sqrt(np.mean([draw.rms**2 for draw in draws], axis=0)),
        np.max([draw.peak for draw in draws], axis=0),
        np.sqrt(np.mean([draw.mean**2 for draw in draws], axis=0)),
        np.sum([draw.elements for draw in draws], axis=0),
        all(draw.is_finite for draw in draws),
    )


def shares_of_draws(noise: Extent) -> Array:
    """The shares for noise of a few draws, in which a channel moves with the few weights that make it."""
    together = np.divide(noise.rms, noise.mean, out=np.full_like(noise.rms, np.inf), where=noise.mean != 0) ** 2
    return np.asarray(4 / (4 + np.minimum(noise.elements, together)))


def shares_of_elements(noise: Extent) -> Array:
    """The shares for errors of rounding, which are another one in each element."""
    return np.asarray(np.exp2(-noise.elements / 4))


def count_distinct(array: npt.NDArray[Any]) -> Array:
    """How many different numbers other than zero there are in each channel, at least one; as in an `Extent`.

    Where many elements are one number, as behind a single pixel that is not zero, they are computed alike, and their
    errors are one and the same.
    """
    if array.ndim < 2 or array.size == 0:
        return np.array([np.inf])
    counts = [_distinct(array)]
    if _may_be_last(array.shape):
        counts.append(_distinct(np.moveaxis(array, -1, 1)))
    return np.asarray(np.concatenate([[np.inf], *counts]))


def _distinct(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    wide = array.astype(np.result_type(array, np.float32), copy=False)
    rows = np.sort(np.moveaxis(wide, 1, 0).reshape(array.shape[1], -1), axis=1)
    is_new = np.ones(rows.shape, bool)
    is_new[:, 1:] = rows[:, 1:] != rows[:, :-1]
    return np.asarray(np.maximum(np.count_nonzero(is_new & (rows != 0), axis=1), 1.0))


def no_shares(noise: Extent) -> Array:
    """The shares for noise of `KNOWN` draws."""
    return np.zeros_like(noise.rms)


@dataclass(frozen=True)
class Judgement:
    """A difference against its budget.

    Attributes:
        error: the largest absolute difference over the largest absolute reference value.
        budget: the largest such error that passes, were it the only test.
        excess: the worst ratio of a difference to what is allowed, over all tests; up to 1 passes.
        test: the test that gave it: "peak" or "rms", of the whole or of a channel.
    """

    error: float
    budget: float
    excess: float
    test: str


@np.errstate(over="ignore", invalid="ignore")  # squares of float64 may overflow
def judge(
    difference: Extent,
    noise: Extent,
    signal: Extent,
    dtype: np.dtype[Any],
    shares_of: Callable[[Extent], Array] = shares_of_draws,
) -> Judgement:
    """Whether a difference is no larger than the noise explains.

    Args:
        difference: the extent of the difference.
        noise: the extent of the moves by disturbances.
        signal: the extent of the reference.
        dtype: the type of the value; `FACTOR` units in its last place are always allowed.
        shares_of: the share of the whole value's noise that each channel gets, by how well its own is known.
    """
    if difference.is_zero:
        return Judgement(0.0, relative(FACTOR * noise.peak[0], signal.peak[0]), 0.0, "equal")
    unit, smallest = spacing(dtype)
    worst, test, budget = 0.0, "", 0.0
    shares = shares_of(noise)
    for name in ("peak", "rms"):
        actual, moved, size = (getattr(extent, name) for extent in (difference, noise, signal))
        level = moved[0] / size[0] if size[0] else 0.0
        variance = moved**2 + shares * moved[0] ** 2 + (level * size) ** 2 + (unit * size + smallest) ** 2
        allowed = FACTOR * np.sqrt(variance)
        ratios = np.divide(actual, allowed, out=np.where(actual > 0, np.inf, 0.0), where=allowed > 0)
        ratios[np.isnan(ratios)] = np.inf
        index = int(np.argmax(ratios))
        if name == "peak":
            budget = relative(allowed[0], size[0])
        if ratios[index] > worst:
            worst, test = float(ratios[index]), name if index == 0 else f"{name} of channel {index - 1}"
    return Judgement(relative(difference.peak[0], signal.peak[0]), budget, worst, test)


def relative(part: float, whole: float) -> float:
    """`part` over `whole`; infinite for anything over nothing."""
    return float(part / whole) if whole else (float("inf") if part else 0.0)
