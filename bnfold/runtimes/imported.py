"""Imports `onnxruntime` where it is needed, with its telemetry off."""

from __future__ import annotations

import os
from typing import Any

from bnfold.errors import MissingExtraError


def import_onnxruntime(advice: str = "pip install 'bnfold[cpu]'") -> Any:
    """The module, with its telemetry off, which would write a device id and a database to the user's cache folder.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(f"onnxruntime is not installed: {advice}") from error
    return onnxruntime
