"""Carriers and nodes that vanish: their laws, checked on random data that torch evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx

from bnfold.proof.carriers import check_maps, compare, draw, largest
from bnfold.proof.certificate import Relation
from bnfold.proof.evaluate import UnevaluatedError
from bnfold.proof.failure import ProofError
from bnfold.proof.torch.evaluate import array, evaluate, tensors, widen
from bnfold.proof.torch.linear import read_batchnorm
from bnfold.proof.torch.pair import Pair

ELEMENTS = 1 << 25
"""The most elements that an evaluation may read."""

_POINTWISE = (
    "add sub rsub mul div neg cat relu leaky_relu prelu dropout identity clone contiguous detach alias to"
    " _to_copy float double half bfloat16 type type_as lift_fresh_copy"
)

POINTWISE = frozenset(_POINTWISE.split())
"""Operators that treat every size of a non-channel axis alike."""

_CARRIERS = (
    "chunk split split_with_sizes tensor_split unbind narrow slice getitem select index index_select permute"
    " transpose swapaxes swapdims t adjoint T mT H mH numpy_T matrix_H reshape view view_as _unsafe_view"
    " _reshape_copy _reshape_alias view_copy reshape_as flatten unflatten squeeze unsqueeze pixel_shuffle"
    " pixel_unshuffle channel_shuffle expand broadcast_to expand_as repeat tile stack flip roll max_pool1d"
    " max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d"
    " adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"
    " adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d mean sum amax interpolate upsample_nearest1d"
    " upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d"
    " _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d"
    " _upsample_bilinear2d_aa _upsample_bicubic2d_aa pad constant_pad_nd reflection_pad1d reflection_pad2d"
    " reflection_pad3d matmul mm bmm replication_pad1d replication_pad2d replication_pad3d"
)

CARRIERS = POINTWISE | frozenset(_CARRIERS.split())
"""Operators that treat data of any magnitude alike, so what holds on some data holds on all. A clamp does not."""

UNKNOWN = 20
"""The size in place of an unknown one. An operator that does not take it is not proved."""


TRIES = 3
"""How often an operator is evaluated, with other data each time, at least."""


def check_carrier(pair: Pair, node: fx.Node) -> None:
    """The law of a node that is the same in both models."""
    call = pair.original.calls[node]
    if call.name not in CARRIERS:
        raise ProofError("carriers", node.name, f"a change does not go through {call.name or node.target}")
    generator = np.random.default_rng()
    tries = 0
    problem = ""
    steps = pair.shapes.steps
    for step in (*steps, *[0] * (TRIES - len(steps))):
        try:
            values = _values(pair, node, generator, step)
            outputs = [_run(pair, node, values, side) for side in (0, 1)]
        except UnevaluatedError as error:
            problem = problem or str(error)
            continue
        tries += 1
        data = [value for value in values.values() if isinstance(value, Drawn)]
        floors = tuple(largest([array(value[side]) for value in data]) for side in (0, 1))
        for index, (before, after) in enumerate(zip(*outputs, strict=True)):
            key = f"{node.name}[{index}]" if pair.original.is_spread(node) else node.name
            if pair.original.is_spread(node) and key not in pair.original.keys(node) and pair.relation_of(key) is None:
                continue
            compare(node.name, pair.relation_of(key), array(before), array(after), floors)  # type: ignore[arg-type]
    if not tries:
        raise ProofError("carriers", node.name, f"not covered: {problem}")


def _run(pair: Pair, node: fx.Node, values: Mapping[fx.Node, Any], side: int) -> list[torch.Tensor]:
    mine = {key: value[side] if isinstance(value, Drawn) else value for key, value in values.items()}
    return tensors(evaluate(node, pair.original.calls[node].module, mine))


def _values(pair: Pair, node: fx.Node, generator: np.random.Generator, step: int) -> dict[fx.Node, Any]:
    """The inputs of a node: data in the original and in the result, constants, and sizes."""
    values: dict[fx.Node, Any] = {}
    for source in node.all_input_nodes:
        constant = pair.original.constant(source)
        value = pair.shapes.value(source, step)
        if constant is not None:
            values[source] = widen(constant)
        elif source in pair.original.calls and pair.original.calls[source].name == "device":
            values[source] = torch.device("cpu")
        elif _is_size(value):
            values[source] = known_size(value)
        elif pair.original.is_spread(source):
            raise UnevaluatedError("it reads a tuple")
        elif isinstance(value, torch.Tensor) and not value.is_floating_point():
            if pair.relation(source) is not None:
                raise UnevaluatedError("an input changed that is no floating-point number")
            raise UnevaluatedError(f"{source.name!r} is neither constant nor data")
        else:
            values[source] = drawn(pair, node, source, generator, step)
    return values


def _is_size(value: Any) -> bool:
    sizes = value if isinstance(value, tuple | list) else [value]
    return bool(sizes) and all(
        isinstance(size, int | float | torch.SymInt | torch.dtype | torch.device) for size in sizes
    )


def known_size(value: Any) -> Any:
    """A size, or several, if they are known."""
    if isinstance(value, tuple | list):
        return tuple(map(known_size, value))
    if isinstance(value, torch.SymInt):
        raise UnevaluatedError("a size is not known")
    return value


class Drawn(NamedTuple):
    """An input in the original, and the value of the result that stands for it."""

    before: torch.Tensor
    after: torch.Tensor


def drawn(pair: Pair, node: fx.Node, source: fx.Node, generator: np.random.Generator, step: int) -> Drawn:
    """Draw an input of a node in the original, and the value of the result that stands for it."""
    relation = pair.relation(source)
    old, new = draw(relation, _shape(pair, node, source, relation, step), generator)
    return Drawn(torch.from_numpy(np.ascontiguousarray(old)), torch.from_numpy(np.ascontiguousarray(new)))


def _shape(pair: Pair, node: fx.Node, source: fx.Node, relation: Relation | None, step: int) -> tuple[int, ...]:
    """A shape that a value may have."""
    known = pair.shapes.shape(source, step)
    if known is None:
        raise UnevaluatedError(f"the shape of {source.name!r} does not follow from the model's inputs")
    channels = _channels(pair, node, source, len(known))
    affine = (relation.pulled or relation.pushed) if relation else None
    places = dict(affine.places) if affine is not None else {}
    for (shape,) in pair.shapes.shapes(source):
        for axis, channels_there in places.items():
            if shape[axis] not in (None, channels_there):
                raise UnevaluatedError(f"{channels_there} channels on axis {axis} of a value of shape {shape}")
    is_pointwise = pair.original.calls[node].name in POINTWISE
    sizes: list[int] = []
    for axis, number in enumerate(known):
        channels_here = places.get(axis)
        if channels_here is not None:
            sizes.append(channels_here)
        elif number is None:
            sizes.append(channels[axis] if channels.get(axis) else 2 + step if axis == 0 else UNKNOWN + step)
        elif is_pointwise and axis not in channels and number != 1:
            sizes.append(2 + step)
        else:
            sizes.append(number)
    if np.prod(sizes, dtype=object) > ELEMENTS:
        raise UnevaluatedError(f"{source.name!r} is too large to be tried")
    return tuple(sizes)


def _channels(pair: Pair, node: fx.Node, source: fx.Node, rank: int) -> dict[int, int]:
    """Axes of a value whose sizes matter: those along which an input, an output or a constant of the node varies."""
    channels: dict[int, int] = {}
    is_joined = pair.original.calls[node].name in ("cat", "stack")
    for other in (*node.all_input_nodes, node):
        relation = pair.relation(other)
        affine = (relation.pulled or relation.pushed) if relation else None
        theirs = pair.shapes.rank(other)
        if affine is not None:
            for axis, size in affine.places:
                channels[axis - (rank if theirs is None else theirs) + rank] = 0 if is_joined else size
        constant = pair.original.constant(other) if other is not node else None
        if constant is not None:
            channels.update(
                {rank - constant.dim() + axis: size for axis, size in enumerate(constant.shape) if size != 1}
            )
    call = pair.original.calls[node]
    if is_joined:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        channels[dim % rank if isinstance(dim, int) else 0] = 0
    if call.name == "prelu":
        channels[1] = channels.get(1, 0)
    return channels


_VANISH = "add sub rsub mul div neg identity dropout clone contiguous detach alias"

VANISH = frozenset(_VANISH.split())


def check_vanished(pair: Pair, node: fx.Node) -> bool:
    """Check that one value of the result stands for input and output of a node; whether that is a BatchNorm."""
    side, name = pair.original, node.name
    batchnorm = read_batchnorm(side, node, pair.shapes.rank(side.calls[node].get("input")))
    data = [source for source in node.all_input_nodes if source not in side.constants]
    data = data if batchnorm is None else [batchnorm.data]
    keys = side.keys(node)
    key = f"{name}[0]" if side.is_spread(node) else name
    stands = pair.certificate.names.get(("main", key), key)
    if len(data) != 1 or pair.name(data[0]) != stands:
        raise ProofError("wiring", name, "it vanished, and its output does not match its input")
    if any(entry != key for entry in keys) or (
        side.is_spread(node) and any(side.pick(user) is None for user in node.users)
    ):
        raise ProofError("wiring", name, "it vanished, and a further output is read")
    _insist_on_type(pair, node, data[0], is_batchnorm=batchnorm is not None)
    before, after = pair.relation(data[0]), pair.relation_of(key)
    if batchnorm is not None:
        affine, size = batchnorm.affine
        if not affine.is_finite or (batchnorm.stored[3].astype(np.float64) < 0).any():
            raise ProofError("weights", name, "its map is not finite")
        check_maps(name, affine, size, before, after)
        return True
    if side.calls[node].name not in VANISH:
        raise ProofError("carriers", name, f"{side.calls[node].name or node.target} vanished")
    _insist_on_size(pair, node, data[0])
    try:
        values = _values(pair, node, np.random.default_rng(), 0)
        old, new = (array(tensor) for tensor in values[data[0]])
        (output,) = _run(pair, node, values, 0)
        compare(name, after, array(output), new, (largest([old]), largest([new])))
    except UnevaluatedError as error:
        raise ProofError("carriers", name, f"not covered: {error}") from error
    return False


def _insist_on_type(pair: Pair, node: fx.Node, data: fx.Node, *, is_batchnorm: bool) -> None:
    """Check that the output of a vanished node had the type and shape of its input."""
    output = pair.shapes.value(node)
    output = output[0] if isinstance(output, tuple) and output else output
    read = pair.shapes.value(data)
    if isinstance(output, torch.Tensor) and isinstance(read, torch.Tensor):
        if output.dtype != read.dtype or len(output.shape) != len(read.shape):
            raise ProofError("wiring", node.name, f"it vanished, and made {output.dtype} of {read.dtype}")
        return
    if not is_batchnorm:
        constants = [pair.original.constant(source) for source in node.all_input_nodes if source is not data]
        known = _dtype(pair, data)
        if any(constant is not None and constant.dim() and constant.dtype != known for constant in constants):
            raise ProofError("wiring", node.name, "it vanished, and the type of its input is not known")


def insist_on_dtype(pair: Pair, node: fx.Node, dtype: torch.dtype) -> None:
    """Check that a value has a type."""
    value = pair.shapes.value(node)
    known = value.dtype if isinstance(value, torch.Tensor) else _dtype(pair, node)
    if known is not dtype:
        raise ProofError("wiring", node.name, f"its type is {known or 'not known'}, and what is added to it is {dtype}")


def _dtype(pair: Pair, node: fx.Node) -> torch.dtype | None:
    """The type of a value, as told by the weights in front of it."""
    while node in pair.original.calls:
        call = pair.original.calls[node]
        weight = pair.original.constant(call.get("weight", call.get("running_mean")))
        if weight is not None:
            return weight.dtype
        source = call.get("input")
        if not isinstance(source, fx.Node) or call.name not in CARRIERS - {"to", "_to_copy", "float", "double", "half",
                                                                          "bfloat16", "type", "type_as"}:  # fmt: skip
            return None
        node = source
    return None


def _insist_on_size(pair: Pair, node: fx.Node, data: fx.Node) -> None:
    """Check that constants do not broadcast data to a larger shape."""
    shapes = pair.shapes.shapes(node, data)
    if shapes and not any(None in shape for both in shapes for shape in both):
        for output, read in shapes:
            if output != read:
                raise ProofError("wiring", node.name, f"it vanished, and made {output} of {read}")
        return
    rank = pair.shapes.rank(data)
    relation = pair.relation(data) or pair.relation(node)
    affine = (relation.pulled or relation.pushed) if relation else None
    for source in node.all_input_nodes:
        constant = None if source is data else pair.original.constant(source)
        if constant is None:
            continue
        long = [axis - constant.dim() for axis, size in enumerate(constant.shape) if size != 1]
        if rank is None or constant.dim() > rank or (long and (affine is None or long != [affine.axis - rank])):
            raise ProofError("carriers", node.name, "the size of its input does not follow from the model's inputs")
