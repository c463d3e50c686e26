"""ONNX graphs whose linear operators become one; none costs more than before."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

import bnfold
from bnfold import Fold, Merge, Refusal
from tests.toys.onnx_branches import BOTH, CONSTANTS, MERGE, SAME, C, build, conv, cost, fuse_cheaply, merges
from tests.toys.onnx_graphs import fuse, model, node, norm, operators, random


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


@pytest.mark.parametrize(
    "window", [{"strides": [2, 2], **SAME}, {"strides": [3, 1], **SAME}, {}], ids=["strides", "a stride", "no padding"]
)
@pytest.mark.parametrize("sums", [["z c e", "e d y"], ["c d e", "e z y"], ["z c e", "d z f", "e f y"]], ids="_".join)
def test_branches_merge_beside_another_operand(window: dict[str, Any], sums: list[str]) -> None:
    """The other operand has the sizes of what is added to it, not those of what the branches read."""
    rest = [conv("x w3", "a", **window), node("Sigmoid", "a", "z")]
    both = [conv("x w", "c", **window), conv("x w2 b", "d", **window)]
    model = build([*rest, *both, *(node("Add", each[:3], each[-1]) for each in sums)], (1, C, 20, 19))
    fused, outcomes = fuse_cheaply(model)
    assert operators(fused).count("Conv") == 2
    assert merges(outcomes)


@pytest.mark.parametrize("shape", [(1, C, 20, 20), (C, 1, 1)], ids=str)
@pytest.mark.parametrize("sums", [["k c e", "e d y"], ["c d e", "e k y"]], ids="_".join)
def test_branches_merge_beside_a_constant(shape: tuple[int, ...], sums: list[str]) -> None:
    """It may be another number at each place of an image, as where positions are added."""
    nodes = [conv("x w", "c", strides=[2, 2], **SAME), conv("x w2 b", "d", strides=[2, 2], **SAME)]
    nodes += [node("Add", each[:3], each[-1]) for each in sums]
    constants = {name: CONSTANTS[name] for name in ("w", "w2", "b")} | {"k": random(*shape)}
    fused, outcomes = fuse_cheaply(model(nodes, constants, (1, C, 40, 40)))
    assert operators(fused).count("Conv") == 1
    assert merges(outcomes)


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


def test_an_operator_that_absorbs_two_chains_names_both() -> None:
    nodes = [conv("x narrow", "c"), conv("c dv", "d"), conv("d narrow2", "y")]
    fused, outcomes = fuse_cheaply(build(nodes))
    assert operators(fused) == ["Conv"]
    assert {branch for merge in merges(outcomes) for branch in merge.branches} == {"Conv_c", "Conv_d"}


def test_a_long_chain_of_additions_is_read_in_reasonable_time() -> None:
    """More operands than one tree may have, each of which nothing else reads; none merges, and none is lost."""
    nodes = [conv("x v", "s0")]
    for k in range(300):
        nodes.append(node("Sigmoid", "x", f"g{k}"))
        nodes.append(node("Add", f"s{k} g{k}", f"s{k + 1}" if k < 299 else "y"))
    fused, outcomes = fuse(build(nodes, (1, C, 2, 2)))
    assert outcomes == ()
    assert len(fused.graph.node) == len(nodes)


def test_a_variance_that_moves_frees_the_bias_that_it_was_too() -> None:
    """A second fold would see that the bias is read once, and merge the chain."""
    nodes = [node("Mul", "x two", "a"), norm("a", "n", "p_"), node("Relu", "n", "r")]
    fused, outcomes = fuse_cheaply(build([*nodes, conv("r v", "c"), conv("c v2 p_var", "y")]))
    assert merges(outcomes)
    assert operators(fused) == ["BatchNormalization", "Relu", "Conv"]
    assert not merges(bnfold.fuse(fused, return_outcomes=True)[1])
