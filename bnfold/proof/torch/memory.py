"""Finds values that may be overwritten behind the back of a reader.

An in-place operator is as good as one with a fresh result if nothing that may share the memory is read any more, and
nobody outside sees it. Otherwise the graph is no set of equations, and every value that shares the memory is *tangled*.
"""

from __future__ import annotations

from torch import fx

from bnfold.proof.torch.calls import FRESH, SHAPES
from bnfold.proof.torch.sides import Side


def find_tangled(side: Side) -> set[fx.Node]:
    """The nodes whose values a harmful write may change."""
    neighbours: dict[fx.Node, set[fx.Node]] = {node: set() for node in side.graph.nodes}
    for node, call in side.calls.items():
        shared = set(call.writes)
        if call.name not in FRESH and call.name not in SHAPES:
            shared.update(node.all_input_nodes)
        for other in shared - side.sizes:
            neighbours[node].add(other)
            neighbours[other].add(node)
    tangled: set[fx.Node] = set()
    for node, call in side.calls.items():
        for written in call.writes:
            if _is_harmful(side, node, written, neighbours):
                tangled |= _reach(written, neighbours)
    return tangled


def _is_harmful(side: Side, writer: fx.Node, written: fx.Node, neighbours: dict[fx.Node, set[fx.Node]]) -> bool:
    """Whether a later reader, or one outside of the model, may see a write by another way than its result."""
    now = side.order[writer]
    for reached in _reach(written, neighbours, lambda node: side.order[node] < now):
        if reached.op in ("placeholder", "get_attr"):
            return True
        if any(side.order[user] > now and not _sees_shape_only(side, user) for user in reached.users):
            return True
    return False


def _sees_shape_only(side: Side, node: fx.Node) -> bool:
    return node in side.calls and side.calls[node].name in SHAPES


def _reach(start: fx.Node, neighbours: dict[fx.Node, set[fx.Node]], among: object = None) -> set[fx.Node]:
    reached, stack = {start}, [start]
    while stack:
        for neighbour in neighbours[stack.pop()]:
            if neighbour not in reached and (not callable(among) or among(neighbour)):
                reached.add(neighbour)
                stack.append(neighbour)
    return reached
