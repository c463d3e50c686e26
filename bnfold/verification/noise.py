"""Differences between two runs of a model, and the budget that rounding noise gives them.

The reference is run again with each weight moved by a unit in its last place, at random. How far a value moves then is
its noise: what any other correct way to round the same model may do to it. A difference passes where

    |difference_g|  <=  FACTOR sqrt(noise_g^2 + share_g noise^2 + (noise / signal * signal_g)^2 + (unit * signal_g)^2)

for the value as a whole and for each channel `g` of it, in the root mean square and in the largest element. The second
and third term keep a channel whose own few draws happened to cancel from having no budget: the fewer elements it has,
the less its own noise is known, and the larger its share of the whole value's, ``4 / (4 + elements)``. The last term is
the rounding of the result itself.
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

BLOCK = 1 << 20
"""Elements that are compared at a time, which bounds the memory."""


@dataclass(frozen=True, eq=False)
class Extent:
    """How large an array is, as a whole (entry 0) and in each channel (the entries behind it).

    Channels lie on axis 1, and in arrays of three axes on the last one too.

    Attributes:
        rms: root mean squares.
        peak: largest absolute values.
        elements: how many each of them is over.
    """

    rms: Array
    peak: Array
    elements: Array

    @property
    def is_zero(self) -> bool:
        """Whether every element is zero."""
        return not self.peak[0]


def measure(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None = None) -> Extent:
    """The extent of ``array - subtract``; positions where either is not finite count as zero."""
    if array.ndim < 2 or array.size == 0:
        wide = _difference(array.reshape(1, 1, -1), None if subtract is None else subtract.reshape(1, 1, -1))
        rms = np.sqrt(np.mean(wide * wide)) if wide.size else 0.0
        return Extent(np.array([rms]), np.array([np.abs(wide).max(initial=0.0)]), np.array([np.inf]))
    extents = [_along(array, subtract, 1)]
    if array.ndim == 3:
        extents.append(_along(array, subtract, 2))
    whole_rms = np.sqrt(np.mean(extents[0].rms ** 2))
    whole_peak = extents[0].peak.max(initial=0.0)
    return Extent(
        np.concatenate([[whole_rms], *(each.rms for each in extents)]),
        np.concatenate([[whole_peak], *(each.peak for each in extents)]),
        np.concatenate([[np.inf], *(each.elements for each in extents)]),
    )


def _along(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None, axis: int) -> Extent:
    """The extent of each channel, in blocks: one sample, and as many channels as fit, at a time."""
    if axis == 2:
        array = array.swapaxes(1, 2)
        subtract = None if subtract is None else subtract.swapaxes(1, 2)
    batch, channels = array.shape[:2]
    squares, peak = np.zeros(channels), np.zeros(channels)
    step = max(1, BLOCK // max(1, array[0, 0].size))
    for sample in range(batch):
        for start in range(0, channels, step):
            part = np.s_[sample, start : start + step]
            wide = _difference(array[part], None if subtract is None else subtract[part]).reshape(-1, array[0, 0].size)
            squares[start : start + step] += np.einsum("ij,ij->i", wide, wide)
            np.maximum(peak[start : start + step], np.abs(wide).max(axis=1), out=peak[start : start + step])
    count = batch * array[0, 0].size
    return Extent(np.sqrt(squares / count), peak, np.full(channels, float(count)))


def _difference(array: npt.NDArray[Any], subtract: npt.NDArray[Any] | None) -> Array:
    """In float64, zero where it is not a finite number."""
    with np.errstate(invalid="ignore", over="ignore"):
        wide: Array = array.astype(np.float64)
        if subtract is not None:
            wide -= subtract
    return wide if np.isfinite(wide).all() else np.nan_to_num(wide, nan=0.0, posinf=0.0, neginf=0.0)


def combine(draws: Sequence[Extent]) -> Extent:
    """The noise that several draws show: their root mean square, and the largest of their peaks."""
    return Extent(
        np.sqrt(np.mean([each.rms**2 for each in draws], axis=0)),
        np.max([each.peak for each in draws], axis=0),
        draws[0].elements,
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
    shares = 4 / (4 + signal.elements)
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
