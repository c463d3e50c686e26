"""The two ways of a per-channel affine: upstream with `pull`, downstream with `push`.

A walk ends in operators that absorb the affine: all of its paths, or the candidate stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.algebra.masks import has_all
from bnfold.graph.ops import Absorbed, Average, ChannelAffine, Lookup, Op, Operands, Product, Select, Sum
from bnfold.graph.outcome import Reason, Stop
from bnfold.graph.protocol import N, V
from bnfold.planning.absorb import NOT_FINITE, absorb_input, absorb_output
from bnfold.planning.biases import is_bias
from bnfold.planning.draft import Draft
from bnfold.planning.plan import Blocked, Move
from bnfold.planning.rules import pull, push, variants
from bnfold.planning.rules.registry import stop_several
from bnfold.planning.survey import growth_of, stop_growth

STEP_LIMIT = 256
"""The most operators that one walk may visit."""

TRY_LIMIT = 32
"""The most ways to share shifts among the operands of sums that one walk may try."""

FLATTENED = Stop(Reason.CONFLICT, "its scale of zero and a scale behind it would go through one value, both ways")
"""A map without an inverse: no relation could say what such a channel was, and what it becomes."""


def pull_walk(draft: Draft[N, V], candidate: N, affine: Affine | None = None) -> Move[N, V] | Blocked[N]:
    """Walk upstream, with the candidate's affine or a part of it.

    The variants of the operators on the way are tried one after the other.
    """
    choices: dict[N, int] = {}
    first: Blocked[N] | None = None
    for _ in range(TRY_LIMIT):
        counts: dict[N, int] = {}
        result = _pull_once(draft, candidate, affine, choices, counts)
        if isinstance(result, Move):
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
    draft: Draft[N, V], candidate: N, part: Affine | None, choices: dict[N, int], counts: dict[N, int]
) -> Move[N, V] | Blocked[N]:
    sinks: dict[N, Absorbed] = {}
    through: list[N] = []
    changed: list[V] = []
    gain = 0.0
    demands: dict[V, list[Affine]] = {}
    queue: list[tuple[int, N]] = []
    queued: set[N] = set()

    def demand(reader: N, value: V, affine: Affine) -> Blocked[N] | None:
        maker = draft.graph.producer(value)
        if maker is None:
            return Blocked(Stop(Reason.GRAPH_INPUT, "nothing before it can absorb"), reader)
        if draft.graph.scope(maker) != draft.graph.scope(reader):
            return Blocked(Stop(Reason.SCOPE_BOUNDARY, "its input is made in another graph"), reader)
        demands.setdefault(value, []).append(affine)
        if maker not in queued:
            queued.add(maker)
            heappush(queue, (-draft.position[maker], maker))
        return None

    start = draft.op(candidate)
    assert isinstance(start, ChannelAffine)
    twins = () if part else _twins(draft, candidate, start)
    for node in (candidate, *twins):
        if failure := demand(node, draft.inputs(candidate)[0], part or start.affine):
            return failure
    while queue:
        node = heappop(queue)[1]
        if len(queued) > STEP_LIMIT:
            return Blocked(Stop(Reason.SEARCH_LIMIT, f"more than {STEP_LIMIT} operators away"), node)
        outputs = draft.graph.outputs(node)
        for value in outputs:
            if value in demands and (stop := _stop_demand(draft, value, demands[value])):
                return Blocked(stop, node)
        affines = [demands[value][0] if value in demands else None for value in outputs]
        op = draft.op(node)
        if isinstance(op, Linear | ChannelAffine):
            is_its_bias = is_bias(draft, candidate, node)
            absorbed = absorb_output(op, affines[0], is_batchnorm=start.is_batchnorm, is_bias=is_its_bias)
            if isinstance(absorbed, Stop):
                return Blocked(absorbed, node)
            sinks[node] = absorbed
        else:
            options = variants(op)
            if len(options) > 1:
                counts[node] = len(options)
            pulled = stop_several(op, affines) or pull(options[choices.get(node, 0)], *affines)
            if isinstance(pulled, Stop):
                return Blocked(pulled, node)
            if not isinstance(op, Lookup):  # which has nothing in front of it
                through.append(node)
            if isinstance(op, Average | Product | Sum) and affines[0] is not None:
                gain = max(gain, float(np.abs(affines[0].scale).max(initial=0.0)))
            taken = _take_in(op, pulled)
            if isinstance(taken, Stop):
                return Blocked(taken, node)
            if taken.affines:
                sinks[node] = taken
            for index, value in enumerate(draft.inputs(node)):
                affine = None if index in taken.affines else pulled[index]
                if affine and not _is_identity(affine) and (failure := demand(node, value, affine)):
                    return failure
        changed.extend(value for value in outputs if value in demands)
    changed.remove(draft.inputs(candidate)[0])
    pulled_through = {value: demanded[0] for value, demanded in demands.items()}
    for value, affine in pulled_through.items():
        flattener = draft.flattened_by(value)
        if flattener is not None and not has_all(affine.scale == 1):
            return Blocked(FLATTENED, flattener)
    return Move(candidate, "upstream", sinks, tuple(through), tuple(changed), gain, pulled_through, twins=twins)


def _twins(draft: Draft[N, V], candidate: N, start: ChannelAffine) -> tuple[N, ...]:
    """The other candidates that read the same value and make the same of it, none of them an output of the graph."""
    twins: list[N] = []
    for reader, _ in draft.uses(draft.inputs(candidate)[0]):
        if reader is None or reader == candidate or reader not in draft.candidates:
            continue
        if draft.graph.scope(reader) != draft.graph.scope(candidate):
            continue
        op = draft.op(reader)
        is_like = (
            isinstance(op, ChannelAffine) and op.is_batchnorm == start.is_batchnorm and op.affine.equals(start.affine)
        )
        if is_like and (None, -1) not in draft.uses(draft.graph.outputs(reader)[0]):
            twins.append(reader)
    return tuple(twins)


def _take_in(op: Op, pulled: Sequence[Affine | None]) -> Operands | Stop:
    """The affines that the constants among an operator's inputs have taken in, with those that are pulled now."""
    affines: dict[int, Affine] = {}
    if not isinstance(op, Sum | Select | Lookup):
        return Operands(affines)
    for index in op.constants:
        affine, before = pulled[index], op.pending.get(index)
        assert affine is not None
        if before is not None and (affine.axis, affine.size) != (before.axis, before.size):
            return Stop(Reason.AXIS_MISMATCH, "a constant that it reads takes in affines along one axis only")
        affines[index] = affine if before is None else affine.after(before)
        if not affines[index].is_finite:
            return NOT_FINITE
    return Operands(affines)


def _is_identity(affine: Affine) -> bool:
    return not affine.has_shift and has_all(affine.scale == 1)


def _stop_demand(draft: Draft[N, V], value: V, demands: list[Affine]) -> Stop | None:
    """The reason why a value cannot change as its readers demand, if there is one."""
    uses = draft.uses(value)
    if (None, -1) in uses:
        return Stop(Reason.GRAPH_OUTPUT, "its output leaves the graph as well")
    if len(uses) != len(demands):
        return Stop(Reason.SECOND_USE, "its output is read elsewhere as well")
    if not all(demands[0].equals(other) for other in demands[1:]):
        return Stop(Reason.CONFLICT, "its readers need it to change in different ways")
    return None


def push_walk(draft: Draft[N, V], candidate: N, affine: Affine | None = None) -> Move[N, V] | Blocked[N]:
    """Walk downstream, along every reader of a changed value, with the candidate's affine or a part of it."""
    if candidate in draft.grounded:
        return draft.grounded[candidate]
    sinks: dict[N, Absorbed] = {}
    through: list[N] = []
    changed: list[V] = []
    arrivals: dict[N, dict[int, Affine]] = {}
    queue: list[tuple[int, N]] = []

    def arrive(maker: N, value: V, affine: Affine) -> Blocked[N] | None:
        for reader, index in draft.uses(value):
            if reader is None:
                return Blocked(Stop(Reason.GRAPH_OUTPUT, "its output leaves the graph"), maker)
            if draft.graph.scope(reader) != draft.graph.scope(maker):
                return Blocked(Stop(Reason.SCOPE_BOUNDARY, "its output is read in another graph"), maker)
            if index < 0:
                return Blocked(Stop(Reason.NOT_LINEAR, "it reads the value as a parameter"), reader)
            if reader not in arrivals:
                arrivals[reader] = {}
                heappush(queue, (draft.position[reader], reader))
            arrivals[reader][index] = affine
        return None

    start = draft.op(candidate)
    assert isinstance(start, ChannelAffine)
    affine = affine or draft.affine(candidate)
    affines = {draft.graph.outputs(candidate)[0]: affine}
    if failure := arrive(candidate, draft.graph.outputs(candidate)[0], affine):
        return failure
    if not queue:
        return Blocked(Stop(Reason.NOT_LINEAR, "nothing reads its output"), candidate)
    while queue:
        node = heappop(queue)[1]
        if len(arrivals) > STEP_LIMIT:
            return Blocked(Stop(Reason.SEARCH_LIMIT, f"more than {STEP_LIMIT} operators away"), node)
        op = draft.op(node)
        if isinstance(op, Linear | ChannelAffine):
            absorbed = absorb_input(op, arrivals[node][0], is_batchnorm=start.is_batchnorm)
            if isinstance(absorbed, Stop):
                return Blocked(absorbed, node)
            sinks[node] = absorbed
            continue
        inputs = draft.inputs(node)
        if isinstance(op, Average | Product | Sum) and (stop := stop_growth(growth_of(arrivals[node].values()))):
            return Blocked(stop, node)
        arrived = [arrivals[node].get(index) for index in range(len(inputs))]
        pushed = stop_several(op, arrived) or push(op, *arrived)
        if isinstance(pushed, Stop):
            return Blocked(pushed, node)
        through.append(node)
        for value, affine in zip(draft.graph.outputs(node), pushed, strict=True):
            if affine and not _is_identity(affine):
                changed.append(value)
                affines[value] = affine
                if failure := arrive(node, value, affine):
                    return failure
    if not sinks and any(not draft.uses(value) for value in affines):
        return Blocked(Stop(Reason.NOT_LINEAR, "nothing reads what it leads to"), candidate)
    return Move(candidate, "downstream", sinks, tuple(through), tuple(changed), affines=affines)
