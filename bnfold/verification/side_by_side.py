"""Two models side by side on the same inputs: what each value of the candidate is beside that of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError, NoKernelError
from bnfold.runtimes.child import CrashError
from bnfold.runtimes.inputs import Effort, Feeds, InputOptions, Sample
from bnfold.runtimes.onnx_runtime import REFERENCE
from bnfold.verification import opinion
from bnfold.verification.disturbed import Disturbed
from bnfold.verification.interface import pair_interfaces
from bnfold.verification.noise import KNOWN
from bnfold.verification.observe import Move, Observation, Weighing, is_float, observe_move
from bnfold.verification.options import CompareOptions
from bnfold.verification.subject import Run, Subject
from bnfold.verification.tally import Tally
from bnfold.verification.truth import Start
from bnfold.verification.verdict import ValueVerdict

AnyArray = npt.NDArray[Any]

STEPS = 2
"""By how many units in the last place weights move."""

CHUNK = 256 << 20
"""How many bytes of inner values are held at a time."""

CHUNKS = {Effort.FAST: 1, Effort.STANDARD: 3, Effort.THOROUGH: 1 << 30}
"""How many times the models are run again for more inner values."""


Progress = Callable[[int, int], None]

Moves = dict[str, list[Move]]
"""For each value, the moves that the disturbances caused."""

Seen = dict[str, list[tuple[Sample, Observation]]]
"""For each value, its observation on each input."""


VOID = "void: the reference has no number there, or moves by rounding alone as much as it is large"


def count_elements(sample: Sample) -> int:
    """How many numbers a set of inputs has."""
    return sum(array.size for array in sample.feeds.values())


def close(name: str, seen: Sequence[tuple[Sample, Observation]], provider: str | None = None) -> ValueVerdict:
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


def _note_default(what: str, candidate: Subject, verdict: ValueVerdict) -> str:
    change = verdict.reason or f"no more than rounding (error {verdict.error:.1e}, budget {verdict.budget:.1e})"
    return f"with {what}, the default of {verdict.provider}, {verdict.name!r} of {candidate.label} changes by {change}"


class SideBySide:
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
            self._closely = min((each for each in samples if not each.is_probe), key=count_elements, default=None)
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
        disturbed = Disturbed(self.reference, names, self._jumps, self.steps, self.options)
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
        self, sample: Sample, disturbed: Disturbed, pairs: Mapping[str, tuple[AnyArray, AnyArray]]
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
        return (close(name, seen[name], provider) for name in names)

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
    def _disturbed_outputs(self) -> Disturbed:
        return Disturbed(self.reference, self.reference.outputs, self._jumps, self.steps, self.options)
