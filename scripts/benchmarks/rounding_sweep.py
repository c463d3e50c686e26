"""How a normalisation's ratio of mean to deviation decides what folding it into a linear operator costs.

The fold is done here, in float64 and rounded once, whatever bnfold would say to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from scripts.benchmarks.node_evaluator import EXACT, evaluate, nodewise
from scripts.benchmarks.rounding_judge import rms, run_onnxruntime

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


FORMS = ("BatchNormalization", "Sub, Div", "Div, Sub", "upstream")
"""What is folded: a normalisation in front, which rounds the difference, or the quotient first; a BatchNorm behind."""


@dataclass(frozen=True)
class Setting:
    """One experiment: `ratio` is that of mean to deviation; of the data, or of what a BatchNorm behind reads."""

    form: str
    op: str
    dtype: Any
    fan_in: int
    is_one_sign: bool

    def errors(self, ratio: float, seed: int) -> tuple[Array, Array, Array]:
        """Of each output channel: its size, the original's error and the result's."""
        random = np.random.default_rng([15, seed])
        dev = 2.0 ** random.uniform(-1, 1, self.fan_in)
        signs = 1.0 if self.is_one_sign else random.choice([-1.0, 1.0], self.fan_in)
        mean = signs * ratio * dev * (self.form != "upstream")
        w = random.standard_normal((OUT, self.fan_in)) / np.sqrt(self.fan_in)
        w = np.abs(w) if self.is_one_sign else w
        bias = random.standard_normal(OUT)
        if self.form == "upstream":
            w, dev = w / dev, dev
            bias = random.choice([-1.0, 1.0], OUT) * ratio
        tail = (2, 2) if self.op == "Conv" else ()
        column = (-1, *[1] * len(tail))
        drawn = random.standard_normal((BATCH, self.fan_in, *tail))
        x = (mean.reshape(column) + dev.reshape(column) * drawn).astype(self.dtype)
        kernel = w.reshape(OUT, self.fan_in, *[1] * len(tail))
        stored = {"w": kernel, "b": bias}
        last = {"transB": 1} if self.op == "Gemm" else {}
        linear = helper.make_node(self.op, ["x" if self.form == "upstream" else "n", "w", "b"], ["l"], **last)
        wide = w.astype(self.dtype).astype(np.float64)
        if self.form in ("upstream", "BatchNormalization"):
            count = OUT if self.form == "upstream" else self.fan_in
            centre, square = (bias, np.ones(OUT)) if self.form == "upstream" else (mean, dev**2)
            stored |= {"gamma": np.ones(count), "beta": np.zeros(count), "mean": centre, "var": square}
            names = ["gamma", "beta", "mean", "var"]
            ends = ("l", "y") if self.form == "upstream" else ("x", "n")
            nodes = [helper.make_node("BatchNormalization", [ends[0], *names], [ends[1]], epsilon=0.0)]
        elif self.form == "Sub, Div":
            stored |= {"mean": mean.reshape(column), "dev": dev.reshape(column)}
            nodes = [helper.make_node("Sub", ["x", "mean"], ["c"]), helper.make_node("Div", ["c", "dev"], ["n"])]
        else:
            stored |= {"mean": (mean / dev).reshape(column), "dev": dev.reshape(column)}
            nodes = [helper.make_node("Div", ["x", "dev"], ["c"]), helper.make_node("Sub", ["c", "mean"], ["n"])]
        nodes = [linear, *nodes] if self.form == "upstream" else [*nodes, linear]
        nodes[-1].output[0] = "y"
        original = model(nodes, stored, x.shape, self.dtype)
        exact = {name: array.astype(self.dtype).astype(np.float64).reshape(-1) for name, array in stored.items()}
        scale = 1 / (np.sqrt(exact["var"]) if "var" in exact else exact["dev"])
        shift = -exact["mean"] * (1.0 if self.form == "Div, Sub" else scale)
        if self.form == "upstream":
            folded = {"w": wide * scale[:, None], "b": scale * exact["b"] + shift}
        else:
            folded = {"w": wide * scale, "b": exact["b"] + wide @ shift}
        folded["w"] = folded["w"].reshape(kernel.shape)
        result = model([helper.make_node(self.op, ["x", "w", "b"], ["y"], **last)], folded, x.shape, self.dtype)
        (reference,) = evaluate(original, {"x": x}, EXACT)

        def error(each: onnx.ModelProto) -> Array:
            runs = [evaluate(each, {"x": x}, nodewise(self.dtype))]
            if self.dtype == np.float32:
                runs.append(run_onnxruntime(each, {"x": x}))
            return np.asarray(np.min([rms(run[0].astype(np.float64) - reference, 1) for run in runs], axis=0))

        return rms(reference, 1), error(original), error(result)

    def cell(self, ratio: float, seeds: int) -> str:
        """The result's error over the original's, and the share of output channels beyond what is allowed."""
        if self.dtype == np.float16 and ratio > 1024:
            return ""
        rows = [self.errors(ratio, seed) for seed in range(seeds)]
        size, before, after = (np.concatenate(each) for each in zip(*rows, strict=True))
        over = np.mean(after > 2 * before + np.finfo(self.dtype).eps * size)
        return f"{np.sqrt(np.mean(after**2) / np.mean(before**2)):.2g} ({100 * over:.0f} %)"


def sweep(seeds: int) -> Iterator[str]:
    """A table: a fold's error over the original's as the mean grows, and the share of output channels beyond that."""
    yield "| folded | into | signs | type | fan-in | " + " | ".join(f"{ratio}" for ratio in RATIOS) + " |"
    yield "|---|---|---|---|---:|" + "---:|" * len(RATIOS)
    for form in FORMS:
        for is_one_sign in (False, True):
            for dtype in (np.float32, np.float16):
                for op in ("Gemm", "Conv"):
                    for fan_in in (4, 64, 512):
                        setting = Setting(form, op, dtype, fan_in, is_one_sign)
                        cells = " | ".join(setting.cell(ratio, seeds) for ratio in RATIOS)
                        signs = "one" if is_one_sign else "both"
                        yield f"| {form} | {op} | {signs} | {np.dtype(dtype).name} | {fan_in} | {cells} |"
