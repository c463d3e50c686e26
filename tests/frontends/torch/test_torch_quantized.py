"""Quantised weights of programs: PyTorch's own quantisers between a tensor and a linear operator."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 (registers the operators)

import bnfold
from bnfold import Fold, Reason, Refusal
from bnfold.proof.torch.check import check_program
from bnfold.proof.torch.sides import digest
from tests.toys.torch_models import drawn, trained
from tests.toys.torch_proofs import certify

OPERATORS = torch.ops.quantized_decomposed

SHAPES = {"conv2d": (4, 3, 3, 3), "conv_transpose2d": (3, 4, 3, 3), "linear": (4, 3), "matmul": (3, 4)}
AXES = {"conv2d": 0, "conv_transpose2d": 1, "linear": 0, "matmul": 1}


class Quantized(nn.Module):
    """Integers, what makes floats of them, a linear operator, and a BatchNorm.

    Args:
        operator: the operator.
        per_channel: whether there is a scale for each output channel.
        signs: of the BatchNorm's scales.
        lowest: the least integer, which each channel has.
        axis: along which the scales lie, if not along the output channels.
        twice: whether another operator reads the weight, too.
        out: the type of the dequantised weight.
    """

    def __init__(
        self,
        operator: str = "conv2d",
        *,
        per_channel: bool = True,
        signs: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
        lowest: int = -127,
        axis: int | None = None,
        twice: bool = False,
        out: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        integers = torch.randint(lowest, 128, SHAPES[operator], dtype=torch.int8, generator=generator)
        integers.select(1 - AXES[operator], 0).fill_(lowest)
        self.axis = AXES[operator] if axis is None else axis
        count = integers.shape[self.axis]
        self.register_buffer("integers", integers)
        self.register_buffer("scales", torch.linspace(0.01, 0.04, count))
        self.register_buffer("points", torch.zeros(count, dtype=torch.int64))
        self.bias = nn.Parameter(drawn(4, seed=2))
        self.norm: nn.Module = nn.BatchNorm1d(4) if operator in ("linear", "matmul") else nn.BatchNorm2d(4)
        trained(self)
        self.norm.weight.data = torch.tensor(signs) * (0.5 + torch.arange(4.0))
        self.float()
        self.operator, self.per_channel, self.lowest, self.twice, self.out = operator, per_channel, lowest, twice, out

    def forward(self, x: Tensor) -> Any:
        limits = self.lowest, 127, torch.int8
        if self.per_channel:
            scales = self.scales, self.points, self.axis
            weight = OPERATORS.dequantize_per_channel(self.integers, *scales, *limits, out_dtype=self.out)
        else:
            weight = OPERATORS.dequantize_per_tensor(self.integers, 0.02, 0, *limits)
        call = torch.matmul if self.operator == "matmul" else getattr(F, self.operator)
        y = call(x, weight) if self.operator == "matmul" else call(x, weight, self.bias)
        return (self.norm(y), call(x, weight)) if self.twice else self.norm(y)


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


def data(module: Quantized) -> Tensor:
    return drawn(2, 3, 8, 8).float() if "conv" in module.operator else drawn(2, 3).float()


def closely(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() <= 16 * torch.finfo(torch.float32).eps * expected.abs().max()


@pytest.mark.parametrize("signs", [(1.0, 1.0, 1.0, 1.0), (1.0, -1.0, 0.0, -1.0)], ids=["positive", "signs"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("operator", SHAPES)
def test_scales_take_in_a_batchnorm(operator: str, per_channel: bool, signs: tuple[float, ...]) -> None:
    """The integers stay, or are mirrored; one scale for all becomes one for each output channel."""
    module = Quantized(operator, per_channel=per_channel, signs=signs)
    x = data(module)
    program = torch.export.export(module, (x,))
    for model in (program, program.module(), module):
        given = {} if model is program else {"example_inputs": (x,)}
        fused, outcomes = bnfold.fuse(model, return_outcomes=True, **given)
        assert [type(outcome) for outcome in outcomes] == [Fold]
        closely((fused.module() if model is program else fused)(x), module(x))
    folded = bnfold.fuse(program)
    stored = {*folded.state_dict.values(), *folded.constants.values()}
    (integers,) = (tensor for tensor in stored if tensor.dtype is torch.int8)
    shape = [4 if axis == AXES[operator] else 1 for axis in range(integers.dim())]
    assert torch.equal(integers, (module.integers * torch.tensor(signs).reshape(shape)).to(torch.int8))
    again = bnfold.fuse(folded, return_outcomes=True)[1]
    assert again == ()


def test_a_weight_that_something_else_reads_is_copied() -> None:
    module = Quantized(twice=True)
    x = data(module)
    fused, outcomes = bnfold.fuse(torch.export.export(module, (x,)), return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Fold]
    for actual, expected in zip(fused.module()(x), module(x), strict=True):
        closely(actual, expected)


def test_a_saved_program_folds_in_a_process_that_never_quantised(tmp_path: Path) -> None:
    """Its operators are registered by an import that such a process has no other reason for."""
    module = Quantized(per_channel=False)
    source, target = tmp_path / "model.pt2", tmp_path / "folded.pt2"
    torch.export.save(torch.export.export(module, (data(module),)), source)
    command = [sys.executable, "-m", "bnfold", "fuse", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 folded, 0 kept" in done.stdout
    closely(torch.export.load(target).module()(data(module)), module(data(module)))


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_a_wrong_quantised_weight_is_rejected(per_channel: bool) -> None:
    module = Quantized(per_channel=per_channel, signs=(1.0, -1.0, 0.0, -1.0))
    x = data(module)
    program = torch.export.export(module, (x,))
    fused, certificate = certify(program)
    assert check_program(program, fused, certificate).is_proved
    homes = [(home, name) for home in (fused.state_dict, fused.constants) for name in home]
    tried = set()
    for home, name in homes:
        right = home[name]
        wrong = right.clone().detach()
        if right.dtype is torch.float32:
            wrong.view(-1)[1] = torch.nextafter(wrong.view(-1)[1], torch.tensor(torch.inf))
        else:
            wrong.view(-1)[30 % wrong.numel()] += 1
        home[name] = nn.Parameter(wrong, right.requires_grad) if isinstance(right, nn.Parameter) else wrong
        assert not check_program(program, fused, replace(certificate, result=digest(fused))).is_proved, name
        home[name] = right
        tried.add((right.dtype, right.dim()))
    assert tried >= {(torch.int8, 4), (torch.float32, 1), (torch.int64, 1)}


@pytest.mark.parametrize(
    ("module", "reason", "detail"),
    [
        (Quantized(lowest=-128, signs=(1.0, 1.0, -1.0, 1.0)), Reason.NEGATIVE_SCALE, "channel 2"),
        (Quantized(axis=1), Reason.QUANTIZED, "another axis"),
        (Quantized(out=torch.float64), Reason.QUANTIZED, "a form that is not read"),
    ],
    ids=["no negative", "scales along the inputs", "another type"],
)
def test_what_scales_cannot_hold_stays(module: Quantized, reason: Reason, detail: str) -> None:
    x = data(module)
    if module.out is not None:
        module.to(module.out)
        module.scales.data = module.scales.float()
        x = x.to(module.out)
    program = torch.export.export(module, (x,))
    fused, outcomes = bnfold.fuse(program, return_outcomes=True)
    (outcome,) = outcomes
    assert isinstance(outcome, Refusal)
    assert outcome.reason is reason
    assert detail in outcome.detail
    assert torch.equal(fused.module()(x), program.module()(x))


def test_a_weight_that_training_quantises_is_no_missing_constant() -> None:
    """To make the weight a parameter, as for one that is not constant, would undo the quantisation."""
    x = drawn(2, 3, 8, 8).float()
    program = torch.export.export(trained(FakeQuantized()).float(), (x,))
    fused, outcomes = bnfold.fuse(program, return_outcomes=True)
    (outcome,) = outcomes
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.QUANTIZED
    assert "fake_quantize_per_channel_affine" in outcome.detail
    assert torch.equal(fused.module()(x), program.module()(x))
