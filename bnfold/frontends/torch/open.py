"""Opens a torch model: a view to plan on, and how to finish what was changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.torch import capture, shapes
from bnfold.frontends.torch.calls import spell
from bnfold.frontends.torch.capture import Inputs
from bnfold.frontends.torch.copies import copy_module, copy_program
from bnfold.frontends.torch.module import OwnedGraph, fixed_batchnorms
from bnfold.frontends.torch.program import ProgramStore
from bnfold.frontends.torch.store import ModuleStore
from bnfold.frontends.torch.view import TorchGraph


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that can be planned on and changed.

    Attributes:
        graph: its view; edits change `model`.
        model: what is given back.
        finish: makes `model` valid again after the edits.
    """

    graph: TorchGraph
    model: Any
    finish: Callable[[], None]


def is_model(model: object) -> bool:
    """Whether it is a torch model of a kind that is read here."""
    return isinstance(model, nn.Module | ExportedProgram)


def is_program(model: object) -> bool:
    """Whether it is an exported program."""
    return isinstance(model, ExportedProgram)


def open_model(model: Any, example_inputs: Any = None, *, inplace: bool = False) -> Opened:
    """A view of an `nn.Module`, an `fx.GraphModule` or an `ExportedProgram`.

    Args:
        model: what is read; a copy of it, which shares its tensors, is what the edits change.
        example_inputs: what a module is called with: a tuple of arguments, a dict of keyword ones, or the only one.
        inplace: let the edits change `model` itself.

    Raises:
        UnsupportedModelError: it cannot be captured, or is in a state that has no meaning to keep.
    """
    inputs = Inputs.of(example_inputs)
    if isinstance(model, ExportedProgram):
        return open_program(model if inplace else copy_program(model))
    assert isinstance(model, nn.Module)
    capture.insist_on_readable(model)
    copied = model if inplace else copy_module(model)
    if isinstance(copied, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = _open_module(copied.module, inputs)
        return Opened(inner.graph, copied, inner.finish)
    if isinstance(copied, fx.GraphModule):
        return _open_graph_module(copied, inputs)
    return _open_module(copied, inputs)


def open_program(program: ExportedProgram) -> Opened:
    """A view of a program, which the edits change."""
    graph_module = program.graph_module
    observed = _preserved(program)
    graph = TorchGraph(
        graph_module.graph, graph_module, ProgramStore(program), shapes.recorded(graph_module.graph), observed
    )

    def finish() -> None:
        graph_module.graph.lint()
        graph_module.recompile()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program.validate()  # type: ignore[no-untyped-call]

    return Opened(graph, program, finish)


def _preserved(program: ExportedProgram) -> frozenset[fx.Node]:
    """Values at the borders of submodules whose calls the program keeps apart."""
    names: set[str] = set()
    for entry in program.module_call_graph:
        if entry.fqn and entry.signature is not None:
            names.update(
                each.name for each in (*entry.signature.inputs, *entry.signature.outputs) if hasattr(each, "name")
            )
    return frozenset(node for node in program.graph_module.graph.nodes if node.name in names)


def _open_graph_module(module: fx.GraphModule, inputs: Inputs | None) -> Opened:
    values = capture.propagate(module, module.graph, inputs) if inputs is not None else None
    if values is None:
        recorded = shapes.recorded(module.graph)
        inputs_are_known = all(node in recorded or node.op != "placeholder" for node in module.graph.nodes) and any(
            isinstance(value, torch.Tensor) for value in recorded.values()
        )
        values = recorded if inputs_are_known else None
    graph = TorchGraph(module.graph, module, ModuleStore(module, module.graph), values)

    def finish() -> None:
        module.graph.lint()
        module.recompile()

    return Opened(graph, module, finish)


def _open_module(module: nn.Module, inputs: Inputs | None) -> Opened:
    try:
        traced = capture.trace(module, inputs)
    except Exception as error:  # the module's code may raise anything
        if inputs is None:
            kind = type(module).__name__
            raise UnsupportedModelError(
                f"the forward of {kind} cannot be traced ({capture.line(error)}): pass example_inputs, "
                "or an ExportedProgram"
            ) from error
        return _open_exported(module, inputs)

    def again(trial: nn.Module) -> list[str]:
        return _targets(capture.trace(trial, inputs).graph)

    fixed = fixed_batchnorms(module, _targets(traced.graph), again)
    store = ModuleStore(module, traced.graph)
    graph = OwnedGraph(traced.graph, module, store, traced.values, traced.observed, module, fixed)
    return Opened(graph, module, graph.finish)


def _open_exported(module: nn.Module, inputs: Inputs) -> Opened:
    program = capture.export(module, inputs)
    nodes = program.graph_module.graph

    def again(trial: nn.Module) -> list[str]:
        return _without_batchnorms(capture.export(trial, inputs).graph_module.graph)

    fixed = fixed_batchnorms(module, _without_batchnorms(nodes), again)
    observed = capture.borders_of_hooked(module, nodes)
    graph = OwnedGraph(
        nodes, program.graph_module, ProgramStore(program), shapes.recorded(nodes), observed, module, fixed
    )
    return Opened(graph, module, graph.finish)


def _targets(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]


def _without_batchnorms(graph: fx.Graph) -> list[str]:
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return [str(node.target) for node in calls if spell(node, None).op not in ("batch_norm", "instance_norm")]
