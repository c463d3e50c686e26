"""Finds linear operators that can be one: sums of branches of one value, parts of such sums, chains and stacks.

Each function looks at one node, the last one of a possible merge, and returns the merge where there is one. The
operands of a sum are read by `bnfold.planning.merging.tree`; where they are branches of one value,
`bnfold.planning.merging.rule` decides whether they are one operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod

from bnfold.algebra.linear import Linear
from bnfold.graph.ops import ChannelAffine, Concat, Op, Sum
from bnfold.graph.protocol import N, V
from bnfold.planning.draft import Draft
from bnfold.planning.merging.branches import merge_leaves
from bnfold.planning.merging.rule import chain, stack
from bnfold.planning.merging.tree import Leaf, Tree, only_maker, read_tree
from bnfold.planning.plan import Bypass, Direction, Join, Move


def find_chain(draft: Draft[N, V], last: N) -> Join[N, V] | None:
    """Find the merge of an operator with the one in front of it."""
    if not isinstance(draft.op(last), Linear):
        return None
    value = draft.inputs(last)[0]
    first = draft.graph.producer(value)
    if first is None or not isinstance(draft.op(first), Linear):
        return None
    if last in draft.barred or only_maker(draft, value, last) is None:
        return None
    product = chain(draft.factor(first), draft.factor(last))
    if not isinstance(product, tuple):
        return None
    absorbed, is_last = product
    host, gone = (last, first) if is_last else (first, last)
    return Join(last, host, first, last, (gone,), absorbed, (draft.graph.name(gone),))


def find_stack(draft: Draft[N, V], root: N) -> Join[N, V] | None:
    """Find the merge of operators with one input and equal windows that are only concatenated."""
    concat = draft.op(root)
    if not isinstance(concat, Concat):
        return None
    values = draft.inputs(root)
    makers = [maker for value in values if (maker := only_maker(draft, value, root)) is not None]
    ops = [op for maker in makers if isinstance(op := draft.op(maker), Linear)]
    if len(ops) < len(values) or len(ops) < 2 or root in draft.barred:
        return None
    if any(op.axis_out != concat.axis for op in ops):
        return None
    absorbed = stack([draft.factor(maker) for maker in makers])
    if not isinstance(absorbed, Linear) or len({draft.inputs(maker)[0] for maker in makers}) != 1:
        return None
    host, *others = makers
    names = tuple(map(draft.graph.name, others))
    return Join(root, host, host, root, (*draft.in_order(others), root), absorbed, names, sums=(root,))


def find_sum(draft: Draft[N, V], root: N) -> Join[N, V] | None:
    """Find the merge of all operands of a tree of additions."""
    tree = _tree(draft, root)
    if tree is None or len({leaf.value for leaf in tree.leaves}) != 1:
        return None
    for host in _hosts(tree):
        absorbed = merge_leaves(draft, tree.leaves, host, tree.constants)
        if isinstance(absorbed, Linear):
            return _whole(draft, tree, host, absorbed)
    return None


def find_part(draft: Draft[N, V], root: N) -> Join[N, V] | None:
    """Find the merge of some operands with one input, while the rest of the tree stays."""
    tree = _tree(draft, root)
    if tree is None or tree.between or not all(_is_even(draft.op(node)) for node in tree.sums):
        return None
    for host in _hosts(tree):
        chosen: list[Leaf[N, V]] = []
        absorbed: Linear | None = None
        for leaf in tree.leaves:
            if leaf is host or leaf.value != host.value:
                continue
            merged = merge_leaves(draft, [*chosen, leaf], host, sign=_sign(host))
            if isinstance(merged, Linear) and _cut(draft, tree, [*chosen, leaf], host) is not None:
                chosen, absorbed = [*chosen, leaf], merged
        if absorbed is not None:
            return _part(draft, tree, chosen, host, absorbed)
    return None


def _tree(draft: Draft[N, V], root: N) -> Tree[N, V] | None:
    return read_tree(draft, root) if isinstance(draft.op(root), Sum) and root not in draft.barred else None


def _hosts(tree: Tree[N, V]) -> list[Leaf[N, V]]:
    """Operands that may stand for others: the largest window first, then the most connections, then with a bias."""

    def rank(leaf: Leaf[N, V]) -> tuple[int, int, bool]:
        linear = leaf.stages[0].op
        assert isinstance(linear, Linear)
        return -prod(linear.window.taps if linear.window else ()), linear.groups, not linear.has_bias_slot

    hosts = [leaf for leaf in tree.leaves if len(leaf.stages) == 1 and isinstance(leaf.stages[0].op, Linear)]
    return sorted(hosts, key=rank)


def _whole(draft: Draft[N, V], tree: Tree[N, V], host: Leaf[N, V], absorbed: Linear) -> Join[N, V]:
    others = [leaf for leaf in tree.leaves if leaf is not host]
    gone = {*tree.sums, *(node for node, _ in tree.between)}
    join = _join(draft, host, others, absorbed, gone, tree.sums)
    inner: Iterator[Move[N, V]] = (
        Move(node, "upstream", join.sinks, sums) for node, sums in tree.between if _is_affine(draft, node)
    )
    return replace(join, root=tree.root, moves=(*inner, *join.moves))


def _part(
    draft: Draft[N, V], tree: Tree[N, V], chosen: list[Leaf[N, V]], host: Leaf[N, V], absorbed: Linear
) -> Join[N, V] | None:
    cut = _cut(draft, tree, chosen, host)
    assert cut is not None
    bypassed, dead, changed = cut
    sums = [*(addition.node for addition in bypassed), *dead]
    join = _join(draft, host, chosen, absorbed, dead, sums)
    values = tuple(draft.graph.outputs(node)[0] for node in [join.host, *changed])
    return None if join.node in draft.barred else replace(join, bypassed=tuple(bypassed), changed=values)


def _join(
    draft: Draft[N, V],
    host: Leaf[N, V],
    others: list[Leaf[N, V]],
    absorbed: Linear,
    between: Iterable[N],
    sums: Sequence[N],
) -> Join[N, V]:
    """The merge of operands into the host's operator. The additions and all nodes between them go."""
    kept = host.stages[0].node
    gone = {*between, *(node for leaf in [*others, host] for node in leaf.nodes)} - {kept}
    branches = tuple(name for leaf in others for name in _names(draft, leaf))
    moves = tuple(_moves(draft, others, host, absorbed))
    return Join(
        sums[0], kept, host.reader, host.nodes[0], draft.in_order(gone), absorbed, branches, draft.in_order(sums), moves
    )


def _cut(
    draft: Draft[N, V], tree: Tree[N, V], chosen: list[Leaf[N, V]], host: Leaf[N, V]
) -> tuple[list[Bypass[N]], list[N], list[N]] | None:
    """The tree without the `chosen`, which the host adds: sums with one operand left, with none, and changed."""
    count: dict[N, int] = {}
    dead: list[N] = []
    bypassed: list[Bypass[N]] = []
    changed: list[N] = []
    for node in reversed(tree.sums):
        operands = tree.operands[node]
        inner = [
            count[operand] if not isinstance(operand, Leaf) else operand in chosen or operand is host
            for operand in operands
        ]
        count[node] = sum(inner)
        left = [k for k, operand in enumerate(operands) if operand not in chosen and operand not in dead]
        is_whole = count[node] == len(chosen) + 1
        if not left:
            dead.append(node)
        elif len(left) == 1:
            op = draft.op(node)
            assert isinstance(op, Sum)
            if op.signs[left[0]] != 1:
                return None
            bypassed.append(Bypass(node, is_whole, left[0]))
        elif len(left) < len(operands):
            return None
        elif count[node] and not is_whole:
            changed.append(node)
    return bypassed, dead, changed


def _moves(
    draft: Draft[N, V], others: Iterable[Leaf[N, V]], host: Leaf[N, V], absorbed: Linear
) -> Iterator[Move[N, V]]:
    """The per-channel affines of branches: those behind the host's operator go upstream, all others downstream."""
    kept = host.stages[0].node
    place = host.nodes.index(kept)
    ways: list[tuple[N, Direction, tuple[N, ...]]] = [
        *((node, "downstream", leaf.sums) for leaf in others for node in leaf.nodes),
        *((node, "upstream", ()) for node in host.nodes[:place]),
        *((node, "downstream", ()) for node in host.nodes[place:]),
    ]
    for node, direction, sums in ways:
        if _is_affine(draft, node):
            yield Move(node, direction, {kept: absorbed}, sums)


def _is_affine(draft: Draft[N, V], node: N) -> bool:
    return isinstance(draft.op(node), ChannelAffine)


def _names(draft: Draft[N, V], leaf: Leaf[N, V]) -> list[str]:
    """The operators that a branch consists of, in the order of the data."""
    nodes = [stage.node for stage in leaf.stages] or [node for node in leaf.nodes if _is_affine(draft, node)]
    return [draft.graph.name(node) for node in reversed(nodes)] or ["identity"]


def _sign(leaf: Leaf[N, V]) -> float:
    """The sign with which a leaf without maps behind its sums is added."""
    sign = 1.0
    for step in leaf.stages[0].behind[: len(leaf.sums)]:
        assert isinstance(step, float)
        sign *= step
    return sign


def _is_even(op: Op) -> bool:
    """Whether all operands of a sum are known to have one shape: none is broadcast then, however they are grouped."""
    if not isinstance(op, Sum) or op.pending or op.shapes[0] is None or None in op.shapes[0]:
        return False
    return all(shape == op.shapes[0] for shape in op.shapes)
