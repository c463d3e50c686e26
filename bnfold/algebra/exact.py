"""Double-double arithmetic: numbers of twice the digits of float64, each the unevaluated sum of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SPLITTER = 2.0**27 + 1


@dataclass(frozen=True, eq=False)
class DoubleDouble:
    """An array of numbers ``high + low``, where `high` is the sum rounded to float64.

    Where an operation overflows, `high` is what float64 makes of it, and `low` is zero.
    """

    high: Array
    low: Array

    @classmethod
    def of(cls, high: Array, low: Array | None = None) -> DoubleDouble:
        """An array of float64, and what is missing from it, if that is known."""
        return cls(high, np.zeros_like(high) if low is None else low)

    def __add__(self, other: DoubleDouble) -> DoubleDouble:
        with np.errstate(all="ignore"):
            total, error = _add(self.high, other.high)
            return _normalised(total, error + (self.low + other.low))

    def __mul__(self, other: DoubleDouble) -> DoubleDouble:
        with np.errstate(all="ignore"):
            product, error = _multiply(self.high, other.high)
            return _normalised(product, error + (self.high * other.low + self.low * other.high))


def _normalised(high: Array, low: Array) -> DoubleDouble:
    total, error = _add(high, low)
    is_known = np.isfinite(error)
    return DoubleDouble(np.where(is_known, total, high), np.where(is_known, error, 0.0))


def _add(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` rounded, and what is missing from it.

    Source: Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _multiply(a: Array, b: Array) -> tuple[Array, Array]:
    """``a * b`` rounded, and what is missing from it.

    Source: Dekker, "A floating-point technique for extending the available precision", 1971.
    """
    product = a * b
    (high_a, low_a), (high_b, low_b) = _split(a), _split(b)
    return product, low_a * low_b - (((product - high_a * high_b) - low_a * high_b) - high_a * low_b)


def _split(a: Array) -> tuple[Array, Array]:
    """Two numbers of half the digits, with the sum `a`."""
    wide = SPLITTER * a
    high = wide - (wide - a)
    return high, a - high
