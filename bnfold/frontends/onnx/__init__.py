"""ONNX models, by way of onnx-ir.

What opens one is imported when one is opened: to verify or time files, nobody needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from bnfold.frontends.onnx.open import OpenOnnxModel
    from bnfold.frontends.protocol import OpenOptions

__all__ = ["is_model", "open_model"]


def is_model(model: object) -> bool:
    """Whether it is an ONNX model in memory."""
    from bnfold.frontends.onnx.program import is_program

    return isinstance(model, onnx.ModelProto | ir.Model) or is_program(model)


def open_model(model: Any, options: OpenOptions) -> OpenOnnxModel:
    """A view of a ModelProto, an `onnx_ir.Model`, an `ONNXProgram` of torch, or the model in a file.

    Raises:
        InvalidModelError: it cannot be read, or asks for more than the limits.
    """
    from bnfold.frontends.onnx.open import OpenOnnxModel
    from bnfold.frontends.onnx.program import OpenProgram, is_program

    return OpenProgram(model, options) if is_program(model) else OpenOnnxModel(model, options)
