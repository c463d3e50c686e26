"""Operators that carry an affine: structure, pooling, resizing, padding, sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from bnfold.algebra.linear import Window
from bnfold.frontends import reading
from bnfold.frontends.onnx.operators import read_linear
from bnfold.frontends.onnx.operators.reader import FLOATS, Reader
from bnfold.frontends.reading import Unreadable
from bnfold.graph import ops
from bnfold.graph.ops import Op, Shape
from bnfold.graph.outcome import Reason


def _reshape(reader: Reader) -> ops.Reshape:
    return reading.reshape(reader.shape(), reader.output_shape())


def _all_shapes(reader: Reader) -> list[Shape | None]:
    if None in reader.node.inputs:
        raise Unreadable(Reason.INVALID_PARAMETERS, "an input of it is left out")
    return [reader.shape(index) for index in range(len(reader.node.inputs))]


def _concat(reader: Reader) -> ops.Concat:
    return reading.concat(reader.axis(int(reader.attribute("axis", 1))), _all_shapes(reader))


def _split(reader: Reader) -> ops.Split:
    if reader.version == 1 and "axis" not in reader.node.attributes:
        raise Unreadable(Reason.INVALID_PARAMETERS, "it does not say along which axis it splits")
    axis, outputs = reader.axis(int(reader.attribute("axis", 0))), len(reader.node.outputs)
    sizes = reader.integers("split", 1, "split") if reader.version != 1 else None
    if sizes is None:
        shapes = [reader.output_shape(index) or () for index in range(outputs)]
        return reading.split(axis, [shape[axis] if axis < len(shape) else None for shape in shapes], outputs)
    return reading.split(axis, sizes, outputs)


def _slice(reader: Reader) -> ops.Take:
    starts, ends = reader.integers("starts", 1, "starts"), reader.integers("ends", 2, "ends")
    if starts is None or ends is None:
        raise Unreadable(Reason.INVALID_PARAMETERS, "it has no starts or ends")
    axes = reader.integers("axes", 3, "axes") or tuple(range(len(starts)))
    steps = reader.integers("steps", 4, "steps") or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its starts, ends, axes and steps do not fit each other")
    cuts = zip(axes, map(slice, starts, ends, steps), strict=True)
    return reading.take(reader.shape(), {reader.axis(axis): cut for axis, cut in cuts})


def _gather(reader: Reader) -> ops.Take | ops.Lookup:
    axis = reader.axis(int(reader.attribute("axis", 0)))
    if reader.facts.constants.holds(reader.value(0)) and reader.dtype() in FLOATS:
        return ops.Lookup(axis, reader.rank(1))
    indices, constants = reader.value(1), reader.facts.constants
    if indices is not None and not constants.holds(indices) and not constants.is_overridable(indices):
        raise Unreadable(Reason.NOT_LINEAR, "its indices are computed")
    return reading.gather(axis, reader.constant(1, "indices"), reader.shape())


def _transpose(reader: Reader) -> ops.Transpose:
    order = reader.attribute("perm", None)
    return reading.transpose(tuple(reversed(range(reader.rank()))) if order is None else order)


def _depth_to_space(reader: Reader) -> ops.PixelShuffle:
    blocks = reading.blocks(reader.attribute("blocksize", 0), reader.output_shape())
    return ops.PixelShuffle(*blocks, reader.attribute("mode", "DCR") == "CRD")


def _space_to_depth(reader: Reader) -> ops.PixelUnshuffle:
    return ops.PixelUnshuffle(*reading.blocks(reader.attribute("blocksize", 0), reader.shape()), channel_first=False)


def _window_axes(reader: Reader) -> frozenset[int]:
    return frozenset(range(2, 2 + len(reader.attribute("kernel_shape", ()))))


def _can_miss(reader: Reader) -> bool:
    """Whether a window of a pooling can lie wholly in padding.

    SAME padding depends on the size and, where taps are apart, on the runtime; it is shorter than the window, and no
    window starts behind the data.
    """
    taps = tuple(reader.attribute("kernel_shape", ()))
    count, shape = len(taps), reader.shape()
    strides, dilations = (tuple(reader.attribute(name, (1,) * count)) for name in ("strides", "dilations"))
    auto_pad = reader.attribute("auto_pad", "NOTSET")
    pads = tuple(reader.attribute("pads", (0,) * 2 * count)) if auto_pad == "NOTSET" else (0,) * 2 * count
    fits = shape is None or len(shape) == count + 2
    if not fits or not len(strides) == len(dilations) == len(pads) / 2 == count:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its window does not fit its input")
    if min(taps + strides + dilations, default=1) < 1:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its window has no size, stride or dilation")
    sizes = reading.space(shape, count)
    if auto_pad.startswith("SAME"):
        apart = zip(dilations, sizes, strict=True)
        return any(dilation > 1 and (size is None or size < dilation) for dilation, size in apart)
    window = Window(taps, strides, dilations, pads[:count], pads[count:])
    return reading.can_miss(window, sizes, rounds_up=bool(reader.attribute("ceil_mode", 0)))


def _average_pool(reader: Reader) -> ops.Average:
    return reading.average_pool(
        _window_axes(reader),
        lambda: read_linear.window(reader, tuple(reader.attribute("kernel_shape", ()))),
        lambda: _can_miss(reader),
        is_padded=any(reader.attribute("pads", ())) or reader.attribute("auto_pad", "NOTSET").startswith("SAME"),
        counts_zeros=bool(reader.attribute("count_include_pad", 0)),
        is_even=not reader.attribute("ceil_mode", 0),
    )


def _insist_on_data(reader: Reader, axes: frozenset[int]) -> None:
    """Refuse a mean or a maximum of no values at all, which a runtime makes up."""
    shape = reader.shape() or ()
    if any(axis < len(shape) and shape[axis] == 0 for axis in axes):
        raise Unreadable(Reason.BORDER, "an axis that it reduces is empty")


def _global(reader: Reader) -> frozenset[int]:
    axes = frozenset(range(2, reader.rank()))
    _insist_on_data(reader, axes)
    return axes


def _global_average_pool(reader: Reader) -> ops.Average:
    return ops.Average(_global(reader))


def _reduced(reader: Reader) -> tuple[frozenset[int], frozenset[int]]:
    """The axes that are reduced, and those of them that vanish."""
    listed = reader.integers("axes", 1, "axes")
    if not listed and reader.attribute("noop_with_empty_axes", 0):
        return frozenset(), frozenset()
    axes = frozenset(reader.axis(axis) for axis in listed or range(reader.rank()))
    _insist_on_data(reader, axes)
    return axes, frozenset() if reader.attribute("keepdims", 1) else axes


def _reduce_mean(reader: Reader) -> ops.Average:
    axes, dropped = _reduced(reader)
    return ops.Average(axes, dropped=dropped)


def _reduce_sum(reader: Reader) -> ops.Average:
    axes, dropped = _reduced(reader)
    return ops.Average(axes, sums_to_one=not axes, dropped=dropped)


def _reduce_max(reader: Reader) -> ops.Maximum:
    return ops.Maximum(*_reduced(reader))


def _max_pool(reader: Reader) -> ops.Maximum:
    reader.single_output()
    return reading.max_pool(_window_axes(reader), misses=_can_miss(reader))


def _global_max_pool(reader: Reader) -> ops.Maximum:
    return ops.Maximum(_global(reader))


def _resize(reader: Reader) -> ops.Average:
    if reader.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Unreadable(Reason.BORDER, "its extrapolation_value stands outside the data")
    scales = _scales(reader)
    if scales:
        axes = [reader.axis(axis) for axis in reader.attribute("axes", range(len(scales)))]
        if len(axes) != len(scales):
            raise Unreadable(Reason.INVALID_PARAMETERS, "its scales do not fit its axes")
        return ops.Average(frozenset(axis for axis, scale in zip(axes, scales, strict=True) if scale != 1.0))
    before, after = reading.both(reader.shape(), reader.output_shape())
    if len(before) != len(after):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its sizes do not fit its input")
    if reader.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":  # a size may round back to what it was
        return ops.Average(frozenset(reader.axis(axis) for axis in reader.attribute("axes", range(len(before)))))
    pairs = zip(before, after, strict=True)  # the sizes are given: where they stay, the scale is one
    return ops.Average(frozenset(axis for axis, sizes in enumerate(pairs) if None in sizes or sizes[0] != sizes[1]))


def _scales(reader: Reader) -> tuple[float, ...]:
    """The scales of a Resize or Upsample; empty where it is given sizes instead."""
    if "scales" in reader.node.attributes:
        return tuple(reader.attribute("scales", ()))
    index = 1 if reader.node.op_type == "Upsample" or reader.version < 11 else 2
    if reader.value(index) is None:
        return ()
    return tuple(float(scale) for scale in reader.numbers(index, "scales").reshape(-1))


def _pad(reader: Reader) -> ops.Pad:
    pads = reader.integers("pads", 1, "pads")
    if pads is None:
        raise Unreadable(Reason.INVALID_PARAMETERS, "it has no pads")
    count = len(pads) // 2
    axes = reader.integers("axes", 3, "axes") or tuple(range(count))
    if len(pads) != 2 * len(axes):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its pads do not fit its axes")
    padded = frozenset(reader.axis(axis) for k, axis in enumerate(axes) if pads[k] or pads[k + count])
    if reader.attribute("mode", "constant") != "constant":
        return ops.Pad(padded, None)
    if reader.value(2) is not None:
        return ops.Pad(padded, reader.number(2, "padding value"))
    return ops.Pad(padded, float(reader.attribute("value", 0.0)))


def _expand(reader: Reader) -> ops.Broadcast:
    return reading.expand(reader.shape(), reader.output_shape())


def _tile(reader: Reader) -> ops.Broadcast:
    if reader.version < 6:
        axis = reader.axis(int(reader.number(2, "axis")))
        return ops.Broadcast(frozenset({axis} if reader.number(1, "number of tiles") != 1 else ()))
    return reading.repeat(reader.integers("repeats", 1, "repeats") or ())


def _sum(reader: Reader) -> ops.Sum:
    shapes, operator = _all_shapes(reader), reader.node.op_type
    signs = (1, -1) if operator == "Sub" else (1,) * len(shapes)
    total = reading.total(signs, shapes, [reader.dtype(index) for index in range(len(shapes))], FLOATS)
    if reader.version < 7 and operator != "Sum" and (shapes[0] is None or shapes[0] != shapes[-1]):
        raise Unreadable(Reason.UNKNOWN_SHAPE, "opsets below 7 broadcast in their own way")
    if reader.version < 7 or None in shapes:
        return total
    return reading.with_constant(
        total, _constants(reader, range(len(shapes))), max(len(shape or ()) for shape in shapes)
    )


def _constants(reader: Reader, indices: Iterable[int]) -> list[int]:
    """Which of the inputs `indices` are constant, by their place among these."""
    return [place for place, index in enumerate(indices) if reader.facts.constants.holds(reader.value(index))]


def _where(reader: Reader) -> ops.Select:
    shapes = [reader.shape(1), reader.shape(2)]
    select = reading.select(shapes, reader.shape(0), [reader.dtype(1), reader.dtype(2)], FLOATS)
    return reading.with_constant(select, _constants(reader, (1, 2)), select.rank)


def _dropout(reader: Reader) -> ops.Identity:
    reader.single_output()
    training = not reader.attribute("is_test", 0) if reader.version < 7 else False
    if reader.value(2) is not None:
        training = bool(reader.number(2, "training_mode"))
    return reading.dropout(is_training=training)


def _cast(reader: Reader) -> ops.Identity:
    wanted = reader.attribute("to", 0)
    kinds = ir.DataType.__members__.items()
    return reading.cast(reader.dtype(), next((kind for name, kind in kinds if wanted in (name, kind)), None), FLOATS)


def _prelu(reader: Reader) -> ops.Rectifier:
    reader.constant(1, "slope")
    return reading.RECTIFIER


def _product(reader: Reader) -> ops.Product:
    return reading.product_of_values(reader.rank(0), reader.rank(1))


EXPANDING = frozenset({"Expand", "Identity", "Reshape", "Unsqueeze"})
"""Operators that make nothing but what they read."""


def _is_zero(reader: Reader, value: ir.Value | None) -> bool:
    """Whether a value is zero everywhere, whatever its shape."""
    while value is not None:
        if reader.facts.constants.holds(value):
            return not np.any(reader.facts.constants.get(value))
        maker = value.producer()
        if maker is None or maker.domain != "" or any(each.is_ref() for each in maker.attributes.values()):
            return False
        if maker.op_type == "ConstantOfShape":
            content = maker.attributes.get_tensor("value", None)
            return content is None or not np.any(content.numpy())
        if maker.op_type not in EXPANDING:
            return False
        value = maker.inputs[0]
    return False


def _scatter(reader: Reader) -> ops.Average:
    """ScatterElements and ScatterND that add to zeros: sums of what has the same index."""
    if reader.attribute("reduction", "none") != "add" or not _is_zero(reader, reader.value(0)):
        raise Unreadable(Reason.NOT_LINEAR, "it does not add to zeros")
    if reader.node.op_type == "ScatterElements":
        return ops.Average(frozenset({reader.axis(int(reader.attribute("axis", 0)), 1)}), sums_to_one=False)
    indices = reading.known(reader.shape(1))
    count = reading.size(indices[-1]) if indices else None
    if count is None or len(indices) != count + 1:
        raise Unreadable(Reason.UNKNOWN_SHAPE, "its updates have other axes than its output")
    return ops.Average(frozenset(range(count)), sums_to_one=False)


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
    "Identity": reading.identity,
    "LeakyRelu": reading.rectifier,
    "MatMul": _product,
    "MaxPool": _max_pool,
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMax": _reduce_max,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
    "Relu": reading.rectifier,
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
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
    "Where": _where,
}

ALL_INPUTS_ARE_DATA = frozenset({"Add", "Concat", "Div", "Mul", "Sub", "Sum"})
"""Operators whose every input is data; the others have one, and parameters behind it."""
