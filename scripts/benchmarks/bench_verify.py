"""Measures what a verification costs, in inferences of the two models, and prints a Markdown table.

    python scripts/benchmarks/bench_verify.py [--rounds N] [--docs docs/performance.md]

The models are architectures that the onnx package ships, with drawn weights, and what bnfold made of them. Each round
times a few unoptimised inferences of both, one image at a time, and then one verification with the defaults, in one
process; the ratio is the median over the rounds of that round's verification over its inferences, for each input that
the verification runs on.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime

import bnfold
from bnfold.cli.allocation import keep_freed_memory
from bnfold.verification.equivalence import verify_files
from bnfold.verification.options import CompareOptions
from scripts.benchmarks.compare_peers import ARCHITECTURES, LIGHT, filled
from scripts.benchmarks.page import write_section

INFERENCES = 9
"""Of each model in a round; their median counts."""


def inference(path: Path) -> float:
    """Seconds of one unoptimised inference."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    feeds = {given.name: np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)}
    session.run(None, feeds)
    seconds = []
    for _ in range(INFERENCES):
        start = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def row(name: str, rounds: int, folder: Path) -> str:
    """One line of the table."""
    reference, candidate = folder / f"{name}.onnx", folder / f"{name}.fused.onnx"
    onnx.save(filled(onnx.load(LIGHT / f"light_{name}.onnx")), reference)
    onnx.save(bnfold.fuse(onnx.load(reference)), candidate)
    inferences, seconds, ratios = [], [], []
    for _ in range(rounds):
        inferences.append(inference(reference) + inference(candidate))
        comparison = verify_files(reference, candidate, CompareOptions())
        assert comparison.verdict.is_equivalent
        inputs, values = len(comparison.verdict.samples), len(comparison.verdict.values)
        seconds.append(comparison.seconds)
        ratios.append(comparison.seconds / inputs / inferences[-1])
    cells = [name, inputs, values, f"{1000 * median(inferences):.0f}", f"{median(seconds):.1f}"]
    return f"| {' | '.join(map(str, [*cells, f'{median(ratios):.1f}', f'{min(ratios):.1f} to {max(ratios):.1f}']))} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--docs", type=Path, help="write the section between its markers in this page")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    keep_freed_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(name, options.rounds, Path(folder)) for name in ARCHITECTURES]
    text = "\n".join(
        [
            "## Verification",
            "",
            f"Written by `python scripts/benchmarks/bench_verify.py --rounds {options.rounds} --docs "
            f"docs/performance.md`.",
            f"Images of 224 x 224 in float32; onnxruntime {onnxruntime.__version__}, {os.cpu_count()} CPUs,",
            f"{platform.machine()}, load of the machine at the start {load:.1f}. A ratio is the time of a verification",
            "with the defaults (reading both files, all inputs, disturbed references, inner values and the run as",
            "deployed) for each of its inputs, over that of one unoptimised inference of each model.",
            "",
            "| model | inputs | inner values | one inference of each, ms | verification, s | ratio an input | range |",
            "|---|---:|---:|---:|---:|---:|---|",
            *rows,
        ]
    )
    print(text)
    if options.docs:
        write_section(options.docs, "verify", text)


if __name__ == "__main__":
    main()
