"""Activations that write into their input, and those that make the same numbers afresh."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import fx, nn


def makes_fresh(node: fx.Node) -> bool:
    """Whether `release` knows how to call the activation of a function or method without writing."""
    return _plain(node) is not None or _flag(node) is not None


def release(node: fx.Node, root: nn.Module | None) -> None:
    """Let a call of an activation, which writes into its input, make a fresh result.

    A module that other nodes call as well stays, and its copy is called.
    """
    if node.op == "call_module":
        assert root is not None
        path = str(node.target)
        module = copy.copy(root.get_submodule(path))
        vars(module)["inplace"] = False
        if len(node.graph.find_nodes(op="call_module", target=path)) > 1:
            node.target = _free_name(root, path)
        parent, _, name = str(node.target).rpartition(".")
        root.get_submodule(parent)._modules[name] = module
    elif (plain := _plain(node)) is not None:
        node.target = plain
    else:
        flag = _flag(node)
        if isinstance(flag, int):
            node.update_arg(flag, False)
        else:
            node.update_kwarg("inplace", False)


def _plain(node: fx.Node) -> Any:
    """What a node would call to write nothing, if that has another name: that without the last underscore."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.partition("::")[2]
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
        return getattr(packet, target._overloadname, None)
    name = str(target) if node.op == "call_method" else str(getattr(target, "__name__", ""))
    if not name.endswith("_"):
        return None
    name = name.removesuffix("_")
    if node.op == "call_method":
        return name if hasattr(torch.Tensor, name) else None
    return getattr(torch, name, None)


def _flag(node: fx.Node) -> int | str | None:
    """Where a node is told to write: the place of an argument, or its name."""
    if node.op != "call_function" or not callable(node.target):
        return None
    if node.kwargs.get("inplace"):
        return "inplace"
    try:
        names = list(inspect.signature(node.target).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names[: len(node.args)] else None


def _free_name(root: nn.Module, path: str) -> str:
    parent, _, name = path.rpartition(".")
    taken, count = root.get_submodule(parent)._modules, 1
    while (wish := f"{name}_folded" if count == 1 else f"{name}_folded_{count}") in taken:
        count += 1
    return f"{parent}.{wish}".removeprefix(".")


__all__ = ["makes_fresh", "release"]
