"""Which tensors an in-place operator may change behind the back of other readers.

A graph shows who reads a value, not who sees it change: after ``a = x.view(-1); a.relu_()`` every later reader of `x`
sees another content. An operator that writes into a tensor is harmless where each tensor on the way from the one that
was made afresh has one reader, so that nothing can tell the writing from a fresh result. A BatchNorm on the way counts
as a view, since without it what follows writes into its input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import fx

from bnfold.frontends.torch.operators.calls import UNKNOWN, Call
from bnfold.frontends.torch.operators.read_affine import ARITHMETIC, BATCHNORMS

VIEWS = BATCHNORMS | {
    "cast",
    "channel_shuffle",
    "chunk",
    "dropout",
    "expand",
    "expand_as",
    "flatten",
    "identity",
    "index",
    "narrow",
    "permute",
    "pixel_shuffle",
    "pixel_unshuffle",
    "reshape",
    "reshape_as",
    "select",
    "slice",
    "slice_all",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "to",
    "transpose",
    "type_as",
    "unflatten",
    "unsqueeze",
    UNKNOWN,
}
"""Operators whose output may share memory with their input."""


UNANNOTATED = frozenset(
    f"aten::{name}"
    for name in (
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "broadcast_tensors",
        "cartesian_prod",
        "chain_matmul",
        "meshgrid",
        "sum_to_size",
    )
)
"""Operators that may return a view, or what they read, which their schemas do not tell."""

REPEATED = frozenset({"expand", "expand_as", "broadcast_to"})
"""Views in which several elements are one: nothing can be written into them."""


def tangled(calls: Mapping[fx.Node, Call], constant: Collection[fx.Node]) -> set[fx.Node]:
    """Every node whose tensor may be changed in place while something else reads it.

    Args:
        calls: what the nodes of a graph do; those that see only shapes count as no reader.
        constant: nodes that hold constants.
    """
    sources = {node: list(_sources(node, call, constant)) for node, call in calls.items()}
    neighbours: dict[fx.Node, list[fx.Node]] = {}
    for node, shared in sources.items():
        for each in shared:
            neighbours.setdefault(node, []).append(each)
            neighbours.setdefault(each, []).append(node)
    found: set[fx.Node] = set()
    for node, call in calls.items():
        if call.is_inplace:
            for written in _written(node, call):
                if not _is_alone(written, sources, calls):
                    _spread(written, neighbours, found)
    return found


def exposed(calls: Mapping[fx.Node, Call], constant: Collection[fx.Node]) -> set[fx.Node]:
    """Sums that something writes into, and that hence must not become one of their operands, which others may read."""
    sources = {node: list(_sources(node, call, constant)) for node, call in calls.items()}
    shared = {
        node: [each for each in node.all_input_nodes if each not in constant] if calls[node].op in ARITHMETIC else found
        for node, found in sources.items()
    }
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    stack = [each for node, call in calls.items() if call.is_inplace for each in _written(node, call)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack.extend(shared.get(node, ()))
        is_sum = node in calls and calls[node].op in ARITHMETIC and len(shared[node]) > 1
        if is_sum and not all(_is_alone(each, shared, calls) for each in shared[node]):
            found.add(node)
    return found


def _written(node: fx.Node, call: Call) -> list[fx.Node]:
    target = call.arguments.get("input")
    return [target] if call.op != UNKNOWN and isinstance(target, fx.Node) else node.all_input_nodes


def _sources(node: fx.Node, call: Call, constant: Collection[fx.Node]) -> Iterator[fx.Node]:
    if call.is_inplace:
        yield from _written(node, call)
    elif call.op == UNKNOWN:
        yield from node.all_input_nodes
    elif call.op in VIEWS:
        source = call.arguments.get("input")
        if isinstance(source, fx.Node):
            yield source
    elif _may_share(node) or (call.op == "einsum" and len(node.all_input_nodes) == 1):  # a transpose
        yield from node.all_input_nodes
    elif call.op in ARITHMETIC:
        computed = [each for each in node.all_input_nodes if each not in constant]
        if len(computed) == 1:
            yield computed[0]


def _may_share(node: fx.Node) -> bool:
    """Whether an aten operator returns a view by its schema, or is one of those that do without saying so."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    return schema.name in UNANNOTATED or any(each.alias_info is not None for each in schema.returns)


def _is_alone(node: fx.Node, sources: Mapping[fx.Node, list[fx.Node]], calls: Mapping[fx.Node, Call]) -> bool:
    """Whether nothing but the one reader can see the node's tensor."""
    stack = [node]
    while stack:
        top = stack.pop()
        readers = [user for user in top.users if user not in calls or calls[user].op != "shape"]
        if top.op in ("placeholder", "get_attr") or len(readers) > 1:
            return False
        if top in calls and calls[top].op in REPEATED:
            return False
        stack.extend(sources.get(top, ()))
    return True


def _spread(start: fx.Node, neighbours: Mapping[fx.Node, list[fx.Node]], found: set[fx.Node]) -> None:
    stack = [start]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(neighbours.get(node, ()))
