"""Copies of a model's structure, with tensors of their own or with those of the original."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

from bnfold.errors import UnsupportedModelError, one_line

M = TypeVar("M", bound=nn.Module)


def copy_module(module: M, *, share: bool = False) -> M:
    """A module of the same class and structure, with the same flags.

    Args:
        module: what is copied.
        share: let its parameters and buffers be those of the original; plain tensors are copied.

    Raises:
        UnsupportedModelError: something in it cannot be copied.
    """
    memo = _registered(module) if share else {}
    for each in module.modules():
        _add_empty(vars(each).values(), memo)
        _add_uncopyable(vars(each).values(), memo)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of the structure of inputs and outputs
            made = copy.deepcopy(module, memo)
            _complete(module, made, memo)
    except Exception as error:  # a module's own __deepcopy__ or __reduce__ may raise anything
        text = one_line(str(error), 200)
        raise UnsupportedModelError(f"{type(module).__name__} cannot be copied ({text}): pass inplace=True") from error
    for old, new in zip(module.modules(), made.modules(), strict=False):  # a class's own __deepcopy__ may call train()
        new.training = old.training
    return made


def copy_structure(module: nn.Module) -> nn.Module:
    """A module whose submodules and containers are others, and hold the same, for one that cannot be copied."""
    twins = {each: object.__new__(type(each)) for each in module.modules()}
    for each, twin in twins.items():
        vars(twin).update({name: _container(value) for name, value in vars(each).items()})
        vars(twin)["_modules"].update(
            {name: twins[child] for name, child in each._modules.items() if child is not None}
        )
    return twins[module]


def snapshot(module: nn.Module) -> Callable[[], None]:
    """Notes what a module and its submodules hold; calling it lets them hold that again."""
    held = [(vars(each), dict(vars(each)), each, type(each)) for each in module.modules()]
    values = [value for _, attributes, *_ in held for value in attributes.values()]
    inside = [(value, dict(value)) for value in values if isinstance(value, dict)]

    def restore() -> None:
        for attributes, before, each, kind in held:
            each.__class__ = kind
            _refill(attributes, before)
        for entries, before in inside:
            _refill(entries, before)

    return restore


def _refill(entries: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    """Let a dictionary, which others may know, have the entries that it had."""
    entries.clear()
    entries.update(before)


def _container(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict | list | set) else value


def _registered(module: nn.Module) -> dict[int, Any]:
    """A memo that lets `deepcopy` keep the parameters and buffers of a module as they are."""
    held = [tensor for each in module.modules() for tensor in (*each._parameters.values(), *each._buffers.values())]
    return {id(tensor): tensor for tensor in held if tensor is not None}


def has_inference_tensors(module: nn.Module) -> bool:
    """Whether it was made in inference mode."""
    return any(each.is_inference() for each in _registered(module).values())


PLAIN = bool | int | float | str | None
"""Most attributes of most modules, which hold no tensor."""


def _add_empty(values: Iterable[Any], memo: dict[int, Any]) -> None:
    """Note copies of empty containers, such as those of a module for its hooks, of which `deepcopy` takes long."""
    memo.update((id(value), type(value)()) for value in values if type(value) in (dict, OrderedDict) and not value)


def _add_uncopyable(values: Iterable[Any], memo: dict[int, Any]) -> None:
    """Note copies of tensors that torch does not copy, or not well: results of autograd, and of inference mode."""
    held = [value for value in values if not isinstance(value, PLAIN)]
    for leaf in _pytree.tree_leaves([value for value in held if not isinstance(value, dict) or value]):
        is_odd = isinstance(leaf, torch.Tensor) and (not leaf.is_leaf or leaf.is_inference())
        if is_odd and id(leaf) not in memo:
            plain = leaf.detach().clone().requires_grad_(leaf.requires_grad)
            memo[id(leaf)] = nn.Parameter(plain, leaf.requires_grad) if isinstance(leaf, nn.Parameter) else plain


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
    graph_module = copy.deepcopy(program.graph_module, _registered(program.graph_module))
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


def separate(module: nn.Module, original: nn.Module) -> None:
    """Give a module copies of the parameters and buffers that it shares with another."""
    shared, memo = _registered(original), dict[int, Any]()
    for each in module.modules():
        for held in (each._parameters, each._buffers):
            held.update(_copies(held, shared, memo))


def separate_program(program: ExportedProgram, original: ExportedProgram) -> None:
    """Give a program copies of the tensors that it shares with another."""
    held = (*original.state_dict.values(), *original.constants.values())
    shared, memo = {id(tensor): tensor for tensor in held}, dict[int, Any]()
    for mine in (program.state_dict, program.constants):
        mine.update(_copies(mine, shared, memo))


def _copies(held: Mapping[str, Any], shared: Mapping[int, Any], memo: dict[int, Any]) -> dict[str, Any]:
    common = {name: each for name, each in held.items() if id(each) in shared and each is not None}
    _add_uncopyable(common.values(), memo)
    return {name: copy.deepcopy(each, memo) for name, each in common.items()}
