"""A model as `onnx_ir` can read it: what it refuses, though it is valid, is left out.

It refuses sparse tensors in attributes, and types that hold a map or an opaque type; sparse initializers it does not
see. A model that has any is read from a copy without them, and without the bytes of its tensors, which `original` gives
back from the model itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx

from bnfold.frontends.onnx.files.messages import Edited, Part, edited, write
from bnfold.frontends.onnx.nesting import nested

SPARSE = frozenset({onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS})

DATA = (
    *("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"),
    *("external_data", "data_location"),
)
"""The fields of a tensor that hold its values, or say where they are."""

EMPTY: dict[str, None] = dict.fromkeys(DATA)


def readable(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The part of a model that `onnx_ir` can read, and the names of what is left out. Often that is all of it."""
    if is_whole(proto):
        return proto, ()
    found = _Reading(without_data=False)
    if found.model(proto) is proto:
        return proto, ()
    copy = onnx.ModelProto()
    write(_Reading(without_data=True).model(proto), copy)
    return copy, tuple(found.left_out)


def is_whole(proto: onnx.ModelProto) -> bool:
    """Whether `onnx_ir` can read all of a model, apart from what may be in types of attributes."""
    return all(map(_is_whole, nested(proto.graph, *proto.functions)))


def _is_whole(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    """Whether nothing of a graph has to be left out, apart from its bodies."""
    attributes = [each for node in graph.node for each in node.attribute]
    infos = list(graph.value_info)
    if isinstance(graph, onnx.GraphProto):
        if graph.sparse_initializer:
            return False
        infos += [*graph.input, *graph.output]
    else:
        attributes += graph.attribute_proto
    return all(_is_readable(info.type) for info in infos) and not any(
        each.type in SPARSE or each.HasField("tp") or each.type_protos for each in attributes
    )


class _Reading:
    """One walk over a model.

    Args:
        without_data: leave the bytes of its tensors out too.
    """

    def __init__(self, *, without_data: bool) -> None:
        self._without_data = without_data
        self.left_out: list[str] = []

    def model(self, proto: onnx.ModelProto) -> Part:
        functions = [self._function(each) for each in proto.functions]
        return edited(proto, graph=self._graph(proto.graph), functions=functions)

    def _function(self, function: onnx.FunctionProto) -> Part:
        what = f"function {function.name!r}"
        return edited(
            function,
            node=[self._node(each) for each in function.node],
            attribute_proto=self._attributes(function.attribute_proto, what),
            value_info=[self._value(each) for each in function.value_info],
        )

    def _graph(self, graph: onnx.GraphProto) -> Part:
        dense = [self._tensor(each) for each in graph.initializer]
        return edited(
            graph,
            node=[self._node(each) for each in graph.node],
            initializer=dense + [_place(each) for each in graph.sparse_initializer],
            sparse_initializer=[],
            input=[self._value(each) for each in graph.input],
            output=[self._value(each) for each in graph.output],
            value_info=[self._value(each) for each in graph.value_info],
        )

    def _node(self, node: onnx.NodeProto) -> Part:
        what = f"node {node.name!r} ({node.op_type})"
        is_constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
        return edited(node, attribute=self._attributes(node.attribute, what, note=not is_constant))

    def _attributes(self, attributes: Iterable[onnx.AttributeProto], what: str, *, note: bool = True) -> list[Part]:
        kept: list[Part] = []
        for each in attributes:
            if each.ref_attr_name:
                kept.append(each)
            elif each.type in SPARSE or not all(map(_is_readable, [each.tp, *each.type_protos])):
                self.left_out += [f"attribute {each.name!r} of {what}"] if note else []
            else:
                kept.append(self._attribute(each))
        return kept

    def _attribute(self, attribute: onnx.AttributeProto) -> Part:
        fields: dict[str, Any] = {}
        if attribute.HasField("g"):
            fields["g"] = self._graph(attribute.g)
        if attribute.HasField("t"):
            fields["t"] = self._tensor(attribute.t)
        fields["graphs"] = [self._graph(each) for each in attribute.graphs]
        fields["tensors"] = [self._tensor(each) for each in attribute.tensors]
        return edited(attribute, **fields)

    def _tensor(self, tensor: onnx.TensorProto) -> Part:
        return edited(tensor, **EMPTY) if self._without_data else tensor

    def _value(self, info: onnx.ValueInfoProto) -> Part:
        if _is_readable(info.type):
            return info
        self.left_out.append(f"the type of {info.name!r}")
        return edited(info, type=None)


def _place(sparse: onnx.SparseTensorProto) -> Edited:
    """A tensor without elements for the value of a sparse initializer."""
    fields: dict[str, Any] = {**EMPTY, "dims": None, "raw_data": b""}
    return Edited(sparse.values, fields)


def _is_readable(kind: onnx.TypeProto) -> bool:
    """Whether `onnx_ir` has such a type."""
    while kind.HasField("sequence_type") or kind.HasField("optional_type"):
        kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
        if kind.HasField("opaque_type"):
            return False
    return not kind.HasField("map_type")
