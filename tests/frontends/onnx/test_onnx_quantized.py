"""Quantised weights absorb a positive per-channel scale in their scales, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Reason, Refusal
from bnfold.api import certify
from bnfold.proof.checker import check_proof
from bnfold.proof.models import Files, digest
from tests.toys.onnx_graphs import assert_settled


def initializer(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def quantized_convolution(
    scales: np.ndarray,
    sign: npt.ArrayLike,
    *,
    axis: int = 0,
    opset: int = 17,
    lowest: int = -128,
    dtype: type = np.int8,
) -> onnx.ModelProto:
    """DequantizeLinear, Conv with a dequantised bias, BatchNormalization. Each channel holds the lowest integer."""
    random = np.random.default_rng(0)
    integers = random.integers(lowest, lowest + 255, (4, 3, 3, 3))
    integers[:, 0, 0, 0] = lowest
    middle = np.zeros(scales.shape) + (128 if dtype is np.uint8 else 0)
    parameters = [
        initializer("q", integers, dtype),
        initializer("scale", scales),
        initializer("zero_point", middle, dtype),
        initializer("bias_q", random.integers(-1000, 1000, 4), np.int32),
        initializer("bias_scale", 0.01),
        initializer("gamma", sign * (random.random(4) + 0.5)),
        initializer("beta", random.standard_normal(4)),
        initializer("mean", random.standard_normal(4)),
        initializer("var", random.random(4) + 0.5),
    ]
    attributes = {"axis": axis} if opset >= 13 else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["w"], name="weight", **attributes),
        helper.make_node("DequantizeLinear", ["bias_q", "bias_scale"], ["bias"], name="bias"),
        helper.make_node("Conv", ["x", "w", "bias"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], name="norm"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 6, 6])
    graph = helper.make_graph(nodes, "graph", [x], [y], parameters)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("scales", [np.asarray(0.05), np.linspace(0.01, 0.2, 4)], ids=["per tensor", "per channel"])
def test_positive_scales_go_into_the_scales(scales: np.ndarray) -> None:
    model = quantized_convolution(scales, 1.0)
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Fold]
    assert_settled(fused)
    assert [node.op_type for node in fused.graph.node] == ["DequantizeLinear", "Conv"]
    stored = {each.name: numpy_helper.to_array(each) for each in fused.graph.initializer}
    original = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert np.array_equal(stored["q"], original["q"])
    onnx.checker.check_model(fused, full_check=True)
    expected, actual = run(model), run(fused)
    assert np.abs(expected - actual).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()


@pytest.mark.parametrize("sign", [-1.0, [1.0, -1.0, 0.0, -1.0], [1.0, 1.0, 0.0, 1.0]], ids=str)
@pytest.mark.parametrize("scales", [np.asarray(0.05), np.linspace(0.01, 0.2, 4)], ids=["per tensor", "per channel"])
@pytest.mark.parametrize(("lowest", "dtype"), [(-127, np.int8), (1, np.uint8)], ids=["int8", "uint8"])
def test_integers_are_mirrored_at_the_zero_point(lowest: int, dtype: type, scales: np.ndarray, sign: Any) -> None:
    """By a negative gamma; by one that is zero they become the zero point, and the scale stays positive."""
    model = quantized_convolution(scales, sign, lowest=lowest, dtype=dtype)
    fused, certificate = certify(model)
    assert [node.op_type for node in fused.graph.node] == ["DequantizeLinear", "Conv"]
    proof = check_proof(Files(model), Files(fused), certificate)
    assert proof.failures == ()
    stored = {each.name: numpy_helper.to_array(each) for each in fused.graph.initializer}
    assert (stored[fused.graph.node[0].input[1]] > 0).all()
    expected, actual = run(model), run(fused)
    assert np.abs(expected - actual).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()
    integers = next(each for each in fused.graph.initializer if each.name == fused.graph.node[0].input[0])
    wrong = numpy_helper.to_array(integers).copy()
    wrong[1, 2, 2, 2] ^= 1
    integers.CopyFrom(numpy_helper.from_array(wrong, integers.name))
    certificate = replace(certificate, result=digest(Files(fused)))
    assert not check_proof(Files(model), Files(fused), certificate).is_proved


def test_a_mirrored_weight_that_something_else_reads_is_copied() -> None:
    model = quantized_convolution(np.asarray(0.05), -1.0, lowest=-127)
    model.graph.node.append(helper.make_node("Conv", ["x", "w"], ["z"], name="other"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4, 6, 6]))
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Fold]
    assert sorted(node.op_type for node in fused.graph.node) == ["Conv", "Conv", "DequantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (quantized_convolution(np.asarray(0.05), [1.0, 1.0, -1.0, 1.0]), Reason.NEGATIVE_SCALE),
        (quantized_convolution(np.asarray(0.05), -1.0, lowest=0, dtype=np.uint8), Reason.NEGATIVE_SCALE),
        (quantized_convolution(np.linspace(0.01, 0.2, 3), 1.0, axis=1), Reason.QUANTIZED),
        (quantized_convolution(np.asarray(0.05), 1.0, opset=12), Reason.QUANTIZED),
    ],
    ids=["no negative", "no negative, unsigned", "scales along the inputs", "opset 12"],
)
def test_what_scales_cannot_hold_stays(model: onnx.ModelProto, reason: Reason) -> None:
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    (outcome,) = outcomes
    assert isinstance(outcome, Refusal)
    assert outcome.reason is reason
    assert [node.op_type for node in fused.graph.node] == [node.op_type for node in model.graph.node]
    assert np.array_equal(run(model), run(fused))
