"""ONNX files: read without loading the weights, written all or nothing."""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError
from onnx import numpy_helper

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
        model = _deserialize(proto)
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
        if external is not None:
            data = f"{path.name}.data"
            model = ir.external_data.unload_from_model(model, target.parent, data, size_threshold_bytes=external)
        target.write_bytes(serialize(model).SerializeToString())
    except EncodeError as error:
        raise InvalidModelError(f"{path}: cannot be written ({error})") from error


def serialize(model: ir.Model) -> onnx.ModelProto:
    """The protobuf of a model that `parse` read, with what `onnx_ir` does not hold."""
    aside = model.meta.get(ASIDE)
    if aside is None:
        return ir.serde.serialize_model(model)
    graph = model.graph
    sparse = {
        each.values.name: each for each in aside.graph.sparse_initializer if each.values.name in graph.initializers
    }
    values = [graph.initializers.pop(name) for name in sparse]
    try:
        proto = ir.serde.serialize_model(model)
    finally:
        for value in values:
            graph.register_initializer(value)
    proto.graph.sparse_initializer.extend(sparse.values())
    proto.training_info.extend(aside.training_info)
    return proto


ASIDE = "bnfold.aside"
"""Where a model notes the parts of its protobuf that `onnx_ir` does not hold: a `ModelProto` with them alone."""


def _deserialize(proto: onnx.ModelProto) -> ir.Model:
    if not (proto.graph.sparse_initializer or proto.training_info):
        return ir.serde.deserialize_model(proto)
    aside = onnx.ModelProto()
    aside.training_info.extend(proto.training_info)
    aside.graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    dense = onnx.ModelProto()
    dense.CopyFrom(proto)
    for each in proto.graph.sparse_initializer:  # a place for the value, which is filled below
        empty = np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(each.values.data_type))
        dense.graph.initializer.append(numpy_helper.from_array(empty, each.values.name))
    model = ir.serde.deserialize_model(dense)
    for each in proto.graph.sparse_initializer:
        value = model.graph.initializers[each.values.name]
        value.const_value = _dense(each)
        value.shape = ir.Shape(each.dims)
    model.meta[ASIDE] = aside
    return model


def _dense(sparse: onnx.SparseTensorProto) -> ir.TensorProtocol:
    """A sparse initializer as a dense tensor, made when it is read."""
    shape = tuple(sparse.dims)

    def fill() -> ir.TensorProtocol:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(prod(shape), values.dtype)
        dense[indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)] = values
        return ir.tensor(dense.reshape(shape))

    return ir.LazyTensor(
        fill, dtype=ir.DataType(sparse.values.data_type), shape=ir.Shape(shape), name=sparse.values.name
    )


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
    """The bytes of a model with its external data.

    Raises:
        InvalidModelError: one of the files is missing.
    """
    model = load(path)
    names = {
        str(value.const_value.location)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    try:
        return path.stat().st_size + sum((path.parent / name).stat().st_size for name in sorted(names))
    except OSError as error:
        raise InvalidModelError(f"{path}: its external data {error.filename} cannot be read") from error
