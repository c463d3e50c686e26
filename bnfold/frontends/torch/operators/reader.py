"""Questions that the readers of torch operators ask about a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from bnfold.frontends.reading import Unreadable, count_axis, known_rank, missing, not_constant, read_elsewhere
from bnfold.frontends.torch.operators.calls import Call, Slot
from bnfold.frontends.torch.operators.constants import Constants
from bnfold.frontends.torch.tensors import AnyArray, is_plain, to_numpy
from bnfold.graph.ops import Shape
from bnfold.graph.outcome import Reason


@dataclass(frozen=True)
class Part:
    """One output of a node that has several."""

    node: fx.Node
    index: int


Value = fx.Node | Part


@dataclass(frozen=True)
class Facts:
    """Calls, constants, shapes and types of a graph's nodes."""

    calls: Mapping[fx.Node, Call]
    constants: Constants
    shapes: dict[fx.Node, Shape]
    ranks: dict[fx.Node, int]
    dtypes: dict[fx.Node, torch.dtype]

    def copy(self, node: fx.Node, to: fx.Node) -> None:
        """Give `to` the shape and type of `node`."""
        if node in self.shapes:
            self.shapes[to] = self.shapes[node]
        if node in self.ranks:
            self.ranks[to] = self.ranks[node]
        if node in self.dtypes:
            self.dtypes[to] = self.dtypes[node]


@dataclass(frozen=True)
class Reader:
    """One node, with its arguments, constants and shapes."""

    node: fx.Node
    facts: Facts

    @property
    def call(self) -> Call:
        """The node's call."""
        return self.facts.calls[self.node]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that is a plain Python value."""
        argument = self.call.get(name, default)
        if isinstance(argument, fx.Node):
            raise Unreadable(Reason.UNKNOWN_SHAPE, f"its argument {name} is computed")
        return argument

    def data(self, name: str = "input") -> fx.Node:
        """An argument that is a computed value."""
        argument = self.call.get(name)
        if not isinstance(argument, fx.Node):
            raise Unreadable(Reason.NOT_LINEAR, f"its argument {name} is no computed value")
        return argument

    def holds(self, name: str) -> bool:
        """Whether an argument is a constant tensor."""
        return self.facts.constants.holds(self.call.get(name))

    def tensor(self, name: str, what: str) -> torch.Tensor:
        """A constant argument."""
        handle = self.call.get(name)
        if handle is None:
            raise missing(what)
        if not self.holds(name):
            raise not_constant(what, name_of(handle))
        tensor = self.facts.constants.get(handle)
        if not is_plain(tensor) and tensor.device.type != "meta":
            kind = type(tensor).__name__ if tensor.dtype.is_floating_point else str(tensor.dtype)
            raise Unreadable(Reason.NOT_CONSTANT, f"its {what} is a {kind}, not a plain floating-point tensor")
        return tensor

    def constant(self, name: str, what: str) -> AnyArray:
        """A constant argument, as an array of its own type."""
        return to_numpy(self.tensor(name, what))

    def shape(self, node: object = None) -> Shape | None:
        """The shape of a value (of the input, if none is given), as far as it is known."""
        value = self.call.get("input") if node is None else node
        return self.facts.shapes.get(value) if isinstance(value, fx.Node) else None

    def _rank(self, node: object) -> int | None:
        value = self.call.get("input") if node is None else node
        shape = self.shape(value)
        if shape is not None:
            return len(shape)
        return self.facts.ranks.get(value) if isinstance(value, fx.Node) else None

    def rank(self, node: object = None) -> int:
        """The number of axes of a value."""
        return known_rank(self._rank(node))

    def axis(self, axis: Any, node: object = None) -> int:
        """An axis, counted from the front."""
        return count_axis(axis, self._rank(node))

    def dtype(self, node: object = None) -> torch.dtype | None:
        """The element type of a value."""
        value = self.call.get("input") if node is None else node
        return self.facts.dtypes.get(value) if isinstance(value, fx.Node) else None

    def only_first(self) -> None:
        """Insist that nothing but the first of several outputs is read."""
        if any(part_of(user) not in (None, Part(self.node, 0)) for user in self.node.users if user.users):
            raise read_elsewhere()


def name_of(handle: object) -> str:
    """The name of a constant argument in a message."""
    if isinstance(handle, Slot):
        return f"{handle.path}.{handle.attribute}"
    return handle.name if isinstance(handle, fx.Node) else str(handle)


def part_of(node: fx.Node) -> Part | None:
    """The output that a node picks from one with several."""
    if node.op != "call_function" or getattr(node.target, "__name__", "") != "getitem" or len(node.args) != 2:
        return None
    source, index = node.args
    return Part(source, index) if isinstance(source, fx.Node) and isinstance(index, int) else None
