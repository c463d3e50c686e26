"""ONNX models, by way of onnx-ir."""

from bnfold.frontends.onnx.files.loading import external_files, file_bytes, load, parse, read_proto
from bnfold.frontends.onnx.files.original import detach
from bnfold.frontends.onnx.files.publishing import publish, staging
from bnfold.frontends.onnx.files.saving import Written, save, serialize
from bnfold.frontends.onnx.view import OnnxGraph

__all__ = [
    "OnnxGraph",
    "Written",
    "detach",
    "external_files",
    "file_bytes",
    "load",
    "parse",
    "publish",
    "read_proto",
    "save",
    "serialize",
    "staging",
]
