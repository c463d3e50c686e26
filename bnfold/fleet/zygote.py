"""A process that has imported what the command line needs, and forks for each model.

A fork costs milliseconds where a new interpreter takes a second. The fork runs ``bnfold ...`` as a shell would, so that
a crash, a hang or a hunger for memory is that of one model alone, and its outcome is what the command line promises.

``python -m bnfold.fleet.zygote`` reads jobs from standard input, a JSON document a line, and writes how each ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnfold.runtimes import forked
from bnfold.runtimes.child import MAY_FORK

PROGRAM = "bnfold"
"""The command line. A fleet depends on what it promises: arguments, exit codes, and JSON."""

ALWAYS = (
    "bnfold.cli.commands",
    "bnfold.api",
    "bnfold.report.record",
    "bnfold.report.bench_record",
    "bnfold.report.provenance",
    "bnfold.report.files",
    "bnfold.frontends.onnx.program",
    "bnfold.verification.smoke",
    "bnfold.verification.confirm",
    "bnfold.verification.onnx_subject",
    "bnfold.verification.onnx_proof",
    "bnfold.runtimes.apart",
    "bnfold.bench.comparison",
    "bnfold.cli.allocation",
    "onnx.reference.ops._op_list",  # of which evaluating anything imports all
    "onnxruntime",
)
PROGRAMS = ("torch", "bnfold.frontends.torch", "bnfold.verification.torch_subject", "bnfold.verification.torch_proof")
"""What is imported before the first fork: always, and for saved programs of PyTorch."""

FIRST, LONGEST = 0.001, 0.02
"""Seconds between two looks at a fork, at first and later."""


@dataclass(frozen=True)
class Ending:
    """How a run of the command line ended.

    Attributes:
        code: its exit code; 0 where a signal ended it.
        signal: the signal that ended it, or 0.
        cause: "time" or "memory" where it was ended here, since it took too much of that; else empty.
        seconds: how long it ran.
        peak_bytes: the most memory that one of its processes had at a time.
    """

    code: int
    signal: int
    cause: str
    seconds: float
    peak_bytes: int


def run(arguments: list[str], folder: str, streams: list[str], seconds: float, memory: int | None) -> Ending:
    """Run the command line in a fork, and wait until it ends or takes too much.

    Args:
        arguments: the command line.
        folder: where it runs.
        streams: the files for its standard output and standard error.
        seconds: how long it may take.
        memory: how many bytes its processes may have; None where nobody counts.
    """
    began = time.monotonic()
    ends = [os.open(os.devnull, os.O_RDONLY)]
    ends += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in streams]
    os.chdir(folder)
    child = forked.start(PROGRAM, arguments, (ends[0], ends[1], ends[2]))
    for end in ends:
        os.close(end)
    cause, pause = "", FIRST
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if not cause:
            cause = _excess(child, time.monotonic() - began > seconds, memory)
            if cause:
                _end(child)
        if _is_alone():
            _end(child)
            sys.exit(0)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)
    code = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024
    return Ending(max(code, 0), max(-code, 0), cause, time.monotonic() - began, usage.ru_maxrss * scale)


def _excess(child: int, is_late: bool, memory: int | None) -> str:
    if is_late:
        return "time"
    return "memory" if memory is not None and held(child) > memory else ""


def _end(child: int) -> None:
    """End a fork and what it started."""
    for process in [*_family(child)]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _is_alone() -> bool:
    """Whether whoever asks is gone."""
    poll = select.poll()
    poll.register(0, select.POLLHUP)
    return bool(poll.poll(0))


def _family(process: int) -> Iterator[int]:
    """A process and those that it started, where the system tells them."""
    yield process
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):
                for child in (thread / "children").read_text().split():
                    yield from _family(int(child))


def held(process: int) -> int:
    """The memory of a process and those that it started, in bytes, without files that are only mapped."""
    total = 0
    for each in _family(process):
        with suppress(OSError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += 1024 * int(line.split()[1])
    return total


def serve(kind: str) -> None:
    """Serve jobs until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends this process
    for module in (*ALWAYS, *(PROGRAMS if kind == "pt2" else ())):
        if find_spec(module.partition(".")[0]) is not None:
            import_module(module)
    MAY_FORK.set(True)
    for line in sys.stdin:
        if _is_alone():
            return
        job: dict[str, Any] = json.loads(line)
        print(json.dumps(asdict(run(**job))), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
