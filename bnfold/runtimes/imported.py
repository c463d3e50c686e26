"""The module `onnxruntime`, imported where it is needed and told to keep to itself."""

from __future__ import annotations

import os
from typing import Any

from bnfold.errors import MissingExtraError


def import_onnxruntime(advice: str = "pip install 'bnfold[cpu]'") -> Any:
    """The module; with its telemetry off, which would write a device id and a database under the user's cache folder.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(f"onnxruntime is not installed: {advice}") from error
    return onnxruntime
