"""A plan as a value: its steps, and the outcome of each BatchNorm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Literal

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.graph.ops import Absorbed, Lowered
from bnfold.graph.outcome import Outcome, Stop
from bnfold.graph.protocol import N, V

NOTHING: Mapping[Any, Affine] = MappingProxyType({})

Direction = Literal["upstream", "downstream", "both"]


@dataclass(frozen=True, eq=False, slots=True)
class Move(Generic[N, V]):
    """A per-channel affine that goes into other operators, and leaves the graph.

    Attributes:
        node: the per-channel affine.
        direction: upstream (against the data), downstream, or both: its shift upstream and its scale downstream.
        sinks: the operators that absorb it, with what each becomes.
        through: the operators on the way.
        changed: values that hold something else afterwards.
        gain: the largest scale that goes in front of a sum or a mean, whose operands may be larger than its result.
        twins: operators like `node` that read the same value, and leave the graph with it.
        leaves_shift: whether `node` stays as an addition, since its scale alone goes into the others.
        affines: for each value that changes from `v` to `w`: upstream ``w = affine(v)``, else ``v = affine(w)``.
        shifts: for each value that shifts from `v` to ``w = v + shift``, where the candidate goes both ways.
    """

    node: N
    direction: Direction
    sinks: Mapping[N, Absorbed]
    through: tuple[N, ...]
    changed: tuple[V, ...] = ()
    gain: float = 0.0
    affines: Mapping[V, Affine] = field(default_factory=lambda: NOTHING)
    shifts: Mapping[V, Affine] = field(default_factory=lambda: NOTHING)
    twins: tuple[N, ...] = ()
    leaves_shift: bool = False

    @property
    def vanishing(self) -> tuple[N, ...]:
        """The operators that leave the graph."""
        return () if self.leaves_shift else (self.node, *self.twins)


@dataclass(frozen=True, eq=False)
class Bypass(Generic[N]):
    """An addition with one operand left: the operand of that index takes its place."""

    node: N
    keep_output_name: bool
    index: int


@dataclass(frozen=True, eq=False)
class Join(Generic[N, V]):
    """Linear operators that become one of them.

    Attributes:
        node: the node that identifies the merge: the root of a sum, an addition that vanishes from a larger one, the
            Concat of a stack, the last operator of a chain.
        host: the operator that stands for all; it reads what `source` read, and its output becomes that of `root`.
        source: the operator of the merge that reads the data; it may be the host.
        root: the operator of the merge that makes the output; it may be the host.
        gone: all other nodes that merge, each after those that it reads. Nothing else reads their outputs.
        absorbed: the operator that the host becomes.
        branches: names of the operators that vanish.
        sums: the additions that vanish.
        moves: the per-channel affines that vanish.
        bypassed: additions that have one operand left.
        changed: values that stay, but hold something else afterwards.
    """

    node: N
    host: N
    source: N
    root: N
    gone: tuple[N, ...]
    absorbed: Linear
    branches: tuple[str, ...]
    sums: tuple[N, ...] = ()
    moves: tuple[Move[N, V], ...] = ()
    bypassed: tuple[Bypass[N], ...] = ()
    changed: tuple[V, ...] = ()

    @property
    def sinks(self) -> Mapping[N, Absorbed]:
        """The host, with the operator that it becomes."""
        return {self.host: self.absorbed}


Step = Move[N, V] | Join[N, V]


@dataclass(frozen=True, eq=False, slots=True)
class Blocked(Generic[N]):
    """The reason that stops an affine, and the node at which it stops."""

    stop: Stop
    at: N


@dataclass(frozen=True, eq=False)
class Plan(Generic[N, V]):
    """The changes that would be made to a graph.

    Attributes:
        absorbed: linear operators with their pending affines, BatchNorms that stay but change, and the affines that
            go into constants which are read as data.
        steps: what moves and what merges, in order.
        outcomes: one for each BatchNorm, one for each other per-channel affine that folds, and one for each merge.
        computed: BatchNorms whose results are constants, which take their place.
        lowered: BatchNorms of which a shift is left, as the additions that take their place.
    """

    absorbed: Mapping[N, Absorbed]
    steps: tuple[Step[N, V], ...]
    outcomes: tuple[Outcome, ...]
    computed: tuple[N, ...] = ()
    lowered: Mapping[N, Lowered] = field(default_factory=dict)
