"""Times cold starts. Each is a process of its own, so that peaks of memory do not mix and a crash stays there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bnfold.bench.models import Subject
from bnfold.runtimes.child import run_module
from bnfold.runtimes.inputs import Feeds
from bnfold.runtimes.setting import Engine, Setting

WORKER = "bnfold.bench.worker"

LARGEST_LISTED = 1 << 29
"""The most bytes of a model whose optimised graph the runtime writes, to tell what it made of the model."""


@dataclass(frozen=True)
class Cold:
    """Cold starts of one model.

    Attributes:
        session_ms: milliseconds to create a session, by process.
        first_run_ms: of the first inference, by process.
        memory_before_bytes: resident memory before the model was opened: interpreter, runtime, inputs.
        peak_bytes: largest resident memory of the whole process; the median over processes, None off Linux.
        details: how it ran.
        placement: the number of nodes by provider, where the provider may hand nodes back.
        kernels: a digest of the graph as the runtime optimised it; None where that is not known.
    """

    session_ms: tuple[float, ...]
    first_run_ms: tuple[float, ...]
    memory_before_bytes: int | None
    peak_bytes: int | None
    details: dict[str, Any]
    placement: dict[str, list[str]] | None
    kernels: str | None


def start_cold(
    subject: Subject, setting: Setting, feed: Feeds, folder: Path, times: int, seconds: float | None = None
) -> Cold | None:
    """Start a model in new processes; None where it is no file.

    Raises:
        IncomparableError: the model cannot be loaded or run, crashes the runtime, or takes longer than `seconds`.
        MissingExtraError: the provider is not installed.
    """
    if subject.file is None:
        return None
    arrays = folder / "feed.npz"
    _write(feed, arrays)
    job = {
        "engine": subject.engine,
        "path": str(subject.file.absolute()),
        "setting": asdict(setting),
        "feed": str(arrays),
        "names": list(feed),
    }
    may_hand_back = subject.engine is Engine.ONNXRUNTIME and setting.provider != "cpu"
    lists = subject.engine is Engine.ONNXRUNTIME and setting.provider == "cpu" and subject.file_bytes is not None
    lists = lists and (subject.file_bytes or 0) <= LARGEST_LISTED
    results = [
        run_module(
            WORKER,
            job | {"places": may_hand_back and not number, "lists": lists and not number},
            subject.name,
            seconds,
            is_cold=True,
        )
        for number in range(times)
    ]
    return Cold(
        tuple(result["session_ms"] for result in results),
        tuple(result["first_run_ms"] for result in results),
        _median([result["memory_before_bytes"] for result in results]),
        _median([result["peak_bytes"] for result in results]),
        results[0]["details"],
        results[0]["placement"],
        results[0]["kernels"],
    )


def _median(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(median(known)) if known else None


def _write(feed: Feeds, file: Path) -> None:
    arrays = {
        str(index): array.astype(str) if array.dtype == object else array for index, array in enumerate(feed.values())
    }
    np.savez(file, **arrays)  # type: ignore[arg-type]
