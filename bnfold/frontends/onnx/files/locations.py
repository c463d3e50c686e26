"""The files of external data that an ONNX file refers to, read without them and without judging the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from bnfold.errors import InvalidModelError


def locations(path: Path) -> list[str]:
    """What the tensors of a model call the files of their external data, as the file spells it, each once.

    Raises:
        InvalidModelError: the file cannot be read, or is no model.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from error
    except DecodeError as error:
        raise InvalidModelError(f"{path}: not an ONNX model") from error
    found: dict[str, None] = {}
    stack: list[Any] = [proto]
    while stack:
        message = stack.pop()
        if isinstance(message, onnx.TensorProto):
            found |= {entry.value: None for entry in message.external_data if entry.key == "location"}
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                stack.extend([value] if isinstance(value, Message) else value)
    return list(found)
