"""Scales that go upstream alone, where a shift does not commute with a sum; the BatchNorm becomes an addition.

A (s x) + t  =  s (A x) + t
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import Affine, Statistics
from bnfold.graph.ops import ChannelAffine, Form, Lowered
from bnfold.graph.outcome import Reason
from bnfold.graph.protocol import N, V
from bnfold.planning.draft import Draft
from bnfold.planning.plan import Blocked, Move
from bnfold.planning.survey import growth_of, stop_growth
from bnfold.planning.walks import pull_walk


def split_walk(draft: Draft[N, V], candidate: N) -> Move[N, V] | None:
    """The move of a BatchNorm's scale upstream, if its shift alone keeps it from going there as a whole."""
    op, blocked = draft.op(candidate), draft.blocked.get((candidate, "upstream"))
    if not isinstance(op, ChannelAffine) or not op.is_batchnorm or blocked is None or candidate in draft.whole:
        return None
    if blocked.stop.reason is not Reason.SHIFT or np.all(op.affine.scale == 1):
        return None
    whole, rest = op.affine, _rest(op.affine)
    is_lossy = rest.statistics is not None and stop_growth(growth_of([rest])) is not None
    if is_lossy or draft.graph.find_form(candidate, Form.ADD) is not Form.ADD:
        return None
    walk = pull_walk(draft, candidate, replace(whole, shift=np.zeros(whole.size), rest=None))
    if isinstance(walk, Blocked):
        return None
    changed = (draft.inputs(candidate)[0], *walk.changed)
    return replace(walk, sinks={**walk.sinks, candidate: rest}, changed=changed, leaves_shift=True)


def _rest(whole: Affine) -> Affine:
    """What is left of a map once its scale is in front of it."""
    data = whole.statistics
    if data is not None:
        data = Statistics(whole.scale * data.mean, whole.scale**2 * data.variance, data.measured)
    return Affine(np.ones(whole.size), whole.shift, whole.axis, data)


def _addition(rest: Affine) -> Lowered:
    return Lowered(rest, np.zeros(rest.size), Form.ADD)


def find_additions(draft: Draft[N, V]) -> dict[N, Lowered]:
    """The BatchNorms of which nothing but a shift is left, as additions."""
    maps = _split(draft)
    return {node: _addition(affine) for node, affine in maps.items() if np.all(affine.scale == 1)}


def find_mixed(draft: Draft[N, V]) -> set[N]:
    """The BatchNorms whose scale went upstream, and which then absorbed another one. They would be no additions."""
    return _split(draft).keys() - find_additions(draft).keys()


def _split(draft: Draft[N, V]) -> dict[N, Affine]:
    """The BatchNorms that stay without their scale, with what they are now."""
    split = {step.node for step in draft.steps if isinstance(step, Move) and step.leaves_shift}
    return {node: draft.affine(node) for node in draft.in_order(split - draft.gone)}
