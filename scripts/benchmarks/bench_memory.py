"""Measures the memory that the commands take, and writes the table of docs/performance.md.

    python scripts/benchmarks/bench_memory.py [--docs docs/performance.md]

The models are architectures that the onnx package ships, with drawn weights, and convolutions of 268 MB in external
data. A figure is the largest resident set of a process that the command is made of: what runs a model is one of its
own.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import onnx
import onnxruntime

from scripts.benchmarks.bench_tool import BNFOLD, large, made, measure
from scripts.benchmarks.compare_peers import ARCHITECTURES, LIGHT, filled
from scripts.benchmarks.page import write_section

COMMANDS = ("inspect", "fuse --no-verify", "fuse", "verify")
LARGE = (2, 4)
"""How many convolutions of 268 MB."""


def architecture(folder: Path, name: str) -> Path:
    """The file of an architecture."""
    path = folder / f"{name}.onnx"
    onnx.save(filled(onnx.load(LIGHT / f"light_{name}.onnx")), path)
    return path


def peak(command: str, model: Path) -> float:
    """Megabytes of a command on a model; `verify` compares it with what `fuse` made of it."""
    fused = model.with_name("fused.onnx")
    verb, *options = command.split()
    if verb == "verify":
        return measure(*BNFOLD, verb, model, fused, "-q").peak / 1e6
    target = ["-o", fused, "--overwrite"] if verb == "fuse" else []
    return measure(*BNFOLD, verb, model, *target, *options, "-q").peak / 1e6


def row(name: str, model: Path, commands: tuple[str, ...] = COMMANDS) -> str:
    """One line of the table; empty for a command that is left out."""
    size = sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*")) / 1e6
    cells = [
        name,
        f"{size:,.0f}",
        *(f"{peak(command, model):,.0f}" if command in commands else "" for command in COMMANDS),
    ]
    print(cells, flush=True)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", type=Path, help="write the section between its markers in this page")
    options = parser.parse_args()
    rows = []
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, made(architecture, Path(folder), name)))
    for count in LARGE:
        with tempfile.TemporaryDirectory() as folder:
            model = made(large, Path(folder), count)
            rows.append(row(f"{count} convolutions of 268 MB, external data", model, COMMANDS[:3]))
    text = "\n".join(
        [
            "## Memory",
            "",
            "Written by `python scripts/benchmarks/bench_memory.py --docs docs/performance.md`: megabytes of the",
            "largest process of a command, interpreter and imports included; onnxruntime "
            f"{onnxruntime.__version__}, {os.cpu_count()} CPUs, {platform.machine()}.",
            "`verify` is that with the defaults, of the model and what `fuse` made of it.",
            "",
            f"| model | MB | {' | '.join(f'`{command}`' for command in COMMANDS)} |",
            f"|---|---:|{'---:|' * len(COMMANDS)}",
            *rows,
        ]
    )
    if options.docs:
        write_section(options.docs, "memory", text)


if __name__ == "__main__":
    main()
