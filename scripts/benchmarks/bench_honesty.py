"""Counts how often `bnfold bench` is right: of a model beside itself, and beside itself with its BatchNorms folded.

    python scripts/benchmarks/bench_honesty.py models/digits_cnn.onnx --runs 20 --busy 3

Prints the rows of the table in docs/benchmarks.md. `--busy N` lets N processes burn cores in bursts meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def bnfold(*arguments: str) -> str:
    command = [sys.executable, "-m", "bnfold", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def burn(seed: int) -> None:
    """Keep a core busy in bursts of up to two seconds, half of the time."""
    generator = random.Random(seed)
    while True:
        end = time.perf_counter() + generator.uniform(0, 2)
        while time.perf_counter() < end:
            sum(range(1000))
        time.sleep(generator.uniform(0, 2))


@contextmanager
def disturbed(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, __file__, "--burn", str(seed)]) for seed in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(first: Path, second: Path, level: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The second model's entry of each run."""
    entries = []
    for number in range(arguments.runs):
        options = ["--level", level, "--threads", str(arguments.threads), "--seed", str(number)]
        options += ["--rounds", str(arguments.rounds)]
        record = json.loads(bnfold("bench", str(first), str(second), *options, "--json"))
        entries.append(record["entries"][1] | {"load": record["fingerprint"]["load_after"], "took": record["seconds"]})
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return entries


def row(name: str, beside: str, level: str, entries: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    verdicts = Counter(entry["verdict"] for entry in entries)
    ratios = sorted(entry["ratio"] for entry in entries)
    cells = (
        name,
        beside,
        level,
        arguments.threads,
        arguments.rounds,
        f"{min(entry['load'] for entry in entries)} to {max(entry['load'] for entry in entries)}",
        *(f"{verdicts[each]}/{len(entries)}" for each in ("no detectable change", "faster", "slower")),
        f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
        f"{statistics.median(entry['took'] for entry in entries):.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="paths, or resnet50 for the one of the onnx package")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=0, help="processes that burn cores meanwhile")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=240)
    parser.add_argument("--beside", nargs="+", default=["itself", "folded"], choices=["itself", "folded"])
    parser.add_argument("--levels", nargs="+", default=["disabled", "all"])
    parser.add_argument("--burn", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.burn is not None:
        burn(arguments.burn)
    print("| model | beside | level | threads | rounds | load | no change | faster | slower | ratio | seconds |")
    print("|---|---|---|---:|---:|---|---:|---:|---:|---|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder, disturbed(arguments.busy):
        for model in arguments.models:
            model = LIGHT / f"light_{model}.onnx" if str(model) == "resnet50" else model
            fused = Path(folder) / f"{model.stem}.fused.onnx"
            bnfold("fuse", str(model), "-o", str(fused), "--overwrite")
            for beside, other in (("itself", model), ("folded", fused)):
                if beside not in arguments.beside:
                    continue
                for level in arguments.levels:
                    entries = measure(model, other, level, arguments)
                    print(row(model.stem, beside, level, entries, arguments), flush=True)


if __name__ == "__main__":
    main()
