"""Blocks of real networks, as both exporters of PyTorch write them, fold to no BatchNorm at all."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import bnfold
from bnfold import Fold, Merge


class LinearNorm(nn.Module):
    """LeViT's Linear and BatchNorm1d over flattened tokens."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out, bias=False)
        self.norm = nn.BatchNorm1d(fan_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Tokens(nn.Module):
    """Two of them with LeViT's activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = LinearNorm(16, 32), LinearNorm(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.hardswish(self.first(x)))


class CrossStage(nn.Module):
    """A CSP block: two branches, concatenated, then one BatchNorm for both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 4, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.silu(self.norm(torch.cat([self.one(x), self.two(x)], 1))))


def trained(module: nn.Module) -> nn.Module:
    """The module in eval mode, with running statistics that are not those of a new one."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.weight.data.normal_(generator=generator)
            norm.bias.data.normal_(generator=generator)
    return module.eval()


def export(module: nn.Module, x: torch.Tensor, *, dynamo: bool, is_dynamic: bool) -> onnx.ModelProto:
    """With its BatchNorms, which both exporters fold by default."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if is_dynamic else None
            program = torch.onnx.export(module, (x,), dynamo=True, optimize=False, dynamic_shapes=shapes, verbose=False)
            assert program is not None
            return program.model_proto
        file = io.BytesIO()
        torch.onnx.export(
            module,
            (x,),
            file,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}} if is_dynamic else None,
        )
        return onnx.load_from_string(file.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic batch"])
@pytest.mark.parametrize(
    ("block", "x"), [(Tokens, torch.randn(2, 7, 16)), (CrossStage, torch.randn(2, 3, 8, 8))], ids=["LeViT", "CSP"]
)
def test_blocks_fold(block: type[nn.Module], x: torch.Tensor, dynamo: bool, is_dynamic: bool) -> None:
    torch.manual_seed(0)
    module = trained(block())
    proto = export(module, x, dynamo=dynamo, is_dynamic=is_dynamic)
    assert any(each.op_type == "BatchNormalization" for each in proto.graph.node)
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert all(isinstance(each, Fold | Merge) for each in outcomes)
    assert not any(each.op_type == "BatchNormalization" for each in fused.graph.node)
    onnx.checker.check_model(fused)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(fused.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = module.double()(x.double()).detach().numpy()
    assert np.abs(actual - expected).max() <= 64 * np.finfo(np.float32).eps * np.abs(expected).max()
