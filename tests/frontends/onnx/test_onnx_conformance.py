"""Toy graphs: each with the outcome that it must have, checked in float64 against the original.

Operators that carry are tested alone and in pairs, of which some are drawn. Set BNFOLD_EXAMPLES to draw more.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold import Fold, Outcome, Reason, Refusal
from bnfold.algebra.affine import Grid
from bnfold.api import certify
from bnfold.proof.certificate import Certificate, Relation
from bnfold.proof.checker import check_proof
from bnfold.proof.models import Files, digest
from tests.toys.onnx_graphs import evaluate, fuse, model, node, norm, operators, random, statistics

I64 = np.int64
EXAMPLES = int(os.environ.get("BNFOLD_EXAMPLES", "500"))


def sole(outcomes: tuple[Outcome, ...]) -> Outcome:
    """The outcome of the only BatchNorm."""
    (found,) = [each for each in outcomes if isinstance(each, Refusal) or each.is_batchnorm]
    return found


def assert_folds(proto: onnx.ModelProto, direction: str, through: list[str] | None = None) -> onnx.ModelProto:
    fused, outcomes = fuse(proto)
    found = sole(outcomes)
    assert isinstance(found, Fold), found
    assert found.direction == direction
    assert "BatchNormalization" not in operators(fused)
    if through is not None:
        assert [name.rpartition("_")[0] for name in found.through] == through
    return fused


def assert_stays(proto: onnx.ModelProto, reason: Reason) -> None:
    fused, outcomes = fuse(proto)
    found = sole(outcomes)
    assert isinstance(found, Refusal), found
    assert found.reason is reason, found
    assert operators(fused) == operators(proto)


# Linear operators in front of a BatchNorm

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 4, 9), (6, 4, 3), {}),
    "2d": ((2, 4, 9, 8), (6, 4, 3, 2), {}),
    "3d": ((2, 4, 5, 5, 5), (6, 4, 2, 2, 2), {}),
    "groups": ((2, 4, 9, 9), (6, 2, 3, 3), {"group": 2}),
    "depthwise": ((2, 4, 9, 9), (4, 1, 3, 3), {"group": 4}),
    "depthwise with multiplier": ((2, 4, 9, 9), (8, 1, 3, 3), {"group": 4}),
    "dilation": ((2, 4, 9, 9), (6, 4, 3, 3), {"dilations": [2, 1]}),
    "strides and pads": ((2, 4, 9, 9), (6, 4, 3, 3), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "same upper": ((2, 4, 9, 9), (6, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((2, 4, 9, 9), (6, 4, 3, 3), {"auto_pad": "SAME_LOWER"}),
    "valid": ((2, 4, 9, 9), (6, 4, 3, 3), {"auto_pad": "VALID"}),
    "one channel": ((2, 1, 9, 9), (1, 1, 3, 3), {}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("bias", ["", " b", " _"], ids=["no bias", "bias", "empty bias"])
def test_convolution(case: str, bias: str) -> None:
    data, kernel, attributes = CONVOLUTIONS[case]
    constants = {"w": random(*kernel), **statistics(kernel[0])} | ({"b": random(kernel[0])} if "b" in bias else {})
    nodes = [node("Conv", f"x w{bias}", "c", **attributes), norm("c", "y")]
    fused = assert_folds(model(nodes, constants, data), "upstream", [])
    assert [each.name for each in fused.graph.node] == ["Conv_c"]


@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 2], "output_padding": [1, 0]}, {"pads": [1, 0, 0, 1]}])
def test_transposed_convolution(attributes: dict[str, Any]) -> None:
    nodes = [node("ConvTranspose", "x w", "c", **attributes), norm("c", "y")]
    assert_folds(model(nodes, {"w": random(4, 3, 2, 2), **statistics(3)}, (2, 4, 5, 5)), "upstream", [])


@pytest.mark.parametrize("attributes", [{}, {"strides": [1, 1]}, {"auto_pad": "VALID"}], ids=str)
def test_a_transposed_convolution_of_one_tap_takes_a_shift(attributes: dict[str, Any]) -> None:
    nodes = [norm("x", "n"), node("ConvTranspose", "n w", "y", **attributes)]
    assert_folds(model(nodes, {"w": random(4, 3, 1, 1), **statistics(4)}, (2, 4, 5, 5)), "downstream", [])


@pytest.mark.parametrize(
    "attributes",
    [{"strides": [2, 1]}, {"pads": [0, 0, 1, 0]}, {"strides": [2, 2], "output_padding": [1, 0]},
     {"output_shape": [6, 6]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}],
    ids=str,
)  # fmt: skip
def test_a_transposed_convolution_of_one_tap_beside_empty_places_takes_no_shift(attributes: dict[str, Any]) -> None:
    nodes = [norm("x", "n"), node("ConvTranspose", "n w", "y", **attributes)]
    proto = model(nodes, {"w": random(4, 3, 1, 1), **statistics(4)}, (2, 4, 5, 5))
    (outcome,) = bnfold.plan(proto)
    assert isinstance(outcome, Refusal)


@pytest.mark.parametrize("operands", ["", " b", " b m", " _ m"], ids=["no bias", "bias", "bias and mask", "mask"])
def test_deformable_convolution(operands: str) -> None:
    offsets = {"o": random(2, 8, 4, 4), "m": random(2, 4, 4, 4), "b": random(6)}
    constants = {"w": random(6, 4, 2, 2), **offsets, **statistics(6)}
    nodes = [node("DeformConv", f"x w o{operands}", "c", kernel_shape=[2, 2]), norm("c", "y")]
    assert_folds(model(nodes, constants, (2, 4, 5, 5), opset=19, ir_version=9), "upstream", [])


def test_a_deformable_convolution_takes_a_scale_of_its_data_and_no_shift() -> None:
    constants = {"w": random(6, 4, 2, 2), "o": random(2, 8, 4, 4), **statistics(4)}
    nodes = [norm("x", "n"), node("DeformConv", "n w o", "y", kernel_shape=[2, 2])]
    shape, options = (2, 4, 5, 5), {"opset": 19, "ir_version": 9}
    assert_stays(model(nodes, constants, shape, **options), Reason.GRAPH_INPUT)
    constants["beta"] = np.zeros(4)
    constants["mean"] = np.zeros(4)
    assert_folds(model(nodes, constants, shape, **options), "downstream", [])


def test_the_offsets_of_a_deformable_convolution_are_no_data() -> None:
    nodes = [node("Conv", "x v", "c"), norm("c", "o"), node("DeformConv", "x w o", "y", kernel_shape=[2, 2])]
    constants = {"v": random(8, 4, 2, 2), "w": random(6, 4, 2, 2), **statistics(8)}
    assert_folds(model(nodes, constants, (2, 4, 5, 5), opset=19, ir_version=9), "upstream", [])
    nodes = [norm("x", "n"), node("DeformConv", "x w n", "y", kernel_shape=[1, 1])]
    constants = {"w": random(6, 2, 1, 1), **statistics(2)}
    assert_stays(model(nodes, constants, (2, 2, 5, 5), opset=19, ir_version=9), Reason.GRAPH_INPUT)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("c", [None, (1,), (3,), (1, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("factors", [{}, {"alpha": 0.5, "beta": 3.0}], ids=["plain", "alpha and beta"])
def test_gemm(transposed: int, c: tuple[int, ...] | None, factors: dict[str, float]) -> None:
    constants = {"w": random(3, 5) if transposed else random(5, 3), **statistics(3)}
    constants |= {} if c is None else {"c": random(*c)}
    nodes = [node("Gemm", "x w" + ("" if c is None else " c"), "g", transB=transposed, **factors), norm("g", "y")]
    assert_folds(model(nodes, constants, (4, 5)), "upstream", [])


def test_gemm_with_transposed_data() -> None:
    nodes = [node("Gemm", "x w", "g", transA=1), norm("g", "y")]
    assert_folds(model(nodes, {"w": random(5, 3), **statistics(3)}, (5, 4)), "upstream", [])


@pytest.mark.parametrize("c", [(4, 1), (4, 3)], ids=str)
@pytest.mark.parametrize("factors", [{}, {"alpha": 0.5, "beta": 3.0}], ids=["plain", "alpha and beta"])
def test_gemm_with_a_c_for_each_row(c: tuple[int, ...], factors: dict[str, float]) -> None:
    """Each row of C takes in the map of the channels."""
    nodes = [node("Gemm", "x w c", "g", **factors), norm("g", "y")]
    assert_folds(model(nodes, {"w": random(5, 3), "c": random(*c), **statistics(3)}, (4, 5)), "upstream", [])
    nodes = [norm("x", "n"), node("Gemm", "n w c", "y", **factors)]
    assert_folds(model(nodes, {"w": random(5, 3), "c": random(*c), **statistics(5)}, (4, 5)), "downstream", [])


def test_one_wrong_entry_of_such_a_c_is_rejected() -> None:
    proto = model([node("Gemm", "x w c", "g"), norm("g", "y")], {"w": random(5, 3), "c": random(4, 1), **statistics(3)},
                  (4, 5))  # fmt: skip
    fused, certificate = certify(proto)
    assert check_proof(Files(proto), Files(fused), certificate).is_proved
    stored = next(each for each in fused.graph.initializer if each.name == fused.graph.node[0].input[2])
    wrong = numpy_helper.to_array(stored).copy()
    wrong[2, 1] *= 1 + 1e-12
    stored.CopyFrom(numpy_helper.from_array(wrong, stored.name))
    assert not check_proof(Files(proto), Files(fused), replace(certificate, result=digest(Files(fused)))).is_proved


def test_gemm_with_as_many_rows_as_channels() -> None:
    """C has as many entries as there are channels, and is none of them."""
    nodes = [node("Gemm", "x w c", "g"), norm("g", "y")]
    assert_folds(model(nodes, {"w": random(5, 3), "c": random(3, 1), **statistics(3)}, (3, 5)), "upstream", [])


def test_gemms_with_a_c_for_each_row_stay_apart() -> None:
    nodes = [node("Gemm", "x w c", "g"), node("Gemm", "x w2 c2", "h"), node("Add", "g h", "y")]
    constants = {"w": random(5, 3), "c": random(4, 1), "w2": random(5, 3, seed=1), "c2": random(3)}
    assert operators(fuse(model(nodes, constants, (4, 5)))[0]) == ["Gemm", "Gemm", "Add"]


def test_matmul_gets_a_bias() -> None:
    proto = model([node("MatMul", "x w", "m"), norm("m", "y")], {"w": random(5, 3), **statistics(3)}, (4, 5))
    assert operators(assert_folds(proto, "upstream", [])) == ["MatMul", "Add"]


@pytest.mark.parametrize("operands", ["m b", "b m"])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (1,), ()], ids=str)
def test_matmul_with_its_add(operands: str, shape: tuple[int, ...]) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", operands, "a"), norm("a", "y")]
    constants = {"w": random(5, 3), "b": random(*shape), **statistics(3)}
    assert operators(assert_folds(model(nodes, constants, (4, 5)), "upstream", [])) == ["MatMul", "Add"]


def test_matmul_with_the_constant_in_front() -> None:
    proto = model([node("MatMul", "w x", "m"), norm("m", "y")], {"w": random(3, 5), **statistics(3)}, (2, 5, 7))
    assert_folds(proto, "upstream", [])


EQUATIONS = {
    "last axis": ("nchi,io->ncho", (2, 3, 4, 5), (5, 6), 6, [0, 3, 1, 2]),
    "in front": ("oi,nihw->nohw", (2, 5, 4, 3), (6, 5), 6, None),
    "in the middle": ("nihw , io -> nohw", (2, 5, 4, 3), (5, 6), 6, None),
    "another order": ("nhwi,oi->nohw", (2, 4, 3, 5), (6, 5), 6, None),
}


@pytest.mark.parametrize("case", EQUATIONS)
def test_einsum_is_a_product(case: str) -> None:
    equation, shape, kernel, channels, order = EQUATIONS[case]
    operands = "w x" if case == "in front" else "x w"
    nodes = [node("Einsum", operands, "c", equation=equation), node("Transpose", "c", "d", perm=order or [0, 1, 2, 3])]
    proto = model([*nodes, norm("d", "y")], {"w": random(*kernel), **statistics(channels)}, shape)
    assert operators(assert_folds(proto, "upstream", ["Transpose"])) == ["Einsum", "Add", "Transpose"]


def test_einsum_takes_a_batchnorm_in_front() -> None:
    nodes = [norm("x", "n"), node("Einsum", "n w", "y", equation="nihw,io->nohw")]
    proto = model(nodes, {"w": random(5, 6), **statistics(5)}, (2, 5, 4, 3))
    assert operators(assert_folds(proto, "downstream", [])) == ["Einsum", "Add"]


@pytest.mark.parametrize(
    ("equation", "kernel"),
    [("nihw,io->now", (5, 6)), ("nihw,ih->nhw", (5, 4)), ("nchw,cc->nchw", (5, 5)), ("...i,io->...o", (3, 6)),
     ("nchw,c->nchw", (5,)), ("nchw,coh->nohw", (5, 6, 4))],
    ids=str,
)  # fmt: skip
def test_einsum_of_another_form_stays(equation: str, kernel: tuple[int, ...]) -> None:
    nodes = [norm("x", "n"), node("Einsum", "n w", "y", equation=equation)]
    (outcome,) = bnfold.plan(model(nodes, {"w": random(*kernel), **statistics(5)}, (2, 5, 4, 3)))
    assert isinstance(outcome, Refusal)
    assert "not a product" in outcome.detail


def test_matmul_along_the_last_axis_is_another_axis_than_one() -> None:
    proto = model([node("MatMul", "x w", "m"), norm("m", "y")], {"w": random(5, 5), **statistics(5)}, (2, 5, 5))
    assert_stays(proto, Reason.AXIS_MISMATCH)


# Constants that are read as data take in their part

POSITIONS = random(3, 5, 4)
MASK = np.array([[True, False, False, True]])

OPERANDS: dict[str, tuple[onnx.NodeProto, Any, list[str]]] = {
    "added": (node("Add", "c k", "d"), POSITIONS, ["Add"]),
    "added in front": (node("Add", "k c", "d"), POSITIONS, ["Add"]),
    "subtracted": (node("Sub", "c k", "d"), POSITIONS, ["Sub"]),
    "subtracted from": (node("Sub", "k c", "d"), POSITIONS, ["Sub"]),
    "added up": (node("Sum", "c k c", "d"), POSITIONS, ["Sum"]),
    "added to all of a batch": (node("Add", "c k", "d"), POSITIONS[None], ["Add"]),
    "a number, selected": (node("Where", "m k c", "d"), np.asarray(-7.0), ["Where"]),
    "a number with axes, selected": (node("Where", "m c k", "d"), np.asarray([[-7.0]]), ["Where"]),
    "channels, selected": (node("Where", "m c k", "d"), random(3, 1, 1), ["Where"]),
    "positions, selected": (node("Where", "m k c", "d"), POSITIONS, ["Where"]),
}


@pytest.mark.parametrize("case", OPERANDS)
@pytest.mark.parametrize("bias", ["", " b"], ids=["no bias", "bias"])
def test_constant_operand(case: str, bias: str) -> None:
    between, constant, through = OPERANDS[case]
    constants = {"w": random(3, 4, 1, 1), "b": random(3), "k": constant, "m": MASK, **statistics(3)}
    assert_folds(
        model([node("Conv", f"x w{bias}", "c"), between, norm("d", "y")], constants, (2, 4, 5, 4)), "upstream", through
    )


def test_constant_operand_of_a_product() -> None:
    """The shift goes into the constant that is there, and makes no bias."""
    constants = {"w": random(4, 3), "k": random(5, 3), "s": np.asarray([2.0, -1.0, 0.5]), "t": random(3)}
    nodes = [node("MatMul", "x w", "c"), node("Add", "c k", "d"), node("Add", "d t", "y")]
    assert operators(fuse(model(nodes, constants, (2, 5, 4)))[0]) == ["MatMul", "Add"]
    nodes = [*nodes[:2], node("Mul", "d s", "e"), node("Add", "e t", "y")]
    assert operators(fuse(model(nodes, constants, (2, 5, 4)))[0]) == ["MatMul", "Add"]


@pytest.mark.parametrize(
    ("constant", "reason"),
    [(POSITIONS[:1], Reason.MIXED_CHANNELS), (random(2, 1, 5, 4), Reason.MIXED_CHANNELS)],
    ids=["for all channels", "for each of a batch"],
)
def test_a_constant_that_would_grow_takes_nothing_in(constant: Any, reason: Reason) -> None:
    nodes = [node("Conv", "x w", "c"), node("Add", "c k", "d"), norm("d", "y")]
    assert_stays(model(nodes, {"w": random(3, 4, 1, 1), "k": constant, **statistics(3)}, (2, 4, 5, 4)), reason)


def test_a_constant_operand_that_something_else_reads_is_copied() -> None:
    nodes = [node("Conv", "x w", "c"), node("Add", "c k", "d"), norm("d", "y"), node("Identity", "k", "z")]
    constants = {"w": random(3, 4, 1, 1), "k": POSITIONS, **statistics(3)}
    assert isinstance(fuse(model(nodes, constants, (2, 4, 5, 4), outputs="y z"))[1][0], Fold)


def test_a_constant_operand_that_a_caller_may_replace_stays() -> None:
    nodes = [node("Conv", "x w", "c"), node("Add", "c k", "d"), norm("d", "y")]
    constants = {"w": random(3, 4, 1, 1), "k": POSITIONS, **statistics(3)}
    assert isinstance(sole(fuse(model(nodes, constants, (2, 4, 5, 4), overridable=["k"]))[1]), Refusal)


def test_two_affines_go_into_one_constant_operand() -> None:
    """The second one in front of which a sum would have merged, had its constant not changed."""
    nodes = [node("Conv", "x w", "c"), node("Add", "c k", "d"), norm("d", "e"), node("Conv", "x w", "f"),
             node("Add", "e f", "g"), norm("g", "y", "o_")]  # fmt: skip
    constants = {"w": random(3, 4, 1, 1), "k": POSITIONS, **statistics(3), **statistics(3, "o_")}
    fused = fuse(model(nodes, constants, (2, 4, 5, 4)))[0]
    assert "BatchNormalization" not in operators(fused)


def test_what_two_axes_want_of_a_constant_operand() -> None:
    nodes = [node("Conv", "x w", "c"), node("Add", "c k", "d"), norm("d", "e"),
             node("Transpose", "e", "f", perm=[0, 2, 1, 3]), norm("f", "y", "o_")]  # fmt: skip
    constants = {"w": random(3, 4, 1, 1), "k": POSITIONS, **statistics(3), **statistics(5, "o_")}
    assert isinstance(fuse(model(nodes, constants, (2, 4, 5, 4)))[1][1], Refusal)


@pytest.mark.parametrize(("axis", "order"), [(0, [0, 2, 1]), (1, [1, 0, 2])], ids=str)
def test_table(axis: int, order: list[int]) -> None:
    """An embedding, and a table of which columns are looked up."""
    proto = model(
        [node("Cast", "x", "i", to=TensorProto.INT64), node("Gather", "t i", "c", axis=axis),
         node("Transpose", "c", "d", perm=order), norm("d", "y")],
        {"t": random(7, 6) if axis == 0 else random(6, 7), **statistics(6)}, (2, 4),
    )  # fmt: skip
    fused = assert_folds(proto, "upstream", ["Transpose"])
    assert operators(fused) == ["Cast", "Gather", "Transpose"]


def test_computed_indices_and_two_computed_operands_have_no_advice() -> None:
    """An integer that depends on the data cannot be made an initializer."""
    nodes = [node("Cast", "x", "i", to=TensorProto.INT64), node("Flatten", "i", "j", axis=0),
             node("ReduceMax", "j", "k"), node("Conv", "x w", "c"), node("Gather", "c k", "d", axis=2),
             norm("d", "y")]  # fmt: skip
    proto = model(nodes, {"w": random(3, 4, 1, 1), **statistics(3)}, (2, 4, 5, 5))
    product = [node("MatMul", "x x", "c"), norm("c", "y")]
    for refused in (proto, model(product, statistics(4), (2, 4, 5, 5))):
        (outcome,) = bnfold.plan(refused)
        assert isinstance(outcome, Refusal)
        assert outcome.advice is None


def test_a_table_looked_up_along_the_channels_stays() -> None:
    nodes = [node("Cast", "x", "i", to=TensorProto.INT64), node("Gather", "t i", "c"), norm("c", "y")]
    assert_stays(model(nodes, {"t": random(7, 6), **statistics(4)}, (2, 4)), Reason.AXIS_MISMATCH)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_blocks_of_a_number_of_channels_that_is_not_known(mode: str) -> None:
    """The BatchNorm tells it."""
    nodes = [node("DepthToSpace", "x", "d", blocksize=2, mode=mode), norm("d", "e"),
             node("SpaceToDepth", "e", "f", blocksize=2), node("Conv", "f w", "y")]  # fmt: skip
    proto = model(nodes, {"w": random(2, 12, 1, 1), **statistics(3)}, (2, "C", 2, 2))
    fused, certificate = certify(proto)
    assert operators(fused) == ["DepthToSpace", "SpaceToDepth", "Conv"]
    assert check_proof(Files(proto), Files(fused), certificate).failures == ()
    expected, actual = (evaluate(each, {"C": 12})["y"] for each in (proto, fused))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


# Channels on several axes

GROUPS, UNGROUPED = np.array([0, 2, 3, 5, 4]), np.array([0, 6, 5, 4])


def shuffled(value: str, result: str) -> list[onnx.NodeProto]:
    """A channel shuffle in plain operators, as of two groups."""
    return [node("Reshape", f"{value} halves", f"{value}1"), node("Relu", f"{value}1", f"{value}2"),
            node("Transpose", f"{value}2", f"{value}3", perm=[0, 2, 1, 3, 4]),
            node("Reshape", f"{value}3 whole", result)]  # fmt: skip


def test_a_channel_shuffle_in_plain_operators() -> None:
    """Its channels lie on two axes on the way, and no affine along one axis is theirs."""
    shapes = {"halves": GROUPS, "whole": UNGROUPED}
    stats = {**statistics(6), "gamma": np.linspace(0.5, 2, 6), "beta": np.zeros(6), "mean": np.zeros(6)}
    for shape in ((2, 4, 5, 4), ("N", 4, 5, 4)):
        nodes = [node("Conv", "x w", "c"), *shuffled("c", "d"), norm("d", "y")]
        proto = model(nodes, {"w": random(6, 4, 1, 1), **shapes, **stats}, shape)
        through = ["Reshape", "Relu", "Transpose", "Reshape"]
        assert_folds(proto, "upstream", through)
        assert_proved(proto)
        nodes = [norm("x", "n"), *shuffled("n", "d"), node("Conv", "d w", "y")]
        proto = model(nodes, {"w": random(3, 6, 1, 1), **shapes, **stats}, (shape[0], 6, 5, 4))
        assert_folds(proto, "downstream", through)
        assert_proved(proto)


def test_batchnorms_along_both_axes_of_a_reshape() -> None:
    """What lies between changes along one axis, and then along another."""
    nodes = [node("Conv", "x w", "c"), node("Reshape", "c halves", "d"), norm("d", "e"),
             node("Transpose", "e", "f", perm=[0, 2, 1, 3, 4]), norm("f", "y", "o_")]  # fmt: skip
    constants = {"w": random(6, 4, 1, 1), "halves": GROUPS, **statistics(2), **statistics(3, "o_")}
    proto = model(nodes, constants, (2, 4, 5, 4))
    assert operators(fuse(proto)[0]) == ["Conv", "Reshape", "Transpose"]
    assert_proved(proto)


def assert_proved(proto: onnx.ModelProto) -> None:
    """That the folded model is proved, by a certificate that is read from its text; and no other is."""
    fused, certificate = certify(proto)
    assert check_proof(Files(proto), Files(fused), Certificate.from_json(certificate.to_json())).failures == ()
    grids = [(key, each) for key, each in certificate.relations.items() if isinstance(each.pulled or each.pushed, Grid)]
    assert grids
    for key, relation in grids:
        wrong = {
            name: each and replace(each, scale=np.roll(each.scale, 1))
            for name, each in (("pulled", relation.pulled), ("pushed", relation.pushed))
        }
        relations = {**certificate.relations, key: Relation(**wrong)}
        assert not check_proof(Files(proto), Files(fused), replace(certificate, relations=relations)).is_proved


def test_what_joins_one_of_several_axes_stays() -> None:
    """A Concat of halves gives each half of the channels to two places; that is exact, and no rule of a Concat yet."""
    nodes = [norm("x", "n"), node("Reshape", "n halves", "h"), node("Concat", "h h", "i", axis=2),
             node("Reshape", "i whole", "j"), node("Conv", "j w", "y")]  # fmt: skip
    constants = {"w": random(3, 12, 1, 1), "halves": GROUPS, "whole": np.array([0, 12, 5, 4]), **statistics(6)}
    fused, (outcome,) = fuse(model(nodes, constants, (2, 6, 5, 4)))
    assert isinstance(outcome, Refusal)
    assert "several axes" in outcome.detail
    assert operators(fused)[0] == "BatchNormalization"


OPEN = {
    "batch": ("N", 4, 6, 4),
    "batch and space": ("N", 4, "H", "W"),
}


@pytest.mark.parametrize("shape", OPEN.values(), ids=OPEN)
def test_sizes_that_are_computed_behind_the_channels(shape: tuple[Any, ...]) -> None:
    """``flatten(2)`` as TorchScript writes it: as many elements lie in front of the channels as before."""
    nodes = [node("Conv", "x w", "c"), node("Shape", "c", "s"), node("Slice", "s from to", "front"),
             node("Concat", "front rest", "target", axis=0), node("Reshape", "c target", "r"),
             norm("r", "y")]  # fmt: skip
    constants = {"w": random(3, 4, 1, 1), "from": np.array([0]), "to": np.array([2]), "rest": np.array([-1])}
    proto = model(nodes, constants | statistics(3), shape)
    assert_folds(proto, "upstream", ["Reshape"])
    fused, certificate = certify(proto)
    assert check_proof(Files(proto), Files(fused), certificate).failures == ()


@pytest.mark.parametrize("shape", OPEN.values(), ids=OPEN)
def test_windows_of_computed_sizes(shape: tuple[Any, ...]) -> None:
    """``view(b, c, h // 2, 2, w // 2, 2)``, of whose sizes shape inference knows one or none."""
    numbers = [node("Gather", f"s {k}", f"size{k}") for k in "023"]
    halves = [node("Div", f"size{k} two", f"half{k}") for k in "23"]
    vectors = [node("Unsqueeze", f"{each} zero", f"{each}_") for each in ("size0", "half2", "half3")]
    nodes = [node("Conv", "x w", "c"), node("Shape", "c", "s"), *numbers, *halves, *vectors,
             node("Concat", "size0_ channels half2_ pair half3_ pair", "target", axis=0),
             node("Reshape", "c target", "r"), node("Transpose", "r", "t", perm=[0, 2, 4, 1, 3, 5]),
             node("Reshape", "t windows", "v"), norm("v", "y")]  # fmt: skip
    constants = {"0": np.array(0), "2": np.array(2), "3": np.array(3), "two": np.array(2), "zero": np.array([0])}
    constants |= {"pair": np.array([2]), "channels": np.array([3]), "windows": np.array([-1, 3, 2, 2])}
    proto = model(nodes, constants | statistics(3) | {"w": random(3, 4, 1, 1)}, shape)
    assert_folds(proto, "upstream", ["Reshape", "Transpose", "Reshape"])
    fused, certificate = certify(proto)
    assert check_proof(Files(proto), Files(fused), certificate).failures == ()


# BatchNormalization itself


@pytest.mark.parametrize("opset", [1, 6, 7, 9, 14, 15, 17])
@pytest.mark.parametrize("epsilon", [{}, {"epsilon": 0.125}], ids=["default epsilon", "epsilon"])
def test_every_opset(opset: int, epsilon: dict[str, float]) -> None:
    attributes: dict[str, Any] = dict(epsilon)
    if opset < 7:
        attributes |= {"is_test": 1}
    if opset == 1:
        attributes |= {"consumed_inputs": [0, 0, 0, 1, 1]}
    nodes = [node("Conv", "x w", "c"), norm("c", "y", **attributes)]
    constants = {"w": random(3, 4, 1, 1), **statistics(3)}
    assert_folds(model(nodes, constants, (2, 4, 3, 3), opset=opset), "upstream", [])


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_every_rank(rank: int) -> None:
    space = (3,) * (rank - 2)
    nodes = [node("Gemm" if rank == 2 else "Conv", "x w", "c"), norm("c", "y")]
    kernel = random(4, 3) if rank == 2 else random(3, 4, *(1 for _ in space))
    assert_folds(model(nodes, {"w": kernel, **statistics(3)}, (2, 4, *space)), "upstream", [])


@pytest.mark.parametrize(
    ("opset", "attributes", "outputs", "reason"),
    [
        (6, {"is_test": 0}, "y", Reason.TRAINING_MODE),
        (7, {"spatial": 0}, "y", Reason.PER_ACTIVATION),
        (9, {}, "y m v sm sv", Reason.TRAINING_MODE),
        (15, {"training_mode": 1}, "y", Reason.TRAINING_MODE),
        (15, {"training_mode": 1}, "y m v", Reason.TRAINING_MODE),
    ],
)
def test_training_and_per_activation_stay(opset: int, attributes: dict[str, Any], outputs: str, reason: Reason) -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", outputs, **attributes)]
    proto = model(nodes, {"w": random(3, 4, 1, 1), **statistics(3)}, (2, 4, 3, 3), opset=opset)
    found = sole(bnfold.plan(proto))
    assert isinstance(found, Refusal)
    assert found.reason is reason


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_mixed_parameter_types(dtype: Any) -> None:
    constants = {
        "w": random(3, 4, 1, 1, dtype=dtype),
        **statistics(3, dtype=np.float64 if dtype == np.float32 else np.float32),
    }
    nodes = [node("Conv", "x w", "c"), norm("c", "y")]
    proto = model(nodes, constants, (2, 4, 3, 3), opset=15, dtype=dtype)
    fused, outcomes = fuse(proto, tolerance=8 * float(np.finfo(dtype).eps))
    assert isinstance(sole(outcomes), Fold)
    assert {each.data_type for each in fused.graph.initializer} == {proto.graph.initializer[0].data_type}


@pytest.mark.parametrize(
    "spelling",
    [
        [node("Constant", "", "gamma", value_floats=[1.0, -2.0, 3.0]), node("Cast", "gamma", "g2", to=11)],
        [node("ConstantOfShape", "three", "one"), node("Cast", "one", "one64", to=11), node("Add", "one64 vec", "g2")],
        [node("Unsqueeze", "vec zero", "u"), node("Squeeze", "u zero", "g2")],
        [node("Reshape", "row three", "g2")],
        [node("Transpose", "col", "t"), node("Reshape", "t three", "g2")],
        [node("Identity", "vec", "g2")],
        [node("Expand", "scalar three", "g2")],
        [node("Mul", "vec vec", "sq"), node("Sqrt", "sq", "g2")],
    ],
    ids=lambda nodes: "-".join(each.op_type for each in nodes) if isinstance(nodes, list) else "",
)
def test_computed_parameters(spelling: list[onnx.NodeProto]) -> None:
    constants = {name: array for name, array in statistics(3).items() if name != "gamma"}
    constants |= {"w": random(3, 4, 1, 1), "vec": random(3), "row": random(1, 3), "col": random(3, 1)}
    constants |= {"scalar": random(1), "three": np.asarray([3], I64), "zero": np.asarray([0], I64)}
    nodes = [*spelling, node("Conv", "x w", "c"), node("BatchNormalization", "c g2 beta mean var", "y")]
    assert operators(assert_folds(model(nodes, constants, (2, 4, 3, 3)), "upstream", [])) == ["Conv"]


def test_initializers_of_old_models_are_inputs_and_fold() -> None:
    constants = {"w": random(3, 4, 1, 1), **statistics(3)}
    proto = model([node("Conv", "x w", "c"), norm("c", "y")], constants, (2, 4, 3, 3), ir_version=3, opset=8)
    fused = assert_folds(proto, "upstream", [])
    assert {each.name for each in fused.graph.initializer} == {each.name for each in fused.graph.input} - {"x"}


@pytest.mark.parametrize("name", ["w", "gamma", "var"])
def test_an_initializer_that_a_caller_may_replace_stays(name: str) -> None:
    constants = {"w": random(3, 4, 1, 1), **statistics(3)}
    proto = model([node("Conv", "x w", "c"), norm("c", "y")], constants, (2, 4, 3, 3), overridable=[name])
    assert_stays(proto, Reason.OVERRIDABLE)


# Operators that carry


@dataclass(frozen=True)
class Step:
    """An operator on ``x``; `constants` are its parameters.

    Attributes:
        build: from the names of input and output to nodes.
        carries_shift: whether a shift that is the same in all channels passes.
        any_rank: whether it also takes a matrix.
    """

    build: Callable[[str, str], list[onnx.NodeProto]]
    constants: dict[str, np.ndarray]
    carries_shift: bool = True
    any_rank: bool = False


def step(op: str, operands: str = "{x}", *, carries_shift: bool = True, any_rank: bool = False, **given: Any) -> Step:
    """One node; arrays among `given` are constants that `operands` names, the rest are attributes."""
    constants = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
    attributes = {name: value for name, value in given.items() if name not in constants}
    return Step(lambda x, y: [node(op, operands.format(x=x), y, **attributes)], constants, carries_shift, any_rank)


def integers(*values: int) -> np.ndarray:
    return np.asarray(values, I64)


def unsqueeze_and_squeeze(x: str, y: str) -> list[onnx.NodeProto]:
    return [node("Unsqueeze", f"{x} axis", f"{y}_wide"), node("Squeeze", f"{y}_wide axis", y)]


STEPS: dict[str, Step] = {
    "identity": step("Identity", any_rank=True),
    "dropout": step("Dropout", any_rank=True),
    "cast": step("Cast", to=11, any_rank=True),
    "average pool": step("AveragePool", kernel_shape=[1, 2]),
    "average pool that counts zeros": step(
        "AveragePool", kernel_shape=[1, 2], pads=[0, 1, 0, 0], count_include_pad=1, carries_shift=False
    ),
    "max pool": step("MaxPool", kernel_shape=[1, 2]),
    "global average pool": step("GlobalAveragePool"),
    "global max pool": step("GlobalMaxPool"),
    "reduce mean": step("ReduceMean", axes=[2], keepdims=1),
    "reduce max": step("ReduceMax", axes=[2], keepdims=1),
    "reduce sum": step("ReduceSum", "{x} two", two=integers(2), carries_shift=False),
    "resize": step("Resize", "{x} _ double", double=np.asarray([1, 1, 2, 2], np.float32), mode="nearest"),
    "linear resize": step("Resize", "{x} _ half_more", half_more=np.asarray([1, 1, 1, 2], np.float32), mode="linear"),
    "slice of positions": step("Slice", "{x} zero end two", zero=integers(0), end=integers(-1), two=integers(2)),
    "slice of channels": step(
        "Slice",
        "{x} zero all one two",
        zero=integers(0),
        all=integers(99),
        one=integers(1),
        two=integers(2),
        any_rank=True,
    ),
    "gather": step("Gather", "{x} order", order=integers(3, 0, 2, 1), axis=1, any_rank=True),
    "transpose": step("Transpose", perm=[0, 1, 3, 2]),
    "concat of channels": step("Concat", "{x} {x}", axis=1, any_rank=True),
    "concat of positions": step("Concat", "{x} {x}", axis=2),
    "reshape": step("Reshape", "{x} flat", flat=integers(0, 0, 1, -1)),
    "flatten": step("Flatten", any_rank=True),
    "unsqueeze and squeeze": Step(unsqueeze_and_squeeze, {"axis": integers(2)}, any_rank=True),
    "reflect pad": step("Pad", "{x} pads", pads=integers(0, 0, 0, 0, 0, 0, 0, 0), mode="reflect"),
    "edge pad": step("Pad", "{x} pads1", pads1=integers(0, 0, 1, 1, 0, 0, 1, 1), mode="edge"),
    "zero pad": step("Pad", "{x} pads1", pads1=integers(0, 0, 1, 1, 0, 0, 1, 1), carries_shift=False),
    "expand": step("Expand", "{x} wide", wide=integers(2, 1, 1, 1)),
    "tile": step("Tile", "{x} times", times=integers(1, 1, 2, 1)),
    "depth to space": step("DepthToSpace", blocksize=2, mode="DCR"),
    "pixel shuffle": step("DepthToSpace", blocksize=2, mode="CRD"),
    "sum": step("Sum", "{x} {x} {x}", any_rank=True),
    "relu": step("Relu", carries_shift=False, any_rank=True),
    "leaky relu": step("LeakyRelu", carries_shift=False, any_rank=True),
    "split": Step(lambda x, y: [node("Split", x, f"{y} {y}_rest", axis=1)], {}, any_rank=True),
}

ADDING = {"average pool that counts zeros", "reduce sum"}
"""Operators behind which a shift may stay as an addition."""

WHOLE = {"global average pool", "global max pool"}
ONE_ROW = {*WHOLE, "reshape", "reduce mean", "reduce max", "reduce sum"}

# What reads a part of the channels leaves the others as they are: here that is one value in two states.
PARTS = {("concat of channels", "gather"), ("concat of channels", "split")}
PARTS |= {("flatten", "slice of channels"), ("flatten", "gather")}

PAIRS = [
    (first, second)
    for first in STEPS
    for second in STEPS
    if (first != "flatten" or STEPS[second].any_rank)
    and not (first in WHOLE and second in {"average pool", "max pool"})  # no room for their window
    and not (first in ONE_ROW and second == "slice of positions")
    and (first, second) not in PARTS
]

DIRECTIONS = ["upstream", "downstream"]
KINDS = ["scale", "scale and shift", "different channels"]


def draw_cases() -> list[tuple[str, str, str, str]]:
    """Each operator alone (beside Identity) in all ways, and pairs drawn at random, the same ones in every run."""
    cases = list(itertools.product(PAIRS, DIRECTIONS, KINDS))
    alone = [case for case in cases if case[0][1] == "identity"]
    pairs = [case for case in cases if "identity" not in case[0]]
    drawn = Random(0).sample(pairs, min(EXAMPLES, len(pairs)))
    return [(*pair, direction, kind) for pair, direction, kind in alone + drawn]


@pytest.mark.parametrize(("first", "second", "direction", "kind"), draw_cases())
def test_pairs_of_carrying_operators(first: str, second: str, direction: str, kind: str) -> None:
    """The same positive map in all channels passes; different ones pass or stay, but are never wrong."""
    one, two = STEPS[first], STEPS[second]
    middle = [*one.build("a", "b"), *two.build("b", "e")]
    constants = {"w": random(16, 16, 1, 1), **one.constants, **two.constants}
    sized = {each.name: each for each in infer([*middle], constants)}["e"].type.tensor_type.shape.dim
    channels = sized[1].dim_value if direction == "upstream" else 16
    if direction == "upstream":
        nodes = [node("Conv", "x w", "a"), *middle, norm("e", "f"), node("Sigmoid", "f", "y")]
    else:
        kernel = random(sized[1].dim_value, 3) if len(sized) == 2 else random(3, sized[1].dim_value, 1, 1)
        constants["d"] = kernel
        sink = node("Gemm" if len(sized) == 2 else "Conv", "e d", "y")
        nodes = [node("Sigmoid", "x", "s"), norm("s", "a"), *middle, sink]
    stats = statistics(channels)
    if kind != "different channels":
        shift = 0.5 if kind == "scale and shift" else 0.0
        stats = {"gamma": 2.0, "beta": shift, "mean": 0.0, "var": 1.0}
        stats = {name: np.full(channels, value) for name, value in stats.items()}
    proto = model(nodes, {**constants, **stats}, (2, 16, 8, 8))
    if kind == "scale" or (kind == "scale and shift" and one.carries_shift and two.carries_shift):
        fused = assert_folds(proto, direction)
        assert len(fused.graph.node) == len(nodes) - 1
    elif kind == "scale and shift":
        outcome, last = sole(fuse(proto)[1]), first if two.carries_shift else second
        if direction == "upstream" and last in ADDING:
            assert isinstance(outcome, Fold)
            assert outcome.direction == "scale upstream"
        else:
            assert isinstance(outcome, Refusal)
    else:
        sole(fuse(proto)[1])


def infer(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> list[onnx.ValueInfoProto]:
    """The values that the nodes make of an image `a`."""
    sketch = model([node("Identity", "x", "a"), *nodes], constants, (2, 16, 8, 8), outputs=nodes[-1].output[0])
    inferred = onnx.shape_inference.infer_shapes(sketch, strict_mode=True, data_prop=True).graph
    return [*inferred.value_info, *inferred.output]


def test_concat_of_branches() -> None:
    nodes = [node("Conv", "x w", "a"), node("Conv", "x v", "b"), node("Concat", "a b", "c", axis=1), norm("c", "y")]
    constants = {"w": random(3, 4, 1, 1), "v": random(2, 4, 1, 1), **statistics(5)}
    assert_folds(model(nodes, constants, (2, 4, 3, 3)), "upstream", ["Concat"])


def test_concat_with_a_branch_that_cannot_absorb_stays() -> None:
    nodes = [node("Conv", "x w", "a"), node("Sigmoid", "x", "b"), node("Concat", "a b", "c", axis=1), norm("c", "y")]
    assert_stays(model(nodes, {"w": random(3, 4, 1, 1), **statistics(7)}, (2, 4, 3, 3)), Reason.NOT_LINEAR)


def test_split_then_one_batchnorm() -> None:
    nodes = [node("Conv", "x w", "c"), node("Split", "c sizes", "a b", axis=1), norm("a", "y"), node("Relu", "b", "z")]
    constants = {"w": random(5, 4, 1, 1), "sizes": np.asarray([3, 2], I64), **statistics(3)}
    assert_folds(model(nodes, constants, (2, 4, 3, 3), outputs="y z"), "upstream", ["Split"])


def test_linear_flatten_batchnorm() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Reshape", "m rows", "r"), norm("r", "n"), node("Reshape", "n back", "y")]
    shapes = {"rows": np.asarray([-1, 3], I64), "back": np.asarray([2, 7, 3], I64)}
    constants = {"w": random(5, 3), **shapes, **statistics(3)}
    assert_folds(model(nodes, constants, (2, 7, 5)), "upstream", ["Reshape"])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    nodes = [node("Conv", "x w", "c"), node("DepthToSpace", "c", "d", blocksize=2, mode=mode), norm("d", "y")]
    assert_folds(model(nodes, {"w": random(12, 4, 1, 1), **statistics(3)}, (2, 4, 3, 3)), "upstream", ["DepthToSpace"])


def test_space_to_depth_before_a_convolution() -> None:
    nodes = [norm("x", "n"), node("SpaceToDepth", "n", "s", blocksize=2), node("Conv", "s w", "y")]
    assert_folds(
        model(nodes, {"w": random(3, 16, 1, 1), **statistics(4)}, (2, 4, 4, 4)), "downstream", ["SpaceToDepth"]
    )


def test_residual_sum_of_convolutions() -> None:
    sigmoid = node("Sigmoid", "x", "z")  # branches of one value would become one convolution
    nodes = [sigmoid, node("Conv", "x w", "a"), node("Conv", "z v", "b"), node("Sub", "a b", "s"), norm("s", "y")]
    constants = {"w": random(3, 4, 1, 1), "v": random(3, 4, 1, 1), **statistics(3)}
    assert_folds(model(nodes, constants, (2, 4, 3, 3)), "upstream", ["Sub"])


@pytest.mark.parametrize("op", ["Relu", "LeakyRelu", "PRelu"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("has_shift", [False, True])
def test_rectifiers_carry_a_positive_scale_alone(op: str, sign: float, has_shift: bool) -> None:
    constants = {"w": random(3, 4, 1, 1), "slope": np.abs(random(3, 1, 1)), **statistics(3, sign=sign)}
    if not has_shift:
        constants |= {"beta": np.zeros(3), "mean": np.zeros(3)}
    nodes = [node("Conv", "x w", "c"), node(op, "c slope" if op == "PRelu" else "c", "r"), norm("r", "y")]
    proto = model(nodes, constants, (2, 4, 3, 3))
    if sign > 0 and not has_shift:
        assert_folds(proto, "upstream", [op])
    else:
        assert_stays(proto, Reason.NONLINEAR if has_shift else Reason.NEGATIVE_SCALE)


def test_max_pool_with_a_negative_scale_stays() -> None:
    nodes = [node("Conv", "x w", "c"), node("MaxPool", "c", "p", kernel_shape=[2, 2]), norm("p", "y")]
    constants = {"w": random(3, 4, 1, 1), **statistics(3, sign=-1.0)}
    assert_stays(model(nodes, constants, (2, 4, 3, 3)), Reason.NEGATIVE_SCALE)


@pytest.mark.parametrize("counts", [0, 1])
def test_average_pool_that_counts_zeros(counts: int) -> None:
    pool = node("AveragePool", "c", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=counts)
    proto = model(
        [node("Conv", "x w", "c"), pool, norm("p", "y")], {"w": random(3, 4, 1, 1), **statistics(3)}, (2, 4, 5, 5)
    )
    if counts:
        assert operators(assert_folds(proto, "scale upstream", ["AveragePool"])) == ["Conv", "AveragePool", "Add"]
    else:
        assert_folds(proto, "upstream", ["AveragePool"])


# A BatchNorm in front


def downstream(
    *behind: onnx.NodeProto, shape: tuple[int, ...] = (2, 4, 6, 6), **constants: np.ndarray
) -> onnx.ModelProto:
    nodes = [node("Sigmoid", "x", "s"), norm("s", "n"), *behind]
    return model(nodes, {**statistics(shape[1]), **constants}, shape)


def test_before_an_unpadded_convolution() -> None:
    assert_folds(downstream(node("Conv", "n w", "y"), w=random(3, 4, 3, 3)), "downstream", [])


def test_before_a_grouped_convolution() -> None:
    assert_folds(downstream(node("Conv", "n w", "y", group=2), w=random(6, 2, 3, 3)), "downstream", [])


def test_before_a_padded_convolution_stays() -> None:
    proto = downstream(node("Conv", "n w", "y", pads=[1, 1, 1, 1]), w=random(3, 4, 3, 3))
    assert_stays(proto, Reason.NOT_LINEAR)
    assert "border" in str(sole(fuse(proto)[1]))


def test_before_a_padded_convolution_a_scale_folds() -> None:
    zeros = {"beta": np.zeros(4), "mean": np.zeros(4)}
    proto = downstream(node("Conv", "n w", "y", pads=[1, 1, 1, 1]), w=random(3, 4, 3, 3), **zeros)
    assert operators(assert_folds(proto, "downstream", [])) == ["Sigmoid", "Conv"]


@pytest.mark.parametrize("opset", [10, 17])
def test_before_a_padded_convolution_a_common_zero_becomes_a_pad(opset: int) -> None:
    common = {"gamma": np.full(4, 2.0), "beta": np.zeros(4), "mean": np.full(4, 0.25), "var": np.full(4, 1.0)}
    nodes = [node("Sigmoid", "x", "s"), norm("s", "n"), node("Conv", "n w b", "y", pads=[1, 0, 2, 1])]
    proto = model(nodes, {**common, "w": random(3, 4, 3, 3), "b": random(3)}, (2, 4, 6, 6), opset=opset)
    assert operators(assert_folds(proto, "downstream", [])) == ["Sigmoid", "Pad", "Conv"]


def test_before_a_transposed_convolution_a_shift_stays() -> None:
    proto = downstream(node("ConvTranspose", "n w", "y"), w=random(4, 3, 2, 2))
    assert "border" in str(sole(fuse(proto)[1]))
    assert isinstance(sole(fuse(proto)[1]), Refusal)


def test_before_flatten_and_gemm() -> None:
    proto = downstream(node("Flatten", "n", "f"), node("Gemm", "f w", "y"), w=random(144, 3))
    assert_folds(proto, "downstream", ["Flatten"])


def test_before_global_pooling_and_gemm() -> None:
    behind = [node("GlobalAveragePool", "n", "p"), node("Flatten", "p", "f"), node("Gemm", "f w", "y")]
    assert_folds(downstream(*behind, w=random(4, 3)), "downstream", ["GlobalAveragePool", "Flatten"])


def test_before_two_convolutions() -> None:
    behind = [node("Conv", "n w", "a"), node("Conv", "n v", "b"), node("Concat", "a b", "y", axis=1)]
    assert_folds(downstream(*behind, w=random(3, 4, 1, 1), v=random(2, 4, 1, 1)), "downstream", [])


def test_before_two_readers_of_which_one_cannot_absorb() -> None:
    behind = [node("Conv", "n w", "a"), node("Sigmoid", "n", "b"), node("Concat", "a b", "y", axis=1)]
    assert_stays(downstream(*behind, w=random(3, 4, 1, 1)), Reason.NOT_LINEAR)


def test_where_both_ways_work_upstream_is_taken() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "n"), node("Conv", "n v", "y")]
    constants = {"w": random(3, 4, 1, 1), "v": random(2, 3, 1, 1), **statistics(3)}
    assert_folds(model(nodes, constants, (2, 4, 3, 3)), "upstream", [])


# Other spellings


def test_a_decomposed_batchnorm_folds_and_is_counted_apart() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Sub", "c mean", "a"),
        node("Mul", "gamma a", "b"),
        node("Div", "b deviation", "d"),
        node("Add", "beta d", "y"),
    ]
    column = {name: array.reshape(3, 1, 1) for name, array in statistics(3).items()}
    constants = {**column, "deviation": np.sqrt(column["var"] + 1e-5), "w": random(3, 4, 3, 3)}
    del constants["var"]
    fused, outcomes = fuse(model(nodes, constants, (2, 4, 5, 5)))
    assert operators(fused) == ["Conv"]
    assert len(outcomes) == 4
    assert not any(each.is_batchnorm for each in outcomes if isinstance(each, Fold))


def test_a_negated_chain_folds() -> None:
    chain = [node("Neg", "c", "n"), node("Sqrt", "v", "d"), node("Reciprocal", "d", "r"), node("Mul", "n r", "m")]
    nodes = [node("Conv", "x w", "c"), *chain, node("Sub", "t m", "y")]
    constants = {"w": random(3, 4, 3, 3), "v": np.abs(random(3, 1, 1)) + 0.5, "t": random(1, 3, 1, 1)}
    fused, _ = fuse(model(nodes, constants, (2, 4, 5, 5)))
    assert operators(fused) == ["Conv"]


def test_upsample() -> None:
    nodes = [node("Conv", "x w", "c"), node("Upsample", "c scales", "u", mode="nearest"), norm("u", "y")]
    constants = {"w": random(3, 4, 1, 1), "scales": np.asarray([1, 1, 2, 2], np.float32), **statistics(3)}
    (found,) = bnfold.plan(model(nodes, constants, (2, 4, 3, 3), opset=9))
    assert isinstance(found, Fold)  # the reference evaluator has no Upsample


def test_a_resize_with_an_extrapolation_value_stays() -> None:
    crop = {"roi": np.asarray([0, 0, 0.5, 0, 1, 1, 1.5, 1], np.float32), "scales": np.ones(4, np.float32)}
    mode = "tf_crop_and_resize"
    resize = node("Resize", "c roi scales", "u", coordinate_transformation_mode=mode, extrapolation_value=1.0)
    nodes = [node("Conv", "x w", "c"), resize, norm("u", "y")]
    (found,) = bnfold.plan(model(nodes, {"w": random(3, 4, 1, 1), **crop, **statistics(3)}, (2, 4, 3, 3)))
    assert isinstance(found, Refusal)
    assert found.reason is Reason.BORDER


def test_the_caffe_pair() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "n"), node("Mul", "n s", "m"), node("Add", "m t", "y")]
    constants = {"w": random(3, 4, 3, 3), "s": random(3, 1, 1), "t": random(3, 1, 1), **statistics(3)}
    assert operators(assert_folds(model(nodes, constants, (2, 4, 5, 5)), "upstream", [])) == ["Conv"]


def test_a_batchnorm_absorbs_what_surrounds_it_where_it_stays() -> None:
    nodes = [node("Sigmoid", "x", "s"), norm("s", "a", "one_"), norm("a", "b", "two_"), node("Mul", "b k", "y")]
    constants = {**statistics(4, "one_"), **statistics(4, "two_"), "k": random(4, 1, 1)}
    fused, _ = fuse(model(nodes, constants, (2, 4, 3, 3)))
    assert operators(fused) == ["Sigmoid", "BatchNormalization"]


def test_instance_normalization_is_no_batchnorm() -> None:
    nodes = [node("Conv", "x w", "c"), node("InstanceNormalization", "c gamma beta", "y")]
    constants = {"w": random(3, 4, 3, 3), "gamma": random(3), "beta": random(3)}
    fused, outcomes = fuse(model(nodes, constants, (2, 4, 5, 5)))
    assert outcomes == ()
    assert operators(fused) == ["Conv", "InstanceNormalization"]
