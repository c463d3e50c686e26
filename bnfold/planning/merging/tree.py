"""Reads a tree of additions: its operands, each followed upstream to the value that it is a branch of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear, Window
from bnfold.graph.ops import Average, Identity, Sum
from bnfold.graph.protocol import N, V
from bnfold.planning.draft import Draft

BRANCH_LIMIT = 64
"""The most operands of one tree of additions."""

Step = Affine | float
"""The path between an operand and the sum: per-channel affines, and the signs of subtractions."""


@dataclass(eq=False)
class Stage(Generic[N]):
    """A linear operator or an average on a branch, and the per-channel affines behind it, the last one first."""

    node: N
    op: Linear | Window
    behind: list[Step]


@dataclass(eq=False)
class Leaf(Generic[N, V]):
    """One operand of a tree of additions.

    Attributes:
        value: the value that it is a branch of.
        reader: the node that reads it.
        stages: its operators, against the data; empty for a per-channel map of the value.
        front: per-channel affines between the value and the first stage (or all, where there is none), last one first.
        sums: the additions on the way to the root.
        nodes: all nodes on the way to the next addition.
    """

    value: V
    reader: N
    front: list[Step]
    sums: tuple[N, ...]
    stages: list[Stage[N]] = field(default_factory=list)
    nodes: list[N] = field(default_factory=list)


@dataclass(eq=False)
class Tree(Generic[N, V]):
    """A tree of additions.

    Attributes:
        root: the last addition.
        leaves: all operands.
        constants: the maps behind inner sums, whose shifts are added once.
        sums: all additions, each before those it adds up.
        between: nodes behind inner sums, with the additions behind them.
        operands: for each addition, its operands and inner additions in order.
    """

    root: N
    leaves: list[Leaf[N, V]] = field(default_factory=list)
    constants: list[tuple[Step, ...]] = field(default_factory=list)
    sums: list[N] = field(default_factory=list)
    between: list[tuple[N, tuple[N, ...]]] = field(default_factory=list)
    operands: dict[N, list[Leaf[N, V] | N]] = field(default_factory=dict)


def read_tree(draft: Draft[N, V], root: N) -> Tree[N, V] | None:
    """Read all operands of a tree of additions; None where there are too many."""
    tree: Tree[N, V] = Tree(root)
    stack: list[tuple[N, list[Step], tuple[N, ...]]] = [(root, [], ())]
    while stack:
        node, path, sums = stack.pop()
        op = draft.op(node)
        assert isinstance(op, Sum)
        tree.sums.append(node)
        if any(isinstance(step, Affine) for step in path):
            tree.constants.append(tuple(path))
        path = [step.with_shift(np.zeros(step.size)) if isinstance(step, Affine) else step for step in path]
        tree.operands[node] = []
        for value, sign in zip(draft.inputs(node), op.signs, strict=True):
            leaf = Leaf(value, node, [*path, float(sign)], (*sums, node))
            end = _follow(draft, leaf)
            tree.operands[node].append(leaf if end is None else end)
            if end is None:
                tree.leaves.append(leaf)
            else:
                tree.between.extend((between, (*sums, node)) for between in leaf.nodes)
                stack.append((end, leaf.front, leaf.sums))
            if len(tree.leaves) + len(stack) > BRANCH_LIMIT:
                return None
    return tree


def _follow(draft: Draft[N, V], leaf: Leaf[N, V]) -> N | None:
    """Walk an operand upstream to the value that it is a branch of; or to the next addition, which is returned."""
    while (node := only_maker(draft, leaf.value, leaf.reader)) is not None:
        op = draft.op(node)
        if isinstance(op, Sum) and not leaf.stages and not op.pending:
            return node
        if node in draft.candidates:
            leaf.front.append(draft.affine(node))
        elif isinstance(op, Linear | Average) and op.window is not None and _fits(leaf, op.window):
            leaf.stages.append(Stage(node, op if isinstance(op, Linear) else op.window, leaf.front))
            leaf.front = []
        elif not isinstance(op, Identity) or op.is_widening:
            return None
        leaf.nodes.append(node)
        leaf.reader, leaf.value = node, draft.inputs(node)[0]
    return None


def only_maker(draft: Draft[N, V], value: V, reader: N) -> N | None:
    """The node that makes a value, if `reader` alone reads that value, as data and once.

    Nothing else may even read its shape. After the merge, the value is gone, or has the channels of all.
    """
    uses = draft.uses(value)
    maker = draft.graph.producer(value)
    if maker is None or len(uses) != 1 or uses[0][0] != reader or uses[0][1] < 0 or draft.is_measured(value):
        return None
    return maker if draft.graph.scope(maker) == draft.graph.scope(reader) else None


def _fits(leaf: Leaf[N, V], window: Window) -> bool:
    """Whether a further stage leaves the branch one window."""
    windows = [stage.op if isinstance(stage.op, Window) else stage.op.window for stage in leaf.stages]
    return window.is_point or all(other and other.is_point for other in windows)
