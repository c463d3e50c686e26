"""The public `verify`, and its form for files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from filecmp import cmp
from functools import partial
from pathlib import Path
from typing import Any

from bnfold.frontends.door import find_entry, open_model
from bnfold.frontends.inputs import Inputs, parameters
from bnfold.frontends.limits import LIMITS, UNLIMITED, Limits
from bnfold.frontends.protocol import OpenOptions
from bnfold.runtimes.inputs import Effort, Feeds, InputOptions, insist_on_fitting
from bnfold.verification.compare import compare
from bnfold.verification.gate import Gate
from bnfold.verification.metrics import Counts
from bnfold.verification.noise import Judgement
from bnfold.verification.observe import Observation
from bnfold.verification.options import CompareOptions
from bnfold.verification.subject import Subject
from bnfold.verification.verdict import ValueVerdict, Verdict


@dataclass(frozen=True)
class Comparison:
    """Two files that were compared.

    Attributes:
        reference, candidate: the files.
        verdict: the verdict on all outputs and inner values.
        seconds: the time that all of it took.
    """

    reference: Path
    candidate: Path
    verdict: Verdict
    seconds: float


def verify(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    dims: Mapping[str, int] | None = None,
    samples: int = 2,
    seed: int = 0,
    effort: Effort | str = Effort.STANDARD,
    providers: Sequence[str] = (),
    atol: float | None = None,
    rtol: float | None = None,
    min_snr: float | None = None,
    min_argmax: float | None = None,
    renamed: Mapping[str, str] | None = None,
    outputs_only: bool = False,
    strict_inside: bool = False,
    allow_interface: bool = False,
    custom_ops: Sequence[str | Path] = (),
    limits: Limits = LIMITS,
) -> Verdict:
    """Whether two models are equivalent, apart from rounding.

    They run in this process, and a crash of a runtime ends it; the command line has them run in another.

    Args:
        reference: the model that is right by definition: an `onnx.ModelProto`, an `onnx_ir.Model`, a
            `torch.export.ExportedProgram`, a `torch.nn.Module`, or the path of an `.onnx` or `.pt2` file.
        candidate: the other one, of any of these kinds.
        inputs: real inputs, in each form that `bnfold.fuse` takes as `example_inputs`, or a list of dicts, one for
            each set; a path as of ``--inputs``. None to draw them from the declared shapes and types: two modules
            declare none, so they need inputs.
        dims: sizes of dynamic dimensions, by symbol.
        samples: how many random inputs are drawn.
        seed: of all that is drawn.
        effort: "fast", "standard" or "thorough": how many inputs, and how many measurements of noise.
        providers: ONNX Runtime execution providers ("cpu", "cuda", ...) on which the candidate must agree too, as
            deployed; "reference" is the evaluator of onnx in float64, for both. With none, it is run on the CPU as
            deployed, and a difference there is a finding.
        atol: absolute tolerance of each element. It and the next three are a gate for conversions that lose digits on
            purpose: the outputs are judged by those of them that are given, in place of the measured budget, over all
            given inputs (or normal random ones) together. Names and floating point types may then differ.
        rtol: relative tolerance of each element.
        min_snr: the smallest ratio of signal to difference of an output, in decibels.
        min_argmax: the smallest share of positions with the same largest class, and of equal integers; 1 for all.
        renamed: the candidate's name for an input or output of the reference, where it has another.
        outputs_only: do not compare inner values that carry the same name.
        strict_inside: an inner value that carries one name in both models must be one value, even where what follows
            takes its difference back.
        allow_interface: what callers of ONNX models meet may differ: a dynamic size that is fixed, an input with a
            default that came or went, an output that is declared in another shape, a name, a floating point type.
        custom_ops: libraries of custom operators for ONNX Runtime.
        limits: how much each model may ask for.

    Returns:
        The verdict; `Verdict.is_equivalent` is the answer.

    Raises:
        IncomparableError: the models have other inputs or outputs, or one cannot be run.
        BnfoldError: a model or an input cannot be read.
    """
    input_options = InputOptions(dims=dims, samples=samples, seed=seed, effort=Effort(effort))
    if isinstance(inputs, str | Path):
        input_options = InputOptions((Path(inputs),), effort=Effort(effort), seed=seed)
    elif inputs is not None:
        given = _given((reference, candidate), inputs)
        input_options = InputOptions(given=given, effort=Effort(effort), seed=seed)
    options = CompareOptions(
        input_options,
        tuple(providers),
        Gate.of(min_snr, min_argmax, atol, rtol),
        outputs_only,
        strict_inside,
        allow_interface,
        renamed or {},
        tuple(map(Path, custom_ops)),
    )
    return compare_models(reference, candidate, options, limits)


def _given(models: tuple[Any, Any], inputs: Any) -> tuple[Feeds, ...]:
    """The sets of arrays that a caller gives, by name; positional ones by number, unless both models are modules."""
    is_list = isinstance(inputs, list | tuple) and all(isinstance(each, Mapping) for each in inputs)
    calls = [Inputs.of(each) for each in (inputs if is_list else [inputs])]
    modules = [model for model in models if (entry := find_entry(model)).part(entry.subject).is_silent(model)]
    is_named = len(modules) == len(models) or any(call.args and call.kwargs for call in calls)
    names = parameters(modules[0]) if modules and is_named else []
    return tuple(call.arrays(names) for call in calls)


def compare_models(reference: Any, candidate: Any, options: CompareOptions, limits: Limits = LIMITS) -> Verdict:
    """`verify`, with its options put together."""
    labels = "the reference", "the candidate"
    return compare(*_subjects((reference, candidate), labels, options, limits), options)


def verify_files(
    reference: Path,
    candidate: Path,
    options: CompareOptions,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    limits: Limits = LIMITS,
) -> Comparison:
    """`verify` for two files, neither of which may ask for more than `limits`.

    Files that hold the same bytes are not run, unless a provider is asked for, which may compute something else.

    Raises:
        BnfoldError: as `verify`.
    """
    start = time.perf_counter()
    first, second = _subjects((reference, candidate), (str(reference), str(candidate)), options, limits)
    if not options.providers and _are_one_model(reference, candidate):
        insist_on_fitting(first.inputs, options.inputs)
        verdict = Verdict(tuple(ValueVerdict(name, SAME, "none") for name in first.outputs), findings=(IDENTICAL,))
    else:
        verdict = compare(first, second, options, partial(progress, "verify"))
    return Comparison(reference, candidate, verdict, time.perf_counter() - start)


IDENTICAL = "both files are the same model, bit for bit, so neither was run"

SAME = Observation(Judgement(0.0, 0.0, 0.0, "identical"), Counts(0, 0))


def _are_one_model(reference: Path, candidate: Path) -> bool:
    """Whether two files hold the same bytes, and so do those of their external data."""
    if not cmp(reference, candidate, shallow=False):
        return False
    both = [open_model(path, OpenOptions(limits=UNLIMITED)).files for path in (reference, candidate)]
    return len(both[0]) == len(both[1]) and all(
        cmp(one, other, shallow=False) for one, other in zip(*both, strict=True)
    )


def _subjects(
    models: tuple[Any, Any], labels: tuple[str, str], options: CompareOptions, limits: Limits
) -> tuple[Subject, Subject]:
    """Both models, ready to run. A module does not declare its inputs: the given ones or the other model tell them."""
    entries = [find_entry(model) for model in models]
    parts = [entry.part(entry.subject) for entry in entries]
    subjects: dict[int, Subject] = {}
    for index in sorted(range(2), key=lambda index: bool(parts[index].is_silent(models[index]))):
        feeds = options.inputs.given[0] if options.inputs.given else None
        subjects[index] = parts[index].open_subject(
            models[index], labels[index], limits, feeds, subjects.get(1 - index), options.custom_ops
        )
    return subjects[0], subjects[1]
