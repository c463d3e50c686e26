"""The protobuf of an edited model: its original, with what was edited changed and all the rest as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.frontends.onnx.files.messages import Edited, Part, edited
from bnfold.frontends.onnx.files.original import ConstantRecord, NodeRecord, Original
from bnfold.frontends.onnx.files.readable import EMPTY
from bnfold.frontends.onnx.files.slots import Placeholder, Token


def patch(model: ir.Model, original: Original) -> Part:
    """The part that makes the protobuf of a model; the original's message itself where nothing was edited."""
    return _Patch(original).model(model)


class _Patch:
    """One walk over a model, beside its original.

    `_gone` holds the names of values that are in no graph any more: of the one that is walked, and of its bodies.
    """

    def __init__(self, original: Original) -> None:
        self._original = original
        self._gone: set[str] = set()

    def model(self, model: ir.Model) -> Part:
        proto = self._original.proto
        functions: list[Part] = []
        gone: set[str] = set()
        for function, each in zip(model.functions.values(), proto.functions, strict=True):
            self._gone = set()
            functions.append(self._function(function.graph, each))
            gone.update(f"{each.domain}::{each.name}/{name}" for name in self._gone)  # see `Original.names`
        self._gone = gone
        return edited(proto, functions=functions, graph=self._graph(model.graph, proto.graph))

    def _function(self, graph: ir.Graph, proto: onnx.FunctionProto) -> Part:
        nodes = [self._node(node) for node in graph]
        self._note_gone(proto, proto.input, graph)
        return edited(
            proto,
            node=nodes,
            input=_names(graph.inputs),
            output=_names(graph.outputs),
            value_info=[each for each in proto.value_info if each.name not in self._gone],
        )

    def _graph(self, graph: ir.Graph, proto: onnx.GraphProto) -> Part:
        nodes = [self._node(node) for node in graph]
        dense: list[Part] = []
        sparse: list[Part] = []
        for value in graph.initializers.values():
            record = self._original.constants.get(value)
            is_sparse = record is not None and isinstance(record.proto, onnx.SparseTensorProto)
            (sparse if is_sparse else dense).append(_constant(value, record))
        inputs = {each.name: each for each in proto.input}
        held = [each.name for each in proto.initializer] + [each.values.name for each in proto.sparse_initializer]
        self._note_gone(proto, [*inputs, *held], graph)
        return edited(
            proto,
            node=nodes,
            initializer=dense,
            sparse_initializer=sparse,
            input=[inputs.get(str(value.name), _declaration(value)) for value in graph.inputs],
            output=[edited(each, name=value.name) for each, value in zip(proto.output, graph.outputs, strict=True)],
            value_info=[each for each in proto.value_info if each.name not in self._gone],
            quantization_annotation=[
                each for each in proto.quantization_annotation if each.tensor_name not in self._gone
            ],
        )

    def _note_gone(self, proto: onnx.GraphProto | onnx.FunctionProto, held: Iterable[str], graph: ir.Graph) -> None:
        before = {*held, *(name for node in proto.node for name in node.output)}
        after = {*_names(graph.inputs), *graph.initializers, *(name for node in graph for name in _names(node.outputs))}
        self._gone |= before - {""}
        self._gone -= after

    def _node(self, node: ir.Node) -> Part:
        record = self._original.nodes.get(node)
        if record is None:
            return partial(ir.serde.serialize_node_into, from_=node)
        proto = record.proto
        inputs, outputs = _names(node.inputs), _names(node.outputs)
        return edited(
            proto,
            op_type=node.op_type,
            input=inputs,
            output=outputs,
            attribute=self._attributes(node, record),
            device_configurations=_shardings(proto, inputs, outputs),
        )

    def _attributes(self, node: ir.Node, record: NodeRecord) -> list[Part]:
        found: list[Part] = []
        for each in record.proto.attribute:
            then, now = record.attributes.get(each.name), node.attributes.get(each.name)
            if then is None:
                found.append(each)  # which onnx-ir could not hold
            elif now is not None:
                found.append(self._attribute(now, then, each))
        known = {each.name for each in record.proto.attribute}
        for name, now in node.attributes.items():
            if name not in known and now is not record.attributes.get(name):
                found.append(_attribute(now))
        return found

    def _attribute(self, now: ir.Attr, then: ir.Attr, proto: onnx.AttributeProto) -> Part:
        if now.is_ref() or then.is_ref():
            return proto if now is then else _attribute(now)
        kinds = now.type, then.type
        if kinds == (ir.AttributeType.GRAPH, ir.AttributeType.GRAPH):
            return edited(proto, g=self._graph(now.as_graph(), proto.g))
        if kinds == (ir.AttributeType.GRAPHS, ir.AttributeType.GRAPHS):
            bodies = zip(now.as_graphs(), proto.graphs, strict=True)
            return edited(proto, graphs=[self._graph(body, each) for body, each in bodies])
        if now is then:
            return proto
        if kinds == (ir.AttributeType.TENSOR, ir.AttributeType.TENSOR):
            return edited(proto, t=_tensor(now.as_tensor(), then.as_tensor(), proto.t))
        if kinds == (ir.AttributeType.TENSORS, ir.AttributeType.TENSORS):
            tensors = zip(now.as_tensors(), then.as_tensors(), proto.tensors, strict=True)
            return edited(proto, tensors=[_tensor(*each) for each in tensors])
        return proto if now.type == then.type and now.value == then.value else _attribute(now)


def _attribute(attribute: ir.Attr) -> Part:
    if attribute.is_ref():
        return partial(ir.serde.serialize_reference_attribute_into, from_=attribute)
    return partial(ir.serde.serialize_attribute_into, from_=attribute)


def _declaration(value: ir.Value) -> Part:
    return partial(ir.serde.serialize_value_into, from_=value)


def _constant(value: ir.Value, record: ConstantRecord | None) -> Part:
    """The part that makes an initializer."""
    tensor = value.const_value
    assert tensor is not None
    if record is None:
        return _new_tensor(tensor, value.name)
    if isinstance(record.proto, onnx.TensorProto):
        return _tensor(tensor, record.tensor, record.proto, value.name)
    assert tensor is record.tensor
    return edited(record.proto, values=edited(record.proto.values, name=value.name))


def _new_tensor(tensor: ir.TensorProtocol, name: str | None) -> Part:
    def fill(target: onnx.TensorProto) -> None:
        ir.serde.serialize_tensor_into(target, from_=tensor)
        if name is not None:
            target.name = name

    return fill


def _tensor(now: ir.TensorProtocol, then: ir.TensorProtocol, proto: onnx.TensorProto, name: str | None = None) -> Part:
    """The part that makes a tensor which was another before, and had a message.

    Args:
        now: the tensor.
        then: what it was.
        proto: the message.
        name: what it is called from now on; None where it has no name to change.
    """
    names = {} if name is None else {"name": name}
    if now is then:
        return edited(proto, **names)
    if isinstance(now, Token | Placeholder) and now.stands_for is then:
        data = {"raw_data": now.content} if isinstance(now, Token) else _external(now, proto)
        return Edited(proto, {**EMPTY, **data, **names})
    return _new_tensor(now, name)


def _external(placeholder: Placeholder, proto: onnx.TensorProto) -> dict[str, Any]:
    """The entries that say where external data is. Other entries, such as a checksum, stay."""
    where = {"location": placeholder.location, "offset": placeholder.offset, "length": placeholder.length}
    others = [each for each in proto.external_data if each.key not in {*where, "checksum"}]  # of the whole other file
    entries = [onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in where.items()]
    return {"data_location": onnx.TensorProto.EXTERNAL, "external_data": [*entries, *others]}


def _shardings(proto: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> list[Part]:
    """How a node is spread over devices, under the names that its inputs and outputs have from now on."""
    old, new = [*proto.input, *proto.output], {*inputs, *outputs}
    pairs = [*zip(proto.input, inputs, strict=False), *zip(proto.output, outputs, strict=False)]
    names = {before: after for before, after in pairs if before not in new and after}
    gone = {*old} - new - names.keys()
    return [
        edited(
            each,
            sharding_spec=[
                edited(spec, tensor_name=names.get(spec.tensor_name, spec.tensor_name))
                for spec in each.sharding_spec
                if spec.tensor_name not in gone
            ],
        )
        for each in proto.device_configurations
    ]


def _names(values: Sequence[ir.Value | None]) -> list[str]:
    return ["" if value is None else value.name or "" for value in values]
