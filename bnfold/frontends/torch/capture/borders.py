"""What enters and leaves each call of a module while it is captured, as nodes of the graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import _ProxyTensor, get_proxy_mode, get_proxy_slot
from torch.utils._thunk import Thunk

from bnfold.frontends.torch.capture.structure import Structure, Together, flatten


@dataclass(frozen=True, eq=False)
class Border:
    """One call of a module.

    Attributes:
        path: of the module.
        signature: of its forward.
        leaves: what its arguments hold, defaults included: nodes and constants.
        arguments: what holds them, by the names of the parameters.
        results, result: the same of what it gives back.
    """

    path: str
    signature: inspect.Signature
    leaves: list[Any]
    arguments: Structure
    results: list[Any]
    result: Structure

    def moved(self, nodes: Mapping[fx.Node, fx.Node]) -> Border:
        """The same call in another graph; a size that nothing reads is a node of neither."""
        leaves, results = (
            [nodes.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf for leaf in held]
            for held in (self.leaves, self.results)
        )
        return replace(self, leaves=leaves, results=results)


UNSEEN = object()
"""What stands for a tensor, or a size, that no node of the graph makes."""


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, defaults included, by the names of the forward's parameters."""
    found = inspect.signature(module.forward).bind(*args, **kwargs)
    found.apply_defaults()
    return dict(found.arguments)


class Recorder:
    """Notes the borders of all calls of a module's submodules, and its own, while it is exported.

    What the model itself gives back is taken apart, since an export knows fewer kinds of results than Python.

    Args:
        module: the model.
        is_whole: leave out the calls of its submodules, which takes less time.

    Attributes:
        borders: each once, the model's own last.
        methods: what further methods of the model give back, by their names, with the arguments of the model.
    """

    def __init__(self, module: nn.Module, *, is_whole: bool) -> None:
        self.borders: list[Border] = []
        self.methods: dict[str, Border] = {}
        self._known: set[Any] = set()
        self._pending: list[tuple[str, list[Any], Structure]] = []
        self._handles: list[Any] = []
        for path, each in [("", module)] if is_whole else module.named_modules():
            if isinstance(each, torch.jit.ScriptModule):
                continue
            self._handles.append(each.register_forward_pre_hook(self._enter(path), with_kwargs=True))
            self._handles.append(each.register_forward_hook(self._leave(path), with_kwargs=True))

    def remove(self) -> None:
        """Stop noting."""
        for handle in self._handles:
            handle.remove()

    def running(self) -> tuple[str, ...]:
        """The paths of the modules whose forward runs, the model's first."""
        return tuple(path for path, *_ in self._pending)

    def _enter(self, path: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            leaves, structure = flatten(bound(module, args, kwargs))
            self._pending.append((path, [_node(leaf) for leaf in leaves], structure))

        return enter

    def _leave(self, path: str) -> Any:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Any:
            _, leaves, structure = self._pending.pop()
            signature = inspect.signature(module.forward)
            methods = made.methods if isinstance(made, Together) else {}
            tensors: list[torch.Tensor] = []

            def border(name: str, made: Any) -> Border:
                results, result = flatten(made)
                tensors.extend(leaf for leaf in results if isinstance(leaf, torch.Tensor))
                return Border(name, signature, leaves, structure, [_node(leaf) for leaf in results], result)

            self._note(border(path, made.forward if isinstance(made, Together) else made))
            self.methods = {name: border(name, each) for name, each in methods.items()}
            return None if path else tuple(tensors)

        return leave

    def _note(self, border: Border) -> None:
        """A call that is there already was not made again: a method got what it gave back."""
        key = border.path, *map(_key, (*border.leaves, *border.results))
        if key not in self._known:
            self._known.add(key)
            self.borders.append(border)


def _key(leaf: Any) -> Any:
    return leaf if isinstance(leaf, fx.Node | int | float | str | None) else id(leaf)


def _node(leaf: Any) -> Any:
    """The node that makes a tensor or a size; a constant is itself."""
    if not isinstance(leaf, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool):
        return leaf
    mode = get_proxy_mode()
    found: Any = None if mode is None else get_proxy_slot(leaf, mode.tracer, None)
    if isinstance(found, Thunk):
        found = found.force()
    if isinstance(found, _ProxyTensor):
        found = found.proxy
    return found.node if isinstance(found, fx.Proxy) else UNSEEN
