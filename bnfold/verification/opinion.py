"""Second opinions on seeming differences: the truth in float64, and values with another name or meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from bnfold.runtimes.inputs import Sample
from bnfold.verification.insides import Pair, find_taken_back
from bnfold.verification.noise import measure
from bnfold.verification.observe import Observation, is_float
from bnfold.verification.subject import Subject
from bnfold.verification.truth import Start, find_near_truth

AnyArray = npt.NDArray[Any]

BYTES = 512 << 20
"""The bytes of inner values that are compared at a time."""

NEIGHBOURS = 8
"""How many later values are compared with one that may have their content under an earlier name."""

LISTED = 3
"""How many values a sentence names at most."""

Seen = dict[str, list[tuple[Sample, Observation]]]


def settle(pair: Pair, seen: Seen, findings: list[str], *, strict_inside: bool = False) -> Seen:
    """The observations, with those that a second opinion clears marked as passing.

    1. The reference may be farther from the truth than its noise tells. A candidate that is as near to the float64
       result as the reference is passes, within the same factor.
    2. A tool may give a fused operator the name of its first part. An inner value that equals a later value of the
       reference, one that the candidate no longer has, passes as renamed.
    3. Two layers may exchange channels, or scale them up and down again: an inner difference that is taken back, as
       `bnfold.verification.insides` finds out, passes as another meaning, unless that is not allowed.
    """
    failing = {
        name: observations
        for name, observations in seen.items()
        if any(observation.reason for _, observation in observations)
    }
    if not failing:
        return seen
    renamed = _find_renamed(pair, failing, findings)
    rest = {name: observations for name, observations in failing.items() if name not in renamed}
    taken = [] if strict_inside else find_taken_back(pair, rest, seen)
    findings += _note_meanings(taken)
    cleared = {
        name: [(sample, _cleared(observation)) for sample, observation in seen[name]] for name in (*renamed, *taken)
    }
    return ask_truth(pair.reference, lambda names: pair.start_both(names)[1], seen | cleared, pair.shared, findings)


def ask_truth(reference: Subject, start: Start, seen: Seen, shared: Sequence[str], findings: list[str]) -> Seen:
    """The observations, with those on which the candidate is as near to the float64 result marked as passing.

    Args:
        reference: the reference.
        start: starts the candidate, for the names and feeds of the reference.
        seen: the observations of each value on each input.
        shared: inner values that both have, in order.
        findings: gets a sentence about these values.
    """
    near = find_near_truth(reference, start, seen, shared)
    if near:
        names = ", ".join(sorted({name for name, _ in near}))
        findings.append(f"as near to the float64 result as the reference, though not to the reference: {names}")
    return {
        name: [
            (sample, _cleared(observation) if (name, id(sample)) in near else observation)
            for sample, observation in observations
        ]
        for name, observations in seen.items()
    }


def _note_meanings(names: list[str]) -> list[str]:
    """A sentence about values whose difference is taken back."""
    if not names:
        return []
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    listed = ", ".join(map(repr, names[:LISTED]))
    return [f"{listed}{rest}: something else in the candidate, and what follows agrees"]


def _cleared(observation: Observation) -> Observation:
    return replace(observation, reason="", place=None)


def _find_renamed(pair: Pair, failing: Seen, findings: list[str]) -> set[str]:
    """Inner values that equal a later value of the reference, one that the candidate does not have."""
    if pair.reference.kind != pair.candidate.kind:
        return set()
    theirs = {*pair.candidate.values(), *pair.candidate.outputs}
    gone = [name for name in pair.reference.values() if name not in theirs]
    later: dict[str, list[str]] = {}
    for name in failing:
        if name not in pair.reference.outputs:
            later[name] = [other for other in gone if pair.reference.descends(other, name)][:NEIGHBOURS]
    samples = {id(sample): sample for name in later for sample, _ in failing[name]}
    if not samples:
        return set()
    sizes = pair.reference.measure(next(iter(samples.values())).feeds)
    for names in _grouped(later, sizes):
        others = list(dict.fromkeys(other for name in names for other in later[name]))
        reference, candidate = pair.reference.start(others), pair.start_both(names)[1]
        for sample in samples.values():
            budgets = {
                name: observation.judgement.budget
                for name in names
                for at, observation in failing[name]
                if at is sample and later[name]
            }
            if budgets:
                expected = dict(zip(others, reference(sample.feeds), strict=True))
                actual = dict(zip(names, candidate(sample.feeds), strict=True))
                for name, budget in budgets.items():
                    later[name] = [other for other in later[name] if _is_same(expected[other], actual[name], budget)]
    renamed = {name: matches[0] for name, matches in later.items() if matches}
    findings += _note_renamed(renamed)
    return set(renamed)


def _grouped(later: Mapping[str, list[str]], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names, in runs of which the values together with those to compare them with fit into memory."""
    names, others, room = list[str](), set[str](), BYTES
    for name in (name for name, candidates in later.items() if candidates):
        fresh = {name, *later[name]} - others
        size = sum(sizes.get(other, 0) for other in fresh)
        if names and size > room:
            yield names
            names, others, room = [], set(), BYTES
            size = sum(sizes.get(other, 0) for other in {name, *later[name]})
        names.append(name)
        others |= {name, *later[name]}
        room -= size
    if names:
        yield names


def _note_renamed(renamed: Mapping[str, str]) -> list[str]:
    """A sentence about values whose content has another name in the candidate."""
    pairs = [f"inner value {name!r} holds what {other!r} held" for name, other in renamed.items()]
    if len(pairs) <= LISTED:
        return pairs
    return [f"{', '.join(pairs[:LISTED])}, and so on: {len(pairs)} in all"]


def _is_same(expected: AnyArray, actual: AnyArray, budget: float) -> bool:
    if expected.shape != actual.shape or expected.dtype != actual.dtype or not is_float(expected):
        return False
    return bool(measure(actual, expected).peak[0] <= budget * measure(expected).peak[0])
