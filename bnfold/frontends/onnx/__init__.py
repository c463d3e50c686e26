"""ONNX models, by way of onnx-ir."""

from bnfold.frontends.onnx.loading import external_files, file_bytes, load, parse, read_proto
from bnfold.frontends.onnx.original import detach
from bnfold.frontends.onnx.publishing import publish, staging
from bnfold.frontends.onnx.saving import Written, save, serialize
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
