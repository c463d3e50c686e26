"""Sums whose weights are data: products of two computed matrices, and additions by index, as in graph convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold import Fold, Refusal
from bnfold.api import certify
from bnfold.proof.checker import check_pair
from bnfold.proof.models import Files
from tests.toys.onnx_graphs import fuse, model, node, norm, operators, random, statistics

SCALES = {**statistics(3), "beta": np.zeros(3), "mean": np.zeros(3)}

WEIGHTS = [node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "x t", "g"), node("Sigmoid", "g", "a")]
"""What a graph convolution adds up its neighbours with: a matrix that depends on the data."""

CONVOLUTION = [*WEIGHTS, node("MatMul", "x w", "l"), node("MatMul", "a l", "m")]

SHAPE = ("N", 4)


def told(outcomes: tuple[bnfold.Outcome, ...]) -> list[str]:
    return [each.direction if isinstance(each, Fold) else str(each.reason) for each in outcomes if each.is_batchnorm]


@pytest.mark.parametrize("shape", [SHAPE, (5, 4)], ids=str)
def test_a_scale_goes_through_a_graph_convolution(shape: tuple[Any, ...]) -> None:
    fused, outcomes = fuse(model([*CONVOLUTION, norm("m", "y")], {"w": random(4, 3), **SCALES}, shape))
    assert told(outcomes) == ["upstream"]
    assert operators(fused) == [each.op_type for each in CONVOLUTION]


def test_a_shift_stays_behind_it_as_an_addition() -> None:
    fused, outcomes = fuse(model([*CONVOLUTION, norm("m", "y")], {"w": random(4, 3), **statistics(3)}, SHAPE))
    assert told(outcomes) == ["scale upstream"]
    assert operators(fused) == [*(each.op_type for each in CONVOLUTION), "Add"]
    assert outcomes[0].through == ("MatMul_m",)  # type: ignore[union-attr]
    assert outcomes[0].into == ("MatMul_l",)  # type: ignore[union-attr]


def test_a_bias_behind_it_takes_the_shift() -> None:
    nodes = [*CONVOLUTION, node("Add", "m b", "n"), norm("n", "o"), node("Relu", "o", "y")]
    fused, outcomes = fuse(model(nodes, {"w": random(4, 3), "b": random(3), **statistics(3)}, SHAPE))
    assert told(outcomes) == ["scale upstream"]
    assert operators(fused) == [*(each.op_type for each in CONVOLUTION), "Add", "Relu"]


def test_a_channel_of_scale_zero_is_its_shift() -> None:
    gamma = np.array([0.0, -2.0, 3.0])
    constants = {"w": random(4, 3), **statistics(3), "gamma": gamma}
    fused, outcomes = fuse(model([*CONVOLUTION, norm("m", "y")], constants, SHAPE))
    assert told(outcomes) == ["scale upstream"]
    assert operators(fused)[-1] == "Add"


def test_two_layers_leave_no_batchnorm() -> None:
    nodes = [
        *CONVOLUTION,
        norm("m", "n", "p"),
        node("Relu", "n", "r"),
        node("MatMul", "r u", "k"),
        node("MatMul", "a k", "s"),
        norm("s", "y", "qq"),
    ]
    constants = {"w": random(4, 3), "u": random(3, 5), **statistics(3, "p"), **statistics(5, "qq")}
    fused, _ = fuse(model(nodes, constants, SHAPE))
    assert "BatchNormalization" not in operators(fused)


def test_a_scale_in_front_goes_behind() -> None:
    front = {**statistics(4), "beta": np.zeros(4), "mean": np.zeros(4)}
    nodes = [*WEIGHTS, norm("x", "n"), node("MatMul", "a n", "m"), node("MatMul", "m w", "y")]
    fused, outcomes = fuse(model(nodes, {"w": random(4, 3), **front}, SHAPE))
    assert told(outcomes) == ["downstream"]
    assert operators(fused) == ["Transpose", "MatMul", "Sigmoid", "MatMul", "MatMul"]


def test_rows_of_the_first_operand_are_channels_too() -> None:
    """A convolution, whose output is mixed by another value along its positions."""
    nodes = [node("Softmax", "x", "s"), node("Conv", "x w", "c"), node("MatMul", "c s", "m"), norm("m", "y")]
    fused, outcomes = fuse(model(nodes, {"w": random(3, 5, 1), **statistics(3)}, (2, 5, 5)))
    assert told(outcomes) == ["scale upstream"]
    assert operators(fused) == ["Softmax", "Conv", "MatMul", "Add"]


INDICES = {"i": np.array([[0], [2], [0], [5]]), "e": np.repeat([[0], [2], [0], [5]], 3, axis=1)}
LINEAR = node("MatMul", "x w", "l")
SIZES = [node("Shape", "l", "size"), node("ConstantOfShape", "size", "z", value=numpy_helper.from_array(np.zeros(1)))]

ADDITIONS: dict[str, tuple[list[onnx.NodeProto], tuple[str, ...]]] = {
    "ScatterND": ([LINEAR, node("ScatterND", "z i l", "m", reduction="add")], ("z", "i")),
    "ScatterElements": ([LINEAR, node("ScatterElements", "z e l", "m", reduction="add")], ("z", "e")),
    "ScatterElements along an axis from the end": (
        [LINEAR, node("ScatterElements", "z e l", "m", reduction="add", axis=-2)],
        ("z", "e"),
    ),
    "zeros of a computed shape": (
        [LINEAR, *SIZES, node("ScatterND", "z k l", "m", reduction="add")],
        ("k",),
    ),
    "zeros that are expanded": (
        [LINEAR, SIZES[0], node("Expand", "zero size", "z"), node("ScatterND", "z k l", "m", reduction="add")],
        ("k", "zero"),
    ),
}
MORE = {
    **INDICES,
    "k": np.array([[0], [2], [0], [3]]),
    "z": np.zeros((6, 3)),
    "zero": np.zeros(1),
    "one": np.ones((6, 3)),
}


@pytest.mark.parametrize("case", ADDITIONS)
def test_an_addition_by_index(case: str) -> None:
    nodes, read = ADDITIONS[case]
    constants = {"w": random(4, 3), **statistics(3), **{name: MORE[name] for name in read}}
    fused, outcomes = fuse(model([*nodes, norm("m", "y")], constants, (4, 4), opset=18))
    assert told(outcomes) == ["scale upstream"]
    assert operators(fused) == [*(each.op_type for each in nodes), "Add"]


TRAPS: dict[str, tuple[list[onnx.NodeProto], tuple[str, ...], str]] = {
    "the largest of what is added": (
        [LINEAR, node("ScatterND", "z i l", "m", reduction="max")],
        ("z", "i"),
        "not-linear",
    ),
    "what takes the place of others": ([LINEAR, node("ScatterND", "z i l", "m")], ("z", "i"), "not-linear"),
    "an addition to something": (
        [LINEAR, node("ScatterND", "one i l", "m", reduction="add")],
        ("one", "i"),
        "not-linear",
    ),
    "an addition along the channels": (
        [LINEAR, node("ScatterElements", "z e l", "m", reduction="add", axis=1)],
        ("z", "e"),
        "axis-mismatch",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_is_no_sum_of_zeros_stays(trap: str) -> None:
    nodes, read, reason = TRAPS[trap]
    constants = {"w": random(4, 3), **SCALES, **{name: MORE[name] for name in read}}
    constants |= {"e": np.array([[0, 1, 2]] * 4)} if "e" in read else {}
    assert told(bnfold.plan(model([*nodes, norm("m", "y")], constants, (4, 4), opset=18))) == [reason]


def test_one_value_as_both_operands_stays() -> None:
    """Its scale would count twice."""
    nodes = [node("MatMul", "x w", "l"), node("MatMul", "l l", "m"), norm("m", "y")]
    scales = {**statistics(4), "beta": np.zeros(4), "mean": np.zeros(4)}
    assert told(fuse(model(nodes, {"w": random(4, 4), **scales}, (4, 4)))[1]) == ["second-use"]


def test_the_axis_that_is_summed_stays() -> None:
    nodes = [*WEIGHTS, norm("x", "n"), node("MatMul", "n t", "m"), node("MatMul", "m v", "y")]
    front = {**statistics(4), "beta": np.zeros(4), "mean": np.zeros(4)}
    assert isinstance(bnfold.plan(model(nodes, {"v": random(5, 2), **front}, (5, 4)))[0], Refusal)


def test_a_vector_is_no_matrix() -> None:
    nodes = [node("MatMul", "x w", "l"), node("ReduceSum", "x axis", "v", keepdims=0), node("MatMul", "v l", "m"),
             node("Unsqueeze", "m axis", "u"), norm("u", "y")]  # fmt: skip
    constants = {"w": random(4, 3), "axis": np.array([0]), **SCALES}
    assert told(bnfold.plan(model(nodes, constants, (4, 4)))) == ["not-linear"]


def test_data_far_from_zero_keeps_its_batchnorm() -> None:
    """The mean would be subtracted last, from what was rounded at its size."""
    constants = {"w": random(4, 3), **statistics(3), "mean": np.full(3, 1e4)}
    assert told(fuse(model([*CONVOLUTION, norm("m", "y")], constants, SHAPE))[1]) == ["shift"]


@pytest.mark.parametrize("broken", ["the addition", "the weight", "no addition"])
def test_a_wrong_result_is_not_proved(broken: str) -> None:
    proto = model([*CONVOLUTION, norm("m", "y")], {"w": random(4, 3), **statistics(3)}, SHAPE)
    fused, certificate = certify(proto)
    assert check_pair(Files(proto), Files(fused), certificate).is_proved
    if broken == "no addition":
        fused.graph.node[-1].op_type = "Mul"
    else:
        name = fused.graph.node[-1].input[1] if broken == "the addition" else fused.graph.node[3].input[1]
        (tensor,) = (each for each in fused.graph.initializer if each.name == name)
        wrong = numpy_helper.to_array(tensor).copy()
        wrong.reshape(-1)[0] *= 1 + 1e-9
        tensor.CopyFrom(numpy_helper.from_array(wrong, name))
    assert not check_pair(Files(proto), Files(fused), certificate).is_proved


def test_a_scale_that_comes_from_nowhere_is_not_proved() -> None:
    """The weight is scaled, and what it is multiplied with is said to be as well."""
    scales = model([*CONVOLUTION, norm("m", "y")], {"w": random(4, 3), **SCALES}, SHAPE)
    fused, certificate = certify(scales)
    for name in [key for key in certificate.relations if key[1] == "m"]:
        del certificate.relations[name]
    assert not check_pair(Files(scales), Files(fused), certificate).is_proved


def test_a_scale_that_comes_back_leaves_the_batchnorm_whole() -> None:
    """It goes into the first BatchNorm, which then goes into the second, where it would be no addition any more."""
    nodes = [norm("x", "a", "p"), node("ReduceSum", "a axis", "s"), norm("s", "b", "qq"), node("Sigmoid", "b", "y")]
    constants = {"axis": np.array([2]), **statistics(4, "p"), **statistics(4, "qq")}
    fused, outcomes = fuse(model(nodes, {**constants, "qqgamma": np.zeros(4)}, (2, 4, 3)))
    assert told(outcomes) == ["graph-input", "shift"]
    assert operators(fused) == [each.op_type for each in nodes]
