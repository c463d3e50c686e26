"""The bytes of protobuf messages, with the data of large tensors made when it is asked for.

A message is its fields in a row, each with a tag in front, and a message or bytes in it with a length as well
(https://protobuf.dev/programming-guides/encoding). So bytes within a serialized message can be replaced by longer ones
where the lengths around them are too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

VARINT, FIXED64, LENGTH_DELIMITED, GROUP, END_GROUP, FIXED32 = range(6)
"""The encoding of a field's value: the lower three bits of its tag."""

SIZES = {FIXED64: 8, FIXED32: 4, GROUP: 0, END_GROUP: 0}
"""The bytes behind the tag, where they are always as many. What is in a group are fields again."""

Piece = tuple[int, Callable[[], bytes | memoryview]]
"""A number of bytes, and what makes them."""

Run = tuple[int, Iterable[Piece]]
"""A number of bytes, and the pieces that they come in."""


def splice(content: bytes, mark: bytes, data: Mapping[bytes, Run]) -> Run:
    """The bytes of a message, with some of its fields replaced.

    Args:
        content: the serialized message.
        mark: how the fields begin that are replaced; nothing else in the message holds it.
        data: the other bytes, by what the fields hold.
    """
    runs: list[Run] = []
    start = position = 0
    found = content.find(mark)
    while found >= 0:
        field = position
        tag, position = _read_varint(content, position)
        kind = tag & 7
        if kind == VARINT:
            _, position = _read_varint(content, position)
        elif kind == LENGTH_DELIMITED:
            size, position = _read_varint(content, position)
            if found < position + size:
                held = content[position : position + size]
                run = data[held] if held in data else splice(held, mark, data)
                runs += [_made(content[start:field]), _made(varint(tag) + varint(run[0])), run]
                start = position + size
                found = content.find(mark, start)
            position += size
        else:
            position += SIZES[kind]
    return _joined([*runs, _made(content[start:])])


class Field(NamedTuple):
    """One field of a serialized message.

    Attributes:
        number: which field it is.
        kind: how its value is encoded.
        begin, start, stop: where its tag begins, and where its value begins, behind a length, and ends.
    """

    number: int
    kind: int
    begin: int
    start: int
    stop: int


def fields(content: bytes, start: int, stop: int) -> Iterator[Field]:
    """The fields of a serialized message that protobuf could read, groups in pieces."""
    position = start
    while position < stop:
        begin = position
        tag, position = _read_varint(content, position)
        kind = tag & 7
        if kind == LENGTH_DELIMITED:
            size, position = _read_varint(content, position)
            end = position + size
        elif kind == VARINT:
            _, end = _read_varint(content, position)
        else:
            end = position + SIZES[kind]
        yield Field(tag >> 3, kind, begin, position, end)
        position = end


def unknown_fields(message: Message) -> bytes:
    """The fields of a message that its type does not have: an extension's, or those of a later version."""
    return _fields(UnknownFieldSet(message))


def _fields(fields: UnknownFieldSet) -> bytes:
    made = bytearray()
    for field in fields:
        number, kind, data = field.field_number, field.wire_type, field.data
        made += varint(number << 3 | kind)
        if kind == VARINT:
            made += varint(data)
        elif kind == LENGTH_DELIMITED:
            made += varint(len(data)) + data
        elif kind == GROUP:
            made += _fields(data) + varint(number << 3 | END_GROUP)
        else:
            made += data.to_bytes(8 if kind == FIXED64 else 4, "little")
    return bytes(made)


def _joined(runs: Sequence[Run]) -> Run:
    return sum(size for size, _ in runs), chain.from_iterable(pieces for _, pieces in runs)


def _made(content: bytes) -> Run:
    return len(content), [(len(content), partial(bytes, content))]


def varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first, each but the last with the top bit set."""
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    number = shift = 0
    while True:
        byte = content[position]
        number |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if byte < 0x80:
            return number, position
