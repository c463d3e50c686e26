"""The public functions: what the command line and Python users call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
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
from bnfold.frontends import onnx as _onnx
from bnfold.frontends.door import is_torch_model, torch_front_end
from bnfold.frontends.limits import LIMITS, UNLIMITED, Limits
from bnfold.frontends.onnx.shape_inference import Confirm
from bnfold.graph.cautions import Caution, DeclarationCaution
from bnfold.graph.outcome import Fold, Outcome, Reason, Refusal
from bnfold.planning.fold import fold
from bnfold.planning.plan import Bypass, Join, Plan
from bnfold.planning.planner import make_plan
from bnfold.proof.certificate import Certificate, Relation
from bnfold.proof.checker import Proof, check_proof
from bnfold.proof.ledger import Deeds, Ledger
from bnfold.proof.models import Files, digest
from bnfold.runtimes.inputs import DRAWN, InputOptions
from bnfold.verification.compare import CompareOptions
from bnfold.verification.confirm import confirmer
from bnfold.verification.equivalence import compare_models, verify_files
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

PROGRAM = ".pt2"
"""How the file of a saved `torch.export` program ends."""

STANDARD = CompareOptions()

Warnings = tuple[Caution | DeclarationCaution, ...]
"""What looks wrong, though nothing stops on it."""


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    nodes: int
    bytes: int


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
    warnings: Warnings
    before: Size
    after: Size | None
    verdict: Verdict | None
    seconds: float
    proof: Proof | None = None


def plan(model: Any, *, example_inputs: Any = None, merge: bool = True, limits: Limits = LIMITS) -> tuple[Outcome, ...]:
    """What `fuse` would do with each BatchNorm, and why not; reads only.

    Args:
        model: as for `fuse`.
        example_inputs: as for `fuse`.
        merge: whether linear operators may become one.
        limits: how much the model may ask for.

    Raises:
        BnfoldError: the model cannot be read.
    """
    model = _loaded(model, limits)
    if is_torch_model(model):
        opened = torch_front_end().open_model(model, example_inputs)
        return _advised(make_plan(opened.graph, merge=merge).outcomes, opened, merge=merge)
    return _decide(_onnx.OnnxGraph(_read(model, limits), _confirm(model, limits)), merge=merge)[0].outcomes


def _confirm(model: Any, limits: Limits, inputs: InputOptions = DRAWN) -> Confirm | None:
    """A way to run an ONNX model for shapes that are only declared."""

    def read() -> tuple[onnx.ModelProto, Path | None]:
        if isinstance(model, onnx.ModelProto):
            return model, None
        if isinstance(model, ir.Model):
            folders = {each.parent for each in _onnx.external_files(model)}
            return _onnx.serialize(model), folders.pop() if len(folders) == 1 else None
        return _onnx.read_proto(Path(model), limits), Path(model).parent

    return confirmer(read, inputs)


def _loaded(model: Any, limits: Limits) -> Any:
    """The program of a `.pt2` file; anything else as it is."""
    if isinstance(model, str | Path) and Path(model).suffix == PROGRAM:
        return torch_front_end().load(Path(model), limits)
    return model


class FuseOptions(TypedDict, total=False):
    """The further arguments of `fuse`, which describes them."""

    inplace: bool
    only: Sequence[str]
    skip: Sequence[str]
    merge: bool
    limits: Limits
    example_inputs: Any


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

    Returns:
        What was given. An `nn.Module` comes back as the same class, a ModelProto as a ModelProto, a path as what the
        file holds: an `ExportedProgram`, or an `onnx_ir.Model`, whose new weights are lazy tensors, computed when they
        are read or saved. Tensors of a torch model that no fold changes are shared with the argument.

    Raises:
        BnfoldError: the model cannot be read.
    """
    selection = Selection(tuple(only), tuple(skip))
    found = _loaded(model, limits)
    if is_torch_model(found):
        opened = torch_front_end().open_model(found, example_inputs, inplace=inplace or found is not model)
        outcomes, _ = _fuse_graph(opened.graph, selection, _silent, merge=merge)
        if return_outcomes:
            outcomes = _advised(outcomes, opened, merge=merge)
        opened.finish()
        return (opened.model, outcomes) if return_outcomes else opened.model
    graph = _read(model, limits)
    if isinstance(model, ir.Model) and not inplace:
        graph = model.clone()
    view = _onnx.OnnxGraph(graph, _confirm(model, limits))
    outcomes, _ = _fuse_graph(view, selection, _silent, merge=merge)
    fused: onnx.ModelProto | ir.Model = graph
    if isinstance(model, onnx.ModelProto):
        fused = _onnx.serialize(graph)
        if inplace:
            model.CopyFrom(fused)
            fused = model
    elif not isinstance(model, ir.Model):
        fused = _onnx.detach(graph, str(model))
    return (fused, outcomes) if return_outcomes else fused


def _deeds(graph: Any, decided: Plan[Any, Any]) -> Deeds:
    """What a plan does, for a certificate; asked before it is applied."""
    relations = {
        value: Relation(change.pulled, change.pushed)
        for value, change in decided.changes.items()
        if change.is_known  # the proof fails where it is not
    }
    vanished = frozenset(edit.node for edit in decided.edits if isinstance(edit, Bypass))
    merged = {**decided.merged, **{host: host for host in decided.merged.values()}}
    for node, into in _regrouped(graph, decided, vanished - decided.merged.keys()):
        mine = merged.setdefault(node, into)
        if mine is not into:  # one sum, of which several parts merge
            merged.update({each: into for each, host in merged.items() if host is mine})
    for node, into in list(merged.items()):
        merged[graph.outputs(node)[0].producer()] = into  # the Add that is the bias of a matrix product
    return Deeds(relations, decided.stands, vanished, merged)


def _regrouped(graph: Any, decided: Plan[Any, Any], vanished: frozenset[Any]) -> Iterator[tuple[Any, Any]]:
    """Additions that stay where a part of a sum merges, but make something else; and what adds to that."""
    host: Any = None
    gone: set[Any] = set(vanished)
    for edit in decided.edits:
        if isinstance(edit, Join):
            host = edit.host
            gone.update(edit.gone)
            continue
        if isinstance(edit, Bypass):
            host = None
            gone.add(edit.node)
            continue
        if host is None:
            continue
        into = decided.merged.get(host, host)
        yield graph.producer(edit.value), into
        stack = [edit.value]
        while stack:
            for reader, _ in graph.uses(stack.pop()):
                if reader in gone:
                    stack.extend(graph.outputs(reader))
                elif reader is not None:
                    yield reader, into


def certify(
    model: onnx.ModelProto, *, merge: bool = True, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[onnx.ModelProto, Certificate]:
    """The folded model of a protobuf whose tensors are inside, with its certificate."""
    graph = _onnx.parse(model)
    view = _onnx.OnnxGraph(graph, _confirm(model, LIMITS))
    decided, _ = _decide(view, Selection(tuple(only), tuple(skip)), merge=merge)
    ledger, deeds = Ledger.of(graph), _deeds(view, decided)
    fold(view, decided)
    result = _onnx.serialize(graph)
    return result, ledger.certificate(deeds, digest(Files(model)), digest(Files(result)))


def _advised(outcomes: tuple[Outcome, ...], opened: Any, *, merge: bool) -> tuple[Outcome, ...]:
    """The outcomes, with those refusals marked that hold only because a torch module keeps its forward code."""
    kept = {each.batchnorm for each in outcomes if isinstance(each, Refusal) and each.reason not in ADVISED}
    if opened.free is None or not kept:
        return outcomes
    folds = {
        each.batchnorm: each
        for each in make_plan(opened.free(), merge=merge).outcomes
        if isinstance(each, Fold) and each.batchnorm in kept
    }
    return tuple(
        _for_lack_of_code(each, folds[each.batchnorm])
        if isinstance(each, Refusal) and each.batchnorm in folds
        else each
        for each in outcomes
    )


ADVISED = frozenset({Reason.FORWARD_CODE, Reason.HOOK, Reason.PARAMETRIZED, Reason.SKIPPED})
"""Reasons that say what to do, or that no other code would remove."""


def _for_lack_of_code(refusal: Refusal, fold: Fold) -> Refusal:
    into = ", ".join(fold.into)
    detail = f"to fold it into {into}, the forward code would have to change; as it is: {refusal.detail}"
    return replace(refusal, reason=Reason.FORWARD_CODE, detail=detail)


def _read(model: onnx.ModelProto | ir.Model | str | Path, limits: Limits) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return _onnx.parse(model, limits=limits)
    if isinstance(model, str | Path):
        return _onnx.load(Path(model), limits)
    raise UnsupportedModelError(f"bnfold cannot read a {type(model).__module__}.{type(model).__qualname__}")


def _fuse_graph(
    graph: Any,
    selection: Selection,
    progress: Progress,
    *,
    merge: bool,
    record: Callable[[Plan[Any, Any]], None] = lambda decided: None,
) -> tuple[tuple[Outcome, ...], Warnings]:
    """Fold a graph; `record` is told of the plan before it is applied."""
    decided, warnings = _decide(graph, selection, progress, merge=merge)
    record(decided)
    fold(graph, decided)
    return decided.outcomes, warnings


def _decide(
    graph: Any, selection: Selection = EVERYTHING, progress: Progress = _silent, *, merge: bool
) -> tuple[Plan[Any, Any], Warnings]:
    """The plan, and what looks wrong; where a BatchNorm stays, shapes that are only declared are tried out first."""

    def attempt() -> Plan[Any, Any]:
        return make_plan(
            graph, selected=selection, merge=merge, progress=lambda done, total: progress("plan", done, total)
        )

    decided = attempt()
    if not isinstance(graph, _onnx.OnnxGraph):
        return decided, tuple(graph.warnings())
    confirmations: list[DeclarationCaution] = []
    if any(isinstance(each, Refusal) for each in decided.outcomes) and graph.try_out_hints():
        first, decided = decided, attempt()
        confirmations = [] if decided.outcomes == first.outcomes else graph.confirmations()
    decided = replace(decided, outcomes=tuple(map(graph.explain, decided.outcomes)))
    return decided, (*graph.warnings(), *confirmations)


@dataclass(frozen=True, eq=False)
class _OpenFile:
    """A model read from a file, of either format.

    Attributes:
        graph: its view.
        size: how large it is.
        finish: makes a model of what the edits left, which can be compared.
        save: writes that into a folder, under a name.
    """

    graph: Any
    size: Size
    finish: Callable[[], Any]
    save: Callable[[Path], _onnx.Written]
    count: Callable[[], int]


def _open_file(path: Path, limits: Limits, inputs: InputOptions = DRAWN) -> _OpenFile:
    if path.suffix != PROGRAM:
        model = _onnx.load(path, limits)
        size = Size(_nodes(model), _onnx.file_bytes(model, path))
        with _naming(path):
            view = _onnx.OnnxGraph(model, _confirm(path, limits, inputs))
        return _OpenFile(view, size, lambda: model, lambda to: _onnx.save(model, to), lambda: _nodes(model))
    front_end = torch_front_end()
    opened = front_end.open_model(front_end.load(path, limits), inplace=True)

    def finish() -> Any:
        opened.finish()
        return opened.model

    def save(to: Path) -> _onnx.Written:
        front_end.save(finish(), to)
        return _onnx.Written(to, None)

    def count() -> int:
        nodes: int = front_end.count_nodes(opened.model)
        return nodes

    return _OpenFile(opened.graph, Size(count(), path.stat().st_size), finish, save, count)


def inspect_file(
    model: Path, *, merge: bool = True, limits: Limits = LIMITS, progress: Progress = _silent
) -> FileResult:
    """What `fuse_file` would do; writes nothing.

    Raises:
        BnfoldError: the file cannot be read.
    """
    start = time.perf_counter()
    opened = _open_file(model, limits)
    with _naming(model):
        decided, warnings = _decide(opened.graph, progress=progress, merge=merge)
    return FileResult(model, None, decided.outcomes, warnings, opened.size, None, None, time.perf_counter() - start)


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
    if (output.suffix == PROGRAM) != (model.suffix == PROGRAM):
        raise OutputError(f"{output}: an output has the format of its model, {model.suffix or 'ONNX'}")
    opened = _open_file(model, limits, comparison.inputs)
    before = opened.size
    ledger, deeds = None, []
    if proof is not None:
        _insist_on_writable(proof, overwrite=overwrite)
        if proof.absolute() in (model.absolute(), output.absolute()):
            raise OutputError(f"{proof}: a certificate needs a file of its own")
        if not isinstance(opened.graph, _onnx.OnnxGraph):
            raise UnsupportedModelError(f"{model}: only folds of ONNX models are proved so far")
        ledger = Ledger.of(opened.graph.model)
    with _naming(model):
        outcomes, warnings = _fuse_graph(
            opened.graph,
            selection,
            progress,
            merge=merge,
            record=lambda decided: deeds.append(_deeds(opened.graph, decided)) if ledger is not None else None,
        )
    with _onnx.staging(output) as folder:
        with _naming(model):
            written = opened.save(folder / output.name)
        proved, certificate = None, None
        if ledger is not None:
            pair = [Files(_onnx.read_proto(each, UNLIMITED), each.parent) for each in (model, written.model)]
            certificate = ledger.certificate(deeds[0], *map(digest, pair))
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
            guilty = _guilty(model, outcomes, comparison, limits, merge=merge)
            seconds = time.perf_counter() - start
            failed = FileResult(model, None, outcomes, warnings, before, None, verdict, seconds)
            raise NotEquivalentError(_complaint(output, verdict, guilty), failed)
        after = Size(opened.count(), written.bytes)
        if proof is not None and certificate is not None:
            _write_text(certificate.to_json(), proof)
        _onnx.publish(written, output)
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
    pair = [Files(_onnx.read_proto(each, limits), each.parent) for each in (reference, candidate)]
    return ProofResult(reference, candidate, check_proof(pair[0], pair[1], claimed))


def _guilty(
    model: Path, outcomes: Sequence[Outcome], comparison: CompareOptions, limits: Limits, *, merge: bool
) -> str | None:
    """What makes the difference, found by bisection; None where nothing stands out.

    It is a merge, or the first fold without which those before it are equivalent.
    """
    names = [outcome.batchnorm for outcome in outcomes if isinstance(outcome, Fold)]
    escaped = [escape(name) for name in names]

    def is_equivalent(count: int) -> bool:
        opened = _open_file(model, limits, comparison.inputs)
        _fuse_graph(opened.graph, Selection(tuple(escaped[:count]) or ("",)), _silent, merge=False)
        return compare_models(model, opened.finish(), comparison, UNLIMITED).is_equivalent

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


def _nodes(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
