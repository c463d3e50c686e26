"""Decides what folds where, and why not; reads the graph and changes nothing.

Each per-channel affine of the graph is a candidate. Passes move candidates into the operators that absorb them, and let
linear operators become one. A draft keeps the decisions, so that a later candidate sees the graph as it will be. The
passes repeat until none finds anything more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bnfold.graph.ops import Computed
from bnfold.graph.protocol import Graph, N, V
from bnfold.planning.biases import find_replaced
from bnfold.planning.draft import Draft
from bnfold.planning.outcomes import outcomes
from bnfold.planning.passes import FOLDS, FOLDS_AND_MERGES, Pass
from bnfold.planning.plan import Blocked, Plan
from bnfold.planning.split import find_additions, find_mixed
from bnfold.planning.survey import survey
from bnfold.planning.walks import FLATTENED
from bnfold.planning.witnesses import find_witnesses


def make_plan(
    graph: Graph[N, V],
    *,
    selected: Callable[[str], bool] = lambda name: True,
    merge: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan[N, V]:
    """Decide what folds where, and why the rest stays.

    Of every weight that a fold would change, the rounding to its type is then measured, one at a time. Where it would
    not survive that, its latest merge, or else its latest candidate, is barred and the plan is made again.

    Args:
        graph: the graph, which is only read.
        selected: whether the candidate of that name may fold.
        merge: whether linear operators may become one.
        progress: called with the number of weights checked and their total.
    """
    passes = FOLDS_AND_MERGES if merge else FOLDS
    barred: dict[N, Blocked[N]] = {}
    while True:
        draft = _draft(graph, selected, barred, passes)
        rounding, failed = survey(draft, progress)
        failed = failed or find_witnesses(draft)
        if not failed:
            absorbed = {node: draft.absorbed[node] for node in rounding}
            computed = (node for node in draft.position if isinstance(draft.op(node), Computed))
            settled = tuple(filter(draft.is_selected, computed))
            steps, additions = tuple(draft.steps), find_additions(draft)
            return Plan(absorbed, steps, tuple(outcomes(draft, rounding)), settled, additions)
        barred |= failed


def _draft(
    graph: Graph[N, V],
    selected: Callable[[str], bool],
    barred: Mapping[N, Blocked[N]],
    passes: Sequence[Pass],
) -> Draft[N, V]:
    """Draft all folds and merges.

    Additions that would only be replaced by others stay. A scale of zero goes nowhere from where no map undoes it.
    """
    biases: set[N] = set()
    grounded: dict[N, Blocked[N]] = {}
    whole: set[N] = set()
    while True:
        draft = _settle(Draft(graph, selected, barred, biases, grounded, whole), passes)
        replaced, flattening, mixed = set(find_replaced(draft)), _find_flattening(draft), find_mixed(draft)
        if not replaced and not flattening and not mixed:
            return draft
        biases |= replaced
        grounded |= flattening
        whole |= mixed


def _find_flattening(draft: Draft[N, V]) -> dict[N, Blocked[N]]:
    """Candidates whose scale of zero went downstream through a value through which another could now go upstream."""
    stopped = ((node, blocked) for (node, _), blocked in draft.blocked.items() if blocked.stop is FLATTENED)
    return {blocked.at: Blocked(FLATTENED, node) for node, blocked in stopped if node not in draft.gone}


def _settle(draft: Draft[N, V], passes: Sequence[Pass]) -> Draft[N, V]:
    """Run all passes, one after the other, until a round of them finds nothing."""
    while True:
        changed = [step.run(draft) for step in passes]
        if not any(changed):
            return draft
