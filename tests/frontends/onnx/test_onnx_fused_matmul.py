"""ONNX Runtime's FusedMatMul, ``alpha op(A) @ op(B)``, where one operand is a constant matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Reason, Refusal
from bnfold.api import certify
from bnfold.proof.checker import check_proof
from bnfold.proof.models import Files, digest

DOMAIN = "com.microsoft"


def product(
    on_right: bool, rank: int, *, is_behind: bool = True, functions: bool = False, **attributes: Any
) -> onnx.ModelProto:
    """A FusedMatMul of data with five features and a constant, and a BatchNorm behind or before it.

    Args:
        on_right: whether the constant is the second operand.
        rank: of the data.
        is_behind: whether the BatchNorm is behind it.
        functions: whether the model has a function of this name.
        attributes: of the product.
    """
    random = np.random.default_rng(0)
    turned = (
        attributes.get("transB" if on_right else "transA", 0),
        attributes.get("transA" if on_right else "transB", 0),
    )
    shape = (5, 4) if on_right != bool(turned[0]) else (4, 5)
    features = rank - 1 if on_right != bool(turned[1]) else rank - 2
    sizes = [2, 3, 6][-rank:]
    sizes[features] = 5
    channels = 4 if is_behind else sizes[1]
    vectors = {name: random.random(channels) + 0.5 for name in ("gamma", "beta", "mean", "var")}
    vectors["gamma"][1] *= -1
    stored = {"w": random.standard_normal(shape), **vectors}
    norm = ["gamma", "beta", "mean", "var"]
    data, made = ("x", "p") if is_behind else ("n", "y")
    operands = [data, "w"] if on_right else ["w", data]
    nodes = [helper.make_node("FusedMatMul", operands, [made], name="product", domain=DOMAIN, **attributes)]
    ends = ("p", "y") if is_behind else ("x", "n")
    place = len(nodes) if is_behind else 0
    nodes.insert(place, helper.make_node("BatchNormalization", [ends[0], *norm], [ends[1]], name="norm"))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    bodies = []
    if functions:
        sine = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Sin", ["c"], ["d"])]
        bodies = [helper.make_function(DOMAIN, "FusedMatMul", ["a", "b"], ["d"], sine, [helper.make_opsetid("", 17)])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=bodies)


def run(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    return np.asarray(session.run(None, {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)})[0])


ATTRIBUTES = [{}, {"alpha": 0.5}, {"transA": 1}, {"transB": 1, "alpha": -2.0}, {"transA": 1, "transB": 1}]


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=str)
@pytest.mark.parametrize(("on_right", "rank"), [(True, 2), (False, 3)], ids=["right", "left"])
def test_a_batchnorm_behind_it_folds(on_right: bool, rank: int, attributes: dict[str, Any]) -> None:
    model = product(on_right, rank, **attributes)
    fused, certificate = certify(model)
    assert [node.op_type for node in fused.graph.node] == ["FusedMatMul", "Add"]
    assert not any(attribute.name == "alpha" for attribute in fused.graph.node[0].attribute)
    assert check_proof(Files(model), Files(fused), certificate).failures == ()
    expected, actual = run(model), run(fused)
    assert np.abs(expected - actual).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()
    for tensor in fused.graph.initializer:
        right, wrong = numpy_helper.to_array(tensor), numpy_helper.to_array(tensor).copy()
        wrong.reshape(-1)[3] = np.nextafter(wrong.reshape(-1)[3], np.float32(np.inf))
        tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
        claimed = replace(certificate, result=digest(Files(fused)))
        assert not check_proof(Files(model), Files(fused), claimed).is_proved
        tensor.CopyFrom(numpy_helper.from_array(right, tensor.name))


@pytest.mark.parametrize(
    ("on_right", "rank", "attributes"),
    [(True, 2, {}), (True, 3, {"transA": 1}), (False, 3, {}), (True, 2, {"transB": 1}), (False, 2, {"transB": 1})],
    ids=str,
)
def test_a_batchnorm_before_it_folds(on_right: bool, rank: int, attributes: dict[str, Any]) -> None:
    model = product(on_right, rank, is_behind=False, **attributes)
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Fold]
    assert "BatchNormalization" not in {node.op_type for node in fused.graph.node}
    expected, actual = run(model), run(fused)
    assert np.abs(expected - actual).max() <= 16 * np.finfo(np.float32).eps * np.abs(expected).max()


@pytest.mark.parametrize(
    "model",
    [
        product(False, 3, transBatchB=1),
        product(True, 2, functions=True),
        product(True, 3),
    ],
    ids=["an axis of the batch moves", "a function of this name", "features on another axis than channels"],
)
def test_what_is_no_such_product_stays(model: onnx.ModelProto) -> None:
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    (outcome,) = outcomes
    assert isinstance(outcome, Refusal)
    assert outcome.reason in (Reason.NOT_LINEAR, Reason.AXIS_MISMATCH)
    assert [node.op_type for node in fused.graph.node] == ["FusedMatMul", "BatchNormalization"]
