"""Quantised weights of programs: PyTorch's own quantisers between a parameter and a linear operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

import bnfold
from bnfold import Reason, Refusal
from tests.toys.torch_models import drawn, trained


class FakeQuantized(nn.Module):
    """A convolution whose weight is rounded to the grid of a quantiser, as it is while a model is trained for that."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(4, 3, 3, 3, seed=1))
        self.register_buffer("scales", torch.full((4,), 0.02))
        self.register_buffer("points", torch.zeros(4, dtype=torch.int32))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.fake_quantize_per_channel_affine(self.weight, self.scales, self.points, 0, -127, 127)
        normed: Tensor = self.norm(F.conv2d(x, weight))
        return normed


def test_a_weight_that_training_quantises_is_no_missing_constant() -> None:
    """To make the weight a parameter, as for one that is not constant, would undo the quantisation."""
    x = drawn(2, 3, 8, 8)
    program = torch.export.export(trained(FakeQuantized()).float(), (x.float(),))
    fused, outcomes = bnfold.fuse(program, return_outcomes=True)
    (outcome,) = outcomes
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.QUANTIZED
    assert "fake_quantize_per_channel_affine" in outcome.detail
    assert torch.equal(fused.module()(x.float()), program.module()(x.float()))
