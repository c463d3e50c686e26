"""One cold start of one model, in a process of its own: ``python -m bnfold.bench.worker``.

Reads a JSON document from standard input (`bnfold.bench.cold` writes it) and writes one to standard output: session
creation and first inference in milliseconds, memory, details of the run, the optimised graph; or the error.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import BnfoldError
from bnfold.runtimes.child import serve
from bnfold.runtimes.inputs import Feeds
from bnfold.runtimes.setting import Engine, Level, Setting
from bnfold.runtimes.timed_session import open_session, require


def start(job: dict[str, Any]) -> dict[str, Any]:
    """Open a session, run it once, and report the time and memory that it took."""
    engine, path = Engine(job["engine"]), Path(job["path"])
    level = job["setting"].pop("level")
    custom_ops = tuple(job["setting"].pop("custom_ops"))
    setting = Setting(level=level and Level(level), custom_ops=custom_ops, **job["setting"])
    feed = _read(Path(job["feed"]), job["names"])
    require(engine, setting.provider)  # imports the runtime, whose cost is not the model's
    before = _memory("VmRSS")
    began = time.perf_counter()
    session = open_session(engine, path, setting, [feed])
    opened = time.perf_counter()
    first = session.time(0)
    return {
        "session_ms": (opened - began) * 1e3,
        "first_run_ms": first * 1e3,
        "memory_before_bytes": before,
        "peak_bytes": _memory("VmHWM"),
        "details": session.details,
        "placement": _placement(path, setting, feed) if job["places"] else None,
        "kernels": _kernels(path, setting) if job["lists"] else None,
    }


def _read(file: Path, names: list[str]) -> Feeds:
    with np.load(file, allow_pickle=False) as arrays:
        loaded = {name: arrays[str(index)] for index, name in enumerate(names)}
    return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in loaded.items()}


def _memory(field: str) -> int | None:
    """Resident memory of this process, now (VmRSS) or at most (VmHWM); None off Linux.

    Not `getrusage`: its peak is at least what the parent process held when it started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


def _placement(path: Path, setting: Setting, feed: Feeds) -> dict[str, list[str]]:
    """The nodes that ran on each provider, by the runtime's own profile."""
    from bnfold.runtimes.timed_onnx_session import OnnxSession

    with tempfile.TemporaryDirectory() as folder:
        session = OnnxSession(path, setting, [feed], profile=Path(folder) / "profile")
        session.time(0)
        events = json.loads(Path(session.native.end_profiling()).read_text())
    placed: dict[str, set[str]] = {}
    for event in events:
        provider = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and provider:
            placed.setdefault(provider, set()).add(event["name"].removesuffix("_kernel_time"))
    return {provider: sorted(names) for provider, names in placed.items()}


def _kernels(path: Path, setting: Setting) -> str | None:
    """A digest of the graph as the runtime optimised it: operators, attributes, shapes of weights.

    None where the optimised graph cannot be written.
    """
    from bnfold.frontends.limits import UNLIMITED
    from bnfold.frontends.onnx.files.loading import read_proto
    from bnfold.runtimes.timed_onnx_session import OnnxSession

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimised.onnx"
        try:
            OnnxSession(path, setting, [], optimised=target)
            graph = read_proto(target, UNLIMITED).graph
        except BnfoldError:  # for example because of a runtime's own operators
            return None
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    kernels = sorted(
        repr(
            (
                node.domain,
                node.op_type,
                [shapes.get(name) for name in node.input],
                sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute),
            )
        )
        for node in graph.node
    )
    return hashlib.sha256("\n".join(kernels).encode()).hexdigest()


if __name__ == "__main__":
    serve(start)
