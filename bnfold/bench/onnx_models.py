"""Describes the ONNX models of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.bench.models import Subject, digest
from bnfold.errors import IncomparableError
from bnfold.frontends.onnx.files.loading import external_files, file_bytes, load, parse
from bnfold.frontends.onnx.files.saving import save
from bnfold.frontends.onnx.program import unwrap
from bnfold.runtimes.inputs import Declared
from bnfold.runtimes.setting import Engine


def describe_model(model: Any, stem: Path, name: str) -> Subject:
    """Describe a model in memory, which is written to a file, or the model in a file.

    Args:
        model: the model, or a path.
        stem: the stem of the file that is written.
        name: its name in messages.

    Raises:
        InvalidModelError: the model cannot be read.
        IncomparableError: an input is no tensor of a declared shape.
    """
    if not isinstance(model, Path):
        path = stem.with_suffix(".onnx")
        save(parse(model, name) if isinstance(model, onnx.ModelProto) else unwrap(model), path)
        return describe_model(path, stem, name)
    read = load(model)
    files = [model, *external_files(read)]
    nodes = [*read.graph.all_nodes(), *(node for function in read.functions.values() for node in function.all_nodes())]
    return Subject(
        name,
        Engine.ONNXRUNTIME,
        model,
        model,
        tuple(_declared(value, name) for value in read.graph.inputs if not value.is_initializer()),
        tuple(str(value.name) for value in read.graph.outputs),
        digest(files),
        file_bytes(files),
        len(nodes),
        sum(node.op_type == "BatchNormalization" for node in nodes),
    )


def _declared(value: ir.Value, name: str) -> Declared:
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        raise IncomparableError(f"{name}: input {value.name!r} is no tensor of a declared shape")
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return Declared(str(value.name), value.type.dtype.numpy(), shape)
