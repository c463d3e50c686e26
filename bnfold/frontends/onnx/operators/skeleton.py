"""The protobuf that shapes are inferred from: a model without large tensors, and without declarations.

What was just read is copied from its protobuf, in bulk. Any other model is serialised, which takes ten times as long.
"""

from __future__ import annotations

from math import prod

import onnx
import onnx_ir as ir
from onnx import AttributeProto, TensorProto

from bnfold.frontends.onnx.files.slots import lending, placeholder, slots
from bnfold.frontends.onnx.files.stored import StoredGraph, StoredModel
from bnfold.frontends.onnx.nesting import bodies, nested
from bnfold.frontends.onnx.operators.constants import OVERRIDABLE

DATA_LIMIT = 1000
"""Bytes of a tensor whose values may decide a shape; larger ones are left out."""

TENSORS = frozenset({AttributeProto.TENSOR, AttributeProto.TENSORS})

SPARSE = frozenset({AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS})

WEIGHTS = {
    "BatchNormalization": (1, 5),
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 3)),
    "Gemm": (0, 3),
    "MatMul": (0, 2),
}
"""The first and the last input, exclusive, of which type and shape alone decide shapes, never the values."""

BITS = {kind.value: kind.bitwidth for kind in ir.DataType if kind not in (ir.DataType.UNDEFINED, ir.DataType.STRING)}
"""The size of an element, by its type; strings have none."""


def skeleton(model: ir.Model, original: onnx.ModelProto | StoredModel | None) -> onnx.ModelProto:
    """The protobuf without large tensors and declarations. The declarations of graph inputs stay.

    Args:
        model: only read.
        original: the protobuf that the model is as it was read from; None where it is not known.
    """
    proto = _serialize(model) if original is None or not _is_plain(original) else _copy(original)
    if model.ir_version >= OVERRIDABLE:
        inputs = {info.name for info in proto.graph.input}
        if any(tensor.name in inputs for tensor in proto.graph.initializer):
            kept = [tensor for tensor in proto.graph.initializer if tensor.name not in inputs]
            del proto.graph.initializer[:]
            proto.graph.initializer.extend(kept)
    for graph in nested(proto.graph):
        _forget(graph, keeps_inputs=graph is proto.graph)
    for function in proto.functions:
        del function.value_info[:]
    return proto


def _serialize(model: ir.Model) -> onnx.ModelProto:
    large = [slot for slot in slots(model) if _is_large(slot.tensor)]
    with lending(large, [placeholder(slot.tensor) for slot in large]):  # so that nobody copies them
        return ir.serde.serialize_model(model)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    is_elsewhere = isinstance(tensor, ir.ExternalTensor)
    return is_elsewhere or (tensor.dtype != ir.DataType.STRING and tensor.nbytes > DATA_LIMIT)


def _is_plain(proto: onnx.ModelProto | StoredModel) -> bool:
    """Whether a model can be copied in bulk: onnx-ir changes nothing of it, and large tensors are initializers only."""
    if any(each.domain == "ai.onnx" for each in (*proto.opset_import, *proto.functions)):
        return False
    if isinstance(proto, StoredModel) and not all(map(_is_plain_node, proto.graph.node)):
        return False
    for graph in nested(*(() if isinstance(proto, StoredModel) else (proto.graph,)), *proto.functions):
        if isinstance(graph, onnx.GraphProto):
            if graph.sparse_initializer:
                return False
            if graph is not proto.graph and not all(map(_is_small, graph.initializer)):
                return False
        if not all(map(_is_plain_node, graph.node)):
            return False
    return True


def _is_plain_node(node: onnx.NodeProto) -> bool:
    if node.domain == "ai.onnx":
        return False
    for attribute in node.attribute:
        kind = attribute.type
        if kind in SPARSE or (kind in TENSORS and not all(map(_is_small, (attribute.t, *attribute.tensors)))):
            return False
    return True


def _is_small(tensor: TensorProto) -> bool:
    """The opposite of `_is_large`, for a tensor as it is stored."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return False
    return bool(prod(tensor.dims) * BITS.get(tensor.data_type, 0) <= 8 * DATA_LIMIT)


def _copy(original: onnx.ModelProto | StoredModel) -> onnx.ModelProto:
    """The model without large initializers, of which type and shape stay."""
    proto = onnx.ModelProto(ir_version=original.ir_version, opset_import=original.opset_import)
    old, new = original.graph, proto.graph
    new.name = old.name
    new.node.extend(old.node)
    new.input.extend(old.input)
    new.output.extend(old.output)
    proto.functions.extend(original.functions)
    tensors = _share_weights(new, old) if original.ir_version >= OVERRIDABLE else old.initializer
    new.initializer.extend([tensor if _is_small(tensor) else _described(tensor) for tensor in tensors])
    return proto


def _share_weights(graph: onnx.GraphProto, original: onnx.GraphProto | StoredGraph) -> list[TensorProto]:
    """Let nodes read one of all weights of a type and shape; gives the initializers that something still reads.

    An initializer takes onnx as long as a node, and a BatchNormalization has four.
    """
    inputs = {info.name for info in original.input}
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    alike = {
        tensor.name: first.setdefault((tensor.data_type, tuple(tensor.dims)), tensor.name)
        for tensor in original.initializer
        if tensor.name not in inputs
    }
    read = {info.name for info in original.output}
    for node in graph.node:
        node.ClearField("name")
        names = list(node.input)
        if node.op_type in WEIGHTS and not node.domain:
            start, stop = WEIGHTS[node.op_type]
            names[start:stop] = [alike.get(name, name) for name in names[start:stop]]
            del node.input[start:]
            node.input.extend(names[start:])
        read.update(names)
        if node.attribute:
            read.update(name for body in nested(*bodies(node)) for inner in body.node for name in inner.input)
    return [tensor for tensor in original.initializer if tensor.name in read]


def share_functions(proto: onnx.ModelProto) -> None:
    """Let nodes call one of all functions that differ in name alone, for onnx looks at all functions in each call."""
    first: dict[bytes, tuple[str, str]] = {}
    same: dict[tuple[str, str, str], tuple[str, str]] = {}
    kept = onnx.ModelProto()
    for function in proto.functions:
        nameless = onnx.FunctionProto()
        nameless.CopyFrom(function)
        for field in ("name", "overload", "doc_string"):
            nameless.ClearField(field)
        own, content = (function.name, function.overload), nameless.SerializeToString(deterministic=True)
        same[function.domain, *own] = first.setdefault(content, own)
        if first[content] == own:
            kept.functions.append(function)
    if len(kept.functions) == len(same):
        return
    for graph in nested(proto.graph, *kept.functions):
        for node in graph.node:
            if (key := (node.domain, node.op_type, node.overload)) in same:
                node.op_type, node.overload = same[key]
    del proto.functions[:]
    proto.functions.extend(kept.functions)


def _described(tensor: TensorProto) -> TensorProto:
    """A tensor without its data."""
    place = onnx.StringStringEntryProto(key="location", value="-")
    return TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        data_location=TensorProto.EXTERNAL,
        external_data=[place],
    )


def _forget(graph: onnx.GraphProto, *, keeps_inputs: bool) -> None:
    """Drop the declarations of a graph."""
    del graph.value_info[:]
    for info in (*graph.output, *(() if keeps_inputs else graph.input)):
        info.ClearField("type")
