"""The judgement: is the candidate the same model as the reference, apart from rounding?

Both run on the same inputs, unoptimised and on the CPU. Outputs, and inner values that carry one name in both, must
agree within the noise of the reference (`bnfold.verification.noise`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError, NoEvidenceError, NoKernelError
from bnfold.runtimes.child import CrashError
from bnfold.runtimes.inputs import DRAWN, Effort, Feeds, InputOptions, Sample, find_samples
from bnfold.runtimes.onnx_runtime import REFERENCE
from bnfold.verification import opinion
from bnfold.verification.evidence import insist_on_evidence
from bnfold.verification.gate import Gate
from bnfold.verification.interface import find_changes, find_retyped, pair_interfaces
from bnfold.verification.noise import KNOWN
from bnfold.verification.observe import Move, Observation, Weighing, is_float, is_narrow, observe_move
from bnfold.verification.onnx_weights import Disturbance
from bnfold.verification.ranges import draw_again, draw_as_normalised, find_far
from bnfold.verification.sizes import find_further
from bnfold.verification.smoke import measure
from bnfold.verification.storage import describe_conversion
from bnfold.verification.stored import compare_stored
from bnfold.verification.subject import Run, Subject
from bnfold.verification.tally import SILENT, Tally, would_pass
from bnfold.verification.truth import Start
from bnfold.verification.verdict import Divergence, ValueVerdict, Verdict

AnyArray = npt.NDArray[Any]

DRAWS = {Effort.FAST: 2, Effort.STANDARD: 3, Effort.THOROUGH: 8}
"""How many times the noise is measured at most: as long as a value does not pass with what was measured so far."""

STEPS = 2
"""By how many units in the last place weights move."""

COARSE = 32
"""How many times farther weights move, to see which jumps are within reach."""

SMALL = 64
"""The side of images that are smaller than declared."""

CHUNK = 256 << 20
"""How many bytes of inner values are held at a time."""

CHUNKS = {Effort.FAST: 1, Effort.STANDARD: 3, Effort.THOROUGH: 1 << 30}
"""How many times the models are run again for more inner values."""


@dataclass(frozen=True)
class CompareOptions:
    """How two models are compared.

    Attributes:
        inputs: the inputs that they run on.
        providers: execution providers on which the candidate must agree too, as deployed. With none, it runs on the CPU
            as deployed, and a difference there is only a finding.
        gate: fixed conditions on the outputs in place of the budget; inner values and drawn extremes are then left out.
        outputs_only: leave out inner values.
        strict_inside: require that an inner value of one name is one value, even where its difference is taken back.
        allow_interface: allow fixed sizes, other inputs with a default, and other names, types or declared outputs.
        renamed: the candidate's name for an input or output of the reference.
        custom_ops: libraries of custom operators for ONNX Runtime.
    """

    inputs: InputOptions = DRAWN
    providers: tuple[str, ...] = ()
    gate: Gate | None = None
    outputs_only: bool = False
    strict_inside: bool = False
    allow_interface: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    custom_ops: tuple[Path, ...] = ()


Progress = Callable[[int, int], None]

Moves = dict[str, list[Move]]
"""For each value, the moves that the disturbances caused."""

Seen = dict[str, list[tuple[Sample, Observation]]]
"""For each value, its observation on each input."""


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
    pair = _Pair(reference, candidate, options)
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
    smallest = min(samples, key=_elements).feeds
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


def _find_further(pair: _Pair, trial: Run, samples: Sequence[Sample]) -> list[Sample]:
    """Drawn inputs of further sizes and ranges."""
    if pair.wanted.is_given or pair.wanted.effort is Effort.FAST:
        return []
    hints = pair.reference.size_hints(), pair.candidate.size_hints()
    further = find_further(pair.inputs, pair.wanted, samples, hints, lambda feeds: _failure(trial, feeds))
    normalised = draw_as_normalised(pair.inputs, pair.reference.normalisations(), samples[0])
    return further if normalised is None else [*further, normalised]


def _judge_far(pair: _Pair, samples: Sequence[Sample], seen: Seen, findings: list[str]) -> list[Sample]:
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


def _judge_smaller(pair: _Pair, samples: Sequence[Sample], progress: Progress) -> _Smaller | None:
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
        small = _Pair(reference, candidate, pair.options, pair.steps)
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


def _judge_by_budget(pair: _Pair, samples: list[Sample], findings: list[str], progress: Progress) -> Verdicts:
    """Judge outputs and inner values by what rounding does to the reference; changes the samples to those that did.

    Drawn extremes are of a smaller size where both models run at one, though they declare another.
    """
    widened = [_widen_sample(narrow) for narrow in samples]
    wide = _widen(pair, widened[0], findings)
    small = None if wide is not None else _judge_smaller(pair, samples, progress)
    if small is not None:
        plain = [sample for sample in samples if not sample.is_probe]
        samples[:] = [plain[0], *(replace(sample, is_inside=False) for sample in plain[1:])]
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
    verdicts = {name: _close(name, observations) for name, observations in seen.items()}
    outputs = [verdicts[name] for name in pair.reference.outputs]
    findings += _note_empty(outputs)
    _insist_on_judgement(outputs)
    return outputs, [verdicts[name] for name in pair.shared if name in verdicts]


def _judge_by_gate(pair: _Pair, samples: list[Sample], findings: list[str], progress: Progress) -> Verdicts:
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


def _note_conversion(pair: _Pair) -> str:
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


def _widen(pair: _Pair, sample: Sample, findings: list[str]) -> _Pair | None:
    """Both models in float32, where they are in a narrower type.

    Rounding after every operator hides faults that are larger than the rounding of the weights.
    """
    reference, candidate = pair.reference.widened(), pair.candidate.widened()
    if reference is None or candidate is None:
        return None
    (first, steps), (second, _) = reference, candidate
    try:
        wide = _Pair(first, second, pair.options, steps)
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


def _note_default(what: str, candidate: Subject, verdict: ValueVerdict) -> str:
    change = verdict.reason or f"no more than rounding (error {verdict.error:.1e}, budget {verdict.budget:.1e})"
    return f"with {what}, the default of {verdict.provider}, {verdict.name!r} of {candidate.label} changes by {change}"


def _elements(sample: Sample) -> int:
    """How many numbers a set of inputs has."""
    return sum(array.size for array in sample.feeds.values())


def _failure(trial: Run, feeds: Feeds) -> IncomparableError | None:
    try:
        trial(feeds)
    except IncomparableError as error:
        return error
    return None


VOID = "void: the reference has no number there, or moves by rounding alone as much as it is large"


def _insist_on_judgement(outputs: Sequence[ValueVerdict]) -> None:
    """That rounding alone does not scatter an output, where no other one shows a difference.

    Raises:
        IncomparableError: it does.
    """
    failing = [verdict for verdict in outputs if verdict.reason]
    if failing and all(verdict.reason == VOID and verdict.observation.is_scattered for verdict in failing):
        name = failing[0].name
        raise IncomparableError(f"output {name!r} cannot be judged: rounding alone moves it as much as it is large")


def _close(name: str, seen: Sequence[tuple[Sample, Observation]], provider: str | None = None) -> ValueVerdict:
    """The verdict on one value: that of its worst input, among those that say anything."""
    filled = [pair for pair in seen if pair[1].counts.size] or seen
    telling = [pair for pair in filled if pair[1].reason or not pair[1].is_void]
    sample, worst = max(telling or filled, key=lambda pair: pair[1].rank)
    reason = worst.reason
    plain = [
        found for found in filled if not found[0].is_probe
    ]  # a drawn extreme, all zeros say, may be the same for all
    if not reason and plain and all(found.is_scattered for _, found in plain):
        sample, worst = plain[0]
        telling = []
    if not telling:
        reason = VOID
    return ValueVerdict(name, worst, sample.label, reason, provider or "cpu", provider is not None)


def _first_divergence(reference: Subject, verdicts: Sequence[ValueVerdict]) -> Divergence | None:
    makers = reference.values()
    for verdict in verdicts:
        if verdict.observation.reason and verdict.observation.place is not None:
            return Divergence(verdict.name, makers.get(verdict.name, ""), verdict.observation.place, verdict)
    return None


class _Pair:
    """Two models side by side.

    Attributes:
        pairing: the inputs and outputs of both.
        inputs: the inputs that both accept, under the reference's names.
        shared: inner values that carry one name in both, in graph order.
        tallies: the outputs over all inputs that are no drawn extremes.
        retyped: a sentence for each output that is of another type.
        steps: by how many units in the last place weights move.
        refused: a sentence for each input, by its identity, on which the candidate does not run or has outputs of other
            shapes, though it ran on another.
    """

    def __init__(self, reference: Subject, candidate: Subject, options: CompareOptions, steps: int = STEPS) -> None:
        self.reference, self.candidate, self.options, self.steps = reference, candidate, options, steps
        by_position = options.gate is not None or options.allow_interface
        self.pairing = pair_interfaces(reference, candidate, options.renamed, by_position=by_position)
        self.inputs = list(self.pairing.declared)
        self._output_names = dict(zip(reference.outputs, self.pairing.outputs, strict=True))
        theirs = frozenset(candidate.values()) if reference.kind == candidate.kind else frozenset()
        is_looking_inside = not options.outputs_only and options.gate is None
        self.shared = [name for name in reference.values() if name in theirs] if is_looking_inside else []
        self.tallies = self._new_tallies()
        self.retyped: dict[str, str] = {}
        self.refused: dict[int, str] = {}
        self._has_run = False
        self._jumps = reference.jumps() | candidate.jumps()
        self._incommensurable: dict[str, str] = {}
        self._noise: dict[int, Moves] = {}
        """How far disturbances move the outputs, by the identity of the sample."""
        self._expected: dict[int, dict[str, AnyArray]] = {}
        """The reference's outputs, by the identity of the sample."""
        self._tried: dict[int, tuple[Feeds, list[AnyArray]]] = {}
        """What the reference gave on trial, by the identity of the inputs, which are kept with it."""
        self._room = CHUNK
        self._closely: Sample | None = None
        """The input on which each channel is judged by its own noise alone."""
        self._measured: dict[str, Mapping[str, int]] = {}
        """The bytes of values, by the shapes of the inputs."""

    @property
    def wanted(self) -> InputOptions:
        """The inputs to find: a gate wants no extremes, since conversions are made for real inputs."""
        inputs = self.options.inputs
        return replace(inputs, effort=Effort.FAST) if self.options.gate else inputs

    def _new_tallies(self) -> dict[str, Tally]:
        return {name: Tally(name, self.options.gate) for name in self.reference.outputs}

    def observe(
        self,
        samples: Sequence[Sample],
        findings: list[str],
        progress: Progress = lambda done, total: None,
        *,
        is_close: bool = True,
    ) -> Seen:
        """The observations of each value on each input, with second opinions on seeming differences.

        One normal input tells each channel by its own noise alone, unless it is not to be so close.
        """
        inside = [drawn for drawn in samples if drawn.is_inside]
        if is_close and self._closely is None and samples and self.options.inputs.effort is not Effort.FAST:
            self._closely = min((each for each in samples if not each.is_probe), key=_elements, default=None)
        groups = [(names, inside) for names in self.chunks(inside)] if inside else []
        groups.append((list(self.reference.outputs), [drawn for drawn in samples if not drawn.is_inside]))
        total, done = sum(len(chosen) for _, chosen in groups), 0
        seen: Seen = {}
        for names, chosen in groups:
            for sample, observed in self.run(names, chosen, findings) if chosen else ():
                progress(done, total)
                done += 1
                for name, observation in observed.items():
                    seen.setdefault(name, []).append((sample, observation))
        findings += self.left_out()
        return opinion.settle(self, seen, findings, strict_inside=self.options.strict_inside)

    def chunks(self, samples: Sequence[Sample]) -> list[list[str]]:
        """The values to fetch in each run: the outputs, and as many inner values as fit and are worth it."""
        shapes = str(samples[0].shapes)
        if shapes not in self._measured:
            self._measured[shapes] = self.reference.measure(samples[0].feeds)
        sizes = self._measured[shapes]
        chunks, room = [list(self.reference.outputs)], CHUNK
        for name in self.shared:
            size = sizes.get(name, 0)
            if size > room and len(chunks[-1]) > 0:
                chunks.append([])
                room = CHUNK
            chunks[-1].append(name)
            room -= size
        limit = CHUNKS[self.options.inputs.effort]
        if len(chunks) <= limit:
            return chunks
        kept = self.shared[:: -(-len(chunks) // limit)]
        self.shared = kept
        return self.chunks(samples)

    def run(
        self, names: Sequence[str], samples: Sequence[Sample], findings: list[str]
    ) -> Iterator[tuple[Sample, dict[str, Observation]]]:
        """Run the samples, and observe the named values on each."""
        first, second = self.start_both(names)
        disturbed = _Disturbed(self.reference, names, self._jumps, self.steps, self.options)
        is_outputs = list(names) == list(self.reference.outputs)
        for sample in samples:
            expected = self.recall(sample.feeds) if is_outputs else None
            if expected is None:
                expected = first(sample.feeds)
            self._keep(sample, dict(zip(names, expected, strict=True)))
            if sample.is_probe and not all(np.isfinite(array).all() for array in expected if is_float(array)):
                findings.append(f"the reference overflows on the input {sample.label!r}, which was left out")
                continue
            try:
                actual = second(sample.feeds)
                pairs = {
                    name: (mine, other)
                    for name, mine, other in zip(names, expected, map(self._cast, names, expected, actual), strict=True)
                    if self._insist_on_same_shape(name, mine, other)
                }
            except CrashError:
                raise
            except IncomparableError as error:
                if not self._has_run:
                    raise
                shapes = ", ".join(f"{name} {shape}" for name, shape in sample.shapes.items())
                self.refused[id(sample)] = f"not on the input {sample.label!r} ({shapes}): {error}"
                continue
            self._has_run = True
            for name in self.tallies.keys() & pairs.keys() if not sample.is_probe else ():
                self.tallies[name].add(sample, *pairs[name])
            yield sample, {} if self.options.gate else self._weigh(sample, disturbed, pairs)

    def _weigh(
        self, sample: Sample, disturbed: _Disturbed, pairs: Mapping[str, tuple[AnyArray, AnyArray]]
    ) -> dict[str, Observation]:
        """Observe pairs of values. Noise is measured where a value would not pass without, and no oftener than needed.

        The moves of outputs are kept for further runs of the candidate.
        """
        kept = self._noise.setdefault(id(sample), {})
        limit = max(disturbed.draws, KNOWN) if sample is self._closely else disturbed.draws
        weighed = {name: Weighing(*pair, kept.get(name, []), limit) for name, pair in pairs.items()}
        kept.update((name, weighed[name].moves) for name in self.reference.outputs if name in weighed)
        for draw in range(limit):
            unclear = [
                name
                for name, weighing in weighed.items()
                if len(weighing.moves) == draw
                and not weighing.is_clear
                and (name in self._jumps or not weighing.is_hopeless)
            ]
            for name, array in disturbed.run(draw, sample.feeds, unclear):
                weighed[name].moves.append(observe_move(weighed[name].expected, array))
        return {name: weighing.observe(is_output=name in self._output_names) for name, weighing in weighed.items()}

    def remembering(self, run: Run) -> Run:
        """A run of the reference's outputs, which are kept if there is room."""

        def remembering(feeds: Feeds) -> list[AnyArray]:
            outputs = run(feeds)
            size = sum(array.nbytes for array in outputs)
            if size <= self._room:
                self._room -= size
                self._tried[id(feeds)] = feeds, outputs
            return outputs

        return remembering

    def recall(self, feeds: Feeds) -> list[AnyArray] | None:
        """The outputs on these inputs, where they were tried."""
        return self._tried[id(feeds)][1] if id(feeds) in self._tried else None

    def _keep(self, sample: Sample, expected: Mapping[str, AnyArray]) -> None:
        """Keep the reference's outputs for further runs of the candidate, if there is room."""
        outputs = {name: expected[name] for name in self.reference.outputs if name in expected}
        size = sum(array.nbytes for array in outputs.values())
        if outputs and size <= self._room:
            self._room -= size
            self._expected[id(sample)] = outputs

    def left_out(self) -> Iterator[str]:
        """A sentence about the inner values that cannot be compared."""
        if self._incommensurable:
            name, shapes = next(iter(self._incommensurable.items()))
            yield f"inner values left out for their other shapes: {len(self._incommensurable)} ({name!r} is {shapes})"

    def start_both(self, names: Sequence[str]) -> tuple[Run, Run]:
        """Both models, ready to give the named values for the reference's feeds."""
        first = self.reference.start(names)
        second = self.candidate.start([self._output_names.get(name, name) for name in names])
        return first, lambda feeds: second(self._renamed(feeds))

    def _renamed(self, feeds: Feeds) -> Feeds:
        """The feeds under the names, and in the types, of the candidate."""
        pairs = [(other, feeds[mine.name]) for mine, other in zip(self.inputs, self.pairing.inputs, strict=True)]
        with np.errstate(over="ignore"):  # a far input has no number in a narrower type
            return {
                other.name: array.astype(other.dtype, copy=False) if is_float(array) else array
                for other, array in pairs
            }

    def _cast(self, name: str, mine: AnyArray, other: AnyArray) -> AnyArray:
        """An output of the candidate in the type of the reference's, where both are floating point numbers."""
        if name not in self._output_names or mine.dtype == other.dtype or not (is_float(mine) and is_float(other)):
            return other
        self.retyped[name] = f"output {name!r} was {mine.dtype} and is {other.dtype}"
        with np.errstate(over="ignore"):
            return other.astype(mine.dtype)

    def _insist_on_same_shape(self, name: str, mine: AnyArray, other: AnyArray) -> bool:
        """Whether two values have one shape and type. Outputs must have.

        Raises:
            IncomparableError: two outputs have not.
        """
        if mine.shape == other.shape and mine.dtype == other.dtype:
            return True
        shapes = f"{mine.dtype}{list(mine.shape)} against {other.dtype}{list(other.shape)}"
        if name in self._output_names:
            labels = f"{self.reference.label} and {self.candidate.label}"
            raise IncomparableError(f"{labels}: output {name!r} is {shapes}")
        self._incommensurable.setdefault(name, shapes)
        return False

    def as_deployed(self, samples: Sequence[Sample], findings: list[str]) -> Iterator[ValueVerdict]:
        """The candidate at the runtime's default optimisation, against the unoptimised reference.

        Where a provider computes with less than float32 by default (TF32), that is turned off for the verdict, and what
        the default does is a finding. Where none is asked for, a difference decides nothing, and drawn extremes are
        left out.
        """
        if not self.options.providers:
            samples = [sample for sample in samples if not sample.is_probe]
        reference = self.reference.start(self.reference.outputs)
        for provider in self.options.providers or ("cpu",):
            try:
                run, finding = self.candidate.start_as_deployed(provider)
            except NoKernelError:
                if self.options.providers:
                    raise
                return  # nobody deploys it there
            if finding:
                findings.append(finding)
            is_exact = provider == REFERENCE  # and then for both, or the rounding of one alone would count
            beside = self.reference.start_as_deployed(provider)[0] if is_exact else None
            doubts = None if is_exact else findings
            yield from self._judge_run(reference, run, samples, provider, beside=beside, doubts=doubts)
            if (default := self.candidate.start_with_defaults(provider)) is not None:
                run, what = default
                verdicts = self._judge_run(reference, run, samples, provider)
                findings += [_note_default(what, self.candidate, verdict) for verdict in verdicts]

    def _judge_run(
        self,
        reference: Run,
        run: Run,
        samples: Sequence[Sample],
        provider: str,
        *,
        beside: Run | None = None,
        doubts: list[str] | None = None,
    ) -> Iterator[ValueVerdict]:
        """The verdicts on the outputs of another run of the candidate, against the reference, or another run of it.

        Args:
            reference: the run of the reference.
            run: the run of the candidate.
            samples: the inputs.
            provider: the name of what runs it.
            beside: the run of the reference that takes the place of the first, for values alone.
            doubts: the findings; where they are given, a second opinion is asked on differences.
        """
        names = list(self.reference.outputs)
        gate, tallies = self.options.gate, self._new_tallies()
        seen: Seen = {name: [] for name in names}
        for sample in samples:
            expected = self._expected.get(id(sample))
            if expected is None:
                expected = dict(zip(names, reference(sample.feeds), strict=True))
            if sample.is_probe and not all(np.isfinite(array).all() for array in expected.values() if is_float(array)):
                continue
            actual = dict(zip(names, run(self._renamed(sample.feeds)), strict=True))
            if beside is not None:
                types = {name: array.dtype for name, array in expected.items()}
                expected, actual = (
                    {name: array.astype(types[name]) for name, array in outputs.items()}
                    for outputs in (dict(zip(names, beside(sample.feeds), strict=True)), actual)
                )
            for name, mine in expected.items():
                other = self._cast(name, mine, actual[name])
                self._insist_on_same_shape(name, mine, other)
                if gate is not None:
                    tallies[name].add(sample, mine, other)
                actual[name] = other
            pairs = {name: (mine, actual[name]) for name, mine in expected.items()}
            observed = {} if gate is not None else self._weigh(sample, self._disturbed_outputs, pairs)
            for name, observation in observed.items():
                seen[name].append((sample, observation))
        if gate is not None:
            return (tally.judge(gate, provider) for tally in tallies.values())
        if doubts is not None:
            seen = opinion.ask_truth(self.reference, self._starter(run), seen, self.shared, doubts)
        return (_close(name, seen[name], provider) for name in names)

    def _starter(self, run: Run) -> Start:
        """What gives some of the outputs of a run of the candidate, for feeds of the reference."""
        places = {name: place for place, name in enumerate(self.reference.outputs)}

        def start(names: Sequence[str]) -> Run:
            def give(feeds: Feeds) -> list[AnyArray]:
                outputs = run(self._renamed(feeds))
                return [outputs[places[name]] for name in names]

            return give

        return start

    @cached_property
    def _disturbed_outputs(self) -> _Disturbed:
        return _Disturbed(self.reference, self.reference.outputs, self._jumps, self.steps, self.options)


class _Disturbed:
    """References with disturbed weights, ready to give some values. Each is started when it is needed.

    Values behind a jump are moved farther, since it is a matter of luck whether a small move crosses the jump.
    """

    def __init__(
        self, reference: Subject, names: Sequence[str], jumps: frozenset[str], steps: int, options: CompareOptions
    ) -> None:
        self._reference, self._seed = reference, options.inputs.seed * 1000
        coarse, fine = ([name for name in names if (name in jumps) == is_coarse] for is_coarse in (True, False))
        self._parts = [part for part in ((fine, steps), (coarse, COARSE * steps)) if part[0]]
        self._runs: dict[int, list[Run]] = {}
        self.draws = DRAWS[options.inputs.effort]

    def run(self, draw: int, feeds: Feeds, names: Sequence[str]) -> Iterator[tuple[str, AnyArray]]:
        """These values of the given draw."""
        wanted = set(names)
        if wanted and draw not in self._runs:
            self._runs[draw] = [
                self._reference.start(part, Disturbance(self._seed + draw, steps)) for part, steps in self._parts
            ]
        for (part, _), run in zip(self._parts, self._runs.get(draw, ()), strict=False):
            if not wanted.isdisjoint(part):
                made = zip(part, run(feeds), strict=True)
                yield from ((name, array) for name, array in made if name in wanted)
