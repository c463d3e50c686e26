"""Operators that carry an affine: structure, pooling, resizing, padding, sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from bnfold.algebra.linear import Window
from bnfold.algebra.pooling import WHOLLY_PADDING, PoolAxis
from bnfold.frontends.torch.operators import read_linear
from bnfold.frontends.torch.operators.reader import Reader, Unreadable, part_of
from bnfold.frontends.torch.tensors import BITS, DTYPES
from bnfold.graph.ops import (
    Average,
    Broadcast,
    Concat,
    Identity,
    Maximum,
    Op,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Rectifier,
    Reshape,
    Shape,
    Split,
    Sum,
    Take,
    Transpose,
)
from bnfold.graph.outcome import Reason


def _known(reader: Reader, node: object = None) -> Shape:
    shape = reader.shape(node)
    if shape is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the shape of its input is not known")
    return shape


def _reshape(reader: Reader) -> Reshape:
    before, after = reader.shape(), reader.shape(reader.node)
    if before is None or after is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the shapes it reshapes between are not known")
    if any(isinstance(each, torch.dtype) for each in reader.call.arguments.get("shape") or ()):
        raise Unreadable(Reason.NOT_LINEAR, "it reads the bits as another type")
    return Reshape(before, after)


def _concat(reader: Reader) -> Concat:
    tensors = reader.call.get("tensors")
    if not isinstance(tensors, list | tuple) or not all(isinstance(each, fx.Node) for each in tensors):
        raise Unreadable(Reason.NOT_LINEAR, "what it joins is no list of computed values")
    if len({reader.dtype(each) for each in tensors} - {None}) > 1:
        raise Unreadable(Reason.NOT_LINEAR, "it joins values of different types")
    axis = reader.axis(reader.get("dim", 0), tensors[0])
    sizes: list[int | None] = []
    for each in tensors:
        shape = reader.shape(each)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        sizes.append(size if isinstance(size, int) else None)
    return Concat(axis, tuple(sizes))


def split_sizes(reader: Reader) -> tuple[int, tuple[int, ...]]:
    """The axis that a chunk or split cuts, and the sizes of the parts."""
    axis = reader.axis(reader.get("dim", 0))
    op = reader.call.op
    cut = reader.get({"chunk": "chunks", "split": "split_size"}.get(op, "split_sizes"))
    if isinstance(cut, list | tuple):
        if not all(isinstance(size, int) for size in cut):
            raise Unreadable(Reason.UNKNOWN_SHAPE, "the sizes of its parts are computed")
        return axis, tuple(int(size) for size in cut)
    shape = reader.shape()
    size = shape[axis] if shape is not None else None
    if not isinstance(size, int) or not isinstance(cut, int) or cut < 1 or size < 1:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the size along the axis that it cuts is not known")
    step = -(-size // cut) if op == "chunk" else cut
    return axis, tuple(min(step, size - start) for start in range(0, size, step))


def _split(reader: Reader) -> Split:
    return Split(*split_sizes(reader))


def _take(reader: Reader, cuts: dict[int, slice]) -> Take:
    """Cuts along axes; the channel axis first, if its size is known."""
    shape = _known(reader)
    for axis in sorted(cuts, key=lambda axis: axis != 1):
        size = shape[axis]
        if isinstance(size, int):
            return Take(axis, np.arange(size)[cuts[axis]], size, frozenset(cuts) - {axis})
    return Take(-1, np.zeros(0, np.intp), 0, frozenset(cuts))


def _slice(reader: Reader) -> Take:
    axis = reader.axis(reader.get("dim", 0))
    ends = reader.call.get("start"), reader.call.get("end"), reader.call.get("step", 1)
    if not all(each is None or isinstance(each, int) for each in ends):
        return Take(-1, np.zeros(0, np.intp), 0, frozenset({axis}))
    return _take(reader, {axis: slice(*ends)})


def _narrow(reader: Reader) -> Take:
    axis = reader.axis(reader.get("dim"))
    start, length = reader.call.get("start"), reader.call.get("length")
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return Take(-1, np.zeros(0, np.intp), 0, frozenset({axis}))
    return _take(reader, {axis: slice(start, start + length)})


def _getitem(reader: Reader) -> Op:
    """``x[a:b, ..., c:d]``."""
    index = reader.call.get("index")
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(isinstance(each, slice) or each is Ellipsis for each in parts) or parts.count(Ellipsis) > 1:
        raise Unreadable(Reason.NOT_LINEAR, "it takes more than slices")
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (reader.rank() - len(parts) + 1)
    cuts = {axis: each for axis, each in enumerate(parts) if each != slice(None)}
    if not cuts:
        return Identity()
    if any(isinstance(end, fx.Node) for cut in cuts.values() for end in (cut.start, cut.stop, cut.step)):
        return Take(-1, np.zeros(0, np.intp), 0, frozenset(cuts))
    return _take(reader, cuts)


def _gather(reader: Reader, axis: int, index: Any) -> Take:
    if not reader.facts.constants.holds(index):
        raise Unreadable(Reason.NOT_CONSTANT, "its indices are not constant")
    positions = reader.facts.constants.get(index)
    if positions.dim() != 1 or positions.dtype not in (torch.int64, torch.int32):
        raise Unreadable(Reason.NOT_LINEAR, "its indices are not a vector of integers")
    size = _known(reader)[axis]
    if not isinstance(size, int):
        return Take(-1, np.zeros(0, np.intp), 0, frozenset({axis}))
    array = positions.cpu().numpy()
    if array.size and not (-size <= array.min() and array.max() < size):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its indices are out of range")
    return Take(axis, np.where(array < 0, array + size, array).astype(np.intp), size)


def _index_select(reader: Reader) -> Take:
    return _gather(reader, reader.axis(reader.get("dim")), reader.call.get("index"))


def _index(reader: Reader) -> Take:
    indices = reader.call.get("indices", ())
    given = [axis for axis, each in enumerate(indices) if each is not None]
    if len(given) != 1:
        raise Unreadable(Reason.NOT_LINEAR, "it takes positions along several axes")
    return _gather(reader, given[0], indices[given[0]])


def _channel_shuffle(reader: Reader) -> Take:
    groups, size = reader.get("groups"), _known(reader)[1]
    if not isinstance(size, int) or not isinstance(groups, int) or groups < 1 or size % groups:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the number of its channels is not known")
    return Take(1, np.arange(size).reshape(groups, -1).T.reshape(-1), size)


def _permute(reader: Reader) -> Transpose:
    return Transpose(tuple(reader.axis(axis) for axis in reader.get("dims", ())))


def _transpose(reader: Reader) -> Transpose:
    order = list(range(reader.rank()))
    first, second = reader.axis(reader.get("dim0")), reader.axis(reader.get("dim1"))
    order[first], order[second] = second, first
    return Transpose(tuple(order))


def _t(reader: Reader) -> Transpose:
    return Transpose(tuple(reversed(range(reader.rank()))))


def _packed(reader: Reader, node: object, factor: str) -> tuple[int, int]:
    shape = _known(reader, node)
    size = reader.get(factor)
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(size, int):
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the number of its channels is not known")
    return size, shape[1]


def _pixel_shuffle(reader: Reader) -> PixelShuffle:
    factor, channels = _packed(reader, None, "upscale_factor")
    return PixelShuffle(factor, channels // factor**2, channel_first=True)


def _pixel_unshuffle(reader: Reader) -> PixelUnshuffle:
    factor, channels = _packed(reader, None, "downscale_factor")
    return PixelUnshuffle(factor, channels, channel_first=True)


def _window_axes(reader: Reader) -> frozenset[int]:
    rank, dims = reader.rank(), reader.call.dims
    if dims is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the axes of its window are not known")
    return frozenset(range(rank - dims, rank))


def _is_nonzero(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return any(not isinstance(each, int) or each for each in values)


def _pool_window(reader: Reader) -> Window | None:
    """Where an average divides by the number of its taps, those outside of the data included."""
    size, dims = reader.call.get("kernel_size"), reader.call.dims
    taps = tuple(size) if isinstance(size, list | tuple) else (size,)
    taps = taps * dims if dims is not None and len(taps) == 1 else taps
    if len(taps) != dims or not all(type(each) is int for each in taps):
        return None
    return read_linear.window(reader, taps, reader.call.get("stride") or taps)


def _avg_pool(reader: Reader) -> Average:
    counts_zeros = reader.get("count_include_pad", True) and _is_nonzero(reader.get("padding", 0))
    plain = not (counts_zeros or reader.get("ceil_mode", False) or reader.call.get("divisor_override") is not None)
    fixed = counts_zeros or not _is_nonzero(reader.get("padding", 0))
    fixed = fixed and not reader.get("ceil_mode", False) and reader.call.get("divisor_override") is None
    window = _pool_window(reader) if fixed else None
    return Average(_window_axes(reader), sums_to_one=bool(plain), window=window)


def _adaptive_avg_pool(reader: Reader) -> Average:
    return Average(_window_axes(reader))


def _max_pool(reader: Reader) -> Maximum:
    if reader.get("return_indices", False):
        raise Unreadable(Reason.NOT_LINEAR, "a further output of it is read")
    if reader.call.op.endswith("_with_indices"):
        reader.only_first()
    if _is_nonzero(reader.get("padding", 0)) and _can_miss(reader):
        raise Unreadable(Reason.BORDER, WHOLLY_PADDING)
    return Maximum(_window_axes(reader))


def _can_miss(reader: Reader) -> bool:
    """Whether a window of a padded pooling can lie wholly in padding."""
    dims = len(_window_axes(reader))
    kernel = reader.get("kernel_size")
    given = [kernel, reader.get("stride") or kernel, reader.get("dilation", 1), reader.get("padding", 0)]
    taps, strides, dilations, pads = (read_linear.each(value, dims) for value in given)
    if taps is None or strides is None or dilations is None or pads is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "its window is computed")
    shape = reader.shape()
    sizes = [None] * dims if shape is None else [dim if isinstance(dim, int) else None for dim in shape[-dims:]]
    rounds_up = bool(reader.get("ceil_mode", False))
    return any(
        PoolAxis(taps[k], strides[k], dilations[k], pads[k], pads[k], rounds_up, is_strict=True).can_miss(sizes[k])
        for k in range(dims)
    )


def _reduced(reader: Reader) -> tuple[frozenset[int], frozenset[int]]:
    """The axes that are reduced, and those of them that vanish."""
    dtype = reader.get("dtype")
    if dtype is not None and dtype != reader.dtype():
        raise Unreadable(Reason.NOT_LINEAR, "it changes the type")
    given = reader.get("dim")
    listed = [given] if isinstance(given, int) else list(given or range(reader.rank()))
    axes = frozenset(reader.axis(axis) for axis in listed)
    return axes, frozenset() if reader.get("keepdim", False) else axes


def _mean(reader: Reader) -> Average:
    axes, dropped = _reduced(reader)
    return Average(axes, dropped=dropped)


def _sum_over(reader: Reader) -> Average:
    axes, dropped = _reduced(reader)
    if reader.dtype() not in DTYPES:
        raise Unreadable(Reason.NOT_LINEAR, "it does not add floating-point values")
    return Average(axes, sums_to_one=not axes, dropped=dropped)


def _amax(reader: Reader) -> Maximum:
    return Maximum(*_reduced(reader))


ALL_SPACE = frozenset(range(2, 8))
"""The axes behind batch and channels, however many there are."""


def _interpolate(reader: Reader) -> Average:
    return Average(ALL_SPACE)


def _pad(reader: Reader) -> Pad:
    pads = reader.get("pad", ())
    if not all(isinstance(each, int) for each in pads):
        raise Unreadable(Reason.UNKNOWN_SHAPE, "its padding is computed")
    rank = reader.rank()
    axes = frozenset(rank - 1 - place // 2 for place, size in enumerate(pads) if size)
    if reader.get("mode", "constant") != "constant" or reader.call.op == "pad_copies":
        return Pad(axes, None)
    return Pad(axes, float(reader.get("value", 0.0)))


def _expand(reader: Reader) -> Broadcast:
    before, after = _known(reader), _known(reader, reader.node)
    added = len(after) - len(before)
    same = [dim is not None and dim == after[axis + added] for axis, dim in enumerate(before)]
    return Broadcast(frozenset(axis for axis, kept in enumerate(same) if not kept), added)


def _repeat(reader: Reader) -> Broadcast:
    repeats, rank = list(reader.get("repeats", reader.get("dims", ()))), reader.rank()
    repeats = [1] * (rank - len(repeats)) + repeats
    added = len(repeats) - rank
    return Broadcast(frozenset(axis for axis, times in enumerate(repeats[added:]) if times != 1), added)


def _sum(reader: Reader) -> Sum:
    nodes = [reader.data("input"), reader.data("other")]
    dtypes = {reader.dtype(node) for node in nodes}
    if not dtypes <= set(DTYPES):
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the types that it adds are not known to be floating-point")
    if len(dtypes) > 1:
        raise Unreadable(Reason.NOT_LINEAR, "it adds values of different types")
    if reader.get("alpha", 1) != 1:
        raise Unreadable(Reason.NOT_LINEAR, "it adds a multiple (alpha)")
    signs = (1, -1) if reader.call.op == "sub" else (1, 1)
    return Sum(signs, tuple(reader.shape(node) for node in nodes), (1.0, 0.0))


def _identity(reader: Reader) -> Identity:
    return Identity()


def _dropout(reader: Reader) -> Identity:
    if reader.call.get("training", reader.call.get("train", True)):
        raise Unreadable(Reason.TRAINING_MODE, "a Dropout is in training mode")
    return Identity()


def _to(reader: Reader) -> Identity:
    given = reader.dtype()
    listed = [*reader.call.arguments.get("to", ()), *reader.call.arguments.values()]
    wanted = next((each for each in listed if isinstance(each, torch.dtype)), None)
    others = [value for name, value in reader.call.arguments.items() if name != "input"]
    if any(isinstance(each, fx.Node) for each in (*others, *reader.call.arguments.get("to", ()))):
        wanted = reader.dtype(reader.node)
        if wanted is None:
            raise Unreadable(Reason.NOT_LINEAR, "the type it casts to is not known")
    if any(isinstance(each, type) or (isinstance(each, str) and each.startswith("torch.")) for each in listed):
        raise Unreadable(Reason.NOT_LINEAR, "the type it casts to is the name of a tensor's")
    if wanted is None or given == wanted:
        return Identity()
    if given in BITS and wanted in BITS and BITS[wanted] > BITS[given]:
        return Identity(is_widening=True)
    raise Unreadable(Reason.NOT_LINEAR, "the cast can change values")


def _rectifier(reader: Reader) -> Rectifier:
    return Rectifier()


READERS: dict[str, Callable[[Reader], Op]] = {
    "adaptive_avg_pool": _adaptive_avg_pool,
    "adaptive_max_pool": _max_pool,
    "adaptive_max_pool_with_indices": _max_pool,
    "add": _sum,
    "amax": _amax,
    "avg_pool": _avg_pool,
    "cast": _to,
    "cat": _concat,
    "channel_shuffle": _channel_shuffle,
    "chunk": _split,
    "dropout": _dropout,
    "expand": _expand,
    "expand_as": _expand,
    "flatten": _reshape,
    "identity": _identity,
    "index": _index,
    "index_select": _index_select,
    "interpolate": _interpolate,
    "leaky_relu": _rectifier,
    "max_pool": _max_pool,
    "max_pool_with_indices": _max_pool,
    "mean": _mean,
    "narrow": _narrow,
    "pad": _pad,
    "pad_copies": _pad,
    "permute": _permute,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "prelu": _rectifier,
    "relu": _rectifier,
    "repeat": _repeat,
    "reshape": _reshape,
    "reshape_as": _reshape,
    "slice": _slice,
    "slice_all": _getitem,
    "split": _split,
    "split_with_sizes": _split,
    "squeeze": _reshape,
    "sub": _sum,
    "sum": _sum_over,
    "t": _t,
    "tile": _repeat,
    "to": _to,
    "transpose": _transpose,
    "type_as": _to,
    "unflatten": _reshape,
    "unsqueeze": _reshape,
    **{
        f"{prefix}upsample_{kind}{suffix}": _interpolate
        for prefix in ("", "_")
        for kind in ("nearest1d", "nearest2d", "nearest3d", "nearest_exact1d", "nearest_exact2d", "nearest_exact3d",
                     "linear1d", "bilinear2d", "trilinear3d", "bicubic2d")
        for suffix in ("", "_aa")
    },
}  # fmt: skip

ONE_INPUT = frozenset(READERS) - {"add", "sub", "cat"}
"""Operators whose only data is their `input`."""

CUTS = frozenset({"chunk", "split", "split_with_sizes"})
"""Operators all of whose outputs are data."""

__all__ = ["CUTS", "ONE_INPUT", "READERS", "part_of", "split_sizes"]
