"""Operators that carry an affine: structure, pooling, resizing, padding, sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from bnfold.algebra.pooling import WHOLLY_PADDING, PoolAxis
from bnfold.frontends.onnx.operators import read_linear
from bnfold.frontends.onnx.operators.reader import FLOATS, Reader, known_sizes
from bnfold.frontends.onnx.operators.unreadable import Unreadable
from bnfold.graph.ops import (
    CHANNEL_LIMIT,
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

BITS = {ir.DataType.FLOAT16: 16, ir.DataType.BFLOAT16: 16, ir.DataType.FLOAT: 32, ir.DataType.DOUBLE: 64}


def _shapes(reader: Reader) -> tuple[Shape, Shape]:
    before, after = reader.shape(), reader.output_shape()
    if before is None or after is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the shapes it reshapes between are not known")
    return before, after


def _reshape(reader: Reader) -> Reshape:
    return Reshape(*_shapes(reader))


def _concat(reader: Reader) -> Concat:
    axis = reader.axis(int(reader.attribute("axis", 1)))
    sizes: list[int | None] = []
    for index, value in enumerate(reader.node.inputs):
        if value is None:
            raise Unreadable(Reason.INVALID_PARAMETERS, "an input of it is left out")
        shape = reader.shape(index)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        sizes.append(size if isinstance(size, int) else None)
    return Concat(axis, tuple(sizes))


def _split(reader: Reader) -> Split:
    if reader.version == 1 and "axis" not in reader.node.attributes:
        raise Unreadable(Reason.INVALID_PARAMETERS, "it does not say along which axis it splits")
    axis = reader.axis(int(reader.attribute("axis", 0)))
    sizes = reader.integers("split", 1, "split") if reader.version != 1 else None
    if sizes is None:
        shapes = [reader.output_shape(index) or () for index in range(len(reader.node.outputs))]
        sizes = known_sizes([shape[axis] if axis < len(shape) else None for shape in shapes])
    if sizes is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the sizes of its parts are not known")
    if len(sizes) != len(reader.node.outputs) or min(sizes) < 0:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its sizes do not fit its outputs")
    return Split(axis, sizes)


def _slice(reader: Reader) -> Take:
    starts, ends = reader.integers("starts", 1, "starts"), reader.integers("ends", 2, "ends")
    if starts is None or ends is None:
        raise Unreadable(Reason.INVALID_PARAMETERS, "it has no starts or ends")
    axes = reader.integers("axes", 3, "axes") or tuple(range(len(starts)))
    steps = reader.integers("steps", 4, "steps") or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its starts, ends, axes and steps do not fit each other")
    shape = reader.shape()
    if shape is None:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the shape of its input is not known")
    cuts = {
        reader.axis(axis): slice(start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }
    for axis in sorted(cuts, key=lambda axis: axis != 1):
        size = shape[axis]
        if isinstance(size, int) and size <= CHANNEL_LIMIT:
            return Take(axis, _positions(cuts[axis], size), size, frozenset(cuts) - {axis})
    return Take(-1, np.zeros(0, np.intp), 0, frozenset(cuts))


def _positions(cut: slice, size: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """ONNX clamps like Python, except that an end below ``-size`` on a negative step means "up to the first"."""
    start, end, step = cut.start, cut.stop, cut.step
    if step < 0 and end < -size:
        end = None
    return np.arange(size)[start:end:step]


def _gather(reader: Reader) -> Take:
    axis = reader.axis(int(reader.attribute("axis", 0)))
    indices = reader.constant(1, "indices")
    shape = reader.shape()
    size = shape[axis] if shape is not None else None
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise Unreadable(Reason.NOT_LINEAR, "its indices are not a vector of integers")
    if not isinstance(size, int) or size > CHANNEL_LIMIT:
        return Take(-1, np.zeros(0, np.intp), 0, frozenset({axis}))
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its indices are out of range")
    return Take(axis, np.where(indices < 0, indices + size, indices).astype(np.intp), size)


def _transpose(reader: Reader) -> Transpose:
    order = reader.attribute("perm", None)
    if order is None:
        return Transpose(tuple(reversed(range(reader.rank()))))
    if sorted(order) != list(range(len(order))):
        raise Unreadable(Reason.INVALID_PARAMETERS, f"its order {list(order)} is no permutation")
    return Transpose(tuple(order))


def _blocks(reader: Reader) -> tuple[int, int]:
    """Block size, and the channels on the side that has fewer."""
    factor = int(reader.attribute("blocksize", 0))
    shape = reader.output_shape() if reader.node.op_type == "DepthToSpace" else reader.shape()
    channels = shape[1] if shape is not None and len(shape) == 4 else None
    if not isinstance(channels, int) or factor < 1:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "the number of its channels is not known")
    return factor, channels


def _depth_to_space(reader: Reader) -> PixelShuffle:
    return PixelShuffle(*_blocks(reader), reader.attribute("mode", "DCR") == "CRD")


def _space_to_depth(reader: Reader) -> PixelUnshuffle:
    return PixelUnshuffle(*_blocks(reader), channel_first=False)


def _window_axes(reader: Reader) -> frozenset[int]:
    return frozenset(range(2, 2 + len(reader.attribute("kernel_shape", ()))))


def _can_miss(reader: Reader) -> bool:
    """Whether a window of a pooling can lie wholly in padding.

    SAME padding depends on the size and, where taps are apart, on the runtime; it is shorter than the window, and no
    window starts behind the data.
    """
    taps = tuple(reader.attribute("kernel_shape", ()))
    count, shape = len(taps), reader.shape()
    sizes = [None] * count if shape is None else [dim if isinstance(dim, int) else None for dim in shape[2:]]
    strides, dilations = (tuple(reader.attribute(name, (1,) * count)) for name in ("strides", "dilations"))
    auto_pad = reader.attribute("auto_pad", "NOTSET")
    pads = tuple(reader.attribute("pads", (0,) * 2 * count)) if auto_pad == "NOTSET" else (0,) * 2 * count
    if not len(sizes) == len(strides) == len(dilations) == len(pads) / 2 == count:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its window does not fit its input")
    if min(taps + strides + dilations, default=1) < 1:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its window has no size, stride or dilation")
    if auto_pad.startswith("SAME"):
        apart = zip(dilations, sizes, strict=True)
        return any(dilation > 1 and (size is None or size < dilation) for dilation, size in apart)
    rounds_up = bool(reader.attribute("ceil_mode", 0))
    return any(
        PoolAxis(taps[k], strides[k], dilations[k], pads[k], pads[k + count], rounds_up).can_miss(sizes[k])
        for k in range(count)
    )


def _average_pool(reader: Reader) -> Average:
    padded = any(reader.attribute("pads", ())) or reader.attribute("auto_pad", "NOTSET").startswith("SAME")
    counts_zeros = bool(reader.attribute("count_include_pad", 0)) and padded
    taps = tuple(reader.attribute("kernel_shape", ()))
    rounds_up = bool(reader.attribute("ceil_mode", 0))
    is_fixed = (counts_zeros or not padded) and not rounds_up
    window = read_linear.window(reader, taps) if is_fixed else None
    sums_to_one = not counts_zeros and not rounds_up and not _can_miss(reader)
    return Average(_window_axes(reader), sums_to_one, window=window)


def _insist_on_data(reader: Reader, axes: frozenset[int]) -> None:
    """Of no values at all, the largest and the mean are what the runtime makes up."""
    shape = reader.shape() or ()
    if any(axis < len(shape) and shape[axis] == 0 for axis in axes):
        raise Unreadable(Reason.BORDER, "an axis that it reduces is empty")


def _global(reader: Reader) -> frozenset[int]:
    axes = frozenset(range(2, reader.rank()))
    _insist_on_data(reader, axes)
    return axes


def _global_average_pool(reader: Reader) -> Average:
    return Average(_global(reader))


def _reduced(reader: Reader) -> tuple[frozenset[int], frozenset[int]]:
    """The axes that are reduced, and those of them that vanish."""
    given = reader.integers("axes", 1, "axes")
    if not given and reader.attribute("noop_with_empty_axes", 0):
        return frozenset(), frozenset()
    axes = frozenset(reader.axis(axis) for axis in given or range(reader.rank()))
    _insist_on_data(reader, axes)
    return axes, frozenset() if reader.attribute("keepdims", 1) else axes


def _reduce_mean(reader: Reader) -> Average:
    axes, dropped = _reduced(reader)
    return Average(axes, dropped=dropped)


def _reduce_sum(reader: Reader) -> Average:
    axes, dropped = _reduced(reader)
    return Average(axes, sums_to_one=not axes, dropped=dropped)


def _reduce_max(reader: Reader) -> Maximum:
    return Maximum(*_reduced(reader))


def _max_pool(reader: Reader) -> Maximum:
    reader.single_output()
    if _can_miss(reader):
        raise Unreadable(Reason.BORDER, WHOLLY_PADDING)
    return Maximum(_window_axes(reader))


def _global_max_pool(reader: Reader) -> Maximum:
    return Maximum(_global(reader))


def _resize(reader: Reader) -> Average:
    if reader.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Unreadable(Reason.BORDER, "its extrapolation_value stands outside the data")
    scales = _scales(reader)
    if scales:
        axes = [reader.axis(axis) for axis in reader.attribute("axes", range(len(scales)))]
        if len(axes) != len(scales):
            raise Unreadable(Reason.INVALID_PARAMETERS, "its scales do not fit its axes")
        return Average(frozenset(axis for axis, scale in zip(axes, scales, strict=True) if scale != 1.0))
    before, after = _shapes(reader)
    if len(before) != len(after):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its sizes do not fit its input")
    if reader.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":  # a size may round back to what it was
        return Average(frozenset(reader.axis(axis) for axis in reader.attribute("axes", range(len(before)))))
    pairs = zip(before, after, strict=True)  # the sizes are given: where they stay, the scale is one
    return Average(frozenset(axis for axis, sizes in enumerate(pairs) if None in sizes or sizes[0] != sizes[1]))


def _scales(reader: Reader) -> tuple[float, ...]:
    """The scales of a Resize or Upsample; empty where it is given sizes instead."""
    if "scales" in reader.node.attributes:
        return tuple(reader.attribute("scales", ()))
    index = 1 if reader.node.op_type == "Upsample" or reader.version < 11 else 2
    if reader.value(index) is None:
        return ()
    return tuple(float(scale) for scale in reader.numbers(index, "scales").reshape(-1))


def _pad(reader: Reader) -> Pad:
    pads = reader.integers("pads", 1, "pads")
    if pads is None:
        raise Unreadable(Reason.INVALID_PARAMETERS, "it has no pads")
    count = len(pads) // 2
    axes = reader.integers("axes", 3, "axes") or tuple(range(count))
    if len(pads) != 2 * len(axes):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its pads do not fit its axes")
    padded = frozenset(reader.axis(axis) for k, axis in enumerate(axes) if pads[k] or pads[k + count])
    if reader.attribute("mode", "constant") != "constant":
        return Pad(padded, None)
    if reader.value(2) is not None:
        return Pad(padded, reader.number(2, "padding value"))
    return Pad(padded, float(reader.attribute("value", 0.0)))


def _expand(reader: Reader) -> Broadcast:
    before, after = _shapes(reader)
    added = len(after) - len(before)
    if added < 0:
        raise Unreadable(Reason.INVALID_PARAMETERS, "it has fewer axes than its input")
    same = [dim is not None and dim == after[axis + added] for axis, dim in enumerate(before)]
    return Broadcast(frozenset(axis for axis, kept in enumerate(same) if not kept), added)


def _tile(reader: Reader) -> Broadcast:
    if reader.version < 6:
        axis = reader.axis(int(reader.number(2, "axis")))
        return Broadcast(frozenset({axis} if reader.number(1, "number of tiles") != 1 else ()))
    repeats = reader.integers("repeats", 1, "repeats") or ()
    return Broadcast(frozenset(axis for axis, times in enumerate(repeats) if times != 1))


def _sum(reader: Reader) -> Sum:
    count = len(reader.node.inputs)
    if None in reader.node.inputs:
        raise Unreadable(Reason.INVALID_PARAMETERS, "an input of it is left out")
    if any(reader.dtype(index) not in FLOATS for index in range(count)):
        raise Unreadable(Reason.NOT_LINEAR, "it does not add floating-point values")
    if reader.version < 7 and count == 2 and reader.node.op_type != "Sum":
        shapes = [reader.shape(index) for index in range(count)]
        if shapes[0] is None or shapes[0] != shapes[1]:
            raise Unreadable(Reason.UNKNOWN_SHAPE, "opsets below 7 broadcast in their own way")
    signs = (1, -1) if reader.node.op_type == "Sub" else (1,) * count
    return Sum(signs, tuple(reader.shape(index) for index in range(count)), (1.0,) + (0.0,) * (count - 1))


def _identity(reader: Reader) -> Identity:
    return Identity()


def _dropout(reader: Reader) -> Identity:
    reader.single_output()
    training = not reader.attribute("is_test", 0) if reader.version < 7 else False
    if reader.value(2) is not None:
        training = bool(reader.number(2, "training_mode"))
    if training:
        raise Unreadable(Reason.TRAINING_MODE, "Dropout is in training mode")
    return Identity()


def _cast(reader: Reader) -> Identity:
    given, wanted = reader.dtype(), reader.attribute("to", 0)
    if isinstance(wanted, str):  # below opset 6
        wanted = ir.DataType.__members__.get(wanted)
    if given == wanted:
        return Identity()
    if given in BITS and wanted in BITS and BITS[wanted] > BITS[given]:
        return Identity(is_widening=True)
    raise Unreadable(Reason.NOT_LINEAR, "the cast can change values")


def _rectifier(reader: Reader) -> Rectifier:
    return Rectifier()


def _prelu(reader: Reader) -> Rectifier:
    reader.constant(1, "slope")
    return Rectifier()


READERS: dict[str, Callable[[Reader], Op]] = {
    "Add": _sum,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "Identity": _identity,
    "LeakyRelu": _rectifier,
    "MaxPool": _max_pool,
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMax": _reduce_max,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
    "Relu": _rectifier,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _sum,
    "Sum": _sum,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    "Upsample": _resize,
}

ALL_INPUTS_ARE_DATA = frozenset({"Add", "Concat", "Div", "Mul", "Sub", "Sum"})
"""Operators whose every input is data; the others have one, and parameters behind it."""
