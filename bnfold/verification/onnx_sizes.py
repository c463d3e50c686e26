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
