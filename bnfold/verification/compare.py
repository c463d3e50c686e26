"""The judgement: is the candidate the same model as the reference, apart from rounding?

Both run on the same inputs, unoptimised and on the CPU. Outputs, and inner values that carry one name in both, must
agree within the noise of the reference (`bnfold.verification.noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError, NoEvidenceError
from bnfold.runtimes.child import CrashError
from bnfold.runtimes.inputs import Effort, Feeds, Sample, find_samples
from bnfold.verification.evidence import insist_on_evidence
from bnfold.verification.interface import find_changes, find_retyped
from bnfold.verification.observe import is_narrow
from bnfold.verification.options import CompareOptions
from bnfold.verification.ranges import draw_again, draw_as_normalised, find_far
from bnfold.verification.side_by_side import VOID, Progress, Seen, SideBySide, close, count_elements
from bnfold.verification.sizes import find_further
from bnfold.verification.smoke import measure
from bnfold.verification.storage import describe_conversion
from bnfold.verification.stored import compare_stored
from bnfold.verification.subject import Run, Subject
from bnfold.verification.tally import SILENT, would_pass
from bnfold.verification.verdict import Divergence, ValueVerdict, Verdict

AnyArray = npt.NDArray[Any]

SMALL = 64
"""The side of images that are smaller than declared."""


def compare(
    reference: Subject, candidate: Subject, options: CompareOptions, progress: Progress = lambda done, total: None
) -> Verdict:
    """Decide whether two models are equivalent.

    Args:
        reference: the model that is right by definition.
        candidate: the other one, with the same inputs and outputs.
        options: how they are compared.
        progress: called with the number of inputs done, and of all inputs.

    Raises:
        IncomparableError: the models have other inputs or outputs, or one cannot be run.
    """
    pair = SideBySide(reference, candidate, options)
    if candidate.narrow_weights <= reference.narrow_weights:  # it rounded none of them again
        reference.unpack_weights()
    run = reference.start(reference.outputs)
    trial = pair.remembering(run)
    samples, findings = find_samples(pair.inputs, pair.wanted, lambda feeds: _failure(trial, feeds))
    samples += _find_further(pair, trial, samples)
    for sample in samples if options.inputs.is_given else ():
        outputs = trial(sample.feeds)
        insist_on_evidence(sample.label, sample.feeds, outputs)
        findings += compare_stored(reference, sample, outputs)
    if reference.may_draw:
        smallest = min(samples, key=count_elements).feeds
        _insist_on_repeatable(reference, pair.recall(smallest) or run(smallest), run(smallest))
    findings += pair.pairing.notes
    verdicts, values = (_judge_by_gate if options.gate else _judge_by_budget)(pair, samples, findings, progress)
    findings += [*reference.notes, *candidate.notes]
    changes = [*find_changes(reference, candidate, pair.pairing), *pair.refused.values()]
    retyped = [*find_retyped(reference, pair.pairing), *pair.retyped.values()]
    if options.allow_interface:
        findings += [f"the interface is another one: {change}" for change in changes]
        changes = []
    if options.gate or options.allow_interface:
        findings += [f"{change}: it is cast" for change in retyped]
    else:
        changes += retyped
    taken = [sample for sample in samples if not sample.is_further and id(sample) not in pair.refused]
    deployed = list(pair.as_deployed(taken, findings))
    if all(output.is_equivalent for output in verdicts):
        findings += [_note_runtime(candidate, verdict) for verdict in deployed if verdict.reason]
    verdict = Verdict(
        (*verdicts, *deployed),
        tuple(values),
        _first_divergence(reference, [*values, *verdicts]),
        tuple(samples),
        tuple(dict.fromkeys(findings)),
        options.providers,
        tuple(changes),
        options.gate,
    )
    note = "" if verdict.is_equivalent else _note_conversion(pair)
    return replace(verdict, findings=(*verdict.findings, note)) if note else verdict


Verdicts = tuple[list[ValueVerdict], list[ValueVerdict]]
"""The verdicts on outputs, and those on inner values."""


def _find_further(pair: SideBySide, trial: Run, samples: Sequence[Sample]) -> list[Sample]:
    """Drawn inputs of further sizes and ranges."""
    if pair.wanted.is_given or pair.wanted.effort is Effort.FAST:
        return []
    hints = pair.reference.size_hints(), pair.candidate.size_hints()
    further = find_further(pair.inputs, pair.wanted, samples, hints, lambda feeds: _failure(trial, feeds))
    normalised = draw_as_normalised(pair.inputs, pair.reference.normalisations(), samples[0])
    return further if normalised is None else [*further, normalised]


def _judge_far(pair: SideBySide, samples: Sequence[Sample], seen: Seen, findings: list[str]) -> list[Sample]:
    """Judge the outputs on an input that reaches as far as the reference can compute, and give this input.

    There has to be one of large values to start from. What differs has to do so on a second draw, too.
    """
    large = next((sample for sample in samples if sample.is_probe and sample.label.startswith("large")), None)
    far = None if large is None else find_far(large, pair.reference.start(pair.chunks([large])[0]))
    if far is None:
        return []
    again: Seen | None = None
    for name, observations in pair.observe([far], findings).items():
        for sample, observation in observations:
            if observation.reason and again is None:
                again = pair.observe([draw_again(far, pair.options.inputs.seed)], findings)
            if observation.reason and not any(second.reason for _, second in (again or {}).get(name, ())):
                findings.append(f"{name!r} differs on one of two far inputs, where the last digit decides")
                observation = replace(observation, reason="", is_void=True)
            seen.setdefault(name, []).append((sample, observation))
    return [far]


@dataclass(frozen=True, eq=False)
class _Smaller:
    """What drawn extremes of a smaller size showed: no difference."""

    seen: Seen
    samples: Sequence[Sample]
    findings: Sequence[str]


def _judge_smaller(pair: SideBySide, samples: Sequence[Sample], progress: Progress) -> _Smaller | None:
    """Judge drawn extremes, and normal numbers closely, at a size that is smaller than what the models declare.

    None where that is not asked for, where one of the models does not run so, and where anything differs: a size that
    nobody declared decides nothing.
    """
    inputs = pair.options.inputs
    freed = [subject.resized() for subject in (pair.reference, pair.candidate)]
    if not any(sample.is_probe for sample in samples) or inputs.effort is not Effort.STANDARD or None in freed:
        return None
    (reference, symbols), (candidate, _) = (each for each in freed if each is not None)
    findings: list[str] = []
    try:
        small = SideBySide(reference, candidate, pair.options, pair.steps)
        wanted = replace(inputs, dims={**(inputs.dims or {}), **dict.fromkeys(symbols, SMALL)}, samples=1)
        trial = reference.start(reference.outputs)
        drawn, _ = find_samples(small.inputs, wanted, lambda feeds: _failure(trial, feeds))
        drawn = [replace(each, label=f"{each.label}, {SMALL} pixels a side", is_further=True) for each in drawn]
        seen = small.observe(drawn, findings, progress)
        drawn += _judge_far(small, drawn, seen, findings)
    except CrashError:
        raise
    except IncomparableError:
        return None
    observations = [observation for each in seen.values() for _, observation in each]
    if small.refused or any(each.reason or each.is_void for each in observations):
        return None
    return _Smaller(seen, drawn, findings)


def _judge_by_budget(pair: SideBySide, samples: list[Sample], findings: list[str], progress: Progress) -> Verdicts:
    """Judge outputs and inner values by what rounding does to the reference; changes the samples to those that did.

    Drawn extremes, and the last of the normal inputs, are of a smaller size where both models run at one, though they
    declare another.
    """
    widened = [_widen_sample(narrow) for narrow in samples]
    wide = _widen(pair, widened[0], findings)
    small = None if wide is not None else _judge_smaller(pair, samples, progress)
    if small is not None:
        first, *others = [sample for sample in samples if not sample.is_probe]
        twins = [sample for sample in others if (sample.label, sample.shapes) == (first.label, first.shapes)]
        spare = twins[-1:]  # the smaller normal input is there for it
        kept = [sample for sample in others if not any(sample is each for each in spare)]
        samples[:] = [first, *(replace(sample, is_inside=False) for sample in kept)]
    seen = pair.observe(samples, findings, progress, is_close=small is None)
    if wide is not None:
        for name, observed in wide.observe(widened, findings, progress).items():
            seen.setdefault(name, []).extend(observed)
    if small is None:
        samples += _judge_far(wide or pair, widened if wide else samples, seen, findings)
    else:
        samples += small.samples
        findings += small.findings
        for name, observed in small.seen.items():
            seen.setdefault(name, []).extend(observed)
    verdicts = {name: close(name, observations) for name, observations in seen.items()}
    outputs = [verdicts[name] for name in pair.reference.outputs]
    findings += _note_empty(outputs)
    _insist_on_judgement(outputs)
    return outputs, [verdicts[name] for name in pair.shared if name in verdicts]


def _judge_by_gate(pair: SideBySide, samples: list[Sample], findings: list[str], progress: Progress) -> Verdicts:
    """Judge the outputs by the conditions of the gate, over all inputs together."""
    gate = pair.options.gate
    assert gate is not None
    for done, _ in enumerate(pair.run(pair.reference.outputs, samples, findings)):
        progress(done, len(samples))
    outputs = [tally.judge(gate) for tally in pair.tallies.values()]
    findings += _note_empty(outputs)
    failing = [output for output in outputs if output.reason]
    if failing and all(output.observation.is_void and not output.observation.counts.is_void for output in failing):
        why = failing[0].reason.removeprefix(SILENT)
        raise IncomparableError(f"output {failing[0].name!r} cannot be judged: {why}")
    return outputs, []


def _note_conversion(pair: SideBySide) -> str:
    """What kind of conversion the candidate is, and with which options it would pass; empty where neither is known."""
    kind = describe_conversion(pair.reference.storage(), pair.candidate.storage())
    tallies = list(pair.tallies.values())
    if not tallies or not (kind or pair.options.gate):
        return ""
    shares = [tally.share for tally in tallies if tally.share is not None]
    lowest = min((tally.snr_db for tally in tallies if not tally.is_discrete), default=float("inf"))
    figures = [f"{lowest:.1f} dB"] if np.isfinite(lowest) else []
    figures += [f"argmax agrees in {min(shares):.2%}"] if shares else []
    where = "" if pair.options.inputs.is_given else " on drawn inputs (--inputs gives real ones)"
    return f"{kind or 'the outputs'}: {', '.join(figures) or 'no number differs'}{where}; {would_pass(tallies)}"


def _widen(pair: SideBySide, sample: Sample, findings: list[str]) -> SideBySide | None:
    """Both models in float32, where they are in a narrower type.

    Rounding after every operator hides faults that are larger than the rounding of the weights.
    """
    reference, candidate = pair.reference.widened(), pair.candidate.widened()
    if reference is None or candidate is None:
        return None
    (first, steps), (second, _) = reference, candidate
    try:
        wide = SideBySide(first, second, pair.options, steps)
        for run in wide.start_both(wide.reference.outputs):
            run(sample.feeds)
    except IncomparableError as error:  # the model's code insists on its types
        findings.append(f"not compared in float32 as well: {error}")
        return None
    return wide


def _widen_sample(sample: Sample) -> Sample:
    feeds = {
        name: array.astype(np.float32) if is_narrow(array.dtype) else array for name, array in sample.feeds.items()
    }
    return replace(sample, label=f"{sample.label}, in float32", feeds=feeds)


def _insist_on_repeatable(reference: Subject, first: Sequence[AnyArray], second: Sequence[AnyArray]) -> None:
    """Check that two runs of the reference give the same outputs. Models that draw lots cannot be compared.

    Raises:
        IncomparableError: an output differs; the message names it.
    """
    for name, one, other in zip(reference.outputs, first, second, strict=True):
        if measure(one, other).is_beyond(one.dtype):
            raise IncomparableError(
                f"{reference.label}: output {name!r} is another one each time: it draws random numbers"
            )


def _note_empty(outputs: Sequence[ValueVerdict]) -> list[str]:
    """A sentence about the outputs that have no element on any input.

    Raises:
        NoEvidenceError: no output has an element.
    """
    empty = [output.name for output in outputs if not output.observation.counts.size]
    if empty and len(empty) == len(outputs):
        raise NoEvidenceError(f"output {empty[0]!r} has no element on any input, so nothing can be compared")
    return [f"output {name!r} has no element on any input, so nothing is known of it" for name in empty]


def _note_runtime(candidate: Subject, verdict: ValueVerdict) -> str:
    return (
        f"at its default optimisation level on {verdict.provider}, the runtime by itself changes {verdict.name!r} of "
        f"{candidate.label}: {verdict.reason}"
    )


def _failure(trial: Run, feeds: Feeds) -> IncomparableError | None:
    try:
        trial(feeds)
    except IncomparableError as error:
        return error
    return None


def _insist_on_judgement(outputs: Sequence[ValueVerdict]) -> None:
    """That rounding alone does not scatter an output, where no other one shows a difference.

    Raises:
        IncomparableError: it does.
    """
    failing = [verdict for verdict in outputs if verdict.reason]
    if failing and all(verdict.reason == VOID and verdict.observation.is_scattered for verdict in failing):
        name = failing[0].name
        raise IncomparableError(f"output {name!r} cannot be judged: rounding alone moves it as much as it is large")


def _first_divergence(reference: Subject, verdicts: Sequence[ValueVerdict]) -> Divergence | None:
    makers = reference.values()
    for verdict in verdicts:
        if verdict.observation.reason and verdict.observation.place is not None:
            return Divergence(verdict.name, makers.get(verdict.name, ""), verdict.observation.place, verdict)
    return None
