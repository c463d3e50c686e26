"""The front end whose library may be missing, imported where it is needed."""

from __future__ import annotations

import sys
from typing import Any

from bnfold.errors import MissingExtraError


def torch_front_end() -> Any:
    """The PyTorch front end, imported where it is needed.

    Raises:
        MissingExtraError: PyTorch is not installed.
    """
    try:
        from bnfold.frontends import torch
    except ImportError as error:
        raise MissingExtraError("PyTorch is not installed: pip install 'bnfold[torch]'") from error
    return torch


def is_torch_model(model: object) -> bool:
    """Whether a model is a torch module or program; imports nothing that was not imported before."""
    if "torch" not in sys.modules or isinstance(model, str):
        return False
    found: bool = torch_front_end().is_model(model)
    return found
