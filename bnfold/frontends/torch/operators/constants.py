"""Tensors of a graph that do not depend on its inputs, evaluated with torch itself on demand."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from bnfold.errors import InvalidModelError
from bnfold.frontends.torch.operators.calls import Call, Handle, Slot
from bnfold.frontends.traversal import in_order

ELEMENT_LIMIT = 1 << 28
"""Elements that a computed constant may have."""


class Constants:
    """Which nodes are constant, and what they hold.

    Args:
        graph: whose nodes are asked about.
        call: describes a node.
        stored: the tensor that a node or a place holds; None where it holds none, or one that changes.
        changing: nodes that are no constants, since something may be written into what they make.
    """

    def __init__(
        self,
        graph: fx.Graph,
        call: Callable[[fx.Node], Call],
        stored: Callable[[Handle], torch.Tensor | None],
        changing: Collection[fx.Node] = frozenset(),
    ) -> None:
        self._call = call
        self._stored = stored
        self.nodes: set[fx.Node] = set()
        self._memo: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node not in changing and self._is_constant(node):
                self.nodes.add(node)

    def _is_constant(self, node: fx.Node) -> bool:
        if node.op in ("get_attr", "placeholder"):
            return self._stored(node) is not None
        if node.op not in ("call_function", "call_method"):
            return False
        call = self._call(node)
        if (
            not call.operator.is_evaluated
            or call.is_inplace
            or any(source not in self.nodes for source in node.all_input_nodes)
        ):
            return False
        return call.op != "batch_norm" or (bool(call.get("training")) and call.get("running_mean") is None)

    def holds(self, handle: object) -> bool:
        """Whether a handle stands for a constant tensor; evaluates nothing."""
        if isinstance(handle, Slot):
            return self._stored(handle) is not None
        return isinstance(handle, fx.Node) and handle in self.nodes

    def get(self, handle: Handle) -> torch.Tensor:
        """The content of a constant, in its own type.

        Raises:
            InvalidModelError: it cannot be evaluated, or would take unreasonable memory.
        """
        stored = self._stored(handle)
        if stored is not None:
            return stored
        assert isinstance(handle, fx.Node)
        value = self._evaluate(handle)
        if not isinstance(value, torch.Tensor):
            raise InvalidModelError(f"constant node {handle.name!r} is not a tensor")
        return value

    def _evaluate(self, node: fx.Node) -> Any:
        for source in self.sources(node):
            if source not in self._memo and source.op not in ("get_attr", "placeholder"):
                self._memo[source] = self._run(source)
        return self._memo[node]

    def _run(self, node: fx.Node) -> Any:
        with torch.no_grad():
            try:
                size = self._size(node)
                if size > ELEMENT_LIMIT:
                    raise InvalidModelError(f"constant node {node.name!r} asks for {size} elements")
                return _call(node, lambda each: _detached(self._value(each)))
            # what torch's operators raise on arguments of other types, ranks and sizes than they take
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
                raise InvalidModelError(f"constant node {node.name!r} cannot be evaluated: {error}") from error

    def _size(self, node: fx.Node) -> int:
        """The elements that a node makes, asked of torch without data; where that cannot tell, those that it reads."""
        try:
            return _elements(_call(node, lambda each: _meta(self._value(each))))
        except NotImplementedError:  # a copy to a device
            return sum(_elements(self._value(each)) for each in node.all_input_nodes)

    def _value(self, node: fx.Node) -> Any:
        stored = self._stored(node)
        return self._memo[node] if stored is None else stored

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """All nodes that compute a constant, each after those that it reads; the node itself is the last."""
        return in_order(node, lambda each: each.all_input_nodes)


def _call(node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    arguments, keywords = map_arg(node.args, value), map_arg(node.kwargs, value)
    if node.op == "call_method":
        receiver, *rest = arguments
        return getattr(receiver, str(node.target))(*rest, **keywords)
    assert callable(node.target)
    return node.target(*arguments, **keywords)


def _map(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    return tuple(_map(part, change) for part in value) if isinstance(value, tuple | list) else value


def _meta(value: Any) -> Any:
    return _map(value, lambda tensor: tensor.detach().to("meta"))


def _detached(value: Any) -> Any:
    return _map(value, lambda tensor: tensor.detach())


def _elements(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    return sum(_elements(part) for part in value) if isinstance(value, tuple | list) else 0
