"""Checks that stored numbers are the exact ones, rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

UNIT = 2.0**-53
"""The largest relative error of one operation in float64."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Worst:
    """The largest error so far, or a bound of it.

    Attributes:
        ulps: in units of the last place of the stored type; a bound, where nothing is larger than half of one.
        count: how many numbers were checked.
    """

    ulps: float = 0.0
    count: int = 0

    def joined(self, other: Worst) -> Worst:
        """The worst of both, with the counts added."""
        return Worst(max(self.ulps, other.ulps), self.count + other.count)


@dataclass(frozen=True)
class Wrong:
    """A number that is not the exact one, rounded once.

    Attributes:
        index: its place in the flattened array.
        stored, exact: the two numbers.
        ulps: how far they are apart.
    """

    index: int
    stored: float
    exact: float
    ulps: float


def check_rounded(stored: npt.NDArray[Any], exact: Array, error: Array | float) -> Worst | Wrong:
    """Whether each stored number is a nearest one of its type to the exact number.

    Args:
        stored: the numbers, in the type of the file.
        exact: the exact numbers, computed in float64.
        error: how far `exact` may be from the number that is meant. Where two numbers of the type are about as far from
            it, either will do.
    """
    with np.errstate(all="ignore"):
        rounded = exact.astype(stored.dtype)
        if np.array_equal(stored, rounded) and np.isfinite(stored).all():  # the usual case
            return Worst(0.0 if stored.dtype == np.float64 else 0.5, stored.size)
        numbers, nearest = stored.astype(np.float64), rounded.astype(np.float64)
        distance = np.abs(numbers - exact)
        allowed = np.abs(nearest - exact) + 2 * error
        wrong = ~(distance <= allowed)
        wrong |= ~np.isfinite(numbers)
        same = numbers == nearest
        wrong &= ~(same & np.isfinite(numbers))
        spacing = _spacing(exact, stored.dtype)
        ulps = distance / spacing
    if wrong.any():
        index = int(np.argmax(wrong))
        values = numbers.reshape(-1)[index], exact.reshape(-1)[index], ulps.reshape(-1)[index]
        return Wrong(index, *map(float, values))
    return Worst(max(0.5, float(ulps.max(initial=0.0))), stored.size)


def _spacing(exact: Array, dtype: np.dtype[Any]) -> Array:
    """The distance between neighbouring numbers of a type, at each of these numbers."""
    about = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    exponents = np.frexp(exact)[1] - 1
    spacing = np.ldexp(float(about.eps), exponents)
    return np.asarray(np.maximum(spacing, float(about.smallest_subnormal)))
