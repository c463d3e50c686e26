"""A model as the bytes of its protobuf, with the data of its large initializers made when they are asked for.

A message is its fields in a row, each with a tag in front, and a message or bytes in it with a length as well
(https://protobuf.dev/programming-guides/encoding). So what is around a tensor's bytes can be serialized without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import gt, lt

import onnx
from google.protobuf.message import Message

from bnfold.frontends.onnx.pieces import Piece

LENGTH_DELIMITED = 2

Run = tuple[int, Iterable[Piece]]
"""A number of bytes, and the pieces that they come in."""


def serialize_model(proto: onnx.ModelProto, data: Mapping[str, Run]) -> Run:
    """The bytes that a model has once some initializers get their raw data.

    Args:
        proto: the model; of these initializers it loses what it says about where their data is.
        data: the raw data of each such initializer, by name.
    """
    assert data.keys() <= {tensor.name for tensor in proto.graph.initializer}
    initializers = [
        _field(proto.graph, "initializer", _serialize_tensor(tensor, data.get(tensor.name)))
        for tensor in proto.graph.initializer
    ]
    graph = _joined([_half(proto.graph, "initializer", lt), *initializers, _half(proto.graph, "initializer", gt)])
    return _joined([_half(proto, "graph", lt), _field(proto, "graph", graph), _half(proto, "graph", gt)])


def _serialize_tensor(tensor: onnx.TensorProto, data: Run | None) -> Run:
    if data is None:
        return _made(tensor.SerializeToString())
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    return _joined([_half(tensor, "raw_data", lt), _field(tensor, "raw_data", data), _half(tensor, "raw_data", gt)])


def _half(message: Message, name: str, is_on_this_side: Callable[[int, int], bool]) -> Run:
    """The fields of a message with a lower (`lt`) or a higher (`gt`) number than a field."""
    middle = message.DESCRIPTOR.fields_by_name[name].number
    half = type(message)()
    for field, value in message.ListFields():
        if is_on_this_side(field.number, middle):
            if field.has_presence and field.message_type is None:
                setattr(half, field.name, value)
            else:
                getattr(half, field.name).MergeFrom(value)
    return _made(half.SerializeToString())


def _field(message: Message, name: str, content: Run) -> Run:
    """A field that holds bytes or a message."""
    tag = message.DESCRIPTOR.fields_by_name[name].number << 3 | LENGTH_DELIMITED
    return _joined([_made(_varint(tag) + _varint(content[0])), content])


def _joined(runs: Sequence[Run]) -> Run:
    return sum(size for size, _ in runs), chain.from_iterable(pieces for _, pieces in runs)


def _made(content: bytes) -> Run:
    return len(content), [(len(content), partial(bytes, content))]


def _varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first, each but the last with the top bit set."""
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])
