"""Which tensors an in-place operator may change behind the back of other readers.

A graph shows who reads a value, not who sees it change: after ``a = x.view(-1); a.relu_()`` every later reader of `x`
sees another content. An operator that writes into a tensor is harmless where each tensor on the way from the one that
was made afresh has one reader, so that nothing can tell the writing from a fresh result. A BatchNorm on the way counts
as a view, since without it what follows writes into its input. So does every operator that is not declared fresh.

Where only such BatchNorms make it a view, an activation that writes is harmless as long as they are there. So it may
make a fresh result in the moment that one of them goes: the same numbers, in other memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import fx

from bnfold.frontends.torch.operators.calls import UNKNOWN, Call, Memory
from bnfold.frontends.traversal import reach

ACTIVATIONS = frozenset(
    {"relu", "leaky_relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "elu", "selu", "celu"}
)
"""Operators that write the same numbers into their input as they make without it, of the same type and shape."""


def releasable(
    calls: Mapping[fx.Node, Call], constant: Collection[fx.Node], observed: Collection[fx.Node]
) -> dict[fx.Node, frozenset[fx.Node]]:
    """Activations that write into what nothing else sees, but would not without some affine.

    Args:
        calls: what the nodes of a graph do.
        constant: nodes that hold constants.
        observed: nodes whose tensors something outside the graph sees.

    Returns:
        Each activation, with the affines of which none may go while it writes into its input.
    """
    folded = {node: list(_sources(node, call, constant)) for node, call in calls.items()}
    shared = {node: list(_sources(node, call, constant, is_folded=False)) for node, call in calls.items()}
    found: dict[fx.Node, frozenset[fx.Node]] = {}
    for node, call in calls.items():
        target = call.arguments.get("input")
        if not call.is_inplace or call.op not in ACTIVATIONS or not isinstance(target, fx.Node):
            continue
        own = reach([target], lambda source: shared.get(source, ()))
        if not _is_alone(target, folded, calls) and _is_alone(target, shared, calls) and own.isdisjoint(observed):
            way = reach([target], lambda source: folded.get(source, ()))
            found[node] = frozenset(each for each in way if folded.get(each) and not shared[each])
    return found


def tangled(
    calls: Mapping[fx.Node, Call], constant: Collection[fx.Node], released: Collection[fx.Node] = ()
) -> set[fx.Node]:
    """Every node whose tensor may be changed in place while something else reads it.

    Args:
        calls: what the nodes of a graph do; those that see only shapes count as no reader.
        constant: nodes that hold constants.
        released: nodes that do not write where it would harm.
    """
    sources = {node: list(_sources(node, call, constant)) for node, call in calls.items()}
    neighbours: dict[fx.Node, list[fx.Node]] = {}
    for node, shared in sources.items():
        for source in shared:
            neighbours.setdefault(node, []).append(source)
            neighbours.setdefault(source, []).append(node)
    writers = [(node, call) for node, call in calls.items() if call.is_inplace and node not in released]
    written = (target for node, call in writers for target in _written(node, call))
    seen_to_change = [target for target in written if not _is_alone(target, sources, calls)]
    return reach(seen_to_change, lambda node: neighbours.get(node, ()))


def exposed(
    calls: Mapping[fx.Node, Call], constant: Collection[fx.Node], released: Collection[fx.Node] = ()
) -> set[fx.Node]:
    """Sums that are written into. A fold must not replace such a sum by one of its operands, which others may read."""
    sources = {node: list(_sources(node, call, constant)) for node, call in calls.items()}
    shared = {
        node: [operand for operand in node.all_input_nodes if operand not in constant]
        if calls[node].operator.is_arithmetic
        else shared_inputs
        for node, shared_inputs in sources.items()
    }
    writers = [(node, call) for node, call in calls.items() if call.is_inplace and node not in released]
    written = (target for node, call in writers for target in _written(node, call))
    return {
        node
        for node in reach(written, lambda node: shared.get(node, ()))
        if node in calls and calls[node].operator.is_arithmetic and len(shared[node]) > 1
        if not all(_is_alone(source, shared, calls) for source in shared[node])
    }


def _written(node: fx.Node, call: Call) -> list[fx.Node]:
    target = call.arguments.get("input")
    return [target] if call.op != UNKNOWN and isinstance(target, fx.Node) else node.all_input_nodes


def _sources(node: fx.Node, call: Call, constant: Collection[fx.Node], *, is_folded: bool = True) -> Iterator[fx.Node]:
    """The inputs whose memory the result may have, now or, if `is_folded`, once an affine of a single value is gone."""
    source = call.arguments.get("input")
    row = call.operator
    if call.is_inplace:
        yield from _written(node, call)
    elif row.is_arithmetic and is_folded:
        computed = [operand for operand in node.all_input_nodes if operand not in constant]
        if len(computed) == 1:
            yield computed[0]
    elif (row.memory in (Memory.INPUT, Memory.REPEATED) or (row.is_batchnorm and is_folded)) and isinstance(
        source, fx.Node
    ):
        yield source
    elif row.memory is not Memory.FRESH and not (call.op == "einsum" and len(node.all_input_nodes) > 1):
        yield from node.all_input_nodes


def _is_alone(node: fx.Node, sources: Mapping[fx.Node, list[fx.Node]], calls: Mapping[fx.Node, Call]) -> bool:
    """Whether nothing but the one reader can see the node's tensor."""
    for source in reach([node], lambda source: sources.get(source, ())):
        readers = [user for user in source.users if user not in calls or calls[user].op != "shape"]
        if source.op in ("placeholder", "get_attr") or len(readers) > 1:
            return False
        if source in calls and calls[source].operator.memory is Memory.REPEATED:
            return False
    return True
