"""ONNX models, by way of onnx-ir."""

from bnfold.frontends.onnx.files.loading import external_files, file_bytes, load, parse, read_proto
from bnfold.frontends.onnx.files.publishing import publish, staging
from bnfold.frontends.onnx.files.saving import save, serialize
from bnfold.frontends.onnx.files.sorting import is_sorted, sort_nodes
from bnfold.frontends.onnx.open import is_model, open_model
from bnfold.frontends.onnx.view import OnnxGraph

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
]
