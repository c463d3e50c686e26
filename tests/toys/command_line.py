"""The command line as a shell runs it, in forks of one process: only the first command costs an interpreter.

`tests/fleet/test_zygote.py` compares such forks with new processes.
"""

from __future__ import annotations

import atexit
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bnfold.fleet.launcher import Launcher

SECONDS = 600.0
"""How long a command may take."""


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """How ``bnfold`` ends in a folder, and what it writes where there are 80 columns."""
    command = [str(argument) for argument in arguments]
    with TemporaryDirectory() as place:
        streams = [Path(place, name) for name in ("out", "err")]
        ending = _launcher().run(command, str(folder), streams, SECONDS, None)
        out, errors = (stream.read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess(command, -ending.signal or ending.code, out, errors)


@cache
def _launcher() -> Launcher:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        launcher = Launcher("onnx")
    atexit.register(launcher.close)
    return launcher
