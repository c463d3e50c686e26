"""The public functions: what the command line and Python users call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import onnx
import onnx_ir as ir

from bnfold.errors import (
    InvalidModelError,
    MissingExtraError,
    NotEquivalentError,
    OutputExistsError,
    UnsupportedModelError,
)
from bnfold.fold import fold
from bnfold.frontends import onnx as _onnx
from bnfold.health import Caution
from bnfold.outcome import Outcome
from bnfold.planner import make_plan
from bnfold.verification.compare import Verdict, compare_files
from bnfold.verification.inputs import InputOptions

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and their total."""

M = TypeVar("M")


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
DRAWN = InputOptions()


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
        outcomes: one for each BatchNorm, and one for each other per-channel affine that folds.
        warnings: what looks wrong with running statistics.
        before, after: sizes; `after` is None where nothing is written.
        verdict: of the verification; None where it was not asked for.
        seconds: taken in all.
    """

    model: Path
    output: Path | None
    outcomes: tuple[Outcome, ...]
    warnings: tuple[Caution, ...]
    before: Size
    after: Size | None
    verdict: Verdict | None
    seconds: float


def plan(model: Any, *, example_inputs: Any = None) -> tuple[Outcome, ...]:
    """What `fuse` would do with each BatchNorm, and why not; reads only.

    Args:
        model: anything that `fuse` takes.
        example_inputs: as `fuse` takes them.

    Raises:
        BnfoldError: the model cannot be read.
    """
    if isinstance(model, str | Path) and Path(model).suffix == ".pt2":
        model = _torch_front_end().load(Path(model))
    if (torch_front_end := _torch_for(model)) is not None:
        return make_plan(torch_front_end.open_model(model, example_inputs).graph).outcomes
    return make_plan(_onnx.OnnxGraph(_read(model))).outcomes


def _torch_for(model: object) -> Any:
    """The PyTorch front end where the model is its own; nothing is imported that was not before."""
    if "torch" not in sys.modules or isinstance(model, str | Path):
        return None
    from bnfold.frontends import torch as front_end

    return front_end if front_end.is_model(model) else None


@overload
def fuse(
    model: M,
    *,
    inplace: bool = ...,
    return_outcomes: Literal[False] = ...,
    only: Sequence[str] = ...,
    skip: Sequence[str] = ...,
    example_inputs: Any = ...,
) -> M: ...
@overload
def fuse(
    model: M,
    *,
    inplace: bool = ...,
    return_outcomes: Literal[True],
    only: Sequence[str] = ...,
    skip: Sequence[str] = ...,
    example_inputs: Any = ...,
) -> tuple[M, tuple[Outcome, ...]]: ...
@overload
def fuse(
    model: str | Path,
    *,
    inplace: bool = ...,
    return_outcomes: bool = ...,
    only: Sequence[str] = ...,
    skip: Sequence[str] = ...,
    example_inputs: Any = ...,
) -> Any: ...


def fuse(
    model: Any,
    *,
    inplace: bool = False,
    return_outcomes: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    example_inputs: Any = None,
) -> Any:
    """The same model with every BatchNorm folded that can fold exactly.

    Args:
        model: a `torch.nn.Module`, a `torch.fx.GraphModule`, a `torch.export.ExportedProgram`, an `onnx.ModelProto`, an
            `onnx_ir.Model`, or the path of an `.onnx` or `.pt2` file.
        inplace: change the argument instead of a copy.
        return_outcomes: return the outcomes as well, one for each BatchNorm.
        only: glob patterns; only nodes with such a name fold, where any is given.
        skip: glob patterns; nodes with such a name stay.
        example_inputs: what a torch module is called with: a tuple of arguments, a dict of keyword arguments, or the
            only argument. Needed where the forward cannot be traced symbolically; otherwise it tells the shapes. The
            result then stands for calls of that kind: the same arguments given, tensors of the same ranks.

    Returns:
        What was given. An `nn.Module` comes back as the same class, a ModelProto as a ModelProto, a path as what the
        file holds (an `onnx_ir.Model`, whose new weights are lazy tensors, computed when they are read or saved; an
        `ExportedProgram`). Tensors that a fold does not change are shared with the argument.

    Raises:
        BnfoldError: the model cannot be read.
    """
    selection = Selection(tuple(only), tuple(skip))
    if isinstance(model, str | Path) and Path(model).suffix == ".pt2":
        model, inplace = _torch_front_end().load(Path(model)), True
    if (torch_front_end := _torch_for(model)) is not None:
        opened = torch_front_end.open_model(model, example_inputs, inplace=inplace)
        decided = make_plan(opened.graph, selected=selection)
        fold(opened.graph, decided)
        opened.finish()
        return (opened.model, decided.outcomes) if return_outcomes else opened.model
    graph = _read(model)
    if isinstance(model, ir.Model) and not inplace:
        graph = model.clone()
    outcomes, _ = _fuse_graph(graph, selection, _silent)
    fused: onnx.ModelProto | ir.Model = graph
    if isinstance(model, onnx.ModelProto):
        fused = _onnx.serialize(graph)
        if inplace:
            model.CopyFrom(fused)
            fused = model
    return (fused, outcomes) if return_outcomes else fused


def _read(model: onnx.ModelProto | ir.Model | str | Path) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return _onnx.parse(model)
    if isinstance(model, str | Path):
        return _onnx.load(Path(model))
    raise UnsupportedModelError(f"bnfold cannot read a {type(model).__module__}.{type(model).__qualname__}")


def _fuse_graph(
    model: ir.Model, selection: Selection, progress: Progress
) -> tuple[tuple[Outcome, ...], tuple[Caution, ...]]:
    graph = _onnx.OnnxGraph(model)
    warnings = tuple(graph.warnings())
    decided = make_plan(graph, selected=selection, progress=lambda done, total: progress("plan", done, total))
    fold(graph, decided)
    return decided.outcomes, warnings


def inspect_file(model: Path, *, progress: Progress = _silent) -> FileResult:
    """What `fuse_file` would do; writes nothing.

    Raises:
        BnfoldError: the file cannot be read.
    """
    start = time.perf_counter()
    opened = _open_file(model)
    decided = make_plan(opened.graph, progress=lambda done, total: progress("plan", done, total))
    warnings = tuple(opened.graph.warnings())
    return FileResult(model, None, decided.outcomes, warnings, opened.size(model), None, None, _since(start))


def _since(start: float) -> float:
    return time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class _OpenFile:
    """A model read from a file, of either format.

    Attributes:
        graph: its view.
        save: writes the changed model into a folder, under the name that a path has.
        size: how large the model is now, if it lies at a path.
    """

    graph: Any
    save: Callable[[Path, Path], None]
    size: Callable[[Path], Size]


def _open_file(path: Path) -> _OpenFile:
    if path.suffix != ".pt2":
        model = _onnx.load(path)
        return _OpenFile(
            _onnx.OnnxGraph(model),
            lambda output, folder: _onnx.save(model, output, folder),
            lambda at: _size(model, at),
        )
    front_end = _torch_front_end()
    opened = front_end.open_model(front_end.load(path), inplace=True)

    def save(output: Path, folder: Path) -> None:
        opened.finish()
        front_end.save(opened.model, folder / output.name)

    return _OpenFile(opened.graph, save, lambda at: Size(front_end.count_nodes(opened.model), at.stat().st_size))


def _torch_front_end() -> Any:
    """The PyTorch front end, imported where it is needed."""
    try:
        from bnfold.frontends import torch as front_end
    except ImportError as error:
        raise MissingExtraError("PyTorch is not installed: pip install 'bnfold[torch]'") from error
    return front_end


def fuse_file(
    model: Path,
    output: Path,
    *,
    selection: Selection = EVERYTHING,
    verify: bool = True,
    inputs: InputOptions = DRAWN,
    overwrite: bool = False,
    progress: Progress = _silent,
) -> FileResult:
    """Fold a file into another, which appears complete or not at all, and only if it is equivalent.

    Args:
        model: the file to read.
        output: the file to write; it may be the same with `overwrite`.
        selection: which BatchNorms may fold.
        verify: compare the result with the original before it is written.
        inputs: what to compare them on.
        overwrite: replace an `output` that exists.
        progress: told of each stage.

    Raises:
        OutputExistsError: `output` exists and `overwrite` is False.
        NotEquivalentError: the result differs from the original; nothing was written.
        BnfoldError: the file cannot be read, run or written.
    """
    start = time.perf_counter()
    if output.exists() and not overwrite:
        raise OutputExistsError(f"{output}: exists already; use --overwrite to replace it")
    if output.is_dir():
        raise OutputExistsError(f"{output}: is a folder")
    if (output.suffix == ".pt2") != (model.suffix == ".pt2"):
        raise InvalidModelError(f"{output}: the output has the format of the model, {model.suffix or 'ONNX'}")
    opened = _open_file(model)
    before = opened.size(model)
    warnings = tuple(opened.graph.warnings())
    decided = make_plan(opened.graph, selected=selection, progress=lambda done, total: progress("plan", done, total))
    fold(opened.graph, decided)
    with _onnx.staging(output) as folder:
        staged = Path(folder) / output.name
        opened.save(output, Path(folder))
        verdict = None
        if verify:
            progress("verify", 0, 1)
            verdict = compare_files(model, staged, inputs)
            progress("verify", 1, 1)
        if verdict is not None and not verdict.is_equivalent:
            raise NotEquivalentError(
                f"{output}: not written, since output {verdict.worst.name!r} differs from the original's "
                f"(error {verdict.worst.error:.2e}, budget {verdict.worst.budget:.2e}); please report this as a bug"
            )
        after = opened.size(staged)
        _onnx.publish(Path(folder), output)
    return FileResult(model, output, decided.outcomes, warnings, before, after, verdict, _since(start))


def _size(model: ir.Model, path: Path) -> Size:
    nodes = sum(1 for _ in model.graph.all_nodes())
    return Size(nodes, _onnx.file_bytes(path))
