"""Memory that was freed, and that the C library keeps for later."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


@cache
def _trimmer() -> Callable[[int], int]:
    """What gives memory back in glibc; elsewhere, what does nothing."""
    trim: Callable[[int], int] | None = None
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim or (lambda pad: 0)


def give_back() -> None:
    """Give freed memory back to the system, if the C library is glibc.

    Protobuf frees a message of a hundred megabytes in thousands of small blocks. glibc keeps those, and Python, which
    has its own memory for objects, takes none of them.
    """
    _trimmer()(0)
