"""Decides what folds where, and why not; reads the graph and changes nothing.

Each per-channel affine of the graph is a candidate. It walks *upstream* with `pull`, or else *downstream* with `push`,
until every path ends in an operator that absorbs it: all of them, or the candidate stays. What is decided is kept in a
draft, so that a later candidate sees the graph as it will be; passes repeat until nothing moves any more. Sums of
branches become one operator before each pass, since an affine of theirs may have nowhere else to go; chains after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.algebra.rounding import Growth, Rounding, measure_growth
from bnfold.graph.ops import Average, ChannelAffine, Opaque, Sum
from bnfold.graph.outcome import Fold, Merge, Outcome, Reason, Refusal, Stop
from bnfold.graph.protocol import Graph, N, V
from bnfold.planning.merging.search import Merges
from bnfold.planning.plan import Bypass, Draft, Move, Plan, Walk
from bnfold.planning.rules import pull, push, variants

STEP_LIMIT = 256
"""Operators that one walk may visit."""

GROWTH_LIMIT = 4.0
"""How much larger an operator's rounding errors may become by a fold; `docs/design/0011-cancellation.md` measures it.

Natural images in [0, 1], with their usual mean and deviation, give 3.
"""

GAIN_LIMIT = 64.0
"""How far the operands of a sum or a mean may be scaled up in float16, whose largest number is 65504."""

TOO_LARGE = Stop(Reason.OVERFLOW, "a sum or mean behind it may cancel, and its type may not hold what is added up")

TRY_LIMIT = 32
"""Ways to share shifts among the operands of sums that one walk may try."""


@dataclass(frozen=True, eq=False)
class _Blocked(Generic[N]):
    """A walk that did not arrive."""

    stop: Stop
    at: N


def make_plan(
    graph: Graph[N, V],
    *,
    selected: Callable[[str], bool] = lambda name: True,
    merge: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan[N, V]:
    """Decide what folds where, and why the rest stays.

    Every weight that a fold would change is then computed once and rounded to its type, one at a time; where it would
    not survive that, its latest merge or else its latest candidate is barred and the plan made anew.

    Args:
        graph: read only.
        selected: whether the candidate of that name may fold.
        merge: whether linear operators may become one.
        progress: called with the number of weights checked and their total.
    """
    barred: dict[N, tuple[Stop, str]] = {}
    while True:
        draft, merges, moves, blocked = _draft(graph, selected, merge, barred)
        rounding, failed = _survey(draft, moves, progress)
        if not failed:
            return Plan(
                {node: draft.absorbed[node] for node in rounding},
                tuple(draft.edits),
                (*_outcomes(draft, moves, blocked, barred, rounding), *_merged(draft, merges, rounding)),
                draft.changes,
                draft.stands,
                {node: draft.final(node) for node in draft.merged},
            )
        barred.update(failed)


def _draft(
    graph: Graph[N, V], selected: Callable[[str], bool], merge: bool, barred: Iterable[N]
) -> tuple[Draft[N, V], Merges[N, V], dict[N, Move[N, V]], dict[N, tuple[_Blocked[N], _Blocked[N]]]]:
    draft = Draft(graph)
    moves: dict[N, Move[N, V]] = {}
    blocked: dict[N, tuple[_Blocked[N], _Blocked[N]]] = {}
    barred = set(barred)
    left = [
        node
        for node in draft.position
        if isinstance(draft.op(node), ChannelAffine) and node not in barred and selected(graph.name(node))
    ]
    merges = Merges(draft, lambda node: selected(graph.name(node)), barred)
    count = -1
    while count != len(moves) + len(draft.joins):
        count = len(moves) + len(draft.joins)
        if merge:
            merges.add_sums(moves)
            left = [node for node in left if node not in moves]
        upstream: dict[N, _Blocked[N]] = {}
        for node in left:
            result = _try(draft, node, _pull_walk, "upstream", moves)
            if isinstance(result, _Blocked):
                upstream[node] = result
        for node in reversed(upstream):
            result = _try(draft, node, _push_walk, "downstream", moves)
            if isinstance(result, _Blocked):
                blocked[node] = upstream[node], result
        left = [node for node in left if node not in moves]
        if merge:
            merges.add_chains(moves)
            merges.add_stacks(moves)
    return draft, merges, moves, blocked


def _try(
    draft: Draft[N, V],
    node: N,
    walk: Callable[[Draft[N, V], N], Walk[N, V] | _Blocked[N]],
    direction: str,
    moves: dict[N, Move[N, V]],
) -> Walk[N, V] | _Blocked[N]:
    """Walk from `node`, and commit the move where it arrives."""
    result = walk(draft, node)
    if isinstance(result, Walk):
        moves[node] = Move(node, direction, result)
        draft.commit(moves[node])
    return result


def _pull_walk(draft: Draft[N, V], candidate: N) -> Walk[N, V] | _Blocked[N]:
    """Upstream, trying the variants of the operators on the way one after the other."""
    choices: dict[N, int] = {}
    first: _Blocked[N] | None = None
    for _ in range(TRY_LIMIT):
        counts: dict[N, int] = {}
        result = _pull_once(draft, candidate, choices, counts)
        if isinstance(result, Walk):
            return result
        first = first or result
        seen = list(counts)
        while seen and choices.get(seen[-1], 0) + 1 >= counts[seen[-1]]:
            seen.pop()
        if not seen:
            break
        choices = {node: choices.get(node, 0) for node in seen}
        choices[seen[-1]] += 1
    assert first is not None
    return first


def _pull_once(
    draft: Draft[N, V], candidate: N, choices: dict[N, int], counts: dict[N, int]
) -> Walk[N, V] | _Blocked[N]:
    walk: Walk[N, V] = Walk()
    demands: dict[V, list[Affine]] = {}
    queue: list[tuple[int, N]] = []
    queued: set[N] = set()

    def demand(reader: N, value: V, affine: Affine) -> _Blocked[N] | None:
        maker = draft.graph.producer(value)
        if maker is None:
            return _Blocked(Stop(Reason.GRAPH_INPUT, "nothing before it can absorb"), reader)
        if draft.graph.scope(maker) != draft.graph.scope(reader):
            return _Blocked(Stop(Reason.SCOPE_BOUNDARY, "its input is made in another graph"), reader)
        demands.setdefault(value, []).append(affine)
        if maker not in queued:
            queued.add(maker)
            heappush(queue, (-draft.position[maker], maker))
        return None

    start = draft.op(candidate)
    assert isinstance(start, ChannelAffine)
    if failure := demand(candidate, draft.inputs(candidate)[0], start.affine):
        return failure
    while queue:
        node = heappop(queue)[1]
        if len(queued) > STEP_LIMIT:
            return _Blocked(Stop(Reason.SEARCH_LIMIT, f"more than {STEP_LIMIT} operators away"), node)
        outputs = draft.graph.outputs(node)
        for value in outputs:
            if value in demands and (stop := _stop_demand(draft, value, demands[value])):
                return _Blocked(stop, node)
        affines = [demands[value][0] if value in demands else None for value in outputs]
        op = draft.op(node)
        if isinstance(op, Linear | ChannelAffine):
            absorbed = _absorb_output(draft, candidate, op, affines[0])
            if isinstance(absorbed, Stop):
                return _Blocked(absorbed, node)
            walk.sinks[node] = absorbed
        else:
            options = variants(op)
            if len(options) > 1:
                counts[node] = len(options)
            pulled = pull(options[choices.get(node, 0)], *affines)
            if isinstance(pulled, Stop):
                return _Blocked(pulled, node)
            walk.through.append(node)
            if isinstance(op, Average | Sum) and affines[0] is not None:
                walk.gain = max(walk.gain, float(np.abs(affines[0].scale).max(initial=0.0)))
            for value, affine in zip(draft.inputs(node), pulled, strict=True):
                if affine and not _is_identity(affine) and (failure := demand(node, value, affine)):
                    return failure
        walk.changed.extend(value for value in outputs if value in demands)
    walk.changed.remove(draft.inputs(candidate)[0])
    walk.affines.update((value, affines[0]) for value, affines in demands.items())
    return walk


def _is_identity(affine: Affine) -> bool:
    return not affine.has_shift and bool((affine.scale == 1).all())


def _stop_demand(draft: Draft[N, V], value: V, demands: list[Affine]) -> Stop | None:
    """What keeps a value from changing as its readers ask."""
    uses = draft.uses(value)
    if (None, -1) in uses:
        return Stop(Reason.GRAPH_OUTPUT, "its output leaves the graph as well")
    if len(uses) != len(demands):
        return Stop(Reason.SECOND_USE, "its output is read elsewhere as well")
    if not all(demands[0].equals(other) for other in demands[1:]):
        return Stop(Reason.CONFLICT, "its readers need it to change in different ways")
    return None


def _absorb_output(
    draft: Draft[N, V], candidate: N, op: Linear | ChannelAffine, affine: Affine | None
) -> Linear | Affine | Stop:
    if affine is None:
        return Stop(Reason.NOT_LINEAR, "only a side output of it is read")
    if isinstance(op, ChannelAffine):
        if not op.is_batchnorm:
            return Stop(Reason.NOT_LINEAR, "it is a per-channel operator that could not fold itself")
        if (affine.axis, affine.size) != (op.affine.axis, op.affine.size):
            return Stop(Reason.AXIS_MISMATCH, "it works along another axis")
        return _finite(affine.after(op.affine))
    if op.axis_out is None:
        return Stop(Reason.NOT_LINEAR, "its output is not a linear function of one constant weight")
    if affine.axis != op.axis_out:
        return Stop(Reason.AXIS_MISMATCH, "the channels lie on another axis than its output channels")
    if affine.size != op.out_channels:
        return Stop(Reason.MIXED_CHANNELS, f"it makes {op.out_channels} channels, not {affine.size}")
    if op.is_quantized and not (affine.scale > 0).all():
        return Stop(Reason.NEGATIVE_SCALE, "its quantised weight takes positive scales only")
    return _worthwhile(draft, candidate, op, op.absorb_output(affine))


def _absorb_input(
    draft: Draft[N, V], candidate: N, op: Linear | ChannelAffine, affine: Affine
) -> Linear | Affine | Stop:
    if isinstance(op, ChannelAffine):
        if not op.is_batchnorm:
            return Stop(Reason.NOT_LINEAR, "it is a per-channel operator that could not fold itself")
        if (affine.axis, affine.size) != (op.affine.axis, op.affine.size):
            return Stop(Reason.AXIS_MISMATCH, "it works along another axis")
        return _finite(op.affine.after(affine))
    if op.is_quantized:
        return Stop(Reason.NOT_CONSTANT, "its quantised weight takes no scale per input channel")
    if affine.axis != op.axis_in:
        return Stop(Reason.AXIS_MISMATCH, "the channels lie on another axis than its input channels")
    if affine.size != op.in_channels:
        return Stop(Reason.MIXED_CHANNELS, f"it reads {op.in_channels} channels, not {affine.size}")
    absorbed = op.absorb_input(affine)
    if not absorbed.is_exact:
        return Stop(Reason.BORDER, "its outputs near the border do not see the shift through every tap")
    return _worthwhile(draft, candidate, op, absorbed)


def _finite(affine: Affine) -> Affine | Stop:
    return affine if affine.is_finite else Stop(Reason.OVERFLOW, "the combined scale or shift is not finite")


def _worthwhile(draft: Draft[N, V], candidate: N, op: Linear, absorbed: Linear) -> Linear | Stop:
    """Refuse to trade a plain Add for the Add that a missing bias would need, or for the Pad of a shift at a border."""
    start = draft.op(candidate)
    is_batchnorm = isinstance(start, ChannelAffine) and start.is_batchnorm
    if absorbed.makes_bias and not (op.makes_bias or op.has_bias_slot or is_batchnorm):
        return Stop(Reason.NO_BIAS, "it has no bias, and one would cost as much as is saved")
    if absorbed.fill and not (op.fill or is_batchnorm):
        return Stop(Reason.BORDER, "its padding would need an operator of its own, which costs as much as is saved")
    for pending in (absorbed.before, absorbed.after):
        if pending is not None and not pending.is_finite:
            return Stop(Reason.OVERFLOW, "the combined scale or shift is not finite")
    return absorbed


def _push_walk(draft: Draft[N, V], candidate: N) -> Walk[N, V] | _Blocked[N]:
    walk: Walk[N, V] = Walk()
    arrivals: dict[N, dict[int, Affine]] = {}
    queue: list[tuple[int, N]] = []

    def arrive(maker: N, value: V, affine: Affine) -> _Blocked[N] | None:
        for reader, index in draft.uses(value):
            if reader is None:
                return _Blocked(Stop(Reason.GRAPH_OUTPUT, "its output leaves the graph"), maker)
            if draft.graph.scope(reader) != draft.graph.scope(maker):
                return _Blocked(Stop(Reason.SCOPE_BOUNDARY, "its output is read in another graph"), maker)
            if index < 0:
                return _Blocked(Stop(Reason.NOT_LINEAR, "it reads the value as a parameter"), reader)
            if reader not in arrivals:
                arrivals[reader] = {}
                heappush(queue, (draft.position[reader], reader))
            arrivals[reader][index] = affine
        return None

    walk.affines[draft.graph.outputs(candidate)[0]] = draft.affine(candidate)
    if failure := arrive(candidate, draft.graph.outputs(candidate)[0], draft.affine(candidate)):
        return failure
    if not queue:
        return _Blocked(Stop(Reason.NOT_LINEAR, "nothing reads its output"), candidate)
    while queue:
        node = heappop(queue)[1]
        if len(arrivals) > STEP_LIMIT:
            return _Blocked(Stop(Reason.SEARCH_LIMIT, f"more than {STEP_LIMIT} operators away"), node)
        op = draft.op(node)
        if isinstance(op, Linear | ChannelAffine):
            absorbed = _absorb_input(draft, candidate, op, arrivals[node][0])
            if isinstance(absorbed, Stop):
                return _Blocked(absorbed, node)
            walk.sinks[node] = absorbed
            continue
        inputs = draft.inputs(node)
        if isinstance(op, Average | Sum) and (stop := _stop_growth(_growth(arrivals[node].values()))):
            return _Blocked(stop, node)
        pushed = push(op, *(arrivals[node].get(index) for index in range(len(inputs))))
        if isinstance(pushed, Stop):
            return _Blocked(pushed, node)
        walk.through.append(node)
        for value, affine in zip(draft.graph.outputs(node), pushed, strict=True):
            if affine and not _is_identity(affine):
                walk.changed.append(value)
                walk.affines[value] = affine
                if failure := arrive(node, value, affine):
                    return failure
    return walk


def _growth(affines: Iterable[Affine]) -> Growth:
    """How much more an operator that adds up data rounds where maps go behind it."""
    sizes = [affine.sizes for affine in affines if affine.has_shift and affine.statistics is not None]
    if not sizes:
        return Growth(1.0, 0)
    products, results = (np.concatenate(each) for each in zip(*sizes, strict=True))
    return measure_growth(products, results, np.zeros_like(products), np.zeros_like(results))


def _survey(
    draft: Draft[N, V], moves: dict[N, Move[N, V]], progress: Callable[[int, int], None]
) -> tuple[dict[N, float], dict[N, tuple[Stop, str]]]:
    """The rounding error of each weight that would change, and the candidates that one would not survive."""
    rounding: dict[N, float] = {}
    failed: dict[N, tuple[Stop, str]] = {}
    gone = {edit.node for edit in draft.edits if isinstance(edit, Bypass)} | draft.merged.keys()
    changing = {node: absorbed for node, absorbed in draft.absorbed.items() if node not in gone}
    for done, (node, absorbed) in enumerate(changing.items()):
        progress(done, len(changing))
        result = draft.graph.round(node, absorbed)
        rounding[node] = result.error
        if stop := _stop_rounding(result):
            failed[_culprit(draft, node, stop)] = stop, draft.graph.name(node)
        elif result.is_narrow:
            grown = (each for each in draft.absorbers[node] if each in moves and moves[each].walk.gain > GAIN_LIMIT)
            failed.update((each, (TOO_LARGE, draft.graph.name(node))) for each in grown)
    progress(len(changing), len(changing))
    return rounding, failed


def _culprit(draft: Draft[N, V], node: N, stop: Stop) -> N:
    """What `node` goes without: its latest merge, else the latest candidate; for a cancellation, one with a shift."""
    latest = draft.absorbers[node][::-1]
    merge = next((candidate for candidate in latest if candidate in draft.joins), None)
    if merge is not None or stop.reason is not Reason.CANCELLATION:
        return latest[0] if merge is None else merge
    return next((candidate for candidate in latest if draft.affine(candidate).has_shift), latest[0])


def _stop_rounding(rounding: Rounding) -> Stop | None:
    """What keeps parameters from being stored as they would round."""
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
    return _stop_growth(rounding.growth)


def _stop_growth(growth: Growth) -> Stop | None:
    """What keeps an operator from rounding so much more."""
    if growth.factor <= GROWTH_LIMIT:
        return None
    detail = (
        f"its output, above all channel {growth.channel}, would have {growth.factor:.3g} times the rounding error, "
        "since the data is far from zero beside its deviation"
    )
    return Stop(Reason.CANCELLATION, detail)


def _outcomes(
    draft: Draft[N, V],
    moves: dict[N, Move[N, V]],
    blocked: dict[N, tuple[_Blocked[N], _Blocked[N]]],
    barred: dict[N, tuple[Stop, str]],
    rounding: dict[N, float],
) -> Iterable[Outcome]:
    graph = draft.graph
    for node in draft.position:
        op = draft.op(node)
        if not (isinstance(op, ChannelAffine) or (isinstance(op, Opaque) and op.is_batchnorm)):
            continue
        name, scope = graph.name(node), graph.scope(node)
        if node in moves:
            move = moves[node]
            sinks = {draft.final(sink) for sink in move.walk.sinks}
            errors = [rounding[sink] for sink in sinks if sink in rounding]
            yield Fold(
                name,
                scope,
                move.direction,
                tuple(graph.name(sink) for sink in _sorted(draft, sinks)),
                tuple(graph.name(carrier) for carrier in _sorted(draft, move.walk.through)),
                max(errors, default=None),
                isinstance(op, ChannelAffine) and op.is_batchnorm,
            )
        elif isinstance(op, Opaque):
            yield Refusal(name, scope, op.stop.reason, op.stop.detail, name)
        elif not op.is_batchnorm:
            continue
        elif node in barred:
            stop, at = barred[node]
            yield Refusal(name, scope, stop.reason, stop.detail, at)
        elif node in blocked:
            yield _refusal(graph, name, scope, *blocked[node])
        else:
            yield Refusal(name, scope, Reason.SKIPPED, "it was not selected", name)


def _merged(draft: Draft[N, V], merges: Merges[N, V], rounding: dict[N, float]) -> Iterable[Merge]:
    name = draft.graph.name
    for root in _sorted(draft, draft.joins):
        host = draft.final(draft.joins[root].host)
        through = tuple(name(node) for node in merges.sums[root])
        yield Merge(name(host), draft.graph.scope(host), merges.branches[root], through, rounding.get(host))


def _sorted(draft: Draft[N, V], nodes: Iterable[N]) -> list[N]:
    return sorted(nodes, key=lambda node: draft.position[node])


def _refusal(graph: Graph[N, V], name: str, scope: str, upstream: _Blocked[N], downstream: _Blocked[N]) -> Refusal:
    at, below = graph.name(upstream.at), graph.name(downstream.at)
    detail = f"upstream {at}: {upstream.stop.detail}; downstream {below}: {downstream.stop.detail}"
    return Refusal(name, scope, upstream.stop.reason, detail, at)
