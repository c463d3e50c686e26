"""Writes models/blocks: a block of RepVGG (3 x 3, 1 x 1 and identity branches), and one of a pre-activation network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

CHANNELS = 4
FOLDER = Path(__file__).parents[2] / "models" / "blocks"

Arrays = dict[str, np.ndarray]


def statistics(generator: np.random.Generator, prefix: str) -> Arrays:
    """Parameters of a BatchNorm with positive scales."""
    return {f"{prefix}_{name}": generator.uniform(0.5, 1.5, CHANNELS) for name in ("gamma", "beta", "mean", "var")}


def batchnorm(read: str, made: str) -> onnx.NodeProto:
    """A BatchNormalization whose parameters have its output's name."""
    return helper.make_node(
        "BatchNormalization", [read, *(f"{made}_{name}" for name in ("gamma", "beta", "mean", "var"))], [made]
    )


def model(name: str, nodes: list[onnx.NodeProto], arrays: Arrays) -> onnx.ModelProto:
    """A model of images of any size, in float32."""
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    shape = ["N", CHANNELS, "H", "W"]
    ends = [[helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, shape)] for end in ("x", "y")]
    graph = helper.make_graph(nodes, name, *ends, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def repvgg() -> onnx.ModelProto:
    """Three branches, each with a BatchNorm, added up."""
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
        nodes.insert(place, batchnorm(read, made))
        arrays |= statistics(generator, made)
    return model("repvgg_block", nodes, arrays)


def preactivated() -> onnx.ModelProto:
    """A residual block whose first BatchNorm stays: its scales have both signs, and the sum reads its input as well."""
    generator = np.random.default_rng(0)
    arrays = {
        "stem": generator.standard_normal((CHANNELS, CHANNELS, 1, 1)) / 2,
        "w": generator.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 6,
        **statistics(generator, "b"),
        **statistics(generator, "e"),
    }
    arrays["b_gamma"][1] *= -1
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"]),
        batchnorm("a", "b"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["d"], pads=[1] * 4),
        batchnorm("d", "e"),
        helper.make_node("Add", ["a", "e"], ["y"]),
    ]
    return model("preactivated_block", nodes, arrays)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for made in (repvgg(), preactivated()):
        onnx.checker.check_model(made, full_check=True)
        (FOLDER / f"{made.graph.name.removesuffix('_block')}.onnx").write_bytes(made.SerializeToString())


if __name__ == "__main__":
    main()
