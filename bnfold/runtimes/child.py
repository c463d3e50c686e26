"""Runs Python modules in a process of their own, so that a crash stays there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold import errors
from bnfold.errors import BnfoldError, IncomparableError
from bnfold.runtimes import forked

MAY_FORK: ContextVar[bool] = ContextVar("MAY_FORK", default=False)
"""Whether this process has no threads of its own and may fork, which is faster than a new interpreter."""

PAUSE = 0.002
"""Seconds between two looks at a fork."""


class CrashError(IncomparableError):
    """A process that a signal ended.

    Attributes:
        signal: the number of the signal.
        said: the output of the process until then.
    """

    def __init__(self, message: str, signal: int = 0, said: str = "") -> None:
        super().__init__(message)
        self.signal, self.said = signal, said


@dataclass(frozen=True)
class _Ended:
    """A process that has ended: with this code, or by a signal, which is negative; and what it wrote."""

    code: int
    output: str
    errors: str


def run_module(
    module: str, job: dict[str, Any], name: str, seconds: float | None = None, *, is_cold: bool = False
) -> dict[str, Any]:
    """Run a module that reads a JSON document from standard input, and return the document that it writes.

    Args:
        module: the module to run.
        job: the document that it reads.
        name: the name of the model in messages.
        seconds: the time after which it is ended.
        is_cold: whether it needs an interpreter that has imported nothing yet.

    Raises:
        IncomparableError: the runtime crashed on the model, or takes too long.
        BnfoldError: the error that the module reports: its class as `kind`, its text as `error`.
    """
    run = _fork if MAY_FORK.get() and not is_cold else _spawn
    try:
        done = run(module, json.dumps(job), seconds)
    except subprocess.TimeoutExpired as error:
        raise IncomparableError(f"{name}: the runtime takes more than {seconds:g} seconds for it") from error
    if done.code < 0:
        raise CrashError(f"{name}: the runtime crashed on it (signal {-done.code})", -done.code, done.output)
    if done.code:
        raise RuntimeError(f"the process that runs {name} failed:\n{done.errors}")
    result: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    if "error" in result:
        raise getattr(errors, result["kind"])(result["error"])
    return result


def _spawn(module: str, text: str, seconds: float | None) -> _Ended:
    """Run a module in a new interpreter.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was ended.
    """
    # -P: a file in the working folder that is called like a library must not be imported instead of it.
    place = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-P", "-m", module],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return _Ended(done.returncode, done.stdout, done.stderr)


def _fork(module: str, text: str, seconds: float | None) -> _Ended:
    """Run a module in a fork of this process.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was ended.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        given.write(text.encode())
        given.seek(0)
        child = forked.start(module, (), (given.fileno(), said.fileno(), complained.fileno()))
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if deadline is not None and seconds is not None and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise subprocess.TimeoutExpired(module, seconds)
            time.sleep(PAUSE)
        for stream in (said, complained):
            stream.seek(0)
        texts = [stream.read().decode(errors="replace") for stream in (said, complained)]
        return _Ended(os.waitstatus_to_exitcode(ended[1]), *texts)


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Serve one job in such a module: read it from standard input, and write its result or error to standard output."""
    try:
        result = work(json.load(sys.stdin))
    except BnfoldError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    except MemoryError:
        result = {"error": "it takes too much memory", "kind": IncomparableError.__name__}
    print(json.dumps(result))
