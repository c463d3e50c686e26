"""ONNX graphs whose linear operators become one, and traps where they must not; none costs more than before."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Merge, Outcome, Refusal, api
from bnfold.algebra import kernels, terms
from bnfold.algebra.linear import Linear
from tests.toys.onnx_graphs import evaluate, fuse, model, node, norm, operators, random, statistics

C = 4
SAME = {"pads": [1, 1, 1, 1]}
CENTRED = {"kernel_shape": [3, 3], **SAME}

# Kernels of several sizes, and statistics of several BatchNorms; a model takes those that its nodes name.
CONSTANTS: dict[str, np.ndarray] = {
    "w": random(C, C, 3, 3),
    "w2": random(C, C, 3, 3, seed=1),
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


@pytest.mark.parametrize("case", MERGE)
@pytest.mark.parametrize("shape", [(2, C, 6, 7), ("n", C, "h", "w")], ids=["static", "dynamic"])
def test_branches_become_one_convolution(case: str, shape: tuple[int | str, ...]) -> None:
    fused, outcomes = fuse_cheaply(build(MERGE[case], shape))
    assert operators(fused) == ["Conv"]
    assert merges(outcomes)
    assert not any(isinstance(each, Refusal) for each in outcomes)
    without = bnfold.fuse(build(MERGE[case], shape), merge=False)
    assert len(without.graph.node) > 1


def test_one_and_three_axes() -> None:
    line = [conv("x line", "c", pads=[1, 1]), conv("x dot", "d"), norm("x", "n", "p_"), node("Neg", "n", "e")]
    fused, _ = fuse_cheaply(build([*line, node("Sum", "c d e", "y")], (2, C, 9)))
    assert operators(fused) == ["Conv"]
    cube = [conv("x cube", "c", pads=[1] * 6), conv("x core", "d"), norm("x", "n", "p_")]
    fused, _ = fuse_cheaply(build([*cube, node("Sum", "c d n", "y")], (1, C, 3, 4, 5)))
    assert operators(fused) == ["Conv"]


def test_the_names_of_what_went_where() -> None:
    fused, outcomes = fuse_cheaply(build(MERGE["RepVGG"]))
    assert [each.name for each in fused.graph.node] == ["Conv_c"]
    one, two, three, merged = outcomes
    assert isinstance(one, Fold)
    assert (one.batchnorm, one.direction, one.into, one.through) == (
        "BatchNormalization_e",
        "upstream",
        ("Conv_c",),
        (),
    )
    assert isinstance(two, Fold)
    assert (two.direction, two.into, two.through) == ("downstream", ("Conv_c",), ("Add_h", "Add_y"))
    assert isinstance(three, Fold)
    assert (three.direction, three.into, three.through) == ("downstream", ("Conv_c",), ("Add_y",))
    assert isinstance(merged, Merge)
    assert merged.into == "Conv_c"
    assert set(merged.branches) == {"Conv_d", "BatchNormalization_g"}
    assert merged.through == ("Add_h", "Add_y")


MATRICES: dict[str, tuple[list[onnx.NodeProto], list[str]]] = {
    "products": ([node("MatMul", "x m", "c"), node("MatMul", "x m2", "d"), node("Sub", "c d", "y")], ["MatMul"]),
    "a product and its value": ([node("MatMul", "x m", "c"), node("Add", "c x", "y")], ["MatMul"]),
    "a product with a bias": (
        [node("MatMul", "x m", "c"), node("Add", "c b", "e"), node("MatMul", "x m2", "d"), node("Add", "d e", "y")],
        ["MatMul", "Add"],
    ),
    "a batchnorm of the value": (
        [node("MatMul", "x m", "c"), norm("x", "n", "p_"), node("Add", "n c", "y")],
        ["MatMul", "Add"],
    ),
    "Gemm with factors": (
        [
            node("Gemm", "x m b", "c", alpha=0.5, beta=2.0, transB=1),
            node("MatMul", "x m2", "d"),
            node("Sum", "d c x", "y"),
        ],
        ["Gemm"],
    ),
    "a chain": ([node("MatMul", "x m", "c"), node("MatMul", "c low", "y")], ["MatMul"]),
    "a chain of Gemms": ([node("Gemm", "x m b", "c", transB=1), node("Gemm", "c low", "y", alpha=3.0)], ["Gemm"]),
}


@pytest.mark.parametrize("case", MATRICES)
def test_matrix_products(case: str) -> None:
    nodes, expected = MATRICES[case]
    fused, outcomes = fuse_cheaply(build(nodes, (3, C)))
    assert operators(fused) == expected
    assert merges(outcomes)


def test_products_from_both_sides_stay() -> None:
    nodes = [node("MatMul", "x m", "c"), node("MatMul", "m2 x", "d"), node("Add", "c d", "y")]
    fused, outcomes = fuse(build(nodes, (3, C, C)))
    assert operators(fused) == operators(build(nodes, (3, C, C)))
    assert not merges(outcomes)


CHAINS: dict[str, list[onnx.NodeProto]] = {
    "window then point": [conv("x w b", "c", **SAME), conv("c v b2", "y")],
    "point then unpadded window": [conv("x v b", "c"), conv("c w b2", "y")],
    "point without bias, then window": [conv("x v", "c"), conv("c w b", "y", **SAME)],
    "with a batchnorm between": [conv("x w b", "c", strides=[2, 2], **SAME), norm("c", "n", "p_"), conv("n v", "y")],
    "depthwise points": [conv("x dv b", "c", group=C), conv("c dv", "y", group=C)],
    "depthwise point behind": [conv("x w b", "c", **SAME), conv("c dv b2", "y", group=C)],
    "depthwise point in front": [conv("x dv", "c", group=C), conv("c w", "y", strides=[2, 1], **SAME)],
    "depthwise point before depthwise": [conv("x dv", "c", group=C), conv("c dw", "y", group=C, **SAME)],
    "three": [conv("x v", "c"), conv("c w b", "d", **SAME), conv("d v2", "y")],
    "a chain behind a sum": [*BOTH, node("Add", "c d", "e"), conv("e v2 b", "y")],
    "a chain before a sum": [conv("x w", "c", **SAME), conv("c v b", "d"), node("Add", "d x", "y")],
}


@pytest.mark.parametrize("case", CHAINS)
def test_a_chain_becomes_one_convolution(case: str) -> None:
    nodes = CHAINS[case]
    if case == "depthwise points":  # which share their weight
        nodes = [nodes[0], node("Mul", "c two", "e"), conv("e dv", "f", group=C), node("Mul", "f two", "y")]
    fused, outcomes = fuse_cheaply(build(nodes))
    assert operators(fused) == ["Conv"]
    assert merges(outcomes)


def test_an_operator_that_absorbs_two_chains_names_both() -> None:
    nodes = [conv("x narrow", "c"), conv("c dv", "d"), conv("d narrow2", "y")]
    fused, outcomes = fuse_cheaply(build(nodes))
    assert operators(fused) == ["Conv"]
    assert {branch for merge in merges(outcomes) for branch in merge.branches} == {"Conv_c", "Conv_d"}


STACKS: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], list[str]]] = {
    "convolutions": (
        [conv("x v", "c"), conv("x thin", "d"), node("Concat", "d c", "y", axis=1)],
        (2, C, 6, 7),
        ["Conv"],
    ),
    "with batchnorms": (
        [
            *BOTH[:1],
            norm("c", "e", "p_"),
            conv("x w2", "d", **SAME),
            norm("d", "f", "q_"),
            node("Concat", "e f", "y", axis=1),
        ],
        (2, C, 6, 7),
        ["Conv"],
    ),
    "of which one is a sum": (
        [*BOTH, node("Add", "c d", "e"), conv("x w2", "f", **SAME), node("Concat", "e f", "y", axis=-3)],
        (2, C, 6, 7),
        ["Conv"],
    ),
    "products": (
        [node("MatMul", "x m", "c"), node("MatMul", "x low", "d"), node("Concat", "c d", "y", axis=-1)],
        (2, 3, C),
        ["MatMul"],
    ),
    "Gemms": (
        [
            node("Gemm", "x m b", "c", transB=1),
            node("Gemm", "x m2 b2", "d", alpha=2.0),
            node("Concat", "c d", "y", axis=1),
        ],
        (3, C),
        ["Gemm"],
    ),
}


@pytest.mark.parametrize("case", STACKS)
def test_concatenated_operators_become_one(case: str) -> None:
    nodes, shape, expected = STACKS[case]
    fused, outcomes = fuse_cheaply(build(nodes, shape))
    assert operators(fused) == expected
    assert merges(outcomes)


OTHER = node("Sigmoid", "x", "z")

# No two operators of these become one.
STAYS: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "branches of different values": ([OTHER, conv("x w", "c", **SAME), conv("z v", "d"), node("Add", "c d", "y")], "y"),
    "values of equal content": (
        [OTHER, node("Sigmoid", "x", "a"), conv("a w", "c", **SAME), conv("z v", "d"), node("Add", "c d", "y")],
        "y",
    ),
    "a second use": ([*BOTH, node("Add", "c d", "y"), node("Relu", "d", "z")], "y z"),
    "a second use of the host": ([*BOTH, node("Add", "c d", "y"), node("Relu", "c", "z")], "y z"),
    "a second use of an inner sum": (
        [OTHER, *BOTH, node("Add", "c z", "e"), node("Add", "e d", "y"), node("Relu", "e", "f")],
        "y f",
    ),
    "a branch that leaves the graph": ([*BOTH, node("Add", "c d", "y")], "y d"),
    "a convolution added to itself": ([conv("x w", "c", **SAME), node("Add", "c c", "y")], "y"),
    "a nonlinear operator between": ([*BOTH, node("Relu", "d", "e"), node("Add", "c e", "y")], "y"),
    "one channel that is broadcast": (
        [conv("x w", "c", **SAME), conv("x one", "d", **SAME), node("Add", "c d", "y")],
        "y",
    ),
    "a stride of its own": (
        [conv("x w", "c", strides=[1, 1], **SAME), conv("x v", "d", strides=[6, 7]), node("Add", "c d", "y")],
        "y",
    ),
    "a pad that shifts": (
        [conv("x w", "c", pads=[0, 0, 2, 2]), conv("x even", "d", pads=[1, 1, 0, 0]), node("Add", "c d", "y")],
        "y",
    ),
    "a window across another": (
        [
            conv("x row", "c", pads=[0, 1, 0, 1]),
            node("AveragePool", "x", "d", kernel_shape=[3, 1], pads=[1, 0, 1, 0], count_include_pad=1),
            node("Add", "c d", "y"),
        ],
        "y",
    ),
    "a border of reflections": (
        [
            node("Pad", "x pads", "a", mode="reflect"),
            conv("a w", "c"),
            conv("x v", "d"),
            node("Add", "c d", "y"),
        ],
        "y",
    ),
    "an average that counts data alone": (
        [conv("x w", "c", **SAME), node("AveragePool", "x", "e", **CENTRED), node("Add", "c e", "y")],
        "y",
    ),
    "an average that rounds up": (
        [
            conv("x even", "c", strides=[2, 2], pads=[0, 0, 0, 1]),
            node("AveragePool", "x", "e", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
            node("Add", "c e", "y"),
        ],
        "y",
    ),
    "dense beside depthwise": ([conv("x dw", "c", group=C, **SAME), conv("x v", "d"), node("Add", "c d", "y")], "y"),
    "same padding that depends on the size": (
        [
            conv("x w", "c", auto_pad="SAME_UPPER", strides=[2, 2]),
            conv("x v", "d", strides=[2, 2]),
            node("Add", "c d", "y"),
        ],
        "y",
    ),
    "a chain with a border between": ([conv("x v b", "c"), conv("c w", "y", **SAME)], "y"),
    "a chain that would cost more": ([conv("x thin", "c"), conv("c wide", "y", **SAME)], "y"),
    "two windows in a row": ([conv("x w", "c"), conv("c w2", "y")], "y"),
    "depthwise, then a point": ([conv("x dw", "c", group=C, **SAME), conv("c v", "y")], "y"),
    "a chain whose middle leaves the graph": ([conv("x w", "c", **SAME), conv("c v", "y")], "y c"),
    "a chain whose middle is read twice": ([conv("x w", "c", **SAME), conv("c v", "y"), node("Relu", "c", "z")], "y z"),
    "a concatenation along another axis": ([*BOTH, node("Concat", "c d", "y", axis=2)], "y"),
    "a concatenation of different windows": ([*BOTH, node("Concat", "c d", "y", axis=1)], "y"),
    "a concatenation of one value twice": ([conv("x w", "c", **SAME), node("Concat", "c c", "y", axis=1)], "y"),
    "a concatenation with something else": (
        [*BOTH[:1], conv("x w2", "d", **SAME), node("Concat", "c d x", "y", axis=1)],
        "y",
    ),
    "a concatenation of branches of different values": (
        [OTHER, *BOTH[:1], conv("z w2", "d", **SAME), node("Concat", "c d", "y", axis=1)],
        "y",
    ),
    "a concatenation of grouped convolutions": (
        [conv("x gw", "c", group=2, **SAME), conv("x dw", "d", group=C, **SAME), node("Concat", "c d", "y", axis=1)],
        "y",
    ),
    "two operators that share a weight": ([conv("x v", "c"), conv("c v", "y")], "y"),
}
CONSTANTS["pads"] = np.asarray([0, 0, 1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("case", STAYS)
def test_what_does_not_become_one(case: str) -> None:
    nodes, outputs = STAYS[case]
    proto = build(nodes, outputs=outputs)
    fused, outcomes = fuse(proto)
    assert not merges(outcomes)
    assert operators(fused) == operators(proto)


def test_a_shift_before_padding_does_not_merge() -> None:
    nodes = [norm("x", "a", "p_"), conv("a w", "c", **SAME), conv("x v", "d"), node("Add", "c d", "y")]
    fused, outcomes = fuse(build(nodes))
    assert isinstance(outcomes[0], Refusal)
    assert operators(fused) == operators(build(nodes))


def test_an_inner_sum_merges_where_the_whole_tree_does_not() -> None:
    nodes = [OTHER, *BOTH, node("Add", "c d", "e"), node("Add", "e x", "f"), node("Add", "z f", "y")]
    fused, _ = fuse_cheaply(build(nodes))
    assert operators(fused) == ["Sigmoid", "Conv", "Add"]


# Only some operands of a sum become one; what is left of each graph.
PARTS: dict[str, tuple[list[onnx.NodeProto], list[str]]] = {
    "one after the other": (
        [OTHER, *BOTH, norm("x", "n", "p_"), node("Add", "z c", "e"), node("Add", "e d", "f"), node("Add", "f n", "y")],
        ["Sigmoid", "Conv", "Add"],
    ),
    "taken away": ([OTHER, *BOTH, node("Sub", "z c", "e"), node("Sub", "e d", "y")], ["Sigmoid", "Conv", "Sub"]),
    "with other signs": (
        [
            OTHER,
            node("Tanh", "x", "u"),
            *BOTH,
            node("Sub", "c z", "e"),
            node("Sub", "u d", "f"),
            node("Sub", "e f", "y"),
        ],
        ["Sigmoid", "Tanh", "Conv", "Sub", "Sub"],
    ),
    "an addition of which nothing is left": (
        [OTHER, *BOTH, norm("x", "n", "p_"), node("Add", "d n", "e"), node("Add", "z c", "f"), node("Add", "e f", "y")],
        ["Sigmoid", "Conv", "Add"],
    ),
    "branches of two values": (
        [
            OTHER,
            *BOTH,
            conv("z w2", "e", **SAME),
            norm("z", "n", "p_"),
            node("Add", "c e", "f"),
            node("Add", "f n", "g"),
            node("Add", "g d", "y"),
        ],
        ["Sigmoid", "Conv", "Conv", "Add"],
    ),
    "dense beside depthwise, and an identity for either": (
        [
            conv("x dw", "c", group=C, **SAME),
            conv("x v", "d"),
            norm("x", "n", "p_"),
            node("Add", "c d", "e"),
            node("Add", "e n", "y"),
        ],
        ["Conv", "Conv", "Add"],
    ),
    "a sum of many of which one is left": (
        [
            OTHER,
            *BOTH,
            norm("d", "n", "p_"),
            node("Sum", "n c x", "e"),
            node("Add", "z e", "f"),
            node("Add", "f x", "y"),
        ],
        ["Sigmoid", "Conv", "Add"],
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_some_operands_of_a_sum_become_one(case: str) -> None:
    nodes, expected = PARTS[case]
    for shape in [(2, C, 6, 7), ("n", C, 6, 7)]:
        fused, outcomes = fuse_cheaply(build(nodes, shape))
        assert operators(fused) == expected
        assert not any(isinstance(each, Refusal) for each in outcomes)
        through = {name for each in merges(outcomes) for name in each.through}
        assert {each.name for each in nodes} >= through
        assert not through & {each.name for each in fused.graph.node}


PARTS_THAT_STAY: dict[str, tuple[list[onnx.NodeProto], Sequence[int | str]]] = {
    "what would be left is negative": (
        [OTHER, *BOTH, node("Sub", "d z", "e"), node("Add", "c e", "y")],
        (2, C, 6, 7),
    ),
    "sizes that are not known may be broadcast": (
        [OTHER, *BOTH, node("Add", "z c", "e"), node("Add", "e d", "y")],
        ("n", C, "h", "w"),
    ),
    "an operand that is broadcast": (
        [node("GlobalAveragePool", "x", "z"), *BOTH, node("Add", "z c", "e"), node("Add", "e d", "y")],
        (2, C, 6, 7),
    ),
}


@pytest.mark.parametrize("case", PARTS_THAT_STAY)
def test_parts_that_stay(case: str) -> None:
    nodes, shape = PARTS_THAT_STAY[case]
    fused, outcomes = fuse(build(nodes, shape))
    assert not merges(outcomes)
    assert len(fused.graph.node) == len(nodes)


def test_the_values_that_change_in_a_part_are_renamed() -> None:
    """A value keeps its name only where it keeps its content: `fuse` compares all that do."""
    nodes = [
        OTHER,
        node("Tanh", "x", "u"),
        *BOTH,
        node("Add", "z c", "e"),
        node("Add", "e u", "f"),
        node("Add", "f d", "y"),
    ]
    fused, _ = fuse_cheaply(build(nodes))
    made = {name for each in fused.graph.node for name in each.output}
    assert "y" in made
    assert not {"c", "d", "e", "f"} & made


def test_a_shared_weight_is_copied_on_write() -> None:
    """One weight in two blocks with a BatchNorm each, and in a third operator that keeps it."""
    nodes = [
        *BOTH,
        norm("c", "e", "p_"),
        node("Add", "e d", "f"),
        node("Relu", "f", "g"),
        conv("g w", "h", **SAME),
        norm("h", "i", "q_"),
        norm("g", "j", "rr_"),
        node("Add", "i j", "k"),
        node("Relu", "k", "l"),
        conv("l w", "y", **SAME),
    ]
    fused, outcomes = fuse(build(nodes))
    assert operators(fused) == ["Conv", "Relu", "Conv", "Relu", "Conv"]
    assert "w" in {each.name for each in fused.graph.initializer}
    assert len(merges(outcomes)) == 2
    assert cost(fused)[0] <= cost(build(nodes))[0]


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize("operands", ["c x", "x c"])
def test_a_shared_weight_is_not_copied_to_save_an_addition(op: str, operands: str) -> None:
    nodes = [conv("x w", "c", **SAME), node(op, operands, "e"), node("Relu", "e", "g"), conv("g w", "y", **SAME)]
    fused, outcomes = fuse(build(nodes))
    assert not merges(outcomes)
    assert operators(fused) == operators(build(nodes))


@pytest.mark.parametrize("opset", [6, 7, 9, 12, 18])
def test_opsets(opset: int) -> None:
    nodes = [*BOTH, norm("x", "n", "p_"), node("Add", "c d", "e"), node("Add", "e n", "y")]
    if opset < 7:
        nodes[2].attribute.append(helper.make_attribute("is_test", 1))
    proto = build(nodes, opset=opset, ir_version=3 if opset < 9 else 8)
    fused, _ = bnfold.fuse(proto, return_outcomes=True)
    assert operators(fused) == ["Conv"]
    if opset >= 7:
        fuse(proto)


@pytest.mark.parametrize("options", [{"skip": ["*_n"]}, {"only": ["*_last"]}])
def test_a_batchnorm_that_is_not_selected_stays(options: dict[str, Any]) -> None:
    nodes = [
        conv("x w", "c", **SAME),
        norm("x", "n", "p_"),
        node("Add", "c n", "e"),
        norm("e", "last", "q_"),
        node("Relu", "last", "y"),
    ]
    fused = bnfold.fuse(build(nodes), **options)
    assert "BatchNormalization_n" in {each.name for each in fused.graph.node}


def test_only_merges_what_a_selected_batchnorm_needs() -> None:
    nodes = [
        *BOTH,
        node("Add", "c d", "e"),
        node("Relu", "e", "f"),
        conv("f w2", "g", **SAME),
        norm("f", "n", "p_"),
        node("Add", "g n", "y"),
    ]
    fused = bnfold.fuse(build(nodes), only=["*_n"])
    assert operators(fused) == ["Conv", "Conv", "Add", "Relu", "Conv"]


def test_a_weight_that_a_caller_may_replace_does_not_merge() -> None:
    proto = build([*BOTH, node("Add", "c d", "y")], overridable=["v"])
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert not merges(outcomes)
    assert operators(fused) == operators(proto)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16], ids=["float16", "float32", "bfloat16"])
def test_a_sum_is_rounded_once(dtype: Any) -> None:
    """The written weight is the nearest to the exact sum of three weights times their scales."""
    arrays = {name: CONSTANTS[name].astype(dtype) for name in ("w", "w2", "v")}
    stats = {name: array.astype(dtype) for name, array in {**statistics(C, "p_"), **statistics(C, "q_")}.items()}
    nodes = [*BOTH, conv("x w2", "e", **SAME), norm("c", "f", "p_"), norm("x", "g", "q_"), node("Sum", "d e f g", "y")]
    fused = bnfold.fuse(model(nodes, {**arrays, **stats}, (2, C, 6, 6), dtype=dtype))
    wide = {name: array.astype(np.float64) for name, array in {**arrays, **stats}.items()}
    eps = float(np.float32(1e-5))
    one, two = (wide[f"{k}gamma"] / np.sqrt(wide[f"{k}var"] + eps) for k in ("p_", "q_"))
    exact = wide["w"] * one.reshape(-1, 1, 1, 1) + wide["w2"]
    exact[:, :, 1, 1] += wide["v"][:, :, 0, 0] + np.diag(two)
    stored = {each.name: each for each in fused.graph.initializer}
    kernel = numpy_helper.to_array(stored[fused.graph.node[0].input[1]])
    assert kernel.dtype == dtype
    spacing = float(ml_dtypes.finfo(dtype).eps)
    assert np.all(np.abs(kernel.astype(np.float64) - exact) <= 0.5000001 * spacing * np.maximum(np.abs(exact), 2**-14))


def test_a_sum_that_would_overflow_is_barred_and_the_rest_folds() -> None:
    large = np.full((C, C, 1, 1), 4e4, np.float16)
    stats = {name: array.astype(np.float16) for name, array in statistics(C, "p_").items()}
    stats["p_gamma"], stats["p_var"] = np.ones(C, np.float16), np.ones(C, np.float16)
    nodes = [conv("x a", "c"), conv("x b", "d"), norm("c", "n", "p_"), node("Add", "n d", "y")]
    proto = model(nodes, {"a": large, "b": large, **stats}, (1, C, 2, 2), dtype=np.float16)
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert operators(fused) == ["Conv", "Conv", "Add"]
    assert not merges(outcomes)
    (found,) = outcomes
    assert isinstance(found, Fold)
    assert found.direction == "upstream"


def test_quantised_branches_stay() -> None:
    scales = {"scale": np.full(C, 0.1, np.float32), "zero": np.zeros(C, np.int8)}
    integers = np.random.default_rng(0).integers(-9, 9, (C, C, 3, 3)).astype(np.int8)
    nodes = [
        node("DequantizeLinear", "q scale zero", "w", axis=0),
        conv("x w", "c", **SAME),
        node("Add", "c x", "y"),
    ]
    fused, outcomes = bnfold.fuse(
        model(nodes, {"q": integers, **scales}, (2, C, 5, 5), dtype=np.float32), return_outcomes=True
    )
    assert operators(fused) == ["DequantizeLinear", "Conv", "Add"]
    assert not merges(outcomes)


def test_branches_in_the_body_of_an_if() -> None:
    kind = TensorProto.DOUBLE
    nodes = [*BOTH, norm("x", "n", "p_"), node("Sum", "c d n", "out")]
    constants = {name: CONSTANTS[name] for name in ("w", "v", "p_gamma", "p_beta", "p_mean", "p_var")}
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    end = [helper.make_tensor_value_info("out", kind, (2, C, 6, 6))]
    then = helper.make_graph(nodes, "then", [], end, initializers)
    otherwise = helper.make_graph([node("Neg", "x", "out")], "else", [], end)
    flow = helper.make_node("If", ["yes"], ["y"], name="If", then_branch=then, else_branch=otherwise)
    fused, outcomes = fuse(model([flow], {"yes": np.asarray(True)}, (2, C, 6, 6)))
    (body,) = [each.g for each in fused.graph.node[0].attribute if each.name == "then_branch"]
    assert [each.op_type for each in body.node] == ["Conv"]
    assert [each.scope for each in outcomes] == ["main/If/then_branch"] * 2


def test_a_branch_across_a_scope_stays() -> None:
    kind = TensorProto.DOUBLE
    end = [helper.make_tensor_value_info("out", kind, (2, C, 6, 6))]
    then = helper.make_graph([conv("x v", "d"), node("Add", "c d", "out")], "then", [], end)
    otherwise = helper.make_graph([node("Neg", "x", "out")], "else", [], end)
    flow = helper.make_node("If", ["yes"], ["y"], name="If", then_branch=then, else_branch=otherwise)
    constants = {name: CONSTANTS[name] for name in ("w", "v")}
    _, outcomes = fuse(model([BOTH[0], flow], {"yes": np.asarray(True), **constants}, (2, C, 6, 6)))
    assert not merges(outcomes)


def test_a_chain_in_a_function() -> None:
    """A function holds no initializers: its weights are Constant nodes. (Sums stay: no types are known there.)"""
    names = ("w", "v", "p_gamma", "p_beta", "p_mean", "p_var")
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(CONSTANTS[name])) for name in names
    ]
    body = [*constants, conv("x w", "c", **SAME), norm("c", "n", "p_"), conv("n v", "y")]
    proto = calling(body)
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert [each.op_type for each in fused.functions[0].node if each.op_type != "Constant"] == ["Conv"]
    assert len(merges(outcomes)) == 1
    onnx.checker.check_model(fused)
    expected, actual = evaluate(proto)["y"], evaluate(fused)["y"]
    assert np.abs(expected - actual).max() <= 1e-12 * np.abs(expected).max()


def calling(body: Sequence[onnx.NodeProto], **attributes: Any) -> onnx.ModelProto:
    """A model that calls a function with this body."""
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Block", ["x"], ["y"], body, imports, attributes=list(attributes))
    info = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, (2, C, 6, 6)) for name in ("x", "y")]
    call = helper.make_node("Block", ["x"], ["y"], domain="own", **attributes)
    graph = helper.make_graph([call], "graph", info[:1], info[1:])
    opsets = [*imports, helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)


def test_attributes_that_a_caller_sets_keep_a_convolution_from_merging() -> None:
    """In a function, strides may be a reference to the caller's attribute; a BatchNorm still folds."""
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(CONSTANTS[name]))
        for name in ("w", "v", "p_gamma", "p_beta", "p_mean", "p_var")
    ]
    strided = conv("x w", "c", **SAME)
    strided.attribute.append(onnx.AttributeProto(name="strides", type=onnx.AttributeProto.INTS, ref_attr_name="steps"))
    body = [*constants, strided, norm("c", "n", "p_"), conv("n v", "y")]
    proto = calling(body, steps=[1, 1])
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    left = [each.op_type for each in fused.functions[0].node if each.op_type != "Constant"]
    assert left == ["Conv", "Conv"]
    assert isinstance(outcomes[0], Fold)


def test_a_long_chain_of_additions_is_read_in_reasonable_time() -> None:
    """More operands than one tree may have, each of which nothing else reads; none merges, and none is lost."""
    nodes = [conv("x v", "s0")]
    for k in range(300):
        nodes.append(node("Sigmoid", "x", f"g{k}"))
        nodes.append(node("Add", f"s{k} g{k}", f"s{k + 1}" if k < 299 else "y"))
    fused, outcomes = fuse(build(nodes, (1, C, 2, 2)))
    assert outcomes == ()
    assert len(fused.graph.node) == len(nodes)


BY_ROWS = ["RepVGG", "layer scale inside", "depthwise in a grouped host", "a chain on a branch", "an unpadded average"]


@pytest.mark.parametrize("case", BY_ROWS)
def test_a_merged_kernel_is_the_same_in_blocks_of_any_size(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bnfold.fuse(build(MERGE[case]))
    read: list[slice] = []
    kernel_rows = terms.kernel_rows

    def spy(linear: Linear, load: terms.Load, rows: slice = terms.EVERY_ROW) -> np.ndarray:
        read.append(rows)
        return kernel_rows(linear, load, rows)

    monkeypatch.setattr(kernels, "ELEMENTS", 9)
    monkeypatch.setattr(terms, "kernel_rows", spy)
    assert bnfold.fuse(build(MERGE[case])).SerializeToString() == whole.SerializeToString()
    assert (terms.EVERY_ROW in read) == (case == "a chain on a branch")


SCALAR: dict[str, list[onnx.NodeProto]] = {
    "a number": [node("Add", "x two", "e")],
    "a constant that is read elsewhere": [node("Add", "x s", "e"), node("Mul", "x s", "z")],
    "a BatchNorm that shares its parameters": [OTHER, norm("x", "e", "p_"), norm("z", "q", "p_")],
}


@pytest.mark.parametrize("case", SCALAR)
def test_no_bias_is_made_of_parameters_that_stay_or_are_fewer(case: str) -> None:
    nodes = [conv("x w", "c", **SAME), *SCALAR[case], node("Add", "c e", "y")]
    read = {name for each in nodes for name in each.input}
    outputs = " ".join(each.output[0] for each in nodes if each.output[0] not in read)
    _, outcomes = fuse_cheaply(build(nodes, outputs=outputs))
    assert not merges(outcomes)


MEASURED: dict[str, list[onnx.NodeProto]] = {
    "the first of a stack": [conv("x v", "c"), conv("x v2", "d"), node("Concat", "c d", "y", axis=1)],
    "the second of a stack": [conv("x v", "d"), conv("x v2", "c"), node("Concat", "d c", "y", axis=1)],
    "one behind a BatchNorm": [
        conv("x v", "n"), norm("n", "c", "p_"), conv("x v2", "d"), node("Concat", "c d", "y", axis=1)
    ],
    "the inner one of a chain": [conv("x w", "c", **SAME), conv("c thin", "y")],
    "an addend": [conv("x w", "d", **SAME), conv("x v", "c"), node("Add", "d c", "y")],
}  # fmt: skip


@pytest.mark.parametrize("case", MEASURED)
def test_a_value_whose_shape_is_read_keeps_its_shape(case: str) -> None:
    proto = build([*MEASURED[case], node("Shape", "c", "k"), node("Cast", "k", "z", to=11)], outputs="y z")
    _, outcomes = fuse(proto)
    assert not merges(outcomes)


def test_a_merged_kernel_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ELEMENTS", 1 << 15)
    channels = 640
    weights = {name: random(channels, channels, 3, 3, seed=seed, dtype=np.float32) for seed, name in enumerate("wv")}
    nodes = [conv("x w", "c", **SAME), conv("x v", "d", **SAME), node("Add", "c d", "y")]
    proto = model(nodes, weights, (1, channels, 3, 3), dtype=np.float32)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    del proto, weights
    tracemalloc.start()
    result = api.fuse_file(tmp_path / "m.onnx", tmp_path / "out.onnx", verify=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert merges(result.outcomes)
    assert peak < channels**2 * 9 * 4 / 2
