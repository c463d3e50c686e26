"""Opens a torch model: a view to plan on, and how to finish what was changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.protocol import Cautions, OpenOptions, Replan, Size, Written
from bnfold.frontends.torch.capture import values
from bnfold.frontends.torch.capture.copies import copy_module, copy_program, separate, separate_program
from bnfold.frontends.torch.capture.exporting import borders_of_hooked, export, hooked, strip_hooks
from bnfold.frontends.torch.capture.inputs import Inputs, bind
from bnfold.frontends.torch.capture.readable import insist_on_readable
from bnfold.frontends.torch.capture.source import Source, of_export, of_trace
from bnfold.frontends.torch.capture.trace import UntraceableError, trace
from bnfold.frontends.torch.capture.wrappers import unwrap
from bnfold.frontends.torch.change.keep import KeptGraph
from bnfold.frontends.torch.change.program import ProgramStore
from bnfold.frontends.torch.change.project import Projection
from bnfold.frontends.torch.change.store import ModuleStore, Store
from bnfold.frontends.torch.files.programs import count_nodes, load, save
from bnfold.frontends.torch.operators import shapes
from bnfold.frontends.torch.view import TorchGraph
from bnfold.graph.outcome import Fold, Outcome, Reason, Refusal


@dataclass(frozen=True, eq=False)
class OpenTorchModel:
    """A `bnfold.frontends.protocol.OpenModel`.

    Attributes:
        graph: its view; edits change `model`.
        model: what was opened.
        settle: gives what the edits left.
        free: where `graph` can change parameters and submodules only: a view of the same that could change the code as
            well, which tells what would then fold. It must not be edited.
        bytes: of the file that it was read from.
        files: that file.
    """

    graph: TorchGraph
    model: Any
    settle: Callable[[], Any]
    free: Callable[[], TorchGraph] | None = None
    bytes: int = 0
    inputs: Inputs | None = None
    files: tuple[Path, ...] = ()

    def measure(self) -> Size:
        return Size(count_nodes(self.model), self.bytes)

    def learn(self) -> bool:
        return False

    def explain(self, outcomes: Sequence[Outcome], replan: Replan) -> tuple[Outcome, ...]:
        """Mark the refusals that hold only because a module keeps its forward code."""
        kept = {each.batchnorm for each in outcomes if isinstance(each, Refusal) and each.reason not in ADVISED}
        if self.free is None or not kept:
            return tuple(outcomes)
        free = replan(self.free())
        folds = {each.batchnorm: each for each in free if isinstance(each, Fold) and each.batchnorm in kept}
        return tuple(
            _for_lack_of_code(each, folds[each.batchnorm])
            if isinstance(each, Refusal) and each.batchnorm in folds
            else each
            for each in outcomes
        )

    def warn(self, *, has_learnt: bool) -> Cautions:
        return tuple(self.graph.warnings())

    def finish(self) -> Any:
        """A module, a GraphModule or a program."""
        return self.settle()

    def save(self, path: Path) -> Written:
        save(self.finish(), path)
        return Written(path)


ADVISED = frozenset({Reason.FORWARD_CODE, Reason.HOOK, Reason.PARAMETRIZED, Reason.SKIPPED})
"""Reasons that say what to do, or that no other code would remove."""


def _for_lack_of_code(refusal: Refusal, fold: Fold) -> Refusal:
    into = ", ".join(fold.into)
    detail = f"to fold it into {into}, the forward code would have to change; as it is: {refusal.detail}"
    return replace(refusal, reason=Reason.FORWARD_CODE, detail=detail)


def is_model(model: object) -> bool:
    """Whether it is a torch model of a kind that is read here."""
    return isinstance(model, nn.Module | ExportedProgram)


def open_model(model: Any, options: OpenOptions) -> OpenTorchModel:
    """A view of an `nn.Module`, an `fx.GraphModule`, an `ExportedProgram`, or of the program in a `.pt2` file.

    Unless it is changed itself, a copy is what the edits change.

    Raises:
        UnsupportedModelError: it cannot be captured, or is in a state that has no meaning to keep.
        InvalidModelError: the file cannot be read.
    """
    if isinstance(model, str | Path):
        path = Path(model)
        return replace(open_program(load(path, options.limits)), bytes=path.stat().st_size, files=(path,))
    if isinstance(model, ExportedProgram):
        opened = open_program(model if options.inplace else copy_program(model))
        return opened if options.inplace or options.share else _separated(opened, separate_program, model)
    assert isinstance(model, nn.Module)
    inner, rewrap = unwrap(model)
    if inner is not model:
        opened = open_model(inner, options)
        return replace(opened, settle=lambda: rewrap(opened.settle()))
    insist_on_readable(model)
    if isinstance(model, fx.GraphModule):
        copied = model if options.inplace else copy_module(model, share=True)
        opened = _open_graph_module(copied, Inputs.of(options.example_inputs))
        return opened if options.inplace or options.share else _separated(opened, separate, model)
    with torch.inference_mode(False):
        return _open_module(model, options)


def _separated(opened: OpenTorchModel, separate: Callable[[Any, Any], None], original: Any) -> OpenTorchModel:
    """A model that shares no tensor with the original in the end."""

    def settle() -> Any:
        made = opened.settle()
        separate(made, original)
        return made

    return replace(opened, settle=settle)


def open_program(program: ExportedProgram) -> OpenTorchModel:
    """A view of a program, which the edits change."""
    graph_module = program.graph_module
    observed = _preserved(program)
    store = ProgramStore(program)
    recorded = shapes.recorded(graph_module.graph)
    for node, value in recorded.items():
        if (held := store.tensor(node)) is not None and (held.shape, held.dtype) != (value.shape, value.dtype):
            recorded[node] = held
    known = values.recompute(graph_module, graph_module.graph, recorded)
    graph = TorchGraph(graph_module.graph, graph_module, store, known, observed)

    def finish() -> ExportedProgram:
        graph_module.graph.lint()
        graph_module.recompile()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program.validate()  # type: ignore[no-untyped-call]
        return program

    return OpenTorchModel(graph, program, finish)


def _preserved(program: ExportedProgram) -> dict[fx.Node, str]:
    """Values at the borders of submodules whose calls the program keeps apart, with their names."""
    names: dict[str, str] = {}
    for entry in program.module_call_graph:
        if entry.fqn and entry.signature is not None:
            border = (*entry.signature.inputs, *entry.signature.outputs)
            names.update((each.name, f"call of {entry.fqn}") for each in border if hasattr(each, "name"))
    return {node: names[node.name] for node in program.graph_module.graph.nodes if node.name in names}


def _open_graph_module(module: fx.GraphModule, inputs: Inputs | None) -> OpenTorchModel:
    known = values.propagate(module, module.graph, inputs) if inputs is not None else None
    if known is None:
        recorded = shapes.recorded(module.graph)
        inputs_are_known = all(node in recorded or node.op != "placeholder" for node in module.graph.nodes) and any(
            isinstance(value, torch.Tensor) for value in recorded.values()
        )
        known = values.recompute(module, module.graph, recorded) if inputs_are_known else None
    graph = TorchGraph(module.graph, module, ModuleStore(module, module.graph), known)

    def finish() -> fx.GraphModule:
        module.graph.lint()
        module.recompile()
        return module

    return OpenTorchModel(graph, module, finish, inputs=inputs)


@dataclass(frozen=True, eq=False)
class _Captured:
    """A module as a graph, whichever way it was captured.

    Attributes:
        source: what is folded.
        store: where its parameters are.
        values: an example value of each node, as far as there is one.
        recast: nodes that run under an autocast of their own.
    """

    source: Source
    store: Store
    values: Mapping[fx.Node, Any] | None
    recast: frozenset[fx.Node] = frozenset()


def _open_module(module: nn.Module, options: OpenOptions) -> OpenTorchModel:
    """A view of a module: it is not run."""
    inputs = Inputs.of(options.example_inputs)
    if inputs is not None:
        bind(module, inputs)
    if options.code != "keep" and not hooked(module):
        return _open_captured(module, inputs, options)
    if options.rehearse is not None:
        trial = _open_captured(module, inputs, replace(options, inplace=False, share=True), is_kept=True)
        options.rehearse(trial.graph)
        try:
            trial.finish()
        except UnsupportedModelError:
            return _open_captured(module, inputs, options, is_kept=True, is_fixed=True)
    return _open_captured(module, inputs, options, is_kept=True)


def _open_captured(
    module: nn.Module, inputs: Inputs | None, options: OpenOptions, *, is_kept: bool = False, is_fixed: bool = False
) -> OpenTorchModel:
    """What is read and tried are twins, since running code leaves its marks in the attributes of a module."""

    def pristine() -> nn.Module:
        made = _twin(module)
        if not needs_hooks:
            strip_hooks(made)
        return made

    needs_hooks = False
    try:
        captured = _capture(pristine(), inputs)
    except UnsupportedModelError:
        if not (needs_hooks := bool(hooked(module))):
            raise
        captured = _capture(pristine(), inputs)  # the code may compute with what its hooks note
    source = captured.source
    observed = borders_of_hooked(hooked(module), source.graph)
    given = (source.graph, source.root, captured.store, captured.values, observed, captured.recast)

    def free() -> TorchGraph:
        return TorchGraph(*given)

    graph = KeptGraph(*given, module, is_fixed=is_fixed) if is_kept else free()

    projection = Projection(source, graph, pristine)

    def make() -> nn.Module:
        return module if options.inplace else copy_module(module, share=options.share)

    def capture(trial: nn.Module, is_static: bool) -> Source:
        return _capture(trial, inputs, is_static=is_static).source

    def settle() -> nn.Module:
        with torch.inference_mode(False):
            if not is_kept:
                return projection.apply(make, capture)
            made = projection.apply_kept(make, capture)
        if made is None:
            raise UnsupportedModelError(f"the forward code of {type(module).__name__} looks at what these folds change")
        return made

    return OpenTorchModel(graph, module, settle, free if is_kept else None)


def _twin(module: nn.Module) -> nn.Module:
    try:
        return copy_module(module, share=True)
    except UnsupportedModelError:
        return module


def _capture(module: nn.Module, inputs: Inputs | None, *, is_static: bool = False) -> _Captured:
    """A module as a graph, for the sizes of the example alone if that is enough; its code runs.

    Raises:
        UnsupportedModelError: it cannot be captured.
    """
    if inputs is not None:
        found = export(module, inputs, is_static=is_static)
        source = of_export(found, module)
        return _Captured(source, ProgramStore(found.program), shapes.recorded(source.graph))
    try:
        traced = trace(module)
    except UntraceableError as error:
        kind = type(module).__name__
        raise UnsupportedModelError(
            f"the forward of {kind} cannot be traced ({error}): pass example_inputs, or an ExportedProgram"
        ) from error
    root = fx.GraphModule(module, traced.graph)
    return _Captured(of_trace(traced, root, module), ModuleStore(root, root.graph), None, traced.recast)
