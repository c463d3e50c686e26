"""A model as the bytes of its file, of which nodes and tensors are read one at a time.

The protobuf of a hundred thousand nodes takes as much memory as an interpreter with all its libraries, and the objects
of `onnx_ir` three times that: so the two are never there at once. Tensors stay in the bytes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar, cast

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.frontends.onnx.files.wire import END_GROUP, GROUP, LENGTH_DELIMITED, Field, fields
from bnfold.frontends.reading import AnyArray

M = TypeVar("M")

GRAPH_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
NODE, INITIALIZER, OUTPUT = (
    onnx.GraphProto.DESCRIPTOR.fields_by_name[name].number for name in ("node", "initializer", "output")
)

PLAIN = {
    int(kind): kind.numpy().newbyteorder("<")
    for kind in (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32, ir.DataType.INT64)
}
"""Element types that a file holds as numpy does."""

BODIES = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})

TENSOR_FIELDS = frozenset(
    onnx.TensorProto.DESCRIPTOR.fields_by_name[name].number for name in ("dims", "data_type", "name", "raw_data")
)
RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


class UnstorableError(ValueError):
    """A model, or a part of one, that is read as a whole instead."""


class Messages(Generic[M]):
    """The messages of a repeated field, each made of its bytes whenever it is asked for."""

    def __init__(self, content: bytes, make: Callable[[bytes], M]) -> None:
        self._content, self._make = content, make
        self._starts, self._stops = array("I"), array("I")

    def note(self, start: int, stop: int) -> None:
        """Add a message, whose bytes these are."""
        self._starts.append(start)
        self._stops.append(stop)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Where each begins and ends."""
        return zip(self._starts, self._stops, strict=True)

    def __iter__(self) -> Iterator[M]:
        content, make = self._content, self._make
        return (make(content[start:stop]) for start, stop in self.spans())

    def __len__(self) -> int:
        return len(self._starts)


class StoredGraph:
    """What a `GraphProto` is to those who read one, with its nodes and tensors made anew for each.

    Attributes:
        rest: the graph without its nodes, initializers and outputs.
        node, initializer, output: these.
    """

    def __init__(self, rest: onnx.GraphProto, content: bytes) -> None:
        self.rest = rest
        self.node = Messages(content, onnx.NodeProto.FromString)
        self.initializer = Messages(content, onnx.TensorProto.FromString)
        self.output = Messages(content, onnx.ValueInfoProto.FromString)

    @property
    def name(self) -> str:
        """As in the protobuf."""
        return self.rest.name

    @property
    def input(self) -> Sequence[onnx.ValueInfoProto]:
        """As in the protobuf."""
        inputs: Sequence[onnx.ValueInfoProto] = self.rest.input
        return inputs


@dataclass(frozen=True, eq=False)
class StoredModel:
    """What a `ModelProto` is to those who read one, with its main graph in the bytes.

    Attributes:
        content: the bytes.
        rest: the model without the nodes, initializers and outputs of its main graph.
        graph: that graph.
    """

    content: bytes
    rest: onnx.ModelProto
    graph: StoredGraph

    @property
    def ir_version(self) -> int:
        """As in the protobuf."""
        return self.rest.ir_version

    @property
    def opset_import(self) -> Any:
        """As in the protobuf."""
        return self.rest.opset_import

    @property
    def functions(self) -> Any:
        """As in the protobuf."""
        return self.rest.functions

    def whole(self) -> onnx.ModelProto:
        """The protobuf."""
        proto: onnx.ModelProto = onnx.ModelProto.FromString(self.content)
        return proto

    @classmethod
    def of(cls, content: bytes) -> StoredModel:
        """The model of a protobuf's bytes.

        Raises:
            UnstorableError: they are in an unusual order.
        """
        outer = [field for field in _plain_fields(content, 0, len(content)) if field.number == GRAPH_FIELD]
        if len(outer) != 1 or outer[0].kind != LENGTH_DELIMITED:
            raise UnstorableError
        (held,) = outer
        rest = onnx.ModelProto.FromString(content[: held.begin] + content[held.stop :])
        graph = StoredGraph(rest.graph, content)
        messages = {NODE: graph.node, INITIALIZER: graph.initializer, OUTPUT: graph.output}
        others = bytearray()
        for field in _plain_fields(content, held.start, held.stop):
            if field.number not in messages:
                others += content[field.begin : field.stop]
            elif field.kind == LENGTH_DELIMITED:
                messages[field.number].note(field.start, field.stop)
            else:
                raise UnstorableError
        rest.graph.MergeFromString(bytes(others))
        return cls(content, rest, graph)


def _plain_fields(content: bytes, start: int, stop: int) -> Iterator[Field]:
    """The fields of a message.

    Raises:
        UnstorableError: it has a group, in which there are fields of another message.
    """
    for field in fields(content, start, stop):
        if field.kind in (GROUP, END_GROUP):
            raise UnstorableError
        yield field


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """The type and the shape of stored tensors, of which most models have few.

    Attributes:
        dtype: of the elements.
        dims: the shape.
        shape, type: as `onnx_ir` has them.
    """

    dtype: ir.DataType
    dims: tuple[int, ...]
    shape: ir.Shape
    type: ir.TensorType


class StoredTensor:
    """A tensor that is bytes of its model's file, which numpy takes as they are: an `onnx_ir.TensorProtocol`.

    `tensor` makes the usual one of it, for others.
    """

    __slots__ = ("_content", "_start", "form", "name")

    doc_string: str | None = None

    def __init__(self, name: str | None, form: Form, content: bytes, start: int) -> None:
        self.name, self.form, self._content, self._start = name, form, content, start

    @property
    def dtype(self) -> ir.DataType:
        """Of the elements."""
        return self.form.dtype

    @property
    def shape(self) -> ir.Shape:
        """Which many tensors share."""
        return self.form.shape

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.form.dims)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.size * PLAIN[self.form.dtype.value].itemsize

    @property
    def raw(self) -> bytes:
        """The bytes that the tensor is in."""
        return self._content

    @property
    def metadata_props(self) -> dict[str, str]:
        """It has none."""
        return {}

    @property
    def meta(self) -> dict[str, Any]:
        """It has none."""
        return {}

    def numpy(self) -> AnyArray:
        """The elements where they are, which may be an address that does not suit their type."""
        dims = self.form.dims
        flat = np.frombuffer(self._content, PLAIN[self.form.dtype.value], prod(dims), self._start)
        return flat if dims == flat.shape else flat.reshape(dims)

    def tobytes(self) -> bytes:
        """The elements as they are stored."""
        return self._content[self._start : self._start + self.nbytes]

    def tensor(self) -> ir.Tensor[AnyArray]:
        """Another tensor that holds the same."""
        return ir.Tensor(np.require(self.numpy(), requirements="A"), name=self.name)

    def __array__(self, dtype: Any = None) -> AnyArray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.tensor().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor().__dlpack_device__()


def deserialize(stored: StoredModel) -> ir.Model:
    """The model of a checked file, as `onnx_ir` makes it of the whole protobuf.

    Raises:
        UnstorableError: it has what is not read one at a time here, such as a body of a node.
    """
    if stored.graph.rest.quantization_annotation:
        raise UnstorableError
    model = ir.serde.deserialize_model(stored.rest)
    model.graph = _Graph(stored, model.graph).build()
    return model


class _Graph:
    """The main graph in the making.

    Args:
        stored: what it is read from.
        header: a graph with its inputs and properties alone, which loses them to the new one.
    """

    def __init__(self, stored: StoredModel, header: ir.Graph) -> None:
        self._stored, self._header = stored, header
        self._infos = {info.name: info for info in stored.graph.rest.value_info}
        self._inputs = list(header.inputs)
        self._values = {str(value.name): value for value in self._inputs}
        self._forms: dict[tuple[int, tuple[int, ...]], Form] = {}

    def build(self) -> ir.Graph:
        initializers = [self._initializer(start, stop) for start, stop in self._stored.graph.initializer.spans()]
        nodes = [self._node(proto) for proto in self._stored.graph.node]
        outputs: list[ir.Value] = []
        for info in self._stored.graph.output:
            outputs.append(ir.serde.deserialize_value_info_proto(info, self._values[info.name]))
        header = self._header
        header.inputs.clear()
        return ir.Graph(
            self._inputs,
            outputs,
            nodes=nodes,
            initializers=initializers,
            doc_string=header.doc_string,
            opset_imports=header.opset_imports,
            name=header.name,
            metadata_props=dict(header.metadata_props) or None,
        )

    def _initializer(self, start: int, stop: int) -> ir.Value:
        tensor = self._tensor(start, stop)
        name = str(tensor.name)
        if name in self._values:  # of an input, which has its own declaration
            value = self._values[name]
            value.const_value = tensor
            return value
        kind = tensor.form.type if isinstance(tensor, StoredTensor) else ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=cast("ir.Shape", tensor.shape), type=kind, const_value=tensor)
        self._values[name] = value
        return self._declared(value)

    def _tensor(self, start: int, stop: int) -> ir.TensorProtocol:
        """A tensor, which stays in the bytes if it is nothing but these, a name, a type and a shape."""
        content = self._stored.content
        held = list(_plain_fields(content, start, stop))
        raw = [field for field in held if field.number == RAW_DATA]
        is_plain = len(raw) == 1 and raw[0].kind == LENGTH_DELIMITED
        if not is_plain or not TENSOR_FIELDS.issuperset(field.number for field in held):
            return ir.serde.deserialize_tensor(onnx.TensorProto.FromString(content[start:stop]))
        data = raw[0]
        proto = onnx.TensorProto.FromString(content[start : data.begin] + content[data.stop : stop])
        dims = tuple(proto.dims)
        length = prod(dims) * PLAIN[proto.data_type].itemsize if proto.data_type in PLAIN else 0
        if not length or length != data.stop - data.start:
            return ir.serde.deserialize_tensor(onnx.TensorProto.FromString(content[start:stop]))
        key = proto.data_type, dims
        if (form := self._forms.get(key)) is None:
            dtype = ir.DataType(proto.data_type)
            form = self._forms[key] = Form(dtype, dims, ir.Shape(dims, frozen=True), ir.TensorType(dtype))
        return cast("ir.TensorProtocol", StoredTensor(proto.name, form, content, data.start))

    def _declared(self, value: ir.Value) -> ir.Value:
        """A value with what the file declares of it."""
        info = self._infos.get(str(value.name))
        return value if info is None else ir.serde.deserialize_value_info_proto(info, value)

    def _node(self, proto: onnx.NodeProto) -> ir.Node:
        attributes = list(proto.attribute)
        if proto.device_configurations or any(each.type in BODIES for each in attributes):
            raise UnstorableError
        values, outputs = self._values, []
        inputs = [values[name] if name else None for name in proto.input]
        for name in proto.output:
            value = ir.Value(name=name)
            if name:
                values[name] = self._declared(value)
            outputs.append(value)
        return ir.Node(
            sys.intern(proto.domain),
            sys.intern(proto.op_type),
            inputs,
            [ir.serde.deserialize_attribute(each) for each in attributes],
            overload=proto.overload,
            outputs=outputs,
            name=proto.name,
            doc_string=proto.doc_string if proto.HasField("doc_string") else None,
            metadata_props=ir.serde.deserialize_metadata_props(proto.metadata_props),
        )
