"""The outcomes of a draft: for each BatchNorm, each other per-channel affine that folds, and each merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from bnfold.graph.ops import ChannelAffine, Computed, Opaque
from bnfold.graph.outcome import Fold, Merge, Outcome, Reason, Refusal
from bnfold.graph.protocol import N, V
from bnfold.planning.draft import Draft
from bnfold.planning.plan import Join, Move
from bnfold.planning.shifts import why_no_shift
from bnfold.planning.split import find_additions


def outcomes(draft: Draft[N, V], rounding: Mapping[N, float]) -> Iterable[Outcome]:
    """All outcomes, those of merges last; `rounding` has the error of each weight that changes."""
    joins = [step for step in draft.steps if isinstance(step, Join)]
    hosts = {node: join.host for join in joins for node in join.gone}

    def final(node: N) -> N:
        while node in hosts:
            node = hosts[node]
        return node

    steps = [move for step in draft.steps for move in (step.moves if isinstance(step, Join) else (step,))]
    moves = {
        node: move if node == move.node else replace(move, node=node)
        for move in steps
        for node in move.vanishing or (move.node,)
    }
    additions = find_additions(draft)
    for node in draft.position:
        op = draft.op(node)
        if node in moves and (node in additions or not moves[node].leaves_shift):
            is_batchnorm = isinstance(op, ChannelAffine) and op.is_batchnorm
            sinks = {final(sink) for sink in moves[node].sinks if sink != node}
            yield _fold(draft, moves[node], sinks, rounding, is_batchnorm=is_batchnorm)
        elif isinstance(op, Computed):
            yield _settled(draft, node, op)
        elif isinstance(op, ChannelAffine | Opaque) and op.is_batchnorm:
            yield _refusal(draft, node, op)
    name = draft.graph.name
    for join in sorted(joins, key=lambda join: draft.position[join.node]):
        host = final(join.host)
        yield Merge(name(host), draft.graph.scope(host), join.branches, tuple(map(name, join.sums)), rounding.get(host))


def _fold(
    draft: Draft[N, V], move: Move[N, V], sinks: set[N], rounding: Mapping[N, float], *, is_batchnorm: bool
) -> Fold:
    name = draft.graph.name
    return Fold(
        name(move.node),
        draft.graph.scope(move.node),
        f"scale {move.direction}" if move.leaves_shift else move.direction,
        tuple(map(name, draft.in_order(sinks))),
        tuple(map(name, draft.in_order(move.through))),
        max((rounding[sink] for sink in sinks if sink in rounding), default=None),
        is_batchnorm,
    )


def _settled(draft: Draft[N, V], node: N, op: Computed) -> Fold | Refusal:
    """The outcome of a BatchNorm that reads constants alone."""
    name, scope = draft.graph.name(node), draft.graph.scope(node)
    if not draft.is_selected(node):
        return Refusal(name, scope, Reason.SKIPPED, "it was not selected", name)
    return Fold(name, scope, "computed", op.into, ())


def _refusal(draft: Draft[N, V], node: N, op: ChannelAffine | Opaque) -> Refusal:
    """The reason why a BatchNorm stays: its form, a weight that would not survive, its neighbours, or the caller."""
    graph = draft.graph
    name, scope = graph.name(node), graph.scope(node)
    if isinstance(op, Opaque):
        return Refusal(name, scope, op.stop.reason, op.stop.detail, name)
    if barred := draft.barred.get(node):
        return Refusal(name, scope, barred.stop.reason, barred.stop.detail, graph.name(barred.at))
    if node not in draft.candidates:
        return Refusal(name, scope, Reason.SKIPPED, "it was not selected", name)
    upstream, downstream = draft.blocked[node, "upstream"], draft.blocked[node, "downstream"]
    at, below = graph.name(upstream.at), graph.name(downstream.at)
    detail = f"upstream {at}: {upstream.stop.detail}; downstream {below}: {downstream.stop.detail}"
    both = why_no_shift(draft, node)
    if both is None or (both.stop, both.at) in ((upstream.stop, upstream.at), (downstream.stop, downstream.at)):
        return Refusal(name, scope, upstream.stop.reason, detail, at)
    at = graph.name(both.at)
    detail += f"; its shift upstream and its scale downstream, at {at}: {both.stop.detail}"
    return Refusal(name, scope, both.stop.reason, detail, at)
