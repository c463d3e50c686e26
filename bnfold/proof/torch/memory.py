"""Which values may be written into behind the back of something that reads them.

An operator that writes into a tensor is as good as one that makes a fresh one where nothing that may share its memory
is read any more, and nobody outside sees it. Elsewhere the graph is no set of equations, and all that shares the memory
is *tangled*.
"""

from __future__ import annotations

from torch import fx

from bnfold.proof.torch.calls import FRESH, SHAPES
from bnfold.proof.torch.sides import Side


def find_tangled(side: Side) -> set[fx.Node]:
    """All that a harmful write may change."""
    neighbours: dict[fx.Node, set[fx.Node]] = {node: set() for node in side.graph.nodes}
    for node, call in side.calls.items():
        shared = set(call.writes)
        if call.name not in FRESH and call.name not in SHAPES:
            shared.update(node.all_input_nodes)
        for each in shared - side.sizes:
            neighbours[node].add(each)
            neighbours[each].add(node)
    found: set[fx.Node] = set()
    for node, call in side.calls.items():
        for written in call.writes:
            if _is_harmful(side, node, written, neighbours):
                found |= _reach(written, neighbours)
    return found


def _is_harmful(side: Side, writer: fx.Node, written: fx.Node, neighbours: dict[fx.Node, set[fx.Node]]) -> bool:
    """Whether anything after a write, or outside of the model, may see it otherwise than by its result."""
    now = side.order[writer]
    for each in _reach(written, neighbours, lambda node: side.order[node] < now):
        if each.op in ("placeholder", "get_attr"):
            return True
        if any(side.order[user] > now and not _sees_shape_only(side, user) for user in each.users):
            return True
    return False


def _sees_shape_only(side: Side, node: fx.Node) -> bool:
    return node in side.calls and side.calls[node].name in SHAPES


def _reach(start: fx.Node, neighbours: dict[fx.Node, set[fx.Node]], among: object = None) -> set[fx.Node]:
    found, stack = {start}, [start]
    while stack:
        for each in neighbours[stack.pop()]:
            if each not in found and (not callable(among) or among(each)):
                found.add(each)
                stack.append(each)
    return found
