"""Measures what a fleet costs a model, and writes the table of docs/fleet.md.

    python scripts/benchmarks/bench_fleet.py [--models N] [--loop N] [--paths N] [--dry]

The same small models are folded by a shell loop over `bnfold fuse`, and by `bnfold fleet fuse` on one and on two
workers. What is left of a worker's time after the forks have ended is the overhead of a model. The client's memory is
its peak over a run of so many paths that the ledger knows already, beside that of a hundredth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bnfold.fleet.ledger import NAME, Ledger, read_lines  # noqa: E402
from scripts.benchmarks.kill_test import write_model  # noqa: E402
from scripts.benchmarks.page import write_section  # noqa: E402
from tests.toys.fleets import populate, small  # noqa: E402

BNFOLD = (sys.executable, "-m", "bnfold")


@dataclass(frozen=True)
class Timed:
    """A fleet that has run: its time in all, that of its models, and how many there were."""

    seconds: float
    model_seconds: float
    models: int


def run(folder: Path, command: Sequence[str | Path]) -> float:
    """Run a command; gives the seconds that it took."""
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def time_loop(folder: Path, count: int) -> float:
    """Seconds a model of a shell loop over `bnfold fuse`."""
    (folder / "loop").mkdir()
    models = sorted((folder / "models").rglob("*.onnx"))[:count]
    script = "\n".join(f"{' '.join(BNFOLD)} fuse {path.relative_to(folder)} -o loop/{path.name} -q" for path in models)
    return run(folder, ["sh", "-ec", script]) / len(models)


def time_fleet(folder: Path, workers: int, name: str = "models") -> Timed:
    """A fleet on so many workers."""
    out = f"out-{name}-{workers}"
    seconds = run(folder, [*BNFOLD, "fleet", "fuse", name, "--out", out, "--workers", str(workers), "-q"])
    lines = list(read_lines(folder / out / NAME))
    return Timed(seconds, sum(line["seconds"] for line in lines), len(lines))


def time_tasks(count: int = 2000) -> float:
    """Milliseconds a task that does nothing, of Dask on two workers."""
    code = (
        "import time, distributed\n"
        "if __name__ == '__main__':\n"
        "    options = {'threads_per_worker': 1, 'dashboard_address': '127.0.0.1:0'}\n"
        "    with distributed.LocalCluster(n_workers=2, **options) as cluster:\n"
        "        with distributed.Client(cluster) as client:\n"
        "            client.gather(client.map(abs, range(100)))\n"
        "            began = time.perf_counter()\n"
        f"            client.gather(client.map(abs, range(1000, {1000 + count})))\n"
        "            print(time.perf_counter() - began)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "tasks.py"
        script.write_text(code)
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    return 1000 * float(done.stdout) / count


def write_known(folder: Path, count: int) -> None:
    """That many paths, links to few models, and a ledger that knows all of them."""
    for number in range(count):
        path = folder / "models" / f"{number // 1000:03}" / f"m{number}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 20_000 == 0:
            first = path
            onnx.save(small(number), path)
        else:
            os.link(first, path)
    command = [*BNFOLD, "fleet", "inspect", "models/000/m0.onnx", "--ledger", "first.jsonl", "--workers", "1", "-q"]
    run(folder, command)
    [line] = read_lines(folder / "first.jsonl")
    from bnfold.fleet.places import LOCAL

    with (folder / "known.jsonl").open("w") as file:
        for found in LOCAL.walk(str(folder / "models")):
            name = str(Path(found.name).relative_to(folder))
            known = {"source": name, "relative": found.relative, "stamps": {name: found.stamp}}
            file.write(json.dumps({**line, **known, "files": {name: line["files"][line["source"]]}}) + "\n")
    with Ledger(folder / "known.jsonl") as ledger:
        assert sum(1 for _ in ledger.scan()) == count


def measure_client(count: int) -> tuple[float, float]:
    """Seconds and peak megabytes of a client that meets so many paths, all of which the ledger knows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_known(folder, count)
        began = time.perf_counter()
        command = [*BNFOLD, "fleet", "inspect", "models", "--ledger", "known.jsonl", "-q", "--json"]
        with (folder / "record").open("wb") as record:
            client = subprocess.Popen(command, cwd=folder, stdout=record)
            _, status, usage = os.wait4(client.pid, 0)
            client.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        assert json.loads((folder / "record").read_text())["counts"]["unchanged"] == count
    return seconds, usage.ru_maxrss * 1024 / 1e6


def measure_large(folder: Path, megabytes: int = 100) -> tuple[float, float]:
    """Seconds and peak megabytes of a model of that size."""
    (folder / "large").mkdir()
    write_model(folder / "large" / "m.onnx", megabytes, 0)
    time_fleet(folder, 1, "large")
    [line] = read_lines(folder / "out-large-1" / NAME)
    return line["seconds"], line["peak_bytes"] / 1e6


def time_lines(folder: Path, count: int = 500) -> float:
    """Milliseconds to parse and to write down a line of the ledger."""
    [line, *_] = read_lines(folder / "out-few-1" / NAME)
    text = json.dumps(line)
    with Ledger(folder / "lines.jsonl") as ledger:
        began = time.perf_counter()
        for _ in range(count):
            ledger.append(json.loads(text))
        return 1000 * (time.perf_counter() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--loop", type=int, default=20)
    parser.add_argument("--paths", type=int, default=100_000)
    parser.add_argument("--dry", action="store_true", help="print the table, and leave the page as it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        populate(folder / "models", options.models)
        populate(folder / "few", 2)
        loop = time_loop(folder, options.loop)
        start = time_fleet(folder, 1, "few")
        large, line = measure_large(folder), time_lines(folder)
        one, two = (time_fleet(folder, workers) for workers in (1, 2))
    task = time_tasks()
    few, many = measure_client(max(1, options.paths // 100)), measure_client(options.paths)
    begun = start.seconds - start.model_seconds
    overhead = 1000 * (one.seconds - begun - one.model_seconds) / one.models
    rows = [
        ("shell loop over `bnfold fuse`", f"{loop:.2f} s a model", "1"),
        *(
            (
                f"`bnfold fleet fuse`, {workers} worker{'s' if workers > 1 else ''}, {timed.models} models",
                f"{timed.seconds / timed.models:.3f} s a model, start and end included",
                f"{loop * timed.models / timed.seconds:.1f} times as fast",
            )
            for workers, timed in ((1, one), (2, two))
        ),
        ("of that, the model's own process", f"{1000 * one.model_seconds / one.models:.0f} ms a model", ""),
        ("of that, everything else", f"{overhead:.0f} ms a model", ""),
        ("start and end of a fleet", f"{begun:.1f} s", ""),
        ("a task of Dask that does nothing", f"{task:.2f} ms", "16 small models are one task"),
        ("a line of the ledger, parsed and put on the disk", f"{line:.2f} ms", ""),
        ("a model of 100 MB, with external data", f"{large[0]:.1f} s, peak {large[1]:.0f} MB", ""),
        (f"client, {options.paths // 100:,} known paths", f"peak {few[1]:.0f} MB, {few[0]:.1f} s", ""),
        (f"client, {options.paths:,} known paths", f"peak {many[1]:.0f} MB, {many[0]:.1f} s", ""),
    ]
    table = "\n".join(
        ["| what | measured | beside the loop |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    )
    print(table)
    if not options.dry:
        write_section(ROOT / "docs" / "fleet.md", "bench_fleet", table)


if __name__ == "__main__":
    main()
