"""Applies a plan: the only caller of a graph's edits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import MappingProxyType

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.graph.ops import Lowered, Operands
from bnfold.graph.protocol import Graph, N, V
from bnfold.planning.plan import Join, Move, Plan


def fold(graph: Graph[N, V], plan: Plan[N, V], lowered: Mapping[N, Lowered] = MappingProxyType({})) -> None:
    """Change the graph as planned, and write BatchNorms that stay as other operators.

    Names are settled first (a value whose content changes must not keep its name), then the parameters are written.
    What merged into another operator goes last, since its parameters are read until then.
    """
    lowered = {**plan.lowered, **lowered}
    twins = _find_twins(graph, plan)
    for step in plan.steps:
        if isinstance(step, Move) and not step.leaves_shift:
            graph.bypass(step.node, keep_output_name=step.direction == "upstream")
            for twin in step.twins:
                graph.bypass(twin, keep_output_name=False)
        elif isinstance(step, Join):
            graph.join(step.host, step.source, step.root)
        for value in step.changed:
            graph.renew(value)
        if isinstance(step, Join):
            for addition in step.bypassed:
                graph.bypass(addition.node, keep_output_name=addition.keep_output_name, index=addition.index)
    for node, absorbed in plan.absorbed.items():
        if node in lowered:
            continue
        if isinstance(absorbed, Operands):
            graph.write_operands(node, absorbed)
        elif node in twins:
            graph.write(node, absorbed, twins[node])
    for node in plan.computed:
        graph.settle(node)
    for node, other in lowered.items():
        graph.lower(node, other)
    for step in plan.steps:
        if isinstance(step, Join):
            for node in reversed(step.gone):
                graph.remove(node)


def _find_twins(graph: Graph[N, V], plan: Plan[N, V]) -> dict[N, list[N]]:
    """The operators that get new parameters, each with those that become the same, as where a model calls a part twice.

    These read the same parameters, and so does what moves into them. That maps are equal is not enough by itself: which
    parameters there are must not depend on their values.
    """
    written = {node: absorbed for node, absorbed in plan.absorbed.items() if not isinstance(absorbed, Operands)}
    found: dict[N, list[N]] = {node: [] for node in written}
    if not any(isinstance(absorbed, Linear) and absorbed.is_shared for absorbed in written.values()):
        return found
    moved: dict[N, list[tuple[Hashable | None, str]]] = {}
    for step in plan.steps:
        source = (graph.signature(step.node), step.direction) if isinstance(step, Move) else (None, "")
        for sink in step.sinks:
            moved.setdefault(sink, []).append(source)
    firsts: dict[Hashable, N] = {}
    for node in filter(written.__contains__, graph.nodes()):  # the first is in front of those that read what it gets
        absorbed, sources = written[node], moved.get(node, [])
        own = graph.signature(node) if sources and all(source is not None for source, _ in sources) else None
        first = firsts.setdefault((own, *sources), node) if own is not None else node
        if first is not node and _is_same(absorbed, written[first]):
            found[first].append(node)
            del found[node]
    return found


def _is_same(one: Linear | Affine, other: Linear | Affine) -> bool:
    """Whether two operators with the same parameters absorbed the same, and no others."""
    if not isinstance(one, Linear) or not isinstance(other, Linear) or one.terms or other.terms:
        return False
    return all(
        mine is its
        or (
            mine is not None
            and its is not None
            and mine.axis == its.axis
            and np.array_equal(mine.scale, its.scale)
            and np.array_equal(mine.shift, its.shift)
        )
        for mine, its in ((one.before, other.before), (one.after, other.after))
    )
