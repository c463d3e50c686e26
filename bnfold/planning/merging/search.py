"""Finds linear operators that are one: sums of branches of one value, and chains.

A tree of additions is read from its root. Each of its operands is followed upstream, as long as nothing else reads what
is on the way, through per-channel affines and linear operators to the value that it is a branch of. Where that is the
same value for all of them, `bnfold.planning.merging.rule` decides whether they are one operator.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

import numpy as np

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import Factor, Linear, Window
from bnfold.graph.ops import Average, ChannelAffine, Concat, Identity, Sum
from bnfold.graph.outcome import Stop
from bnfold.graph.protocol import N, V
from bnfold.planning.merging.rule import Branch, chain, merge, per_channel, stack, stays
from bnfold.planning.plan import Bypass, Draft, Join, Move, Renew, Walk

BRANCH_LIMIT = 64
"""Operands that one tree of additions may have."""

Step = Affine | float
"""What lies between an operand and the sum: per-channel affines, and the sign of a subtraction."""


@dataclass(eq=False)
class _Stage(Generic[N]):
    """A linear operator or an average on a branch, and the per-channel affines behind it, the last one first."""

    node: N
    op: Linear | Window
    behind: list[Step]


@dataclass(eq=False)
class _Leaf(Generic[N, V]):
    """One operand of a tree of additions.

    Attributes:
        value: what it is a branch of.
        reader: the node that reads it.
        stages: against the data; empty for a per-channel map of the value.
        front: per-channel affines between the value and the first stage (or all, where there is none), last one first.
        sums: the additions on the way to the root.
        nodes: all nodes on the way to the next addition.
    """

    value: V
    reader: N
    front: list[Step]
    sums: tuple[N, ...]
    stages: list[_Stage[N]] = field(default_factory=list)
    nodes: list[N] = field(default_factory=list)


@dataclass(eq=False)
class _Tree(Generic[N, V]):
    """A tree of additions.

    Attributes:
        root: the last addition.
        leaves: all operands.
        constants: the maps behind inner sums, whose shifts are added once.
        sums: all additions, each before those it adds up.
        between: nodes behind inner sums, with the additions behind them.
        operands: of each addition, operands and inner additions in order.
    """

    root: N
    leaves: list[_Leaf[N, V]] = field(default_factory=list)
    constants: list[tuple[Step, ...]] = field(default_factory=list)
    sums: list[N] = field(default_factory=list)
    between: list[tuple[N, tuple[N, ...]]] = field(default_factory=list)
    operands: dict[N, list[_Leaf[N, V] | N]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Found(Generic[N, V]):
    """A merge that is possible."""

    join: Join[N]
    absorbed: Linear
    taken: dict[N, tuple[str, tuple[N, ...]]]  # per-channel affines, in which direction and through which sums
    branches: tuple[str, ...]
    sums: tuple[N, ...]
    bypassed: tuple[Bypass[N], ...] = ()  # additions that have one operand left
    changed: tuple[V, ...] = ()  # values that stay, but hold something else


class Merges(Generic[N, V]):
    """All merges of a draft.

    Attributes:
        sums: of each merge, the additions that vanish, by what it is known by.
        branches: of each merge, the names of what vanishes.
    """

    def __init__(self, draft: Draft[N, V], selected: Callable[[N], bool], barred: Container[N]) -> None:
        self._draft = draft
        self._selected = selected
        self._barred = barred
        self.sums: dict[N, tuple[N, ...]] = {}
        self.branches: dict[N, tuple[str, ...]] = {}

    def add_sums(self, moves: dict[N, Move[N, V]]) -> None:
        """Commit every sum of branches that is one operator, the largest first; then parts of sums."""
        for find in (self._find_sum, self._find_part):
            for node in reversed(self._draft.position):
                if self._is_sum(node):
                    self._commit(find(node), moves)

    def add_stacks(self, moves: dict[N, Move[N, V]]) -> None:
        """Commit every concatenation of nothing but operators of one value that is one operator."""
        for node in self._draft.position:
            if node not in self._draft.merged and isinstance(self._draft.op(node), Concat):
                self._commit(self._find_stack(node), moves)

    def _is_sum(self, node: N) -> bool:
        return node not in self._draft.merged and isinstance(self._draft.op(node), Sum)

    def add_chains(self, moves: dict[N, Move[N, V]]) -> None:
        """Commit every pair of operators in a row that is one operator and costs less."""
        for node in self._draft.position:
            if node not in self._draft.merged and isinstance(self._draft.op(node), Linear):
                self._commit(self._find_chain(node), moves)

    def _commit(self, found: _Found[N, V] | None, moves: dict[N, Move[N, V]]) -> None:
        if found is None or not any(self._selected(node) for node in (found.join.by, *found.taken)):
            return
        if not self._pays_for_bias(found):
            return
        host, by = found.join.host, found.join.by
        for node, (direction, sums) in found.taken.items():
            moves[node] = Move(node, direction, Walk({host: found.absorbed}, list(sums)))
        self.sums[by], self.branches[by] = found.sums, found.branches
        self._draft.join(found.join, found.absorbed)
        self._draft.edits.extend(Renew(value) for value in found.changed)
        for edit in found.bypassed:
            self._draft.bypass(edit.node, keep_output_name=edit.keep_output_name, index=edit.index)
            self._draft.merged[edit.node] = host

    def _pays_for_bias(self, found: _Found[N, V]) -> bool:
        """Whether a bias that the merge makes is no larger than the parameters that vanish."""
        host = self._draft.op(found.join.host)
        assert isinstance(host, Linear)
        if host.has_bias or host.makes_bias or not found.absorbed.makes_bias:
            return True
        ops = [(node, self._draft.op(node)) for node in found.join.gone]
        if any(isinstance(op, Linear) and not stays(op) for _, op in ops):
            return True
        stored = [self._draft.stored(node) for node, op in ops if isinstance(op, ChannelAffine)]
        return None in stored or sum(each or 0 for each in stored) >= found.absorbed.out_channels

    def _find_chain(self, last: N) -> _Found[N, V] | None:
        draft = self._draft
        first = self._maker(draft.inputs(last)[0], last)
        if first is None or last in self._barred or not isinstance(draft.op(first), Linear):
            return None
        found = chain(draft.factor(first), draft.factor(last))
        if not isinstance(found, tuple):
            return None
        absorbed, is_last = found
        host, gone = (last, first) if is_last else (first, last)
        return _Found(Join(host, first, last, (gone,), last), absorbed, {}, (draft.graph.name(gone),), ())

    def _find_stack(self, root: N) -> _Found[N, V] | None:
        """Operators of one value with equal windows that are only concatenated."""
        draft = self._draft
        values = draft.inputs(root)
        makers = [maker for value in values if (maker := self._maker(value, root)) is not None]
        ops = [(maker, op) for maker in makers if isinstance(op := draft.op(maker), Linear)]
        concat = draft.op(root)
        if len(ops) < len(values) or len(ops) < 2 or root in self._barred:
            return None
        if not isinstance(concat, Concat) or any(op.axis_out != concat.axis for _, op in ops):
            return None
        found = stack([draft.factor(maker) for maker in makers])
        if not isinstance(found, Linear) or len({draft.inputs(maker)[0] for maker in makers}) != 1:
            return None
        host = makers[0]
        names = tuple(draft.graph.name(maker) for maker in makers[1:])
        gone = tuple(sorted(makers[1:], key=lambda node: draft.position[node]))
        return _Found(Join(host, host, root, (*gone, root), root), found, {}, names, (root,))

    def _find_sum(self, root: N) -> _Found[N, V] | None:
        tree = None if root in self._barred else self._read_tree(root)
        if tree is None or len({leaf.value for leaf in tree.leaves}) != 1:
            return None
        hosts = [leaf for leaf in tree.leaves if len(leaf.stages) == 1 and isinstance(leaf.stages[0].op, Linear)]
        for leaf in sorted(hosts, key=_rank):
            absorbed = self._merge(tree.leaves, leaf, tree.constants)
            if isinstance(absorbed, Linear):
                return self._found(tree, leaf, absorbed)
        return None

    def _maker(self, value: V, reader: N) -> N | None:
        """The node that makes a value which `reader` alone reads, as data, once.

        Not even its shape may be read: with the merge, the value is gone, or has the channels of all.
        """
        draft = self._draft
        uses = draft.uses(value)
        maker = draft.graph.producer(value)
        if maker is None or len(uses) != 1 or uses[0][0] != reader or uses[0][1] < 0 or draft.is_measured(value):
            return None
        return maker if draft.graph.scope(maker) == draft.graph.scope(reader) else None

    def _read_tree(self, root: N) -> _Tree[N, V] | None:
        """All operands of a tree of additions; None where there are too many."""
        tree: _Tree[N, V] = _Tree(root)
        stack: list[tuple[N, list[Step], tuple[N, ...]]] = [(root, [], ())]
        while stack:
            node, path, sums = stack.pop()
            op = self._draft.op(node)
            assert isinstance(op, Sum)
            tree.sums.append(node)
            if any(isinstance(step, Affine) for step in path):
                tree.constants.append(tuple(path))
            path = [step.with_shift(np.zeros(step.size)) if isinstance(step, Affine) else step for step in path]
            tree.operands[node] = []
            for value, sign in zip(self._draft.inputs(node), op.signs, strict=True):
                leaf = _Leaf(value, node, [*path, float(sign)], (*sums, node))
                end = self._follow(leaf)
                tree.operands[node].append(leaf if end is None else end)
                if end is None:
                    tree.leaves.append(leaf)
                else:
                    tree.between.extend((each, (*sums, node)) for each in leaf.nodes)
                    stack.append((end, leaf.front, leaf.sums))
                if len(tree.leaves) + len(stack) > BRANCH_LIMIT:
                    return None
        return tree

    def _follow(self, leaf: _Leaf[N, V]) -> N | None:
        """Walk an operand upstream to the value that it is a branch of; or to the next addition, which is returned."""
        while (node := self._maker(leaf.value, leaf.reader)) is not None:
            op = self._draft.op(node)
            if isinstance(op, Sum) and not leaf.stages:
                return node
            if isinstance(op, ChannelAffine) and node not in self._barred and self._selected(node):
                leaf.front.append(self._draft.affine(node))
            elif isinstance(op, Linear) and self._fits(leaf, op.window):
                leaf.stages.append(_Stage(node, op, leaf.front))
                leaf.front = []
            elif isinstance(op, Average) and self._fits(leaf, op.window):
                assert op.window is not None
                leaf.stages.append(_Stage(node, op.window, leaf.front))
                leaf.front = []
            elif not isinstance(op, Identity) or op.is_widening:
                return None
            leaf.nodes.append(node)
            leaf.reader, leaf.value = node, self._draft.inputs(node)[0]
        return None

    def _fits(self, leaf: _Leaf[N, V], window: Window | None) -> bool:
        """Whether a further stage leaves the branch one window."""
        windows = [stage.op if isinstance(stage.op, Window) else stage.op.window for stage in leaf.stages]
        return window is not None and (window.is_point or all(each and each.is_point for each in windows))

    def _find_part(self, root: N) -> _Found[N, V] | None:
        """The first operands of one value that become one operator, while the rest of the tree stays."""
        tree = None if root in self._barred else self._read_tree(root)
        if tree is None or tree.between or not all(_is_even(self._draft.op(node)) for node in tree.sums):
            return None
        hosts = [leaf for leaf in tree.leaves if len(leaf.stages) == 1 and isinstance(leaf.stages[0].op, Linear)]
        for host in sorted(hosts, key=_rank):
            chosen: list[_Leaf[N, V]] = []
            absorbed: Linear | None = None
            for leaf in tree.leaves:
                if leaf is host or leaf.value != host.value:
                    continue
                merged = self._merge([*chosen, leaf], host, (), _sign(host))
                if isinstance(merged, Linear) and self._cut(tree, [*chosen, leaf], host) is not None:
                    chosen, absorbed = [*chosen, leaf], merged
            if absorbed is not None:
                return self._found_part(tree, chosen, host, absorbed)
        return None

    def _cut(
        self, tree: _Tree[N, V], chosen: list[_Leaf[N, V]], host: _Leaf[N, V]
    ) -> tuple[list[Bypass[N]], list[N], list[N]] | None:
        """The tree without the `chosen`, which the host adds: sums with one operand left, with none, and changed."""
        count: dict[N, int] = {}
        dead: list[N] = []
        bypassed: list[Bypass[N]] = []
        changed: list[N] = []
        for node in reversed(tree.sums):
            operands = tree.operands[node]
            inner = [
                count[each] if not isinstance(each, _Leaf) else each in chosen or each is host for each in operands
            ]
            count[node] = sum(inner)
            left = [k for k, each in enumerate(operands) if each not in chosen and each not in dead]
            is_whole = count[node] == len(chosen) + 1
            if not left:
                dead.append(node)
            elif len(left) == 1:
                op = self._draft.op(node)
                assert isinstance(op, Sum)
                if op.signs[left[0]] != 1:
                    return None
                bypassed.append(Bypass(node, is_whole, left[0]))
            elif len(left) < len(operands):
                return None
            elif count[node] and not is_whole:
                changed.append(node)
        return bypassed, dead, changed

    def _found_part(
        self, tree: _Tree[N, V], chosen: list[_Leaf[N, V]], host: _Leaf[N, V], absorbed: Linear
    ) -> _Found[N, V] | None:
        cut = self._cut(tree, chosen, host)
        assert cut is not None
        bypassed, dead, changed = cut
        draft = self._draft
        kept = host.stages[0].node
        gone = {*dead, *(node for leaf in [*chosen, host] for node in leaf.nodes)} - {kept}
        order = tuple(sorted(gone, key=lambda node: draft.position[node]))
        by = bypassed[0].node if bypassed else dead[0]
        values = tuple(draft.graph.outputs(node)[0] for node in [kept, *changed])
        sums = tuple(sorted({*dead, *(edit.node for edit in bypassed)}, key=lambda node: draft.position[node]))
        names = tuple(name for leaf in chosen for name in self._names(leaf))
        join = Join(kept, host.reader, host.nodes[0], order, by)
        if by in self._barred:
            return None
        taken = self._taken(chosen, host)
        return _Found(join, absorbed, taken, names, sums, tuple(bypassed), values)

    def _merge(
        self, leaves: list[_Leaf[N, V]], host: _Leaf[N, V], constants: Sequence[tuple[Step, ...]], sign: float = 1.0
    ) -> Linear | Stop | None:
        """The host with other leaves merged into it, times a sign."""
        linear = host.stages[0].op
        assert isinstance(linear, Linear)
        own = _factors(self._draft, host, linear, sign)
        branches = [_factors(self._draft, leaf, linear, sign) for leaf in leaves if leaf is not host]
        constant = _constant(constants, linear)
        if own is None or constant is None:
            return None
        made = [Branch(tuple(factors)) for factors in branches if factors is not None]
        return merge(own[0], made, constant) if len(made) == len(branches) else None

    def _found(self, tree: _Tree[N, V], host: _Leaf[N, V], absorbed: Linear) -> _Found[N, V]:
        draft = self._draft
        kept = host.stages[0].node
        between = {node: ("upstream", sums) for node, sums in tree.between if self._is_affine(node)}
        taken = self._taken(tree.leaves, host) | between
        gone = {*tree.sums, *(node for node, _ in tree.between), *(node for leaf in tree.leaves for node in leaf.nodes)}
        order = sorted(gone - {kept}, key=lambda node: draft.position[node])
        names = tuple(name for leaf in tree.leaves if leaf is not host for name in self._names(leaf))
        sums = tuple(sorted(tree.sums, key=lambda node: draft.position[node]))
        return _Found(Join(kept, host.reader, tree.root, tuple(order), tree.root), absorbed, taken, names, sums)

    def _taken(self, leaves: list[_Leaf[N, V]], host: _Leaf[N, V]) -> dict[N, tuple[str, tuple[N, ...]]]:
        """The per-channel affines of some leaves and the host: in which direction they go, and through which sums."""
        taken: dict[N, tuple[str, tuple[N, ...]]]
        taken = {node: ("downstream", leaf.sums) for leaf in leaves for node in leaf.nodes}
        place = host.nodes.index(host.stages[0].node)
        taken |= dict.fromkeys(host.nodes[:place], ("upstream", ())) | dict.fromkeys(
            host.nodes[place:], ("downstream", ())
        )
        return {node: how for node, how in taken.items() if self._is_affine(node)}

    def _is_affine(self, node: N) -> bool:
        return isinstance(self._draft.op(node), ChannelAffine)

    def _names(self, leaf: _Leaf[N, V]) -> Iterator[str]:
        """The operators that a branch consists of, in the order of the data."""
        named = [stage.node for stage in leaf.stages] or [node for node in leaf.nodes if self._is_affine(node)]
        yield from (self._draft.graph.name(node) for node in reversed(named)) if named else ("identity",)


def _rank(leaf: _Leaf[N, V]) -> tuple[int, int, bool]:
    """The largest window first, then the most connections, then the one that has a bias."""
    linear = leaf.stages[0].op
    assert isinstance(linear, Linear)
    size = 1
    for taps in linear.window.taps if linear.window else ():
        size *= taps
    return -size, linear.groups, not linear.has_bias_slot


def _fit(step: Step, size: int, axis: int) -> Affine | None:
    """A step on `size` channels of `axis`; one that is the same everywhere lies on any axis."""
    if isinstance(step, float):
        return Affine.of(np.full(size, step), 0.0, axis)
    if (step.size, step.axis) == (size, axis):
        return step
    if step.size and np.all(step.scale == step.scale[0]) and np.all(step.shift == step.shift[0]):
        return step.take(np.zeros(size, np.intp)).along(axis)
    return None


def _compose(steps: list[Step] | tuple[Step, ...], size: int, axis: int) -> Affine | None:
    """The steps, the last one first, as one map; None where one does not fit."""
    total = Affine.identity(size, axis)
    for step in steps:
        fitted = _fit(step, size, axis)
        if fitted is None:
            return None
        total = total.after(fitted)
    return total if total.is_finite else None


def _sign(leaf: _Leaf[N, V]) -> float:
    """The sign with which a leaf without maps behind its sums is added."""
    sign = 1.0
    for step in leaf.stages[0].behind[: len(leaf.sums)]:
        assert isinstance(step, float)
        sign *= step
    return sign


def _is_even(op: object) -> bool:
    """Whether all operands of a sum are known to have one shape: none is broadcast then, however they are grouped."""
    if not isinstance(op, Sum) or op.shapes[0] is None or None in op.shapes[0]:
        return False
    return all(shape == op.shapes[0] for shape in op.shapes)


def _constant(constants: Sequence[tuple[Step, ...]], host: Linear) -> Array | None:
    assert host.axis_out is not None
    total = np.zeros(host.out_channels)
    for steps in constants:
        affine = _compose(steps, host.out_channels, host.axis_out)
        if affine is None:
            return None
        total = total + affine.shift
    return total


def _factors(draft: Draft[N, V], leaf: _Leaf[N, V], host: Linear, sign: float) -> list[Factor] | None:
    """A branch times a sign as operators in the order of the data, with its affines; None where one does not fit."""
    assert host.axis_out is not None
    assert host.window is not None
    axis, size = host.axis_out, host.out_channels
    stages: list[tuple[N | None, Linear | Window, list[Step]]]
    stages = [(stage.node, stage.op, stage.behind) for stage in leaf.stages]
    front: list[Step] = leaf.front
    if not stages:
        stages, front = [(None, Window.point(len(host.window.taps)), leaf.front)], []
    factors: list[Factor] = []
    stages[0] = (*stages[0][:2], [sign, *stages[0][2]])
    for index, (node, op, behind) in enumerate(stages, start=1):
        maps = behind + front if index == len(stages) else behind
        has_maps = any(isinstance(step, Affine) for step in maps)
        factor = _factor(draft, node, op, size, axis, has_maps=has_maps)
        if factor.linear.axis_out is None or factor.linear.axis_in is None:
            return None
        after = _compose(behind, factor.linear.out_channels, factor.linear.axis_out)
        if after is None:
            return None
        factors.append(_absorb(factor, after))
        size, axis = factor.linear.in_channels, factor.linear.axis_in
    before = _compose(front, size, axis)
    if before is None:
        return None
    if front:
        factors[-1] = factors[-1].absorb_input(before)
    return factors[::-1]


def _factor(draft: Draft[N, V], node: N | None, op: Linear | Window, size: int, axis: int, *, has_maps: bool) -> Factor:
    """A stage; one with maps around it would get a kernel of its own without a merge too."""
    if isinstance(op, Linear):
        assert node is not None
        return replace(draft.factor(node), stays=stays(op) and not has_maps)
    return Factor(per_channel(op, size, axis), None, 1.0 / max(1, int(np.prod(op.taps))))


def _absorb(factor: Factor, after: Affine) -> Factor:
    """With a map behind it, unless that changes nothing."""
    if not after.has_shift and np.all(after.scale == 1):
        return factor
    return factor.absorb_output(after)
