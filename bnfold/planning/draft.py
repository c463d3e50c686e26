"""The plan in the making, and the graph as it will be afterwards."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from typing import Generic

import numpy as np

from bnfold.algebra.affine import Affine, narrowest
from bnfold.algebra.linear import Factor, Linear
from bnfold.algebra.masks import has_all
from bnfold.graph.ops import Absorbed, ChannelAffine, Lookup, Op, Operands, Select, Sum
from bnfold.graph.protocol import Constant, Graph, N, V
from bnfold.planning.plan import Blocked, Direction, Join, Step


class Draft(Generic[N, V]):
    """The steps decided so far, and the graph as it will be once they are taken.

    Attributes:
        graph: the graph as it is.
        position: all nodes, each with its place in the order of the data.
        selected: whether the candidate of that name may fold.
        barred: nodes that a step must not begin with, since a weight would not survive it.
        biases: additions that stay, each as the bias of the operator in front of it, which takes none.
        grounded: candidates that must not go downstream.
        whole: BatchNorms whose scale must not go without their shift.
        candidates: per-channel affines that may fold.
        kinds: all nodes by the class of their description, which absorbing does not change.
        steps: what moves and what merges, in order.
        blocked: why a candidate stayed, the last time that it tried a direction.
        absorbed: operators with their pending affines.
        gone: nodes that leave the graph.
    """

    def __init__(
        self,
        graph: Graph[N, V],
        selected: Callable[[str], bool] = lambda name: True,
        barred: Mapping[N, Blocked[N]] | None = None,
        biases: Container[N] = (),
        grounded: Mapping[N, Blocked[N]] | None = None,
        whole: Container[N] = (),
    ) -> None:
        self.graph = graph
        self.position: dict[N, int] = {node: index for index, node in enumerate(graph.nodes())}
        self.selected = selected
        self.barred = barred or {}
        self.biases = biases
        self.grounded = grounded or {}
        self.whole = whole
        self.steps: list[Step[N, V]] = []
        self.blocked: dict[tuple[N, Direction], Blocked[N]] = {}
        self.absorbed: dict[N, Absorbed] = {}
        self.gone: set[N] = set()
        self._moved: set[N] = set()  # BatchNorms that stay, with other statistics
        self._ops: dict[N, Op] = {}
        self._root: dict[V, V] = {}
        self._uses: dict[V, list[tuple[N | None, int]]] = {}
        self._measured: set[V] = set()
        self._flattened: dict[V, N] = {}
        self._readings: dict[Constant, int] = {}
        self._unbiased: dict[Linear, bool] = {}
        self.kinds: dict[type[Op], list[N]] = {}
        for node in self.position:
            self.kinds.setdefault(type(self.op(node)), []).append(node)
        affines = self.kinds.get(ChannelAffine, ())
        self.candidates = frozenset(node for node in affines if self._is_free(node) and self.is_selected(node))

    def _is_free(self, node: N) -> bool:
        return node not in self.barred and node not in self.biases

    def is_selected(self, node: N) -> bool:
        """Whether the caller lets a node fold."""
        return self.selected(self.graph.name(node))

    def in_order(self, nodes: Iterable[N]) -> tuple[N, ...]:
        """Nodes in the order of the data."""
        return tuple(sorted(nodes, key=lambda node: self.position[node]))

    def add(self, step: Step[N, V]) -> None:
        """Take a step."""
        if isinstance(step, Join):
            self._join(step)
            for addition in step.bypassed:
                self._bypass(addition.node, addition.index)
        else:
            self._absorb(step.sinks)
            for node in step.vanishing:
                self._bypass(node, 0)
            if step.direction != "upstream":
                flattened = (value for value, affine in step.affines.items() if not has_all(affine.scale))
                self._flattened.update(dict.fromkeys(flattened, step.node))
        self.steps.append(step)

    def op(self, node: N) -> Op:
        """The node's description, with the affines that it has absorbed."""
        absorbed = self.absorbed.get(node)
        if isinstance(absorbed, Linear):
            return absorbed
        if (op := self._ops.get(node)) is None:
            op = self._ops[node] = self.graph.op(node)
        if isinstance(absorbed, Operands) and isinstance(op, Sum | Select | Lookup):
            return replace(op, pending=absorbed.affines)
        if isinstance(op, Linear) and op.is_shared and not self._shares(node, op):
            op = self._ops[node] = replace(op, is_shared=False)
        return replace(op, affine=absorbed) if isinstance(absorbed, Affine) and isinstance(op, ChannelAffine) else op

    def affine(self, node: N) -> Affine:
        """A per-channel affine, with known or assumed statistics of its input."""
        op = self.op(node)
        assert isinstance(op, ChannelAffine)
        if op.is_batchnorm:
            return op.affine
        return op.affine.with_statistics(narrowest(op.affine, self._affines_behind(node)))

    def _affines_behind(self, node: N) -> list[Affine]:
        """The per-channel affines that read a node's output in the graph as it is."""
        (output,) = self.graph.outputs(node)
        readers = {reader for reader, index in self.graph.uses(output) if reader is not None and index >= 0}
        return [op.affine for reader in readers if isinstance(op := self.graph.op(reader), ChannelAffine)]

    def _shares(self, node: N, op: Linear) -> bool:
        """Whether something else will read the kernel, or a bias that is not all zeros."""
        replaced, _ = self.graph.constants(node)
        return any(self._is_shared(weight) for weight in replaced[: 1 + op.has_bias])

    def factor(self, node: N) -> Factor:
        """A linear operator as a part of the one that it merges into."""
        linear = self.op(node)
        assert isinstance(linear, Linear)
        return Factor(linear, node, is_unbiased=self._is_unbiased(node))

    def _is_unbiased(self, node: N) -> bool:
        """Whether everything that an operator adds to its output is zero, though it absorbed shifts."""
        absorbed = self.absorbed.get(node)
        if not isinstance(absorbed, Linear):
            return False
        if absorbed not in self._unbiased:
            self._unbiased[absorbed] = not self.graph.makes_bias(node, absorbed)
        return self._unbiased[absorbed]

    def stored(self, node: N) -> int | None:
        """The elements of an affine's constants that nothing else will read; None for at least one for each channel."""
        op = self.op(node)
        assert isinstance(op, ChannelAffine)
        if op.stored is None:
            return None
        replaced, others = self.graph.constants(node)
        constants = zip(op.stored, [*replaced, *others], strict=True)
        alone = [size for size, constant in constants if not self._is_shared(constant)]
        return None if op.affine.size in alone else sum(alone)

    def _is_shared(self, constant: Constant) -> bool:
        """Whether a constant, or another that it is computed from, will have a second reader."""
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
            if read.readings == 1 and not read.sources:  # so that nothing else can ever have read it
                continue
            self._readings[read] = self._readings.get(read, read.readings) - 1
            if not self._readings[read]:
                stack.extend(read.sources)

    def _absorb(self, sinks: Mapping[N, Absorbed]) -> None:
        for node, absorbed in sinks.items():
            replaced, others = self.graph.constants(node)
            if node not in self.absorbed:
                self._release(replaced)
            if node not in self._moved and self._moves_statistics(node, absorbed):
                self._moved.add(node)
                self._release(others)
            self.absorbed[node] = absorbed

    def _moves_statistics(self, node: N, absorbed: Absorbed) -> bool:
        """Whether a BatchNorm that stays gets another running mean and variance."""
        op = self._ops[node]
        if not isinstance(absorbed, Affine) or not isinstance(op, ChannelAffine):
            return False
        old, new = op.affine.statistics, absorbed.statistics
        if old is None or new is None:
            return False
        return not (np.array_equal(old.mean, new.mean) and np.array_equal(old.variance, new.variance))

    def _remove(self, node: N) -> None:
        """End all readings of a node."""
        self.gone.add(node)
        for value in self.inputs(node):
            self._uses[value] = [use for use in self.uses(value) if use[0] != node]
        replaced, others = self.graph.constants(node)
        self._release([] if node in self.absorbed else replaced)
        self._release([] if node in self._moved else others)

    def root(self, value: V) -> V:
        """The value that stands for `value` now that nodes are bypassed."""
        root = value
        while root in self._root:
            root = self._root[root]
        while value != root:
            self._root[value], value = root, self._root[value]
        return root

    def inputs(self, node: N) -> list[V]:
        """The data inputs that the node will have."""
        return [self.root(value) for value in self.graph.inputs(node)]

    def uses(self, value: V) -> list[tuple[N | None, int]]:
        """The readers that the value will have."""
        if value not in self._uses:
            self._uses[value] = list(self.graph.uses(value))
        return self._uses[value]

    def flattened_by(self, value: V) -> N | None:
        """What took a map with a scale of zero downstream through a value, which had a constant channel before."""
        return next((node for before, node in self._flattened.items() if self.root(before) == value), None)

    def is_measured(self, value: V) -> bool:
        """Whether something will read the value's shape alone."""
        return value in self._measured or self.graph.is_measured(value)

    def _bypass(self, node: N, index: int) -> None:
        """Let the readers of a node's output read one of its inputs."""
        kept, gone = self.inputs(node)[index], self.graph.outputs(node)[0]
        self._remove(node)
        self._uses[kept] = self.uses(kept) + self.uses(gone)
        self._measured.update([kept] if self.is_measured(gone) else [])
        self._root[gone] = kept

    def _join(self, join: Join[N, V]) -> None:
        """Let `join.host` stand for all operators that merge."""
        host = join.host
        output, wanted = self.graph.outputs(host)[0], self.graph.outputs(join.root)[0]
        read, data = self.inputs(host)[0], self.inputs(join.source)[0]
        readers = self.uses(wanted)
        for node in join.gone:
            self._remove(node)
        if read != data:
            self._root[read] = data
            self._uses[data] = [*self.uses(data), (host, 0)]
        if output != wanted:
            self._root[wanted] = output
            self._uses[output] = readers
            self._measured.update([output] if self.is_measured(wanted) else [])
        self._absorb(join.sinks)
