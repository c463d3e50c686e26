"""How many correct results of other tools `bnfold verify` refuses.

    python scripts/benchmarks/verify_zoo.py [--seeds N] [--docs docs/verification.md] [NAME...]

Architectures of timm (`pip install timm`, with the torchvision that fits torch) by torch's older exporter, with random
weights and statistics, a sixth of all channels with a negative scale. Each tool of peer_zoo.py makes its result, in a
process of its own; results that are wrong by compare_peers.py's measure are left out. Each other one is compared with
the original by as many seeds as are asked for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import timm
import torch

import bnfold
from scripts.benchmarks.compare_peers import Subject, apply, run
from scripts.benchmarks.page import write_section
from scripts.benchmarks.peer_zoo import TOOLS
from scripts.benchmarks.proof_zoo import NAMES, SIZES, exported, randomised

SIZE = 96
"""The side of the images, where an architecture takes any."""


@dataclass
class Tally:
    """The verdicts on the results of one tool.

    Attributes:
        asked: how many comparisons there were.
        refused: those that came out as different, or not at all.
        seconds: what each took.
    """

    asked: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def subject(name: str, folder: Path) -> Subject:
    """An architecture in a file, with an input."""
    torch.manual_seed(0)
    size = SIZES.get(name, SIZE)
    proto = exported(randomised(timm.create_model(name, pretrained=False)), torch.randn(1, 3, size, size), dynamo=False)
    onnx.save(proto, folder / f"{name}.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    return Subject(name, folder / f"{name}.onnx", [{proto.graph.input[0].name: x}], True)


def judge(original: Path, candidate: Path, seed: int, tally: Tally) -> str:
    """Why a comparison refuses a candidate; empty where it does not."""
    tally.asked += 1
    began = time.perf_counter()
    try:
        verdict = bnfold.verify(original, candidate, seed=seed, allow_interface=True)
    except bnfold.BnfoldError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        tally.seconds.append(time.perf_counter() - began)
    if verdict.is_equivalent:
        return ""
    failing = [each for each in (*verdict.outputs, *verdict.values) if each.reason]
    return f"{failing[0].name}: {failing[0].reason}"


def row(name: str, seeds: int, tallies: dict[str, Tally]) -> str:
    """A line of the table: for each tool, how many comparisons found its result equivalent."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = subject(name, folder)
        expected, failure = run(made.path, made, folder)
        assert not failure, f"{name}: {failure}"
        cells = []
        for tool in TOOLS:
            result = apply(tool, made, folder, expected)
            if result.failure or result.is_wrong:
                cells.append("fails" if result.failure else "wrong")
                continue
            reasons = [judge(made.path, result.path, seed, tallies[tool]) for seed in range(seeds)]
            for reason in filter(None, reasons):
                tallies[tool].refused[f"{name}: {reason}"] += 1
            cells.append(f"{reasons.count('')} of {seeds}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--seeds", type=int, default=3, help="comparisons of each result")
    parser.add_argument("--docs", type=Path, help="write the table between its markers in this page")
    options = parser.parse_args()
    lines = [f"| architecture | {' | '.join(TOOLS)} |", f"|---|{'---:|' * len(TOOLS)}"]
    print(*lines, sep="\n", flush=True)
    tallies = {tool: Tally() for tool in TOOLS}
    for name in options.names:
        lines.append(row(name, options.seeds, tallies))
        print(lines[-1], flush=True)
    totals = [f"**{each.asked - each.refused.total()} of {each.asked}**" for each in tallies.values()]
    lines.append(f"| **all {len(options.names)}** | {' | '.join(totals)} |")
    seconds = [second for each in tallies.values() for second in each.seconds]
    lines += [
        "",
        f"{len(seconds)} comparisons, {np.median(seconds):.1f} s in the middle, {max(seconds):.1f} s at most.",
    ]
    lines += [f"- {tool}, {reason}" for tool, each in tallies.items() for reason in each.refused]
    print(*lines[-2:], *(f"{tool}: {each.refused}" for tool, each in tallies.items()), sep="\n")
    if options.docs:
        write_section(options.docs, "verify zoo", "\n".join(lines))


if __name__ == "__main__":
    main()
