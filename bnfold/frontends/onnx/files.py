"""ONNX files: read without loading the weights, written all or nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from bnfold.errors import InvalidModelError

SIZE_LIMIT = (1 << 31) - (1 << 24)
"""Bytes of tensors above which a model is written with external data; protobuf ends at 2 GiB."""


def load(path: Path) -> ir.Model:
    """Read an ONNX file; tensors in external files stay there until they are used.

    Raises:
        InvalidModelError: the file is missing, unreadable or not an ONNX model.
    """
    if not path.exists():
        raise InvalidModelError(f"{path}: no such file")
    if path.is_dir():
        raise InvalidModelError(f"{path}: is a folder, not an ONNX file")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from error
    except DecodeError as error:
        raise InvalidModelError(f"{path}: not an ONNX model ({error})") from error
    return parse(proto, str(path), path.parent)


def parse(proto: onnx.ModelProto, name: str = "model", folder: Path | None = None) -> ir.Model:
    """A model from its protobuf.

    Args:
        proto: the message; not changed.
        name: what to call it in an error.
        folder: where external data is found.

    Raises:
        InvalidModelError: it has no graph or no opset, or its parts do not fit together.
    """
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise InvalidModelError(f"{name}: not an ONNX model (it holds no graph)")
    if not proto.opset_import:
        raise InvalidModelError(f"{name}: not a valid ONNX model (it names no opset)")
    try:
        model = ir.serde.deserialize_model(proto)
        if folder is not None:
            ir.external_data.set_base_dir(model.graph, folder)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError) as error:
        raise InvalidModelError(f"{name}: not a valid ONNX model ({error})") from error
    return model


def save(model: ir.Model, path: Path, folder: Path | None = None) -> None:
    """Write a model to `path`, which appears complete or not at all.

    Tensors that were external stay external, in one file beside the model. Weights are computed while they are written.

    Args:
        model: what to write.
        path: where it shall be in the end.
        folder: write ``folder / path.name`` instead, to be moved to `path` later with `publish`.
    """
    target = (folder or path.parent) / path.name
    external = _external_threshold(model)
    try:
        if external is None:
            ir.save(model, target)
        else:
            ir.save(model, target, external_data=f"{path.name}.data", size_threshold_bytes=external)
    except EncodeError as error:
        raise InvalidModelError(f"{path}: cannot be written ({error})") from error


def _external_threshold(model: ir.Model) -> int | None:
    """The size above which tensors go to the external file; None where all stay inside."""
    tensors = [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING
    ]
    external = [tensor.nbytes for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    if external:
        return max(0, min(external) - 1)
    return 1024 if sum(tensor.nbytes for tensor in tensors) > SIZE_LIMIT else None


def staging(path: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder on the file system of `path`."""
    try:
        return tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InvalidModelError(f"{path.parent}: {error.strerror}") from error


def publish(folder: Path, path: Path) -> None:
    """Move a model and its external data from `folder` to where `path` is; the model last."""
    data = folder / f"{path.name}.data"
    for source in (data, folder / path.name):
        if source.exists():
            source.replace(path.parent / source.name)


def file_bytes(path: Path) -> int:
    """The bytes of a model with its external data."""
    model = load(path)
    names = {
        str(value.const_value.location)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in sorted(names))
