"""Operators that carry an affine: structure, pooling, resizing, padding, sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from bnfold.algebra.linear import Window
from bnfold.frontends import reading
from bnfold.frontends.reading import Unreadable
from bnfold.frontends.torch.operators import read_linear
from bnfold.frontends.torch.operators.reader import Reader, name_of
from bnfold.frontends.torch.tensors import DTYPES, to_numpy
from bnfold.graph import ops
from bnfold.graph.ops import Op
from bnfold.graph.outcome import Reason


def reshape(reader: Reader) -> ops.Reshape:
    if any(isinstance(size, torch.dtype) for size in reader.call.arguments.get("shape") or ()):
        raise Unreadable(Reason.NOT_LINEAR, "it reads the bits as another type")
    return reading.reshape(reader.shape(), reader.shape(reader.node))


def concat(reader: Reader) -> ops.Concat:
    tensors = reader.call.get("tensors")
    if not isinstance(tensors, list | tuple) or not all(isinstance(tensor, fx.Node) for tensor in tensors):
        raise Unreadable(Reason.NOT_LINEAR, "what it joins is no list of computed values")
    if len({reader.dtype(tensor) for tensor in tensors} - {None}) > 1:
        raise Unreadable(Reason.NOT_LINEAR, "it joins values of different types")
    axis = reader.axis(reader.get("dim", 0), tensors[0])
    return reading.concat(axis, [reader.shape(tensor) for tensor in tensors])


def split(reader: Reader) -> ops.Split:
    axis = reader.axis(reader.get("dim", 0))
    op = reader.call.op
    cut = reader.get({"chunk": "chunks", "split": "split_size"}.get(op, "split_sizes"))
    if isinstance(cut, list | tuple):
        return reading.split(axis, cut)
    length = reading.space(reader.shape(), reader.rank())[axis]
    if length is None or not isinstance(cut, int) or cut < 1:
        return reading.split(axis, (None,))
    step = -(-length // cut) if op == "chunk" else cut
    return reading.split(axis, [min(step, length - start) for start in range(0, length, step or 1)])


def _take(reader: Reader, cuts: dict[int, slice]) -> ops.Take:
    ends = [end for cut in cuts.values() for end in (cut.start, cut.stop, cut.step)]
    if all(end is None or isinstance(end, int) for end in ends):
        return reading.take(reader.shape(), cuts)
    return reading.take_anywhere(cuts)


def slice_axis(reader: Reader) -> ops.Take:
    ends = reader.call.get("start"), reader.call.get("end"), reader.call.get("step", 1)
    return _take(reader, {reader.axis(reader.get("dim", 0)): slice(*ends)})


def narrow(reader: Reader) -> ops.Take:
    axis = reader.axis(reader.get("dim"))
    start, length = reader.call.get("start"), reader.call.get("length")
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return reading.take_anywhere({axis})
    return _take(reader, {axis: slice(start, start + length)})


def getitem(reader: Reader) -> Op:
    """``x[a:b, ..., c:d]``."""
    index = reader.call.get("index")
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(isinstance(part, slice) or part is Ellipsis for part in parts) or parts.count(Ellipsis) > 1:
        raise Unreadable(Reason.NOT_LINEAR, "it takes more than slices")
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (reader.rank() - len(parts) + 1)
    cuts = {axis: part for axis, part in enumerate(parts) if part != slice(None)}
    if not cuts:
        return ops.Identity()
    return _take(reader, cuts)


def _gather(reader: Reader, axis: int, index: Any) -> ops.Take:
    if not reader.facts.constants.holds(index):
        raise reading.not_constant("index", name_of(index))
    positions = reader.facts.constants.get(index)
    is_integer = positions.dtype in (torch.int64, torch.int32)  # the others are masks
    return reading.gather(axis, to_numpy(positions) if is_integer else None, reader.shape())


def index_select(reader: Reader) -> ops.Take:
    return _gather(reader, reader.axis(reader.get("dim")), reader.call.get("index"))


def index(reader: Reader) -> ops.Take:
    indices = reader.call.get("indices", ())
    axes = [axis for axis, positions in enumerate(indices) if positions is not None]
    if len(axes) != 1:
        raise Unreadable(Reason.NOT_LINEAR, "it takes positions along several axes")
    return _gather(reader, axes[0], indices[axes[0]])


def channel_shuffle(reader: Reader) -> ops.Take:
    groups, channels = reader.get("groups"), reading.size(reading.known(reader.shape())[1])
    if channels is None or not isinstance(groups, int) or groups < 1 or channels % groups:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the number of its channels is not known")
    return ops.Take(1, np.arange(channels).reshape(groups, -1).T.reshape(-1), channels)


def permute(reader: Reader) -> ops.Transpose:
    return reading.transpose([reader.axis(axis) for axis in reader.get("dims", ())])


def transpose(reader: Reader) -> ops.Transpose:
    order = list(range(reader.rank()))
    first, second = reader.axis(reader.get("dim0")), reader.axis(reader.get("dim1"))
    order[first], order[second] = second, first
    return ops.Transpose(tuple(order))


def reverse_axes(reader: Reader) -> ops.Transpose:
    return ops.Transpose(tuple(reversed(range(reader.rank()))))


def last_axes_swapped(reader: Reader) -> ops.Transpose:
    if (dtype := reader.dtype()) is not None and dtype.is_complex:
        raise Unreadable(Reason.NOT_LINEAR, "it may conjugate complex values")
    order = list(range(reader.rank()))
    order[-2:] = order[:-3:-1]
    return ops.Transpose(tuple(order))


def pixel_shuffle(reader: Reader) -> ops.PixelShuffle:
    factor, channels = reading.blocks(reader.get("upscale_factor"), reader.shape())
    return ops.PixelShuffle(factor, None if channels is None else channels // factor**2, channel_first=True)


def pixel_unshuffle(reader: Reader) -> ops.PixelUnshuffle:
    return ops.PixelUnshuffle(*reading.blocks(reader.get("downscale_factor"), reader.shape()), channel_first=True)


def _window_axes(reader: Reader) -> frozenset[int]:
    rank, dims = reader.rank(), reader.call.dims
    if dims is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the axes of its window are not known")
    return frozenset(range(rank - dims, rank))


def _is_nonzero(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return any(not isinstance(number, int) or number for number in values)


def _pool_window(reader: Reader) -> Window | None:
    """Where an average divides by the number of its taps, those outside of the data included."""
    size, dims = reader.call.get("kernel_size"), reader.call.dims
    taps = tuple(size) if isinstance(size, list | tuple) else (size,)
    taps = taps * dims if dims is not None and len(taps) == 1 else taps
    if len(taps) != dims or not all(type(length) is int for length in taps):
        return None
    return read_linear.window(reader, taps, reader.call.get("stride") or taps)


def avg_pool(reader: Reader) -> ops.Average:
    return reading.average_pool(
        _window_axes(reader),
        lambda: _pool_window(reader),
        lambda: False,  # torch allows for no more padding than half of a window
        is_padded=_is_nonzero(reader.get("padding", 0)),
        counts_zeros=reader.get("count_include_pad", True),
        is_even=not reader.get("ceil_mode", False) and reader.call.get("divisor_override") is None,
    )


def adaptive_avg_pool(reader: Reader) -> ops.Average:
    return ops.Average(_window_axes(reader))


def max_pool(reader: Reader) -> ops.Maximum:
    if reader.get("return_indices", False):
        raise reading.read_elsewhere()
    if reader.call.op.endswith("_with_indices"):
        reader.only_first()
    misses = _is_nonzero(reader.get("padding", 0)) and _can_miss(reader)
    return reading.max_pool(_window_axes(reader), misses=misses)


def _can_miss(reader: Reader) -> bool:
    """Whether a window of a padded pooling can lie wholly in padding."""
    dims = len(_window_axes(reader))
    kernel = reader.get("kernel_size")
    arguments = [kernel, reader.get("stride") or kernel, reader.get("dilation", 1), reader.get("padding", 0)]
    taps, strides, dilations, pads = (read_linear.each(value, dims) for value in arguments)
    if taps is None or strides is None or dilations is None or pads is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "its window is computed")
    window, sizes = Window(taps, strides, dilations, pads, pads), reading.space(reader.shape(), dims)
    return reading.can_miss(window, sizes, rounds_up=bool(reader.get("ceil_mode", False)), is_strict=True)


def _reduced(reader: Reader) -> tuple[frozenset[int], frozenset[int]]:
    """The axes that are reduced, and those of them that vanish."""
    dtype = reader.get("dtype")
    if dtype is not None and dtype != reader.dtype():
        raise Unreadable(Reason.NOT_LINEAR, "it changes the type")
    dims = reader.get("dim")
    listed = [dims] if isinstance(dims, int) else list(dims or range(reader.rank()))
    axes = frozenset(reader.axis(axis) for axis in listed)
    return axes, frozenset() if reader.get("keepdim", False) else axes


def mean(reader: Reader) -> ops.Average:
    axes, dropped = _reduced(reader)
    return ops.Average(axes, dropped=dropped)


def sum_over(reader: Reader) -> ops.Average:
    axes, dropped = _reduced(reader)
    if reader.dtype() not in DTYPES:
        raise reading.no_floats()
    return ops.Average(axes, sums_to_one=not axes, dropped=dropped)


ZEROS = frozenset({"new_zeros", "zeros", "zeros_like"})


def add_by_index(reader: Reader) -> ops.Average:
    """An addition by index to zeros: sums of what has the same index."""
    start, source = reader.call.get("input"), reader.data(reader.call.operator.data)
    if reader.call.op == "scatter_reduce" and reader.get("reduce") != "sum":
        raise Unreadable(Reason.NOT_LINEAR, "it adds nothing up")
    if not _is_zero(reader, start):
        raise Unreadable(Reason.NOT_LINEAR, "it does not add to zeros")
    if reader.dtype(source) not in DTYPES:
        raise reading.no_floats()
    axis = reader.axis(reader.get("dim"), source)
    shapes = [shape and (*shape[:axis], *shape[axis + 1 :]) for shape in (reader.shape(start), reader.shape(source))]
    if None in shapes or shapes[0] != shapes[1]:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "what it adds has other sizes than its output")
    return ops.Average(frozenset({axis}), sums_to_one=False)


def _is_zero(reader: Reader, start: object) -> bool:
    if not isinstance(start, fx.Node):
        return False
    if reader.facts.constants.holds(start):
        return not bool(reader.facts.constants.get(start).any())
    call = reader.facts.calls.get(start)
    return call is not None and call.op in ZEROS


def amax(reader: Reader) -> ops.Maximum:
    return ops.Maximum(*_reduced(reader))


ALL_SPACE = frozenset(range(2, 8))
"""The axes behind batch and channels, for data of any rank."""


def interpolate(reader: Reader) -> ops.Average:
    return ops.Average(ALL_SPACE)


def pad(reader: Reader) -> ops.Pad:
    pads = reader.get("pad", ())
    if not all(isinstance(each, int) for each in pads):
        raise Unreadable(Reason.UNKNOWN_SHAPE, "its padding is computed")
    rank = reader.rank()
    axes = frozenset(rank - 1 - place // 2 for place, size in enumerate(pads) if size)
    if reader.get("mode", "constant") != "constant" or reader.call.op == "pad_copies":
        return ops.Pad(axes, None)
    return ops.Pad(axes, float(reader.get("value", 0.0)))


def expand(reader: Reader) -> ops.Broadcast:
    return reading.expand(reader.shape(), reader.shape(reader.node))


def repeat(reader: Reader) -> ops.Broadcast:
    repeats, rank = list(reader.get("repeats", reader.get("dims", ()))), reader.rank()
    repeats = [1] * (rank - len(repeats)) + repeats
    return reading.repeat(repeats, len(repeats) - rank)


def add(reader: Reader) -> ops.Sum:
    nodes = [reader.data("input"), reader.data("other")]
    if reader.get("alpha", 1) != 1:
        raise Unreadable(Reason.NOT_LINEAR, "it adds a multiple (alpha)")
    signs = (1, -1) if reader.call.op == "sub" else (1, 1)
    return reading.total(signs, [reader.shape(node) for node in nodes], [reader.dtype(node) for node in nodes], DTYPES)


def product(reader: Reader) -> ops.Product:
    """A matrix product of two computed values."""
    names = "input", read_linear.second_operand(reader)
    return reading.product_of_values(*(reader.rank(reader.data(name)) for name in names))


def dropout(reader: Reader) -> ops.Identity:
    return reading.dropout(is_training=bool(reader.call.get("training", reader.call.get("train", True))))


def cast(reader: Reader) -> ops.Identity:
    listed = [*reader.call.arguments.get("to", ()), *reader.call.arguments.values()]
    wanted = next((value for value in listed if isinstance(value, torch.dtype)), None)
    others = [value for name, value in reader.call.arguments.items() if name != "input"]
    is_computed = any(isinstance(value, fx.Node) for value in (*others, *reader.call.arguments.get("to", ())))
    if any(isinstance(value, type) or (isinstance(value, str) and value.startswith("torch.")) for value in listed):
        raise Unreadable(Reason.NOT_LINEAR, "the type it casts to is the name of a tensor's")
    if wanted is None and not is_computed:
        return ops.Identity()
    return reading.cast(reader.dtype(), reader.dtype(reader.node) if is_computed else wanted, DTYPES)
