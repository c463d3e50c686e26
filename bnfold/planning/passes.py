"""The passes of the planner: each takes the draft, adds the steps that it finds, and says whether there were any."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bnfold.algebra.linear import Linear
from bnfold.graph.ops import ChannelAffine
from bnfold.graph.protocol import N, V
from bnfold.planning.cost import pays_for_bias
from bnfold.planning.draft import Draft
from bnfold.planning.merging.search import find_chain, find_part, find_stack, find_sum
from bnfold.planning.plan import Blocked, Direction, Join, Move
from bnfold.planning.walks import pull_walk, push_walk

Pass = Callable[[Draft[Any, Any]], bool]


def merge_sums(draft: Draft[N, V]) -> bool:
    """Each sum of branches that is one operator, the largest first; then parts of sums."""
    has_whole = _merge(draft, reversed(draft.position), find_sum)
    has_part = _merge(draft, reversed(draft.position), find_part)
    return has_whole or has_part


def fold_upstream(draft: Draft[N, V]) -> bool:
    """Each candidate that something before it absorbs."""
    return _fold(draft, _left(draft), "upstream", pull_walk)


def fold_downstream(draft: Draft[N, V]) -> bool:
    """Each candidate that something behind it absorbs, the last first."""
    return _fold(draft, reversed(_left(draft)), "downstream", push_walk)


def merge_chains(draft: Draft[N, V]) -> bool:
    """Each pair of operators in a row that is one operator and costs less."""
    return _merge(draft, draft.position, find_chain)


def merge_stacks(draft: Draft[N, V]) -> bool:
    """Each concatenation of nothing but operators of one value that is one operator."""
    return _merge(draft, draft.position, find_stack)


FOLDS: tuple[Pass, ...] = (fold_upstream, fold_downstream)
FOLDS_AND_MERGES: tuple[Pass, ...] = (merge_sums, *FOLDS, merge_chains, merge_stacks)
"""Sums come first, since an affine in one may have nowhere else to go; chains last, once no affine is in between."""


def _left(draft: Draft[N, V]) -> list[N]:
    return [node for node in draft.position if node in draft.candidates and not draft.is_gone(node)]


def _fold(
    draft: Draft[N, V],
    nodes: Iterable[N],
    direction: Direction,
    walk: Callable[[Draft[N, V], N], Move[N, V] | Blocked[N]],
) -> bool:
    before = len(draft.steps)
    for node in nodes:
        result = walk(draft, node)
        if isinstance(result, Move):
            draft.add(result)
        else:
            draft.blocked[node, direction] = result
    return len(draft.steps) > before


def _merge(draft: Draft[N, V], nodes: Iterable[N], find: Callable[[Draft[N, V], N], Join[N, V] | None]) -> bool:
    before = len(draft.steps)
    for node in nodes:
        join = None if draft.is_gone(node) else find(draft, node)
        if join is not None and _is_selected(draft, join) and _pays(draft, join):
            draft.add(join)
    return len(draft.steps) > before


def _is_selected(draft: Draft[N, V], join: Join[N, V]) -> bool:
    return any(draft.is_selected(node) for node in (join.key, *(move.candidate for move in join.moves)))


def _pays(draft: Draft[N, V], join: Join[N, V]) -> bool:
    host = draft.op(join.host)
    assert isinstance(host, Linear)
    ops = [(node, draft.op(node)) for node in join.gone]
    stored = (draft.stored(node) for node, op in ops if isinstance(op, ChannelAffine))
    return pays_for_bias(host, join.absorbed, [op for _, op in ops if isinstance(op, Linear)], stored)
