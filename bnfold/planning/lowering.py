"""BatchNorms that stay, written as other operators, for runtimes that have none.

y = scale * x + shift,    or where that would cancel    y = scale * (x - mean) + (shift + scale * mean)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.graph.ops import ChannelAffine, Form, Lowered
from bnfold.graph.outcome import Outcome, Refusal
from bnfold.graph.protocol import Graph, N, V
from bnfold.planning.plan import Join, Plan
from bnfold.planning.survey import growth_of, stop_growth, stop_rounding

WRITTEN = {Form.DEPTHWISE: "written as a depthwise convolution of one tap", Form.MUL_ADD: "written as Mul and Add"}


def find_lowered(graph: Graph[N, V], plan: Plan[N, V], form: Form) -> dict[N, Lowered]:
    """The BatchNorms in eval mode that a plan leaves, with their lowered forms; none that would lose digits."""
    lowered: dict[N, Lowered] = {}
    for node in _staying(graph, plan):
        op, absorbed = graph.op(node), plan.absorbed.get(node)
        assert isinstance(op, ChannelAffine)
        candidate = _lower(absorbed if isinstance(absorbed, Affine) else op.affine, form)
        rounding = graph.round_lowered(node, candidate)
        if rounding is not None and stop_rounding(rounding) is None:
            lowered[node] = candidate
    return lowered


def _staying(graph: Graph[N, V], plan: Plan[N, V]) -> Iterable[N]:
    gone: set[N] = set()
    for step in plan.steps:
        gone.update(step.gone if isinstance(step, Join) else step.vanishing)
    for node in graph.nodes():
        op = graph.op(node)
        if isinstance(op, ChannelAffine) and op.is_batchnorm and node not in gone and node not in plan.lowered:
            yield node


def _lower(affine: Affine, form: Form) -> Lowered:
    """Lower an affine. Where the data is far from zero relative to its deviation, the mean is subtracted first."""
    if affine.statistics is None or stop_growth(growth_of([affine])) is None:
        return Lowered(affine, np.zeros(affine.size), form)
    return Lowered(affine, affine.statistics.mean, form)


def describe_lowered(
    graph: Graph[N, V], lowered: Mapping[N, Lowered], outcomes: Iterable[Outcome]
) -> tuple[Outcome, ...]:
    """The outcomes, in which a lowered BatchNorm says so."""
    forms = {(graph.name(node), graph.scope(node)): lowering.form for node, lowering in lowered.items()}
    return tuple(
        replace(outcome, detail=f"{outcome.detail}; {WRITTEN[forms[outcome.batchnorm, outcome.scope]]}")
        if isinstance(outcome, Refusal) and (outcome.batchnorm, outcome.scope) in forms
        else outcome
        for outcome in outcomes
    )
