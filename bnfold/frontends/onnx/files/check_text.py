"""Checks that all text in a model is UTF-8. Protobuf does not insist on it, and hands out bytes instead."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message


def insist_on_text(message: Message) -> None:
    """Look at every text of a message and of those in it; no deeper than protobuf nests them.

    Raises:
        ValueError: one is not UTF-8; says which.
    """
    if (found := _first_bytes(message)) is not None:
        path, text = found
        raise ValueError(f"{path} is not UTF-8: {text[:40]!r}")


def _first_bytes(message: Message) -> tuple[str, bytes] | None:
    """The first text that is not UTF-8, behind the path to its field."""
    texts, lists, messages = _fields(message.DESCRIPTOR)
    for name in texts:
        text = getattr(message, name)
        if type(text) is not str:
            return name, text
    for name in lists:
        for text in getattr(message, name):
            if type(text) is not str:
                return name, text
    for name, is_single in messages:
        if not is_single:
            for index, each in enumerate(getattr(message, name)):
                if (found := _first_bytes(each)) is not None:
                    return f"{name}[{index}].{found[0]}", found[1]
        elif message.HasField(name) and (found := _first_bytes(getattr(message, name))) is not None:
            return f"{name}.{found[0]}", found[1]
    return None


@cache
def _fields(descriptor: Descriptor) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, bool], ...]]:
    """The fields of a message that hold one text, or many, or messages; these with whether that is one only."""
    fields = descriptor.fields
    texts = [each for each in fields if each.type == FieldDescriptor.TYPE_STRING]
    return (
        tuple(each.name for each in texts if each.has_presence),
        tuple(each.name for each in texts if not each.has_presence),
        tuple((each.name, each.has_presence) for each in fields if each.type == FieldDescriptor.TYPE_MESSAGE),
    )
