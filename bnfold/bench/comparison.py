"""`benchmark`: compares models under each provider and level."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.bench.cold import Cold, start_cold
from bnfold.bench.fingerprint import fingerprint, load_average
from bnfold.bench.gate import Answer, Gate
from bnfold.bench.models import Subject, find_subjects
from bnfold.bench.options import BenchOptions
from bnfold.bench.rounds import ROUNDS_PER_SITTING, Track, take_turns
from bnfold.bench.statistics import (
    FEWEST_SITTINGS,
    LOOKS,
    MOST_LOOKS,
    Ratio,
    Verdict,
    decide,
    doubling_looks,
    is_narrow,
    looks,
    paired_ratio,
    visible_change,
)
from bnfold.errors import IncomparableError, UnsupportedModelError, plural
from bnfold.frontends.inputs import Inputs, parameters
from bnfold.runtimes.inputs import Declared, Feeds, InputOptions, find
from bnfold.runtimes.setting import Engine, Level, Setting
from bnfold.runtimes.timed_session import Session, open_session, require

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and their total."""

FEWEST_ROUNDS = FEWEST_SITTINGS * ROUNDS_PER_SITTING
"""Fewer rounds than this give no interval."""


@dataclass(frozen=True)
class Entry:
    """One model under one provider and level.

    Attributes:
        subject: the model.
        setting: the provider and level that it ran under.
        track: its timings.
        ratio: the paired ratio of its time to the baseline's; 1 for the baseline.
        verdict: None for the baseline.
        answer: the gate's answer; None for the baseline, or where nothing was asked.
        visible: the smallest relative change that these rounds would have shown with a probability of 95 %; None for
            the baseline.
        session_ratio: the same ratio for the time to create a session, in one process.
        cold: its cold starts in processes of their own; None for a module, which cannot be handed to another process.
        runs_same_kernels: whether the runtime runs the same operators for it as for the baseline; None where that is
            not known.
        details: how it ran.
    """

    subject: Subject
    setting: Setting
    track: Track
    ratio: Ratio
    verdict: Verdict | None
    answer: Answer | None
    visible: float | None
    session_ratio: Ratio
    cold: Cold | None
    runs_same_kernels: bool | None
    details: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """All models under one provider and level.

    Attributes:
        setting: the provider and level.
        entries: one for each model; the first is the baseline.
        noise: the ratio of the baseline's second set of sessions to its first: how far chance alone reaches here.
        noise_track: the timings of that second set.
    """

    setting: Setting
    entries: tuple[Entry, ...]
    noise: Ratio
    noise_track: Track


@dataclass(frozen=True)
class BenchReport:
    """All groups, and what they were measured on.

    Attributes:
        subjects: the models; the first is the baseline.
        groups: one for each provider and level.
        options: the options of the benchmark.
        machine: the fingerprint.
        load: load average before and after.
        inputs: shape and type of each input, by set of inputs.
        seconds: the time that all of it took.
    """

    subjects: tuple[Subject, ...]
    groups: tuple[Group, ...]
    options: BenchOptions
    machine: dict[str, Any]
    load: tuple[float | None, float | None]
    inputs: tuple[dict[str, str], ...]
    seconds: float

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries of all groups, in order."""
        return tuple(entry for group in self.groups for entry in group.entries)

    @property
    def passes(self) -> bool:
        """Whether every model meets what was asked, under every provider and level."""
        gate = self.options.gate
        return all(entry.answer is None or gate.passes(entry.answer) for entry in self.entries)


def _silent(stage: str, done: int, total: int) -> None:
    pass


def benchmark(
    models: Sequence[Any],
    *,
    inputs: Any = None,
    levels: Sequence[Level | str] = tuple(Level),
    providers: Sequence[str] = ("cpu",),
    threads: int | None = None,
    warmup: int = BenchOptions.warmup,
    rounds: int = BenchOptions.rounds,
    compiled: bool = False,
    tf32: bool = False,
    require: float | None = None,
    no_slower: bool = False,
    seconds: float | None = None,
    custom_ops: Sequence[str | Path] = (),
    timeout: float = BenchOptions.timeout,
    progress: Progress = _silent,
) -> BenchReport:
    """How fast models are beside the first of them, which is the baseline.

    Models take turns within each round, in an order that is drawn anew, and the baseline takes part twice, so that what
    chance does on this machine is known. The method and its sources: `bnfold.bench.statistics` and docs/benchmarks.md.

    Args:
        models: one or more of: the path of an `.onnx` or `.pt2` file, an `onnx.ModelProto`, an `onnx_ir.Model`, an
            `ExportedProgram`, an `nn.Module` (which runs in evaluation mode).
        inputs: what to run them on, in each form that `bnfold.fuse` takes as `example_inputs`; a path as of
            ``--inputs``; drawn from the declared shapes and types where None. A module needs arrays.
        levels: graph optimisation of ONNX Runtime.
        providers: execution providers by their short names.
        threads: within an operator; all available cores where None.
        warmup: untimed inferences of each new session.
        rounds: most rounds, at least 32.
        compiled: run PyTorch models through `torch.compile`.
        tf32: let GPUs round float32 to TensorFloat-32.
        require: how many times as fast as the baseline each model has to be, at least: `BenchReport.passes` then says
            whether that is shown with 95 % confidence.
        no_slower: likewise, that no model is shown to be slower.
        seconds: how long each provider and level may take, in place of `rounds`.
        custom_ops: libraries of custom operators for ONNX Runtime.
        timeout: how many seconds a cold start of a model, in a process of its own, may take.
        progress: told of each stage.

    Returns:
        Times are seconds in `Track`, milliseconds in `Cold`; ratios are time over the baseline's time.

    Raises:
        BnfoldError: a model cannot be read or run, takes other inputs than the first, or a provider is not installed.
    """
    options = BenchOptions(
        tuple(Level(level) for level in levels),
        tuple(providers),
        warmup=warmup,
        rounds=rounds,
        compiled=compiled,
        tf32=tf32,
        gate=Gate(require, no_slower),
        seconds=seconds,
        custom_ops=tuple(map(str, custom_ops)),
        timeout=timeout,
    )
    if threads is not None:
        options = replace(options, threads=threads)
    arrays: Any = None
    if isinstance(inputs, InputOptions | str | Path):
        options = replace(options, inputs=inputs if isinstance(inputs, InputOptions) else InputOptions((Path(inputs),)))
    else:
        arrays = inputs
    return run(models, options, arrays=arrays, progress=progress)


def run(
    models: Sequence[Any], options: BenchOptions, *, arrays: Any = None, progress: Progress = _silent
) -> BenchReport:
    """`benchmark` with its options in one value; `arrays` go before `options.inputs`.

    Raises:
        BnfoldError: see `benchmark`.
        ValueError: there is no model, `options.rounds` is less than FEWEST_ROUNDS, or a gate has no model to ask.
    """
    if not models:
        raise ValueError("there is no model to measure")
    if len(models) < 2 and not options.gate.is_open:
        raise ValueError("what is required of a model needs a baseline in front of it")
    if options.rounds < FEWEST_ROUNDS:
        raise ValueError(f"{plural(options.rounds, 'round')}: too few for an interval, which takes {FEWEST_ROUNDS}")
    began, load = time.perf_counter(), load_average()
    with tempfile.TemporaryDirectory(prefix="bnfold-") as name:
        folder = Path(name)
        subjects = find_subjects(models, folder)
        for subject in subjects:
            for provider in options.providers:
                require(subject.engine, provider)
        feeds = _feeds(subjects, models, options.inputs, arrays)
        with _engines_configured(subjects, options):
            groups = tuple(
                _Group(subjects, setting, feeds, options, folder, progress).measure()
                for setting in _settings(subjects, options)
            )
    return BenchReport(
        tuple(subjects),
        groups,
        options,
        fingerprint(),
        (load, load_average()),
        tuple({name: f"{array.dtype}{list(array.shape)}" for name, array in feed.items()} for feed in feeds),
        time.perf_counter() - began,
    )


def _settings(subjects: Sequence[Subject], options: BenchOptions) -> Iterator[Setting]:
    has_onnx = any(subject.engine is Engine.ONNXRUNTIME for subject in subjects)
    levels: Sequence[Level | None] = options.levels if has_onnx else (None,)
    for provider in options.providers:
        for level in levels:
            yield Setting(provider, level, options.threads, options.compiled, options.tf32, options.custom_ops)


def _engines_configured(subjects: Sequence[Subject], options: BenchOptions) -> AbstractContextManager[None]:
    if all(subject.engine is not Engine.TORCH for subject in subjects):
        return nullcontext()
    from bnfold.runtimes.timed_torch_session import configured

    return configured(Setting("cpu", None, options.threads, options.compiled, options.tf32))


def _feeds(subjects: Sequence[Subject], models: Sequence[Any], options: InputOptions, arrays: Any) -> list[Feeds]:
    """The baseline's inputs, which the other models must take as well."""
    described = [subject for subject in subjects if subject.inputs is not None]
    for subject in described[1:]:
        _check_same(described[0], subject)
    if arrays is None:
        if not described:
            raise UnsupportedModelError("a module does not say what it reads: pass its inputs")
        return find(described[0].inputs or (), options)
    return [_given(described[0] if described else None, models, arrays)]


def _given(subject: Subject | None, models: Sequence[Any], inputs: Any) -> Feeds:
    """Arrays of the caller, by name. Those of a module by position alone are called #0, #1, ..."""
    call = Inputs.of(inputs)
    declared = (subject.inputs if subject else None) or ()
    names = [entry.name for entry in declared] if subject else parameters(models[0]) if call.kwargs else []
    feed = call.arrays(names)
    if subject and call.args and len(names) != len(feed):
        raise IncomparableError(f"{plural(len(feed), 'array')} for a model of {plural(len(names), 'input')}: {names}")
    if missing := [entry.name for entry in declared if entry.name not in feed]:
        raise IncomparableError(f"no array for input {missing[0]!r} (given: {sorted(feed)})")
    return {entry.name: feed[entry.name] for entry in declared} or feed


def _check_same(first: Subject, other: Subject) -> None:
    """Check that inputs and outputs agree in number, type and size, and within one engine in name."""
    mine, theirs = _interface(first, other), _interface(other, first)
    if len(mine) != len(theirs) or not all(map(_fits, mine, theirs)):
        raise IncomparableError(f"{first.name} and {other.name} have other inputs: {_list(mine)} and {_list(theirs)}")
    if len(first.outputs or ()) != len(other.outputs or ()) or (
        first.engine is other.engine is Engine.ONNXRUNTIME and first.outputs != other.outputs
    ):
        raise IncomparableError(f"{first.name} and {other.name} have other outputs")


def _interface(subject: Subject, other: Subject) -> list[Declared]:
    """Declared inputs or outputs, in an order in which they can be compared with another model's."""
    declared = list(subject.inputs or ())
    if subject.engine is other.engine is Engine.ONNXRUNTIME:
        return sorted(declared, key=lambda entry: entry.name)
    return [replace(entry, name="") for entry in declared]


def _fits(one: Declared, other: Declared) -> bool:
    sizes = zip(one.shape, other.shape, strict=False)
    return (
        one.name == other.name
        and one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in sizes)
    )


def _list(declared: Sequence[Declared]) -> str:
    return ", ".join(f"{entry.name} {entry.dtype}{list(entry.shape)}".strip() for entry in declared)


class _Group:
    """The measurement of all models under one provider and level."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        setting: Setting,
        feeds: Sequence[Feeds],
        options: BenchOptions,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.subjects, self.setting, self.options, self.folder = subjects, setting, options, folder
        names = list(feeds[0])
        self.feeds = [[subject.renamed(feed, names) for feed in feeds] for subject in subjects]
        self.stage = " ".join(filter(None, [setting.provider, setting.level]))
        self.progress = progress

    def measure(self) -> Group:
        cold = list(self._cold())  # first: a model that crashes the runtime does so in another process
        details: list[dict[str, Any]] = [{} for _ in self.subjects]
        budget = self.options.seconds
        planned = looks(math.ceil(self.options.rounds / ROUNDS_PER_SITTING)) if budget is None else doubling_looks()
        sittings, self.looks = planned[-1], len(LOOKS) if budget is None else MOST_LOOKS
        end = math.inf if budget is None else time.perf_counter() + budget

        def opener(number: int) -> Callable[[], Session]:
            def create() -> Session:
                session = open_session(
                    self.subjects[number].engine, self.subjects[number].source, self.setting, self.feeds[number]
                )
                details[number] = session.details
                return session

            return create

        *tracks, twin = take_turns(
            [opener(number) for number in (*range(len(self.subjects)), 0)],
            feeds=len(self.feeds[0]),
            warmup=self.options.warmup,
            sittings=sittings,
            seed=self.options.inputs.seed,
            is_done=lambda tracks: self._is_done(tracks, planned, is_late=time.perf_counter() > end),
            advance=lambda done: self.progress(
                f"{self.stage}: rounds", done * ROUNDS_PER_SITTING, sittings * ROUNDS_PER_SITTING
            ),
        )
        return self._judge(tracks, twin, cold, details)

    def _cold(self) -> Iterator[Cold | None]:
        for number, subject in enumerate(self.subjects):
            self.progress(f"{self.stage}: cold starts", number, len(self.subjects))
            feed, options = self.feeds[number][0], self.options
            yield start_cold(subject, self.setting, feed, self.folder, options.starts, options.timeout)
        self.progress(f"{self.stage}: cold starts", len(self.subjects), len(self.subjects))

    def _is_done(self, tracks: Sequence[Track], planned: Sequence[int], *, is_late: bool) -> bool:
        """Whether to stop: at a look, if more rounds decide nothing; when late, if there are enough for an interval."""
        done, gate = len(tracks[0].turns), self.options.gate
        if is_late and done >= FEWEST_SITTINGS:
            return True
        if done not in planned:
            return False
        *ratios, noise = _ratios(tracks, self.looks)
        if gate.is_open:
            return is_narrow([*ratios, noise])
        return all(gate.answer(ratio, noise) is not Answer.UNKNOWN for ratio in ratios)

    def _judge(
        self, tracks: Sequence[Track], twin: Track, cold: Sequence[Cold | None], details: Sequence[dict[str, Any]]
    ) -> Group:
        *ratios, noise = _ratios([*tracks, twin], self.looks)
        baseline, gate, sittings = _starts(tracks[0]), self.options.gate, len(twin.turns)
        entries = [
            Entry(
                subject,
                self.setting,
                track,
                ratio,
                decide(ratio, noise) if number else None,
                gate.answer(ratio, noise) if number and not gate.is_open else None,
                visible_change(ratio, noise, sittings, self.looks) if number else None,
                paired_ratio(_starts(track), baseline),
                cold[number],
                _is_same(cold[0], cold[number]) if number else None,
                details[number],
            )
            for number, (subject, track, ratio) in enumerate(
                zip(self.subjects, tracks, [Ratio(1, 1, 1), *ratios], strict=True)
            )
        ]
        return Group(self.setting, tuple(entries), noise, twin)


def _ratios(tracks: Sequence[Track], looks: int) -> list[Ratio]:
    """The ratios of all other tracks to the first."""
    baseline = tracks[0].medians
    return [paired_ratio(track.medians, baseline, looks=looks) for track in tracks[1:]]


def _is_same(baseline: Cold | None, candidate: Cold | None) -> bool | None:
    if baseline is None or candidate is None or baseline.kernels is None or candidate.kernels is None:
        return None
    return baseline.kernels == candidate.kernels


def _starts(track: Track) -> Any:
    return np.array(track.starts).reshape(-1, 1)
