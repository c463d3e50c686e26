"""ONNX models, by way of onnx-ir."""

from typing import Any

import onnx
import onnx_ir as ir

from bnfold.frontends.onnx.files.loading import external_files, file_bytes, load, parse, read_proto
from bnfold.frontends.onnx.files.publishing import publish, staging
from bnfold.frontends.onnx.files.saving import save, serialize
from bnfold.frontends.onnx.files.sorting import is_sorted, sort_nodes
from bnfold.frontends.onnx.open import OpenOnnxModel
from bnfold.frontends.onnx.program import OpenProgram, is_program, unwrap
from bnfold.frontends.onnx.view import OnnxGraph
from bnfold.frontends.protocol import OpenOptions

__all__ = [
    "OnnxGraph",
    "external_files",
    "file_bytes",
    "is_model",
    "is_sorted",
    "load",
    "open_model",
    "parse",
    "publish",
    "read_proto",
    "save",
    "serialize",
    "sort_nodes",
    "staging",
    "unwrap",
]


def is_model(model: object) -> bool:
    """Whether it is an ONNX model in memory."""
    return isinstance(model, onnx.ModelProto | ir.Model) or is_program(model)


def open_model(model: Any, options: OpenOptions) -> OpenOnnxModel:
    """A view of a ModelProto, an `onnx_ir.Model`, an `ONNXProgram` of torch, or the model in a file.

    Raises:
        InvalidModelError: it cannot be read, or asks for more than the limits.
    """
    return OpenProgram(model, options) if is_program(model) else OpenOnnxModel(model, options)
