"""The law of a node between, on data, evaluated by torch; and of a node that vanishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from bnfold.proof.torch.shapes import concrete

ELEMENTS = 1 << 25
"""Of what an evaluation may read."""

_POINTWISE = (
    "add sub rsub mul div neg cat relu leaky_relu prelu dropout identity clone contiguous detach alias to"
    " _to_copy float double half bfloat16 type type_as lift_fresh_copy"
)

POINTWISE = frozenset(_POINTWISE.split())
"""Operators that do the same whatever the sizes of axes are that are not channels."""

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
    " reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
)

CARRIERS = POINTWISE | frozenset(_CARRIERS.split())
"""Operators that do the same to data of any size: what holds on some data holds on all. A clamp, say, is none."""

UNKNOWN = 20
"""A size that is not known; what does not take it is not proved."""


def check_carrier(pair: Pair, node: fx.Node) -> None:
    """The law of a node that is the same in both models."""
    call = pair.original.calls[node]
    if call.name not in CARRIERS:
        raise ProofError("carriers", node.name, f"a change does not go through {call.name or node.target}")
    generator = np.random.default_rng()
    tries = 0
    problem = ""
    for step in (0, 1, 2):
        try:
            values = _values(pair, node, generator, step)
            made = [_run(pair, node, values, side) for side in (0, 1)]
        except UnevaluatedError as error:
            problem = problem or str(error)
            continue
        tries += 1
        data = [each for each in values.values() if isinstance(each, tuple)]
        floors = tuple(largest([array(each[side]) for each in data]) for side in (0, 1))
        for index, (before, after) in enumerate(zip(*made, strict=True)):
            key = f"{node.name}[{index}]" if pair.original.is_spread(node) else node.name
            if pair.original.is_spread(node) and key not in pair.original.keys(node) and pair.relation_of(key) is None:
                continue
            _compare(node, pair.relation_of(key), before, after, floors)  # type: ignore[arg-type]
    if not tries:
        raise ProofError("carriers", node.name, f"not covered: {problem}")


def _compare(
    node: fx.Node, relation: Relation | None, before: torch.Tensor, after: torch.Tensor, floors: tuple[float, float]
) -> None:
    try:
        compare(node.name, relation, array(before), array(after), floors)
    except UnevaluatedError as error:
        raise ProofError("carriers", node.name, f"not covered: {error}") from error


def _run(pair: Pair, node: fx.Node, values: Mapping[fx.Node, Any], side: int) -> list[torch.Tensor]:
    mine = {key: value[side] if isinstance(value, tuple) else value for key, value in values.items()}
    return tensors(evaluate(node, pair.original.calls[node].module, mine))


def _values(pair: Pair, node: fx.Node, generator: np.random.Generator, step: int) -> dict[fx.Node, Any]:
    """What a node reads: data in the original and in the result, constants, and sizes."""
    found: dict[fx.Node, Any] = {}
    for each in node.all_input_nodes:
        constant = pair.original.constant(each)
        value = pair.shapes.values.get(each)
        if constant is not None:
            found[each] = widen(constant)
        elif each in pair.original.calls and pair.original.calls[each].name == "device":
            found[each] = torch.device("cpu")
        elif _is_size(value):
            found[each] = concrete_size(value, step)
        elif pair.original.is_spread(each):
            raise UnevaluatedError("it reads a tuple")
        elif isinstance(value, torch.Tensor) and not value.is_floating_point():
            if pair.relation(each) is not None:
                raise UnevaluatedError("what it reads changed and is no floating-point number")
            raise UnevaluatedError(f"{each.name!r} is neither constant nor data")
        else:
            found[each] = drawn(pair, node, each, generator, step)
    return found


def _is_size(value: Any) -> bool:
    sizes = value if isinstance(value, tuple | list) else [value]
    return bool(sizes) and all(
        isinstance(each, int | float | torch.SymInt | torch.dtype | torch.device) for each in sizes
    )


def concrete_size(value: Any, step: int) -> Any:
    """A number for a size, or several."""
    if isinstance(value, tuple | list):
        return tuple(concrete_size(each, step) for each in value)
    found = concrete(value, step)
    if found is None:
        raise UnevaluatedError("a size is not known")
    return found


def drawn(
    pair: Pair, node: fx.Node, each: fx.Node, generator: np.random.Generator, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A value of the original that a node reads, and what it is in the result."""
    relation = pair.relation(each)
    old, new = draw(relation, _shape(pair, node, each, relation, step), generator)
    return torch.from_numpy(np.ascontiguousarray(old)), torch.from_numpy(np.ascontiguousarray(new))


def _shape(pair: Pair, node: fx.Node, each: fx.Node, relation: Relation | None, step: int) -> tuple[int, ...]:
    """A shape that a value may have."""
    known = pair.shapes.shape(each)
    if known is None:
        raise UnevaluatedError(f"the shape of {each.name!r} does not follow from the model's inputs")
    channels = _channels(pair, node, each, len(known))
    affine = (relation.pulled or relation.pushed) if relation else None
    places = dict(affine.places) if affine is not None else {}
    is_pointwise = pair.original.calls[node].name in POINTWISE
    sizes: list[int] = []
    for axis, size in enumerate(known):
        found = concrete(size, step)
        channels_here = places.get(axis)
        if channels_here is not None:
            if isinstance(size, torch.SymInt) or (size is not None and size != channels_here):
                raise UnevaluatedError(f"{channels_here} channels on axis {axis} of a value of shape {tuple(known)}")
            sizes.append(channels_here)
        elif found is None:
            sizes.append(channels[axis] if channels.get(axis) else 2 + step if axis == 0 else UNKNOWN + step)
        elif is_pointwise and axis not in channels and found != 1:
            sizes.append(2 + step)
        else:
            sizes.append(found)
    if np.prod(sizes, dtype=object) > ELEMENTS:
        raise UnevaluatedError(f"{each.name!r} is too large to be tried")
    return tuple(sizes)


def _channels(pair: Pair, node: fx.Node, each: fx.Node, rank: int) -> dict[int, int]:
    """Axes of a value whose sizes matter: those of changes of what the node reads or makes, and of its constants."""
    found: dict[int, int] = {}
    is_joined = pair.original.calls[node].name in ("cat", "stack")
    for other in (*node.all_input_nodes, node):
        relation = pair.relation(other)
        affine = (relation.pulled or relation.pushed) if relation else None
        theirs = pair.shapes.rank(other)
        if affine is not None:
            for axis, size in affine.places:
                found[axis - (rank if theirs is None else theirs) + rank] = 0 if is_joined else size
        constant = pair.original.constant(other) if other is not node else None
        if constant is not None:
            found.update({rank - constant.dim() + axis: size for axis, size in enumerate(constant.shape) if size != 1})
    call = pair.original.calls[node]
    if is_joined:
        given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        found[given % rank if isinstance(given, int) else 0] = 0
    if call.name == "prelu":
        found[1] = found.get(1, 0)
    return found


_VANISH = "add sub rsub mul div neg identity dropout clone contiguous detach alias"

VANISH = frozenset(_VANISH.split())


def check_vanished(pair: Pair, node: fx.Node) -> bool:
    """That one value of the result stands for what a node read and for what it made; whether it is a BatchNorm."""
    side, name = pair.original, node.name
    batchnorm = read_batchnorm(side, node, pair.shapes.rank(side.calls[node].get("input")))
    data = [each for each in node.all_input_nodes if each not in side.constants]
    data = data if batchnorm is None else [batchnorm.data]
    keys = side.keys(node)
    key = f"{name}[0]" if side.is_spread(node) else name
    stands = pair.certificate.names.get(("main", key), key)
    if len(data) != 1 or pair.name(data[0]) != stands:
        raise ProofError("wiring", name, "it vanished, and what it made is not what it read")
    if any(each != key for each in keys) or (
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
        old, new = (array(each) for each in values[data[0]])
        (made,) = _run(pair, node, values, 0)
        compare(name, after, array(made), new, (largest([old]), largest([new])))
    except UnevaluatedError as error:
        raise ProofError("carriers", name, f"not covered: {error}") from error
    return False


def _insist_on_type(pair: Pair, node: fx.Node, data: fx.Node, *, is_batchnorm: bool) -> None:
    """That a node which vanished made what it read of the same type and shape."""
    made = pair.shapes.values.get(node)
    made = made[0] if isinstance(made, tuple) and made else made
    read = pair.shapes.values.get(data)
    if isinstance(made, torch.Tensor) and isinstance(read, torch.Tensor):
        if made.dtype != read.dtype or len(made.shape) != len(read.shape):
            raise ProofError("wiring", node.name, f"it vanished, and made {made.dtype} of {read.dtype}")
        return
    if not is_batchnorm:
        constants = [pair.original.constant(each) for each in node.all_input_nodes if each is not data]
        known = _dtype(pair, data)
        if any(each is not None and each.dim() and each.dtype != known for each in constants):
            raise ProofError("wiring", node.name, "it vanished, and the type of what it read is not known")


def _dtype(pair: Pair, node: fx.Node) -> torch.dtype | None:
    """The type of a value, by the weights behind which it was made."""
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
    """That constants do not make data larger."""
    made, read = pair.shapes.values.get(node), pair.shapes.values.get(data)
    if isinstance(made, torch.Tensor) and isinstance(read, torch.Tensor):
        if [str(each) for each in made.shape] != [str(each) for each in read.shape]:
            raise ProofError("wiring", node.name, f"it vanished, and made {made.shape} of {read.shape}")
        return
    rank = pair.shapes.rank(data)
    relation = pair.relation(data) or pair.relation(node)
    affine = (relation.pulled or relation.pushed) if relation else None
    for each in node.all_input_nodes:
        constant = None if each is data else pair.original.constant(each)
        if constant is None:
            continue
        long = [axis - constant.dim() for axis, size in enumerate(constant.shape) if size != 1]
        if rank is None or constant.dim() > rank or (long and (affine is None or long != [affine.axis - rank])):
            raise ProofError("carriers", node.name, "the size of what it read does not follow from the model's inputs")
