"""BatchNorms that read constants alone, such as the weight of a convolution that is standardised."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold import Fold, Reason, Refusal
from bnfold.api import certify
from bnfold.proof.checker import check_pair
from bnfold.proof.models import Files
from tests.toys.onnx_graphs import fuse, model, node, norm, operators, random, statistics

FLAT = {"raw": random(1, 3, 4), "shape": np.array([3, 4, 1, 1], np.int64), **statistics(3)}

STANDARDISED = [norm("raw", "flat m v", training_mode=1), node("Reshape", "flat shape", "w")]
"""The weight of a convolution, as timm's ScaledStdConv2d makes it."""

CONV = [*STANDARDISED, node("Conv", "x w", "y")]

SHAPE = (2, 4, 3, 3)


def outcome(proto: onnx.ModelProto, **options: Any) -> bnfold.Outcome:
    (only,) = bnfold.fuse(proto, return_outcomes=True, **options)[1]
    return only


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_weight_that_is_standardised(dtype: Any) -> None:
    constants = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in FLAT.items()}
    fused, outcomes = fuse(model(CONV, constants, SHAPE, dtype=dtype), float(np.finfo(dtype).eps) * 8)
    assert operators(fused) == ["Reshape", "Conv"]
    assert [isinstance(each, Fold) and (each.direction, each.into) for each in outcomes] == [("computed", ("Conv_y",))]
    assert {each.name for each in fused.graph.initializer} == {"flat", "shape"}


def test_it_is_rounded_once() -> None:
    proto = model(CONV, {**FLAT, "raw": 1000 + random(1, 3, 4)}, SHAPE)
    wide = model(CONV, {**FLAT, "raw": (1000 + random(1, 3, 4)).astype(np.float32)}, SHAPE, dtype=np.float32)
    for each in wide.graph.initializer:
        if each.name in ("gamma", "beta", "mean", "var"):
            each.CopyFrom(numpy_helper.from_array(FLAT[each.name].astype(np.float32), each.name))
    assert operators(fuse(proto)[0]) == ["Reshape", "Conv"]
    (flat,) = (numpy_helper.to_array(each) for each in bnfold.fuse(wide).graph.initializer if each.name == "flat")
    raw, gamma, beta = ((1000 + random(1, 3, 4)).astype(np.float32), FLAT["gamma"], FLAT["beta"])
    x, gamma, beta = (np.float64(each) for each in (raw, gamma.astype(np.float32), beta.astype(np.float32)))
    deviation = np.sqrt(x.var(axis=(0, 2)) + float(np.float32(1e-5)))
    exact = (x - x.mean(axis=(0, 2))[:, None]) / deviation[:, None] * gamma[:, None] + beta[:, None]
    assert np.array_equal(flat, exact.astype(np.float32))


def test_one_whose_statistics_are_computed_from_the_weight_as_well() -> None:
    """The form in which the newer exporter of PyTorch writes it."""
    nodes = [
        node("ReduceMean", "raw", "m", axes=[0, 2], keepdims=0),
        node("ReduceMean", "raw", "wide", axes=[0, 2], keepdims=1),
        node("Sub", "raw wide", "rest"),
        node("Mul", "rest rest", "squares"),
        node("ReduceMean", "squares", "v", axes=[0, 2], keepdims=0),
        node("BatchNormalization", "raw gamma beta m v", "flat"),
        *CONV[1:],
    ]
    constants = {name: array for name, array in FLAT.items() if name not in ("mean", "var")}
    assert operators(fuse(model(nodes, constants, SHAPE))[0]) == ["Reshape", "Conv"]


def test_its_convolution_takes_what_is_around_it() -> None:
    nodes = [*STANDARDISED, node("Conv", "x w", "c"), norm("c", "n", "p"), node("Mul", "n gain", "y")]
    fused, outcomes = fuse(model(nodes, {**FLAT, **statistics(3, "p"), "gain": np.asarray(0.5)}, SHAPE))
    assert operators(fused) == ["Conv"]
    assert all(isinstance(each, Fold) for each in outcomes)


def test_two_readers_share_what_it_makes() -> None:
    nodes = [*CONV, node("Conv", "x w", "z"), norm("x", "n", "q"), node("Conv", "n w", "u")]
    fused, _ = fuse(model(nodes, {**FLAT, **statistics(4, "q")}, SHAPE, outputs="y z u"))
    assert operators(fused) == ["Reshape", "Conv", "Conv", "Conv"]


@pytest.mark.parametrize("opset", [6, 8, 9, 13, 14, 15, 17])
def test_one_in_eval_mode_in_every_opset(opset: int) -> None:
    old = {"is_test": 1} if opset < 7 else {}
    nodes = [norm("raw", "flat", **old), *CONV[1:]]
    assert operators(fuse(model(nodes, FLAT, SHAPE, opset=opset))[0]) == ["Reshape", "Conv"]


def test_an_old_model_lists_the_result_among_its_inputs() -> None:
    nodes = [norm("raw", "flat", is_test=1), *CONV[1:]]
    fused = fuse(model(nodes, FLAT, SHAPE, opset=6, ir_version=3))[0]
    assert [each.name for each in fused.graph.input] == ["x", "shape", "flat"]


def test_one_in_a_function() -> None:
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(FLAT[name])) for name in FLAT]
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Standardised", ["x"], ["y"], [*nodes, *CONV], imports)
    proto = model([node("Identity", "x", "y")], {}, SHAPE)
    proto.graph.node[0].CopyFrom(helper.make_node("Standardised", ["x"], ["y"], domain="own"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.append(function)
    fused, certificate = certify(proto)
    assert check_pair(Files(proto), Files(fused), certificate).failures == ()
    assert "BatchNormalization" not in {each.op_type for each in fused.functions[0].node}
    onnx.checker.check_model(fused)


TRAPS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], Reason]] = {
    "data that is computed": ([norm("x", "y m v", training_mode=1)], {}, Reason.TRAINING_MODE),
    "running statistics that are read": (
        [*STANDARDISED, node("Conv", "x w", "c"), node("Mul", "m m", "s"), node("Add", "c s", "y")],
        {"opset": 14},
        Reason.TRAINING_MODE,
    ),
    "the training form of older opsets": ([norm("raw", "flat m v"), *CONV[1:]], {"opset": 13}, Reason.TRAINING_MODE),
    "statistics for each activation": (
        [norm("raw", "flat", spatial=0), *CONV[1:]],
        {"opset": 8},
        Reason.PER_ACTIVATION,
    ),
    "a weight that a caller may replace": (CONV, {"overridable": ["raw"]}, Reason.TRAINING_MODE),
    "a result that leaves the graph": (CONV, {"outputs": "y flat"}, Reason.GRAPH_OUTPUT),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_is_no_constant_stays(trap: str) -> None:
    nodes, options, reason = TRAPS[trap]
    read = {name for each in nodes for name in each.input}
    constants = {name: array for name, array in FLAT.items() if name in read}
    if trap == "running statistics that are read":
        constants |= {"raw": random(2, 3, 2)}
    if trap == "data that is computed":
        constants = statistics(4)
    refused = outcome(model(nodes, constants, SHAPE, **options))
    assert isinstance(refused, Refusal)
    assert refused.reason is reason


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
def test_a_result_that_is_not_finite_stays(value: float) -> None:
    raw = FLAT["raw"].copy()
    raw[0, 1, 2] = value
    assert isinstance(outcome(model(CONV, {**FLAT, "raw": raw}, SHAPE)), Refusal)


def test_one_that_is_not_selected_stays() -> None:
    proto = model(CONV, FLAT, SHAPE)
    assert outcome(proto, skip=["*flat"]) == outcome(proto, only=["nothing"])
    assert bnfold.fuse(proto, skip=["*flat"]).SerializeToString() == proto.SerializeToString()


@pytest.mark.parametrize("broken", ["one ulp", "another channel", "in eval mode"])
def test_a_wrong_result_is_not_proved(broken: str) -> None:
    constants = {
        name: array.astype(np.float32 if array.dtype.kind == "f" else np.int64) for name, array in FLAT.items()
    }
    proto = model(CONV, constants, SHAPE, dtype=np.float32)
    fused, certificate = certify(proto)
    assert check_pair(Files(proto), Files(fused), certificate).is_proved
    (flat,) = (each for each in fused.graph.initializer if each.name == "flat")
    wrong = numpy_helper.to_array(flat).copy()
    if broken == "one ulp":
        wrong[0, 2, 1] = np.nextafter(wrong[0, 2, 1], np.float32(9))
    elif broken == "another channel":
        wrong = wrong[:, ::-1].copy()
    else:
        mean, var, gamma, beta = (FLAT[name][:, None] for name in ("mean", "var", "gamma", "beta"))
        wrong = (FLAT["raw"] - mean) / np.sqrt(var + float(np.float32(1e-5))) * gamma + beta
    flat.CopyFrom(numpy_helper.from_array(wrong.astype(np.float32), "flat"))
    assert not check_pair(Files(proto), Files(fused), certificate).is_proved


def test_another_constant_in_the_place_of_a_node_is_not_proved() -> None:
    """Only what a BatchNormalization makes of constants may become a constant."""
    proto = model([node("Relu", "raw", "flat"), *CONV[1:]], {"raw": FLAT["raw"], "shape": FLAT["shape"]}, SHAPE)
    fused, certificate = certify(proto)
    del fused.graph.node[0]
    fused.graph.initializer.append(numpy_helper.from_array(np.maximum(FLAT["raw"], 0), "flat"))
    assert not check_pair(Files(proto), Files(fused), certificate).is_proved


def test_one_behind_another_is_computed_from_it() -> None:
    nodes = [norm("raw", "first m v", training_mode=1), norm("first", "flat"), *CONV[1:]]
    fused, outcomes = fuse(model(nodes, FLAT, SHAPE))
    assert operators(fused) == ["Reshape", "Conv"]
    assert len(outcomes) == 2
    assert {each.name for each in fused.graph.initializer} == {"flat", "shape"}


def test_one_that_nothing_reads_stays() -> None:
    nodes = [norm("raw", "dead m v", training_mode=1), node("Conv", "x w", "y")]
    constants = {**FLAT, "w": random(3, 4, 1, 1)}
    del constants["shape"]
    proto = model(nodes, constants, SHAPE)
    refused = outcome(proto)
    assert isinstance(refused, Refusal)
    assert bnfold.fuse(proto).SerializeToString() == proto.SerializeToString()
