"""How many BatchNorms each tool leaves in real architectures, how wrong it is, and how fast the result is.

    python scripts/benchmarks/peer_zoo.py [--rounds N] [--docs docs/comparison.md] [NAME...]

Architectures of timm (`pip install timm`, with the torchvision that fits torch) by torch's older exporter, with random
weights and statistics, a sixth of all channels with a negative scale. Each tool runs in a process of its own, as in
compare_peers.py. Under *bnfold beside it* is the time of bnfold's result over that of the fastest other one, at level
`all` on one thread, in turns, with its 95 % interval; *bnfold, then it* is the same for what the fastest other tool
makes of bnfold's result, since a tool that simplifies whole models also gains where there is no BatchNorm.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from torch import nn

from scripts.benchmarks.compare_peers import Result, Subject, apply, batchnorms, child, measure, run
from scripts.benchmarks.page import write_section
from scripts.benchmarks.proof_zoo import NAMES, SIZES, exported, randomised

TOOLS = ("onnxruntime extended", "onnxsim", "onnxslim", "onnxoptimizer", "onnxscript", "bnfold")


LATENCY = ("fastest other result", "bnfold beside it", "bnfold, then it")


def drawn(module: nn.Module) -> nn.Module:
    """The module, with noise on what a new module has all equal: a tool may drop an addition of nothing but zeros."""
    for parameter in module.parameters():
        if parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.data += torch.randn_like(parameter) * 0.05
    return module


def subject(name: str, folder: Path) -> Subject:
    """An architecture in a file, with an input."""
    torch.manual_seed(0)
    size = SIZES.get(name, 128)
    module = randomised(drawn(timm.create_model(name, pretrained=False)))
    proto = exported(module, torch.randn(1, 3, size, size), dynamo=False)
    onnx.save(proto, folder / f"{name}.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    return Subject(name, folder / f"{name}.onnx", [{proto.graph.input[0].name: x}], True)


def cell(result: Result) -> str:
    """What is left; how it failed, or that it is wrong."""
    if result.failure:
        return "fails"
    return f"**wrong** ({result.error:.0e})" if result.is_wrong else str(result.left)


def row(name: str, rounds: int) -> tuple[str, dict[str, Result], int]:
    """A line of the table, what each tool made, and how many BatchNorms there were."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = subject(name, folder)
        expected, failure = run(made.path, made, folder)
        assert not failure, f"{name}: {failure}"
        results = {tool: apply(tool, made, folder, expected) for tool in TOOLS}
        found = batchnorms(onnx.load(made.path).graph)
        latency = beside_the_best(made, results, rounds) if rounds else ("",) * len(LATENCY)
    cells = [name, str(found), *(cell(results[tool]) for tool in TOOLS), *latency]
    return f"| {' | '.join(cells)} |", results, found


def beside_the_best(made: Subject, results: dict[str, Result], rounds: int) -> tuple[str, str, str]:
    """The fastest of the others that are right; beside it bnfold's result, and what that tool makes of bnfold's."""
    paths = {tool: result.path for tool, result in results.items() if not result.failure and not result.is_wrong}
    mine = paths.pop("bnfold")
    first = measure(made.path, paths, made.feeds[0], max(8, rounds // 4))
    best = min(paths, key=lambda tool: first[tool][0])
    both = mine.with_name("both.onnx")
    failure, _ = child("--tool", best, str(mine), str(both))
    candidates = {"bnfold": mine} | ({} if failure else {"both": both})
    cells = {
        name: f"{ratio:.3f} ({low:.3f} to {high:.3f})"
        for name, (ratio, low, high) in measure(paths[best], candidates, made.feeds[0], rounds).items()
    }
    same = ", the same operators" if operators(mine) == operators(paths[best]) else ""
    return best, cells["bnfold"] + same, cells.get("both", "fails")


def operators(path: Path) -> Counter[str]:
    """How often each operator is left at level `all`."""
    optimised = path.with_suffix(".optimised.onnx")
    failure, _ = child("--tool", "onnxruntime all", str(path), str(optimised))
    assert not failure, f"{path}: {failure}"
    return Counter(node.op_type for node in onnx.load(optimised).graph.node)


def total(results: list[dict[str, Result]], found: list[int]) -> str:
    """How many each tool leaves in those architectures that it gets right."""
    cells = [f"**{sum(found):,}**"]
    for tool in TOOLS:
        right = [each[tool] for each in results if not each[tool].failure and not each[tool].is_wrong]
        missing = len(results) - len(right)
        cells.append(f"**{sum(each.left for each in right):,}**" + (f" ({missing} not right)" if missing else ""))
    return f"| **all {len(results)}** | {' | '.join(cells)} |{' |' * len(LATENCY)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--rounds", type=int, default=0, help="of the latency measurement; 0 for none")
    parser.add_argument("--docs", type=Path, help="write the table between its markers in this page")
    options = parser.parse_args()
    lines = [
        f"| architecture | BatchNorms | {' | '.join(TOOLS)} | {' | '.join(LATENCY)} |",
        f"|---|{'---:|' * (len(TOOLS) + 1)}{'---|' * len(LATENCY)}",
    ]
    print(*lines, sep="\n", flush=True)
    results, found = [], []
    for name in options.names:
        line, made, count = row(name, options.rounds)
        lines.append(line)
        results.append(made)
        found.append(count)
        print(line, flush=True)
    lines.append(total(results, found))
    print(lines[-1], flush=True)
    if options.docs:
        write_section(options.docs, "peer zoo", "\n".join(lines))


if __name__ == "__main__":
    main()
