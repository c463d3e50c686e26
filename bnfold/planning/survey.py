"""Finds the steps that rounding forbids: weights that would not survive a fold, and sums that would cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.rounding import Growth, Rounding, measure_growth
from bnfold.graph.outcome import Reason, Stop
from bnfold.graph.protocol import N, V
from bnfold.planning.draft import Draft
from bnfold.planning.plan import Blocked, Join, Move, Step

GROWTH_LIMIT = 4.0
"""How much larger an operator's rounding errors may become by a fold; `docs/design/0011-cancellation.md` measures it.

Natural images in [0, 1], with their usual mean and deviation, give 3.
"""

GAIN_LIMIT = 64.0
"""How far the operands of a sum or a mean may be scaled up in float16, whose largest number is 65504."""

TOO_LARGE = Stop(Reason.OVERFLOW, "a sum or mean behind it may cancel, and its type may not hold what is added up")


def survey(draft: Draft[N, V], progress: Callable[[int, int], None]) -> tuple[dict[N, float], dict[N, Blocked[N]]]:
    """The rounding error of each weight that would change, and the steps, by nodes, that a weight would not survive."""
    absorbed_by: dict[N, list[Step[N, V]]] = {}
    for step in draft.steps:
        for node in step.sinks:
            absorbed_by.setdefault(node, []).append(step)
    rounding: dict[N, float] = {}
    failed: dict[N, Blocked[N]] = {}
    changing = {node: absorbed for node, absorbed in draft.absorbed.items() if node not in draft.gone}
    for done, (node, absorbed) in enumerate(changing.items()):
        progress(done, len(changing))
        result = draft.graph.round(node, absorbed)
        rounding[node] = result.error
        if stop := stop_rounding(result):
            failed[_culprit(draft, absorbed_by[node], stop).node] = Blocked(stop, node)
        elif result.is_narrow:
            moves = (step for step in absorbed_by[node] if isinstance(step, Move))
            failed.update((move.node, Blocked(TOO_LARGE, node)) for move in moves if move.gain > GAIN_LIMIT)
    progress(len(changing), len(changing))
    return rounding, failed


def _culprit(draft: Draft[N, V], steps: Sequence[Step[N, V]], stop: Stop) -> Step[N, V]:
    """The step to leave out: the latest merge, else the latest move; for a cancellation, one with a shift."""
    latest = steps[::-1]
    merge = next((step for step in latest if isinstance(step, Join)), None)
    if merge is not None or stop.reason is not Reason.CANCELLATION:
        return merge or latest[0]
    return next((step for step in latest if draft.affine(step.node).has_shift), latest[0])


def stop_rounding(rounding: Rounding) -> Stop | None:
    """The reason why parameters cannot be stored as they would round, if there is one."""
    if rounding.overflow is not None:
        detail = f"channel {rounding.overflow} of its weight or bias would not be finite in its type"
        return Stop(Reason.OVERFLOW, detail)
    if rounding.is_fill_lost:
        return Stop(Reason.OVERFLOW, "its padding would need a value that its type does not have")
    if rounding.loss is not None:
        detail = f"channel {rounding.loss} of its weight would lose more than its type's rounding explains"
        return Stop(Reason.PRECISION_LOSS, detail)
    if rounding.input_loss is not None:
        detail = f"input channel {rounding.input_loss} of its weight would lose more than its type's rounding explains"
        return Stop(Reason.PRECISION_LOSS, detail)
    return stop_growth(rounding.growth)


def stop_growth(growth: Growth) -> Stop | None:
    """The reason against an operator that rounds so much more, if there is one."""
    if growth.factor <= GROWTH_LIMIT:
        return None
    detail = (
        f"its output, above all channel {growth.channel}, would have {growth.factor:.3g} times the rounding error, "
        "since the data is far from zero beside its deviation"
    )
    return Stop(Reason.CANCELLATION, detail)


def growth_of(affines: Iterable[Affine]) -> Growth:
    """How much more an operator that adds up data rounds once maps go behind it."""
    sizes = [affine.sizes for affine in affines if affine.has_shift and affine.statistics is not None]
    if not sizes:
        return Growth(1.0, 0)
    products, results = (np.concatenate(sums) for sums in zip(*sizes, strict=True))
    return measure_growth(products, results, np.zeros_like(products), np.zeros_like(results))
