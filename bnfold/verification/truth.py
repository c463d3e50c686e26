"""Asks float64 where a candidate differs from the reference by more than the reference's noise.

The reference itself may be farther from the truth than its noise tells: a sum over a thousand nearly equal numbers is
off by the same each time. A candidate that is as near to the float64 result as the reference is passes.

The truth is computed from inner values on which both models agree, the nearest first: that takes a few operators where
the whole model takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.runtimes.inputs import Sample
from bnfold.verification.metrics import spacing
from bnfold.verification.noise import Extent, count_distinct, judge, measure, no_shares, shares_of_elements
from bnfold.verification.observe import Observation, is_float
from bnfold.verification.subject import Cut, Run, Subject

AnyArray = npt.NDArray[Any]

Seen = Mapping[str, Sequence[tuple[Sample, Observation]]]

SECONDS = 20.0
"""How long float64 may take for a set of inputs, in this process's time: other work on the machine decides nothing."""

BYTES = 512 << 20
"""The bytes of inner values above which float64 is not tried."""

TRUST = 16.0
"""How many budgets the reference may lie from the truth. If it is farther away, the evaluation is wrong."""

STEPS = (0, 8, 64)
"""How many of the last values that agree an evaluation leaves out. The one after these is from the inputs on."""


Start = Callable[[Sequence[str]], Run]
"""Makes a model ready to give some values."""


def find_near_truth(reference: Subject, start: Start, seen: Seen, shared: Sequence[str]) -> set[tuple[str, int]]:
    """Failing values on which the candidate is as near to the truth, each with an input (by identity).

    Args:
        reference: the reference.
        start: starts the candidate, for the names and feeds of the reference.
        seen: the observations of each value on each input.
        shared: inner values that both models have, in order. Those that fail are left out.
    """
    failing = {
        name: observations for name, observations in seen.items() if any(each.reason for _, each in observations)
    }
    samples = {id(sample): sample for observations in failing.values() for sample, each in observations if each.reason}
    near: set[tuple[str, int]] = set()
    for sample in samples.values():
        here = [(name, each) for name, observations in failing.items() for at, each in observations if at is sample]
        differing = {name: each for name, each in here if each.reason}
        agreeing = [name for name in shared if name not in differing]
        near.update((name, id(sample)) for name in _find_near(reference, start, sample, differing, agreeing))
    return near


def _find_near(
    reference: Subject, start: Start, sample: Sample, differing: Mapping[str, Observation], agreeing: Sequence[str]
) -> set[str]:
    """Those of one input."""
    sizes, deadline = reference.measure(sample.feeds), time.process_time() + SECONDS
    near: set[str] = set()
    left = list(differing)
    candidate = dict(zip(left, start(left)(sample.feeds), strict=True))
    for cut in _cuts(reference, left, agreeing):
        seconds = deadline - time.process_time()
        if seconds < 0 or sum(sizes.get(name, 0) for name in (*cut.given, *cut.made)) > BYTES:
            break
        wanted = [*cut.given, *left]
        expected = dict(zip(wanted, reference.start(wanted)(sample.feeds), strict=True))
        given = {name: expected[name] for name in cut.given}
        truth = reference.evaluate_exactly(sample.feeds, left, seconds, given)
        for name, exact in zip(left, truth or (), strict=False):
            if _is_as_near(exact, expected[name], candidate[name], differing[name]):
                near.add(name)
        left = [name for name in left if name not in near]
        if not left:
            break
    return near


def _cuts(reference: Subject, names: list[str], agreeing: Sequence[str]) -> Iterator[Cut]:
    """Parts of the model that compute some values: from near, from farther away, and from the inputs on."""
    tried: set[tuple[str, ...]] = set()
    for step in (*STEPS, len(agreeing)):
        cut = reference.cut(names, set(agreeing[: max(0, len(agreeing) - step)]))
        if cut.given not in tried:
            tried.add(cut.given)
            yield cut


def _is_as_near(exact: AnyArray, expected: AnyArray, actual: AnyArray, observation: Observation) -> bool:
    if not is_float(expected) or exact.shape != expected.shape or not np.isfinite(exact).all():
        return False
    if not np.isfinite(expected).all() or not np.isfinite(actual).all():
        return bool(np.isfinite(actual).all()) and _is_rounding_of(exact, actual)
    signal, own = measure(exact), measure(expected, exact)
    if own.peak[0] > TRUST * observation.judgement.budget * signal.peak[0]:
        return False
    if observation.noise is None:
        own = replace(own, elements=np.minimum(own.elements, count_distinct(expected)))
        return judge(measure(actual, exact), own, signal, expected.dtype, shares_of_elements).excess <= 1
    return (
        judge(measure(actual, exact), _at_least(own, observation.noise), signal, expected.dtype, no_shares).excess <= 1
    )


def _at_least(own: Extent, noise: Extent) -> Extent:
    """The errors of the reference in each channel, or as much as it is off as a whole in units of the noise."""
    rms, peak = (
        np.maximum(errors, errors[0] * (moves / moves[0])) if 0 < moves[0] < np.inf else errors
        for errors, moves in ((own.rms, noise.rms), (own.peak, noise.peak))
    )
    return replace(own, rms=rms, peak=peak)


def _is_rounding_of(exact: AnyArray, actual: AnyArray) -> bool:
    """Whether the candidate is the truth where the reference overflows, to the square root of its type's spacing."""
    signal, difference = measure(exact), measure(actual, exact)
    return bool(difference.peak[0] <= np.sqrt(spacing(actual.dtype)[0]) * signal.peak[0])
