"""Measures the CPU time of a command of bnfold beside that of an earlier revision, whole processes in turns.

    python scripts/benchmarks/bench_versions.py [--rounds N] REVISION COMMAND...

For example ``bench_versions.py v0.2.0 verify a.onnx b.onnx``. User and system time count, of all processes that the
command is made of; a ratio is that of this revision over the earlier one in the same round.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = "from bnfold.cli import main; main()"


def extract(revision: str, folder: Path) -> None:
    """Put the package as it was at a revision into a folder."""
    archive = subprocess.run(["git", "archive", revision, "bnfold"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)


def cpu(package: Path, arguments: list[str]) -> float:
    """Seconds of CPU time of one run, which has to end with exit code 0."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(package)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the earlier one, as git knows it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what is given to bnfold, with paths from here")
    options = parser.parse_args()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        extract(options.revision, Path(folder))
        for _ in range(options.rounds):
            seconds.append((cpu(Path(folder), options.command), cpu(ROOT, options.command)))
            print("{:.2f} s and {:.2f} s".format(*seconds[-1]), flush=True)
    ratios = sorted(new / old for old, new in seconds)
    old, new = (median(column) for column in zip(*seconds, strict=True))
    print(f"{old:.1f} s at {options.revision}, {new:.1f} s here: {median(ratios):.2f} of it", end=" ")
    print(f"({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
