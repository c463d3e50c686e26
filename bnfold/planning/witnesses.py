"""Scales that must not fold, since they witness how large the data of a shift is that stays.

In ``(x - a) / b``, b is the deviation of the data. Suppose that the shift must stay, since its fold would lose digits,
and the division folds alone. Then nothing in the result tells b any more. Whoever folds the result again takes the
deviation to be 1, and may fold the shift as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bnfold.algebra.linear import Linear
from bnfold.graph.ops import ChannelAffine
from bnfold.graph.outcome import Reason
from bnfold.graph.protocol import N, V
from bnfold.planning.draft import Draft
from bnfold.planning.plan import Blocked, Move
from bnfold.planning.survey import stop_rounding
from bnfold.planning.walks import push_walk


def find_witnesses(draft: Draft[N, V]) -> dict[N, Blocked[N]]:
    """Scales whose fold would hide the reason why a shift stays, each with that reason."""
    witnesses: dict[N, Blocked[N]] = {}
    for node, blocked in draft.barred.items():
        op = draft.graph.op(node)
        is_shift = isinstance(op, ChannelAffine) and not op.is_batchnorm and op.affine.has_shift
        if is_shift and blocked.stop.reason is Reason.CANCELLATION and node not in draft.gone:
            move = push_walk(draft, node)
            if isinstance(move, Move) and _would_fold(draft, move):
                witnesses.update(dict.fromkeys(_scales_behind(draft, move), blocked))
    return witnesses


def _would_fold(draft: Draft[N, V], move: Move[N, V]) -> bool:
    """Whether a shift seems harmless by its own statistics alone."""
    for node, absorbed in move.sinks.items():
        if not isinstance(absorbed, Linear) or absorbed.before is None:
            continue
        own = move.affines[draft.inputs(node)[0]].assumed
        alone = replace(absorbed, before=absorbed.before.with_statistics(own))
        if stop_rounding(draft.graph.round(node, alone)) is not None:
            return False
    return True


def _scales_behind(draft: Draft[N, V], move: Move[N, V]) -> Iterator[N]:
    """The scales next to a shift, on its way to an absorbing operator."""
    stack = [move.node]
    while stack:
        for value in draft.graph.outputs(stack.pop()):
            for reader, _ in draft.graph.uses(value):
                if reader is None or reader not in draft.gone | set(move.through):
                    continue
                op = draft.graph.op(reader)
                if not isinstance(op, ChannelAffine):
                    stack.append(reader)
                elif not op.is_batchnorm and not op.affine.has_shift:
                    yield reader
