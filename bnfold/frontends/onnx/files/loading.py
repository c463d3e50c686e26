"""ONNX files, read without loading the weights of external data; nothing is believed before it is checked."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from bnfold.errors import InvalidModelError
from bnfold.frontends.limits import LIMITS, Limits
from bnfold.frontends.memory import give_back
from bnfold.frontends.onnx.files.check import UnsortedError, check
from bnfold.frontends.onnx.files.original import Original, Source, attach
from bnfold.frontends.onnx.files.readable import is_whole, readable
from bnfold.frontends.onnx.files.slots import external_tensors
from bnfold.frontends.onnx.files.stored import StoredModel, UnstorableError, deserialize

PROTOBUF_LIMIT = (1 << 31) - 1
"""Bytes that a protobuf may have."""

ZIP = b"PK\x03\x04"
"""How a zip archive begins."""


Sort = Callable[[onnx.ModelProto], object]
"""Sorts the nodes of a model in place."""


def load(path: Path, limits: Limits = LIMITS) -> ir.Model:
    """Read an ONNX file; tensors in external files stay there until they are used.

    Raises:
        InvalidModelError: the file is missing, unreadable, not an ONNX model, or asks for more than the limits.
    """
    source = Source.of(path) if path.is_file() else None  # before it is read: it may change meanwhile
    content, proto = _read_checked(path, limits)
    if is_whole(proto):
        del proto  # which takes a third of the memory of the model that is made now
        give_back()
        with suppress(UnstorableError):
            return _build(partial(_deserialize_stored, content, source), str(path), path.parent)
        proto = onnx.ModelProto.FromString(content)
    return _build(partial(_deserialize, proto, source), str(path), path.parent)


def read_proto(path: Path, limits: Limits = LIMITS, sort: Sort | None = None) -> onnx.ModelProto:
    """The protobuf of an ONNX file, as `load` would take it.

    Args:
        path: the file.
        limits: how much it may ask for.
        sort: called to sort the nodes, if they are not in order.

    Raises:
        InvalidModelError: as `load`.
    """
    return _read_checked(path, limits, sort)[1]


def _read_checked(path: Path, limits: Limits, sort: Sort | None = None) -> tuple[bytes, onnx.ModelProto]:
    """The bytes of a file, and the protobuf that they are."""
    proto = onnx.ModelProto()
    try:
        content = _read(path)
        proto.ParseFromString(content)
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from error
    except DecodeError as error:
        raise InvalidModelError(f"{path}: not an ONNX model ({_what_else(content, error)})") from error
    try:
        check(proto, str(path), path.parent, limits)
    except InvalidModelError as error:
        if sort is None or not isinstance(error.__cause__, UnsortedError):
            raise
        sort(proto)
        try:
            check(proto, str(path), path.parent, limits)
        except InvalidModelError as other:
            raise error if isinstance(other.__cause__, UnsortedError) else other from None  # there is no order
    return content, proto


def _what_else(content: bytes, error: DecodeError) -> str:
    """Why bytes are no protobuf of a model."""
    if "MaxDepth" in str(error):
        return "it is nested too deep for protobuf"
    if content.startswith(ZIP):
        return "it is a zip archive, as torch writes; a program that torch.export.save wrote has to end in .pt2"
    return str(error)


def _read(path: Path) -> bytes:
    """The bytes of a plain file; anything else might never end."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InvalidModelError(f"{path}: no such file") from None
    if stat.S_ISDIR(found.st_mode):
        raise InvalidModelError(f"{path}: is a folder, not an ONNX file")
    if not stat.S_ISREG(found.st_mode):
        raise InvalidModelError(f"{path}: is not a plain file")
    if found.st_size > PROTOBUF_LIMIT:
        raise InvalidModelError(f"{path}: not an ONNX model ({found.st_size} bytes are too many for a protobuf)")
    return path.read_bytes()


def parse(proto: onnx.ModelProto, name: str = "model", folder: Path | None = None, limits: Limits = LIMITS) -> ir.Model:
    """A model from its protobuf.

    Args:
        proto: the message; not changed.
        name: what to call it in an error.
        folder: where external data is found.
        limits: how much it may ask for.

    Raises:
        InvalidModelError: its parts do not fit together, or it asks for more than the limits.
    """
    check(proto, name, folder, limits)
    return _build(partial(_deserialize, proto, None), name, folder)


def _deserialize(proto: onnx.ModelProto, source: Source | None) -> ir.Model:
    """The model of a protobuf that was checked."""
    found, left_out = readable(proto)
    model = ir.serde.deserialize_model(found)
    attach(model, Original(proto, source, left_out), restore=found is not proto)
    return model


def _deserialize_stored(content: bytes, source: Source | None) -> ir.Model:
    """The model of the bytes of such a protobuf.

    Raises:
        UnstorableError: it has to be read as a whole.
    """
    stored = StoredModel.of(content)
    model = deserialize(stored)
    attach(model, Original(stored, source, ()), restore=False)
    return model


def _build(make: Callable[[], ir.Model], name: str, folder: Path | None) -> ir.Model:
    """What `make` gives, with the folder of its external data; nothing here fails but with an `InvalidModelError`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # onnx's, about keys of external data that nobody reads
            model = make()
        if folder is not None:
            real = os.path.realpath(folder)
            for tensor in external_tensors(model):
                tensor.base_dir = real
                model.meta[EXTERNAL] = min(tensor.nbytes, model.meta.get(EXTERNAL, tensor.nbytes))
    except UnstorableError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError) as error:
        raise InvalidModelError(f"{name}: not a valid ONNX model ({error})") from error
    return model


def external_files(model: ir.Model) -> list[Path]:
    """The files of a model's external data."""
    return sorted({Path(tensor.path) for tensor in external_tensors(model)})


def file_bytes(files: Sequence[Path]) -> int:
    """The bytes of a model's file, the first, and of those of its external data.

    Raises:
        InvalidModelError: one of the files is missing.
    """
    try:
        return sum(each.stat().st_size for each in files)
    except OSError as error:
        raise InvalidModelError(f"{files[0]}: its external data {error.filename} cannot be read") from error


EXTERNAL = "bnfold.external"
"""Where a model notes the bytes of the smallest tensor that was in an external file when it was read."""
