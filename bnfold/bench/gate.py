"""Decides whether a measured ratio meets a demand: yes, no, or not to be told from these timings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bnfold.bench.statistics import Ratio, Verdict, decide


class Answer(StrEnum):
    """The answer of a gate for one model, provider and level."""

    MET = "met"
    NOT_MET = "not met"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True)
class Gate:
    """The demand on each model, compared with the baseline.

    Attributes:
        speedup: how many times as fast it has to be at least; None where that is not asked.
        no_slower: whether it must not be slower.
    """

    speedup: float | None = None
    no_slower: bool = False

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked."""
        return self.speedup is None and not self.no_slower

    def answer(self, ratio: Ratio, noise: Ratio) -> Answer:
        """The answer for the interval of a candidate's ratio, given that of the noise.

        A speedup is met where the whole interval lies beyond it and is out of the reach of the noise, and not met where
        none of the interval reaches it. "Not slower" is met where the candidate is shown to be faster, or its whole
        interval lies at or below 1, and not met where it is shown to be slower.
        """
        verdict = decide(ratio, noise)
        if self.no_slower and verdict is Verdict.SLOWER:
            return Answer.NOT_MET
        if self.speedup is None:
            return Answer.MET if ratio.high <= 1 else Answer.UNKNOWN
        wanted = 1 / self.speedup
        if ratio.low > wanted:
            return Answer.NOT_MET
        is_shown = verdict is Verdict.FASTER or self.speedup <= 1
        return Answer.MET if ratio.high <= wanted and is_shown else Answer.UNKNOWN

    def passes(self, answer: Answer) -> bool:
        """Whether an answer lets a pipeline go on. A speedup must be shown to pass, a slowdown to fail."""
        return answer is Answer.MET or (answer is Answer.UNKNOWN and self.speedup is None)
