"""The public functions: what the command line and Python users call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, TypeVar, Unpack, overload

import onnx
import onnx_ir as ir

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
from bnfold.frontends.onnx.files.loading import read_proto
from bnfold.frontends.onnx.files.publishing import publish, staging
from bnfold.frontends.protocol import Cautions, OpenModel, OpenOptions, Size
from bnfold.graph.outcome import Fold, Outcome, Refusal
from bnfold.graph.protocol import Graph
from bnfold.planning.changes import trace_changes
from bnfold.planning.fold import fold
from bnfold.planning.plan import Plan
from bnfold.planning.planner import make_plan
from bnfold.proof.certificate import Certificate, Relation
from bnfold.proof.checker import Proof, check_proof
from bnfold.proof.ledger import Deeds, Ledger
from bnfold.proof.models import Files, digest
from bnfold.runtimes.inputs import DRAWN, InputOptions
from bnfold.verification.compare import CompareOptions
from bnfold.verification.confirm import confirmer
from bnfold.verification.equivalence import verify_files
from bnfold.verification.verdict import Verdict

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and their total."""


class TorchModel(Protocol):
    """A torch module or program, told by what both have, since importing torch here would need it."""

    @property
    def state_dict(self) -> Any:
        """Its parameters and buffers, or a method that gives them."""


M = TypeVar("M", bound=onnx.ModelProto | ir.Model | TorchModel)


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Selection:
    """Which candidates may fold, by node name: those that match `only` (all, where empty) and not `skip`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __call__(self, name: str) -> bool:
        """Whether the candidate of that name may fold."""
        wanted = not self.only or any(fnmatchcase(name, glob) for glob in self.only)
        return wanted and not any(fnmatchcase(name, glob) for glob in self.skip)


EVERYTHING = Selection()

STANDARD = CompareOptions()


@dataclass(frozen=True)
class FileResult:
    """What was done, or would be done, to a file.

    Attributes:
        model, output: the files; no output where nothing is written.
        outcomes: one for each BatchNorm, one for each other per-channel affine that folds, and one for each merge.
        warnings: what looks wrong with running statistics, or with declared shapes.
        before, after: sizes; `after` is None where nothing is written.
        verdict: of the verification; None where it was not asked for.
        seconds: taken in all.
        proof: what the checker found; None where it was not asked.
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


def plan(
    model: Any,
    *,
    example_inputs: Any = None,
    merge: bool = True,
    limits: Limits = LIMITS,
    code: Literal["change", "keep"] = "change",
) -> tuple[Outcome, ...]:
    """What `fuse` would do with each BatchNorm, and why not; reads only.

    Args:
        model: as for `fuse`.
        example_inputs: as for `fuse`.
        merge: whether linear operators may become one.
        limits: how much the model may ask for.
        code: as for `fuse`.

    Raises:
        BnfoldError: the model cannot be read.
    """
    opened = open_model(model, _options(limits, example_inputs=example_inputs, code=code))
    decided, _ = _decide(opened, merge=merge)
    return _explain(opened, decided, merge=merge)


def _options(limits: Limits, inputs: InputOptions = DRAWN, **further: Any) -> OpenOptions:
    """How a model is opened; one whose shapes are only declared is run on `inputs` to confirm them."""
    return OpenOptions(limits=limits, observe=partial(confirmer, inputs=inputs), rehearse=_rehearse, **further)


def _rehearse(graph: Graph[Any, Any]) -> None:
    fold(graph, make_plan(graph))


class FuseOptions(TypedDict, total=False):
    """The further arguments of `fuse`, which describes them."""

    inplace: bool
    only: Sequence[str]
    skip: Sequence[str]
    merge: bool
    limits: Limits
    example_inputs: Any
    code: Literal["change", "keep"]
    share: bool


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
    code: Literal["change", "keep"] = "change",
    share: bool = False,
) -> Any:
    """The same model with every BatchNorm folded that can fold exactly.

    Args:
        model: a `torch.nn.Module`, a `torch.fx.GraphModule`, a `torch.export.ExportedProgram`, an `onnx.ModelProto`, an
            `onnx_ir.Model`, or the path of an `.onnx` or `.pt2` file.
        inplace: change the argument instead of a copy.
        return_outcomes: return the outcomes as well, one for each BatchNorm and one for each merge.
        only: glob patterns; only nodes with such a name fold, where any is given.
        skip: glob patterns; nodes with such a name stay.
        merge: let parallel linear branches, and linear operators in a row, become one where that is exact and cheaper.
        limits: how much the model may ask for; a model that asks for more is an `InvalidModelError`.
        example_inputs: what a torch module is called with: a tuple of arguments, a dict of keyword arguments, or the
            only argument. Needed where the forward cannot be traced symbolically; otherwise it tells the shapes. The
            result then stands for calls that take the same way through the code: the same arguments given, tensors of
            the same ranks, and of such sizes that code which asks for a size decides alike. A size of 1 says less than
            one of 2, since an export may take it for fixed.
        code: "keep" forbids a torch module new forward code: what only that would fold stays, with the reason.
        share: let the tensors of a torch model that no fold changes be those of the argument.

    Returns:
        What was given. An `nn.Module` comes back as the same class, a ModelProto as a ModelProto, a path as what the
        file holds: an `ExportedProgram`, or an `onnx_ir.Model`, whose new weights are lazy tensors, computed when they
        are read or saved. Where the forward code of a torch module has to change, the smallest submodule that holds the
        place gets generated code, by a subclass of its own class.

    Raises:
        BnfoldError: the model cannot be read.
    """
    selection = Selection(tuple(only), tuple(skip))
    opened = open_model(model, _options(limits, inplace=inplace, example_inputs=example_inputs, code=code, share=share))
    decided, _ = _decide(opened, selection, merge=merge)
    outcomes = _explain(opened, decided, merge=merge) if return_outcomes else ()
    fold(opened.graph, decided)
    fused = opened.finish()
    return (fused, outcomes) if return_outcomes else fused


def _deeds(graph: Graph[Any, Any], decided: Plan[Any, Any]) -> Deeds:
    """What a plan does, for a certificate; asked before it is applied."""
    changes = trace_changes(graph, decided)
    relations = {
        value: Relation(change.pulled, change.pushed)
        for value, change in changes.values.items()
        if change.is_known  # the proof fails where it is not
    }
    merged = dict(changes.merged)
    for node, into in changes.merged.items():
        merged[graph.outputs(node)[0].producer()] = into  # the Add that is the bias of a matrix product
    return Deeds(relations, dict(changes.stands), changes.vanished, merged)


def certify(
    model: onnx.ModelProto, *, merge: bool = True, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[onnx.ModelProto, Certificate]:
    """The folded model of a protobuf whose tensors are inside, with its certificate."""
    opened = open_model(model, _options(LIMITS))
    decided, _ = _decide(opened, Selection(tuple(only), tuple(skip)), merge=merge)
    ledger, deeds = Ledger.of(_onnx_model(opened)), _deeds(opened.graph, decided)
    fold(opened.graph, decided)
    result: onnx.ModelProto = opened.finish()
    return result, ledger.certificate(deeds, digest(Files(model)), digest(Files(result)))


def _onnx_model(opened: OpenModel) -> ir.Model:
    """The model behind a view, for its certificate.

    Raises:
        UnsupportedModelError: it is no ONNX model.
    """
    model = getattr(opened.graph, "model", None)
    if not isinstance(model, ir.Model):
        raise UnsupportedModelError("only folds of ONNX models are proved so far")
    return model


def _decide(
    opened: OpenModel, selection: Selection = EVERYTHING, progress: Progress = _silent, *, merge: bool
) -> tuple[Plan[Any, Any], bool]:
    """The plan; and whether it is another one by what was learnt, which is tried where a BatchNorm stays."""

    def attempt() -> Plan[Any, Any]:
        told = partial(progress, "plan")
        return make_plan(opened.graph, selected=selection, merge=merge, progress=told)

    first = attempt()
    if not any(isinstance(outcome, Refusal) for outcome in first.outcomes) or not opened.learn():
        return first, False
    decided = attempt()
    return decided, decided.outcomes != first.outcomes


def _explain(opened: OpenModel, decided: Plan[Any, Any], *, merge: bool) -> tuple[Outcome, ...]:
    def replan(graph: Graph[Any, Any]) -> tuple[Outcome, ...]:
        return make_plan(graph, merge=merge).outcomes

    return opened.explain(decided.outcomes, replan)


def inspect_file(
    model: Path, *, merge: bool = True, limits: Limits = LIMITS, progress: Progress = _silent
) -> FileResult:
    """What `fuse_file` would do; writes nothing.

    Raises:
        BnfoldError: the file cannot be read.
    """
    start = time.perf_counter()
    with _naming(model):
        opened = open_model(model, _options(limits))
        decided, has_learnt = _decide(opened, progress=progress, merge=merge)
        outcomes, warnings = _explain(opened, decided, merge=merge), opened.warn(has_learnt=has_learnt)
    return FileResult(model, None, outcomes, warnings, opened.measure(), None, None, time.perf_counter() - start)


def fuse_file(
    model: Path,
    output: Path,
    *,
    selection: Selection = EVERYTHING,
    merge: bool = True,
    verify: bool = True,
    comparison: CompareOptions = STANDARD,
    overwrite: bool = False,
    limits: Limits = LIMITS,
    progress: Progress = _silent,
    proof: Path | None = None,
) -> FileResult:
    """Fold a file into another, which appears complete or not at all, and only if it is equivalent.

    Args:
        model: the file to read.
        output: the file to write; it may be the same with `overwrite`.
        selection: which BatchNorms may fold.
        merge: whether linear operators may become one.
        verify: compare the result with the original before it is written.
        comparison: how they are compared.
        overwrite: replace an `output` that exists.
        limits: how much `model` may ask for.
        progress: told of each stage.
        proof: where to write the certificate, once the checker has accepted it; of ONNX models alone.

    Raises:
        OutputExistsError: `output` exists and `overwrite` is False.
        NotEquivalentError: the result differs from the original, or is not proved; nothing was written.
        BnfoldError: the file cannot be read, run or written.
    """
    start = time.perf_counter()
    _insist_on_writable(output, overwrite=overwrite)
    if find_entry(output) is not find_entry(model):
        raise OutputError(f"{output}: an output has the format of its model, {model.suffix or 'ONNX'}")
    if proof is not None:
        _insist_on_writable(proof, overwrite=overwrite)
        if proof.absolute() in (model.absolute(), output.absolute()):
            raise OutputError(f"{proof}: a certificate needs a file of its own")
    with _naming(model):
        opened = open_model(model, _options(limits, comparison.inputs, inplace=True))
        before = opened.measure()
        decided, has_learnt = _decide(opened, selection, progress, merge=merge)
        outcomes, warnings = _explain(opened, decided, merge=merge), opened.warn(has_learnt=has_learnt)
        certified: tuple[Ledger, Deeds] | None = None
        if proof is not None:
            certified = Ledger.of(_onnx_model(opened)), _deeds(opened.graph, decided)
        fold(opened.graph, decided)
    with staging(output) as folder:
        with _naming(model):
            written = opened.save(folder / output.name)
        proved, certificate = None, None
        if certified is not None:
            pair = [Files(read_proto(path, UNLIMITED), path.parent) for path in (model, written.model)]
            certificate = certified[0].certificate(certified[1], *map(digest, pair))
            proved = check_proof(pair[0], pair[1], certificate)
            del pair
            if not proved.is_proved:
                seconds = time.perf_counter() - start
                failed = FileResult(model, None, outcomes, warnings, before, None, None, seconds, proved)
                raise NotEquivalentError(f"{output}: not written, since {_unproved(proved)}", failed)
        verdict = None
        if verify:
            verdict = verify_files(model, written.model, comparison, progress, UNLIMITED).verdict
        if verdict is not None and not verdict.is_equivalent:
            guilty = _guilty(model, folder, outcomes, comparison, limits, merge=merge)
            seconds = time.perf_counter() - start
            failed = FileResult(model, None, outcomes, warnings, before, None, verdict, seconds)
            raise NotEquivalentError(_complaint(output, verdict, guilty), failed)
        after = Size(opened.measure().nodes, written.bytes)
        if proof is not None and certificate is not None:
            _write_text(certificate.to_json(), proof)
        publish(written, output)
    return FileResult(model, output, outcomes, warnings, before, after, verdict, time.perf_counter() - start, proved)


def _write_text(text: str, path: Path) -> None:
    """Write a file, which appears complete or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def _unproved(proved: Proof) -> str:
    """What is not proved, in one line."""
    return f"it is not proved: {proved.failures[0]}; please report this as a bug"


@dataclass(frozen=True)
class ProofResult:
    """What became of a certificate.

    Attributes:
        reference, candidate: the files.
        proof: the obligations.
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
    pair = [Files(read_proto(path, limits), path.parent) for path in (reference, candidate)]
    return ProofResult(reference, candidate, check_proof(pair[0], pair[1], claimed))


def _guilty(
    model: Path, folder: Path, outcomes: Sequence[Outcome], comparison: CompareOptions, limits: Limits, *, merge: bool
) -> str | None:
    """What makes the difference, found by bisection in a folder for trials; None where nothing stands out.

    It is a merge, or the first fold without which those before it are equivalent.
    """
    names = [outcome.batchnorm for outcome in outcomes if isinstance(outcome, Fold)]
    escaped = [escape(name) for name in names]

    def is_equivalent(count: int) -> bool:
        opened = open_model(model, _options(limits, comparison.inputs, inplace=True))
        decided, _ = _decide(opened, Selection(tuple(escaped[:count]) or ("",)), merge=False)
        fold(opened.graph, decided)
        trial = opened.save(folder / f"trial{model.suffix}")
        return verify_files(model, trial.model, comparison, limits=UNLIMITED).verdict.is_equivalent

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
    """Let what turns out to be wrong with a model say whose it is."""
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
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror})") from error
