"""BatchNorms that stay, written as other operators, for runtimes that have none.

y = scale * x + shift,    or where that would cancel    y = scale * (x - mean) + (shift + scale * mean)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Generic

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.graph.ops import ChannelAffine, Form, Lowered
from bnfold.graph.outcome import Outcome, Refusal
from bnfold.graph.protocol import Graph, N, V
from bnfold.planning.plan import Join, Plan
from bnfold.planning.survey import growth_of, stop_growth, stop_rounding

WRITTEN = {Form.DEPTHWISE: "written as a depthwise convolution of one tap", Form.MUL_ADD: "written as Mul and Add"}


@dataclass(frozen=True)
class Lowering(Generic[N]):
    """What becomes of the BatchNorms in eval mode that a plan leaves.

    Attributes:
        written: those that are written as other operators, with what these compute.
        kept: why the others are not.
    """

    written: Mapping[N, Lowered]
    kept: Mapping[N, str]


def find_lowered(graph: Graph[N, V], plan: Plan[N, V], form: Form) -> Lowering[N]:
    """Which BatchNorms that a plan leaves can be written as other operators without losing digits."""
    written: dict[N, Lowered] = {}
    kept: dict[N, str] = {}
    for node in _staying(graph, plan):
        op, absorbed, possible = graph.op(node), plan.absorbed.get(node), graph.find_form(node, form)
        assert isinstance(op, ChannelAffine)
        if not isinstance(possible, Form):
            kept[node] = possible
            continue
        candidate = _lower(absorbed if isinstance(absorbed, Affine) else op.affine, possible)
        stop = stop_rounding(graph.round_lowered(node, candidate))
        if stop is None:
            written[node] = candidate
        else:
            kept[node] = stop.detail
    return Lowering(written, kept)


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


def describe_lowered(graph: Graph[N, V], lowering: Lowering[N], outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """The outcomes, in which a BatchNorm that stays says what it is written as, or why it is written as nothing."""
    ways = {
        **{node: WRITTEN[lowered.form] for node, lowered in lowering.written.items()},
        **{node: f"not written as other operators: {why}" for node, why in lowering.kept.items()},
    }
    said = {(graph.name(node), graph.scope(node)): way for node, way in ways.items()}
    return tuple(
        replace(outcome, detail=f"{outcome.detail}; {said[outcome.batchnorm, outcome.scope]}")
        if isinstance(outcome, Refusal) and (outcome.batchnorm, outcome.scope) in said
        else outcome
        for outcome in outcomes
    )
