"""Quantised weights absorb a positive per-channel scale in their scales, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Reason, Refusal


def initializer(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def quantized_convolution(scales: np.ndarray, sign: float, *, axis: int = 0, opset: int = 17) -> onnx.ModelProto:
    """DequantizeLinear, Conv with a dequantised bias, BatchNormalization."""
    random = np.random.default_rng(0)
    parameters = [
        initializer("q", random.integers(-128, 127, (4, 3, 3, 3)), np.int8),
        initializer("scale", scales),
        initializer("zero_point", random.integers(-3, 3, scales.shape), np.int8),
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
    assert [node.op_type for node in fused.graph.node] == ["DequantizeLinear", "Conv"]
    stored = {each.name: numpy_helper.to_array(each) for each in fused.graph.initializer}
    original = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert np.array_equal(stored["q"], original["q"])
    onnx.checker.check_model(fused, full_check=True)
    expected, actual = run(model), run(fused)
    assert np.abs(expected - actual).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (quantized_convolution(np.asarray(0.05), -1.0), Reason.NEGATIVE_SCALE),
        (quantized_convolution(np.linspace(0.01, 0.2, 3), 1.0, axis=1), Reason.AXIS_MISMATCH),
        (quantized_convolution(np.asarray(0.05), 1.0, opset=12), Reason.NOT_CONSTANT),
    ],
    ids=["negative scale", "scales along the inputs", "opset 12"],
)
def test_what_scales_cannot_hold_stays(model: onnx.ModelProto, reason: Reason) -> None:
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    (outcome,) = outcomes
    assert isinstance(outcome, Refusal)
    assert outcome.reason is reason
    assert [node.op_type for node in fused.graph.node] == [node.op_type for node in model.graph.node]
    assert np.array_equal(run(model), run(fused))
