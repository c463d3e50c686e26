"""What `bnfold diff` says of what other optimisers did to real architectures, checked by numbers of its own.

    python scripts/benchmarks/diff_peers.py [--docs docs/comparison.md] [NAME...]

Architectures of timm (`pip install timm`, with the torchvision that fits torch) by torch's older exporter, with random
weights and statistics, as in peer_zoo.py; each tool runs in a process of its own. A cell says what became of the
BatchNorms. Three things are checked, with onnx and numpy alone: as many are said to be still there as the file has
BatchNormalization nodes; the result computes what the original does; and each fold into the operator in front has that
operator's old weights times ``gamma / sqrt(var + eps)``, and the shift in its bias.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold.api import diff
from bnfold.difference.compare import Difference
from bnfold.difference.fates import Fate
from bnfold.difference.trace import Way
from scripts.benchmarks.compare_peers import Result, apply, batchnorms, run
from scripts.benchmarks.page import write_section
from scripts.benchmarks.peer_zoo import subject

TOOLS = (
    *("onnxruntime basic", "onnxruntime extended", "onnxsim", "onnxslim", "onnxoptimizer", "onnxscript"),
    "bnfold",
)

NAMES = (
    *("mobilenetv3_small_050", "lcnet_050", "regnetx_002", "repvgg_a0", "densenet121", "resnet18"),
    *("efficientnet_b0", "ghostnet_100", "mobileone_s0", "levit_128s"),
)

SLACK = 1e-5
"""Of float32 weights that a tool computed in float32."""


class Graph:
    """The nodes and tensors of a file."""

    def __init__(self, path: Path) -> None:
        self.proto = onnx.load(path)
        graph = self.proto.graph
        self.nodes = {node.name: node for node in graph.node}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.tensors = {each.name: each for each in graph.initializer}

    def tensor(self, name: str) -> np.ndarray | None:
        """A stored tensor in float64, as it is or behind a Constant or a Transpose; None for anything else."""
        if name in self.tensors:
            return numpy_helper.to_array(self.tensors[name]).astype(np.float64)
        maker = self.makers.get(name)
        if maker is None:
            return None
        if maker.op_type == "Constant":
            return numpy_helper.to_array(maker.attribute[0].t).astype(np.float64)
        inner = self.tensor(maker.input[0]) if maker.op_type in ("Transpose", "Identity") else None
        if inner is None or maker.op_type == "Identity":
            return inner
        order = next((list(each.ints) for each in maker.attribute if each.name == "perm"), None)
        return inner.transpose(order)


def check_fold(before: Graph, after: Graph, fate: Fate) -> bool | None:
    """Whether a fold into the convolution in front is in its weights; None for any other fold."""
    norm = before.nodes[fate.batchnorm.name]
    source = before.makers.get(norm.input[0])
    target = after.nodes.get(fate.into[0].name)
    if len(fate.into) != 1 or source is None or target is None or source.op_type != "Conv":
        return None
    if target.op_type not in ("Conv", "FusedConv"):
        return None
    gamma, beta, mean, var = (before.tensor(name) for name in norm.input[1:5])
    kernel, new = before.tensor(source.input[1]), after.tensor(target.input[1])
    if kernel is None or new is None or gamma is None or beta is None or mean is None or var is None:
        return None
    epsilon = next((each.f for each in norm.attribute if each.name == "epsilon"), float(np.float32(1e-5)))
    scale = gamma / np.sqrt(var + epsilon)
    bias = before.tensor(source.input[2]) if len(source.input) > 2 else None
    shift = beta + ((0.0 if bias is None else bias) - mean) * scale
    stored = after.tensor(target.input[2]) if len(target.input) > 2 and target.input[2] else np.zeros(len(scale))
    expected = kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
    if expected.shape != new.shape or stored is None:
        return False
    is_kernel = np.abs(expected - new).max() <= SLACK * np.abs(expected).max()
    size = max(float(np.abs(shift).max()), float(np.abs(mean * scale).max()))
    return bool(is_kernel and np.abs(shift - stored).max() <= SLACK * size)


def judge(source: Path, result: Result, found: Difference) -> tuple[str, int]:
    """What is wrong with an answer, in words, and how many of its folds were checked by their weights."""
    kept = sum(fate.way is Way.KEPT for fate in found.fates)
    if kept != result.left:
        return f"{kept} are said to be there, and {result.left} are", 0
    before, after = Graph(source), Graph(result.path)
    checks = {fate: check_fold(before, after, fate) for fate in found.fates if fate.way is Way.FOLDED}
    wrong = [fate.batchnorm.name for fate, is_right in checks.items() if is_right is False]
    return (f"{wrong[0]} is not there" if wrong else ""), sum(is_right is True for is_right in checks.values())


def cell(source: Path, result: Result, totals: Counter[str]) -> str:
    """What became of the BatchNorms, or that the answer is wrong."""
    if result.failure or result.is_wrong:
        return "fails" if result.failure else "wrong result"
    found = diff(source, result.path)
    fault, checked = judge(source, result, found)
    counts = Counter(str(fate.way) for fate in found.fates)
    totals.update(counts)
    totals["checked"] += checked
    totals["wrong"] += bool(fault)
    text = ", ".join(f"{count} {way}" for way, count in sorted(counts.items()))
    return f"{text} (**{fault}**)" if fault else text


def row(name: str, tools: Sequence[str], totals: Counter[str]) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = subject(name, folder)
        expected, failure = run(made.path, made, folder)
        assert not failure, f"{name}: {failure}"
        count = batchnorms(onnx.load(made.path).graph)
        cells = [cell(made.path, apply(tool, made, folder, expected), totals) for tool in tools]
    return f"| {name} | {count} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--docs", type=Path, help="write the table between its markers in this page")
    options = parser.parse_args()
    totals: Counter[str] = Counter()
    lines = [f"| architecture | BatchNorms | {' | '.join(TOOLS)} |", f"|---|---:|{'---|' * len(TOOLS)}"]
    print(*lines, sep="\n", flush=True)
    for name in options.names:
        lines.append(row(name, TOOLS, totals))
        print(lines[-1], flush=True)
    checked, wrong = totals.pop("checked"), totals.pop("wrong")
    together = ", ".join(f"{count:,} {way}" for way, count in sorted(totals.items()))
    lines += [
        "",
        f"All together: {together}. {checked:,} folds were found again in the weights by the check; "
        f"{'no answer was' if not wrong else f'{wrong} answers were'} wrong.",
    ]
    print(lines[-1], flush=True)
    if options.docs:
        write_section(options.docs, "diff peers", "\n".join(lines))


if __name__ == "__main__":
    main()
