"""Differences between two runs of a model, and the budget that rounding noise gives them.

The reference is run again with each weight moved by a unit in its last place, at random. How far a value moves then is
its noise: what any other correct way to round the same model may do to it. A difference passes where

    |difference_g|  <=  FACTOR sqrt(noise_g^2 + share_g noise^2 + (noise / signal * signal_g)^2 + (unit * signal_g)^2)

for the value as a whole and for each channel `g` of it, in the root mean square and in the largest element. The second
and third term keep a channel whose own few draws happened to cancel from having no budget: the fewer elements it has,
the less its own noise is known, and the larger its share of the whole value's, ``4 / (4 + elements)``. Elements that
move together count as one. The last term is the rounding of the result itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.affine import Array
from bnfold.verification.metrics import spacing

FACTOR = 8.0
"""How many times its measured noise a value may differ by; docs/verification.md has the rates that it gives."""

BLOCK = 1 << 17
"""Elements that are compared at a time: what fits a cache in float64."""


@dataclass(frozen=True, eq=False)
class Extent:
    """How large an array is, as a whole (entry 0) and in each channel (the entries behind it).

    Channels lie on axis 1, and in arrays of three axes on the last one too.

    Attributes:
        rms: root mean squares.
        peak: largest absolute values.
        mean: means.
        elements: how many each of them is over.
    """

    rms: Array
    peak: Array
    mean: Array
    elements: Array

    @property
    def is_zero(self) -> bool:
        """Whether every element is zero."""
        return not self.peak[0]


def measure(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None = None) -> Extent:
    """The extent of ``array - subtract``; positions where either is not finite count as zero."""
    if array.ndim < 2 or array.size == 0:
        wide = _difference(array.reshape(1, 1, -1), None if subtract is None else subtract.reshape(1, 1, -1))
        rms, mean = (np.sqrt(np.mean(wide * wide)), np.mean(wide)) if wide.size else (0.0, 0.0)
        return Extent(np.array([rms]), np.array([np.abs(wide).max(initial=0.0)]), np.array([mean]), np.array([np.inf]))
    extents = [_along(array, subtract, 1)]
    if array.ndim == 3:
        extents.append(_along(array, subtract, 2))
    whole_rms = np.sqrt(np.mean(extents[0].rms ** 2))
    whole_peak = extents[0].peak.max(initial=0.0)
    return Extent(
        np.concatenate([[whole_rms], *(each.rms for each in extents)]),
        np.concatenate([[whole_peak], *(each.peak for each in extents)]),
        np.concatenate([[0.0], *(each.mean for each in extents)]),
        np.concatenate([[np.inf], *(each.elements for each in extents)]),
    )


def _along(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None, axis: int) -> Extent:
    """The extent of each channel, in blocks: as many samples, or as many channels of one, as fit at a time."""
    if axis == 2:
        array = array.swapaxes(1, 2)
        subtract = None if subtract is None else subtract.swapaxes(1, 2)
    batch, channels = array.shape[:2]
    squares, sums, peak = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    size = array[0, 0].size
    samples, step = max(1, BLOCK // max(1, channels * size)), max(1, BLOCK // max(1, size))
    for first in range(0, batch, samples):
        for start in range(0, channels, step):
            part, own = np.s_[first : first + samples, start : start + step], np.s_[start : start + step]
            wide = _difference(array[part], None if subtract is None else subtract[part])
            wide = wide.reshape(*wide.shape[:2], size)
            squares[own] += np.einsum("bcx,bcx->c", wide, wide)
            sums[own] += np.einsum("bcx->c", wide)
            np.maximum(peak[own], np.abs(wide).max(axis=(0, 2), initial=0.0), out=peak[own])
    count = batch * size
    return Extent(np.sqrt(squares / count), peak, sums / count, np.full(channels, float(count)))


def _difference(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None) -> Array:
    """In float64, zero where it is not a finite number."""
    with np.errstate(invalid="ignore", over="ignore"):
        wide: Array = array.astype(np.float64)
        if subtract is not None:
            wide -= subtract
        is_finite = np.isfinite(wide.sum())  # of finite numbers alone, unless they are beyond all measure
    return wide if is_finite else np.nan_to_num(wide, nan=0.0, posinf=0.0, neginf=0.0)


def combine(draws: Sequence[Extent]) -> Extent:
    """The noise that several draws show: root mean squares over them, and the largest of their peaks."""
    return Extent(
        np.sqrt(np.mean([each.rms**2 for each in draws], axis=0)),
        np.max([each.peak for each in draws], axis=0),
        np.sqrt(np.mean([each.mean**2 for each in draws], axis=0)),
        np.sum([each.elements for each in draws], axis=0),
    )


@dataclass(frozen=True)
class Judgement:
    """A difference against its budget.

    Attributes:
        error: largest absolute difference over the largest absolute reference value.
        budget: the largest such error that passes, were it the only test.
        excess: the worst ratio of a difference to what is allowed, over all tests; up to 1 passes.
        test: the test that gave it: "peak" or "rms", of the whole or of a channel.
    """

    error: float
    budget: float
    excess: float
    test: str


def judge(difference: Extent, noise: Extent, signal: Extent, dtype: np.dtype[Any]) -> Judgement:
    """Whether a difference is no larger than the noise explains.

    Args:
        difference: extent of the difference.
        noise: extent of what disturbances do.
        signal: extent of the reference.
        dtype: type of the value; a unit in its last place is always allowed for, `FACTOR` times.
    """
    if difference.is_zero:
        return Judgement(0.0, relative(FACTOR * noise.peak[0], signal.peak[0]), 0.0, "equal")
    unit, smallest = spacing(dtype)
    worst, test, budget = 0.0, "", 0.0
    together = np.divide(noise.rms, noise.mean, out=np.full_like(noise.rms, np.inf), where=noise.mean != 0) ** 2
    shares = 4 / (4 + np.minimum(noise.elements, together))
    for name in ("peak", "rms"):
        actual, moved, size = (getattr(each, name) for each in (difference, noise, signal))
        level = moved[0] / size[0] if size[0] else 0.0
        variance = moved**2 + shares * moved[0] ** 2 + (level * size) ** 2 + (unit * size + smallest) ** 2
        allowed = FACTOR * np.sqrt(variance)
        ratios = actual / allowed
        index = int(np.argmax(ratios))
        if name == "peak":
            budget = relative(allowed[0], size[0])
        if ratios[index] > worst:
            worst, test = float(ratios[index]), name if index == 0 else f"{name} of channel {index - 1}"
    return Judgement(relative(difference.peak[0], signal.peak[0]), budget, worst, test)


def relative(part: float, whole: float) -> float:
    """`part` over `whole`; infinite for anything over nothing."""
    return float(part / whole) if whole else (float("inf") if part else 0.0)
