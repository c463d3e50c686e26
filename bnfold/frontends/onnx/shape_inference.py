"""Shape inference of onnx, kept from asking for gigabytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from google.protobuf.message import EncodeError

from bnfold.frontends.onnx.nesting import nested

VECTOR_LIMIT = 1 << 20
"""Largest vector whose content onnx may infer, in elements. It takes a hundred bytes for each, known or not."""

INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})
"""The types of numbers that onnx follows."""

CASTS = frozenset({"Cast", "CastLike"})

UNSQUEEZE_TAKES_AXES = 13
"""The opset from which on Unsqueeze has its axes as an input."""


@dataclass(frozen=True)
class Seen:
    """The shapes and type that a value had in runs of a model.

    Attributes:
        shapes: one for each run.
        dtype: its element type, as in `onnx.TensorProto.DataType`.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: int


Confirm = Callable[[Sequence[str]], Mapping[str, Seen] | None]
"""Runs the original model for values of its main graph, by name; None where it cannot be run."""


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy of a model with inferred shapes and types; None where onnx fails.

    What shape arithmetic says is used, if there is any, unless a vector in the model is too long for it. For that, a
    Reshape of a number to a vector becomes the Unsqueeze that it is, in `proto` too: onnx follows the values of a shape
    through one only.
    """
    bare = run(proto, data_prop=False)
    if bare is None or not computes_numbers(proto, bare) or _has_long_vector(bare.graph):
        return bare
    _unsqueeze_numbers(proto, bare.graph)
    return run(proto, data_prop=True) or bare


def run(proto: onnx.ModelProto, *, data_prop: bool) -> onnx.ModelProto | None:
    """What onnx infers, with or without following numbers; None where it fails."""
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=data_prop)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError, EncodeError, MemoryError):
        return None


def computes_numbers(proto: onnx.ModelProto, inferred: onnx.ModelProto) -> bool:
    """Whether there may be shape arithmetic: a node that makes integers, or hands them on as something else."""
    if proto.functions:
        return True
    for graph in nested(inferred.graph):
        made = (info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output))
        if any(kind in INTEGERS for kind in made) or any(node.op_type in CASTS for node in graph.node):
            return True
    return False


def _has_long_vector(graph: onnx.GraphProto) -> bool:
    """Whether a value, of the bodies too, has one axis and more elements than `VECTOR_LIMIT`."""
    infos = (info for each in nested(graph) for info in (*each.input, *each.value_info, *each.output))
    dims = (info.type.tensor_type.shape.dim for info in infos)
    return any(len(shape) == 1 and shape[0].dim_value > VECTOR_LIMIT for shape in dims)


def _unsqueeze_numbers(proto: onnx.ModelProto, inferred: onnx.GraphProto) -> None:
    """Make each Reshape of a number to a vector of one element, in the main graph, an Unsqueeze."""
    reshapes = [node for node in proto.graph.node if node.op_type == "Reshape" and node.domain in ("", "ai.onnx")]
    if not reshapes:
        return
    version = max((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), default=1)
    ranks = {
        info.name: len(info.type.tensor_type.shape.dim)
        for info in (*inferred.input, *inferred.value_info, *inferred.output)
        if info.type.tensor_type.HasField("shape")
    }
    single = {
        info.name
        for info in (*inferred.input, *inferred.value_info, *inferred.output)
        if [dim.dim_value for dim in info.type.tensor_type.shape.dim] == [1]
    }
    taken = {each.name for each in proto.graph.initializer}
    single |= {each.name for each in proto.graph.initializer if list(each.dims) == [1]}
    axes = "bnfold_axes"
    while axes in taken or axes in ranks:
        axes += "_"
    for node in reshapes:
        if len(node.input) != 2 or ranks.get(node.input[0]) != 0 or node.input[1] not in single:
            continue
        node.op_type = "Unsqueeze"
        del node.attribute[:]
        if version >= UNSQUEEZE_TAKES_AXES:
            node.input[1] = axes
        else:
            del node.input[1]
            node.attribute.append(onnx.helper.make_attribute("axes", [0]))
    if version >= UNSQUEEZE_TAKES_AXES:
        proto.graph.initializer.append(onnx.helper.make_tensor(axes, onnx.TensorProto.INT64, [1], [0]))
