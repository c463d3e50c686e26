"""The public functions: what the command line and Python users call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, TypeVar, Unpack, overload

import onnx
import onnx_ir as ir

from bnfold.difference.compare import Difference, compare
from bnfold.difference.interface import find_interface_changes
from bnfold.errors import (
    InvalidModelError,
    NotEquivalentError,
    OutputError,
    OutputExistsError,
    UnreadableTensorError,
    UnsupportedModelError,
)
from bnfold.frontends.door import find_entry, open_model
from bnfold.frontends.limits import LIMITS, UNLIMITED, Limits
from bnfold.frontends.onnx.files.publishing import beside, publish, staging
from bnfold.frontends.protocol import Cautions, OpenModel, OpenOptions, Size, Written
from bnfold.graph.cost import Cost, measure_costs
from bnfold.graph.ops import Form, Lowered
from bnfold.graph.outcome import Fold, Merge, Outcome, Refusal
from bnfold.graph.protocol import Graph
from bnfold.planning.changes import trace_changes
from bnfold.planning.fold import fold
from bnfold.planning.lowering import describe_lowered, find_lowered
from bnfold.planning.plan import Plan
from bnfold.planning.planner import make_plan
from bnfold.proof import inlining
from bnfold.proof.certificate import Certificate
from bnfold.proof.checker import Proof
from bnfold.proof.ledger import Ledger
from bnfold.proof.models import Files, digest
from bnfold.runtimes.inputs import DRAWN, InputOptions
from bnfold.verification.attestation import Seal, attest, describe
from bnfold.verification.confirm import confirmer
from bnfold.verification.equivalence import Comparison, verify_files
from bnfold.verification.onnx_proof import deeds_of
from bnfold.verification.options import CompareOptions
from bnfold.verification.proving import begin, check_files
from bnfold.verification.smoke import SmokeRun
from bnfold.verification.verdict import Verdict

Progress = Callable[[str, int, int], None]
"""A function that is called with a stage's name, the steps done and their total."""


class TorchModel(Protocol):
    """A torch module or program, recognised by a common attribute, so that torch need not be imported here."""

    @property
    def state_dict(self) -> Any:
        """The parameters and buffers, or a method that returns them."""


M = TypeVar("M", bound=onnx.ModelProto | ir.Model | TorchModel)


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Selection:
    """The candidates that may fold, by node name: those that match `only` (all, if empty) and not `skip`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __call__(self, name: str) -> bool:
        """Whether the candidate of that name may fold."""
        wanted = not self.only or any(fnmatchcase(name, glob) for glob in self.only)
        return wanted and not any(fnmatchcase(name, glob) for glob in self.skip)


EVERYTHING = Selection()

STANDARD = CompareOptions()


class Checks(StrEnum):
    """The checks of `fuse` before it writes a result.

    PROOF proves each fold and runs original and result once, FULL compares them on many inputs by measured budgets as
    well, NONE does neither. A kind of model without a prover is compared in full in place of the proof.
    """

    PROOF = "proof"
    FULL = "full"
    NONE = "none"


@dataclass(frozen=True)
class FileResult:
    """The result of folding a file, or of the plan for it.

    Attributes:
        model, output: the files; no output where nothing is written.
        outcomes: one for each BatchNorm, one for each other per-channel affine that folds, and one for each merge.
        warnings: warnings about running statistics and declared shapes.
        before, after: sizes; `after` is None where nothing is written.
        verdict: of the verification; None where it was not asked for.
        seconds: the time that all of it took.
        proof: the proof; None where there was none.
        smoke: the smoke run; None where there was none.
        costs: what each BatchNorm costs in the original, by scope and name.
    """

    model: Path
    output: Path | None
    outcomes: tuple[Outcome, ...]
    warnings: Cautions
    before: Size
    after: Size | None
    verdict: Verdict | None
    seconds: float
    proof: Proof | None = None
    smoke: SmokeRun | None = None
    costs: Mapping[tuple[str, str], Cost] = field(default_factory=dict)


def plan(
    model: Any,
    *,
    example_inputs: Any = None,
    merge: bool = True,
    limits: Limits = LIMITS,
    code: Literal["change", "keep"] = "change",
    preserve: Sequence[str] | None = None,
) -> tuple[Outcome, ...]:
    """Plan what `fuse` would do with each BatchNorm, with the reason for each that stays. The model is only read.

    Args:
        model: as for `fuse`.
        example_inputs: as for `fuse`.
        merge: whether linear operators may become one.
        limits: how much the model may ask for.
        code: as for `fuse`.
        preserve: as for `fuse`.

    Raises:
        BnfoldError: the model cannot be read.
    """
    options = _options(limits, merge=merge, example_inputs=example_inputs, code=code, preserve=preserve)
    opened = open_model(model, options)
    decided, _ = _decide(opened, merge=merge)
    return _explain(opened, decided, merge=merge)


def _options(
    limits: Limits,
    inputs: InputOptions = DRAWN,
    selection: Selection = EVERYTHING,
    *,
    merge: bool = True,
    **further: Any,
) -> OpenOptions:
    """The options for opening a model. One whose shapes are only declared is run on `inputs` to confirm them."""

    def rehearse(graph: Graph[Any, Any]) -> None:
        fold(graph, make_plan(graph, selected=selection, merge=merge))

    observe = partial(confirmer, inputs=inputs)
    return OpenOptions(limits=limits, observe=observe, rehearse=rehearse, inliner=inlining, **further)


class FuseOptions(TypedDict, total=False):
    """The further arguments of `fuse`, described there."""

    inplace: bool
    only: Sequence[str]
    skip: Sequence[str]
    merge: bool
    limits: Limits
    example_inputs: Any
    prove: bool
    code: Literal["change", "keep"]
    share: bool
    lower: Literal["depthwise", "mul-add"] | None
    preserve: Sequence[str] | None


@overload
def fuse(model: M, *, return_outcomes: Literal[False] = ..., **options: Unpack[FuseOptions]) -> M: ...
@overload
def fuse(
    model: M, *, return_outcomes: Literal[True], **options: Unpack[FuseOptions]
) -> tuple[M, tuple[Outcome, ...]]: ...
@overload
def fuse(model: str | Path, *, return_outcomes: Literal[False] = ..., **options: Unpack[FuseOptions]) -> Any: ...
@overload
def fuse(
    model: str | Path, *, return_outcomes: Literal[True], **options: Unpack[FuseOptions]
) -> tuple[Any, tuple[Outcome, ...]]: ...
@overload
def fuse(model: object, *, return_outcomes: bool, **options: Unpack[FuseOptions]) -> Any: ...


def fuse(
    model: Any,
    *,
    inplace: bool = False,
    return_outcomes: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    merge: bool = True,
    limits: Limits = LIMITS,
    example_inputs: Any = None,
    prove: bool = True,
    code: Literal["change", "keep"] = "change",
    share: bool = False,
    lower: Literal["depthwise", "mul-add"] | None = None,
    preserve: Sequence[str] | None = None,
) -> Any:
    """The same model with every BatchNorm folded that can fold exactly.

    Args:
        model: a `torch.nn.Module`, a `torch.fx.GraphModule`, a `torch.export.ExportedProgram`, an `onnx.ModelProto`, an
            `onnx_ir.Model`, the `ONNXProgram` that `torch.onnx.export` gives back, or the path of an `.onnx` or `.pt2`
            file.
        inplace: change the argument instead of a copy.
        return_outcomes: return the outcomes as well, one for each BatchNorm and one for each merge.
        only: glob patterns; only nodes with such a name fold, where any is given.
        skip: glob patterns; nodes with such a name stay.
        merge: let parallel linear branches, and linear operators in a row, become one where that is exact and cheaper.
        limits: how much the model may ask for; a model that asks for more is an `InvalidModelError`.
        example_inputs: what a torch module is called with: a tuple of arguments, keyword arguments by name (a dict or
            another mapping), a tuple of these both, or the only argument; tensors or arrays. Needed where the forward
            cannot be traced symbolically; otherwise it tells the shapes. The result then stands for calls with the same
            arguments given, and tensors of the same ranks. Where a fold is only right as long as code that asks for a
            size decides alike, a call of another size raises an error. A size of 1 says less than one of 2, since an
            export may take it for fixed.
        prove: prove each fold by its weights before anything is returned, without running the model. Of a module this
            is done for what is captured of it before and afterwards; one that is not proved is as it was. With
            `inplace`, another model that is not proved has been changed all the same.
        code: "keep" forbids a torch module new forward code: what only that would fold stays, with the reason.
        share: let the tensors of a torch model that no fold changes be those of the argument.
        lower: what BatchNorms that stay are written as, for runtimes that have none: a depthwise convolution of one
            tap, or Mul and Add. Each of the new parameters is rounded once, and outcomes say so; ONNX models only.
        preserve: methods of a torch module that give back the same as before on the same inputs. If left out, these are
            forward, and of the public methods ``forward_*`` those that forward calls, or that with `example_inputs` are
            found to compute what forward computes; no fold goes across what they give back, but with `("forward",)`.
            `Fold.crosses` names the submodules and methods that do give back something else.

    Returns:
        What was given. An `nn.Module` comes back as the same class, a ModelProto as a ModelProto, a path as what the
        file holds: an `ExportedProgram`, or an `onnx_ir.Model`, whose new weights are lazy tensors, computed when they
        are read or saved. Where the forward code of a torch module has to change, the smallest submodule that holds the
        place gets generated code, by a subclass of its own class.

    Raises:
        NotEquivalentError: the result is not proved, which is a bug of bnfold.
        BnfoldError: the model cannot be read.
    """
    selection = Selection(tuple(only), tuple(skip))
    options = _options(
        limits,
        selection=selection,
        merge=merge,
        inplace=inplace,
        example_inputs=example_inputs,
        code=code,
        share=share,
        preserve=preserve,
    )
    opened = open_model(model, options)
    decided, _ = _decide(opened, selection, merge=merge, lower=lower)
    lowered = _lowered(opened, decided, lower)
    outcomes = (
        describe_lowered(opened.graph, lowered, _explain(opened, decided, merge=merge)) if return_outcomes else ()
    )
    prover = begin(find_entry(model), opened, lambda: trace_changes(opened.graph, decided)) if prove else None
    fold(opened.graph, decided, lowered)
    proved = None if prover is None else prover.prove()
    if proved is not None and not proved.is_proved:
        raise NotEquivalentError(f"the result is not returned, since {_unproved(proved)}", proved)
    fused = opened.finish()
    return (fused, outcomes) if return_outcomes else fused


def _lowered(opened: OpenModel, decided: Plan[Any, Any], form: str | None) -> dict[Any, Lowered]:
    """The BatchNorms that a plan leaves, with their lowered forms; none without a form.

    Raises:
        UnsupportedModelError: the model is no ONNX model.
    """
    if form is None:
        return {}
    if not opened.graph.can_lower:
        raise UnsupportedModelError("only BatchNorms of ONNX models are written as other operators so far")
    return find_lowered(opened.graph, decided, Form(form))


def certify(
    model: onnx.ModelProto,
    *,
    merge: bool = True,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    lower: Literal["depthwise", "mul-add"] | None = None,
) -> tuple[onnx.ModelProto, Certificate]:
    """The folded model of a protobuf whose tensors are inside, with its certificate."""
    opened = open_model(model, _options(LIMITS))
    decided, _ = _decide(opened, Selection(tuple(only), tuple(skip)), merge=merge, lower=lower)
    graph: Any = opened.graph
    ledger, deeds = Ledger.of(graph.model, graph.inlined), deeds_of(graph, trace_changes(graph, decided))
    fold(opened.graph, decided, _lowered(opened, decided, lower))
    result: onnx.ModelProto = opened.finish()
    return result, ledger.certificate(deeds, digest(Files(model)), digest(Files(result)))


def _decide(
    opened: OpenModel,
    selection: Selection = EVERYTHING,
    progress: Progress = _silent,
    *,
    merge: bool,
    lower: str | None = None,
) -> tuple[Plan[Any, Any], bool]:
    """The plan, and whether knowledge about the model changed it. That is tried where a BatchNorm stays."""

    def attempt() -> Plan[Any, Any]:
        show = partial(progress, "plan")
        return make_plan(opened.graph, selected=selection, merge=merge, progress=show)

    def replan(graph: Graph[Any, Any]) -> tuple[Outcome, ...]:
        return _seen(graph, make_plan(graph, selected=selection, merge=merge), lower)

    first = attempt()
    is_done = not any(isinstance(outcome, Refusal) for outcome in first.outcomes)
    if is_done or not opened.learn(_seen(opened.graph, first, lower), replan):
        return first, False
    decided = attempt()
    return decided, decided.outcomes != first.outcomes


def _seen(graph: Graph[Any, Any], decided: Plan[Any, Any], form: str | None) -> tuple[Outcome, ...]:
    """The outcomes of a plan, in which a BatchNorm that will be lowered is as good as one that folds."""
    if form is None or not graph.can_lower:
        return decided.outcomes
    gone = {(graph.name(node), graph.scope(node)) for node in find_lowered(graph, decided, Form(form))}
    return tuple(
        Fold(outcome.batchnorm, outcome.scope, form, (), ()) if (outcome.batchnorm, outcome.scope) in gone else outcome
        for outcome in decided.outcomes
        if not isinstance(outcome, Merge)
    )


def _explain(opened: OpenModel, decided: Plan[Any, Any], *, merge: bool) -> tuple[Outcome, ...]:
    def replan(graph: Graph[Any, Any]) -> tuple[Outcome, ...]:
        return make_plan(graph, merge=merge).outcomes

    return opened.explain(decided.outcomes, replan)


def inspect_file(
    model: Path, *, merge: bool = True, limits: Limits = LIMITS, progress: Progress = _silent
) -> FileResult:
    """Plan what `fuse_file` would do, and write nothing.

    Raises:
        BnfoldError: the file cannot be read.
    """
    start = time.perf_counter()
    with _naming(model):
        opened = open_model(model, _options(limits))
        decided, has_learnt = _decide(opened, progress=progress, merge=merge)
        outcomes, warnings = _explain(opened, decided, merge=merge), opened.warn(has_learnt=has_learnt)
        costs = measure_costs(opened.graph)
    seconds = time.perf_counter() - start
    return FileResult(model, None, outcomes, warnings, opened.measure(), None, None, seconds, costs=costs)


def diff(one: Any, other: Any, *, example_inputs: Any = None, limits: Limits = LIMITS) -> Difference:
    """What changed from one model to another, and where each BatchNorm of the first went, whatever tool did it.

    Args:
        one: a model as for `fuse`, which is only read, like the other.
        other: another one, of the same kind or not.
        example_inputs: as for `fuse`, for both. Without them, little is known of the weights of a graph module.
        limits: how much a model may ask for.

    Raises:
        BnfoldError: a model cannot be read.
    """
    opened = _open_for_reading(one, other, limits, example_inputs)
    return _compare(*opened, is_one_kind=find_entry(one) is find_entry(other))


def _open_for_reading(one: Any, other: Any, limits: Limits, example_inputs: Any = None) -> tuple[OpenModel, OpenModel]:
    options = replace(_options(limits, example_inputs=example_inputs), spell_out=True)
    return open_model(one, options), open_model(other, options)


def _compare(one: OpenModel, other: OpenModel, *, is_one_kind: bool) -> Difference:
    def decide(model: OpenModel) -> Plan[Any, Any]:
        return _decide(model, merge=True)[0]

    def explain(model: OpenModel) -> tuple[Outcome, ...]:
        return _explain(model, decide(model), merge=True)

    return compare(one, other, decide, explain, is_one_kind=is_one_kind)


@dataclass(frozen=True)
class DiffResult:
    """The result of comparing two files.

    Attributes:
        one: A.
        other: B.
        difference: what changed.
        interface: a sentence for each thing that a caller meets and that is not the same.
        seconds: the time that it took.
    """

    one: Path
    other: Path
    difference: Difference
    interface: tuple[str, ...]
    seconds: float

    @property
    def is_identical(self) -> bool:
        """Whether nothing differs."""
        return self.difference.is_empty and not self.interface


def diff_files(one: Path, other: Path, *, limits: Limits = LIMITS) -> DiffResult:
    """What changed from one file to another; see `diff`.

    Raises:
        BnfoldError: a file cannot be read.
    """
    start = time.perf_counter()
    try:
        opened = _open_for_reading(one, other, limits)
        found = _compare(*opened, is_one_kind=find_entry(one) is find_entry(other))
    except UnreadableTensorError as error:
        raise InvalidModelError(f"{one} or {other}: {error}") from error
    interface = find_interface_changes(*opened, (str(one), str(other)), limits)
    return DiffResult(one, other, found, interface, time.perf_counter() - start)


def fuse_file(
    model: Path,
    output: Path,
    *,
    selection: Selection = EVERYTHING,
    merge: bool = True,
    checks: Checks | str = Checks.PROOF,
    comparison: CompareOptions = STANDARD,
    overwrite: bool = False,
    limits: Limits = LIMITS,
    progress: Progress = _silent,
    proof: Path | None = None,
    attestation: Path | None = None,
    render: Callable[[FileResult, Written], Mapping[Path, str]] = lambda result, written: {},
    lower: Literal["depthwise", "mul-add"] | None = None,
    verify: Callable[..., Comparison] = verify_files,
) -> FileResult:
    """Fold a file into another, which appears complete or not at all, and only if it is equivalent.

    Args:
        model: the file to read.
        output: the file to write; it may be the same with `overwrite`.
        selection: the BatchNorms that may fold.
        merge: whether linear operators may become one.
        checks: the checks before the result is written.
        comparison: how the models are compared, if they are run.
        overwrite: replace an `output` that exists.
        limits: how much `model` may ask for.
        progress: called at each stage.
        proof: where to write the certificate, once the checker has accepted it; for ONNX models only.
        attestation: where to write an in-toto statement about all of it.
        render: texts to write beside the output, all or nothing, given the result and the files as they are now.
        lower: as for `fuse`.
        verify: compares two files as `verify_files` does, in another process for example.

    Raises:
        OutputExistsError: `output` exists and `overwrite` is False.
        NotEquivalentError: the result differs from the original, or is not proved; nothing was written.
        BnfoldError: the file cannot be read, run or written.
    """
    start, checks = time.perf_counter(), Checks(checks)
    _insist_on_writable(output, overwrite=overwrite)
    entry = find_entry(model)
    if find_entry(output) is not entry:
        raise OutputError(f"{output}: an output has the format of its model, {model.suffix or 'ONNX'}")
    taken = {model.absolute(), output.absolute()}
    for path, what in ((proof, "a certificate"), (attestation, "an attestation")):
        if path is not None:
            _insist_on_writable(path, overwrite=overwrite)
            if path.absolute() in taken:
                raise OutputError(f"{path}: {what} needs a file of its own")
            taken.add(path.absolute())
    with _naming(model):
        opened = open_model(model, _options(limits, comparison.inputs, inplace=True))
        before = opened.measure()
        seal = Seal.of(opened.files)
        decided, has_learnt = _decide(opened, selection, progress, merge=merge, lower=lower)
        lowered = _lowered(opened, decided, lower)
        outcomes = describe_lowered(opened.graph, lowered, _explain(opened, decided, merge=merge))
        warnings, costs = opened.warn(has_learnt=has_learnt), measure_costs(opened.graph)
        prover = None
        if checks is not Checks.NONE or proof is not None or attestation is not None:
            prover = begin(entry, opened, lambda: trace_changes(opened.graph, decided))
        if prover is None and proof is not None:
            raise UnsupportedModelError(f"{model}: folds of such models have no certificate")
        fold(opened.graph, decided, lowered)
    proved: Proof | None = None
    smoke: SmokeRun | None = None
    verdict: Verdict | None = None

    def result(written: Written | None = None) -> FileResult:
        after = None if written is None else Size(opened.measure().nodes, written.bytes)
        place, seconds = None if written is None else output, time.perf_counter() - start
        return FileResult(model, place, outcomes, warnings, before, after, verdict, seconds, proved, smoke, costs)

    with staging(output) as folder:
        with _naming(model):
            written = opened.save(folder / output.name)
        if prover is not None:
            progress("prove", 0, 1)
            proved = prover.prove_file(model, written)
            if not proved.is_proved:
                raise NotEquivalentError(f"{output}: not written, since {_unproved(proved)}", result())
            progress("prove", 1, 1)
        if checks is Checks.FULL or (checks is Checks.PROOF and prover is None):
            verdict = verify(model, written.model, comparison, limits=UNLIMITED, progress=progress).verdict
            if not verdict.is_equivalent:
                guilty = _guilty(model, folder, outcomes, comparison, limits, verify, merge=merge)
                raise NotEquivalentError(_complaint(output, verdict, guilty), result())
        elif checks is Checks.PROOF and prover is not None and proved is not None and not proved.is_identical:
            smoke = prover.run_once(model, written, comparison.inputs, comparison.custom_ops)
            if smoke.difference:
                raise NotEquivalentError(f"{output}: not written, since {_unlike(smoke)}", result())
        texts = {}
        if proof is not None and prover is not None:
            texts[proof] = prover.certify(written).to_json()
        if attestation is not None:
            subject = [describe(file, file.name) for file in reversed(written.files)]
            options = {
                "only": [*selection.only],
                "skip": [*selection.skip],
                "merge": merge,
                "lower": lower,
                "verify": str(checks),
            }
            texts[attestation] = attest(subject, seal.describe(), options, outcomes, proved, smoke, verdict)
        done = result(written)
        texts |= render(done, written)
        with beside(texts):
            publish(written, output)
    return replace(done, seconds=time.perf_counter() - start)


def _unproved(proved: Proof) -> str:
    """The first obligation that is not proved, in one line."""
    return f"it is not proved: {proved.failures[0]}; please report this as a bug"


def _unlike(smoke: SmokeRun) -> str:
    return f"it is proved, and yet does not run like the original: {smoke.difference}; please report this as a bug"


@dataclass(frozen=True)
class ProofResult:
    """The result of checking a certificate.

    Attributes:
        reference, candidate: the files.
        proof: the proof, with its obligations.
    """

    reference: Path
    candidate: Path
    proof: Proof


def prove_files(reference: Path, candidate: Path, certificate: Path, limits: Limits = LIMITS) -> ProofResult:
    """Whether a certificate proves that two ONNX files are the same model; runs neither.

    Raises:
        BnfoldError: a file cannot be read, or the certificate is of other models, or none.
    """
    try:
        if certificate.stat().st_size > limits.bytes:
            raise InvalidModelError(f"{certificate}: has more than {limits.bytes} bytes")
        text = certificate.read_bytes()
    except OSError as error:
        raise InvalidModelError(f"{certificate}: {error.strerror}") from error
    claimed = Certificate.from_json(text, str(certificate))
    return ProofResult(reference, candidate, check_files(reference, candidate, claimed, limits))


def _guilty(
    model: Path,
    folder: Path,
    outcomes: Sequence[Outcome],
    comparison: CompareOptions,
    limits: Limits,
    verify: Callable[..., Comparison],
    *,
    merge: bool,
) -> str | None:
    """The step that makes the difference, found by bisection in a folder for trials; None where none stands out.

    It is a merge, or the first fold such that the result of the folds before it is still equivalent.
    """
    names = [outcome.batchnorm for outcome in outcomes if isinstance(outcome, Fold)]
    escaped = [escape(name) for name in names]

    def is_equivalent(count: int) -> bool:
        opened = open_model(model, _options(limits, comparison.inputs, inplace=True))
        decided, _ = _decide(opened, Selection(tuple(escaped[:count]) or ("",)), merge=False)
        fold(opened.graph, decided)
        trial = opened.save(folder / f"trial{model.suffix}")
        return verify(model, trial.model, comparison, limits=UNLIMITED).verdict.is_equivalent

    good, bad = 0, len(names)
    if not is_equivalent(good):
        return None
    if is_equivalent(bad):
        return "a merge of linear operators (--no-merge goes without)" if merge else None
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if is_equivalent(middle) else (good, middle)
    return f"the fold of {names[bad - 1]!r}"


def _complaint(output: Path, verdict: Verdict, guilty: str | None) -> str:
    worst = verdict.first_divergence.verdict if verdict.first_divergence else verdict.worst
    by = f"; {guilty} is the first that makes a difference" if guilty else ""
    return (
        f"{output}: not written, since {worst.name!r} differs from the original's: {worst.reason} "
        f"(error {worst.error:.2e}, budget {worst.budget:.2e}){by}; please report this as a bug"
    )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the name of the model to the errors about it."""
    try:
        yield
    except UnreadableTensorError as error:
        raise InvalidModelError(f"{path}: {error}") from error


def _insist_on_writable(output: Path, *, overwrite: bool) -> None:
    try:
        if os.path.lexists(output) and not overwrite:
            raise OutputExistsError(f"{output}: exists already; use --overwrite to replace it")
        if output.is_dir():
            raise OutputExistsError(f"{output}: is a folder")
        if output.exists() and not output.is_file():
            raise OutputExistsError(f"{output}: is a device or a pipe, which a file cannot replace")
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror})") from error
