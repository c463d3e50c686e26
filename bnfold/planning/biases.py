"""The bias of an operator that takes none: the addition behind it.

A matrix product takes no bias, so a fold with a shift adds an addition behind it. One that is there already may fold
into the product for nothing, and lets others fold there as well. Where no other does, an equal addition would only take
its place, so it stays.
"""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.algebra.linear import Linear
from bnfold.algebra.masks import has_all
from bnfold.graph.ops import ChannelAffine
from bnfold.graph.protocol import N, V
from bnfold.planning.draft import Draft
from bnfold.planning.plan import Move, Step


def is_bias(draft: Draft[N, V], candidate: N, node: N) -> bool:
    """Whether a candidate adds to the output of `node`, so that an addition in its place costs nothing."""
    start = draft.op(candidate)
    assert isinstance(start, ChannelAffine)
    is_next = draft.inputs(candidate)[0] in draft.graph.outputs(node)
    return is_next and has_all(start.affine.scale == 1)


def find_replaced(draft: Draft[N, V]) -> Iterator[N]:
    """Additions that folded alone into an operator without a bias, which would then need an addition again."""
    absorbed_by: dict[N, list[Step[N, V]]] = {}
    for step in draft.steps:
        for node in step.sinks:
            absorbed_by.setdefault(node, []).append(step)
    for node, steps in absorbed_by.items():
        stored, absorbed = draft.graph.op(node), draft.absorbed[node]
        if not isinstance(stored, Linear) or stored.has_bias_slot or node in draft.gone:
            continue
        (step, *others) = steps
        is_alone = isinstance(step, Move) and step.direction == "upstream" and not others
        if is_alone and isinstance(absorbed, Linear) and absorbed.makes_bias and not _is_batchnorm(draft, step.node):
            yield step.node


def _is_batchnorm(draft: Draft[N, V], node: N) -> bool:
    op = draft.op(node)
    return isinstance(op, ChannelAffine) and op.is_batchnorm
