"""Quantised weights absorb a per-channel scale in their scales and in the signs of their integers, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
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


def trained(
    operator: str = "Conv",
    *,
    scales: npt.ArrayLike = 0.05,
    sign: npt.ArrayLike = 1.0,
    opset: int = 17,
    dtype: Any = np.int8,
    spread: float = 1.0,
    like: dict[str, Any] | None = None,
    kind: type = np.float32,
) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear of a float weight, an operator, BatchNormalization.

    Args:
        operator: the operator; "Gemm" reads a transposed weight, and "Transpose" is a MatMul behind one.
        scales: of the quantiser; many lie along the output channels.
        sign: of gamma.
        opset: the opset.
        dtype: of the integers.
        spread: the deviation of the weights.
        like: attributes of both nodes.
        kind: of weights and scales.
    """
    random = np.random.default_rng(0)
    shape, axis = {
        "Conv": ((4, 3, 3, 3), 0),
        "ConvTranspose": ((3, 4, 3, 3), 1),
        "Gemm": ((4, 3), 0),
        "MatMul": ((3, 4), 1),
        "Transpose": ((4, 3), 0),
    }[operator]
    middle = np.zeros(np.shape(scales)) + (
        2 ** (np.dtype(dtype).itemsize * 8 - 1) if np.dtype(dtype).kind == "u" else 0
    )
    parameters = [
        initializer("w", spread * random.standard_normal(shape), kind),
        initializer("scale", scales, kind),
        initializer("zero_point", middle, dtype),
        initializer("gamma", sign * (random.random(4) + 0.5), kind),
        initializer("beta", random.standard_normal(4), kind),
        initializer("mean", random.standard_normal(4), kind),
        initializer("var", random.random(4) + 0.5, kind),
    ]
    attributes = ({"axis": axis} if opset >= 13 else {}) | (like or {})
    own = {"transB": 1} if operator == "Gemm" else {}
    kernel_reader = "MatMul" if operator == "Transpose" else operator
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "scale", "zero_point"], ["q"], name="quantise", **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["d"], name="weight", **attributes),
        *([helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0])] if operator == "Transpose" else []),
        helper.make_node(kernel_reader, ["x", "t" if operator == "Transpose" else "d"], ["c"], name="operator", **own),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], name="norm"),
    ]
    data = ["N", 3, 8, 8] if "Conv" in operator else ["N", 3]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    x = helper.make_tensor_value_info("x", element, data)
    y = helper.make_tensor_value_info("y", element, ["N", 4, *["H", "W"] * ("Conv" in operator)])
    graph = helper.make_graph(nodes, "graph", [x], [y], parameters)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 19 else 10)


def integers_of(model: onnx.ModelProto) -> np.ndarray:
    """What the only QuantizeLinear makes, by ONNX Runtime."""
    quantise = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    made = helper.make_tensor_value_info(quantise.output[0], kinds[quantise.input[2]], None)
    stored = [each for each in model.graph.initializer if each.name in quantise.input]
    graph = helper.make_graph([quantise], "graph", [], [made], stored)
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {})[0])


def run_on(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def stays(model: onnx.ModelProto) -> Refusal:
    """The refusal of the only BatchNorm of a model, which comes out unchanged."""
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    (outcome,) = outcomes
    assert isinstance(outcome, Refusal)
    assert [node.op_type for node in fused.graph.node] == [node.op_type for node in model.graph.node]
    return outcome


@pytest.mark.parametrize("sign", [1.0, [1.0, -1.0, 0.0, -1.0]], ids=["positive", "signs"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("scales", [0.05, np.linspace(0.03, 0.2, 4)], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm", "MatMul", "Transpose"])
def test_a_quantiser_of_float_weights_keeps_its_integers(
    operator: str, scales: npt.ArrayLike, dtype: type, sign: npt.ArrayLike
) -> None:
    opset = 21 if np.dtype(dtype).itemsize == 2 else 17
    model = trained(operator, scales=scales, sign=sign, opset=opset, dtype=dtype)
    fused, certificate = certify(model)
    behind = {"MatMul": ["MatMul", "Add"], "Transpose": ["Transpose", "MatMul", "Add"]}
    expected_nodes = ["QuantizeLinear", "DequantizeLinear", *behind.get(operator, [operator])]
    assert [node.op_type for node in fused.graph.node] == expected_nodes
    assert_settled(fused)
    onnx.checker.check_model(fused, full_check=True)
    assert check_proof(Files(model), Files(fused), certificate).failures == ()
    assert fused.graph.node[0].input[1:] == fused.graph.node[1].input[1:]
    middle = 0 if np.dtype(dtype).kind == "i" else 2 ** (np.dtype(dtype).itemsize * 8 - 1)
    shape = {"Conv": (4, 1, 1, 1), "ConvTranspose": (4, 1, 1), "Gemm": (4, 1), "MatMul": (4,), "Transpose": (4, 1)}[
        operator
    ]
    signs = np.broadcast_to(np.sign(sign), (4,)).reshape(shape)
    before, after = (integers_of(each).astype(np.int64) - middle for each in (model, fused))
    assert np.array_equal(after, signs * before)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8) if "Conv" in operator else (2, 3)).astype(np.float32)
    expected, actual = run_on(model, x), run_on(fused, x)
    assert np.abs(expected - actual).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_weights_on_a_tie_or_out_of_range_keep_their_integers(sign: float) -> None:
    """Half of these lie on a tie, where times the scale of a BatchNorm they round either way; others are clipped."""
    model = trained(scales=0.0625, sign=sign)
    ties = np.random.default_rng(2).integers(-250, 260, (4, 3, 3, 3)) / 2 * 0.0625
    ties[1, 1] = 100.0
    model.graph.initializer[0].CopyFrom(initializer("w", ties))
    assert (integers_of(model) != -128).all()
    fused, certificate = certify(model)
    assert [node.op_type for node in fused.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert check_proof(Files(model), Files(fused), certificate).failures == ()
    assert np.array_equal(integers_of(fused), sign * integers_of(model))
    stored = {each.name: numpy_helper.to_array(each) for each in fused.graph.initializer}
    weights, scales = (stored[name] for name in fused.graph.node[0].input[:2])
    steps = weights.astype(np.float64) / scales.astype(np.float64).reshape(4, 1, 1, 1)
    assert (np.abs(steps - np.floor(steps) - 0.5) > 1e-6).all()  # no runtime rounds them another way


def test_a_weight_of_which_an_integer_changed_is_rejected() -> None:
    """The same float weight with another scale, or another weight: the checker computes the integers of both."""
    model = trained()
    fused, certificate = certify(model)
    stored = {each.name: each for each in fused.graph.initializer}
    weights, scales = (numpy_helper.to_array(stored[name]).copy() for name in fused.graph.node[0].input[:2])
    weights[1, 2, 0, 0] += scales[1]
    faults = {fused.graph.node[0].input[0]: weights, fused.graph.node[0].input[1]: scales * np.float32(1.001)}
    for name, fault in faults.items():
        broken = onnx.ModelProto()
        broken.CopyFrom(fused)
        tensor = next(each for each in broken.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(fault, name))
        claimed = replace(certificate, result=digest(Files(broken)))
        assert not check_proof(Files(model), Files(broken), claimed).is_proved
    plain = onnx.ModelProto()
    plain.CopyFrom(fused)
    plain.graph.initializer.append(numpy_helper.from_array(integers_of(fused), "integers"))
    plain.graph.node[1].input[0] = "integers"
    del plain.graph.node[0]
    claimed = replace(certificate, result=digest(Files(plain)))
    assert not check_proof(Files(model), Files(plain), claimed).is_proved


@pytest.mark.parametrize(
    ("model", "detail"),
    [
        (trained(opset=10), "before opset 13"),
        (trained(opset=21, scales=np.full((4, 1, 3, 3), 0.05), like={"block_size": 3, "axis": 1}), "in blocks"),
        (trained(opset=19, kind=np.float16), "not quantised from float32"),
        (trained(opset=19, dtype=ml_dtypes.float8_e4m3fn), "not quantised to integers"),
        (trained(scales=-0.05), "its scales not positive"),
    ],
    ids=["opset 10", "blocks", "float16", "float8", "negative scale"],
)
def test_a_quantiser_that_cannot_take_a_fold_says_so(model: onnx.ModelProto, detail: str) -> None:
    outcome = stays(model)
    assert outcome.reason is Reason.QUANTIZED
    assert detail in outcome.detail


def test_a_mirrored_integer_without_a_negative_is_named() -> None:
    outcome = stays(trained(scales=0.01, sign=[1.0, 1.0, -1.0, 1.0]))
    assert outcome.reason is Reason.NEGATIVE_SCALE
    assert "channel 2" in outcome.detail


def test_integers_that_are_changed_stay_as_they_are() -> None:
    """Narrow integers are spelled as a Clip; a weight may be reshaped before it is read."""
    clipped = trained()
    clipped.graph.initializer.extend([initializer("low", -7, np.int8), initializer("high", 7, np.int8)])
    clipped.graph.node.insert(1, helper.make_node("Clip", ["q", "low", "high"], ["narrow"]))
    clipped.graph.node[2].input[0] = "narrow"
    assert stays(clipped).reason is Reason.QUANTIZED
    changed = trained("MatMul")
    changed.graph.initializer.append(initializer("shape", [3, 4], np.int64))
    changed.graph.node.insert(2, helper.make_node("Reshape", ["d", "shape"], ["t"]))
    changed.graph.node[3].input[1] = "t"
    outcome = stays(changed)
    assert outcome.reason is Reason.QUANTIZED
    assert "changed before it is read" in outcome.detail


def test_quantisers_of_onnx_runtime_stay() -> None:
    model = trained()
    for node in model.graph.node[:2]:
        node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    outcome = stays(model)
    assert outcome.reason is Reason.QUANTIZED
    assert "com.microsoft.DequantizeLinear" in outcome.detail


def test_a_quantiser_that_something_else_reads_is_copied() -> None:
    model = trained(scales=np.linspace(0.03, 0.2, 4))
    model.graph.output.append(helper.make_tensor_value_info("q", TensorProto.INT8, None))
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Fold]
    kinds = sorted(node.op_type for node in fused.graph.node)
    assert kinds == ["Conv", "DequantizeLinear", "QuantizeLinear", "QuantizeLinear"]


def test_a_quantised_product_that_changes_gets_another_name() -> None:
    """Its bias is an Add, which keeps the name of the sum."""
    model = trained("MatMul")
    model.graph.initializer.append(initializer("bias", np.ones(4)))
    model.graph.node[3].input[0] = "sum"
    model.graph.node.insert(3, helper.make_node("Add", ["c", "bias"], ["sum"]))
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Fold]
    assert [node.op_type for node in fused.graph.node] == ["QuantizeLinear", "DequantizeLinear", "MatMul", "Add"]
    assert fused.graph.node[2].output[0] != "c"


@pytest.mark.parametrize("sign", [1.0, [1.0, -1.0, 0.0, -1.0]], ids=["positive", "signs"])
@pytest.mark.parametrize("scales", [0.05, np.linspace(0.03, 0.2, 4)], ids=["per tensor", "per channel"])
def test_integers_that_are_transposed_stay_where_they_are(scales: npt.ArrayLike, sign: npt.ArrayLike) -> None:
    """A linear layer of PyTorch: its weight is dequantised, transposed, and multiplied with."""
    model = trained("Transpose", scales=scales, sign=sign)
    integers = initializer("q", np.random.default_rng(2).integers(-127, 127, (4, 3)), np.int8)
    model.graph.initializer[0].CopyFrom(integers)
    del model.graph.node[0]
    fused, certificate = certify(model)
    assert [node.op_type for node in fused.graph.node] == ["DequantizeLinear", "Transpose", "MatMul", "Add"]
    assert_settled(fused)
    onnx.checker.check_model(fused, full_check=True)
    assert check_proof(Files(model), Files(fused), certificate).failures == ()
    stored = {each.name: numpy_helper.to_array(each) for each in fused.graph.initializer}
    signs = np.broadcast_to(np.sign(sign), (4,))[:, None]
    assert np.array_equal(stored[fused.graph.node[0].input[0]], signs * numpy_helper.to_array(integers))
    x = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    expected, actual = run_on(model, x), run_on(fused, x)
    assert np.abs(expected - actual).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()
    name = fused.graph.node[0].input[1]
    (scale,) = (each for each in fused.graph.initializer if each.name == name)
    scale.CopyFrom(numpy_helper.from_array(stored[name][[1, 0, 2, 3]], name))
    certificate = replace(certificate, result=digest(Files(fused)))
    assert not check_proof(Files(model), Files(fused), certificate).is_proved


def test_scales_along_the_inputs_of_a_transposed_weight_stay() -> None:
    outcome = stays(trained("Transpose", scales=[0.1, 0.2, 0.3], like={"axis": 1}))
    assert outcome.reason is Reason.QUANTIZED


def test_a_transposed_weight_that_something_else_reads_is_copied() -> None:
    model = trained("Transpose")
    model.graph.node.append(helper.make_node("MatMul", ["x", "t"], ["z"], name="other"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4]))
    fused, certificate = certify(model)
    assert check_proof(Files(model), Files(fused), certificate).failures == ()
    assert [node.op_type for node in fused.graph.node].count("Transpose") == 2
    onnx.checker.check_model(fused, full_check=True)
