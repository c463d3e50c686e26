"""Runs Python modules in a process of their own, so that a crash stays there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnfold import errors
from bnfold.errors import BnfoldError, IncomparableError


class CrashError(IncomparableError):
    """A process that a signal ended.

    Attributes:
        signal: the number of the signal.
        said: the output of the process until then.
    """

    def __init__(self, message: str, signal: int = 0, said: str = "") -> None:
        super().__init__(message)
        self.signal, self.said = signal, said


def run_module(module: str, job: dict[str, Any], name: str, seconds: float | None = None) -> dict[str, Any]:
    """Run a module that reads a JSON document from standard input, and return the document that it writes.

    Args:
        module: the module to run.
        job: the document that it reads.
        name: the name of the model in messages.
        seconds: the time after which it is ended.

    Raises:
        IncomparableError: the runtime crashed on the model, or takes too long.
        BnfoldError: the error that the module reports: its class as `kind`, its text as `error`.
    """
    # -P: a file in the working folder that is called like a library must not be imported instead of it.
    place = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired as error:
        raise IncomparableError(f"{name}: the runtime takes more than {seconds:g} seconds for it") from error
    if done.returncode < 0:
        message = f"{name}: the runtime crashed on it (signal {-done.returncode})"
        raise CrashError(message, -done.returncode, done.stdout)
    if done.returncode:
        raise RuntimeError(f"the process that runs {name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in result:
        raise getattr(errors, result["kind"])(result["error"])
    return result


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Serve one job in such a module: read it from standard input, and write its result or error to standard output."""
    try:
        result = work(json.load(sys.stdin))
    except BnfoldError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    except MemoryError:
        result = {"error": "it takes too much memory", "kind": IncomparableError.__name__}
    print(json.dumps(result))
