"""Carriers and nodes that vanish: their laws, such as ``pulled(f(x)) == pushed(f(w))``, checked on random data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine, align
from bnfold.proof.batchnorm import as_affine
from bnfold.proof.certificate import Relation, Shape
from bnfold.proof.evaluate import UnevaluatedError, evaluate
from bnfold.proof.failure import ProofError
from bnfold.proof.instances import Instance
from bnfold.proof.linear import attribute
from bnfold.proof.models import Scope, first_output
from bnfold.proof.pair import Pair
from bnfold.proof.rounding import UNIT

AnyArray = npt.NDArray[Any]
Array = npt.NDArray[np.float64]

TOLERANCE = 1e-12

ELEMENTS = 1 << 25
"""The most elements that an evaluation may read."""

POINTWISE = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Dropout",
        "Identity",
        "LeakyRelu",
        "Neg",
        "PRelu",
        "Relu",
        "Sub",
        "Sum",
        "Mul",
        "Div",
        "Where",
    }
)
"""Operators that treat every size of a non-channel axis alike."""

CARRIERS = POINTWISE | {
    "AveragePool", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
    "Pad", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze", "Upsample",
}  # fmt: skip
"""Operators that treat data of any magnitude alike, so what holds on some data holds on all. Clip does not."""

WINDOWED = frozenset({"AveragePool", "MaxPool"})

GLOBAL = frozenset({"GlobalAveragePool", "GlobalMaxPool"})

FILLS = (2, 3, 1, 4, 5, 6, 7, 8)
"""Sizes that stand for an unknown one. A node is tried at the first two that it takes."""

FACTORISATIONS = 256
"""The most shapes of one number of elements at which a Reshape is tried."""


def draw(relation: Relation | None, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[Array, Array]:
    """Draw a value of the original, and the value of the result that stands for it."""
    drawn = generator.standard_normal(shape)
    if relation is None:
        return drawn, drawn
    if relation.pushed is None:
        return drawn, _apply(relation.pulled, drawn)
    if relation.pulled is None:
        return _apply(relation.pushed, drawn), drawn
    return _draw_both(relation.pulled, relation.pushed, drawn, generator.standard_normal(shape))


def _draw_both(pulled: Affine, pushed: Affine, old: Array, new: Array) -> tuple[Array, Array]:
    """Two drawn arrays, changed so that ``pulled(old) == pushed(new)``.

    Where `pushed` has an inverse, the new value follows from the old one. Where it has none, the old value is one
    number; where `pulled` has none either, it may be any.
    """
    follows, is_fixed = pushed.scale != 0, (pushed.scale == 0) & (pulled.scale != 0)
    with np.errstate(all="ignore"):
        fixed = np.where(is_fixed, (pushed.shift - pulled.shift) / pulled.scale, 0.0)
    old = _apply(pushed.with_vectors(np.where(is_fixed, 0.0, 1.0), fixed), old)
    scale, none = np.where(follows, pushed.scale, 1.0), np.zeros(pushed.size)
    inverse = pushed.with_vectors(np.where(follows, 1 / scale, 0.0), np.where(follows, -pushed.shift / scale, 0.0))
    free = pushed.with_vectors(np.where(follows, 0.0, 1.0), none)
    return old, _apply(inverse, _apply(pulled, old)) + _apply(free, new)


def both(relation: Relation | None, data: Array) -> tuple[Array, Array]:
    """A value of the original, and the value of the result that stands for it.

    The latter is `data`, or the former where the change has no inverse.
    """
    if relation is not None and relation.pushed is None and not has_inverse(relation):
        return data, _apply(relation.pulled, data)
    return undo(relation, data), data


def has_inverse(relation: Relation | None) -> bool:
    """Whether the value of the original follows from the one of the result."""
    return relation is None or relation.pulled is None or bool(np.all(relation.pulled.scale))


def undo(relation: Relation | None, now: Array) -> Array:
    """The value of the original that a value of the result stands for."""
    if relation is None:
        return now
    pushed = _apply(relation.pushed, now)
    if relation.pulled is None:
        return pushed
    if not has_inverse(relation):
        raise UnevaluatedError("its input changed by a map without an inverse")
    scale, shift = relation.pulled.scale, relation.pulled.shift
    return _apply(relation.pulled.with_vectors(1 / scale, -shift / scale), pushed)


def _apply(affine: Affine | None, x: Array) -> Array:
    if affine is None:
        return x
    for axis, size in affine.places:
        if axis >= x.ndim or size not in (1, x.shape[axis]):  # one channel: all alike, whatever the size
            raise UnevaluatedError(f"{size} channels on axis {axis} of a value of shape {x.shape}")
    return affine(x)


def compare(
    name: str, relation: Relation | None, before: AnyArray, after: AnyArray, floors: tuple[float, float]
) -> None:
    """Check that a relation holds between two arrays, computed from data of at most these magnitudes.

    A sum may cancel, and is then as inexact as its addends are large.
    """
    if before.shape != after.shape:
        raise ProofError("carriers", name, f"its result has shape {after.shape}, not {before.shape}")
    pulled, pushed = (relation.pulled, relation.pushed) if relation else (None, None)
    try:
        left, right = _apply(pulled, before), _apply(pushed, after)
    except UnevaluatedError as error:
        raise ProofError("carriers", name, f"the change does not fit its result: {error}") from error
    if left.dtype.kind != "f":
        if not np.array_equal(left, right):
            raise ProofError("carriers", name, "its results differ")
        return
    affine = pulled or pushed
    axes = [axis for axis, _ in affine.places] if affine else []
    sizes = _size(pulled, np.maximum(np.abs(before), floors[0])), _size(pushed, np.maximum(np.abs(after), floors[1]))
    others = tuple(axis for axis in range(left.ndim) if axis not in axes)
    scale = np.maximum(*(size.max(axis=others, keepdims=True, initial=0.0) for size in sizes))
    with np.errstate(all="ignore"):
        distance = np.abs(left - right)
    wrong = ~(distance <= TOLERANCE * scale) & ~(left == right)
    if wrong.any():
        place = np.unravel_index(int(np.argmax(wrong)), left.shape)
        channel = f" in channel {', '.join(str(int(place[axis])) for axis in axes)}" if axes else ""
        raise ProofError(
            "carriers",
            name,
            f"the change does not go through it{channel}: {float(left[place])!r}, {float(right[place])!r}",
        )


def _size(affine: Affine | None, x: Array) -> Array:
    """The magnitude of the addends of an affine's output, for data of magnitudes `x`."""
    return x if affine is None else affine.with_vectors(np.abs(affine.scale), np.abs(affine.shift))(x)


def largest(arrays: Iterable[AnyArray]) -> float:
    """The largest magnitude of a number in some arrays."""
    return max((float(np.abs(array).max(initial=0.0)) for array in arrays if array.dtype.kind == "f"), default=0.0)


def check_carrier(pair: Pair, scope: Scope, node: onnx.NodeProto) -> None:
    """The law of a node that is the same in both models."""
    name = first_output(node)
    if any(entry.HasField("g") or entry.graphs for entry in node.attribute):
        raise ProofError("carriers", name, "a value changed that a node with bodies reads or makes")
    if node.domain not in ("", "ai.onnx"):
        raise ProofError("carriers", name, f"{node.domain}.{node.op_type} is not an operator of ONNX")
    if node.op_type not in CARRIERS:
        raise ProofError("carriers", name, f"a change does not go through a {node.op_type}")
    generator = np.random.default_rng()
    failure = "it takes no size that was tried"
    for attempt in (_try_factorisations, _try_fills, _try_instances):
        try:
            if attempt(pair, scope, node, generator):
                return
        except UnevaluatedError as error:
            failure = str(error)
    raise ProofError("carriers", name, f"not covered: {failure}")


Feeds = dict[str, tuple[AnyArray, AnyArray]]
"""What a node reads, in the original and in the result."""


def _make(scope: Scope, node: onnx.NodeProto, feeds: Feeds) -> list[tuple[AnyArray, AnyArray]]:
    """What a node makes, in the original and in the result."""
    outputs = [value for value in node.output if value]
    before, after = (
        evaluate_one(scope, node, {key: pairs[side] for key, pairs in feeds.items()}, outputs) for side in (0, 1)
    )
    return list(zip(before, after, strict=True))


def _compare_outputs(
    pair: Pair, scope: Scope, node: onnx.NodeProto, feeds: Feeds, outcomes: list[tuple[AnyArray, AnyArray]]
) -> None:
    floors = largest(old for old, _ in feeds.values()), largest(new for _, new in feeds.values())
    for output, (left, right) in zip([value for value in node.output if value], outcomes, strict=True):
        compare(first_output(node), pair.relation(scope, output), left, right, floors)


def _try_fills(pair: Pair, scope: Scope, node: onnx.NodeProto, generator: np.random.Generator) -> bool:
    """Try a node at two sizes in place of unknown ones. Where the node does not run, the original does not either.

    Raises:
        UnevaluatedError: it does not run at two of the sizes.
    """
    tried, failure = 0, UnevaluatedError("no size was tried")
    for fill in FILLS:
        feeds = _feeds(pair, scope, node, generator, fill)
        try:
            outcomes = _make(scope, node, feeds)
        except UnevaluatedError as error:
            failure = error
            continue
        _compare_outputs(pair, scope, node, feeds, outcomes)
        tried += 1
        if tried == 2:
            return True
    raise failure


def _try_factorisations(pair: Pair, scope: Scope, node: onnx.NodeProto, generator: np.random.Generator) -> bool:
    """Try a Reshape at every shape of its data that it takes; whether these are known to be few.

    A target without a wildcard fixes the number of elements, and so sizes of the model's inputs, such as the batch.
    """
    target = scope.constant(node.input[1]) if node.op_type == "Reshape" and len(node.input) == 2 else None
    known = pair.shape(scope, node.input[0])
    if target is None or known is None or None not in known or not (target > 0).all():
        return False
    relation = pair.relation(scope, node.input[0])
    sizes = _with_channels(relation, known)
    unknown = [axis for axis, size in enumerate(sizes) if size is None]
    free, remainder = divmod(math.prod(map(int, target)), max(1, math.prod(size for size in sizes if size is not None)))
    if remainder or not free or free > ELEMENTS:
        return False
    for count, factors in enumerate(_factorisations(free, len(unknown))):
        if count == FACTORISATIONS:
            return False
        filled = dict(zip(unknown, factors, strict=True))
        shape = tuple(filled[axis] if size is None else size for axis, size in enumerate(sizes))
        feeds: Feeds = {node.input[0]: draw(relation, shape, generator), node.input[1]: (target, target)}
        _compare_outputs(pair, scope, node, feeds, _make(scope, node, feeds))
    return True


def _factorisations(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a product of `count` factors, in order."""
    if count <= 1:
        if count or number == 1:
            yield (number,) * count
        return
    for factor in range(1, number + 1):
        if number % factor == 0:
            yield from ((factor, *rest) for rest in _factorisations(number // factor, count - 1))


def _with_channels(relation: Relation | None, known: Shape) -> list[int | None]:
    """A shape, in which axes of unknown size have as many channels as the change has."""
    affine = (relation.pulled or relation.pushed) if relation else None
    places = dict(affine.places) if affine is not None else {}
    return [places.get(axis) if size is None else size for axis, size in enumerate(known)]


def _try_instances(pair: Pair, scope: Scope, node: onnx.NodeProto, generator: np.random.Generator) -> bool:
    """Try a node at the sizes of two instances of the model; whether there are such instances.

    Raises:
        UnevaluatedError: its input did not change along an axis of the size that it has there.
    """
    if scope is not pair.original.main:
        return False
    tried = 0
    for instance in pair.instances():
        feeds = _instantiate(pair, scope, node, instance, generator)
        if feeds is None:
            continue
        try:
            outcomes = _make(scope, node, feeds)
        except UnevaluatedError:
            continue  # sizes that the model does not take
        _compare_outputs(pair, scope, node, feeds, outcomes)
        tried += 1
        if tried == 2:
            return True
    return False


def _instantiate(
    pair: Pair, scope: Scope, node: onnx.NodeProto, instance: Instance, generator: np.random.Generator
) -> Feeds | None:
    """The inputs of a node in an instance; None where that does not tell their sizes."""
    feeds: Feeds = {}
    for value in filter(None, node.input):
        relation, shape, numbers = pair.relation(scope, value), instance.shapes.get(value), scope.constant(value)
        numbers = instance.numbers.get(value) if numbers is None else numbers
        if numbers is not None and relation is None:
            feeds[value] = numbers, numbers
        elif shape is not None and 0 < np.prod(shape, dtype=object) <= ELEMENTS:
            feeds[value] = draw(relation, shape, generator)
        else:
            return None
    return feeds


def evaluate_one(scope: Scope, node: onnx.NodeProto, feeds: dict[str, AnyArray], fetch: list[str]) -> list[AnyArray]:
    """What a node makes."""
    return evaluate([node], feeds, fetch, scope.opsets)


def _feeds(pair: Pair, scope: Scope, node: onnx.NodeProto, generator: np.random.Generator, fill: int) -> Feeds:
    """The inputs of a node, as small as it allows."""
    feeds: Feeds = {}
    for index, value in enumerate(node.input):
        if not value or value in feeds:
            continue
        constant, relation = scope.constant(value), pair.relation(scope, value)
        if constant is not None:
            feeds[value] = constant, constant
            continue
        if node.op_type in ("Reshape", "Expand") and index == 1:
            target = _target(pair, scope, node, feeds[node.input[0]][0].shape)
            feeds[value] = target, target
            continue
        shape = small_shape(pair, scope, node, value, relation, fill)
        feeds[value] = draw(relation, shape, generator)
    return feeds


def _target(pair: Pair, scope: Scope, node: onnx.NodeProto, shape: tuple[int, ...]) -> AnyArray:
    """The shape that a Reshape with a computed one must make."""
    sizes = pair.shape(scope, node.output[0])
    if sizes is None or sum(size is None for size in sizes) > 1 or node.op_type == "Expand":
        raise UnevaluatedError("the shape that it makes is computed, and does not follow from the model's inputs")
    return np.asarray([-1 if size is None else size for size in sizes], np.int64)


def small_shape(
    pair: Pair, scope: Scope, node: onnx.NodeProto, value: str, relation: Relation | None, fill: int
) -> tuple[int, ...]:
    """A shape that a value may have, as small as the node allows. Unknown sizes are `fill`."""
    known = pair.shape(scope, value)
    if known is None:
        affine = (relation.pulled or relation.pushed) if relation else None
        if affine is None or node.op_type not in WINDOWED | GLOBAL:
            raise UnevaluatedError(f"the shape of {value!r} does not follow from the model's inputs")
        kernel = attribute(node, "kernel_shape", [1, 1])
        known = (None, affine.size, *(None for _ in kernel))
    channels = _channels(pair, scope, node, value, len(known))
    sizes = [fill if length is None else length for length in _with_channels(relation, known)]
    for axis in range(len(sizes)):
        if axis in channels:
            continue
        if node.op_type in POINTWISE and sizes[axis] != 1:
            sizes[axis] = fill
        elif node.op_type in WINDOWED and axis >= 2:
            kernel = attribute(node, "kernel_shape", [])
            dilations = attribute(node, "dilations", [1] * len(kernel))
            strides = attribute(node, "strides", [1] * len(kernel))
            reach = dilations[axis - 2] * (kernel[axis - 2] - 1) + 1 + 2 * strides[axis - 2]
            sizes[axis] = min(sizes[axis], reach) if known[axis] else reach
        elif node.op_type in GLOBAL and axis >= 2:
            sizes[axis] = fill
        elif axis == 0 and node.op_type in WINDOWED | GLOBAL:
            sizes[axis] = 1
    if np.prod(sizes, dtype=object) > ELEMENTS:
        raise UnevaluatedError(f"{value!r} is too large to be tried")
    return tuple(sizes)


def _channels(pair: Pair, scope: Scope, node: onnx.NodeProto, value: str, rank: int) -> set[int]:
    """Axes of a value whose sizes matter: those along which an input, an output or a constant of the node varies."""
    axes: set[int] = set()
    for name in (*node.input, *node.output):
        relation = pair.relation(scope, name) if name else None
        affine = (relation.pulled or relation.pushed) if relation else None
        if affine is not None:
            other = pair.rank(scope, name)
            axes.update(axis if other is None else axis - other + rank for axis, _ in affine.places)
    for name in node.input:
        constant = scope.constant(name) if name else None
        if constant is not None and scope.version >= 7:
            axes.update(rank - constant.ndim + axis for axis, size in enumerate(constant.shape) if size != 1)
        elif constant is not None:
            axes.update(range(rank))
    if node.op_type == "Concat":
        axes.add(int(attribute(node, "axis", 1)) % rank)
    return axes


def check_vanished(pair: Pair, scope: Scope, node: onnx.NodeProto) -> None:
    """Check that one value of the result stands for both the input and the output of a node."""
    name = first_output(node)
    data = [value for value in node.input if value and not scope.is_constant(value)]
    if node.op_type == "BatchNormalization":
        data = list(node.input[:1])
    if len(data) != 1 or pair.name(scope, data[0]) != pair.name(scope, node.output[0]):
        raise ProofError("wiring", name, "it vanished, and its output does not match its input")
    if any(pair.readers(scope, value) or value in scope.outputs for value in node.output[1:] if value):
        raise ProofError("wiring", name, "it vanished, and a further output is read")
    before, after = pair.relation(scope, data[0]), pair.relation(scope, node.output[0])
    if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
        check_maps(name, *as_affine(scope, node), before, after)
        return
    if node.op_type not in ("Add", "Sub", "Mul", "Div", "Neg", "Identity"):
        raise ProofError("carriers", name, f"a {node.op_type} vanished")
    generator = np.random.default_rng()
    try:
        shape = small_shape(pair, scope, node, data[0], before or after, 2)
        _insist_on_size(pair, scope, node, data[0])
        old, new = draw(before, shape, generator)
        feeds = {value: constant for value in node.input if value and (constant := scope.constant(value)) is not None}
        output = evaluate_one(scope, node, {**feeds, data[0]: old}, [node.output[0]])[0]
        compare(name, after, output, new, (largest([old]), largest([new])))
    except UnevaluatedError as error:
        raise ProofError("carriers", name, f"not covered: {error}") from error


def _insist_on_size(pair: Pair, scope: Scope, node: onnx.NodeProto, data: str) -> None:
    """Check that constants of several elements do not broadcast data: its sizes along their axes are known."""
    shape = pair.shape(scope, data)
    for value in node.input:
        constant = scope.constant(value) if value and scope.version >= 7 else None
        if shape is None or constant is None:
            continue
        for size, known in zip(reversed(constant.shape), reversed(shape), strict=False):
            if size != 1 and known != size:
                raise UnevaluatedError(f"the size of {data!r} does not follow from the model's inputs")


def _both_ways(affine: Affine, a_x: Affine, p_x: Affine, p_y: Affine) -> tuple[Affine, Affine]:
    """Two maps that are the same where ``a_x(x) = p_x(w)`` implies ``made(x) = p_y(w)``.

    Both are maps of `x` where `p_x` has an inverse, else of `w` where `a_x` has one. Where neither has, both are
    constant.
    """
    with np.errstate(all="ignore"):
        there, here = p_x.scale != 0, a_x.scale != 0
        to_w = p_y.scale / p_x.scale
        of_x = to_w * a_x.scale, to_w * (a_x.shift - p_x.shift) + p_y.shift
        to_x = affine.scale / a_x.scale
        of_w = to_x * p_x.scale, to_x * (p_x.shift - a_x.shift) + affine.shift
    neither = np.abs(affine.scale) + np.abs(p_y.scale), affine.shift
    left = [
        np.select([there, here], [mine, through], free)
        for mine, through, free in zip((affine.scale, affine.shift), of_w, neither, strict=True)
    ]
    right = [
        np.select([there, here], [through, its], free)
        for through, its, free in zip(of_x, (p_y.scale, p_y.shift), (np.zeros(affine.size), p_y.shift), strict=True)
    ]
    return affine.with_vectors(left[0], left[1]), affine.with_vectors(right[0], right[1])


def check_maps(name: str, bn: Affine, size: Array, before: Relation | None, after: Relation | None) -> None:
    """Check that ``a_x(x) = p_x(w)`` implies ``a_y(bn(x)) = p_y(w)``, channel by channel."""
    identity = Affine.identity(bn.size, bn.axis)
    a_x, p_x = (before.pulled or identity, before.pushed or identity) if before else (identity, identity)
    a_y, p_y = (after.pulled or identity, after.pushed or identity) if after else (identity, identity)
    sizes = Affine(np.ones(bn.size), size, bn.axis)
    try:
        a_x, p_x, a_y, p_y, bn, sizes = align(a_x, p_x, a_y, p_y, bn, sizes)
    except ValueError as error:
        raise ProofError("weights", name, "its input or output changed along another axis") from error
    between, size = a_y.after(bn), sizes.shift
    if before is None or before.pulled is None:  # x = p_x(w)
        left, right = between.after(p_x), p_y
    else:
        left, right = _both_ways(between, a_x, p_x, p_y)
    with np.errstate(all="ignore"):
        about = np.abs(a_y.scale) * (size + np.abs(bn.scale * p_x.shift)) + np.abs(a_y.shift)
        about += np.abs(p_y.shift)
        if before is not None and before.pulled is not None:
            back = np.where(p_x.scale, np.abs(p_y.scale / p_x.scale), np.abs(between.scale / a_x.scale))
            about += np.where(np.isfinite(back), back, 0.0) * (np.abs(a_x.shift) + np.abs(p_x.shift))
        wrong = ~(np.abs(left.scale - right.scale) <= 64 * UNIT * np.abs(left.scale))
        wrong |= ~(np.abs(left.shift - right.shift) <= 64 * UNIT * about)
    if wrong.any():
        channel = int(np.argmax(wrong))
        pairs = [(float(affine.scale[channel]), float(affine.shift[channel])) for affine in (left, right)]
        raise ProofError(
            "weights", name, f"channel {channel} of its map is {pairs[0]}, and the certificate says {pairs[1]}"
        )
