"""Opens a torch model: a view to plan on, and how to finish what was changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.protocol import Cautions, OpenOptions, Replan, Size, Written
from bnfold.frontends.torch.capture import tracing
from bnfold.frontends.torch.capture.copies import copy_module, copy_program
from bnfold.frontends.torch.capture.tracing import Inputs
from bnfold.frontends.torch.change.module import OwnedGraph, Replaceable, fixed_batchnorms
from bnfold.frontends.torch.change.program import ProgramStore
from bnfold.frontends.torch.change.store import ModuleStore
from bnfold.frontends.torch.files.programs import count_nodes, load, save
from bnfold.frontends.torch.operators import shapes
from bnfold.frontends.torch.view import TorchGraph
from bnfold.graph.outcome import Fold, Outcome, Reason, Refusal


@dataclass(frozen=True, eq=False)
class OpenTorchModel:
    """A `bnfold.frontends.protocol.OpenModel`.

    Attributes:
        graph: its view; edits change `model`.
        model: what is given back.
        settle: makes `model` valid again after the edits.
        free: where `graph` can change parameters and submodules only: a view of the same that could change the code as
            well, which tells what would then fold. It must not be edited.
        bytes: of the file that it was read from.
        files: that file.
    """

    graph: TorchGraph
    model: Any
    settle: Callable[[], None]
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
        self.settle()
        return self.model

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

    Unless it is changed itself, a copy, which shares its tensors, is what the edits change.

    Raises:
        UnsupportedModelError: it cannot be captured, or is in a state that has no meaning to keep.
        InvalidModelError: the file cannot be read.
    """
    if isinstance(model, str | Path):
        path = Path(model)
        return replace(open_program(load(path, options.limits)), bytes=path.stat().st_size, files=(path,))
    inputs = Inputs.of(options.example_inputs)
    if isinstance(model, ExportedProgram):
        return open_program(model if options.inplace else copy_program(model))
    assert isinstance(model, nn.Module)
    tracing.insist_on_readable(model)
    copied = model if options.inplace else copy_module(model)
    if isinstance(copied, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return replace(_open_module(copied.module, inputs), model=copied)
    if isinstance(copied, fx.GraphModule):
        return _open_graph_module(copied, inputs)
    return _open_module(copied, inputs)


def open_program(program: ExportedProgram) -> OpenTorchModel:
    """A view of a program, which the edits change."""
    graph_module = program.graph_module
    observed = _preserved(program)
    store = ProgramStore(program)
    recorded = shapes.recorded(graph_module.graph)
    for node, value in recorded.items():
        if (held := store.tensor(node)) is not None and (held.shape, held.dtype) != (value.shape, value.dtype):
            recorded[node] = held
    known = tracing.recompute(graph_module, graph_module.graph, recorded)
    graph = TorchGraph(graph_module.graph, graph_module, store, known, observed)

    def finish() -> None:
        graph_module.graph.lint()
        graph_module.recompile()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program.validate()  # type: ignore[no-untyped-call]

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
    values = tracing.propagate(module, module.graph, inputs) if inputs is not None else None
    if values is None:
        recorded = shapes.recorded(module.graph)
        inputs_are_known = all(node in recorded or node.op != "placeholder" for node in module.graph.nodes) and any(
            isinstance(value, torch.Tensor) for value in recorded.values()
        )
        values = tracing.recompute(module, module.graph, recorded) if inputs_are_known else None
    graph = TorchGraph(module.graph, module, ModuleStore(module, module.graph), values)

    def finish() -> None:
        module.graph.lint()
        module.recompile()

    return OpenTorchModel(graph, module, finish, inputs=inputs)


def _open_module(module: nn.Module, inputs: Inputs | None) -> OpenTorchModel:
    """Capture a twin of the module, since running its code under a trace changes its attributes."""
    twin = _twin(module)
    try:
        traced = tracing.trace(twin, inputs)
    except tracing.UntraceableError as error:
        if inputs is None:
            kind = type(module).__name__
            raise UnsupportedModelError(
                f"the forward of {kind} cannot be traced ({error}): pass example_inputs, or an ExportedProgram"
            ) from error
        return _open_exported(module, _twin(module), inputs)

    portrait = tracing.portray(traced.graph, twin)
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}

    def survives(_: list[str]) -> bool:
        return tracing.portray(tracing.trace(twin, inputs, is_outline=True).graph, twin) == portrait

    fixed = fixed_batchnorms(twin, called, survives)
    store = ModuleStore(twin, traced.graph)
    graph = OwnedGraph(
        traced.graph,
        twin,
        store,
        traced.values,
        traced.observed,
        traced.recast,
        module,
        fixed,
        Replaceable(twin, survives),
    )

    def free() -> TorchGraph:
        store = ModuleStore(twin, traced.graph)
        return TorchGraph(traced.graph, twin, store, traced.values, traced.observed, traced.recast)

    return OpenTorchModel(graph, module, graph.finish, free)


def _twin(module: nn.Module) -> nn.Module:
    try:
        return copy_module(module, is_twin=True)
    except UnsupportedModelError:
        return module


def _open_exported(module: nn.Module, twin: nn.Module, inputs: Inputs) -> OpenTorchModel:
    program = tracing.export(twin, inputs)
    nodes = program.graph_module.graph

    def survives(paths: list[str]) -> bool:
        return tracing.portray_program(tracing.export(twin, inputs)) == tracing.portray_program(program, paths)

    called = {path for node in nodes.nodes for path in tracing.stack(node)[-1:]}
    fixed = fixed_batchnorms(twin, called, survives)
    observed = tracing.borders_of_hooked(twin, nodes)
    known = shapes.recorded(nodes)
    graph = OwnedGraph(
        nodes,
        program.graph_module,
        ProgramStore(program),
        known,
        observed,
        frozenset(),
        module,
        fixed,
        Replaceable(twin, survives),
    )

    def free() -> TorchGraph:
        return TorchGraph(nodes, program.graph_module, ProgramStore(program), known, observed)

    return OpenTorchModel(graph, module, graph.finish, free)
