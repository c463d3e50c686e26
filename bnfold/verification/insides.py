"""Inner values that mean something else in the candidate: a name is a hint, not a contract.

Channels that two layers exchange, or scale up and down again, differ inside and nowhere else. Such a difference is
taken back if what follows would show it, and does not: the reference is run once more, with the candidate's value in
the place of its own. Where values behind it then move, and those of the candidate agree all the same, the candidate
makes up for it. Where nothing moves, something hides the difference (a softmax, a dead Relu), and it decides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bnfold.runtimes.inputs import Feeds, Sample
from bnfold.verification.noise import measure
from bnfold.verification.observe import Observation, is_float
from bnfold.verification.subject import Run, Subject

AnyArray = npt.NDArray[Any]

Seen = Mapping[str, Sequence[tuple[Sample, Observation]]]

GROUPS = 8
"""Every so many channels are a part of a difference, each of which must show behind it on some input."""

NEAREST = 8
"""How many values behind a difference are looked at, beside the outputs."""

MARGIN = 4.0
"""How many times what is allowed a value must move by, to show a difference."""

SECONDS = 60.0
"""How long all of it may take; what is left over then decides as any difference does."""


class Pair(Protocol):
    """What is asked of the two models."""

    reference: Subject
    candidate: Subject
    shared: list[str]

    def start_both(self, names: Sequence[str]) -> tuple[Run, Run]:
        """Both, ready to give the named values."""
        ...


def find_taken_back(pair: Pair, failing: Seen, seen: Seen) -> list[str]:
    """The inner values that differ, and whose difference is taken back behind them; none where an output differs.

    Args:
        pair: the two models.
        failing: the values that differ.
        seen: what each input shows of each value.
    """
    if any(name in failing for name in pair.reference.outputs):
        return []
    agreeing = [name for name in (*pair.shared, *pair.reference.outputs) if name in seen and name not in failing]
    deadline = time.monotonic() + SECONDS
    taken: dict[str, None] = {}
    for name in pair.shared:
        if name in failing and name not in taken and time.monotonic() < deadline:
            root = _Root(pair, name, _behind(pair.reference, name, agreeing), seen)
            taken |= dict.fromkeys(root.explain([other for other in failing if other not in taken]))
    return list(taken)


def _behind(reference: Subject, name: str, agreeing: Sequence[str]) -> list[str]:
    """The nearest values behind one, and the outputs."""
    behind = [other for other in agreeing if reference.descends(other, name)]
    return list(dict.fromkeys([*behind[:NEAREST], *(other for other in behind if other in reference.outputs)]))


@dataclass(frozen=True, eq=False)
class _Root:
    """A value with which a difference may begin.

    Attributes:
        pair: the two models.
        name: of the value.
        behind: values behind it that agree.
        seen: what each input shows of each value.
    """

    pair: Pair
    name: str
    behind: Sequence[str]
    seen: Seen

    def explain(self, failing: Sequence[str]) -> list[str]:
        """This value and all that differs in consequence; none where something hides the difference."""
        samples = [sample for sample, each in self.seen[self.name] if each.reason]
        if not self.behind:
            return []
        others = [each for each in failing if each != self.name and self.pair.reference.descends(each, self.name)]
        first, second = self.pair.start_both([self.name, *others])
        run = self.pair.reference.start_replacing(self.name, [*self.behind, *others])
        reference = self.pair.reference.start(self.behind)
        differing: set[tuple[int, int]] = set()
        shown: set[tuple[int, int]] = set()
        alike = set(others)
        for sample in samples:
            (expected, *_), (actual, *theirs) = first(sample.feeds), second(sample.feeds)
            if not is_float(expected) or not np.isfinite(actual).all():
                return []
            was = reference(sample.feeds)
            for key, value in _parts(expected, actual):
                differing.add(key)
                if key not in shown and self._shows(run, sample, value, was):
                    shown.add(key)
            made = run({**sample.feeds, self.name: actual})[len(self.behind) :]
            alike -= {
                other
                for other, mine, its in zip(others, made, theirs, strict=True)
                if not _is_alike(mine, its, self._allowed(other, sample))
            }
        return [] if differing - shown else [self.name, *(each for each in others if each in alike)]

    def _shows(self, run: Run, sample: Sample, value: AnyArray, was: Sequence[AnyArray]) -> bool:
        """Whether another value in the place of this one moves what is behind it, farther than is allowed."""
        feeds: Feeds = {**sample.feeds, self.name: value}
        moved = run(feeds)[: len(self.behind)]
        return any(
            not _is_alike(before, after, MARGIN * self._allowed(other, sample))
            for other, before, after in zip(self.behind, was, moved, strict=True)
        )

    def _allowed(self, name: str, sample: Sample) -> float:
        """How far a value may move, over its largest element: by rounding, or as far as the candidate's does."""
        found = [each for at, each in self.seen[name] if at is sample] or [each for _, each in self.seen[name]]
        budget = max(each.judgement.budget for each in found)
        return budget if any(each.reason for each in found) else max(budget, *(each.judgement.error for each in found))


def _is_alike(expected: AnyArray, actual: AnyArray, allowed: float) -> bool:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return False
    if not is_float(expected):
        return bool(np.array_equal(expected, actual))
    return bool(measure(actual, expected).peak[0] <= allowed * measure(expected).peak[0])


def _parts(expected: AnyArray, actual: AnyArray) -> Iterator[tuple[tuple[int, int], AnyArray]]:
    """The reference's value with a part of the candidate's in it, by axis and group of its channels."""
    axes = {0: [], 1: [0], 3: [1, 2]}.get(expected.ndim, [1])
    for axis in axes:
        others = tuple(each for each in range(expected.ndim) if each != axis)
        channels = np.flatnonzero((expected != actual).any(axis=others))
        for group in np.unique(channels % GROUPS):
            index = (slice(None),) * axis + (channels[channels % GROUPS == group],)
            mixed = expected.copy()
            mixed[index] = actual[index]
            yield (axis, int(group)), mixed
