"""Finds inner values with another meaning in the candidate: a name is a hint, not a contract.

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

from bnfold.errors import IncomparableError
from bnfold.runtimes.inputs import Feeds, Sample
from bnfold.verification.noise import measure
from bnfold.verification.observe import Observation, is_float
from bnfold.verification.subject import Run, Subject

AnyArray = npt.NDArray[Any]

Seen = Mapping[str, Sequence[tuple[Sample, Observation]]]

GROUPS = 8
"""How many groups the channels of a difference are dealt into. Each must show behind it on some input."""

NEAREST = 8
"""How many values behind a difference are compared, besides the outputs."""

MARGIN = 4.0
"""How many times its allowance a value must move by to show a difference."""

SECONDS = 60.0
"""How long the search may take. Differences that are left then count as any other."""


class Pair(Protocol):
    """The questions to the two models."""

    reference: Subject
    candidate: Subject
    shared: list[str]

    def start_both(self, names: Sequence[str]) -> tuple[Run, Run]:
        """Start both models, ready to give the named values."""
        ...


def find_taken_back(pair: Pair, failing: Seen, seen: Seen) -> list[str]:
    """The inner values whose difference is taken back behind them; none where an output differs.

    Args:
        pair: the two models.
        failing: the values that differ.
        seen: the observations of each value on each input.
    """
    if any(name in failing for name in pair.reference.outputs):
        return []
    agreeing = [name for name in (*pair.shared, *pair.reference.outputs) if name in seen and name not in failing]
    deadline = time.monotonic() + SECONDS
    taken: dict[str, None] = {}
    for name in pair.shared:
        if name in failing and name not in taken and time.monotonic() < deadline:
            root = _Root(pair, name, _behind(pair.reference, name, agreeing), seen)
            try:
                taken |= dict.fromkeys(root.explain([other for other in failing if other not in taken]))
            except (
                IncomparableError
            ):  # the reference does not run with a value in the place of its own: nothing is shown
                continue
    return list(taken)


def _behind(reference: Subject, name: str, agreeing: Sequence[str]) -> list[str]:
    """The nearest values behind a value, and the outputs."""
    behind = [other for other in agreeing if reference.descends(other, name)]
    return list(dict.fromkeys([*behind[:NEAREST], *(other for other in behind if other in reference.outputs)]))


@dataclass(frozen=True, eq=False)
class _Root:
    """A value at which a difference may begin.

    Attributes:
        pair: the two models.
        name: the name of the value.
        behind: values behind it that agree.
        seen: the observations of each value on each input.
    """

    pair: Pair
    name: str
    behind: Sequence[str]
    seen: Seen

    def explain(self, failing: Sequence[str]) -> list[str]:
        """This value and all values that differ because of it; none where something hides the difference."""
        samples = [sample for sample, observation in self.seen[self.name] if observation.reason]
        if not self.behind:
            return []
        others = [other for other in failing if other != self.name and self.pair.reference.descends(other, self.name)]
        first, second = self.pair.start_both([self.name, *others])
        run = self.pair.reference.start_replacing(self.name, [*self.behind, *others])
        reference = self.pair.reference.start(self.behind)
        differing: set[tuple[int, int]] = set()
        shown: set[tuple[int, int]] = set()
        moving: set[str] = set()
        alike = set(others)
        for sample in samples:
            (expected, *_), (actual, *theirs) = first(sample.feeds), second(sample.feeds)
            if not is_float(expected) or not np.isfinite(actual).all():
                return []
            was = reference(sample.feeds)
            for key, value in _parts(expected, actual, self._allowed(self.name, sample)):
                differing.add(key)
                if key not in shown and (moved := self._moved(run, sample, value, was)):
                    shown.add(key)
                    moving |= moved
            outcome = run({**sample.feeds, self.name: actual})[len(self.behind) :]
            alike -= {
                other
                for other, mine, its in zip(others, outcome, theirs, strict=True)
                if not _is_alike(mine, its, self._allowed(other, sample))
            }
        return (
            []
            if differing - shown or self._is_hidden(moving)
            else [self.name, *(other for other in others if other in alike)]
        )

    def _moved(self, run: Run, sample: Sample, value: AnyArray, was: Sequence[AnyArray]) -> set[str]:
        """The values behind this one that the candidate's value in its place moves farther than is allowed."""
        feeds: Feeds = {**sample.feeds, self.name: value}
        moved = run(feeds)[: len(self.behind)]
        return {
            other
            for other, before, after in zip(self.behind, was, moved, strict=True)
            if not _is_alike(before, after, MARGIN * self._allowed(other, sample))
        }

    def _is_hidden(self, moving: set[str]) -> bool:
        """Whether an output behind this value neither moves nor has a value that moves on its way."""
        reference = self.pair.reference
        outputs = [name for name in self.behind if name in reference.outputs and name not in moving]
        return any(not any(reference.descends(output, other) for other in moving) for output in outputs)

    def _allowed(self, name: str, sample: Sample) -> float:
        """How far a value may move, relative to its largest element: by rounding, or as far as the candidate's does."""
        observations = [observation for at, observation in self.seen[name] if at is sample] or [
            observation for _, observation in self.seen[name]
        ]
        budget = max(observation.judgement.budget for observation in observations)
        is_failing = any(observation.reason for observation in observations)
        return budget if is_failing else max(budget, *(observation.judgement.error for observation in observations))


def _is_alike(expected: AnyArray, actual: AnyArray, allowed: float) -> bool:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return False
    if not is_float(expected):
        return bool(np.array_equal(expected, actual))
    return bool(measure(actual, expected).peak[0] <= allowed * measure(expected).peak[0])


def _parts(expected: AnyArray, actual: AnyArray, allowed: float) -> Iterator[tuple[tuple[int, int], AnyArray]]:
    """The reference's value with a part of the candidate's in it, for each axis and group of channels.

    Channels that differ by no more than is allowed of their own size are no part of the difference: nothing behind
    would show them.
    """
    axes = {0: [], 1: [0], 3: [1, 2]}.get(expected.ndim, [1])
    for axis in axes:
        others = tuple(other for other in range(expected.ndim) if other != axis)
        distances = np.abs(actual.astype(np.float64) - expected).max(axis=others, initial=0.0)
        sizes = np.abs(expected.astype(np.float64)).max(axis=others, initial=0.0)
        channels = np.flatnonzero(distances > allowed * sizes)
        for group in np.unique(channels % GROUPS):
            index = (slice(None),) * axis + (channels[channels % GROUPS == group],)
            mixed = expected.copy()
            mixed[index] = actual[index]
            yield (axis, int(group)), mixed
