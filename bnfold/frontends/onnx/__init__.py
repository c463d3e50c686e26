"""ONNX models, by way of onnx-ir."""

from bnfold.frontends.onnx.files import file_bytes, load, parse, publish, save, serialize, staging
from bnfold.frontends.onnx.view import OnnxGraph

__all__ = ["OnnxGraph", "file_bytes", "load", "parse", "publish", "save", "serialize", "staging"]
