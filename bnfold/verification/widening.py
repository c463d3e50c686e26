"""Makes an ONNX model compute in a wider type."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
from onnx import numpy_helper

from bnfold.frontends.onnx.nesting import nested
from bnfold.runtimes.tensors import read

CASTS = frozenset({"Cast", "EyeLike", "RandomNormal", "RandomUniform", "Range"})


def widen(proto: onnx.ModelProto, folder: Path | None, narrow: Collection[int], wide: int) -> onnx.ModelProto:
    """A copy of a model with the element type `wide` in place of each type in `narrow`."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(wide)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensors: list[onnx.TensorProto] = []
    for graph in nested(copy.graph):
        del graph.value_info[:]
        tensors.extend(graph.initializer)
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in narrow:
                info.type.tensor_type.elem_type = wide
    nodes = [node for graph in nested(copy.graph) for node in graph.node]
    nodes += [node for function in copy.functions for node in function.node]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            if node.op_type in CASTS and attribute.name in ("to", "dtype") and attribute.i in narrow:
                attribute.i = wide
    for tensor in tensors:
        if tensor.data_type in narrow:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(read(tensor, folder or Path()).astype(dtype), name))
    return copy
