"""Operators that became one: the region of the original against what stands for it, on random data and impulses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine
from bnfold.proof.carriers import draw, undo
from bnfold.proof.evaluate import UnevaluatedError, evaluate, wide
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import LINEAR, attribute
from bnfold.proof.models import Scope, first_output
from bnfold.proof.pair import Pair
from bnfold.proof.rounding import UNIT, Worst, Wrong, check_rounded
from bnfold.proof.taps import WORK, taps_of

AnyArray = npt.NDArray[Any]

ALLOWED = frozenset({"Add", "Conv", "Gemm", "MatMul", "Neg", "Pad", "Sub", "Sum"})
"""Operators that may stand for a region."""

PARTS = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Concat", "Conv", "Div", "Dropout", "Gemm", "GlobalAveragePool",
        "Identity", "MatMul", "Mul", "Neg", "Pad", "Sub", "Sum",
    }
)  # fmt: skip
"""Operators that a region may be made of: linear, whatever the data is, so that impulses say all of them."""

IMPULSES = 64
"""Channels that get an impulse: at each of the places where that is no more, else at one of them."""

FEW = 16
"""The same, where each weight has been checked by itself."""


def roots(pair: Pair, scope: Scope) -> set[str]:
    """Values that regions make for the rest of the graph."""
    merged = pair.certificate.merged
    found: set[str] = set()
    if not any(path == scope.path for path, _ in merged):
        return found

    def note(value: str, reader: str | None) -> None:
        stack = [value]
        while stack:
            read = stack.pop()
            maker = scope.makers.get(read)
            if maker is None:
                continue
            key = scope.path, first_output(maker)
            if key in merged:
                if merged[key] != reader:
                    found.add(read)
            elif key in pair.certificate.vanished:
                stack.extend(maker.input)

    for node in scope.nodes:
        key = scope.path, first_output(node)
        if key not in pair.certificate.vanished:
            for each in node.input:
                note(each, merged.get(key))
    for each in scope.outputs:
        note(each, None)
    for node in scope.nodes:  # what nobody reads stays, too
        made = first_output(node)
        if not scope.readers.get(made) and pair.name(scope, made) in pair.counterpart(scope.path).makers:
            note(made, None)
    for path, inner in pair.original.scopes.items():
        if inner.around is scope or path.startswith(scope.path + "/"):
            for each in inner.readers:
                note(each, None)
            for node in inner.nodes:
                for each in node.input:
                    if inner.owner(each) is scope:
                        note(each, None)
            for each in inner.outputs:
                if inner.owner(each) is scope:
                    note(each, None)
    return found


def is_read_outside(pair: Pair, scope: Scope, node: onnx.NodeProto) -> bool:
    """Whether anything reads what a node made that vanished, but regions that it is a part of."""
    value = node.output[0]
    readers = pair.readers(scope, value)
    count = sum(each == value for reader in readers for each in reader.input)
    if value in scope.outputs or scope.readers.get(value, 0) != count:  # a body reads it
        return True
    marks = [pair.certificate.merged.get((scope.path, first_output(each))) for each in readers]
    return not marks or any(mark is None or not _leads_inside(pair, scope, node, mark) for mark in marks)


def _region(pair: Pair, scope: Scope, root: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes of the original that one operator stands for, and what they read.

    Where the region reads a value and what a node that vanished made of it, that node is a part as well.
    """
    more: set[str] = set()
    while True:
        nodes, reads = _grow(pair, scope, root, more)
        names = [pair.name(scope, value) for value in reads]
        makers = {value: scope.makers[value] for value in reads if value in scope.makers}
        gone = {
            first_output(makers[value])
            for value, name in zip(reads, names, strict=True)
            if value in makers
            and names.count(name) > 1
            and (scope.path, first_output(makers[value])) in pair.certificate.vanished
        }
        if not gone:
            return nodes, reads
        more |= gone


def _grow(pair: Pair, scope: Scope, root: onnx.NodeProto, more: set[str]) -> tuple[list[onnx.NodeProto], list[str]]:
    """A region that has some nodes which vanished, by their first outputs, in it."""
    merged = pair.certificate.merged
    mark = merged[scope.path, first_output(root)]
    chosen: set[int] = set()
    reads: list[str] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in chosen:
            continue
        chosen.add(id(node))
        for value in node.input:
            if not value or scope.is_constant(value):
                continue
            maker = scope.makers.get(value)
            key = scope.path, first_output(maker) if maker is not None else ""
            is_part = merged.get(key) == mark or key[1] in more
            if maker is not None and (is_part or _leads_inside(pair, scope, maker, mark)):
                stack.append(maker)
            elif value not in reads:
                reads.append(value)
    return [node for node in scope.nodes if id(node) in chosen], reads


def _leads_inside(pair: Pair, scope: Scope, node: onnx.NodeProto, mark: str) -> bool:
    """Whether a node vanished behind a part of the region."""
    while (scope.path, first_output(node)) in pair.certificate.vanished:
        makers = [scope.makers[each] for each in node.input if each in scope.makers and not scope.is_constant(each)]
        if len(makers) != 1:
            return False
        node = makers[0]
        if pair.certificate.merged.get((scope.path, first_output(node))) == mark:
            return True
    return False


def check_merge(pair: Pair, scope: Scope, other: Scope, root: onnx.NodeProto) -> Worst:
    """That one operator is a region of the original, and that its weights are rounded once."""
    name = first_output(root)
    nodes, reads = _region(pair, scope, root)
    for node in nodes:
        data = [each for each in node.input if each and not scope.is_constant(each)]
        is_sum = node.op_type in ("Add", "Concat", "Sub", "Sum")
        if node.op_type not in PARTS or node.domain not in ("", "ai.onnx") or (len(data) != 1 and not is_sum):
            raise ProofError("merges", first_output(node), f"a {node.op_type} merged")
    made = next(each for each in root.output if each)
    stands = _stands(pair, scope, other, pair.name(scope, made), {pair.name(scope, each) for each in reads}, name)
    try:
        return _compare(pair, scope, other, name, made, nodes, reads, stands)
    except UnevaluatedError as error:
        raise ProofError("merges", name, f"not covered: {error}") from error


def _stands(pair: Pair, scope: Scope, other: Scope, made: str, ends: set[str], name: str) -> list[onnx.NodeProto]:
    """The nodes of the result that stand for a region."""
    chosen: set[int] = set()
    stack = [made]
    while stack:
        value = stack.pop()
        if not value or value in ends or other.is_constant(value):
            continue
        node = other.makers.get(value)
        if node is None or node.op_type not in ALLOWED or node.domain not in ("", "ai.onnx"):
            raise ProofError("merges", name, f"{value!r} stands for it, which is not made of what it reads")
        if id(node) in chosen:
            continue
        if id(node) in pair.accounted:
            raise ProofError("merges", name, f"{value!r} stands for something else as well")
        chosen.add(id(node))
        stack.extend(node.input)
    pair.accounted.update(chosen)
    return [node for node in other.nodes if id(node) in chosen]


@dataclass(frozen=True, eq=False)
class _Part:
    """Nodes that make one value of others."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, AnyArray]
    made: str
    opsets: list[onnx.OperatorSetIdProto]

    @classmethod
    def of(cls, scope: Scope, nodes: list[onnx.NodeProto], made: str) -> _Part:
        """Some nodes of a graph."""
        names = {each for node in nodes for each in node.input if each}
        constants = {name: found for name in names if (found := scope.constant(name)) is not None}
        return cls(nodes, constants, made, scope.opsets)

    def run(self, given: dict[str, AnyArray]) -> AnyArray:
        """What is made."""
        return evaluate(self.nodes, {**self.constants, **given}, [self.made], self.opsets)[0]

    def size(self, given: dict[str, AnyArray]) -> AnyArray:
        """What the absolute values of all addends add up to."""
        nodes, sizes = [], {name: _size(each) for name, each in self.constants.items()}
        for node in self.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.op_type = {"Sub": "Add", "Neg": "Identity"}.get(node.op_type, node.op_type)
            if node.op_type == "BatchNormalization":  # subtracts its mean
                mean = f"{node.input[3]}/subtracted"
                sizes[mean] = -sizes[node.input[3]]
                copy.input[3] = mean
            nodes.append(copy)
        sizes.update({name: np.abs(each) for name, each in given.items()})
        return evaluate(nodes, sizes, [self.made], self.opsets)[0]

    @property
    def unit(self) -> float:
        """The largest error of rounding a constant once, relatively."""
        return max((_unit(each) for each in self.constants.values()), default=UNIT)


def _size(array: AnyArray) -> AnyArray:
    found = wide(array)
    return np.abs(found) if found.dtype.kind == "f" else array


def _unit(array: AnyArray) -> float:
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return 0.0
    return float(ml_dtypes.finfo(array.dtype).eps) / 2  # type: ignore[no-untyped-call]


def _tiny(part: _Part) -> float:
    """The largest error of rounding a constant once, where that is subnormal."""
    kinds = [each.dtype for each in part.constants.values() if _unit(each)]
    return max((float(ml_dtypes.finfo(each).smallest_subnormal) for each in kinds), default=0.0)  # type: ignore[no-untyped-call]


def _compare(
    pair: Pair,
    scope: Scope,
    other: Scope,
    name: str,
    made: str,
    nodes: list[onnx.NodeProto],
    reads: list[str],
    stands: list[onnx.NodeProto],
) -> Worst:
    generator = np.random.default_rng()
    relation = pair.relation(scope, made)
    pulled = relation.forth if relation else None
    if relation is not None and pulled is None:
        raise ProofError("merges", name, "what it makes changed in a way that is not covered")
    old, new = _Part.of(scope, nodes, made), _Part.of(other, stands, pair.name(scope, made))

    def judge(given: dict[str, AnyArray], now: dict[str, AnyArray], base: tuple[AnyArray, ...] | None) -> Any:
        """Both answers, or what they changed since `base`, which weights alone explain."""
        before, after, sizes, bound = old.run(given), new.run(now), old.size(given), new.size(now)
        if before.shape != after.shape:
            raise ProofError("merges", name, f"its result has shape {after.shape}, not {before.shape}")
        if pulled is not None:
            before, sizes = pulled(before), np.abs(pulled(np.zeros_like(before))) + sizes * along(pulled, sizes.ndim)
        left, right, allowed = before, after, bound
        if base is not None:
            times = len(before) // len(base[0])
            still = [np.tile(each, (times, *[1] * (each.ndim - 1))) for each in base]
            left, right, allowed = before - still[0], after - still[1], bound - still[2]
        with np.errstate(all="ignore"):
            limit = 1.01 * new.unit * allowed + 1e-13 * (bound + sizes) + _tiny(new) * max(1, left[:1].size)
            wrong = ~(np.abs(left - right) <= limit)
        if wrong.any():
            at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            raise ProofError("merges", name, f"it gives {float(right[at])!r}, not {float(left[at])!r}")
        return before, after, bound, sizes

    names = {value: pair.name(scope, value) for value in reads}
    firsts = {names[value]: value for value in reversed(reads)}  # several may have become one
    shapes = {now: _shape(pair, scope, value, nodes) for now, value in firsts.items()}

    def undone(fed: dict[str, AnyArray]) -> dict[str, AnyArray]:
        """The values of the original for which the result has these."""
        return {value: undo(pair.relation(scope, value), fed[names[value]]) for value in reads}

    drawn = {now: draw(pair.relation(scope, value), shapes[now], generator) for now, value in firsts.items()}
    others = [value for value in reads if value not in firsts.values()]
    given = {firsts[now]: each[0] for now, each in drawn.items()}
    given |= {value: undo(pair.relation(scope, value), drawn[names[value]][1]) for value in others}
    judge(given, {now: each[1] for now, each in drawn.items()}, None)

    def both(now: AnyArray, value: str) -> tuple[Any, Any]:
        """Data of which one value is given, and the others are zero."""
        times = len(now) // shapes[value][0]
        fed = {
            each: now if each == value else np.zeros((shape[0] * times, *shape[1:])) for each, shape in shapes.items()
        }
        return undone(fed), fed

    def run(now: AnyArray) -> tuple[AnyArray, AnyArray]:
        fed = dict.fromkeys(firsts, now)
        before = old.run(undone(fed))
        return before if pulled is None else pulled(before), new.run(fed)

    worst = Worst()
    for value, shape in shapes.items():
        base = judge(*both(np.zeros(shape), value), None)
        if len(shapes) == 1:
            worst = _check_weights(name, old, new, (1, *shape[1:]), run, (base[2] + base[3])[:1])
        judge(*both(impulses(shape, generator, FEW if worst.count else IMPULSES), value), base)
    return worst


def _check_weights(
    name: str,
    old: _Part,
    new: _Part,
    shape: tuple[int, ...],
    run: Callable[[AnyArray], tuple[AnyArray, AnyArray]],
    size: AnyArray,
) -> Worst:
    """That each weight of the operator that stands for a region, and its bias, is a nearest number of its type.

    Args:
        name: of the region's root.
        old: the region.
        new: what stands for it.
        shape: of what both read.
        run: what both make of such data.
        size: what the absolute values of all addends add up to, of an input of zeros.
    """
    linear = [node for node in new.nodes if node.op_type in LINEAR]
    kernels = [new.constants.get(each) for node in linear for each in node.input[1:2]]
    kernel = kernels[0] if len(kernels) == 1 else None
    if kernel is None or kernel.dtype == np.float64 or not _unit(kernel):
        return Worst()
    if any(node.op_type != "Add" for node in new.nodes if node is not linear[0]):
        return Worst()  # a Pad is part of it
    taps = taps_of(linear[0], kernel, shape)
    if taps is None:
        return Worst()
    still = run(np.zeros((1, *shape[1:])))
    positions = still[0].size // still[0].shape[1 if linear[0].op_type == "Conv" else -1]
    work = sum(each.size for part in (old, new) for each in part.constants.values()) * positions
    if taps.count * work > WORK:
        return Worst()
    slack = 1e-13 * size
    worst = _rounded(name, "bias", still[1].astype(kernel.dtype), still[0], slack)
    for now in taps.batches():
        before, after = (made - nothing for made, nothing in zip(run(now), still, strict=True))
        error = slack + 1e-13 * np.abs(before)
        worst = worst.joined(_rounded(name, "weight", after.astype(kernel.dtype), before, error))
    return Worst(worst.ulps, kernel.size + still[0].size // positions)


def _rounded(name: str, what: str, stored: AnyArray, exact: AnyArray, error: AnyArray) -> Worst:
    found = check_rounded(stored, exact, error)
    if isinstance(found, Wrong):
        raise ProofError("merges", name, f"a {what} is {found.stored!r} and should be {found.exact!r}")
    return found


def along(affine: Affine, rank: int) -> AnyArray:
    """The sizes of an affine's scales, so that they broadcast against a value of that rank."""
    shape = [1] * rank
    for axis, size in affine.places:
        shape[axis] = size
    return np.abs(affine.scale).reshape(shape)


def impulses(shape: tuple[int, ...], generator: np.random.Generator, most: int = IMPULSES) -> AnyArray:
    """Data with a one in one channel each, at corners, borders and in the middle, along the first axis."""
    axis = 1 if len(shape) != 3 else 2
    axis = min(axis, len(shape) - 1)
    count = shape[axis]
    channels = np.arange(count) if count <= most else generator.choice(count, most, replace=False)
    places = [tuple(0 for _ in shape), tuple(size - 1 for size in shape), tuple(size // 2 for size in shape)]
    places.append(tuple(0 if each == 2 else size // 2 for each, size in enumerate(shape)))
    few = [places[each] for each in generator.integers(len(places), size=count)]
    chosen = dict.fromkeys(
        (*place[:axis], int(each), *place[axis + 1 :])
        for each in channels
        for place in (places if count * len(places) <= most else [few[each]])
    )
    found = np.zeros((len(chosen), *shape))
    for index, place in enumerate(chosen):
        found[(index, *place)] = 1.0
    return found.reshape(-1, *shape[1:])


def _shape(pair: Pair, scope: Scope, value: str, nodes: list[onnx.NodeProto]) -> tuple[int, ...]:
    """A shape for what a region reads: as small as its windows allow."""
    known = pair.shape(scope, value)
    wide_nodes = [node for node in nodes if value in node.input and node.op_type in ("Conv", "MatMul", "Gemm")]
    channels: int | None = None
    rank = None if known is None else len(known)
    for node in wide_nodes:
        kernel = scope.constant(node.input[1])
        if node.op_type == "Conv" and kernel is not None:
            channels, rank = kernel.shape[1] * int(attribute(node, "group", 1)), kernel.ndim
    if rank is None:
        raise UnevaluatedError(f"the shape of {value!r} does not follow from the model's inputs")
    sizes = [2 if each is None else each for each in (known or (None,) * rank)]
    if channels is not None:
        sizes[1] = channels
    has_window = any(node.op_type in ("Conv", "AveragePool") for node in nodes)
    if has_window and rank > 2:
        reach = 1
        for node in nodes:
            if node.op_type in ("Conv", "AveragePool"):
                kernel = scope.constant(node.input[1]) if node.op_type == "Conv" else None
                reach = max(reach, _reach(node, kernel))
        sizes = [1, sizes[1], *(min(size, reach) if known and known[2 + i] else reach
                                for i, size in enumerate(sizes[2:]))]  # fmt: skip
    elif known is not None and known[0] is None:
        sizes[0] = 2
    return tuple(sizes)


def _reach(node: onnx.NodeProto, kernel: AnyArray | None) -> int:
    window = list(kernel.shape[2:]) if kernel is not None else list(attribute(node, "kernel_shape", [1]))
    dilations = list(attribute(node, "dilations", [1] * len(window)))
    strides = list(attribute(node, "strides", [1] * len(window)))
    found: list[int] = [d * (k - 1) + 1 + 2 * s for k, d, s in zip(window, dilations, strides, strict=True)]
    return max(found)
