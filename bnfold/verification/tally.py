"""Judges outputs by a gate's conditions.

An output is judged over all inputs together: the ratio of signal to difference is that of their sums of squares, in
float64, and the share of equal argmax is over all positions. It passes if each condition does that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor, hypot, inf, isfinite, log10
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import plural
from bnfold.runtimes.inputs import Sample
from bnfold.verification.gate import Gate
from bnfold.verification.metrics import Agreement, Counts, agree_on_argmax, class_axis, count_nonfinite, signal_to_noise
from bnfold.verification.noise import Judgement, relative
from bnfold.verification.observe import Observation, Place, is_float, worst_place
from bnfold.verification.verdict import ValueVerdict

AnyArray = npt.NDArray[Any]


SILENT = "void: "
"""How the reason begins if nothing that was asked for can be said of an output."""


class Tally:
    """One output over all inputs: what the conditions of a gate are about.

    Args:
        name: the name of the output.
        gate: its tolerance, if it has one, finds the worst element.

    Attributes:
        is_discrete: whether it holds integers, truth values or strings.
        farthest: the largest difference.
    """

    def __init__(self, name: str, gate: Gate | None = None) -> None:
        self.name = name
        self._gate = gate or Gate()
        self._signal = self._difference = 0.0
        self._counts = Counts(0, 0)
        self._agreeing = self._positions = 0
        self._margin = inf
        self._unequal = 0
        self.is_discrete = False
        self._largest = self.farthest = self._excess = 0.0
        self._place: Place | None = None
        self._sample = ""

    @property
    def snr_db(self) -> float:
        """The ratio of signal to difference, in decibels."""
        return signal_to_noise(self._signal, self._difference) if isfinite(self._difference) else -inf

    @property
    def has_strays(self) -> bool:
        """Whether one of the two models has a number where the other has none."""
        return bool(self._counts.created or self._counts.lost)

    @property
    def share(self) -> float | None:
        """The share of equal argmax, or of equal integers; None where there are neither."""
        return self._agreeing / self._positions if self._positions else None

    def add(self, sample: Sample, expected: AnyArray, actual: AnyArray) -> None:
        """Add the output on one input, in the two models."""
        if is_float(expected):
            self._add_numbers(sample, expected, actual)
            return
        self.is_discrete = True
        self._counts += Counts(0, expected.size)
        unequal = int((expected != actual).sum())
        self._agreeing += expected.size - unequal
        self._positions += expected.size
        if unequal > self._unequal or not self._sample:
            self._sample, self._place = sample.label, worst_place(expected, actual) if unequal else None
        self._unequal += unequal

    def _add_numbers(self, sample: Sample, expected: AnyArray, actual: AnyArray) -> None:
        counts = count_nonfinite(expected, actual)
        self._counts += counts
        wide, other = expected.astype(np.float64), actual.astype(np.float64)
        finite = np.isfinite(wide) & np.isfinite(other)
        mine, distance = np.abs(wide[finite]), np.abs(other[finite] - wide[finite])
        self._signal, self._difference = hypot(self._signal, _norm(mine)), hypot(self._difference, _norm(distance))
        self._largest = max(self._largest, float(mine.max(initial=0.0)))
        farthest = float(distance.max(initial=0.0))
        excess = self._excess_of(distance, mine) if self._gate.has_tolerance else farthest
        if not self._sample or excess > self._excess or counts.created or counts.lost:
            self._sample = sample.label
            self._place = worst_place(expected, actual) if expected.size else None
        self._excess, self.farthest = max(self._excess, excess), max(self.farthest, farthest)
        if (agreement := agree_on_argmax(expected, actual)) is not None:
            positions = expected.size // expected.shape[class_axis(expected) or 0]
            self._agreeing += round(agreement.share * positions)
            self._positions += positions
            self._margin = min(self._margin, agreement.margin)

    def _excess_of(self, distance: AnyArray, mine: AnyArray) -> float:
        allowed = (self._gate.atol or 0.0) + (self._gate.rtol or 0.0) * mine
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(distance > 0, distance / allowed, 0.0)
        return float(ratios.max(initial=0.0))

    def judge(self, gate: Gate, provider: str | None = None) -> ValueVerdict:
        """The verdict of a gate on the output."""
        conditions = list(self._conditions(gate))
        excess = max((factor for factor, _ in conditions), default=0.0)
        reason = "; ".join(sentence for factor, sentence in conditions if factor > 1)
        if not reason and self._counts.size:
            reason = self._silence(gate)
        bound = (gate.atol or 0.0) + (gate.rtol or 0.0) * self._largest if gate.has_tolerance else inf
        error, budget = relative(self.farthest, self._largest), relative(bound, self._largest)
        if self.is_discrete:
            error, budget = self._unequal / max(self._counts.size, 1), 1 - _or_all(gate.min_argmax)
        share = self.share
        observation = Observation(
            Judgement(error, budget, excess, "gate"),
            self._counts,
            (-inf if self._unequal else inf) if self.is_discrete else self.snr_db,
            reason,
            is_void=reason.startswith(SILENT),
            place=self._place if reason else None,
            agreement=None if share is None else Agreement(share, 0.0 if self.is_discrete else self._margin),
        )
        return ValueVerdict(self.name, observation, self._sample, reason, provider or "cpu", provider is not None)

    def _conditions(self, gate: Gate) -> Iterator[tuple[float, str]]:
        """The conditions: how much of what is allowed the output uses, up to 1, and what to say if that is more."""
        counts, share = self._counts, self.share
        if counts.created:
            what = f"{counts.nan_created} NaN and {counts.inf_created} infinite"
            yield inf, f"{what} where the reference has numbers"
        if counts.lost:
            yield inf, f"{plural(counts.lost, 'number')} where the reference has NaN or infinity"
        if self.is_discrete:
            if share is not None:
                verb = "is" if self._unequal == 1 else "are"
                used = _part(1 - share, 1 - _or_all(gate.min_argmax))
                yield used, f"{self._unequal} of {plural(counts.size, 'element')} {verb} unequal"
            return
        if gate.has_tolerance:
            yield self._excess, f"{self._excess:.3g} times the tolerance"
        if gate.min_snr is not None:
            used = float(10 ** min((gate.min_snr - self.snr_db) / 20, 300.0))
            yield used, f"{self.snr_db:.1f} dB, less than {gate.min_snr:g} dB"
        if gate.min_argmax is not None and share is not None:
            used = _part(1 - share, 1 - gate.min_argmax)
            yield used, f"argmax agrees in {share:.2%}, less than {gate.min_argmax:.2%}"

    def _silence(self, gate: Gate) -> str:
        """Why nothing that the gate asks for can be said; empty where something can."""
        if self.is_discrete:
            return ""
        if self._counts.is_void:
            return f"{SILENT}the reference has no finite number"
        if not self._signal and not gate.has_tolerance:
            return f"{SILENT}both are zero on every input, which has no ratio and no largest class; --atol judges it"
        if gate.min_snr is None and not gate.has_tolerance and self.share is None:
            return f"{SILENT}it has no classes for an argmax; --min-snr or --atol judges it"
        return ""


def _norm(sizes: AnyArray) -> float:
    """The root of the sum of squares, which may be beyond what their type holds."""
    largest = float(sizes.max(initial=0.0))
    return largest * float(np.sqrt(np.square(sizes / largest).sum())) if largest else 0.0


UNLIKE = 10.0
"""Decibels below which outputs have little in common, so that no tolerance is proposed."""


def would_pass(tallies: Sequence[Tally]) -> str:
    """A sentence on the options with which all outputs would pass."""
    if any(tally.has_strays for tally in tallies):
        return "no tolerance would pass, since numbers came or went"
    shares = [tally.share for tally in tallies if tally.share is not None]
    lowest = min((tally.snr_db for tally in tallies if not tally.is_discrete), default=inf)
    if lowest < UNLIKE:
        return "that is another model, and no tolerance"
    argmax = f" --min-argmax {floor(min(shares) * 1e4) / 1e4:g}" if shares and min(shares) < 1 else ""
    tolerance = f"--atol {_rounded_up(max(tally.farthest for tally in tallies)):g}"
    tolerance += argmax if any(tally.is_discrete for tally in tallies) else ""
    ratio = f"--min-snr {floor(lowest * 10) / 10:g}{argmax}, or " if isfinite(lowest) else ""
    return f"{ratio}{tolerance} would pass"


def _part(used: float, allowed: float) -> float:
    """`used` over `allowed`; infinite for anything over nothing."""
    return used / allowed if allowed else (inf if used else 0.0)


def _or_all(share: float | None) -> float:
    return 1.0 if share is None else share


def _rounded_up(value: float) -> float:
    """The next number of two digits."""
    if not value:
        return 0.0
    unit = 10.0 ** (floor(log10(value)) - 1)
    return ceil(value / unit) * unit
