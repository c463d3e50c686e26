"""Protobuf messages with some of their fields changed, described first and built once.

What a message is made of is a *part*: a message, which is copied as it is; an `Edited` one; or a function that fills an
empty message. So nothing is copied, and no new tensor computed, before the whole is written.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.message import Message

from bnfold.frontends.onnx.files.wire import unknown_fields


@dataclass(frozen=True, eq=False)
class Edited:
    """A message with some of its fields replaced.

    Attributes:
        message: where everything else comes from, fields that its type does not have included.
        fields: what those hold instead: nothing (None), a scalar, a part, or a list of strings or of parts.
    """

    message: Message
    fields: Mapping[str, Any]


Part: TypeAlias = Message | Edited | Callable[[Any], None]


def edited(message: Message, **fields: Any) -> Message | Edited:
    """A message with other contents of some fields; itself where they are what they were."""
    if all(_holds(message, name, content) for name, content in fields.items()):
        return message
    return Edited(message, fields)


def _holds(message: Message, name: str, content: Any) -> bool:
    """Whether a field has this content. The old bytes of omitted data are not read, since they may be many."""
    if isinstance(content, list):
        old = getattr(message, name)
        return len(content) == len(old) and all(map(_is_same, old, content))
    if not message.DESCRIPTOR.fields_by_name[name].has_presence:
        return not getattr(message, name)
    if content is None or not message.HasField(name):
        return content is None and not message.HasField(name)
    return _is_same(getattr(message, name), content)


def _is_same(old: Any, new: Any) -> bool:
    return old is new if isinstance(old, Message) else old == new


def write(part: Part, target: Message) -> None:
    """Build a part in an empty message."""
    if isinstance(part, Edited):
        _copy(part.message, target, part.fields.keys())
        for name, content in part.fields.items():
            _set(target, name, content)
    elif isinstance(part, Message):
        target.CopyFrom(part)
    else:
        part(target)


def _copy(message: Message, target: Message, but: Container[str]) -> None:
    """Copy the fields of a message, except some, which are not read."""
    for field in message.DESCRIPTOR.fields:
        name = field.name
        if name in but:
            continue
        if not field.has_presence:
            getattr(target, name).extend(getattr(message, name))
        elif message.HasField(name):
            if field.message_type is not None:
                getattr(target, name).CopyFrom(getattr(message, name))
            else:
                setattr(target, name, getattr(message, name))
    if unknown := unknown_fields(message):
        target.MergeFromString(unknown)


def _set(target: Message, name: str, content: Any) -> None:
    if content is None:
        return
    if isinstance(content, list):
        into = getattr(target, name)
        for each in content:
            if isinstance(each, str):
                into.append(each)
            else:
                write(each, into.add())
    elif target.DESCRIPTOR.fields_by_name[name].message_type is None:
        setattr(target, name, content)
    else:
        into = getattr(target, name)
        into.SetInParent()
        write(content, into)
