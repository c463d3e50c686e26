"""Shape inference of onnx, kept from asking for gigabytes."""

from __future__ import annotations

import onnx
from google.protobuf.message import EncodeError

VECTOR_LIMIT = 1 << 20
"""Elements of a vector of which onnx may ask what it holds: it takes a hundred bytes for each, known or not."""


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy with the shapes and types that follow; None where onnx cannot tell.

    What shape arithmetic says is used unless a vector in the model is too long for it.
    """
    bare = _run(proto, data_prop=False)
    if bare is None or _has_long_vector(bare.graph):
        return bare
    return _run(proto, data_prop=True) or bare


def _run(proto: onnx.ModelProto, *, data_prop: bool) -> onnx.ModelProto | None:
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=data_prop)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError, EncodeError, MemoryError):
        return None


def _has_long_vector(graph: onnx.GraphProto) -> bool:
    """Whether a value, of the bodies too, has one axis and more elements than `VECTOR_LIMIT`."""
    for info in (*graph.input, *graph.value_info, *graph.output):
        dims = info.type.tensor_type.shape.dim
        if len(dims) == 1 and dims[0].dim_value > VECTOR_LIMIT:
            return True
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    bodies = [body for each in attributes for body in ([each.g] if each.HasField("g") else [*each.graphs])]
    return any(_has_long_vector(body) for body in bodies)
