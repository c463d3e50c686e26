"""Operators that became one: a region of the original against the operator that stands for it.

Both are evaluated on random data and on impulses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine
from bnfold.proof.carriers import both, draw, has_inverse, undo
from bnfold.proof.certificate import Relation
from bnfold.proof.evaluate import UnevaluatedError, evaluate, wide
from bnfold.proof.failure import ProofError
from bnfold.proof.fitting import Step, fit
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
"""Operators that a region may consist of. They are linear whatever the data is, so impulses tell everything of them."""

ELEMENTWISE = frozenset(
    {"Add", "BatchNormalization", "Concat", "Div", "Dropout", "Identity", "Mul", "Neg", "Sub", "Sum"}
)
"""Those of which inputs and output have the same sizes behind the channels."""

IMPULSES = 64
"""How many channels get an impulse: at each place where that makes no more impulses, else at one place."""

FEW = 16
"""The same, where each weight is checked by itself."""


def roots(pair: Pair, scope: Scope) -> set[str]:
    """Values that regions make and the rest of the graph reads."""
    merged = pair.certificate.merged
    values: set[str] = set()
    if not any(path == scope.path for path, _ in merged):
        return values

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
                    values.add(read)
            elif key in pair.certificate.vanished:
                stack.extend(maker.input)

    for node in scope.nodes:
        key = scope.path, first_output(node)
        if key not in pair.certificate.vanished:
            for value in node.input:
                note(value, merged.get(key))
    for value in scope.outputs:
        note(value, None)
    for node in scope.nodes:  # a value that nobody reads stays, too
        output = first_output(node)
        if not scope.readers.get(output) and pair.name(scope, output) in pair.counterpart(scope.path).makers:
            note(output, None)
    for path, inner in pair.original.scopes.items():
        if inner.around is scope or path.startswith(scope.path + "/"):
            for value in inner.readers:
                note(value, None)
            for node in inner.nodes:
                for value in node.input:
                    if inner.owner(value) is scope:
                        note(value, None)
            for value in inner.outputs:
                if inner.owner(value) is scope:
                    note(value, None)
    return values


def is_read_outside(pair: Pair, scope: Scope, node: onnx.NodeProto) -> bool:
    """Whether anything but the regions around a vanished node reads its output."""
    value = node.output[0]
    readers = pair.readers(scope, value)
    count = sum(name == value for reader in readers for name in reader.input)
    if value in scope.outputs or scope.readers.get(value, 0) != count:  # a body reads it
        return True
    marks = [pair.certificate.merged.get((scope.path, first_output(reader))) for reader in readers]
    return not marks or any(mark is None or not _leads_inside(pair, scope, node, mark) for mark in marks)


def _region(pair: Pair, scope: Scope, root: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes of the original that one operator stands for, and the values that they read.

    Where the region reads both a value and what a vanished node made of it, that node is a part of it as well.
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
    """A region together with some vanished nodes, given by their first outputs."""
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
    """Whether a vanished node reads, directly or not, a part of the region."""
    while (scope.path, first_output(node)) in pair.certificate.vanished:
        makers = [scope.makers[value] for value in node.input if value in scope.makers and not scope.is_constant(value)]
        if len(makers) != 1:
            return False
        node = makers[0]
        if pair.certificate.merged.get((scope.path, first_output(node))) == mark:
            return True
    return False


def check_merge(pair: Pair, scope: Scope, other: Scope, root: onnx.NodeProto) -> Worst:
    """Check that one operator computes a region of the original, and that its weights are rounded once."""
    name = first_output(root)
    nodes, reads = _region(pair, scope, root)
    for node in nodes:
        data = [value for value in node.input if value and not scope.is_constant(value)]
        is_sum = node.op_type in ("Add", "Concat", "Sub", "Sum")
        if node.op_type not in PARTS or node.domain not in ("", "ai.onnx") or (len(data) != 1 and not is_sum):
            raise ProofError("merges", first_output(node), f"a {node.op_type} merged")
    output = next(value for value in root.output if value)
    stands = _stands(pair, scope, other, pair.name(scope, output), {pair.name(scope, end) for end in reads}, name)
    try:
        return _compare(pair, scope, other, name, output, nodes, reads, stands)
    except UnevaluatedError as error:
        raise ProofError("merges", name, f"not covered: {error}") from error


def _stands(pair: Pair, scope: Scope, other: Scope, output: str, ends: set[str], name: str) -> list[onnx.NodeProto]:
    """The nodes of the result that stand for a region."""
    chosen: set[int] = set()
    stack = [output]
    while stack:
        value = stack.pop()
        if not value or value in ends or other.is_constant(value):
            continue
        node = other.makers.get(value)
        if node is None or node.op_type not in ALLOWED or node.domain not in ("", "ai.onnx"):
            raise ProofError("merges", name, f"{value!r} stands for it, and is not computed from its inputs")
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
    """Nodes that compute one value from others."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, AnyArray]
    made: str
    opsets: list[onnx.OperatorSetIdProto]

    @classmethod
    def of(cls, scope: Scope, nodes: list[onnx.NodeProto], output: str) -> _Part:
        """The part of a graph that these nodes are."""
        names = {value for node in nodes for value in node.input if value}
        constants = {name: constant for name in names if (constant := scope.constant(name)) is not None}
        return cls(nodes, constants, output, scope.opsets)

    def fitted(self, shapes: dict[str, tuple[int, ...]], scope: Scope) -> dict[str, tuple[int, ...]]:
        """Shapes of inputs with which the nodes run, from one for each."""
        steps = []
        for node in self.nodes:
            data = tuple(value for value in node.input if value and not scope.is_constant(value))
            steps.append(Step(first_output(node), data, node.op_type in ELEMENTWISE))
        return fit(shapes, steps, self._rank(scope), self._shape)

    def fixed(self, scope: Scope) -> set[int]:
        """The axes whose sizes constant operands fix."""
        nodes = [node for node in self.nodes if node.op_type in ELEMENTWISE - {"BatchNormalization"}]
        constants = [self.constants[value] for node in nodes for value in node.input if value in self.constants]
        return axes_fixed_by([constant.shape for constant in constants], self._rank(scope))

    def _rank(self, scope: Scope) -> int:
        """Along how many axes windows move."""
        return max((len(_window(scope, node)) for node in self.nodes), default=0)

    def _shape(self, index: int, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """What a node makes of inputs of these shapes."""
        node = self.nodes[index]
        blank = {value: np.zeros(shapes[value]) for value in node.input if value in shapes}
        return evaluate([node], {**self.constants, **blank}, [first_output(node)], self.opsets)[0].shape

    def run(self, feeds: dict[str, AnyArray]) -> AnyArray:
        """Compute the value."""
        return evaluate(self.nodes, {**self.constants, **feeds}, [self.made], self.opsets)[0]

    def size(self, feeds: dict[str, AnyArray]) -> AnyArray:
        """The sum of the absolute values of all addends."""
        nodes, sizes = [], {name: _size(constant) for name, constant in self.constants.items()}
        for node in self.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.op_type = {"Sub": "Add", "Neg": "Identity"}.get(node.op_type, node.op_type)
            if node.op_type == "BatchNormalization":  # subtracts its mean
                mean = f"{node.input[3]}/subtracted"
                sizes[mean] = -sizes[node.input[3]]
                copy.input[3] = mean
            nodes.append(copy)
        sizes.update({name: np.abs(array) for name, array in feeds.items()})
        return evaluate(nodes, sizes, [self.made], self.opsets)[0]

    @property
    def unit(self) -> float:
        """The largest relative error of rounding a constant once."""
        return max((_unit(constant) for constant in self.constants.values()), default=UNIT)


def _size(array: AnyArray) -> AnyArray:
    widened = wide(array)
    return np.abs(widened) if widened.dtype.kind == "f" else array


def _unit(array: AnyArray) -> float:
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return 0.0
    return float(ml_dtypes.finfo(array.dtype).eps) / 2  # type: ignore[no-untyped-call]


def _tiny(part: _Part) -> float:
    """The largest error of rounding a constant once, where it is subnormal."""
    kinds = [constant.dtype for constant in part.constants.values() if _unit(constant)]
    return max((float(ml_dtypes.finfo(kind).smallest_subnormal) for kind in kinds), default=0.0)  # type: ignore[no-untyped-call]


def _compare(
    pair: Pair,
    scope: Scope,
    other: Scope,
    name: str,
    output: str,
    nodes: list[onnx.NodeProto],
    reads: list[str],
    stands: list[onnx.NodeProto],
) -> Worst:
    generator = np.random.default_rng()
    relation = pair.relation(scope, output)
    pulled = relation.forth if relation else None
    if relation is not None and pulled is None:
        raise ProofError("merges", name, "its output changed in a way that is not covered")
    old, new = _Part.of(scope, nodes, output), _Part.of(other, stands, pair.name(scope, output))

    def judge(feeds: dict[str, AnyArray], now: dict[str, AnyArray], base: tuple[AnyArray, ...] | None) -> Any:
        """Compare both answers; or their changes since `base`, which depend on the weights alone."""
        before, after, sizes, bound = old.run(feeds), new.run(now), old.size(feeds), new.size(now)
        if before.shape != after.shape:
            raise ProofError("merges", name, f"its result has shape {after.shape}, not {before.shape}")
        if pulled is not None:
            before, sizes = pulled(before), np.abs(pulled(np.zeros_like(before))) + sizes * along(pulled, sizes.ndim)
        left, right, allowed = before, after, bound
        if base is not None:
            times = len(before) // len(base[0])
            still = [np.tile(array, (times, *[1] * (array.ndim - 1))) for array in base]
            left, right, allowed = before - still[0], after - still[1], bound - still[2]
        with np.errstate(all="ignore"):
            limit = 1.01 * new.unit * allowed + 1e-13 * (bound + sizes) + _tiny(new) * max(1, left[:1].size)
            wrong = ~(np.abs(left - right) <= limit)
        if wrong.any():
            at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            raise ProofError("merges", name, f"it gives {float(right[at])!r}, not {float(left[at])!r}")
        return before, after, bound, sizes

    names = {value: pair.name(scope, value) for value in reads}
    firsts = {names[value]: value for value in reversed(reads)}  # several values may have become one
    others = [value for value in reads if value not in firsts.values()]
    kept = axes_of(pair.relation(scope, value) for value in (output, *reads)) | old.fixed(scope)

    def sized(more: int) -> dict[str, tuple[int, ...]]:
        fitted = old.fitted({value: _shape(pair, scope, value, nodes, kept, more) for value in reads}, scope)
        return {now: fitted[value] for now, value in firsts.items()}

    def drawn(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, AnyArray], dict[str, AnyArray]]:
        pairs = {now: draw(pair.relation(scope, value), shapes[now], generator) for now, value in firsts.items()}
        before = {firsts[now]: two[0] for now, two in pairs.items()}
        before |= {value: undo(pair.relation(scope, value), pairs[names[value]][1]) for value in others}
        return before, {now: two[1] for now, two in pairs.items()}

    def stand(data: dict[str, AnyArray]) -> tuple[dict[str, AnyArray], dict[str, AnyArray]]:
        """Values of the original, and those of the result that stand for them, from the latter where that can be."""
        pairs = {key: both(pair.relation(scope, firsts[key]), array) for key, array in data.items()}
        now = {key: pairs[key][1] for key in data}
        before = {value: undo(pair.relation(scope, value), now[names[value]]) for value in others}
        return before | {firsts[key]: pairs[key][0] for key in data}, now

    def alone(value: str, array: AnyArray) -> tuple[Any, Any]:
        """Data in which one value is given, and the others are zero."""
        times = len(array) // shapes[value][0]
        return stand({
            key: array if key == value else np.zeros((shape[0] * times, *shape[1:])) for key, shape in shapes.items()
        })  # fmt: skip

    def run(array: AnyArray) -> tuple[AnyArray, AnyArray]:
        originals, now = stand(dict.fromkeys(firsts, array))
        before = old.run(originals)
        return before if pulled is None else pulled(before), new.run(now)

    shapes = sized(0)
    judge(*drawn(shapes), None)
    is_open = any(_is_open(pair, scope, value) for value in reads)
    for more in range(1, _period(scope, nodes) if is_open else 1):
        try:
            originals, now = drawn(sized(more))
            old.run(originals)
        except UnevaluatedError:  # a size that the original does not take
            continue
        judge(originals, now, None)
    worst = Worst()
    for value, shape in shapes.items():
        base = judge(*alone(value, np.zeros(shape)), None)
        if len(shapes) == 1 and all(has_inverse(pair.relation(scope, value)) for value in reads):
            worst = _check_weights(name, old, new, (1, *shape[1:]), run, (base[2] + base[3])[:1])
        judge(*alone(value, impulses(shape, generator, FEW if worst.count else IMPULSES)), base)
    return worst


def _check_weights(
    name: str,
    old: _Part,
    new: _Part,
    shape: tuple[int, ...],
    run: Callable[[AnyArray], tuple[AnyArray, AnyArray]],
    size: AnyArray,
) -> Worst:
    """Check that each weight and bias of the operator that stands for a region is a nearest number of its type.

    Args:
        name: the name of the region's root.
        old: the region.
        new: the operator that stands for it.
        shape: the shape of their input.
        run: computes both answers for such an input.
        size: the sum of the absolute values of all addends, for an input of zeros.
    """
    linear = [node for node in new.nodes if node.op_type in LINEAR]
    kernels = [new.constants.get(value) for node in linear for value in node.input[1:2]]
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
    work = sum(constant.size for part in (old, new) for constant in part.constants.values()) * positions
    if taps.count * work > WORK:
        return Worst()
    slack = 1e-13 * size
    worst = _rounded(name, "bias", still[1].astype(kernel.dtype), still[0], slack)
    for now in taps.batches():
        before, after = (output - nothing for output, nothing in zip(run(now), still, strict=True))
        error = slack + 1e-13 * np.abs(before)
        worst = worst.joined(_rounded(name, "weight", after.astype(kernel.dtype), before, error))
    return Worst(worst.ulps, kernel.size + still[0].size // positions)


def _rounded(name: str, what: str, stored: AnyArray, exact: AnyArray, error: AnyArray) -> Worst:
    outcome = check_rounded(stored, exact, error)
    if isinstance(outcome, Wrong):
        raise ProofError("merges", name, f"a {what} is {outcome.stored!r} and should be {outcome.exact!r}")
    return outcome


def along(affine: Affine, rank: int) -> AnyArray:
    """The absolute scales of an affine, shaped to broadcast against a value of that rank."""
    shape = [1] * rank
    for axis, size in affine.places:
        shape[axis] = size
    return np.abs(affine.scale).reshape(shape)


def impulses(shape: tuple[int, ...], generator: np.random.Generator, most: int = IMPULSES) -> AnyArray:
    """Impulses along the first axis: each has a one in one channel, at a corner, a border or in the middle."""
    axis = 1 if len(shape) != 3 else 2
    axis = min(axis, len(shape) - 1)
    count = shape[axis]
    channels = np.arange(count) if count <= most else generator.choice(count, most, replace=False)
    places = [tuple(0 for _ in shape), tuple(size - 1 for size in shape), tuple(size // 2 for size in shape)]
    places.append(tuple(0 if position == 2 else size // 2 for position, size in enumerate(shape)))
    few = [places[choice] for choice in generator.integers(len(places), size=count)]
    chosen = dict.fromkeys(
        (*place[:axis], int(channel), *place[axis + 1 :])
        for channel in channels
        for place in (places if count * len(places) <= most else [few[channel]])
    )
    data = np.zeros((len(chosen), *shape))
    for index, place in enumerate(chosen):
        data[(index, *place)] = 1.0
    return data.reshape(-1, *shape[1:])


def shrunk(size: int, reach: int, step: int) -> int:
    """A smaller size, at least `reach` of it, at which windows with strides that divide `step` end where they did."""
    return min(size, reach + (size - reach) % step)


def axes_of(relations: Iterable[Relation | None]) -> set[int]:
    """The axes along which values change by more than one number, so that their sizes count."""
    affines = [affine for each in relations if each is not None for affine in (each.pulled, each.pushed) if affine]
    return {axis for affine in affines for axis, size in affine.places if size != 1}


def axes_fixed_by(constants: Iterable[tuple[int, ...]], rank: int) -> set[int]:
    """All axes, where an operand of one of these shapes is another number at each place of an image; else none."""
    is_image = any(size != 1 for shape in constants for size in shape[len(shape) - min(rank, len(shape)) :])
    return set(range(rank + 2)) if is_image else set()


def _is_open(pair: Pair, scope: Scope, value: str) -> bool:
    """Whether a size behind the channels is not known."""
    known = pair.shape(scope, value)
    return known is None or None in known[2:]


def _period(scope: Scope, nodes: list[onnx.NodeProto]) -> int:
    """Sizes that differ by it leave the same rest when they are divided by a stride of the region."""
    return lcm(*(stride for node in nodes if _window(scope, node) for stride in attribute(node, "strides", [1])))


def _shape(
    pair: Pair, scope: Scope, value: str, nodes: list[onnx.NodeProto], kept: set[int], more: int
) -> tuple[int, ...]:
    """A shape for an input of a region, as small as its windows allow.

    Args:
        pair: the models.
        scope: the graph.
        value: the input.
        nodes: the region.
        kept: axes that keep their sizes.
        more: what is added to sizes that are not known.
    """
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
    sizes = [2 if size is None else size for size in (known or (None,) * rank)]
    if channels is not None:
        sizes[1] = channels
    windows = [(node, window) for node in nodes if (window := _window(scope, node))]
    if windows and rank > 2:
        reach = max(_reach(node, window) for node, window in windows)
        sizes[0] = 1
        for axis in range(2, rank):
            if known is None or known[axis] is None:
                sizes[axis] = reach + more
            elif axis not in kept:
                sizes[axis] = shrunk(sizes[axis], reach, _period(scope, nodes))
    elif known is not None and known[0] is None:
        sizes[0] = 2
    return tuple(sizes)


def _window(scope: Scope, node: onnx.NodeProto) -> Sequence[int]:
    """The sizes of the window of a node, which has none where it is no convolution or average."""
    kernel = scope.constant(node.input[1]) if node.op_type == "Conv" else None
    if kernel is not None:
        return kernel.shape[2:]
    return list(attribute(node, "kernel_shape", [1])) if node.op_type in ("Conv", "AveragePool") else []


def _reach(node: onnx.NodeProto, window: Sequence[int]) -> int:
    dilations = list(attribute(node, "dilations", [1] * len(window)))
    strides = list(attribute(node, "strides", [1] * len(window)))
    lengths: list[int] = [d * (k - 1) + 1 + 2 * s for k, d, s in zip(window, dilations, strides, strict=True)]
    return max(lengths)
