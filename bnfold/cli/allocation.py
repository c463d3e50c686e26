"""Sets how memory is handed out and collected, in a process of the command line's own."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""The parameters of glibc's `mallopt`."""

KEPT, MAPPED = 1 << 29, 1 << 25
"""How many free bytes are kept before they go back to the system, and from which size a request is mapped alone."""

COLLECTIONS = 50_000, 20, 50
"""How many new objects start a search for garbage among them, and how many such searches one among older ones."""


def collect_seldom() -> None:
    """Look for garbage in cycles less often than Python does by default.

    A model is hundreds of thousands of small objects, which live as long as the process. Looking through them again and
    again takes as long as reading them.
    """
    gc.set_threshold(*COLLECTIONS)


def forget_garbage() -> None:
    """Leave what is left to the end of the process, which frees it at once.

    Python would look through all of it for garbage in cycles, such as a model, and free that object by object.
    """
    gc.freeze()


@contextmanager
def never_collecting() -> Iterator[None]:
    """Look for no garbage in cycles inside, where all that is made lives to the end anyway."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def keep_freed_memory() -> None:
    """Let blocks of megabytes be reused, if the C library is glibc.

    By default, glibc gives each freed block back to the system, and the system hands out zeroed pages for the next one.
    That takes several times as long as computing on the block.
    """
    import ctypes  # which no other command needs

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, KEPT)
        mallopt(MMAP_THRESHOLD, MAPPED)
