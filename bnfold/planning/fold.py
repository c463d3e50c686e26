"""Applies a plan: the only caller of a graph's edits."""

from __future__ import annotations

from bnfold.graph.protocol import Graph, N, V
from bnfold.planning.plan import Bypass, Join, Plan


def fold(graph: Graph[N, V], plan: Plan[N, V]) -> None:
    """Change the graph as planned.

    Names are settled first (a value whose content changes must not keep its name), then the parameters are written.
    What merged into another operator goes last, since its parameters are read until then.
    """
    for edit in plan.edits:
        if isinstance(edit, Bypass):
            graph.bypass(edit.node, keep_output_name=edit.keep_output_name, index=edit.index)
        elif isinstance(edit, Join):
            graph.join(edit.host, edit.source, edit.root)
        else:
            graph.renew(edit.value)
    for node, absorbed in plan.absorbed.items():
        graph.write(node, absorbed)
    for edit in plan.edits:
        if isinstance(edit, Join):
            for node in reversed(edit.gone):
                graph.remove(node)
