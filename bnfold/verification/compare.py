"""The judgement: is the candidate the same model as the reference, apart from rounding?

Both run on the same inputs, unoptimised and on the CPU. Outputs, and inner values that carry one name in both, must
agree within the noise of the reference (`bnfold.verification.noise`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError, NoEvidenceError, NoKernelError
from bnfold.runtimes.inputs import DRAWN, Declared, Effort, Feeds, InputOptions, Sample, find_samples, merge_declared
from bnfold.runtimes.onnx_runtime import REFERENCE
from bnfold.verification import opinion
from bnfold.verification.evidence import insist_on_evidence
from bnfold.verification.interface import find_changes
from bnfold.verification.observe import Move, Observation, Weighing, is_float, is_narrow, observe_move, observe_within
from bnfold.verification.onnx_weights import Disturbance
from bnfold.verification.smoke import measure
from bnfold.verification.subject import Run, Subject
from bnfold.verification.verdict import Divergence, ValueVerdict, Verdict

AnyArray = npt.NDArray[Any]

DRAWS = {Effort.FAST: 2, Effort.STANDARD: 3, Effort.THOROUGH: 8}
"""How many times the noise is measured at most: as long as a value does not pass with what was measured so far."""

STEPS = 2
"""By how many units in the last place weights move."""

COARSE = 32
"""How many times farther weights move, to see which jumps are within reach."""

CHUNK = 256 << 20
"""How many bytes of inner values are held at a time."""

CHUNKS = {Effort.FAST: 1, Effort.STANDARD: 3, Effort.THOROUGH: 1 << 30}
"""How many times the models are run again for more inner values."""


@dataclass(frozen=True)
class Tolerance:
    """A fixed tolerance instead of the measured budget: ``|difference| <= atol + rtol * |reference|``."""

    atol: float = 0.0
    rtol: float = 0.0


@dataclass(frozen=True)
class CompareOptions:
    """How two models are compared.

    Attributes:
        inputs: the inputs that they run on.
        providers: execution providers on which the candidate must agree too, as deployed. With none, it runs on the CPU
            as deployed, and a difference there is only a finding.
        tolerance: a fixed tolerance for the outputs in place of the budget; inner values are then left out.
        outputs_only: leave out inner values.
        strict_inside: require that an inner value of one name is one value, even where its difference is taken back.
        allow_interface: allow fixed sizes, and other inputs with a default or other declared outputs.
        custom_ops: libraries of custom operators for ONNX Runtime.
    """

    inputs: InputOptions = DRAWN
    providers: tuple[str, ...] = ()
    tolerance: Tolerance | None = None
    outputs_only: bool = False
    strict_inside: bool = False
    allow_interface: bool = False
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
    trial = reference.start(reference.outputs)
    samples, findings = find_samples(pair.inputs, options.inputs, lambda feeds: _failure(trial, feeds))
    for sample in samples if options.inputs.is_given else ():
        insist_on_evidence(sample.label, sample.feeds, trial(sample.feeds))
    _insist_on_repeatable(reference, trial, samples[0].feeds)
    seen = pair.observe(samples, findings, progress)
    widened = [_widen_sample(narrow) for narrow in samples]
    wide = None if options.tolerance else _widen(pair, widened[0], findings)
    if wide is not None:
        for name, observed in wide.observe(widened, findings, progress).items():
            seen.setdefault(name, []).extend(observed)
    verdicts = {name: _close(name, observations) for name, observations in seen.items()}
    outputs = [verdicts[name] for name in reference.outputs]
    findings += _note_empty(outputs)
    _insist_on_judgement(outputs)
    values = [verdicts[name] for name in pair.shared if name in verdicts]
    findings += [*reference.notes, *candidate.notes]
    changes = find_changes(reference, candidate)
    if options.allow_interface:
        findings += [f"the interface is another one: {change}" for change in changes]
        changes = []
    deployed = list(pair.as_deployed(samples, findings))
    if all(output.is_equivalent for output in outputs):
        findings += [_note_runtime(candidate, verdict) for verdict in deployed if verdict.reason]
    return Verdict(
        (*outputs, *deployed),
        tuple(values),
        _first_divergence(reference, [*values, *outputs]),
        tuple(samples),
        tuple(dict.fromkeys(findings)),
        options.providers,
        tuple(changes),
    )


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


def _insist_on_repeatable(reference: Subject, run: Run, feeds: Feeds) -> None:
    """Check that a second run of the reference gives the same outputs. Models that draw lots cannot be compared.

    Raises:
        IncomparableError: an output differs; the message names it.
    """
    first, second = run(feeds), run(feeds)
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
        inputs: the inputs that both accept, under the reference's names.
        shared: inner values that carry one name in both, in graph order.
    """

    def __init__(self, reference: Subject, candidate: Subject, options: CompareOptions, steps: int = STEPS) -> None:
        self.reference, self.candidate, self.options, self._steps = reference, candidate, options, steps
        self.inputs = _common_inputs(reference, candidate)
        _insist_on_same_outputs(reference, candidate)
        self._input_names = [declared_input.name for declared_input in candidate.inputs]
        self._output_names = dict(zip(reference.outputs, candidate.outputs, strict=True))
        theirs = frozenset(candidate.values()) if reference.kind == candidate.kind else frozenset()
        is_looking_inside = not options.outputs_only and options.tolerance is None
        self.shared = [name for name in reference.values() if name in theirs] if is_looking_inside else []
        self._jumps = reference.jumps() | candidate.jumps()
        self._incommensurable: dict[str, str] = {}
        self._noise: dict[int, Moves] = {}
        """How far disturbances move the outputs, by the identity of the sample."""
        self._expected: dict[int, dict[str, AnyArray]] = {}
        """The reference's outputs, by the identity of the sample."""
        self._room = CHUNK

    def observe(self, samples: Sequence[Sample], findings: list[str], progress: Progress) -> Seen:
        """The observations of each value on each input, with second opinions on seeming differences."""
        inside = [drawn for drawn in samples if drawn.is_inside]
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
        sizes = self.reference.measure(samples[0].feeds)
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
        disturbed = _Disturbed(self.reference, names, self._jumps, self._steps, self.options)
        for sample in samples:
            expected = first(sample.feeds)
            self._keep(sample, dict(zip(names, expected, strict=True)))
            if sample.is_probe and not all(np.isfinite(array).all() for array in expected if is_float(array)):
                findings.append(f"the reference overflows on the input {sample.label!r}, which was left out")
                continue
            actual = second(sample.feeds)
            pairs = {
                name: (mine, other)
                for name, mine, other in zip(names, expected, actual, strict=True)
                if self._insist_on_same_shape(name, mine, other)
            }
            yield sample, self._weigh(sample, disturbed, pairs)

    def _weigh(
        self, sample: Sample, disturbed: _Disturbed, pairs: Mapping[str, tuple[AnyArray, AnyArray]]
    ) -> dict[str, Observation]:
        """Observe pairs of values. Noise is measured where a value would not pass without, and no oftener than needed.

        The moves of outputs are kept for further runs of the candidate.
        """
        if (tolerance := self.options.tolerance) is not None:
            return {name: observe_within(*pair, tolerance.atol, tolerance.rtol) for name, pair in pairs.items()}
        kept = self._noise.setdefault(id(sample), {})
        weighed = {name: Weighing(*pair, kept.get(name, [])) for name, pair in pairs.items()}
        kept.update((name, weighed[name].moves) for name in self.reference.outputs if name in weighed)
        for draw in range(disturbed.draws):
            unclear = [
                name
                for name, weighing in weighed.items()
                if len(weighing.moves) == draw and not weighing.is_clear(disturbed.draws)
            ]
            for name, array in disturbed.run(draw, sample.feeds, unclear):
                weighed[name].moves.append(observe_move(weighed[name].expected, array))
        return {name: weighing.observe(is_output=name in self._output_names) for name, weighing in weighed.items()}

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
        return dict(zip(self._input_names, (feeds[declared.name] for declared in self.inputs), strict=True))

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
            yield from self._judge_run(reference, run, samples, provider, beside)
            if (default := self.candidate.start_with_defaults(provider)) is not None:
                run, what = default
                verdicts = self._judge_run(reference, run, samples, provider)
                findings += [_note_default(what, self.candidate, verdict) for verdict in verdicts]

    def _judge_run(
        self, reference: Run, run: Run, samples: Sequence[Sample], provider: str, beside: Run | None = None
    ) -> Iterator[ValueVerdict]:
        """The verdicts on the outputs of another run of the candidate, against the reference, or another run of it."""
        names = list(self.reference.outputs)
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
                self._insist_on_same_shape(name, mine, actual[name])
            pairs = {name: (mine, actual[name]) for name, mine in expected.items()}
            for name, observation in self._weigh(sample, self._disturbed_outputs, pairs).items():
                seen[name].append((sample, observation))
        return (_close(name, seen[name], provider) for name in names)

    @cached_property
    def _disturbed_outputs(self) -> _Disturbed:
        return _Disturbed(self.reference, self.reference.outputs, self._jumps, self._steps, self.options)


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


def _common_inputs(reference: Subject, candidate: Subject) -> list[Declared]:
    """The inputs that both models accept, under the reference's names."""
    theirs = {entry.name: entry for entry in candidate.inputs}
    is_same_kind = reference.kind == candidate.kind
    declared = merge_declared(reference.inputs, candidate.inputs)
    if declared is None or (is_same_kind and list(theirs) != [entry.name for entry in declared]):
        raise IncomparableError(
            f"{reference.label} and {candidate.label} have other inputs: "
            f"{_signature(reference.inputs)} against {_signature(candidate.inputs)}"
        )
    return declared


def _signature(declared: Sequence[Declared]) -> str:
    return ", ".join(f"{entry.name} {entry.dtype}{list(entry.shape)}" for entry in declared) or "none"


def _insist_on_same_outputs(reference: Subject, candidate: Subject) -> None:
    mine, theirs = list(reference.outputs), list(candidate.outputs)
    if len(mine) != len(theirs) or (reference.kind == candidate.kind and mine != theirs):
        raise IncomparableError(
            f"{reference.label} and {candidate.label} have other outputs: {', '.join(mine)} against {', '.join(theirs)}"
        )
