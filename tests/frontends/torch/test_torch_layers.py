"""Kinds of BatchNorm and of linear layers, and subclasses of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import bnfold
from bnfold import Fold, Reason, Refusal, UnsupportedModelError
from tests.toys.torch_models import Row, assert_folds, assert_same, assert_stays, drawn, fuse, norms, run, sole, trained
from tests.toys.torch_networks import IMAGE, net

# Kinds of BatchNorm


class Affineless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class NormAct(nn.BatchNorm2d):
    """As timm has it: a subclass with an activation in its own forward."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4 axes (got {x.ndim})")
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(y)


class Frozen(nn.Module):
    """As torchvision has it: buffers and arithmetic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 0.5), ("bias", 0.3), ("running_mean", -0.2), ("running_var", 1.7)):
            self.register_buffer(name, torch.full((channels,), value) + torch.arange(channels) / 10)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        mean, var = self.running_mean.reshape(1, -1, 1, 1), self.running_var.reshape(1, -1, 1, 1)
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d on vectors": (lambda: Row(nn.Linear(4, 6), nn.BatchNorm1d(6)), (3, 4)),
    "1d": (lambda: Row(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (2, 4, 9)),
    "2d": (lambda: Row(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), (2, 4, 8, 8)),
    "3d": (lambda: Row(nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6)), (2, 4, 5, 5, 5)),
    "without affine": (Affineless, (2, 4, 8, 8)),
    "synchronised": (
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Row2(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))),
        (2, 4, 8, 8),
    ),
    "instance norm with running statistics": (
        lambda: Row(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
        (2, 4, 8, 8),
    ),
    "instance norm without affine": (
        lambda: Row(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, track_running_stats=True)),
        (2, 4, 8, 8),
    ),
}


class Row2(nn.Sequential):
    """Another class than nn.Sequential."""


class FrozenTheOtherWay(Frozen):
    """The same with the constants in front."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.reshape(shape) * (self.running_var.reshape(shape) + 1e-5).rsqrt()
        return (self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale) + scale * x


@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_batchnorm(kind: str) -> None:
    make, shape = KINDS[kind]
    model = trained(make())
    assert norms(assert_folds(model, drawn(*shape), example_inputs=drawn(*shape))) == []


@pytest.mark.parametrize(
    "steps", [(nn.Linear(4, 4), nn.BatchNorm1d(4)), (nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))], ids=["linear", "conv"]
)
def test_where_the_rank_decides_which_axis_is_meant_only_an_example_tells(steps: tuple[nn.Module, nn.Module]) -> None:
    model = trained(nn.Sequential(*steps))
    refusal = assert_stays(model, Reason.UNKNOWN_SHAPE, drawn(4, 4))
    assert "example_inputs" in (refusal.advice or "")


def test_a_linear_whose_features_number_as_the_tokens_stays() -> None:
    model = trained(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    assert_stays(model, Reason.AXIS_MISMATCH, drawn(2, 5, 5), example_inputs=drawn(2, 5, 5))
    assert_folds(model, drawn(2, 5), example_inputs=drawn(2, 5))


def test_lazy_modules_fold_once_they_are_materialised() -> None:
    model = nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d())
    model(torch.randn(2, 4, 8, 8))
    assert norms(assert_folds(trained(model), IMAGE)) == []


def test_an_activation_inside_a_subclass_stays() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), NormAct(6)))
    fused = assert_folds(model, IMAGE)
    assert any(isinstance(each, nn.SiLU) for each in fused.modules())
    assert_same(run(model, IMAGE), run(copy.deepcopy(fused), IMAGE))
    assert isinstance(fused[1], NormAct)
    assert list(fused.state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("frozen", [Frozen, FrozenTheOtherWay])
def test_a_frozen_batchnorm_of_buffers_goes(frozen: type[Frozen]) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), frozen(6)))
    fused, outcomes = fuse(model, IMAGE, example_inputs=IMAGE)
    assert outcomes
    assert all(isinstance(each, Fold) for each in outcomes)
    assert isinstance(fused[1], frozen)
    assert fused[1](IMAGE) is IMAGE
    assert list(fused[1].state_dict()) == []


class Untraceable(nn.Module):
    """A frozen BatchNorm in code that only an export gets through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), Frozen(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if len(y.shape) == 4 and x.shape[1] == 4 else y.flatten()


def test_a_frozen_batchnorm_goes_where_the_model_is_exported_too() -> None:
    fused, outcomes = fuse(trained(Untraceable()), IMAGE, example_inputs=IMAGE)
    assert outcomes
    assert fused.norm(IMAGE) is IMAGE


class Switched(nn.Module):
    """Arithmetic on one of two buffers, as an argument says that the default does not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.linspace(1, 2, 6).reshape(6, 1, 1))
        self.register_buffer("two", torch.linspace(3, 5, 6).reshape(6, 1, 1))

    def forward(self, x: Tensor, first: bool = False) -> Tensor:
        return torch.tanh(x * self.one) ** 2 if first else torch.tanh(x * self.two) ** 3


class Switches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(4, 6, 3), Switched()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.conv(x), first=True)


def test_a_submodule_is_replaced_by_what_it_does_here_only() -> None:
    fuse(trained(Switches()), IMAGE, example_inputs=IMAGE)


def test_training_mode_is_an_error_that_says_eval() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Net is in training mode.*\.eval\(\)"):
        bnfold.fuse(net().train())


@pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])
def test_a_batchnorm_in_training_mode_stays_and_the_rest_folds(options: dict[str, Any]) -> None:
    model = net()
    model.blocks[1].bn2.train()
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused, outcomes = bnfold.fuse(model, return_outcomes=True, **options)
    assert norms(fused) == ["blocks.1.bn2"]
    assert fused.blocks[1].bn2.training
    assert [each.reason for each in outcomes if isinstance(each, Refusal)] == [Reason.TRAINING_MODE]
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    assert_same(run(copy.deepcopy(model), IMAGE), run(fused, IMAGE))


def test_no_running_statistics_stays() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)))
    assert_stays(model, Reason.TRAINING_MODE, IMAGE)


def test_instance_norm_with_statistics_of_the_input_is_no_batchnorm() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, affine=True)))
    assert fuse(model, IMAGE)[1] == ()


def test_an_uninitialised_lazy_module_is_an_error() -> None:
    model = nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d()).eval()
    with pytest.raises(UnsupportedModelError, match="not initialised"):
        bnfold.fuse(model)


# Kinds of linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("linear", "norm", "shape"),
    [
        (nn.Conv1d, nn.BatchNorm1d, (2, 4, 9)),
        (nn.Conv2d, nn.BatchNorm2d, (2, 4, 8, 8)),
        (nn.Conv3d, nn.BatchNorm3d, (2, 4, 5, 5, 5)),
        (nn.ConvTranspose1d, nn.BatchNorm1d, (2, 4, 9)),
        (nn.ConvTranspose2d, nn.BatchNorm2d, (2, 4, 8, 8)),
        (nn.ConvTranspose3d, nn.BatchNorm3d, (2, 4, 4, 4, 4)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2, "dilation": 2, "padding": 1}], ids=["plain", "all"])
def test_convolution(linear: Any, norm: Any, shape: tuple[int, ...], options: dict[str, int], bias: bool) -> None:
    model = trained(nn.Sequential(linear(4, 6, 3, bias=bias, **options), norm(6)))
    assert_folds(model, drawn(*shape), example_inputs=drawn(*shape))


def test_bilinear_is_no_linear_operator() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product, self.norm = nn.Bilinear(4, 4, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.product(x, x))

    assert_stays(trained(Pair()), Reason.NOT_LINEAR, drawn(3, 4))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("behind", [True, False], ids=["behind", "in front"])
def test_padding_with_copies_of_the_data(mode: str, behind: bool) -> None:
    conv, act = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode), nn.SiLU()
    steps = (conv, nn.BatchNorm2d(4)) if behind else (act, nn.BatchNorm2d(4), conv)
    assert_folds(trained(nn.Sequential(*steps)), IMAGE)


@pytest.mark.parametrize("padding", [1, "same"])
def test_zero_padding_does_not_see_a_shift(padding: Any) -> None:
    model = trained(nn.Sequential(nn.SiLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=padding)))
    _, outcomes = fuse(model, IMAGE)
    found = sole(outcomes)
    assert isinstance(found, Refusal)
    assert "border" in found.detail


class Renamed(nn.Conv2d):
    """A subclass that only adds a parameter."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(3))


def test_a_subclass_that_adds_parameters_folds() -> None:
    fused = assert_folds(trained(nn.Sequential(Renamed(4, 6, 3), nn.BatchNorm2d(6))), IMAGE)
    assert type(fused[0]) is Renamed


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight is computed anew in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / (std + 1e-5), self.bias)


@pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])
def test_a_standardised_weight_needs_other_forward_code(options: dict[str, Any]) -> None:
    model = trained(nn.Sequential(Standardised(4, 6, 3), nn.BatchNorm2d(6)))
    fused = assert_folds(model, IMAGE, **options)
    assert isinstance(fused[0], Standardised)
    assert_stays(model, Reason.FORWARD_CODE, IMAGE, code="keep", **options)


class Scaled(nn.Conv2d):
    """A subclass whose forward does something else with the result."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


def test_a_subclass_with_its_own_forward_is_read_and_never_assumed() -> None:
    assert_stays(trained(nn.Sequential(Scaled(4, 6, 3), nn.BatchNorm2d(6))), Reason.NOT_LINEAR, IMAGE)


class OddPadding(nn.Conv2d):
    """A subclass that changes what the inherited forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias) ** 2


def test_a_subclass_that_changes_what_its_forward_calls_is_read() -> None:
    assert_stays(trained(nn.Sequential(OddPadding(4, 6, 3), nn.BatchNorm2d(6))), Reason.NOT_LINEAR, IMAGE)


def test_a_forward_set_on_the_instance_is_read() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x).abs()
    with torch.no_grad():
        expected = model(IMAGE)
    fused = bnfold.fuse(model, inplace=True)
    with torch.no_grad():
        assert_same([expected], [fused(IMAGE)])


@pytest.mark.parametrize(
    "normalise",
    [weight_norm, parametrizations.weight_norm, spectral_norm, parametrizations.spectral_norm],
    ids=["old weight", "new weight", "old spectral", "new spectral"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_parametrised_weight_stays_with_advice(normalise: Callable[[nn.Module], nn.Module]) -> None:
    model = trained(nn.Sequential(normalise(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)))
    model(IMAGE)
    refusal = assert_stays(model, Reason.PARAMETRIZED, IMAGE)
    assert "materialise" in (refusal.advice or "")


def test_a_parametrisation_that_was_removed_folds() -> None:
    model = trained(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)))
    parametrize.remove_parametrizations(model[0], "weight")
    assert_folds(model, IMAGE)
