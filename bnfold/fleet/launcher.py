"""Runs the command line for a worker, in forks of processes that are kept ready."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO

from bnfold.fleet.zygote import Ending


class LostError(Exception):
    """The process that forks was killed."""


class Launcher:
    """A `bnfold.fleet.zygote` for models of one kind."""

    def __init__(self, kind: str) -> None:
        place = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bnfold.fleet.zygote", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def run(
        self, arguments: Sequence[str], folder: str, streams: Sequence[Path], seconds: float, memory: int | None
    ) -> Ending:
        """Run the command line, as `bnfold.fleet.zygote.run` does.

        Raises:
            LostError: the process that forks was killed.
        """
        job = {
            "arguments": list(arguments),
            "folder": folder,
            "streams": [str(path) for path in streams],
            "seconds": seconds,
            "memory": memory,
        }
        try:
            self._pipe(self._process.stdin).write(json.dumps(job) + "\n")
            self._pipe(self._process.stdin).flush()
            answer = self._pipe(self._process.stdout).readline()
        except BrokenPipeError as error:
            raise LostError from error
        if not answer:
            raise LostError
        return Ending(**json.loads(answer))

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


_idle: dict[str, list[Launcher]] = {}
_lock = Lock()


@contextmanager
def launcher(kind: str) -> Iterator[Launcher]:
    """A launcher for this thread alone, which is kept for the next; one that was lost is not."""
    with _lock:
        kept = _idle.setdefault(kind, [])
        mine = kept.pop() if kept else None
    mine = mine or Launcher(kind)
    try:
        yield mine
    except BaseException:
        mine.close()
        raise
    with _lock:
        _idle[kind].append(mine)


@atexit.register
def close() -> None:
    """End all launchers that are idle."""
    with _lock:
        for kept in _idle.values():
            while kept:
                kept.pop().close()
