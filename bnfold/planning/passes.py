"""The passes of the planner. Each adds the steps that it finds to the draft, and tells whether there were any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bnfold.algebra.linear import Linear
from bnfold.graph.ops import ChannelAffine, Concat, Sum
from bnfold.graph.protocol import N, V
from bnfold.planning.cost import pays_for_bias
from bnfold.planning.draft import Draft
from bnfold.planning.merging.search import find_chain, find_part, find_stack, find_sum
from bnfold.planning.plan import Direction, Join, Move
from bnfold.planning.shifts import shift_walk
from bnfold.planning.split import split_walk
from bnfold.planning.walks import pull_walk, push_walk


@dataclass(frozen=True)
class Folding:
    """Moves each candidate into the operators that absorb it on one side, those nearest to that side first."""

    direction: Direction

    def run(self, draft: Draft[N, V]) -> bool:
        """Add the moves; whether there are any."""
        left = draft.in_order(draft.candidates - draft.gone)
        is_upstream, before = self.direction == "upstream", len(draft.steps)
        for node in left if is_upstream else reversed(left):
            if node in draft.gone:  # as a twin of another candidate
                continue
            result = pull_walk(draft, node) if is_upstream else push_walk(draft, node)
            if isinstance(result, Move):
                draft.add(result)
            else:
                draft.blocked[node, self.direction] = result
        return len(draft.steps) > before


@dataclass(frozen=True)
class Shifting:
    """Moves each BatchNorm both ways, its shift upstream and its scale downstream, the first in the data first."""

    def run(self, draft: Draft[N, V]) -> bool:
        """Add the moves; whether there are any."""
        before = len(draft.steps)
        for node in draft.in_order(draft.candidates - draft.gone):
            op = draft.op(node)
            move = shift_walk(draft, node) if isinstance(op, ChannelAffine) and op.is_batchnorm else None
            if move:
                draft.add(move)
        return len(draft.steps) > before


@dataclass(frozen=True)
class Splitting:
    """Moves the scale of each BatchNorm upstream whose shift cannot go there; it stays as an addition."""

    def run(self, draft: Draft[N, V]) -> bool:
        """Add the moves; whether there are any."""
        before = len(draft.steps)
        for node in draft.in_order(draft.candidates - draft.gone):
            move = split_walk(draft, node)
            if move:
                draft.add(move)
        return len(draft.steps) > before


@dataclass(frozen=True)
class Merging:
    """Merges operators wherever `find` finds a merge at a node of `kind`, the first in the data first, or the last."""

    find: Callable[[Draft[Any, Any], Any], Join[Any, Any] | None]
    kind: type[Linear | Sum | Concat]
    is_last_first: bool = False

    def run(self, draft: Draft[N, V]) -> bool:
        """Add the merges that pay and that have a selected part; whether there are any."""
        before = len(draft.steps)
        nodes = draft.kinds.get(self.kind, ())
        for node in reversed(nodes) if self.is_last_first else nodes:
            join = None if node in draft.gone else self.find(draft, node)
            if join is not None and _is_selected(draft, join) and _pays(draft, join):
                draft.add(join)
        return len(draft.steps) > before


Pass = Folding | Shifting | Splitting | Merging

FOLDS: tuple[Pass, ...] = (Folding("upstream"), Folding("downstream"), Shifting(), Splitting())

FOLDS_AND_MERGES: tuple[Pass, ...] = (
    Merging(find_sum, Sum, is_last_first=True),  # first, since an affine in a sum may have nowhere else to go
    Merging(find_part, Sum, is_last_first=True),
    *FOLDS,
    Merging(find_chain, Linear),  # once no affine is in between
    Merging(find_stack, Concat),
)


def _is_selected(draft: Draft[N, V], join: Join[N, V]) -> bool:
    return any(draft.is_selected(node) for node in (join.node, *(move.node for move in join.moves)))


def _pays(draft: Draft[N, V], join: Join[N, V]) -> bool:
    host = draft.op(join.host)
    assert isinstance(host, Linear)
    ops = [(node, draft.op(node)) for node in join.gone]
    stored = (draft.stored(node) for node, op in ops if isinstance(op, ChannelAffine))
    return pays_for_bias(host, join.absorbed, [op for _, op in ops if isinstance(op, Linear)], stored)
