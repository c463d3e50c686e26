"""The one view that planner and folder have of a graph, whatever it is made of."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.algebra.rounding import Rounding
from bnfold.graph.ops import Absorbed, Lowered, Op, Operands

N = TypeVar("N", bound=Hashable)
V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant of a graph, stored or computed from others; one object for all its readers.

    Attributes:
        readings: how often it is read.
        sources: what it is computed from, as often as that takes. Once nothing reads the constant, it is removed, and
            these readings end.
    """

    readings: int
    sources: tuple[Constant, ...] = ()


class Graph(Protocol[N, V]):
    """Questions about, and few edits of, a graph whose nodes and values stay native objects.

    Nodes come in topological order. A use is an *edge*: ``concat(y, y)`` uses `y` twice.

    Attributes:
        can_lower: whether this front end writes BatchNorms as other operators.
    """

    can_lower: bool

    def nodes(self) -> Iterable[N]:
        """All nodes of all scopes, each after what it reads."""
        ...

    def op(self, node: N) -> Op:
        """What the node does, made on demand from its attributes and constants."""
        ...

    def name(self, node: N) -> str:
        """The node's name, for people."""
        ...

    def scope(self, node: N) -> str:
        """The graph that holds the node: "main", or a path of nodes and bodies."""
        ...

    def inputs(self, node: N) -> Sequence[V]:
        """The data inputs only, not weights."""
        ...

    def outputs(self, node: N) -> Sequence[V]:
        """The outputs that are data of the same kind, in order; no masks, indices or states."""
        ...

    def producer(self, value: V) -> N | None:
        """The node that makes the value; None for graph inputs and constants."""
        ...

    def uses(self, value: V) -> Sequence[tuple[N | None, int]]:
        """Each reader with its index among ``inputs(reader)``; -1 for a reading as anything but data.

        A value that leaves its graph has a use by nobody, ``(None, -1)``.
        """
        ...

    def is_measured(self, value: V) -> bool:
        """Whether something reads the value's shape or type alone: no use, but these have to stay."""
        ...

    def constants(self, node: N) -> tuple[Sequence[Constant], Sequence[Constant]]:
        """The constants that a node reads: those that `write` replaces (kernel, bias; gamma, beta), and the others."""
        ...

    def round(self, node: N, absorbed: Absorbed) -> Rounding:
        """What storing the solved parameters in their types would do; reads one kernel, changes nothing.

        Where ``absorbed.terms`` is not empty, `bnfold.algebra.terms` makes kernel and bias of those of other nodes.
        """
        ...

    def makes_bias(self, node: N, absorbed: Linear) -> bool:
        """Whether `write` would store a bias that is not all zeros; reads a kernel where a shift goes through it."""
        ...

    def write(self, node: N, absorbed: Linear | Affine) -> None:
        """Give a linear operator or a BatchNorm fresh parameters; those it had are never overwritten in place."""
        ...

    def write_operands(self, node: N, absorbed: Operands) -> None:
        """Give a node fresh constants in place of those that it reads as data."""
        ...

    def round_lowered(self, node: N, lowered: Lowered) -> Rounding | None:
        """What storing the parameters of a BatchNorm as other operators does; None where it cannot be written so."""
        ...

    def lower(self, node: N, lowered: Lowered) -> None:
        """Write a BatchNorm as other operators, whose result has its name."""
        ...

    def bypass(self, node: N, *, keep_output_name: bool, index: int = 0) -> None:
        """Remove a node: its readers read its input `index`, which takes over its output's name or keeps its own.

        Of a sum, what makes the other operands is read no more, but stays until it is removed.
        """
        ...

    def renew(self, value: V) -> None:
        """Give the value a fresh name, because it no longer holds what its name stood for."""
        ...

    def join(self, host: N, source: N, root: N) -> None:
        """Let a linear operator stand for others: it reads what `source` reads, and its output becomes that of `root`.

        The output takes over the name of root's output, and its readers. What lies between is read no more, but stays
        until it is removed: `write` reads its parameters. `source` and `root` may be the host itself.
        """
        ...

    def remove(self, node: N) -> None:
        """Take out a node whose output nothing reads, with the parameters that only it read."""
        ...
