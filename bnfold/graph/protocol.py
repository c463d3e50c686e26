"""The only view that planner and folder have of a graph, in either front end."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.algebra.rounding import Rounding
from bnfold.graph.ops import Absorbed, Form, Lowered, Op, Operands

N = TypeVar("N", bound=Hashable)
V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True, eq=False, slots=True)
class Constant:
    """A constant of a graph, stored or computed from others; one object for all its readers.

    Stored ones that are read once may all be one object, since nothing ever depends on which of them it is.

    Attributes:
        readings: how often it is read.
        sources: the constants that it is computed from, each as often as it is read for that. Once nothing reads this
            constant, it is removed, and those readings end.
    """

    readings: int
    sources: tuple[Constant, ...] = ()


class Graph(Protocol[N, V]):
    """A graph: questions about it, and a few edits. Its nodes and values stay native objects.

    Nodes come in topological order. A use is an *edge*: ``concat(y, y)`` uses `y` twice.

    Attributes:
        can_lower: whether this front end writes BatchNorms as other operators.
    """

    can_lower: bool

    def nodes(self) -> Iterable[N]:
        """All nodes of all scopes, each after what it reads."""
        ...

    def op(self, node: N) -> Op:
        """The description of a node, made on demand from its attributes and constants."""
        ...

    def name(self, node: N) -> str:
        """The node's name, for people."""
        ...

    def scope(self, node: N) -> str:
        """The graph that holds the node: "main", or a path of nodes and bodies."""
        ...

    def inputs(self, node: N) -> Sequence[V]:
        """The data inputs of a node, without weights."""
        ...

    def outputs(self, node: N) -> Sequence[V]:
        """The outputs that are data of the same kind, in order, without masks, indices and states."""
        ...

    def producer(self, value: V) -> N | None:
        """The node that makes the value; None for graph inputs and constants."""
        ...

    def uses(self, value: V) -> Sequence[tuple[N | None, int]]:
        """The readers of a value, each with its index among ``inputs(reader)``; -1 for a reading as anything but data.

        A value that leaves its graph has the use ``(None, -1)``.
        """
        ...

    def is_measured(self, value: V) -> bool:
        """Whether something reads only the shape or type of a value. That is no use, but both have to stay."""
        ...

    def elements(self, value: V) -> int | None:
        """How many elements one sample of a value has, by its declared sizes; None where they do not tell.

        It is for people: no decision depends on it.
        """
        ...

    def constants(self, node: N) -> tuple[Sequence[Constant], Sequence[Constant]]:
        """The constants that a node reads: those that `write` replaces (kernel, bias; gamma, beta), and the others."""
        ...

    def round(self, node: N, absorbed: Absorbed) -> Rounding:
        """Measure the rounding of solved parameters to their types; reads one kernel, changes nothing.

        Where ``absorbed.terms`` is not empty, `bnfold.algebra.terms` makes kernel and bias from those of other nodes.
        """
        ...

    def makes_bias(self, node: N, absorbed: Linear) -> bool:
        """Whether `write` would store a bias that is not all zeros; reads a kernel where a shift goes through it."""
        ...

    def signature(self, node: N) -> Hashable | None:
        """What a linear operator or a BatchNorm is but for its data: equal ones read the same stored parameters.

        None where that is not known, or where several of them could not read the same new ones.
        """
        ...

    def write(self, node: N, absorbed: Linear | Affine, twins: Sequence[N] = ()) -> None:
        """Give a linear operator or a BatchNorm new parameters. The old ones are never overwritten in place.

        Its `twins`, with the same `signature`, read the new ones as well.
        """
        ...

    def write_operands(self, node: N, absorbed: Operands) -> None:
        """Give a node new constants in place of those that it reads as data."""
        ...

    def find_form(self, node: N, form: Form) -> Form | str:
        """The form in which a BatchNorm can be written, if it can the one that is wished for; or why in none."""
        ...

    def round_lowered(self, node: N, lowered: Lowered) -> Rounding:
        """Measure the rounding of a BatchNorm written as other operators, in a form that `find_form` gave."""
        ...

    def lower(self, node: N, lowered: Lowered) -> None:
        """Write a BatchNorm as other operators. Their result has its name."""
        ...

    def settle(self, node: N) -> None:
        """Put the constant that a BatchNorm makes in its place, under the same name, unless nothing reads it now."""
        ...

    def bypass(self, node: N, *, keep_output_name: bool, index: int = 0) -> None:
        """Remove a node: its readers read its input `index`, which takes over its output's name or keeps its own.

        The nodes that make the other operands of a sum are then not read, but stay until they are removed.
        """
        ...

    def renew(self, value: V) -> None:
        """Give the value a new name, since it no longer holds what its name stood for."""
        ...

    def join(self, host: N, source: N, root: N) -> None:
        """Let a linear operator stand for others: it reads what `source` reads, and its output becomes that of `root`.

        The output takes over the name and the readers of root's output. The nodes between are then not read, but stay
        until they are removed, since `write` reads their parameters. `source` and `root` may be the host itself.
        """
        ...

    def remove(self, node: N) -> None:
        """Remove a node whose output nothing reads, with the parameters that only it read."""
        ...
