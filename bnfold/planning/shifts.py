"""Counter-shifts: a BatchNorm goes both ways where what else reads its input takes its shift back.

    scale * x + shift  =  scale * (x + c),    c = shift / scale

The scale goes downstream, where a Relu carries a positive one. The shift `c` goes upstream into a bias. Every other
reader of `x` must then take the opposite shift: a convolution without padding or a BatchNorm into itself, an
addition into another operand or on to its own output, where the same is asked again. The inverse of a shift is a
subtraction, so this needs no inverse of a scale.

A search finds the fewest values to shift. A state has the values that shift so far, each with the map `v = w - c` from
its new content to its old one, and the nodes whose law is still to be met. A sum can make up for a shift in several
ways, every other node in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Generic

import numpy as np

from bnfold.algebra.affine import Affine, Array, Grid, Statistics
from bnfold.algebra.linear import Linear
from bnfold.algebra.rounding import Growth, measure_growth
from bnfold.graph.ops import Absorbed, ChannelAffine, Op, Sum
from bnfold.graph.outcome import Reason, Stop
from bnfold.graph.protocol import N, V
from bnfold.planning.absorb import absorb_input, absorb_output
from bnfold.planning.draft import Draft
from bnfold.planning.plan import Blocked, Move
from bnfold.planning.rules import pull, push, variants
from bnfold.planning.rules.pointwise import pull_operand
from bnfold.planning.rules.registry import CONFLICT, SEVERAL_AXES
from bnfold.planning.survey import GROWTH_LIMIT
from bnfold.planning.walks import STEP_LIMIT, push_walk

STATE_LIMIT = 1024
"""The most states that one search may look at."""

SIDE_OUTPUT = Stop(Reason.NOT_LINEAR, "only a side output of it is read")

DEAD = "channel {} has a scale of zero, so no shift in front of it stands for the one behind"


def shift_walk(draft: Draft[N, V], candidate: N) -> Move[N, V] | None:
    """The move of a BatchNorm both ways, if there is one."""
    ways = _part(draft, candidate)
    if ways is None or ways.stopped:
        return None
    way = _Search(draft, ways.down).run(ways.back)
    return None if isinstance(way, Blocked) else way


def why_no_shift(draft: Draft[N, V], candidate: N) -> Blocked[N] | None:
    """The reason why a BatchNorm cannot go both ways: a value that cannot shift, or the sign of a scale, or digits.

    None where it has no shift, or its scale alone does not go downstream.
    """
    ways = _part(draft, candidate)
    if ways is None:
        return None
    way = _Search(draft, ways.down, judges_digits=False).run(ways.back)
    if not isinstance(way, Blocked):
        way = ways.stopped or _Search(draft, ways.down).run(ways.back)
    return way if isinstance(way, Blocked) else None


@dataclass(frozen=True, eq=False)
class _Ways(Generic[N, V]):
    """A BatchNorm in two parts.

    Attributes:
        back: the map that takes its shift back, upstream.
        down: how its scale goes downstream.
        stopped: the stop of a channel whose scale does not go, or that has no shift in front of the scale.
    """

    back: Affine
    down: Move[N, V]
    stopped: Blocked[N] | None


def _part(draft: Draft[N, V], candidate: N) -> _Ways[N, V] | None:
    """The parts of a BatchNorm; None where it has no shift, or its scale alone does not go downstream."""
    whole = draft.affine(candidate)
    if not whole.has_shift:
        return None
    dead = (whole.scale == 0) & (whole.shift != 0)
    scale = np.where(whole.scale == 0, 1.0, whole.scale)
    with np.errstate(over="ignore"):
        shift = np.where(dead, 0.0, whole.shift / scale)
    back = Affine(np.ones(whole.size), -shift, whole.axis)
    data = whole.statistics
    if data is not None:
        back = back.with_statistics(replace(data, mean=data.mean + shift))
    scaled = Affine(whole.scale, np.zeros(whole.size), whole.axis, back.statistics)
    down = push_walk(draft, candidate, scaled)
    stopped = down if isinstance(down, Blocked) else None
    if stopped and stopped.stop.reason is Reason.NEGATIVE_SCALE:  # then try whether it is the only obstacle
        down = push_walk(draft, candidate, replace(scaled, scale=np.abs(scaled.scale)))
    if isinstance(down, Blocked):
        return None
    if dead.any():
        stopped = stopped or Blocked(Stop(Reason.SHIFT, DEAD.format(int(np.argmax(dead)))), candidate)
    return _Ways(back, down, stopped)


@dataclass(frozen=True, eq=False)
class _State(Generic[N, V]):
    """Values that shift, and the consequences so far.

    Attributes:
        backs: for each value that shifts, the map from its new content to its old one.
        sinks: the operators that absorbed a shift.
        through: those that a shift goes through.
        makers: nodes to look at that make shifted values; the last in the data first.
        readers: nodes to look at afterwards that read shifted values; the first in the data first.
    """

    backs: Mapping[V, Affine]
    sinks: Mapping[N, Absorbed]
    through: frozenset[N] = frozenset()
    makers: frozenset[tuple[N, V]] = frozenset()
    readers: frozenset[tuple[N, V]] = frozenset()


@dataclass(eq=False)
class _Search(Generic[N, V]):
    """One search.

    Attributes:
        draft: the graph as it will be.
        down: how the scale goes downstream.
        judges_digits: whether rounding may stop it.
        digits: the stop of the shift where taking it back would lose digits.
        blocked: where ways ended.
    """

    draft: Draft[N, V]
    down: Move[N, V]
    judges_digits: bool = True
    digits: Stop | None = None
    blocked: list[Blocked[N]] = field(default_factory=list)

    def run(self, back: Affine) -> Move[N, V] | Blocked[N]:
        """The move that shifts the fewest values; else the loss of digits, or the last obstacle in the data."""
        candidate = self.down.node
        (value,) = self.draft.inputs(candidate)
        if not back.is_finite:
            return Blocked(Stop(Reason.OVERFLOW, "its shift over its scale is not finite"), candidate)
        self.digits = self._stop_digits(candidate, self.draft.op(candidate), back)
        heap: list[tuple[int, int, _State[N, V]]] = []
        count = self._note(heap, 0, [self._shift(_State({}, self.down.sinks), value, back, candidate)])
        while heap:
            state = heappop(heap)[2]
            if not state.makers and not state.readers:
                return self._move(state)
            if count > STATE_LIMIT or len(state.backs) > STEP_LIMIT:
                return Blocked(Stop(Reason.SEARCH_LIMIT, f"more than {STEP_LIMIT} values would shift"), candidate)
            count = self._note(heap, count, self._advance(state))
        lossy = [blocked for blocked in self.blocked if blocked.stop.reason is Reason.CANCELLATION]
        return lossy[0] if lossy else max(self.blocked, key=lambda blocked: self.draft.position[blocked.at])

    def _stop_digits(self, node: N, op: Op, back: Affine) -> Stop | None:
        """The stop of a shift of a BatchNorm's data where something takes the shift back, if there is one.

        Taking it back keeps the rounding errors of the larger data. The statistics tell how large the data is, and how
        large it was in the original; both are relative to the deviation, which a scale changes.
        """
        original = self.draft.graph.op(node)
        assert isinstance(original, ChannelAffine)
        assert isinstance(op, ChannelAffine)
        first, now = original.affine.statistics, op.affine.statistics
        if first is None or now is None or not self.judges_digits:
            return None
        growth = _growth(first, now, back.shift)
        if growth.factor <= GROWTH_LIMIT:
            return None
        with np.errstate(all="ignore"):
            deviations = abs(back.shift[growth.channel]) / np.sqrt(now.variance[growth.channel])
        detail = (
            f"the shift over the scale of channel {growth.channel} is {deviations:.3g} deviations of the data, "
            f"and what else reads that would have {growth.factor:.3g} times the rounding error"
        )
        return Stop(Reason.CANCELLATION, detail)

    def _note(
        self,
        heap: list[tuple[int, int, _State[N, V]]],
        count: int,
        results: list[_State[N, V] | Blocked[N]],
    ) -> int:
        """Take note of new states, and of the stops of others; the number of states until now."""
        for result in results:
            count += 1
            if isinstance(result, Blocked):
                self.blocked.append(result)
            else:
                heappush(heap, (len(result.backs), count, result))
        return count

    def _move(self, state: _State[N, V]) -> Move[N, V]:
        shifts = {value: _inverse(back) for value, back in state.backs.items()}
        through = tuple(self.draft.in_order({*self.down.through, *state.through}))
        changed = (*self.down.changed, *shifts)
        return replace(self.down, direction="both", sinks=state.sinks, through=through, changed=changed, shifts=shifts)

    def _advance(self, state: _State[N, V]) -> list[_State[N, V] | Blocked[N]]:
        """Look at the next node: one state for each way in which its law can hold."""
        position = self.draft.position
        is_made = bool(state.makers)
        if is_made:
            node, value = max(state.makers, key=lambda maker: position[maker[0]])
            state = replace(state, makers=state.makers - {(node, value)})
        else:
            node, value = min(state.readers, key=lambda reader: position[reader[0]])
            state = replace(state, readers=state.readers - {(node, value)})
        op, outputs = self._op(node), self.draft.graph.outputs(node)
        if is_made and value not in (outputs[:1] if isinstance(op, Linear | ChannelAffine) else outputs):
            return [Blocked(SIDE_OUTPUT, node)]
        if isinstance(op, Linear | ChannelAffine):
            return [self._absorb(state, node, op)]
        state = replace(state, through=state.through | {node})
        if isinstance(op, Sum):
            return self._balance(state, node, op)
        if is_made:
            return [self._pull(state, node, option) for option in variants(op)]
        return [self._push(state, node, op)]

    def _op(self, node: N) -> Op:
        """A node's description, once the scale has gone downstream."""
        op, absorbed = self.draft.op(node), self.down.sinks.get(node)
        if isinstance(absorbed, Linear):
            return absorbed
        return replace(op, affine=absorbed) if isinstance(absorbed, Affine) and isinstance(op, ChannelAffine) else op

    def _absorb(self, state: _State[N, V], node: N, op: Linear | ChannelAffine) -> _State[N, V] | Blocked[N]:
        """The state in which an operator absorbs the shifts of its output and input."""
        absorbed: Linear | Affine | Stop = op if isinstance(op, Linear) else op.affine
        (value,) = self.draft.inputs(node)[:1]
        if value in state.backs:
            back = state.backs[value]
            absorbed = absorb_input(op, back, is_batchnorm=False)
            if isinstance(op, ChannelAffine) and not isinstance(absorbed, Stop):
                absorbed = self._stop_digits(node, op, back) or absorbed
        value = self.draft.graph.outputs(node)[0]
        if value in state.backs and not isinstance(absorbed, Stop):
            inner = (
                absorbed if isinstance(absorbed, Linear) else ChannelAffine(absorbed, is_batchnorm=_is_batchnorm(op))
            )
            absorbed = absorb_output(inner, _inverse(state.backs[value]), is_batchnorm=False)
        if isinstance(absorbed, Stop):
            return Blocked(absorbed, node)
        return replace(state, sinks={**state.sinks, node: absorbed})

    def _pull(self, state: _State[N, V], node: N, op: object) -> _State[N, V] | Blocked[N]:
        """The state in which the input of a carrier shifts as its output must."""
        inputs = self.draft.inputs(node)
        backs = [state.backs.get(value) for value in inputs]
        wanted = [state.backs.get(value) for value in self.draft.graph.outputs(node)]
        there = push(op, *backs) if any(backs) else [None] * len(wanted)
        if isinstance(there, Stop):
            return Blocked(there, node)
        if not all(map(_are_alike, wanted, there)):
            return Blocked(CONFLICT, node)
        missing = [_difference(one, other) for one, other in zip(wanted, there, strict=True)]
        if not any(missing):
            return state
        pulled = pull(op, *missing)
        if isinstance(pulled, Stop):
            return Blocked(pulled, node)
        changes: dict[V, Affine | None] = {}
        for value, change in zip(inputs, pulled, strict=True):
            if value in changes and not _are_equal(changes[value], change):
                return Blocked(CONFLICT, node)
            changes[value] = change
        for value, change in changes.items():
            before = state.backs.get(value)
            if change is not None and change.has_shift:
                if not _are_alike(before, change):
                    return Blocked(CONFLICT, node)
                after = self._shift(state, value, before.plus(change) if before else change, node)
                if isinstance(after, Blocked):
                    return after
                state = after
        return state

    def _push(self, state: _State[N, V], node: N, op: object) -> _State[N, V] | Blocked[N]:
        """The state in which the output of a carrier shifts as its input does."""
        pushed = push(op, *(state.backs.get(value) for value in self.draft.inputs(node)))
        if isinstance(pushed, Stop):
            return Blocked(pushed, node)
        for value, back in zip(self.draft.graph.outputs(node), pushed, strict=True):
            wanted = back if back is not None and back.has_shift else None
            if not _are_equal(state.backs.get(value), wanted):
                after = self._shift(state, value, wanted, node) if wanted else Blocked(CONFLICT, node)
                if isinstance(after, Blocked):
                    return after
                state = after
        return state

    def _balance(self, state: _State[N, V], node: N, op: Sum) -> list[_State[N, V] | Blocked[N]]:
        """The states in which the output of a sum shifts as much as its inputs together, fewer values first."""
        inputs, (output,) = self.draft.inputs(node), self.draft.graph.outputs(node)
        backs, after = [state.backs.get(value) for value in inputs], state.backs.get(output)
        total: Affine | None = None
        if any(backs):
            pushed = push(op, *backs)
            if isinstance(pushed, Stop):
                return [Blocked(pushed, node)]
            (total,) = pushed
        if not _are_alike(total, after):
            return [Blocked(CONFLICT, node)]
        sums = total or after
        assert sums is not None
        missing = (after.shift if after else 0.0) - (total.shift if total else np.zeros(sums.size))
        if not missing.any():
            return [state]
        states: list[_State[N, V] | Blocked[N]] = []
        for index, value in enumerate(inputs):
            if value not in state.backs and inputs.index(value) == index:
                sign = sum(op.signs[place] for place, other in enumerate(inputs) if other == value)
                pulled = pull_operand(op, index, Affine(np.ones(sums.size), missing, sums.axis))
                if isinstance(pulled, Stop) or not sign:
                    states.append(Blocked(pulled if isinstance(pulled, Stop) else CONFLICT, node))
                else:
                    states.append(self._shift(state, value, pulled.with_shift(pulled.shift / sign), node))
        if after is None and total is not None:
            states.append(self._shift(state, output, total, node))
        return states or [Blocked(CONFLICT, node)]

    def _shift(self, state: _State[N, V], value: V, back: Affine, asked_by: N) -> _State[N, V] | Blocked[N]:
        """The state in which a value shifts as well, with its maker and readers to look at."""
        graph = self.draft.graph
        if value in self.down.affines:
            return Blocked(CONFLICT, asked_by)
        if isinstance(back, Grid):
            return Blocked(SEVERAL_AXES, asked_by)
        maker = graph.producer(value)
        if maker is None:
            return Blocked(Stop(Reason.GRAPH_INPUT, "nothing before it can absorb"), asked_by)
        readers: set[tuple[N, V]] = set()
        for reader, index in self.draft.uses(value):
            if reader is None:
                return Blocked(Stop(Reason.GRAPH_OUTPUT, "its output leaves the graph as well"), maker)
            if graph.scope(reader) != graph.scope(maker):
                return Blocked(Stop(Reason.SCOPE_BOUNDARY, "its output is read in another graph"), maker)
            if index < 0:
                return Blocked(Stop(Reason.NOT_LINEAR, "it reads the value as a parameter"), reader)
            if reader not in (asked_by, self.down.node):
                readers.add((reader, value))
        if readers and self.digits:
            return Blocked(self.digits, self.down.node)
        makers = state.makers if maker == asked_by else state.makers | {(maker, value)}
        return replace(
            state, backs={**state.backs, value: back}, makers=makers, readers=state.readers | frozenset(readers)
        )


def _inverse(back: Affine) -> Affine:
    """The map from the old content of a value to the new one."""
    return Affine(back.scale, -back.shift, back.axis)


def _difference(wanted: Affine | None, there: Affine | None) -> Affine | None:
    """The difference of two shifts along the same axis; None where they are equal."""
    if wanted is None or there is None:
        missing = wanted or (_inverse(there) if there else None)
    else:
        missing = wanted.with_shift(wanted.shift - there.shift)
    return missing if missing is not None and missing.has_shift else None


def _are_alike(one: Affine | None, other: Affine | None) -> bool:
    """Whether two maps lie on the same channels, as far as there are two."""
    return one is None or other is None or (one.axis, one.size) == (other.axis, other.size)


def _is_batchnorm(op: Linear | ChannelAffine) -> bool:
    return isinstance(op, ChannelAffine) and op.is_batchnorm


def _are_equal(one: Affine | None, other: Affine | None) -> bool:
    return one is other or (one is not None and other is not None and one.equals(other))


def _growth(first: Statistics, now: Statistics, back: Array) -> Growth:
    """How much more the data is rounded once it shifts, and the addition that makes up for it."""
    change = np.divide(first.variance, now.variance, out=np.ones_like(now.variance), where=now.variance > 0)
    with np.errstate(all="ignore"):
        data = ((now.mean - back) ** 2 + now.variance + back**2) * change
    zeros = np.zeros_like(data)
    return measure_growth(data, first.mean**2 + first.variance, zeros, zeros)
