"""What an ONNX graph does with the sizes of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold.frontends.onnx.nesting import nested
from bnfold.verification.sizes import MOST, SizeHints

COMPARES = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Min", "Max", "Clip", "Mod"})
"""Operators that compare a size with a number, if that is how it is used."""

CUTS = frozenset({"Slice", "Div", "Sub", "Gather", "Split", "Range", "Expand", "Tile"})
"""Operators that cut, divide or repeat by a number."""


IMAGE = 128
"""The least side of an image that is worth making smaller."""


def find_hints(proto: onnx.ModelProto) -> SizeHints:
    """The strides of the main graph, and the numbers of all graphs."""
    return SizeHints(tuple(_strides(proto.graph)), tuple(_numbers(proto)))


def _strides(graph: onnx.GraphProto) -> dict[tuple[int, int], None]:
    before: dict[str, int] = {}
    found: dict[tuple[int, int], None] = {}
    for node in graph.node:
        scale = max((before.get(name, 1) for name in node.input), default=1)
        strides = [each for attribute in node.attribute if attribute.name == "strides" for each in attribute.ints]
        if node.op_type != "ConvTranspose" and max(strides, default=1) > 1:
            found[scale, max(strides)] = None
            scale *= max(strides)
        before |= dict.fromkeys(node.output, scale)
    return found


def _numbers(proto: onnx.ModelProto) -> dict[int, None]:
    nodes = [node for graph in nested(proto.graph, *proto.functions) for node in graph.node]
    constants = _constants(proto)
    found: dict[int, None] = {}
    for kinds in (COMPARES, CUTS):
        for node in nodes:
            if node.op_type in kinds:
                found |= dict.fromkeys(size for name in node.input for size in constants.get(name, ()))
    return found


def _constants(proto: onnx.ModelProto) -> Mapping[str, list[int]]:
    """The whole numbers in small constants that a size may be compared with."""
    return {name: sizes for name, tensor in _tensors(proto) if (sizes := _whole(tensor))}


def _tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for graph in nested(proto.graph):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for graph in nested(proto.graph, *proto.functions):
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute:
                attribute = node.attribute[0]
                if attribute.HasField("t"):
                    yield node.output[0], attribute.t
                elif attribute.name in ("value_int", "value_ints"):
                    yield node.output[0], numpy_helper.from_array(np.array([attribute.i, *attribute.ints]))


def _whole(tensor: onnx.TensorProto) -> list[int]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or np.prod(tensor.dims, dtype=object) > 4:
        return []
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind not in "iuf":
        return []
    wide = array.reshape(-1).astype(np.float64)
    return [int(size) for size in wide if 2 < size <= MOST and size == int(size)]


def free_images(proto: onnx.ModelProto) -> list[str]:
    """Put a symbol in the place of each fixed size of an image of at least `IMAGE` pixels a side, and give these.

    What the model declares of other values goes, since it follows from these sizes. A model without such images stays.
    """
    symbols: list[str] = []
    constants = {tensor.name for tensor in proto.graph.initializer}
    for info in proto.graph.input:
        if info.name not in constants and _is_image(info):
            for axis, dim in enumerate(info.type.tensor_type.shape.dim):
                if axis >= 2:
                    symbols.append(f"{info.name}_{axis}")
                    dim.dim_param = symbols[-1]
    if symbols:
        del proto.graph.value_info[:]
        for info in proto.graph.output:
            if info.type.HasField("tensor_type"):
                info.type.tensor_type.ClearField("shape")
    return symbols


def _is_image(info: onnx.ValueInfoProto) -> bool:
    """Whether an input has a batch, channels, and at least two fixed sizes of `IMAGE` or more."""
    tensor = info.type.tensor_type
    sides = [dim.dim_value for dim in tensor.shape.dim][2:]
    return tensor.elem_type == onnx.TensorProto.FLOAT and len(sides) >= 2 and min(sides) >= IMAGE
