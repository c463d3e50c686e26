"""The graph as a plan will leave it: what is absorbed, bypassed, renamed and merged so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Generic

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Factor, Linear
from bnfold.graph.ops import ChannelAffine, Op
from bnfold.graph.outcome import Outcome
from bnfold.graph.protocol import Constant, Graph, N, V


@dataclass(frozen=True)
class Bypass(Generic[N]):
    """Take a node out of the graph; `index` names the operand that stands for it."""

    node: N
    keep_output_name: bool
    index: int = 0


@dataclass(frozen=True)
class Renew(Generic[V]):
    """Rename a value whose content changes."""

    value: V


@dataclass(frozen=True)
class Join(Generic[N]):
    """Let one operator stand for several that merge into it.

    Attributes:
        host: the operator; it reads what `source` read, and its output becomes that of `root`.
        source: itself, or what stands in front of it.
        root: itself, or what stands behind it.
        gone: everything else that merges, each after what it reads; nothing else reads their outputs then.
        by: what the merge is known by: a node that vanishes, but for a chain, where it is the last operator.
    """

    host: N
    source: N
    root: N
    gone: tuple[N, ...]
    by: N


Edit = Bypass[N] | Renew[V] | Join[N]


@dataclass(eq=False)
class Walk(Generic[N, V]):
    """One walk from a candidate to what absorbs it.

    Attributes:
        sinks: what absorbs it, with what that becomes.
        through: the operators on the way.
        changed: values that hold something else then.
        gain: the largest scale that goes in front of a sum or a mean, whose operands may be larger than its result.
        affines: of each value that changes; upstream ``w = affine(v)``, downstream ``v = affine(w)``.
    """

    sinks: dict[N, Linear | Affine] = field(default_factory=dict)
    through: list[N] = field(default_factory=list)
    changed: list[V] = field(default_factory=list)
    gain: float = 0.0
    affines: dict[V, Affine] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Move(Generic[N, V]):
    """A walk that arrived."""

    candidate: N
    direction: str
    walk: Walk[N, V]


@dataclass(frozen=True, eq=False)
class Change:
    """How a value `v` changed into `w`: ``pulled(v) == pushed(w)``; None is the identity.

    It is not `is_known` where what was pushed into a value has no inverse and more is pulled behind it.
    """

    pulled: Affine | None = None
    pushed: Affine | None = None
    is_known: bool = True

    def then(self, direction: str, affine: Affine) -> Change:
        """With what one more move does on top."""
        if direction == "downstream":
            return replace(self, pushed=self.pushed.after(affine) if self.pushed else affine)
        if self.pushed is None:
            return replace(self, pulled=affine.after(self.pulled) if self.pulled else affine)
        constant = self.pushed.scale == 0
        is_known = self.is_known and not affine.scale[constant].any()
        scale = np.where(constant, 1.0, self.pushed.scale)
        back = Affine(1 / scale, -self.pushed.shift / scale, affine.axis)
        return Change(affine.after(back.after(self.pulled) if self.pulled else back), None, is_known)


class Draft(Generic[N, V]):
    """The graph as it will be once everything decided so far is applied."""

    def __init__(self, graph: Graph[N, V]) -> None:
        self.graph = graph
        self.position: dict[N, int] = {node: index for index, node in enumerate(graph.nodes())}
        self.absorbed: dict[N, Linear | Affine] = {}
        self.edits: list[Edit[N, V]] = []
        self.absorbers: dict[N, list[N]] = {}  # operator -> candidates it absorbed, oldest first
        self.joins: dict[N, Join[N]] = {}  # by what each is known
        self.merged: dict[N, N] = {}  # what merged -> into which operator
        self.changes: dict[V, Change] = {}
        self._alike: dict[V, list[V]] = {}  # value -> the values that it stands for, beside itself
        self._ops: dict[N, Op] = {}
        self._root: dict[V, V] = {}
        self._uses: dict[V, list[tuple[N | None, int]]] = {}
        self._measured: set[V] = set()
        self._readings: dict[Constant, int] = {}
        self._unbiased: dict[N, tuple[Linear, bool]] = {}

    def op(self, node: N) -> Op:
        """The node's description, with what it has absorbed."""
        if node not in self._ops:
            self._ops[node] = self.graph.op(node)
        op, absorbed = self._ops[node], self.absorbed.get(node)
        if isinstance(absorbed, Linear):
            return absorbed
        if isinstance(op, Linear) and op.is_shared and not self._shares(node, op):
            op = self._ops[node] = replace(op, is_shared=False)
        return replace(op, affine=absorbed) if absorbed and isinstance(op, ChannelAffine) else op

    def affine(self, node: N) -> Affine:
        """A per-channel affine, with what is known or assumed of the data that it reads."""
        op = self.op(node)
        assert isinstance(op, ChannelAffine)
        return op.affine if op.is_batchnorm else op.affine.with_statistics(op.affine.assumed)

    def _shares(self, node: N, op: Linear) -> bool:
        """Whether something else will read the kernel, or a bias that is more than zeros."""
        replaced, _ = self.graph.constants(node)
        return any(self._is_shared(each) for each in replaced[: 1 + op.has_bias])

    def factor(self, node: N) -> Factor:
        """A linear operator as a part of one that it merges into."""
        linear = self.op(node)
        assert isinstance(linear, Linear)
        return Factor(linear, node, is_unbiased=self._is_unbiased(node))

    def _is_unbiased(self, node: N) -> bool:
        """Whether all that an operator adds to its output is zero, though it absorbed shifts."""
        absorbed = self.absorbed.get(node)
        if not isinstance(absorbed, Linear):
            return False
        known = self._unbiased.get(node)
        if known is None or known[0] is not absorbed:
            known = self._unbiased[node] = absorbed, not self.graph.makes_bias(node, absorbed)
        return known[1]

    def stored(self, node: N) -> int | None:
        """Elements of a per-channel affine's constants that nothing else will read; None for one a channel or more."""
        op = self.op(node)
        assert isinstance(op, ChannelAffine)
        if op.stored is None:
            return None
        replaced, others = self.graph.constants(node)
        constants = zip(op.stored, [*replaced, *others], strict=True)
        alone = [size for size, constant in constants if not self._is_shared(constant)]
        return None if op.affine.size in alone else sum(alone)

    def _is_shared(self, constant: Constant) -> bool:
        """Whether a constant, or one that it is computed from, will have a second reader."""
        stack = [constant]
        while stack:
            read = stack.pop()
            if self._readings.get(read, read.readings) > 1:
                return True
            stack.extend(read.sources)
        return False

    def _release(self, constants: Iterable[Constant]) -> None:
        """Take note that readings of constants end."""
        stack = list(constants)
        while stack:
            read = stack.pop()
            self._readings[read] = self._readings.get(read, read.readings) - 1
            if not self._readings[read]:
                stack.extend(read.sources)

    def _absorb(self, node: N, absorbed: Linear | Affine, by: N) -> None:
        if node not in self.absorbed:
            self._release(self.graph.constants(node)[0])
        self.absorbed[node] = absorbed
        self.absorbers.setdefault(node, []).append(by)

    def _remove(self, node: N) -> None:
        """End all that a node reads."""
        for value in self.inputs(node):
            self._uses[value] = [use for use in self.uses(value) if use[0] != node]
        replaced, others = self.graph.constants(node)
        self._release(others if node in self.absorbed else [*replaced, *others])

    def root(self, value: V) -> V:
        """The value that stands for `value` now that nodes are bypassed."""
        found = value
        while found in self._root:
            found = self._root[found]
        while value != found:
            self._root[value], value = found, self._root[value]
        return found

    def inputs(self, node: N) -> list[V]:
        """The data that the node will read."""
        return [self.root(value) for value in self.graph.inputs(node)]

    def uses(self, value: V) -> list[tuple[N | None, int]]:
        """The readers that the value will have."""
        if value not in self._uses:
            self._uses[value] = list(self.graph.uses(value))
        return self._uses[value]

    def is_measured(self, value: V) -> bool:
        """Whether something will read the value's shape alone."""
        return value in self._measured or self.graph.is_measured(value)

    def bypass(self, node: N, *, keep_output_name: bool, index: int = 0) -> None:
        """Let the readers of a node's output read one of its inputs."""
        kept, gone = self.inputs(node)[index], self.graph.outputs(node)[0]
        self._remove(node)
        self._uses[kept] = self.uses(kept) + self.uses(gone)
        self._measured.update([kept] if self.is_measured(gone) else [])
        self._stand_for(kept, gone)
        self.edits.append(Bypass(node, keep_output_name, index))

    def _stand_for(self, kept: V, gone: V) -> None:
        """Let one value stand for another, and for those that this one stood for."""
        self._root[gone] = kept
        self._alike.setdefault(kept, []).extend([gone, *self._alike.pop(gone, ())])

    @property
    def stands(self) -> dict[V, V]:
        """The value that stands for each of those that are no more."""
        return {value: self.root(value) for value in list(self._root)}

    def commit(self, move: Move[N, V]) -> None:
        """Let everything that a walk arrived at absorb its candidate."""
        for value, affine in move.walk.affines.items():
            for each in (value, *self._alike.get(value, ())):
                self.changes[each] = self.changes.get(each, Change()).then(move.direction, affine)
        for node, absorbed in move.walk.sinks.items():
            self._absorb(node, absorbed, move.candidate)
        self.bypass(move.candidate, keep_output_name=move.direction == "upstream")
        self.edits.extend(Renew(value) for value in move.walk.changed)

    def join(self, join: Join[N], absorbed: Linear) -> None:
        """Let `join.host` stand for all that merges."""
        host = join.host
        made, wanted = self.graph.outputs(host)[0], self.graph.outputs(join.root)[0]
        read, data = self.inputs(host)[0], self.inputs(join.source)[0]
        readers = self.uses(wanted)
        for node in join.gone:
            self._remove(node)
            self.merged[node] = host
        if read != data:
            self._stand_for(data, read)
            self._uses[data] = [*self.uses(data), (host, 0)]
        if made != wanted:
            self._stand_for(made, wanted)
            self._uses[made] = readers
            self._measured.update([made] if self.is_measured(wanted) else [])
        self._absorb(host, absorbed, join.by)
        self.joins[join.by] = join
        self.edits.append(join)

    def final(self, node: N) -> N:
        """The operator that stands for `node` now that operators are merged."""
        while node in self.merged:
            node = self.merged[node]
        return node


@dataclass(frozen=True, eq=False)
class Plan(Generic[N, V]):
    """What would be done to a graph.

    Attributes:
        absorbed: linear operators with everything pending on them, and BatchNorms that stay with what they become.
        edits: nodes to take out or to join and values to rename, in order.
        outcomes: one for each BatchNorm, one for each other per-channel affine that folds, and one for each merge.
        changes: how each value changed that will hold something else.
        stands: the value that stands for each of those that will be no more.
        merged: the operator that stands for each node that merged.
    """

    absorbed: dict[N, Linear | Affine]
    edits: tuple[Edit[N, V], ...]
    outcomes: tuple[Outcome, ...]
    changes: dict[V, Change] = field(default_factory=dict)
    stands: dict[V, V] = field(default_factory=dict)
    merged: dict[N, N] = field(default_factory=dict)
