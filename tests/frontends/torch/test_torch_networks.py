"""Real architectures from Hugging Face transformers, small and random, fold to no BatchNorm at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import Fold
from bnfold.testing import assert_equivalent
from tests.toys.torch_models import assert_same, exported, of_batchnorms, to_onnx_by_export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # transformers and torch warn each other
]

transformers = pytest.importorskip("transformers")

SMALL = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1], "num_labels": 5}


def rt_detr() -> nn.Module:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
        layer_type="basic",
    )
    width = dict.fromkeys(("encoder_hidden_dim", "encoder_ffn_dim", "d_model", "decoder_ffn_dim"), 32)
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        encoder_in_channels=[16, 24, 32],
        decoder_in_channels=[32, 32, 32],
        num_queries=10,
        num_denoising=0,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_labels=5,
        **width,
    )
    return transformers.RTDetrForObjectDetection(config)


def levit() -> nn.Module:
    shape = {"hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 3, 4], "key_dim": [8] * 3, "depths": [1] * 3}
    return transformers.LevitForImageClassification(transformers.LevitConfig(image_size=64, num_labels=5, **shape))


def mobilevit() -> nn.Module:
    shape = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32]}
    config = transformers.MobileViTConfig(image_size=64, num_labels=5, **shape)
    return transformers.MobileViTForImageClassification(config)


def efficientnet() -> nn.Module:
    config = transformers.EfficientNetConfig(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, num_labels=5
    )
    return transformers.EfficientNetForImageClassification(config)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet": (lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig(**SMALL)), 20),
    "RegNet": (
        lambda: transformers.RegNetForImageClassification(transformers.RegNetConfig(groups_width=8, **SMALL)),
        20,
    ),
    "MobileNetV1": (
        lambda: transformers.MobileNetV1ForImageClassification(
            transformers.MobileNetV1Config(depth_multiplier=0.25, num_labels=5)
        ),
        27,
    ),
    "MobileNetV2": (
        lambda: transformers.MobileNetV2ForImageClassification(
            transformers.MobileNetV2Config(depth_multiplier=0.25, num_labels=5)
        ),
        52,
    ),
    "LeViT": (levit, 27),
    "MobileViT": (mobilevit, 32),
    "EfficientNet": (efficientnet, 25),
    "RT-DETR": (rt_detr, 42),
}


def used(name: str) -> nn.Module:
    """A network whose BatchNorms have the statistics of a few passes in training mode, in float64."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = NETWORKS[name][0]()
    for each in model.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.train()
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias, 0, 0.1)
        elif "FrozenBatchNorm" in type(each).__name__:
            each.running_mean.normal_(0, 0.5)
            each.running_var.uniform_(0.5, 2.0)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64))
    return model.double().eval()


def outputs(model: Any, x: Tensor) -> list[Tensor]:
    module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    with torch.no_grad():
        made = module(x)
    found = made.to_tuple() if hasattr(made, "to_tuple") else torch.utils._pytree.tree_leaves(made)
    return [each for each in found if isinstance(each, Tensor) and each.is_floating_point() and each.numel()]


def is_normalisation(module: nn.Module) -> bool:
    return "BatchNorm" in type(module).__name__ and bool(module.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_batchnorm_of_a_module_folds(name: str) -> None:
    model, x = used(name), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fused, outcomes = bnfold.fuse(model, return_outcomes=True, example_inputs=x)
    assert [type(each) for each in of_batchnorms(outcomes)] == [Fold] * NETWORKS[name][1]
    assert isinstance(fused, type(model))  # by a subclass, where convolutions of two modules became one
    assert not any(is_normalisation(each) for each in fused.modules())
    assert_same(outputs(model, x), outputs(fused, x), 1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_batchnorm_of_a_program_folds(name: str) -> None:
    model, x = used(name), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    program = exported(model, x)
    fused, outcomes = bnfold.fuse(program, return_outcomes=True)
    assert [type(each) for each in of_batchnorms(outcomes)] == [Fold] * NETWORKS[name][1]
    assert not any("batch_norm" in str(node.target) for node in fused.graph.nodes)
    assert_same(outputs(model, x), outputs(fused, x), 1e-9)


class Logits(nn.Module):
    """A network with one output, a tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).logits


@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2"])
def test_fusing_before_and_after_the_export_are_equivalent(name: str) -> None:
    model, x = Logits(used(name)).float().eval(), torch.randn(2, 3, 64, 64)
    original = to_onnx_by_export(model, x)
    before, after = to_onnx_by_export(bnfold.fuse(model, example_inputs=x), x), bnfold.fuse(original)
    for one in (before, after):
        assert not any(node.op_type == "BatchNormalization" for node in one.graph.node)
    assert_equivalent(original, before, outputs_only=True, effort="fast")
    assert_equivalent(before, after, outputs_only=True, effort="fast")
