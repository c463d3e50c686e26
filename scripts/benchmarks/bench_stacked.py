"""Latency of convolutions of one value that are only concatenated, against one convolution with stacked weights.

Interleaved pairs by onnxruntime at its default optimisation level; the ratio is the median of paired ratios with its
95 % bootstrap interval. Writes a section of docs/performance.md to standard output, and with --docs into the page.

    python scripts/benchmarks/bench_stacked.py [--rounds N] [--threads N] [--docs docs/performance.md]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from scripts.benchmarks.page import write_section

# Where such pairs occur: window, channels read, channels that each makes, side of the image, activation behind each.
CASES = {
    "CSP block, 1x1, 64 -> 32 + 32, 80x80": (1, 64, (32, 32), 80, False),
    "CSP block, 1x1, 256 -> 128 + 128, 20x20": (1, 256, (128, 128), 20, False),
    "1x1, 128 -> 64 + 64, 28x28": (1, 128, (64, 64), 28, False),
    "1x1 with Relu, 128 -> 64 + 64, 28x28": (1, 128, (64, 64), 28, True),
    "3x3, 64 -> 32 + 32, 56x56": (3, 64, (32, 32), 56, False),
    "3x3, 32 -> 8 + 24, 56x56": (3, 32, (8, 24), 56, False),
    "Inception, 1x1, 192 -> 64 + 96 + 16, 28x28": (1, 192, (64, 96, 16), 28, False),
}


def build(size: int, fan_in: int, outs: tuple[int, ...], side: int, has_relu: bool) -> onnx.ModelProto:
    """Parallel convolutions and their concatenation; of one alone, no concatenation."""
    nodes, weights, ends = [], [], []
    for index, out in enumerate(outs):
        weights.append(
            numpy_helper.from_array(np.random.default_rng(0).random((out, fan_in, size, size), np.float32), f"w{index}")
        )
        pads = [size // 2] * 4
        nodes.append(helper.make_node("Conv", ["x", f"w{index}"], [f"c{index}"], pads=pads))
        if has_relu:
            nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        ends.append(nodes[-1].output[0])
    if len(outs) > 1:
        nodes.append(helper.make_node("Concat", ends, ["j"], axis=1))
    nodes.append(helper.make_node("Sigmoid", [nodes[-1].output[0]], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, fan_in, side, side))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, sum(outs), side, side))
    graph = helper.make_graph(nodes, "graph", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(session: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    start = time.perf_counter()
    session.run(None, {"x": x})
    return 1e3 * (time.perf_counter() - start)


def row(name: str, rounds: int, threads: int) -> str:
    size, fan_in, outs, side, has_relu = CASES[name]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    pair = [
        onnxruntime.InferenceSession(
            build(size, fan_in, each, side, has_relu).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for each in (outs, (sum(outs),))
    ]
    x = np.random.default_rng(0).standard_normal((1, fan_in, side, side)).astype(np.float32)
    times = np.asarray([[run(session, x) for session in pair] for _ in range(rounds + 20)])[20:]
    ratios = times[:, 0] / times[:, 1]
    drawn = np.median(np.random.default_rng(0).choice(ratios, (4000, rounds)), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    apart, stacked = np.median(times, axis=0)
    return f"| {name} | {apart:.3f} | {stacked:.3f} | {np.median(ratios):.2f} ({low:.2f} to {high:.2f}) |"


def section(rounds: int, threads: int) -> str:
    command = f"python scripts/benchmarks/bench_stacked.py --rounds {rounds} --threads {threads}"
    return "\n".join(
        [
            "## Convolutions that are only concatenated",
            "",
            f"Written by `{command} --docs docs/performance.md`:",
            "two or three convolutions of one value and their concatenation, against one with stacked weights, by",
            f"onnxruntime {onnxruntime.__version__} at its default level.",
            "",
            "| convolutions | apart, ms | stacked, ms | apart / stacked |",
            "|---|---:|---:|---|",
            *(row(name, rounds, threads) for name in CASES),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--docs", type=Path, help="write the section between its markers in this page")
    options = parser.parse_args()
    text = section(options.rounds, options.threads)
    print(text)
    if options.docs:
        write_section(options.docs, "stacked", text)


if __name__ == "__main__":
    main()
