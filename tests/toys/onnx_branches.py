"""Graphs with parallel branches, and what they cost: the parts that tests of merging share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold import Merge, Outcome
from tests.toys.onnx_graphs import fuse, model, node, norm, random, statistics

C = 4
SAME = {"pads": [1, 1, 1, 1]}
CENTRED = {"kernel_shape": [3, 3], **SAME}

# Kernels of several sizes, and statistics of several BatchNorms; a model takes those that its nodes name.
CONSTANTS: dict[str, np.ndarray] = {
    "w": random(C, C, 3, 3),
    "w2": random(C, C, 3, 3, seed=1),
    "w3": random(C, C, 3, 3, seed=2),
    "v": random(C, C, 1, 1),
    "v2": random(C, C, 1, 1, seed=1),
    "thin": random(2, C, 1, 1),
    "wide": random(C, 2, 3, 3),
    "narrow": random(1, C, 1, 1),
    "narrow2": random(1, C, 1, 1, seed=1),
    "one": random(1, C, 3, 3),
    "five": random(C, C, 5, 5),
    "even": random(C, C, 2, 2),
    "row": random(C, C, 1, 3),
    "dw": random(C, 1, 3, 3),
    "dv": random(C, 1, 1, 1),
    "gw": random(C, 2, 3, 3),
    "m": random(C, C),
    "m2": random(C, C, seed=1),
    "low": random(C, 1),
    "high": random(1, C),
    "b": random(C),
    "b2": random(C, seed=1),
    "s": random(C, 1, 1),
    "t": random(1, C, 1, 1),
    "two": np.asarray(2.0),
    "line": random(C, C, 3),
    "dot": random(C, C, 1),
    "cube": random(C, C, 3, 3, 3),
    "core": random(C, C, 1, 1, 1),
    "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
    **statistics(C, "p_"),
    **statistics(C, "q_"),
    **statistics(C, "rr_"),
}


def conv(inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return node("Conv", inputs, output, **attributes)


def build(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str] = (2, C, 6, 7), **options: Any
) -> onnx.ModelProto:
    names = {name for each in nodes for name in each.input}
    return model(nodes, {name: array for name, array in CONSTANTS.items() if name in names}, shape, **options)


def cost(proto: onnx.ModelProto) -> tuple[int, int, int]:
    """Multiplications of its convolutions and matrix products, bytes of parameters, nodes; sizes unknown count as 6."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    infos = [*graph.value_info, *graph.output, *graph.input]
    sizes = {each.name: [dim.dim_value or 6 for dim in each.type.tensor_type.shape.dim] for each in infos}
    stored = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    multiplications = 0
    for each in proto.graph.node:
        if each.op_type == "Conv":
            multiplications += int(np.prod(sizes[each.output[0]]) * np.prod(stored[each.input[1]].shape[1:]))
        elif each.op_type in ("MatMul", "Gemm"):
            multiplications += int(np.prod(sizes[each.output[0]]) * sizes[each.input[0]][-1])
    return multiplications, sum(array.nbytes for array in stored.values()), len(proto.graph.node)


def fuse_cheaply(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Outcome, ...]]:
    """Fuse, and assert that nothing costs more than before."""
    fused, outcomes = fuse(proto)
    assert all(after <= before for after, before in zip(cost(fused), cost(proto), strict=True))
    return fused, outcomes


def merges(outcomes: tuple[Outcome, ...]) -> list[Merge]:
    return [each for each in outcomes if isinstance(each, Merge)]


BOTH = [conv("x w", "c", **SAME), conv("x v", "d")]


OTHER = node("Sigmoid", "x", "z")

# Each becomes one operator.
MERGE: dict[str, list[onnx.NodeProto]] = {
    "two convolutions": [*BOTH, node("Add", "c d", "y")],
    "a difference": [*BOTH, node("Sub", "d c", "y")],
    "identity": [conv("x w b", "c", **SAME), node("Add", "x c", "y")],
    "identity taken away twice": [conv("x w", "c", **SAME), node("Sub", "c x", "e"), node("Sub", "e x", "y")],
    "the convolution taken away": [conv("x w", "c", **SAME), node("Sub", "x c", "y")],
    "identity's batchnorm": [conv("x w", "c", **SAME), norm("x", "n", "p_"), node("Add", "n c", "y")],
    "RepVGG": [
        *BOTH,
        norm("c", "e", "p_"),
        norm("d", "f", "q_"),
        norm("x", "g", "rr_"),
        node("Add", "e f", "h"),
        node("Add", "h g", "y"),
    ],
    "a sum of many": [*BOTH, norm("c", "e", "p_"), conv("x w2 b", "f", **SAME), node("Sum", "e d x f", "y")],
    "a tree": [
        *BOTH,
        conv("x w2", "e", **SAME),
        conv("x v2 b", "f"),
        node("Sub", "c d", "g"),
        node("Sub", "e f", "h"),
        node("Sub", "g h", "y"),
    ],
    "layer scale inside": [
        *BOTH,
        norm("x", "n", "p_"),
        node("Add", "c d", "e"),
        node("Sub", "e n", "f"),
        node("Mul", "s f", "g"),
        node("Add", "x g", "y"),
    ],
    "constants": [
        *BOTH,
        node("Add", "c s", "e"),
        node("Sub", "t d", "f"),
        node("Add", "e f", "g"),
        node("Sub", "t g", "h"),
        node("Sub", "h x", "i"),
        node("Add", "i s", "y"),
    ],
    "scales of the value": [
        conv("x w", "c", **SAME),
        node("Mul", "x two", "e"),
        node("Neg", "e", "f"),
        node("Add", "c f", "y"),
    ],
    "identities on the way": [
        node("Identity", "x", "a"),
        conv("a w", "c", **SAME),
        node("Dropout", "c", "e"),
        node("Add", "e x", "f"),
        node("Identity", "f", "g"),
        node("Add", "g x", "y"),
    ],
    "a batchnorm behind": [*BOTH, node("Add", "c d", "e"), norm("e", "y", "p_")],
    "a scale in front": [node("Mul", "x s", "a"), conv("a w", "c", **SAME), conv("x v", "d"), node("Add", "c d", "y")],
    "a batchnorm in front of a point": [
        norm("x", "a", "p_"),
        conv("a v", "d"),
        conv("x w", "c", **SAME),
        node("Add", "c d", "y"),
    ],
    "a batchnorm in front of an unpadded window": [
        norm("x", "a", "p_"),
        conv("a w", "c"),
        conv("x w2", "d"),
        node("Add", "c d", "y"),
    ],
    "depthwise": [
        conv("x dw", "c", group=C, **SAME),
        conv("x dv", "d", group=C),
        norm("x", "n", "p_"),
        node("Sum", "c d n", "y"),
    ],
    "depthwise in a dense host": [conv("x w", "c", **SAME), conv("x dv", "d", group=C), node("Add", "c d", "y")],
    "groups in a dense host": [conv("x w", "c", **SAME), conv("x gw", "d", group=2, **SAME), node("Add", "c d", "y")],
    "depthwise in a grouped host": [
        conv("x gw", "c", group=2, **SAME),
        conv("x dw", "d", group=C, **SAME),
        node("Add", "c d", "y"),
    ],
    "a stride that skips the centre": [
        conv("x w", "c", strides=[2, 2], **SAME),
        conv("x v", "d", strides=[2, 2]),
        node("Add", "c d", "y"),
    ],
    "a row in a square": [conv("x w", "c", **SAME), conv("x row", "d", pads=[0, 1, 0, 1]), node("Add", "c d", "y")],
    "an asymmetric pad": [
        conv("x w", "c", pads=[2, 0, 0, 2]),
        conv("x even", "d", pads=[1, 0, 0, 1]),
        conv("x v", "e"),
        node("Sum", "c d e", "y"),
    ],
    "dilated in a larger window": [
        conv("x five", "c", pads=[2, 2, 2, 2]),
        conv("x w", "d", pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("Add", "c d", "y"),
    ],
    "a point in a dilated window": [
        conv("x w", "c", pads=[2, 2, 2, 2], dilations=[2, 2]),
        conv("x v", "d"),
        node("Add", "c d", "y"),
    ],
    "same padding": [
        conv("x w", "c", auto_pad="SAME_UPPER"),
        conv("x v", "d", auto_pad="VALID"),
        node("Add", "c d", "y"),
    ],
    "an average that counts zeros": [
        conv("x w", "c", **SAME),
        node("AveragePool", "x", "e", count_include_pad=1, **CENTRED),
        norm("e", "f", "p_"),
        node("Add", "c f", "y"),
    ],
    "an unpadded average": [
        conv("x w", "c"),
        node("AveragePool", "x", "e", kernel_shape=[3, 3]),
        node("Add", "c e", "y"),
    ],
    "a chain on a branch": [
        conv("x thin", "d"),
        conv("d wide", "e", **SAME),
        conv("x w b", "c", **SAME),
        node("Add", "c e", "y"),
    ],
    "point and average, as in a diverse branch block": [
        conv("x v", "d"),
        node("AveragePool", "d", "e", count_include_pad=1, **CENTRED),
        norm("e", "f", "p_"),
        conv("x w b", "c", **SAME),
        node("Add", "c f", "y"),
    ],
}
