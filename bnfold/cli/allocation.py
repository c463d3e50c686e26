"""How the C library hands out memory, for a process that is one's own."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""

KEPT, MAPPED = 1 << 29, 1 << 25
"""Bytes that may lie free before they go back to the system; bytes from which on a request is mapped by itself."""


def keep_freed_memory() -> None:
    """Let blocks of megabytes be reused, where the C library is glibc.

    By default it gives each of them back to the system when it is freed, and the system hands out zeroed pages for the
    next one, which takes several times as long as computing on them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, KEPT)
        mallopt(MMAP_THRESHOLD, MAPPED)
