"""Operators that became one: a region of the original against the operator that stands for it.

Both are evaluated on random data and on impulses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import fx

from bnfold.proof.carriers import both, draw
from bnfold.proof.certificate import Relation
from bnfold.proof.evaluate import UnevaluatedError
from bnfold.proof.failure import ProofError
from bnfold.proof.fitting import Step, fit
from bnfold.proof.merges import along, axes_fixed_by, axes_of, impulses, shrunk
from bnfold.proof.rounding import UNIT
from bnfold.proof.torch.calls import LINEAR
from bnfold.proof.torch.evaluate import array, evaluate, widen
from bnfold.proof.torch.linear import read_batchnorm, read_product
from bnfold.proof.torch.pair import Pair
from bnfold.proof.torch.shapes import Shape
from bnfold.proof.torch.sides import TYPES, AnyArray, Side

ALLOWED = LINEAR | {"add", "sub", "neg", "pad", "constant_pad_nd"}
"""Operators that may stand for a region."""

SUMS = frozenset({"add", "cat", "sub"})

_PARTS = "rsub mul div dropout identity clone contiguous avg_pool1d avg_pool2d avg_pool3d"

PARTS = ALLOWED | SUMS | frozenset(_PARTS.split())
"""Operators that a region may consist of besides BatchNorms: linear, whatever the data is."""

ELEMENTWISE = SUMS | {"rsub", "neg", "mul", "div", "dropout", "identity", "clone", "contiguous"}
"""Those of which inputs and output have the same sizes behind the channels."""


def roots(pair: Pair) -> set[fx.Node]:
    """Nodes of regions whose values something outside the region reads."""
    nodes: set[fx.Node] = set()
    side = pair.original
    for reader in side.graph.nodes:
        if (reader in side.calls and pair.is_vanished(reader)) or side.pick(reader) is not None:
            continue
        mark = pair.mark(reader) if reader in side.calls else None
        stack = list(reader.all_input_nodes)
        while stack:
            maker = stack.pop()
            if maker not in side.calls:
                continue
            if (theirs := pair.mark(maker)) is not None:
                nodes.update([maker] if theirs != mark else [])
            elif pair.is_vanished(maker) or side.pick(maker) is not None:
                stack.extend(maker.all_input_nodes)
    return nodes


def is_read_outside(pair: Pair, node: fx.Node) -> bool:
    """Whether anything but the regions around a vanished node reads its output."""
    readers = list(_readers(pair, node))
    marks = [pair.mark(reader) if reader in pair.original.calls else None for reader in readers]
    return not marks or any(mark is None or not _leads_inside(pair, node, mark) for mark in marks)


def _readers(pair: Pair, node: fx.Node) -> Iterable[fx.Node]:
    for user in node.users:
        if pair.original.pick(user) is not None:
            yield from _readers(pair, user)
        else:
            yield user


def _leads_inside(pair: Pair, node: fx.Node, mark: str) -> bool:
    """Whether a vanished node reads, directly or not, a part of the region."""
    side = pair.original
    while (node in side.calls and pair.is_vanished(node)) or side.pick(node) is not None:
        makers = [source for source in node.all_input_nodes if source in side.calls and source not in side.constants]
        if len(makers) != 1:
            return False
        node = makers[0]
        if pair.mark(node) == mark:
            return True
    return False


def _region(pair: Pair, root: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes of the original that one operator stands for, and the nodes that they read.

    Where the region reads both a value and what a vanished node made of it, that node is a part of it as well.
    """
    more: set[fx.Node] = set()
    while True:
        nodes, reads = _grow(pair, root, more)
        names = [pair.name(read) for read in reads]
        gone = {
            read
            for read, name in zip(reads, names, strict=True)
            if names.count(name) > 1 and read in pair.original.calls and pair.is_vanished(read)
        }
        if not gone:
            return nodes, reads
        more |= gone


def _grow(pair: Pair, root: fx.Node, more: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """A region together with some vanished nodes."""
    side, mark = pair.original, pair.mark(root)
    assert mark is not None
    chosen: set[fx.Node] = set()
    reads: list[fx.Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node in chosen:
            continue
        chosen.add(node)
        for source in node.all_input_nodes:
            if source in side.constants:
                continue
            is_part = source in more or (source in side.calls and pair.mark(source) == mark)
            if is_part or (source in side.calls and _leads_inside(pair, source, mark)):
                stack.append(source)
            elif source not in reads:
                reads.append(source)
    return sorted(chosen, key=side.order.__getitem__), reads


def insist_on_part(pair: Pair, node: fx.Node) -> None:
    """Check that a node is linear, whatever the data is."""
    side, call = pair.original, pair.original.calls[node]
    if side.pick(node) is not None:
        return
    data = [source for source in node.all_input_nodes if source not in side.constants]
    is_batchnorm = read_batchnorm(side, node, pair.shapes.rank(call.get("input"))) is not None
    if not (call.name in PARTS or is_batchnorm) or not (len(data) == 1 or call.name in SUMS):
        raise ProofError("merges", node.name, f"{call.name or node.target} merged")
    if call.name in LINEAR and read_product(side, node) is None:
        raise ProofError("merges", node.name, "its weight is not constant")


def check_merge(pair: Pair, root: fx.Node) -> None:
    """Check that one operator computes a region of the original, within the rounding of its weights."""
    side, name = pair.original, root.name
    nodes, reads = _region(pair, root)
    for node in nodes:
        insist_on_part(pair, node)
    if side.is_spread(root):
        raise ProofError("merges", name, "it makes several values")
    ends = {pair.name(read): read for read in reads}
    if len(ends) != len(reads):
        raise ProofError("merges", name, "it reads two values that became one")
    twin = pair.twin(root)
    stands, entries = _stands(pair, twin, ends, name)
    old, new = _Part(side, nodes, root), _Part(pair.result, stands, twin)
    value = pair.shapes.value(root)
    kinds = {
        constant.dtype for constant in (*new.constants, *(() if isinstance(value, torch.Tensor) else old.constants))
    }
    if kinds - ({value.dtype} if isinstance(value, torch.Tensor) else set(list(kinds)[:1])):
        raise ProofError("merges", name, "its weights are of another type than its output")
    try:
        _compare(pair, name, old, new, reads, entries)
    except UnevaluatedError as error:
        raise ProofError("merges", name, f"not covered: {error}") from error


def _stands(
    pair: Pair, twin: fx.Node, ends: dict[str, fx.Node], name: str
) -> tuple[list[fx.Node], dict[fx.Node, fx.Node]]:
    """The nodes of the result that stand for a region, and the nodes that they read with those of the original."""
    result = pair.result
    chosen: set[fx.Node] = set()
    entries: dict[fx.Node, fx.Node] = {}
    stack = [twin]
    while stack:
        node = stack.pop()
        key = result.key(node)
        if key in ends:
            if not pair.stands(ends[key], node) or entries.setdefault(ends[key], node) is not node:
                raise ProofError("merges", name, f"{key!r} stands for one of its inputs in two ways")
            continue
        if node in result.constants:
            pair.account_weights(node)
            continue
        if node in chosen:
            continue
        is_computed = node in result.calls and result.calls[node].name in ALLOWED
        if not is_computed or not result.tangled.isdisjoint((node, *result.calls[node].writes)):
            raise ProofError("merges", name, f"{node.name!r} stands for it, and is not computed from its inputs")
        pair.account(node, node)
        chosen.add(node)
        if (product := _product(result, node)) is not None:
            pair.account_weights(*product)
        stack.extend(node.all_input_nodes)
    return sorted(chosen, key=result.order.__getitem__), entries


def _product(side: Side, node: fx.Node) -> tuple[Any, ...] | None:
    product = read_product(side, node)
    return None if product is None else product.weights


@dataclass(frozen=True, eq=False)
class _Part:
    """Nodes of a model that compute one value from others."""

    side: Side
    nodes: list[fx.Node]
    made: fx.Node

    def run(self, feeds: dict[fx.Node, AnyArray]) -> AnyArray:
        """Compute the value."""
        return self._run(feeds, is_size=False)

    def size(self, feeds: dict[fx.Node, AnyArray]) -> AnyArray:
        """The sum of the absolute values of all addends."""
        return self._run({key: np.abs(numbers) for key, numbers in feeds.items()}, is_size=True)

    def _run(self, feeds: dict[fx.Node, AnyArray], *, is_size: bool) -> AnyArray:
        values: dict[fx.Node, Any] = {
            key: torch.from_numpy(np.ascontiguousarray(numbers)) for key, numbers in feeds.items()
        }
        for node in self.nodes:
            for source in node.all_input_nodes:
                if source not in values:
                    constant = widen(self.side.constant(source))
                    values[source] = _absolute(constant) if is_size else constant
            values[node] = self._size(node, values) if is_size else self._plain(node, values)
        return array(values[self.made])

    def _plain(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if (batchnorm := self._batchnorm(node)) is not None and self.side.is_spread(node):
            gamma, beta, mean, var = map(_wide, batchnorm.stored)
            return (_normalise(values[batchnorm.data], gamma, beta, mean, var, batchnorm.epsilon),)
        return evaluate(node, self.side.calls[node].module, values)

    def fitted(self, shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[fx.Node, tuple[int, ...]]:
        """Shapes of inputs with which the nodes run, from one for each."""
        steps = []
        for node in self.nodes:
            data = tuple(source for source in node.all_input_nodes if source not in self.side.constants)
            steps.append(Step(node, data, self._keeps_sizes(node)))
        return fit(shapes, steps, self._rank, self._shape)

    @property
    def fixed(self) -> set[int]:
        """The axes whose sizes constant operands fix."""
        nodes = [node for node in self.nodes if self.side.calls[node].name in ELEMENTWISE]
        constants = [self.side.constant(source) for node in nodes for source in node.all_input_nodes]
        return axes_fixed_by([tuple(constant.shape) for constant in constants if constant is not None], self._rank)

    @property
    def _rank(self) -> int:
        """Along how many axes windows move."""
        return max(map(self._windowed, self.nodes), default=0)

    def _keeps_sizes(self, node: fx.Node) -> bool:
        is_normalised = self.side.pick(node) is not None or self._batchnorm(node) is not None
        return is_normalised or self.side.calls[node].name in ELEMENTWISE

    def _windowed(self, node: fx.Node) -> int:
        """Along how many axes a window moves."""
        name = self.side.calls[node].name
        return int(name[-2]) if name.startswith(("conv", "avg_pool")) and name[-1] == "d" else 0

    def _shape(self, index: int, shapes: Mapping[fx.Node, tuple[int, ...]]) -> tuple[int, ...]:
        """What a node makes of inputs of these shapes."""
        node = self.nodes[index]
        data = [source for source in node.all_input_nodes if source not in self.side.constants]
        if self.side.pick(node) is not None or self._batchnorm(node) is not None:
            return shapes[data[0]]
        values = {source: widen(self.side.constant(source)) for source in node.all_input_nodes if source not in data}
        blank = {source: torch.zeros(shapes[source], dtype=torch.float64) for source in data}
        return tuple(self._plain(node, {**values, **blank}).shape)

    def _batchnorm(self, node: fx.Node) -> Any:
        return read_batchnorm(self.side, node, 4)

    def _size(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Compute a node on absolute values, with absolute weights."""
        call = self.side.calls[node]
        batchnorm = self._batchnorm(node)
        if batchnorm is not None:
            gamma, beta, mean, var = map(_wide, batchnorm.stored)
            read = values[batchnorm.data]
            size = _normalise(read, gamma.abs(), beta.abs(), -mean.abs(), var, batchnorm.epsilon)
            return (size,) if self.side.is_spread(node) else size
        if call.name == "neg":
            return values[node.all_input_nodes[0]]
        if call.name in ("add", "sub", "rsub", "mul", "div"):
            one, other = (
                _absolute(values[operand] if isinstance(operand, fx.Node) else operand)
                for operand in self._operands(node)
            )
            alpha = abs(float(node.kwargs.get("alpha", 1)))  # type: ignore[arg-type]
            match call.name:
                case "mul":
                    return one * other
                case "div":
                    return one / other
                case "rsub":
                    return alpha * one + other
            return one + alpha * other
        module = call.module
        if module is not None:
            module = copy.deepcopy(module)
            for parameter in module.parameters():
                parameter.data.abs_()
        return evaluate(node, module, values)

    def _operands(self, node: fx.Node) -> list[Any]:
        operands = [*node.args, *(node.kwargs[key] for key in ("input", "self", "other") if key in node.kwargs)]
        if len(operands) < 2:
            raise UnevaluatedError("it is spelled in an unknown way")
        return operands[:2]

    @property
    def constants(self) -> list[torch.Tensor]:
        """The floating-point constants of its nodes."""
        tensors = [self.side.constant(source) for node in self.nodes for source in node.all_input_nodes]
        for node in self.nodes:
            module = self.side.calls[node].module
            tensors.extend(module.parameters() if module is not None else ())
        return [tensor for tensor in tensors if tensor is not None and tensor.dtype in TYPES]

    @property
    def unit(self) -> float:
        """The largest relative error of rounding a constant once."""
        return max((torch.finfo(constant.dtype).eps / 2 for constant in self.constants), default=UNIT)

    @property
    def tiny(self) -> float:
        """The largest error of rounding a constant once, where it is subnormal."""
        kinds = {str(constant.dtype).rpartition(".")[2] for constant in self.constants}
        return max((float(ml_dtypes.finfo(kind).smallest_subnormal) for kind in kinds), default=0.0)  # type: ignore[no-untyped-call]


def _normalise(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, epsilon: float) -> torch.Tensor:
    return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, epsilon)


def _wide(numbers: AnyArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers.astype(np.float64)))


def _absolute(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.abs() if value.is_floating_point() else value
    return abs(value) if isinstance(value, int | float) else value


def _compare(
    pair: Pair, name: str, old: _Part, new: _Part, reads: list[fx.Node], entries: dict[fx.Node, fx.Node]
) -> None:
    generator = np.random.default_rng()
    relation = pair.relation(old.made)
    pulled = relation.forth if relation else None
    if relation is not None and pulled is None:
        raise ProofError("merges", name, "its output changed in a way that is not covered")

    relations = {read: pair.relation(read) for read in reads}
    kept = axes_of([relation, *relations.values()]) | old.fixed

    def sized(more: int) -> dict[fx.Node, tuple[int, ...]]:
        return old.fitted({read: _shape(pair, read, old.nodes, kept, more) for read in reads})

    def drawn(shapes: Mapping[fx.Node, tuple[int, ...]]) -> _Batch:
        batch = _Batch(relations)
        batch.add({read: draw(relations[read], shape, generator) for read, shape in shapes.items()})
        return batch

    def judge(batch: _Batch) -> None:
        feeds, now = batch.joined()
        now = {entries[key]: x for key, x in now.items() if key in entries}
        before, after, sizes, bound = old.run(feeds), new.run(now), old.size(feeds), new.size(now)
        if before.shape != after.shape or (reads and len(before) % batch.count):
            raise ProofError("merges", name, f"its result has shape {after.shape}, not {before.shape}")
        if pulled is not None:
            if pulled.axis >= before.ndim or before.shape[pulled.axis] != pulled.size:
                raise ProofError("merges", name, f"{pulled.size} channels changed along axis {pulled.axis}")
            before, sizes = pulled(before), np.abs(pulled(np.zeros_like(before))) + sizes * along(pulled, sizes.ndim)
        left, right, allowed = before, after, bound
        if batch.count > 2:  # what impulses give is compared without what zeros give: it depends on the weights alone
            rows = len(before) // batch.count
            times = batch.count - 2
            left, right, allowed = (
                np.concatenate([
                    numbers[: 2 * rows],
                    numbers[2 * rows :] - np.tile(numbers[rows : 2 * rows], (times, *[1] * (numbers.ndim - 1))),
                ])
                for numbers in (before, after, bound)
            )  # fmt: skip
        with np.errstate(all="ignore"):
            limit = 1.01 * new.unit * allowed + 1e-13 * (bound + sizes) + new.tiny * max(1, left[:1].size)
            wrong = ~(np.abs(left - right) <= limit)
        if wrong.any():
            at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            raise ProofError("merges", name, f"it gives {float(right[at])!r}, not {float(left[at])!r}")

    shapes = sized(0)
    batch = drawn(shapes)
    batch.add_new({source: np.zeros(shape) for source, shape in shapes.items()})
    for read in reads:
        ones = impulses(shapes[read], generator)
        count = len(ones) // shapes[read][0]
        batch.add_new({
            source: ones if source is read else np.zeros((shape[0] * count, *shape[1:]))
            for source, shape in shapes.items()
        }, count)  # fmt: skip
    judge(batch)
    is_open = any(_open_axes(pair, read, len(shape)) for read, shape in shapes.items())
    for more in range(1, _period(pair.original, old.nodes) if is_open else 1):
        try:
            batch = drawn(sized(more))
            old.run(batch.joined()[0])
        except UnevaluatedError:  # a size that the original does not take
            continue
        judge(batch)


class _Batch:
    """Inputs of a region for both models, one behind the other along the batch axis, which no part of a merge mixes.

    Attributes:
        count: how many times the shapes of the region.
    """

    def __init__(self, relations: Mapping[fx.Node, Relation | None]) -> None:
        self._relations = relations
        self._parts: list[dict[fx.Node, tuple[AnyArray, AnyArray]]] = []
        self.count = 0

    def add(self, data: Mapping[fx.Node, tuple[AnyArray, AnyArray]], count: int = 1) -> None:
        """Add inputs of the original, each with the one that stands for it."""
        self._parts.append(dict(data))
        self.count += count

    def add_new(self, data: Mapping[fx.Node, AnyArray], count: int = 1) -> None:
        """Add inputs of the result, or of the original where they changed by a map without an inverse."""
        self.add({key: both(self._relations[key], x) for key, x in data.items()}, count)

    def joined(self) -> tuple[dict[fx.Node, AnyArray], ...]:
        """The inputs of the original, and those of the result."""
        before, after = (
            {key: np.concatenate([part[key][side] for part in self._parts]) for key in self._relations}
            for side in (0, 1)
        )
        return before, after


def _shape(pair: Pair, read: fx.Node, nodes: list[fx.Node], kept: set[int], more: int) -> tuple[int, ...]:
    """A shape for an input of a region, as small as its windows allow.

    Args:
        pair: the models.
        read: the input.
        nodes: the region.
        kept: axes that keep their sizes.
        more: what is added to sizes that may be others.
    """
    side = pair.original
    known = pair.shapes.shape(read) or _batch(pair, read, nodes)
    if known is None:
        raise UnevaluatedError(f"the shape of {read.name!r} does not follow from the model's inputs")
    sizes = list(known)
    axes: set[int] = set()
    reach = 1
    for node in nodes:
        if "pool" in side.calls[node].name:
            reach = max(reach, 3 * max(_numbers(node, side), default=1))
        product = read_product(side, node)
        if product is None or product.stored.ndim < 3 or not side.calls[node].name.startswith("conv"):
            continue
        if product.data is read and sizes[product.axes[0]] is None:
            sizes[product.axes[0]] = product.kernel.sizes[1]
        axes.add(len(sizes) + product.axes[0])
        strides, dilations = (max(_listed(product.rest.get(key, 1))) for key in ("stride", "dilation"))
        reach = max(reach, max(dilations * (tap - 1) + 1 + 2 * strides for tap in product.stored.shape[2:]))
    if axes:
        (axis,) = axes if len(axes) == 1 else (min(axes),)
        period, opened = _period(side, nodes), _open_axes(pair, read, len(sizes))
        tail = [
            size if place in kept and size is not None
            else (reach if size is None else shrunk(size, reach, period)) + (more if place in opened else 0)
            for place, size in enumerate(sizes[axis + 1 :], start=axis + 1)
        ]  # fmt: skip
        sizes = [*(1 for _ in sizes[:axis]), sizes[axis], *tail]
    if any(size is None for size in sizes[1:]):
        raise UnevaluatedError(f"the shape of {read.name!r} does not follow from the model's inputs")
    return tuple(2 if size is None else size for size in sizes)


def _period(side: Side, nodes: list[fx.Node]) -> int:
    """Sizes that differ by it leave the same rest when they are divided by a stride of the region."""
    strides: list[int] = []
    for node in nodes:
        if "pool" in side.calls[node].name:
            strides.extend(_pool_strides(node, side))
        elif (product := read_product(side, node)) is not None:
            strides.extend(_listed(product.rest.get("stride", 1)))
    return lcm(*strides)


def _pool_strides(node: fx.Node, side: Side) -> list[int]:
    """The strides of an average, which are its window where none are told."""
    call, found = side.calls[node], []
    for place, name in ((2, "stride"), (1, "kernel_size")):
        told = getattr(call.module, name, None) if call.module is not None else node.kwargs.get(name)
        if call.module is None and told is None and len(node.args) > place:
            told = node.args[place]
        found.append(told)
    return _listed(found[0] or found[1])


def _open_axes(pair: Pair, read: fx.Node, rank: int) -> set[int]:
    """The axes behind the first whose sizes are not known, or may be others than in the example."""
    shapes = [shape for step in pair.shapes.steps if (shape := pair.shapes.shape(read, step)) is not None]
    sizes = list(zip(*shapes, strict=False)) if shapes else [(None,)] * rank
    return {axis for axis, each in enumerate(sizes) if axis and (None in each or len(set(each)) > 1)}


def _batch(pair: Pair, read: fx.Node, nodes: list[fx.Node]) -> Shape | None:
    """A batch of unknown sizes, for convolutions alone: they do to one sample without a batch axis what they do to it.

    None for any other region, and where a change of values lies along an axis that is counted from the front.
    """
    if any(pair.relation(node) is not None for node in (read, *nodes)):
        return None
    products = [read_product(pair.original, node) for node in nodes]
    ranks = {
        product.stored.ndim
        for node, product in zip(nodes, products, strict=True)
        if product is not None and product.stored.ndim > 2 and pair.original.calls[node].name.startswith("conv")
    }
    is_sure = len(ranks) == 1 and None not in products
    return (None,) * ranks.pop() if is_sure else None


def _listed(value: Any) -> list[int]:
    return [number for number in (value if isinstance(value, tuple | list) else [value]) if type(number) is int] or [1]


def _numbers(node: fx.Node, side: Side) -> list[int]:
    module = side.calls[node].module
    size = getattr(module, "kernel_size", None)
    numbers: list[int] = []
    fx.node.map_aggregate(
        (size, node.args[1:], dict(node.kwargs)), lambda number: numbers.append(number) if type(number) is int else None
    )
    return numbers
