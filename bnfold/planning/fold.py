"""Applies a plan: the only caller of a graph's edits."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bnfold.graph.ops import Lowered, Operands
from bnfold.graph.protocol import Graph, N, V
from bnfold.planning.plan import Join, Move, Plan


def fold(graph: Graph[N, V], plan: Plan[N, V], lowered: Mapping[N, Lowered] = MappingProxyType({})) -> None:
    """Change the graph as planned, and write BatchNorms that stay as other operators.

    Names are settled first (a value whose content changes must not keep its name), then the parameters are written.
    What merged into another operator goes last, since its parameters are read until then.
    """
    lowered = {**plan.lowered, **lowered}
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
        else:
            graph.write(node, absorbed)
    for node in plan.computed:
        graph.settle(node)
    for node, other in lowered.items():
        graph.lower(node, other)
    for step in plan.steps:
        if isinstance(step, Join):
            for node in reversed(step.gone):
                graph.remove(node)
