"""Shapes and element types of every value, without writing them into the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from bnfold.frontends.onnx.slots import lending, placeholder, slots
from bnfold.inference import infer_shapes
from bnfold.ops import Dim, Shape

DATA_LIMIT = 1000
"""Bytes of a tensor whose values may decide a shape; larger ones are left out."""

KINDS = frozenset(ir.DataType) - {ir.DataType.UNDEFINED}

DIM_LIMIT = 1 << 40
"""A dimension that no array has; a larger or a negative one is not known rather than believed."""


OVERRIDABLE = 4
"""The IR version from which on an initializer that is a graph input too is a default, which a caller may replace."""


def infer(model: ir.Model) -> tuple[dict[ir.Value, Shape], dict[ir.Value, ir.DataType]]:
    """What is declared, stored, and known to onnx's shape inference; where that fails, the others remain."""
    shapes: dict[ir.Value, Shape] = {}
    types: dict[ir.Value, ir.DataType] = {}
    for value in _values(model):
        tensor = value.const_value
        known = value.shape if value.shape is not None else None if tensor is None else tensor.shape
        if known is not None:
            shapes[value] = tuple(_dim(dim) for dim in known)
        dtype = value.dtype or (None if tensor is None else tensor.dtype)
        if dtype is not None:
            types[value] = dtype
    inferred = _infer(model)
    if inferred is not None:
        for value, kind in _matched(model.graph, inferred.graph):
            if kind.HasField("shape"):
                shapes[value] = tuple(_proto_dim(dim) for dim in kind.shape.dim)
            if kind.elem_type in KINDS:
                types[value] = ir.DataType(kind.elem_type)
    return shapes, types


def _infer(model: ir.Model) -> onnx.ModelProto | None:
    large = [slot for slot in slots(model) if _is_large(slot.tensor)]
    with lending(large, [placeholder(slot.tensor) for slot in large]):  # so that nobody copies them
        proto = ir.serde.serialize_model(model)
    if model.ir_version >= OVERRIDABLE:
        inputs = {each.name for each in proto.graph.input}
        kept = [each for each in proto.graph.initializer if each.name not in inputs]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
    return infer_shapes(proto)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    is_elsewhere = isinstance(tensor, ir.ExternalTensor)
    return is_elsewhere or (tensor.dtype != ir.DataType.STRING and tensor.nbytes > DATA_LIMIT)


def _matched(graph: ir.Graph, proto: onnx.GraphProto) -> Iterator[tuple[ir.Value, onnx.TypeProto.Tensor]]:
    """Values of a graph and its bodies, with the tensor types that a proto of the same graph gives them."""
    stack = [(graph, proto)]
    while stack:
        graph, proto = stack.pop()
        found = {info.name: info.type.tensor_type for info in (*proto.value_info, *proto.output)}
        for value in _graph_values(graph):
            if value.name in found:
                yield value, found[value.name]
        for node, described in zip(graph, proto.node, strict=True):
            for attribute in described.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    stack.append((node.attributes[attribute.name].as_graph(), attribute.g))
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    bodies = node.attributes[attribute.name].as_graphs()
                    stack.extend(zip(bodies, attribute.graphs, strict=True))


def _proto_dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if 0 <= dim.dim_value < DIM_LIMIT else None
    return dim.dim_param or None


def _dim(dim: int | ir.SymbolicDimProtocol) -> Dim:
    if isinstance(dim, int):
        return dim if 0 <= dim < DIM_LIMIT else None
    return dim.value


def _values(model: ir.Model) -> Iterable[ir.Value]:
    """Every value of every graph and function."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in (root, *root.subgraphs()):
            yield from _graph_values(graph)


def _graph_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
