"""Writes models/blocks/repvgg.onnx: a block of RepVGG, with branches of 3 x 3, 1 x 1 and the identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

CHANNELS = 4
TARGET = Path(__file__).parents[2] / "models" / "blocks" / "repvgg.onnx"


def block() -> onnx.ModelProto:
    """The block, with random weights and statistics."""
    generator = np.random.default_rng(0)
    arrays = {
        "w3": generator.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 6,
        "w1": generator.standard_normal((CHANNELS, CHANNELS, 1, 1)) / 2,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w3"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "w1"], ["c"]),
        helper.make_node("Add", ["b", "d"], ["f"]),
        helper.make_node("Add", ["f", "e"], ["g"]),
        helper.make_node("Relu", ["g"], ["y"]),
    ]
    for place, (read, made) in zip((1, 3, 4), (("a", "b"), ("c", "d"), ("x", "e")), strict=True):
        names = [f"{made}_{name}" for name in ("gamma", "beta", "mean", "var")]
        nodes.insert(place, helper.make_node("BatchNormalization", [read, *names], [made]))
        arrays |= {name: generator.uniform(0.5, 1.5, CHANNELS) for name in names}
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    shape = ["N", CHANNELS, "H", "W"]
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "repvgg_block", *ends, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    model = block()
    onnx.checker.check_model(model, full_check=True)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
