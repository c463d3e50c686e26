"""Derives the changes of values from the steps of a plan, for the certificate of its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic

import numpy as np

from bnfold.algebra.affine import Affine, align
from bnfold.graph.protocol import Graph, N, V
from bnfold.planning.plan import Direction, Join, Move, Plan


@dataclass(frozen=True, eq=False)
class Change:
    """How a value `v` changed into `w`: ``pulled(v) == pushed(w)``; None is the identity.

    It is not `is_known` where a map without an inverse was pushed into a value and another one is pulled behind it.
    """

    pulled: Affine | None = None
    pushed: Affine | None = None
    is_known: bool = True

    @property
    def rounded(self) -> Change:
        """The same with maps as a certificate holds them: two vectors of float64."""
        pulled, pushed = (affine.rounded if affine else None for affine in (self.pulled, self.pushed))
        return Change(pulled, pushed, self.is_known)

    def then(self, direction: Direction, affine: Affine) -> Change:
        """The change with one more move on top."""
        known = [part for part in (self.pulled, self.pushed, affine) if part is not None]
        *others, affine = align(*known)
        pulled = others[0] if self.pulled is not None else None
        pushed = others[-1] if self.pushed is not None else None
        if direction != "upstream":
            return Change(pulled, pushed.after(affine) if pushed else affine, self.is_known)
        if pushed is None:
            return Change(affine.after(pulled) if pulled else affine, None, self.is_known)
        if np.all(affine.scale == 1):
            return Change(pulled, pushed.after(affine.negated()), self.is_known)
        constant = pushed.scale == 0
        is_known = self.is_known and not affine.scale[constant].any()
        scale = np.where(constant, 1.0, pushed.scale)
        back = affine.with_vectors(1 / scale, -pushed.shift / scale)
        return Change(affine.after(back.after(pulled) if pulled else back), None, is_known)


@dataclass(frozen=True, eq=False)
class Changes(Generic[N, V]):
    """All changes of a plan.

    Attributes:
        values: the change of each value that will hold something else.
        stands: for each value that will be gone, the value that takes its place.
        vanished: nodes that will be gone, and that no other node takes the place of.
        merged: nodes that become one operator, each with the node that stays. The node that stays is among them.
    """

    values: Mapping[V, Change]
    stands: Mapping[V, V]
    vanished: frozenset[N]
    merged: Mapping[N, N]


def trace_changes(graph: Graph[N, V], plan: Plan[N, V]) -> Changes[N, V]:
    """The changes of a plan. Call it before the plan is applied."""
    trace = _Trace(graph)
    for step in plan.steps:
        trace.follow(step)
    final = {node: trace.host(node) for node in trace.hosts}
    merged = {**final, **{host: host for host in final.values()}}
    for node, into in _regrouped(graph, plan, trace, trace.vanished - final.keys()):
        mine = merged.setdefault(node, into)
        if mine is not into:  # one sum in which several parts merge
            merged.update({root: into for root, host in merged.items() if host is mine})
    changes = {value: change.rounded for value, change in trace.changes.items()}
    return Changes(changes, {v: trace.root(v) for v in list(trace.roots)}, frozenset(trace.vanished), merged)


@dataclass(eq=False)
class _Trace(Generic[N, V]):
    """A plan, followed step by step."""

    graph: Graph[N, V]
    changes: dict[V, Change] = field(default_factory=dict)
    roots: dict[V, V] = field(default_factory=dict)
    alike: dict[V, list[V]] = field(default_factory=dict)  # value -> the other values that it stands for
    vanished: set[N] = field(default_factory=set)
    hosts: dict[N, N] = field(default_factory=dict)

    def follow(self, step: Move[N, V] | Join[N, V]) -> None:
        graph = self.graph
        if isinstance(step, Move):
            self._change(step.affines, step.direction)
            self._change(step.shifts, "upstream")
            for node in step.vanishing:
                self._bypass(node, 0)
            return
        output, wanted = graph.outputs(step.host)[0], graph.outputs(step.root)[0]
        read, data = self.root(graph.inputs(step.host)[0]), self.root(graph.inputs(step.source)[0])
        self.hosts.update(dict.fromkeys(step.gone, step.host))
        if read != data:
            self._stand_for(data, read)
        if output != wanted:
            self._stand_for(output, wanted)
        for addition in step.bypassed:
            self._bypass(addition.node, addition.index)
            self.hosts[addition.node] = step.host

    def _change(self, affines: Mapping[V, Affine], direction: Direction) -> None:
        for value, affine in affines.items():
            for same in (value, *self.alike.get(value, ())):
                self.changes[same] = self.changes.get(same, Change()).then(direction, affine)

    def _bypass(self, node: N, index: int) -> None:
        self.vanished.add(node)
        self._stand_for(self.root(self.graph.inputs(node)[index]), self.graph.outputs(node)[0])

    def _stand_for(self, kept: V, gone: V) -> None:
        """Let one value stand for another one, and for all that the other one stood for."""
        self.roots[gone] = kept
        self.alike.setdefault(kept, []).extend([gone, *self.alike.pop(gone, ())])

    def root(self, value: V) -> V:
        """The value that stands for `value` now."""
        while value in self.roots:
            value = self.roots[value]
        return value

    def host(self, node: N) -> N:
        """The operator that stands for `node` now."""
        while node in self.hosts:
            node = self.hosts[node]
        return node


def _regrouped(graph: Graph[N, V], plan: Plan[N, V], trace: _Trace[N, V], vanished: set[N]) -> Iterator[tuple[N, N]]:
    """Additions that stay where a part of a sum merges, but now make another value; and the additions behind them."""
    gone = set(vanished)
    for step in plan.steps:
        if isinstance(step, Move):
            gone.update(step.vanishing)
            continue
        gone.update(step.gone)
        partial = [addition.node for addition in step.bypassed if not addition.keep_output_name]
        into = trace.host(step.host)
        makers = [maker for value in step.changed if (maker := graph.producer(value)) is not None]
        yield from ((maker, into) for maker in makers)
        stack = [*step.changed, *(value for node in partial for value in graph.outputs(node))]
        while stack:
            for reader, _ in graph.uses(stack.pop()):
                if reader in gone or reader in partial:
                    stack.extend(graph.outputs(reader))
                elif reader is not None:
                    yield reader, into
        gone.update(addition.node for addition in step.bypassed)
