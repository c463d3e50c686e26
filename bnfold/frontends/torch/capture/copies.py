"""Copies of a model's structure that share its tensors."""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.errors import UnsupportedModelError, one_line

M = TypeVar("M", bound=nn.Module)


def _shared(module: nn.Module, *, is_twin: bool = False) -> dict[int, Any]:
    """A memo that lets `deepcopy` keep every tensor of a module as it is; for a twin, those that are registered."""
    memo: dict[int, Any] = {}
    for each in module.modules():
        plain = () if is_twin else vars(each).values()
        held = [*each._parameters.values(), *each._buffers.values(), *plain]
        memo.update((id(tensor), tensor) for tensor in held if isinstance(tensor, torch.Tensor))
    return memo


def copy_module(module: M, *, is_twin: bool = False) -> M:
    """A module of the same class and structure, whose tensors are those of the original.

    Args:
        module: what is copied.
        is_twin: the copy's code will run: it gets plain tensor attributes of its own, which the code may write into.

    Raises:
        UnsupportedModelError: something in it cannot be copied.
    """
    try:
        memo = _shared(module, is_twin=is_twin)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of the structure of inputs and outputs
            twin = copy.deepcopy(module, memo)
            _complete(module, twin, memo)
        return twin
    except Exception as error:  # a module's own __deepcopy__ or __reduce__ may raise anything
        text = one_line(str(error), 200)
        raise UnsupportedModelError(f"{type(module).__name__} cannot be copied ({text}): pass inplace=True") from error


OF_A_GRAPH = frozenset(
    {"_graph", "_code", "_in_spec", "_out_spec", "_lineno_map", "_prologue_start", "_tracer_cls", "_tracer_extras"}
)
"""What a graph module derives from its graph."""


def _complete(module: nn.Module, twin: nn.Module, memo: dict[int, Any]) -> None:
    """Give copies of graph modules their hooks and plain attributes, which `deepcopy` leaves out."""
    for mine, its in zip(module.modules(), twin.modules(), strict=False):
        if not isinstance(mine, fx.GraphModule) or mine is its:
            continue
        for name, value in vars(mine).items():
            if name not in OF_A_GRAPH and (name not in vars(its) or "hook" in name):
                vars(its)[name] = copy.deepcopy(value, memo)


def copy_program(program: ExportedProgram) -> ExportedProgram:
    """A program with its own graph, signature and dictionaries, whose tensors are those of the original."""
    graph_module = copy.deepcopy(program.graph_module, _shared(program.graph_module))
    for old, new in zip(program.graph_module.graph.nodes, graph_module.graph.nodes, strict=True):
        new.name = old.name  # a copy does not keep "input", since Python has a function of that name
        if new.op == "placeholder":
            new.target = old.target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        twin = program._update(
            graph_module,
            copy.deepcopy(program.graph_signature),
            state_dict=dict(program.state_dict),
            constants=dict(program.constants),
        )
    twin._guards_code = list(program._guards_code)
    return twin
