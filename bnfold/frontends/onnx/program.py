"""What `torch.onnx.export` gives back: an `ONNXProgram`, which holds an `onnx_ir.Model`. torch is not imported."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from bnfold.frontends.onnx.open import OpenOnnxModel
from bnfold.frontends.protocol import OpenOptions


def is_program(model: object) -> bool:
    """Whether it is an `ONNXProgram`."""
    kind = type(model)
    is_named = kind.__name__ == "ONNXProgram" and kind.__module__.partition(".")[0] == "torch"
    return is_named and isinstance(getattr(model, "model", None), ir.Model)


def unwrap(model: Any) -> Any:
    """The `onnx_ir.Model` of a program; another model is itself."""
    return model.model if is_program(model) else model


class OpenProgram(OpenOnnxModel):
    """A program, of which the model is opened.

    Args:
        program: the program.
        options: how.
    """

    def __init__(self, program: Any, options: OpenOptions) -> None:
        super().__init__(program.model, options)
        self._program = program

    def finish(self) -> Any:
        """The program that was given, or another one of the same `ExportedProgram`."""
        model = super().finish()
        return self._program if self._options.inplace else type(self._program)(model, self._program.exported_program)
