"""The protobuf that a model was read from, and the message of each node and constant of the `ir.Model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.onnx.files.stored import StoredModel, StoredTensor
from bnfold.frontends.onnx.nesting import nested, pairs

META = "bnfold.original"
"""Where a model keeps its original."""


@dataclass(frozen=True)
class Source:
    """A file as it was when it was read."""

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """The file as it is now."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def is_unchanged(self) -> bool:
        """Whether the file is unchanged."""
        return self.path.is_file() and Source.of(self.path) == self

    def tensor(self) -> ir.ExternalTensor:
        """Its bytes, as a tensor in a file."""
        shape, folder = ir.Shape([self.size]), self.path.parent
        return ir.ExternalTensor(
            self.path.name, 0, self.size, ir.DataType.UINT8, shape=shape, name=self.path.name, base_dir=folder
        )


class Densified(ir.LazyTensor):
    """A sparse tensor as a dense one, made whenever it is read."""

    def __init__(self, sparse: onnx.SparseTensorProto) -> None:
        kind, shape = ir.DataType(sparse.values.data_type), ir.Shape(sparse.dims)
        super().__init__(self._fill, dtype=kind, shape=shape, name=sparse.values.name)
        self._sparse = sparse

    def _fill(self) -> ir.TensorProtocol:
        values, indices = numpy_helper.to_array(self._sparse.values), numpy_helper.to_array(self._sparse.indices)
        shape = tuple(self._sparse.dims)
        dense = np.zeros(prod(shape), values.dtype)
        dense[indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)] = values
        return ir.tensor(dense.reshape(shape))


@dataclass(frozen=True, eq=False, slots=True)
class NodeRecord:
    """A node as it was read."""

    proto: onnx.NodeProto
    attributes: Mapping[str, ir.Attr]


@dataclass(frozen=True, eq=False, slots=True)
class ConstantRecord:
    """An initializer as it was read."""

    proto: onnx.TensorProto | onnx.SparseTensorProto
    tensor: ir.TensorProtocol


NOTHING: Mapping[str, ir.Attr] = MappingProxyType({})


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A graph or function as it was read. The records of its nodes and constants would take several times the memory.

    Attributes:
        nodes, attributes: its nodes in order, and what each had.
        values, tensors: its initializers in order, the sparse ones last, and what each held.
    """

    nodes: tuple[ir.Node, ...]
    attributes: tuple[Mapping[str, ir.Attr], ...]
    values: tuple[ir.Value, ...] = ()
    tensors: tuple[ir.TensorProtocol, ...] = ()


@dataclass(frozen=True, eq=False)
class Original:
    """The protobuf of a model that may have been edited since.

    Attributes:
        held: the message, which nothing changes, or the file's bytes, of which it is made when it is asked for.
        source: the file that holds it, if one does.
        left_out: what the model does not hold of it.
        parts: its graphs and functions, in the order of `nested`.
    """

    held: onnx.ModelProto | StoredModel
    source: Source | None
    left_out: tuple[str, ...]
    parts: list[Part] = field(default_factory=list)

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The message; nothing changes it."""
        return self.held.whole() if isinstance(self.held, StoredModel) else self.held

    def _described(self) -> Iterator[tuple[Part, onnx.GraphProto | onnx.FunctionProto]]:
        """Each part with its message."""
        return zip(self.parts, nested(self.proto.graph, *self.proto.functions), strict=True)

    @cached_property
    def nodes(self) -> Mapping[ir.Node, NodeRecord]:
        """The nodes that were in it, of all graphs and functions."""
        return {
            node: NodeRecord(proto, attributes)
            for part, described in self._described()
            for node, proto, attributes in zip(part.nodes, described.node, part.attributes, strict=True)
        }

    @cached_property
    def constants(self) -> Mapping[ir.Value, ConstantRecord]:
        """The initializers that were in it."""
        return {
            value: ConstantRecord(proto, tensor)
            for part, described in self._described()
            if isinstance(described, onnx.GraphProto)
            for value, proto, tensor in zip(
                part.values, (*described.initializer, *described.sparse_initializer), part.tensors, strict=True
            )
        }

    def names(self) -> Iterator[str]:
        """Names that parts of it mention which the model does not hold, so that nothing else may get them."""
        for graph in nested(self.proto.graph, *self.proto.functions):
            for info in graph.value_info:
                yield info.name
                if "::" in info.name:  # how exporters name the values of functions before IR version 10
                    yield info.name.rpartition("/")[2]
            if isinstance(graph, onnx.GraphProto):
                yield from (each.tensor_name for each in graph.quantization_annotation)
        yield from self.names_read_elsewhere()

    def names_read_elsewhere(self) -> Iterator[str]:
        """Names of values that are read by something else than nodes: annotations, and information about training."""
        for graph in nested(self.proto.graph, *self.proto.functions):
            if isinstance(graph, onnx.GraphProto):
                for annotation in graph.quantization_annotation:
                    yield from (each.value for each in annotation.quant_parameter_tensor_names)
        for training in self.proto.training_info:
            for entry in (*training.initialization_binding, *training.update_binding):
                yield from (entry.key, entry.value)
            for graph in (training.initialization, training.algorithm):
                for node in graph.node:
                    yield from node.input
                    yield from node.output


def original_of(model: ir.Model) -> Original | None:
    """The original of a model; None where bnfold did not read it."""
    original = model.meta.get(META)
    assert original is None or isinstance(original, Original)
    return original


def as_read(model: ir.Model) -> onnx.ModelProto | StoredModel | None:
    """The protobuf of a model that was just read; None where that is not all of it, or bnfold did not read it."""
    original = original_of(model)
    return None if original is None or original.left_out else original.held


def attach(model: ir.Model, original: Original, *, restore: bool) -> None:
    """Attach the original to its model, with the message of each node and constant.

    Args:
        model: as it was read.
        original: which has no parts yet.
        restore: whether the model was read from a copy without the bytes of tensors, which it gets back.
    """
    held = original.held
    functions = zip((function.graph for function in model.functions.values()), held.functions, strict=True)
    main = [] if isinstance(held, StoredModel) else [(model.graph, held.graph)]
    for graph, described in pairs(*main, *functions):
        values = _constants(graph, described, restore=restore) if isinstance(described, onnx.GraphProto) else []
        nodes = tuple(graph)
        if restore:
            for node, each in zip(nodes, described.node, strict=True):
                for attribute in each.attribute:
                    _restore(node, attribute)
        original.parts.append(_part(nodes, values))
    if isinstance(held, StoredModel):
        original.parts.append(_part(tuple(model.graph), list(model.graph.initializers.data.values())))
    model.meta[META] = original


def _part(nodes: tuple[ir.Node, ...], values: Sequence[ir.Value]) -> Part:
    """A graph as it is."""
    held = (dict(node.attributes.data) if node.attributes.data else NOTHING for node in nodes)
    tensors = (value.const_value for value in values if value.const_value is not None)
    return Part(nodes, tuple(held), tuple(values), tuple(tensors))


def _constants(graph: ir.Graph, described: onnx.GraphProto, *, restore: bool) -> list[ir.Value]:
    """The initializers of a graph, in the order of its message, once each has its tensor."""
    held = graph.initializers.data
    values = [held[dense.name] for dense in described.initializer]
    if restore:
        for value, dense in zip(values, described.initializer, strict=True):
            value.const_value = ir.serde.deserialize_tensor(dense)
    for sparse in described.sparse_initializer:
        value = held[sparse.values.name]
        value.const_value = Densified(sparse)
        value.shape = ir.Shape(sparse.dims)
        values.append(value)
    return values


def _restore(node: ir.Node, attribute: onnx.AttributeProto) -> None:
    """Give a node back what was left out of an attribute."""
    name, kind = attribute.name, attribute.type
    if attribute.ref_attr_name:
        return
    if kind in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS):
        node.attributes[name] = ir.serde.deserialize_attribute(attribute)
    elif name == "sparse_value" and node.op_type == "Constant" and node.domain == "":
        node.attributes["value"] = ir.AttrTensor("value", Densified(attribute.sparse_tensor))


def detach(model: ir.Model, name: str) -> ir.Model:
    """The model without its original, for others, who may change it in any way.

    Raises:
        UnsupportedModelError: there is something that only the original holds.
    """
    original = original_of(model)
    if original is not None and original.left_out:
        raise UnsupportedModelError(
            f"{name}: onnx_ir.Model cannot hold {original.left_out[0]}; give an onnx.ModelProto instead of the path"
        )
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, StoredTensor):
            if value.type is value.const_value.form.type:  # whoever sets the type of one value would change all
                value.type = ir.TensorType(value.const_value.dtype)
            value.const_value = value.const_value.tensor()
    model.meta.pop(META, None)
    return model
