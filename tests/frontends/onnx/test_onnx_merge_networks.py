"""Branchy networks, as both exporters of PyTorch write them, fold to the convolutions of their deploy form."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import bnfold.testing
from bnfold import Fold, Merge
from tests.frontends.onnx.test_exporters import export
from tests.toys.branchy_networks import NETWORKS, deploy, trained


def run(proto: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    """By onnxruntime with its own optimisations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return found


def count(proto: onnx.ModelProto, *operators: str) -> int:
    return sum(each.op_type in operators for each in proto.graph.node)


def weight_bytes(tensor: onnx.TensorProto) -> int:
    return numpy_helper.to_array(tensor).nbytes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_deploy_form_is_the_same_network(name: str) -> None:
    torch.manual_seed(0)
    network = trained(NETWORKS[name]()).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = network(x), deploy(network)(x)
    assert float((actual - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_folds_to_its_deploy_form(name: str, is_dynamic: bool, dynamo: bool) -> None:
    torch.manual_seed(0)
    network = trained(NETWORKS[name]())
    x = torch.randn(2, 3, 16, 16)
    proto = export(network, x, dynamo=dynamo, is_dynamic=is_dynamic)
    assert count(proto, "BatchNormalization")
    goal = export(deploy(copy.deepcopy(network)), x, dynamo=dynamo, is_dynamic=is_dynamic)
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    onnx.checker.check_model(fused, full_check=True)
    assert all(isinstance(each, Fold | Merge) for each in outcomes)
    for operators in (["Conv"], ["BatchNormalization"], ["Add", "Sub", "Sum", "Mul"]):
        assert count(fused, *operators) == count(goal, *operators)
    if dynamo and not is_dynamic:  # takes most of the time
        bnfold.testing.assert_equivalent(proto, fused, effort="fast", samples=1, outputs_only=True)
    assert sum(map(weight_bytes, fused.graph.initializer)) <= sum(map(weight_bytes, proto.graph.initializer))
    assert len(fused.graph.node) <= len(goal.graph.node)
    expected = network.double()(x.double()).detach().numpy()
    bound = 256 * np.finfo(np.float32).eps * np.abs(expected).max()
    assert np.abs(run(fused, x) - expected).max() <= bound
    assert np.abs(run(goal, x) - expected).max() <= bound
