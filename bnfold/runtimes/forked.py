"""A module that runs in a fork of this process, as ``python -m`` would run it, with what is imported here already.

Only a process without threads of its own may fork so: what a thread holds, the fork never gets back.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from runpy import run_module
from typing import NoReturn

BUG = 70
"""How a fork ends after an exception that nobody caught, of which standard error has the traceback."""


def start(module: str, arguments: Sequence[str], streams: tuple[int, int, int]) -> int:
    """Fork, and run a module there.

    Args:
        module: the module, or the package with a `__main__`.
        arguments: its command line.
        streams: descriptors of its standard input, output and error.

    Returns:
        The id of the new process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _become(module, arguments, streams)
    return child


def _become(module: str, arguments: Sequence[str], streams: tuple[int, int, int]) -> NoReturn:
    """Be the process of a module, and end with it: nothing of the process that forked may run on here."""
    code = BUG
    try:
        die_with_parent()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = (
            open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            for number in (1, 2)
        )
        sys.argv = [module, *arguments]
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # which is why it was forked
        run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def die_with_parent() -> None:
    """Let the system end this process if the one that started it ends, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
