"""How a normalisation's ratio of mean to deviation decides what folding it into a linear operator costs.

The fold is done here, in float64 and rounded once, whatever bnfold would say to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from node_evaluator import EXACT, evaluate, nodewise
from onnx import helper, numpy_helper
from rounding_judge import rms, run_onnxruntime

Array = np.ndarray

RATIOS = (0, 1, 2, 4, 8, 16, 32, 64, 256, 1024, 16384)
OUT, BATCH = 16, 64


def model(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], shape: tuple[int, ...], dtype: Any
) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", kind, (shape[0], OUT, *shape[2:]))
    initializers = [numpy_helper.from_array(array.astype(dtype), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def errors(op: str, form: str, dtype: Any, fan_in: int, ratio: float, seed: int) -> tuple[Array, Array, Array]:
    """For each output channel: size, error of the original and of the result; ``scale * deviation`` is 1 and beta 0."""
    random = np.random.default_rng([15, seed])
    dev = 2.0 ** random.uniform(-1, 1, fan_in)
    mean = random.choice([-1.0, 1.0], fan_in) * ratio * dev
    w = random.standard_normal((OUT, fan_in)) / np.sqrt(fan_in)
    bias = random.standard_normal(OUT)
    tail = (2, 2) if op == "Conv" else ()
    column = (-1, *[1] * len(tail))
    drawn = random.standard_normal((BATCH, fan_in, *tail))
    x = (mean.reshape(column) + dev.reshape(column) * drawn).astype(dtype)
    kernel, last = w.reshape(OUT, fan_in, *[1] * len(tail)), {"transB": 1} if op == "Gemm" else {}
    stored = {"mean": mean, "dev": dev, "w": kernel, "b": bias}
    if form == "BatchNormalization":
        stored |= {"gamma": np.ones(fan_in), "beta": np.zeros(fan_in), "var": dev**2}
        nodes = [helper.make_node(form, ["x", "gamma", "beta", "mean", "var"], ["n"], epsilon=0.0)]
    else:
        stored |= {"mean": mean.reshape(column), "dev": dev.reshape(column)}
        nodes = [helper.make_node("Sub", ["x", "mean"], ["c"]), helper.make_node("Div", ["c", "dev"], ["n"])]
    nodes.append(helper.make_node(op, ["n", "w", "b"], ["y"], **last))
    used = {name for node in nodes for name in node.input}
    original = model(nodes, {name: array for name, array in stored.items() if name in used}, x.shape, dtype)
    exact = {name: array.astype(dtype).astype(np.float64).reshape(-1) for name, array in stored.items() if name != "w"}
    scale = 1 / (np.sqrt(exact["var"]) if "var" in exact else exact["dev"])
    wide = w.astype(dtype).astype(np.float64)
    folded = {"w": (wide * scale).reshape(kernel.shape), "b": exact["b"] - wide @ (scale * exact["mean"])}
    result = model([helper.make_node(op, ["x", "w", "b"], ["y"], **last)], folded, x.shape, dtype)
    (reference,) = evaluate(original, {"x": x}, EXACT)

    def error(each: onnx.ModelProto) -> Array:
        runs = [evaluate(each, {"x": x}, nodewise(dtype))]
        if dtype == np.float32:
            runs.append(run_onnxruntime(each, {"x": x}))
        return np.min([rms(run[0].astype(np.float64) - reference, 1) for run in runs], axis=0)

    return rms(reference, 1), error(original), error(result)


def sweep(seeds: int) -> Iterator[str]:
    """A table: the result's error over the original's, and the share of output channels beyond what is allowed."""
    yield "| original | type | fan-in | " + " | ".join(f"{ratio}" for ratio in RATIOS) + " |"
    yield "|---|---|---:|" + "---:|" * len(RATIOS)
    for dtype in (np.float32, np.float16):
        for form in ("BatchNormalization", "Sub, Div"):
            for op in ("Gemm", "Conv"):
                for fan_in in (4, 64, 512):
                    cells = []
                    for ratio in RATIOS:
                        if dtype == np.float16 and ratio > 1024:
                            cells.append("")
                            continue
                        rows = [errors(op, form, dtype, fan_in, ratio, seed) for seed in range(seeds)]
                        size, before, after = (np.concatenate(each) for each in zip(*rows, strict=True))
                        over = np.mean(after > 2 * before + np.finfo(dtype).eps * size)
                        typical = np.sqrt(np.mean(after**2) / np.mean(before**2))
                        cells.append(f"{typical:.2g} ({100 * over:.0f} %)")
                    yield f"| {form}, {op} | {np.dtype(dtype).name} | {fan_in} | " + " | ".join(cells) + " |"
