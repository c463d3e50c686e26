"""The graph as a plan will leave it: what is absorbed, bypassed, renamed and merged so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Generic

from bnfold.affine import Affine
from bnfold.graph import Graph, N, V
from bnfold.linear import Linear
from bnfold.ops import ChannelAffine, Op


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
    """

    sinks: dict[N, Linear | Affine] = field(default_factory=dict)
    through: list[N] = field(default_factory=list)
    changed: list[V] = field(default_factory=list)
    gain: float = 0.0


@dataclass(frozen=True, eq=False)
class Move(Generic[N, V]):
    """A walk that arrived."""

    candidate: N
    direction: str
    walk: Walk[N, V]


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
        self._ops: dict[N, Op] = {}
        self._root: dict[V, V] = {}
        self._uses: dict[V, list[tuple[N | None, int]]] = {}
        self._measured: set[V] = set()

    def op(self, node: N) -> Op:
        """The node's description, with what it has absorbed."""
        if node not in self._ops:
            self._ops[node] = self.graph.op(node)
        op, absorbed = self._ops[node], self.absorbed.get(node)
        if isinstance(absorbed, Linear):
            return absorbed
        return replace(op, affine=absorbed) if absorbed and isinstance(op, ChannelAffine) else op

    def affine(self, node: N) -> Affine:
        """A per-channel affine, with what is known or assumed of the data that it reads."""
        op = self.op(node)
        assert isinstance(op, ChannelAffine)
        return op.affine if op.is_batchnorm else op.affine.with_statistics(op.affine.assumed)

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
        for value in self.inputs(node):
            self._uses[value] = [use for use in self.uses(value) if use[0] != node]
        self._uses[kept] = self.uses(kept) + self.uses(gone)
        self._measured.update([kept] if self.is_measured(gone) else [])
        self._root[gone] = kept
        self.edits.append(Bypass(node, keep_output_name, index))

    def commit(self, move: Move[N, V]) -> None:
        """Let everything that a walk arrived at absorb its candidate."""
        for node, absorbed in move.walk.sinks.items():
            self.absorbed[node] = absorbed
            self.absorbers.setdefault(node, []).append(move.candidate)
        self.bypass(move.candidate, keep_output_name=move.direction == "upstream")
        self.edits.extend(Renew(value) for value in move.walk.changed)

    def join(self, join: Join[N], absorbed: Linear) -> None:
        """Let `join.host` stand for all that merges."""
        host = join.host
        made, wanted = self.graph.outputs(host)[0], self.graph.outputs(join.root)[0]
        read, data = self.inputs(host)[0], self.inputs(join.source)[0]
        readers = self.uses(wanted)
        for node in join.gone:
            for value in self.inputs(node):
                self._uses[value] = [use for use in self.uses(value) if use[0] != node]
            self.merged[node] = host
        if read != data:
            self._root[read] = data
            self._uses[data] = [*self.uses(data), (host, 0)]
        if made != wanted:
            self._root[wanted] = made
            self._uses[made] = readers
            self._measured.update([made] if self.is_measured(wanted) else [])
        self.absorbed[host] = absorbed
        self.absorbers.setdefault(host, []).append(join.by)
        self.joins[join.by] = join
        self.edits.append(join)

    def final(self, node: N) -> N:
        """The operator that stands for `node` now that operators are merged."""
        while node in self.merged:
            node = self.merged[node]
        return node
