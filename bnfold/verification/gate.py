"""Fixed conditions on outputs, for conversions that lose digits on purpose (to float16, to 8 bits)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """What outputs must keep, in place of the measured budget. Each condition that is not None has to hold.

    Attributes:
        min_snr: the smallest ratio of signal to difference, in decibels.
        min_argmax: the smallest share of positions with the same largest class, and of equal integers.
        atol, rtol: the tolerance of each element, ``|difference| <= atol + rtol * |reference|``.
    """

    min_snr: float | None = None
    min_argmax: float | None = None
    atol: float | None = None
    rtol: float | None = None

    @classmethod
    def of(cls, min_snr: float | None, min_argmax: float | None, atol: float | None, rtol: float | None) -> Gate | None:
        """The gate of these conditions; None where there are none."""
        gate = cls(min_snr, min_argmax, atol, rtol)
        return None if gate == cls() else gate

    @property
    def has_tolerance(self) -> bool:
        """Whether there is a tolerance for each element."""
        return self.atol is not None or self.rtol is not None

    def __str__(self) -> str:
        """The options that ask for it."""
        options = {"min-snr": self.min_snr, "min-argmax": self.min_argmax, "atol": self.atol, "rtol": self.rtol}
        return " ".join(f"--{name} {value:g}" for name, value in options.items() if value is not None)
