"""Runs an ONNX file with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError, MissingExtraError
from bnfold.verification.inputs import Declared, Feeds

TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(object),
}


class OnnxRunner:
    """A session on the CPU with graph optimisation off, so that the runtime adds nothing of its own."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError(
                "onnxruntime is not installed: pip install 'bnfold[cpu]', or use --no-verify"
            ) from error
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exception types share no base class but Exception
            raise IncomparableError(f"{path}: onnxruntime cannot load it ({_line(error)})") from error
        self.path = path

    @property
    def inputs(self) -> list[Declared]:
        """The inputs that a caller must give.

        Raises:
            IncomparableError: one is of a type that cannot be drawn.
        """
        declared: list[Declared] = []
        for each in self._session.get_inputs():
            if each.type not in TYPES:
                raise IncomparableError(f"{self.path}: input {each.name!r} is a {each.type}, which cannot be drawn")
            declared.append(Declared(each.name, TYPES[each.type], tuple(each.shape)))
        return declared

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs, in order."""
        return [each.name for each in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> list[npt.NDArray[Any]]:
        """One inference."""
        try:
            return [np.asarray(array) for array in self._session.run(None, feeds)]
        except Exception as error:  # as above
            raise IncomparableError(f"{self.path}: onnxruntime cannot run it ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
