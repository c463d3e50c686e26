"""BatchNorms that stay, written as other operators: the same values, proved, and none left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold import Refusal
from bnfold.api import certify
from bnfold.proof.checker import check_proof
from bnfold.proof.models import Files, digest
from tests.toys.onnx_graphs import evaluate, model, node, norm, operators, random, statistics

Form = Literal["depthwise", "mul-add"]
FORMS: tuple[Form, ...] = ("depthwise", "mul-add")


def lower(proto: onnx.ModelProto, form: Form, tolerance: float = 1e-12) -> onnx.ModelProto:
    """The lowered model, which is proved and makes the same."""
    result, certificate = certify(proto, lower=form)
    assert check_proof(Files(proto), Files(result), certificate).failures == ()
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.output) == list(proto.graph.output)
    expected, actual = evaluate(proto), evaluate(result)
    for name in expected.keys() & actual.keys():
        size = max(1.0, float(np.abs(expected[name]).max(initial=0.0)))
        assert float(np.abs(expected[name] - actual[name]).max(initial=0.0)) <= tolerance * size, name
    return result


@pytest.mark.parametrize(
    ("shape", "opset", "form", "expected"),
    [
        ((2, 3, 5), 17, "depthwise", ["Conv"]),
        ((2, 3, 5, 4), 17, "depthwise", ["Conv"]),
        ((2, 3, 5, 4), 6, "depthwise", ["Conv"]),
        ((2, 3, 2, 2, 2), 17, "depthwise", ["Conv"]),
        ((2, 3), 17, "depthwise", ["Mul", "Add"]),
        ((2, 3, 5, 4), 17, "mul-add", ["Mul", "Add"]),
        ((2, 3), 17, "mul-add", ["Mul", "Add"]),
    ],
    ids=str,
)
def test_a_batchnorm_that_stays(shape: tuple[int, ...], opset: int, form: Form, expected: list[str]) -> None:
    attributes: dict[str, Any] = {"is_test": 1} if opset < 7 else {}
    proto = model([node("Sigmoid", "x", "s"), norm("s", "y", **attributes)], statistics(3), shape, opset=opset)
    result = lower(proto, form)
    assert operators(result) == ["Sigmoid", *expected]
    assert result.graph.node[-1].name == proto.graph.node[-1].name
    assert len(result.graph.initializer) == 2


def test_arithmetic_of_opset_6_names_the_axis() -> None:
    proto = model([node("Sigmoid", "x", "s"), norm("s", "y", is_test=1)], statistics(3), (2, 3, 5, 4), opset=6)
    result, certificate = certify(proto, lower="mul-add")
    assert check_proof(Files(proto), Files(result), certificate).failures == ()
    onnx.checker.check_model(result, full_check=True)
    assert operators(result) == ["Sigmoid", "Mul", "Add"]


@pytest.mark.parametrize("form", FORMS)
def test_what_can_fold_folds(form: Form) -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "d"), node("Sigmoid", "d", "s"), norm("s", "y", "o_")]
    constants = {"w": random(3, 4, 1, 1), **statistics(3), **statistics(3, "o_")}
    result = lower(model(nodes, constants, (2, 4, 5, 4)), form)
    assert operators(result)[:2] == ["Conv", "Sigmoid"]
    assert "BatchNormalization" not in operators(result)


@pytest.mark.parametrize("form", FORMS)
def test_a_batchnorm_that_took_in_others_is_rounded_once(form: Form) -> None:
    """A BatchNorm behind another, and one through whose output more is pulled: its map is not that of the file."""
    nodes = [node("Sigmoid", "x", "s"), norm("s", "a"), norm("a", "b", "o_"),
             node("Transpose", "b", "t", perm=[0, 2, 1]), node("Transpose", "t", "u", perm=[0, 2, 1]),
             norm("u", "y", "p_")]  # fmt: skip
    constants = {**statistics(3), **statistics(3, "o_"), **statistics(3, "p_")}
    narrow = {name: array.astype(np.float32) for name, array in constants.items()}
    for dtype, each in ((np.float64, constants), (np.float32, narrow)):
        proto = model(nodes, each, (2, 3, 5), dtype=dtype)
        result, certificate = certify(proto, lower=form)
        assert check_proof(Files(proto), Files(result), certificate).failures == ()
        assert "BatchNormalization" not in operators(result)


@pytest.mark.parametrize("form", FORMS)
def test_data_far_from_zero_is_centred_first(form: Form) -> None:
    constants = statistics(3, dtype=np.float32)
    constants["mean"] = np.full(3, 1e5, np.float32)
    proto = model([node("Exp", "x", "s"), norm("s", "y")], constants, (2, 3, 5, 4), dtype=np.float32)
    result, certificate = certify(proto, lower=form)
    assert check_proof(Files(proto), Files(result), certificate).failures == ()
    assert operators(result)[:2] == ["Exp", "Sub"]


def test_training_mode_and_unknown_ranks_stay() -> None:
    nodes = [node("Sigmoid", "x", "s"), norm("s", "y", training_mode=1)]
    nodes[1].output.extend(["m", "v"])
    proto = model(nodes, statistics(3), (2, 3, 5))
    assert operators(certify(proto, lower="depthwise")[0]) == ["Sigmoid", "BatchNormalization"]


@pytest.mark.parametrize("form", FORMS)
def test_outcomes_say_what_became_of_it(form: Form) -> None:
    proto = model([node("Sigmoid", "x", "s"), norm("s", "y")], statistics(3), (2, 3, 5))
    result, (outcome,) = bnfold.fuse(proto, return_outcomes=True, lower=form)
    assert "BatchNormalization" not in operators(result)
    assert isinstance(outcome, Refusal)
    assert outcome.detail.endswith({"depthwise": "a depthwise convolution of one tap", "mul-add": "Mul and Add"}[form])


def detail(proto: onnx.ModelProto, form: Form) -> str:
    """What the outcome of the only BatchNorm says of a lowering."""
    _, (outcome,) = bnfold.fuse(proto, return_outcomes=True, lower=form)
    assert isinstance(outcome, Refusal)
    return outcome.detail.rpartition("; ")[2]


def test_an_outcome_says_what_was_written_where_it_could_not_be_a_convolution() -> None:
    proto = model([node("Sigmoid", "x", "s"), norm("s", "y")], statistics(3), (2, 3))
    assert detail(proto, "depthwise") == "written as Mul and Add"


@pytest.mark.parametrize("form", FORMS)
def test_an_outcome_says_why_nothing_was_written(form: Form) -> None:
    unknown = model([node("Sigmoid", "x", "s"), norm("s", "y")], statistics(3), (2, 3, 5))
    unknown.graph.node[0].domain = "com.example"
    del unknown.graph.value_info[:]
    unknown.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    assert detail(unknown, form) == "not written as other operators: the type of its data is not known"
    large = {**statistics(3), "gamma": np.array([1, 1e38, 1]), "var": np.array([1, 1e-30, 1])}
    constants = {name: array.astype(np.float32) for name, array in large.items()}
    wide = model([node("Sigmoid", "x", "s"), norm("s", "y")], constants, (2, 3, 5), dtype=np.float32)
    assert detail(wide, form).startswith("not written as other operators: channel 1 of its weight or bias would not be")


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_that_is_one_unit_off_is_not_proved(form: Form) -> None:
    proto = model([node("Sigmoid", "x", "s"), norm("s", "y")], statistics(3), (2, 3, 5))
    result, certificate = certify(proto, lower=form)
    for index in range(len(result.graph.initializer)):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(result)
        array = numpy_helper.to_array(wrong.graph.initializer[index]).copy()
        array.reshape(-1)[1] *= 1 + 1e-13
        wrong.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, wrong.graph.initializer[index].name))
        claimed = replace(certificate, result=digest(Files(wrong)))
        assert not check_proof(Files(proto), Files(wrong), claimed).is_proved


def test_a_batchnorm_in_a_function() -> None:
    """Its parameters are constants of the function."""
    constants = [
        onnx.helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name), name=f"the_{name}")
        for name, array in statistics(3).items()
    ]
    imports = [onnx.helper.make_opsetid("", 17)]
    inner = [*constants, node("Sigmoid", "v", "u"), norm("u", "w")]
    proto = model([node("Identity", "x", "y")], {}, (2, 3, 5))
    proto.graph.node[0].CopyFrom(onnx.helper.make_node("Normed", ["x"], ["y"], domain="local", name="call"))
    proto.opset_import.append(onnx.helper.make_opsetid("local", 1))
    proto.functions.append(onnx.helper.make_function("local", "Normed", ["v"], ["w"], inner, imports))
    result, certificate = certify(proto, lower="depthwise")
    assert check_proof(Files(proto), Files(result), certificate).failures == ()
    assert "BatchNormalization" not in [each.op_type for each in result.functions[0].node]
