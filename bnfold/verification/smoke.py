"""The smoke run: original and result, each loaded and run once on one input, after the result was proved.

It finds what a proof cannot see: a runtime that does not take the result, or computes something else with it. So it may
be coarse: it calls a result different only far beyond anything that rounding can do (`judge`).

``python -m bnfold.verification.smoke`` is the process in which both run, one after the other: it reads a JSON document
from standard input, which `run_once` writes, and writes one to standard output.
"""

from __future__ import annotations

import re
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError, NoEvidenceError
from bnfold.runtimes.child import CrashError, run_module, serve
from bnfold.runtimes.inputs import Declared, Feeds, InputOptions, find_one, insist_on_fitting
from bnfold.runtimes.onnx_runtime import OnnxSession
from bnfold.verification.evidence import insist_on_evidence

if TYPE_CHECKING:
    from bnfold.verification.subject import Subject

AnyArray = npt.NDArray[Any]

STEPS = 2
"""By how many units in the last place rounding moves a weight, with a margin."""

SECONDS = 300.0
"""How long both runs may take."""

FACTOR = 1000.0
"""How many times farther than rounding moves an output a wrong one is from the original's."""

REACH = 32
"""How many times farther than by rounding weights are moved to measure that, so that jumps within reach are seen."""

DRAWS = 3
"""How many times the effect of rounding is measured, where an output is far off."""

LOST = frozenset({int(signal.SIGKILL), int(signal.SIGTERM)} if hasattr(signal, "SIGKILL") else {int(signal.SIGTERM)})
"""Signals that come from outside (where memory is short, for example) and tell nothing about a model."""

OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate")
"""Errors that tell nothing about a model either."""

ABOUT = "the result"
"""The line on standard output once the original has run."""


@dataclass(frozen=True)
class SmokeRun:
    """The outcome of running both models once.

    Attributes:
        has_run: whether both could be run.
        error: the largest difference of an output, over the largest value of that output; None where none was compared.
        difference: a sentence on a difference that rounding does not explain; empty where there is none.
        notes: why they were not run, or why an output was not compared.
        shapes: the shapes of the inputs.
        seconds: the time that it took.
        runtime: the runtime that ran them.
    """

    has_run: bool
    error: float | None = None
    difference: str = ""
    notes: tuple[str, ...] = ()
    shapes: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    runtime: str = "onnxruntime"


def run_once(
    original: Path,
    result: Path,
    declare: Callable[[], Sequence[Declared]],
    inputs: InputOptions,
    custom_ops: Sequence[Path] = (),
) -> SmokeRun:
    """Run both models in a process of their own. If the original does not run, that is a note.

    Args:
        original: the file of the original.
        result: the file of the result, with the same inputs and outputs.
        declare: gives the inputs that the models declare.
        inputs: what they run on: the first of the caller's inputs, or a drawn one.
        custom_ops: libraries of custom operators.

    Raises:
        BnfoldError: the caller's inputs do not fit, or show nothing.
    """
    began = time.perf_counter()
    if find_spec("onnxruntime") is None:
        return _not_run("onnxruntime is not installed (pip install 'bnfold[cpu]')")
    try:
        declared = declare()
    except IncomparableError as error:
        return _not_run(_explain(str(error)))
    insist_on_fitting(declared, inputs)
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "models": [str(original), str(result)],
            "declared": [
                [
                    entry.name,
                    entry.dtype.name,
                    entry.shape,
                    entry.span and [entry.span.start, entry.span.stop],
                    entry.has_rank,
                ]
                for entry in declared
            ],
            "inputs": [str(path) for path in inputs.paths],
            "dims": dict(inputs.dims or {}),
            "seed": inputs.seed,
            "custom_ops": [str(library) for library in custom_ops],
        }
        if inputs.given:
            np.savez(Path(folder) / "inputs.npz", **inputs.given[0])  # type: ignore[arg-type]
            job["inputs"] = [str(Path(folder) / "inputs.npz")]
        try:
            answer = run_module("bnfold.verification.smoke", job, "the model", SECONDS)
        except CrashError as error:
            run = _not_run(f"onnxruntime crashed on it (signal {error.signal})")
            if ABOUT in error.said and error.signal not in LOST:
                crash = f"onnxruntime crashes on the result (signal {error.signal}), and not on the original"
                run = SmokeRun(True, difference=crash)
            return replace(run, seconds=time.perf_counter() - began)
        except NoEvidenceError:
            raise
        except IncomparableError as error:
            return replace(_not_run(_explain(str(error))), seconds=time.perf_counter() - began)
    return SmokeRun(
        True,
        answer["largest"],
        answer["difference"],
        tuple(answer["notes"]),
        answer["shapes"],
        time.perf_counter() - began,
    )


def _not_run(why: str) -> SmokeRun:
    return SmokeRun(False, notes=(f"not run: {why}",))


EXPLANATIONS = (
    (r"Could not find an implementation for (\S+)", r"onnxruntime has no kernel for \1 of this type"),
    (
        r"Type 'tensor\((\w+)\)' of \w+ parameter \(.*\) of operator \((\w+)\)",
        r"onnxruntime has no kernel for \1 in \2",
    ),
    (r"Fatal error: (\S+?)\(.*\) is not a registered function/op", r"onnxruntime does not know the operator \1"),
)
"""Messages of ONNX Runtime, and their meaning."""


def _explain(message: str) -> str:
    """An error of the runtime, in words for people."""
    for pattern, meaning in EXPLANATIONS:
        if (match := re.search(pattern, message)) is not None:
            return match.expand(meaning)
    return message.removeprefix("the model: ")


# ------------------------------------------------------------------------------------------------ in the other process


@dataclass(frozen=True)
class Distance:
    """How far an output is from the original's.

    Attributes:
        error: the largest difference over the largest value; 0 where that has no meaning.
        what: a sentence where shape, type, integers or finiteness are not the same; else empty.
    """

    error: float = 0.0
    what: str = ""

    def is_beyond(self, dtype: np.dtype[Any]) -> bool:
        """Whether it is farther than an output usually moves: half of its digits."""
        return bool(self.what) or self.error > _unit(dtype) ** 0.5


def measure(expected: AnyArray, actual: AnyArray) -> Distance:
    """Measure how far an output is from the original's. Where that overflows, nothing is said."""
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        is_, was = (f"{array.dtype}{list(array.shape)}" for array in (actual, expected))
        return Distance(what=f"is {is_} and was {was}")
    if not _is_float(expected.dtype):
        return Distance(what="" if np.array_equal(expected, actual) else f"holds other values of type {expected.dtype}")
    mine, its = (array if array.dtype.kind == "c" else array.astype(np.float64) for array in (expected, actual))
    known = np.isfinite(mine)
    if not np.isfinite(its[known]).all():
        return Distance(what="holds NaN or infinity, where the original has numbers")
    largest = float(np.abs(mine[known]).max(initial=0.0))
    return Distance(float(np.abs(mine[known] - its[known]).max(initial=0.0)) / (largest or 1.0))


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" or dtype.name == "bfloat16"


def _unit(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps) if _is_float(dtype) else 0.0  # type: ignore[no-untyped-call]


Outputs = dict[str, AnyArray]


def compare(original: Callable[[], Subject], feeds: Feeds, expected: Outputs, actual: Outputs) -> dict[str, Any]:
    """Compare the outputs. The original is loaded again where one of them is suspected."""
    distances = {name: measure(expected[name], actual[name]) for name in expected}
    suspects = [name for name, distance in distances.items() if distance.is_beyond(expected[name].dtype)]
    notes, difference = (
        judge(original(), feeds, expected, {name: distances[name] for name in suspects}) if suspects else ([], "")
    )
    errors = [distance.error for name, distance in distances.items() if name not in suspects]
    return {"largest": max(errors, default=None), "difference": difference, "notes": notes}


def judge(subject: Subject, feeds: Feeds, expected: Outputs, suspects: dict[str, Distance]) -> tuple[list[str], str]:
    """Judge outputs that are far from the original's: notes, and a sentence on a difference.

    An output is wrong only if it is a thousand times farther off than the original moves by itself, when it runs again
    and when its weights move by some units in their last place. Nothing is said of outputs behind operators that jump.
    """
    names = list(suspects)
    run = subject.start(names)
    again = [dict(zip(names, run(feeds), strict=True)) for _ in range(2)]
    del run
    reasons = {
        name: "it lies behind an operator that jumps, as ArgMax does" for name in names if name in subject.jumps()
    }
    for name in names:
        if any(measure(expected[name], outputs[name]).is_beyond(expected[name].dtype) for outputs in again):
            reasons[name] = "the model draws random numbers"
    moved = _move(subject, feeds, {name: expected[name] for name in names if name not in reasons})
    difference = ""
    for name, distances in moved.items():
        noise = max((distance.error for distance in distances), default=0.0) / REACH
        if not distances or any(distance.what for distance in distances):
            reasons[name] = "rounding alone makes another of it, or cannot be measured"
        elif suspects[name].what:
            difference = difference or f"output {name!r} {suspects[name].what}"
        elif suspects[name].error > FACTOR * noise:
            off = f"is off by {suspects[name].error:.1e} of its size, and rounding alone moves it by {noise:.1e}"
            difference = difference or f"output {name!r} {off}"
        else:
            reasons[name] = f"rounding alone moves it by {noise:.1e} of its size"
    return [f"output {name!r} is not compared: {why}" for name, why in reasons.items()], difference


def _move(subject: Subject, feeds: Feeds, expected: Outputs) -> dict[str, list[Distance]]:
    """How far outputs move with the last digits of the weights; empty lists where that is not measurable."""
    from bnfold.verification.onnx_weights import Disturbance

    moved: dict[str, list[Distance]] = {name: [] for name in expected}
    try:
        for draw in range(DRAWS if expected else 0):
            run = subject.start(list(expected), Disturbance(draw, REACH * STEPS))
            for name, array in zip(expected, run(feeds), strict=True):
                moved[name].append(measure(expected[name], array))
    except IncomparableError:
        return {name: [] for name in expected}
    return moved


def _run(job: dict[str, Any]) -> dict[str, Any]:
    models = [Path(path) for path in job["models"]]
    declared = [
        Declared(name, np.dtype(dtype), tuple(shape), range(*span) if span else None, has_rank)
        for name, dtype, shape, span, has_rank in job["declared"]
    ]
    paths, custom_ops = tuple(map(Path, job["inputs"])), tuple(map(Path, job["custom_ops"]))
    expected: Outputs = {}

    def run(session: OnnxSession, feeds: Feeds) -> Outputs:
        names = session.outputs()
        return dict(zip(names, session(feeds, names), strict=True))

    def attempt(session: OnnxSession, feeds: Feeds) -> IncomparableError | None:
        try:
            expected.update(run(session, feeds))
        except IncomparableError as error:
            return error
        return None

    def original() -> Feeds:
        session = OnnxSession(models[0], "the model", custom_ops=custom_ops)  # freed at the end
        options = InputOptions(paths, job["dims"], seed=job["seed"])
        return find_one(declared, options, lambda feeds: attempt(session, feeds))

    feeds = original()
    if paths:
        insist_on_evidence(paths[0].name, feeds, list(expected.values()))
    print(ABOUT, flush=True)
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    try:
        actual = run(OnnxSession(models[1], "the result", custom_ops=custom_ops), feeds)
    except IncomparableError as error:
        if any(word in str(error) for word in OUT_OF_MEMORY):
            raise
        return {"largest": None, "difference": str(error), "notes": [], "shapes": shapes}
    return {**compare(lambda: _subject(models[0], custom_ops), feeds, expected, actual), "shapes": shapes}


def _subject(model: Path, custom_ops: Sequence[Path]) -> Subject:
    from bnfold.frontends.limits import UNLIMITED
    from bnfold.frontends.onnx.files.loading import read_proto
    from bnfold.verification.onnx_subject import OnnxSubject

    return OnnxSubject(read_proto(model, UNLIMITED), "the model", model, custom_ops=custom_ops)


if __name__ == "__main__":
    serve(_run)
