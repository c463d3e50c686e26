"""A difference between two arrays, in the figures that people ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

ORDERED: dict[int, type[np.signedinteger[Any]]] = {2: np.int16, 4: np.int32, 8: np.int64}
"""Integers as wide as a float. Read as such, floats of one sign are in order, a unit in the last place apart."""


@dataclass(frozen=True)
class Counts:
    """Elements that are not finite: in the reference, and in the candidate alone or in the reference alone.

    Attributes:
        reference: how many the reference has.
        size: the size of the array.
        nan_created, nan_lost, inf_created, inf_lost: how many are NaN (infinite) in one of the two alone.
    """

    reference: int
    size: int
    nan_created: int = 0
    nan_lost: int = 0
    inf_created: int = 0
    inf_lost: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.reference + other.reference,
            self.size + other.size,
            self.nan_created + other.nan_created,
            self.nan_lost + other.nan_lost,
            self.inf_created + other.inf_created,
            self.inf_lost + other.inf_lost,
        )

    @property
    def is_void(self) -> bool:
        """Whether the reference has no finite number."""
        return self.size > 0 and self.reference == self.size

    @property
    def created(self) -> int:
        """How many finite numbers of the reference are not finite in the candidate."""
        return self.nan_created + self.inf_created

    @property
    def lost(self) -> int:
        """How many elements that are not finite in the reference are another value in the candidate."""
        return self.nan_lost + self.inf_lost


def count_nonfinite(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> Counts:
    """Count where NaN and infinity came and went."""
    odd, other = ~np.isfinite(reference), ~np.isfinite(candidate)
    if not odd.any() and not other.any():
        return Counts(0, reference.size)
    nan, other_nan = np.isnan(reference), np.isnan(candidate)
    inf, other_inf = odd & ~nan, other & ~other_nan
    same_inf = inf & other_inf & (np.sign(reference) == np.sign(candidate))
    return Counts(
        int(odd.sum()),
        reference.size,
        nan_created=int((other_nan & ~nan).sum()),
        nan_lost=int((nan & ~other_nan).sum()),
        inf_created=int((other_inf & ~same_inf & ~nan).sum()),
        inf_lost=int((inf & ~same_inf & ~other_nan).sum()),
    )


@np.errstate(invalid="ignore")
def signal_to_noise(rms_signal: float, rms_difference: float) -> float:
    """The ratio in decibels, ``20 log10(signal / difference)``; infinite where nothing differs."""
    if not rms_difference:
        return float("inf")
    return float(20 * np.log10(rms_signal / rms_difference)) if rms_signal else float("-inf")


def worst_ulp(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> int:
    """Largest distance in units in the last place, over elements that are finite in both."""
    integer = ORDERED[reference.dtype.itemsize]
    finite = np.isfinite(reference) & np.isfinite(candidate)
    a, b = (_ordered(np.ascontiguousarray(array[finite]).view(integer)) for array in (reference, candidate))
    return int(max((abs(int(x)) for x in _extremes(a - b)), default=0))


def _ordered(bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The bits of floats as integers in the order of the floats; Python integers where those could overflow."""
    wide = bits.astype(np.int64) if bits.dtype.itemsize < 8 else bits.astype(object)
    lowest = int(np.iinfo(bits.dtype).min)
    return np.where(bits < 0, lowest - wide, wide)


def _extremes(distances: npt.NDArray[Any]) -> list[Any]:
    return [distances.min(), distances.max()] if distances.size else []


@dataclass(frozen=True)
class Agreement:
    """How far the largest class is the same.

    Attributes:
        share: the share of the positions at which it is the same.
        margin: the smallest lead of the reference's largest class over its second, over its largest absolute value.
    """

    share: float
    margin: float


def class_axis(reference: npt.NDArray[Any]) -> int | None:
    """The axis of classes (1, or the last of three); None where there are no two classes."""
    if reference.ndim < 2 or 0 in reference.shape:
        return None
    axis = 2 if reference.ndim == 3 else 1
    return axis if reference.shape[axis] >= 2 else None


def agree_on_argmax(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> Agreement | None:
    """Agreement along the class axis; None where there are no two classes."""
    axis = class_axis(reference)
    if axis is None:
        return None
    finite = np.nan_to_num(reference.astype(np.float64), nan=-np.inf)
    chosen = finite.argmax(axis)
    same = chosen == np.nan_to_num(candidate.astype(np.float64), nan=-np.inf).argmax(axis)
    largest = np.sort(finite, axis=axis).take([-2, -1], axis=axis)
    with np.errstate(invalid="ignore"):
        leads = np.diff(largest, axis=axis)
    peak = float(np.abs(finite[np.isfinite(finite)]).max(initial=0.0))
    lead = float(np.nan_to_num(leads, nan=0.0).min())
    return Agreement(float(same.mean()), lead / peak if peak else 0.0)


@cache
def mantissa_bits(dtype: np.dtype[Any]) -> int:
    """The number of stored mantissa bits of a float type."""
    return int(ml_dtypes.finfo(dtype).nmant)  # type: ignore[no-untyped-call]


@cache
def spacing(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The spacing of a float type at 1, and its smallest positive number."""
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(info.eps), 2.0 ** (info.minexp - info.nmant)  # its own answer is 0 where subnormals are flushed
