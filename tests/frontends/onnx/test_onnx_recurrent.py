"""The input weights of LSTM, GRU and RNN absorb an affine; their outputs do not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Refusal

SEQUENCE, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(operator: str, direction: str, *, has_bias: bool) -> onnx.ModelProto:
    """BatchNormalization on [batch, inputs, sequence], transposed to [sequence, batch, inputs], then the layer."""
    random = np.random.default_rng(0)
    directions, rows = (2 if direction == "bidirectional" else 1), GATES[operator] * HIDDEN
    shapes = {"w": (directions, rows, INPUTS), "r": (directions, rows, HIDDEN), "b": (directions, 2 * rows)}
    shapes |= {"gamma": (INPUTS,), "beta": (INPUTS,), "mean": (INPUTS,)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["var"] = (random.random(INPUTS) + 0.5).astype(np.float32)
    if not has_bias:
        del arrays["b"]
    inputs = ["t", "w", "r"] + (["b"] if has_bias else [])
    nodes = [
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Transpose", ["n"], ["t"], perm=[2, 0, 1], name="transpose"),
        helper.make_node(operator, inputs, ["y"], hidden_size=HIDDEN, direction=direction, name="layer"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, INPUTS, SEQUENCE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [SEQUENCE, directions, BATCH, HIDDEN])
    parameters = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], parameters)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((BATCH, INPUTS, SEQUENCE)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_input_weights_absorb(operator: str, direction: str, has_bias: bool) -> None:
    model = recurrent(operator, direction, has_bias=has_bias)
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    (outcome,) = outcomes
    assert isinstance(outcome, Fold)
    assert (outcome.direction, outcome.into, outcome.through) == ("downstream", ("layer",), ("transpose",))
    onnx.checker.check_model(fused, full_check=True)
    expected, actual = run(model), run(fused)
    assert np.abs(expected - actual).max() <= 64 * np.finfo(np.float32).eps * np.abs(expected).max()


def test_a_batchnorm_behind_a_recurrent_layer_stays() -> None:
    model = recurrent("RNN", "forward", has_bias=True)
    model.graph.node.pop(0)
    model.graph.node[0].input[0] = "x"
    del model.graph.node[1].output[:]
    model.graph.node[1].output.append("h")
    behind = helper.make_node("BatchNormalization", ["h", "one", "one", "one", "one"], ["y"], name="norm")
    model.graph.node.append(behind)
    model.graph.initializer.append(numpy_helper.from_array(np.full(1, 2.0, np.float32), "one"))
    _, outcomes = bnfold.fuse(model, return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Refusal]
