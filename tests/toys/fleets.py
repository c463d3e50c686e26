"""Models for fleets: small ones, each another; with external data; and some that want more than they may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.toys.onnx_graphs import model, node, norm, random, statistics


def small(seed: int = 0, kept: bool = False) -> onnx.ModelProto:
    """A convolution with its BatchNorm, and a second one behind a Relu if one is to stay."""
    nodes = [node("Conv", "x w", "c"), norm("c", "n")]
    nodes += [node("Relu", "n", "r"), norm("r", "y", "late_")] if kept else [node("Relu", "n", "y")]
    constants = {"w": random(4, 3, 3, 3, seed=seed, dtype=np.float32), **statistics(4, dtype=np.float32)}
    if kept:
        constants |= statistics(4, "late_", dtype=np.float32)
    return model(nodes, constants, (1, 3, 8, 8), dtype=np.float32)


def save_external(path: Path, seed: int = 0) -> None:
    """Save a small model with its weights in a file beside it."""
    onnx.save_model(small(seed), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=16)


def greedy(side: int = 24_000) -> onnx.ModelProto:
    """A small file that asks its runtime for a matrix of that many rows and columns, and adds it up."""
    proto = small()
    size = numpy_helper.from_array(np.array([side, side], np.int64), "size")
    proto.graph.initializer.append(size)
    proto.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["one"], keepdims=0),
            helper.make_node("Expand", ["one", "size"], ["matrix"]),
            helper.make_node("ReduceSum", ["matrix"], ["sum"], keepdims=0),
        ]
    )
    proto.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    return proto


def hanging() -> onnx.ModelProto:
    """A small model behind which its runtime counts for years."""
    proto = small()
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["on"]), helper.make_node("Neg", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    proto.graph.initializer.append(helper.make_tensor("count", TensorProto.INT64, [], [1 << 62]))
    proto.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    proto.graph.node.append(helper.make_node("Loop", ["count", "true", "y"], ["z"], body=body))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    return proto


def populate(folder: Path, count: int) -> None:
    """A folder with small models in two folders of its own."""
    for number in range(count):
        path = folder / "ab"[number % 2] / f"m{number}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(small(number, kept=number % 3 == 0), path)
