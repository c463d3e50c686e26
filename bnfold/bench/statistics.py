"""What may be concluded from paired timings.

In each round every contestant takes one turn, so a round gives one ratio ``candidate / baseline`` that slow changes of
the machine cannot touch. Rounds come in sittings; each sitting has sessions of its own, since where a session's memory
lies makes it faster or slower for as long as it lives. The figure is the median of all ratios. Its interval is a
bootstrap that draws whole *sittings*: rounds of one sitting share their sessions and their moment, and are not
independent.

Sources: Georges, Buytaert, Eeckhout, "Statistically rigorous Java performance evaluation" (OOPSLA 2007) and Kalibera,
Jones, "Rigorous benchmarking in reasonable time" (ISMM 2013), for repeating at the level where the variation is;
Hesterberg, "What teachers should know about the bootstrap" (The American Statistician 69, 2015), for the expanded
percentile interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

ALPHA = 0.05
"""Share of intervals that may miss the true ratio."""

LOOKS = (0.25, 0.5, 1.0)
"""After what parts of a measurement it asks whether it is done; each look has an equal part of ALPHA (Bonferroni)."""

MOST_LOOKS = 8
"""How often a measurement that lasts as long as it is given may ask: after 8, 16, 32 sittings and so on."""

POWER = 0.95
"""How probable it is that the smallest visible change would have been found."""

PRECISION = 0.01
"""Half width, relative, at which an interval is narrow enough."""

RESAMPLES = 4000
"""Resamples of a bootstrap."""

FEWEST_SITTINGS = 8
"""Below this many sittings the bootstrap's intervals miss too often, even expanded ones."""


class Verdict(StrEnum):
    """What a user may say of a model beside the baseline."""

    FASTER = "faster"
    SLOWER = "slower"
    UNCHANGED = "no detectable change"


@dataclass(frozen=True)
class Ratio:
    """Time of a candidate over time of the baseline: the median, and its interval."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's width, as a logarithm, which is relative."""
        return math.log(self.high / self.low) / 2

    @property
    def reach(self) -> float:
        """How far from 1 the interval reaches, as a factor of at least 1."""
        return max(self.high, 1 / self.low)


def paired_ratio(candidate: Array, baseline: Array, seed: int = 0, looks: int = len(LOOKS)) -> Ratio:
    """The median of the paired ratios and its interval.

    The interval is meant to be taken at each of the looks: all of them together hold with probability ``1 - ALPHA``.

    Args:
        candidate: seconds, [sittings, rounds].
        baseline: of the same rounds.
        seed: of the bootstrap, which is then the same each time.
        looks: how often the interval may be taken.
    """
    logs = np.log(candidate) - np.log(baseline)
    sittings = len(logs)
    chosen = np.random.default_rng(seed).integers(0, sittings, (RESAMPLES, sittings))
    medians = np.median(logs[chosen].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, _expanded_levels(sittings, ALPHA / looks))
    return Ratio(float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high)))


def decide(ratio: Ratio, noise: Ratio) -> Verdict:
    """A difference counts where its interval excludes 1 and its median is out of the reach of the noise.

    Args:
        ratio: of a candidate to the baseline.
        noise: of a second set of the baseline's own sessions to the baseline, measured in the same rounds. Its reach is
            the farther end of its interval, in either direction.
    """
    if ratio.low > 1 and ratio.median > noise.reach:
        return Verdict.SLOWER
    if ratio.high < 1 and ratio.median < 1 / noise.reach:
        return Verdict.FASTER
    return Verdict.UNCHANGED


def visible_change(ratio: Ratio, noise: Ratio, sittings: int, looks: int = len(LOOKS)) -> float:
    """The smallest change, relative, that such a measurement finds with a probability of POWER.

    `decide` finds a change whose interval excludes 1 and whose median is beyond the reach of the noise, so the true one
    has to lie as far behind the farther of these as both medians scatter, which their intervals tell.

    Args:
        ratio: of a candidate to the baseline.
        noise: of the baseline to itself.
        sittings: that were measured.
        looks: how often the interval may have been taken.
    """
    scatter = math.hypot(ratio.half_width, noise.half_width) / student_quantile(1 - ALPHA / looks / 2, sittings - 1)
    needed = max(ratio.half_width, math.log(noise.reach))
    return math.expm1(needed + student_quantile(POWER, sittings - 1) * scatter)


def looks(sittings: int) -> tuple[int, ...]:
    """After how many sittings to ask whether the intervals are narrow enough: fixed beforehand."""
    return tuple(sorted({max(FEWEST_SITTINGS, math.ceil(sittings * part)) for part in LOOKS}))


def doubling_looks() -> tuple[int, ...]:
    """The same where the time is given and the number of sittings is not."""
    return tuple(FEWEST_SITTINGS << number for number in range(MOST_LOOKS))


def is_narrow(ratios: list[Ratio]) -> bool:
    """Whether more rounds are not worth their time."""
    return all(ratio.half_width <= PRECISION for ratio in ratios)


def _expanded_levels(count: int, alpha: float) -> tuple[float, float]:
    """Quantiles of the bootstrap that are as wide for few observations as Student's t is (Hesterberg 2015, 5.3)."""
    wide = math.sqrt(count / (count - 1)) * student_quantile(1 - alpha / 2, count - 1)
    level = NormalDist().cdf(-wide)
    return level, 1 - level


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t (Abramowitz and Stegun 26.7.5; three digits from five degrees of freedom on)."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))
