"""Draws conclusions from paired timings.

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
"""The share of intervals that may miss the true ratio."""

LOOKS = (0.25, 0.5, 1.0)
"""The parts of a measurement after which it asks whether it is done. The looks share ALPHA equally (Bonferroni)."""

MOST_LOOKS = 8
"""How many times a measurement with a time limit may ask: after 8, 16, 32 sittings and so on."""

POWER = 0.95
"""How probable it is that the smallest visible change would have been found."""

PRECISION = 0.01
"""The relative half width at which an interval is narrow enough."""

RESAMPLES = 4000
"""How many resamples a bootstrap has."""

FEWEST_SITTINGS = 8
"""The fewest sittings for a bootstrap. With fewer, even its expanded intervals miss too often."""


class Verdict(StrEnum):
    """The conclusion on a model, compared with the baseline."""

    FASTER = "faster"
    SLOWER = "slower"
    UNCHANGED = "no detectable change"


@dataclass(frozen=True)
class Ratio:
    """The time of a candidate over that of the baseline: the median, and its interval."""

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
        baseline: seconds of the same rounds.
        seed: the seed of the bootstrap, which is then the same each time.
        looks: how many times the interval may be taken.
    """
    logs = np.log(candidate) - np.log(baseline)
    sittings = len(logs)
    chosen = np.random.default_rng(seed).integers(0, sittings, (RESAMPLES, sittings))
    medians = np.median(logs[chosen].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, _expanded_levels(sittings, ALPHA / looks))
    return Ratio(float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high)))


def decide(ratio: Ratio, noise: Ratio) -> Verdict:
    """Decide whether a difference counts: its interval excludes 1, and its median is out of the reach of the noise.

    Args:
        ratio: the ratio of a candidate to the baseline.
        noise: the ratio of a second set of the baseline's sessions to the first, measured in the same rounds. Its reach
            is the farther end of its interval, in either direction.
    """
    if ratio.low > 1 and ratio.median > noise.reach:
        return Verdict.SLOWER
    if ratio.high < 1 and ratio.median < 1 / noise.reach:
        return Verdict.FASTER
    return Verdict.UNCHANGED


def visible_change(ratio: Ratio, noise: Ratio, sittings: int, looks: int = len(LOOKS)) -> float:
    """The smallest relative change that such a measurement finds with a probability of POWER.

    `decide` finds a change whose interval excludes 1 and whose median is beyond the reach of the noise, so the true one
    has to lie as far behind the farther of these as both medians scatter, which their intervals tell.

    Args:
        ratio: the ratio of a candidate to the baseline.
        noise: the ratio of the baseline to itself.
        sittings: the number of sittings that were measured.
        looks: how many times the interval may have been taken.
    """
    scatter = math.hypot(ratio.half_width, noise.half_width) / student_quantile(1 - ALPHA / looks / 2, sittings - 1)
    needed = max(ratio.half_width, math.log(noise.reach))
    return math.expm1(needed + student_quantile(POWER, sittings - 1) * scatter)


def looks(sittings: int) -> tuple[int, ...]:
    """The numbers of sittings after which to ask whether the intervals are narrow enough. They are fixed beforehand."""
    return tuple(sorted({max(FEWEST_SITTINGS, math.ceil(sittings * part)) for part in LOOKS}))


def doubling_looks() -> tuple[int, ...]:
    """The same, where the time is given in place of the number of sittings."""
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
