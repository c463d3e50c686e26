"""An `nn.Module` comes back as the same class, without BatchNorms, and with everything else as it was."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import bnfold
from bnfold import Fold, Reason, Refusal, UnsupportedModelError
from tests.toys.torch_models import (
    EXACT,
    Row,
    assert_folds,
    assert_same,
    assert_stays,
    drawn,
    fuse,
    norms,
    run,
    sole,
    trained,
)

IMAGE = drawn(2, 4, 8, 8)


class Block(nn.Module):
    """A residual block in the usual spelling."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    """Blocks, a head, and things that no fold may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 3)
        self.register_buffer("counter", torch.zeros(()))
        self.note = {"classes": ["a", "b", "c"]}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def net() -> Net:
    found = trained(Net())
    assert isinstance(found, Net)
    return found


# What survives


def test_the_class_and_the_structure_survive() -> None:
    model = net()
    fused = assert_folds(model, IMAGE)
    assert type(fused) is Net
    assert norms(fused) == []
    assert isinstance(fused.blocks[0].bn1, nn.Identity)
    assert type(fused.blocks[0].conv1) is nn.Conv2d
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in model.named_modules()]
    assert fused.note == model.note
    assert not fused.training


def test_state_dict_keys_that_remain_keep_their_names() -> None:
    model = net()
    fused = assert_folds(model, IMAGE)
    before, after = set(model.state_dict()), set(fused.state_dict())
    gone = {name for name in before if ".bn" in name}
    assert before - after == gone
    assert after - before == {"blocks.0.conv1.bias", "blocks.1.conv1.bias"}


def test_only_changed_tensors_are_copied() -> None:
    model = net()
    fused = assert_folds(model, IMAGE)
    assert fused.head.weight is model.head.weight
    assert fused.counter is model.counter
    assert fused.blocks[0].conv1.weight is not model.blocks[0].conv1.weight


def test_in_place_changes_the_argument_itself() -> None:
    model = net()
    expected = run(model, IMAGE)
    fused = bnfold.fuse(model, inplace=True)
    assert fused is model
    assert norms(model) == []
    assert_same(expected, run(model, IMAGE))


def test_requires_grad_survives() -> None:
    model = net()
    model.blocks[0].conv1.weight.requires_grad_(False)
    fused = assert_folds(model, IMAGE)
    assert not fused.blocks[0].conv1.weight.requires_grad
    assert not fused.blocks[0].conv1.bias.requires_grad
    assert fused.blocks[0].conv2.weight.requires_grad
    assert fused.blocks[1].conv1.bias.requires_grad
    fused(IMAGE).sum().backward()
    assert fused.blocks[1].conv1.weight.grad is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_result_can_be_copied_pickled_and_scripted() -> None:
    model = net()
    fused = assert_folds(model, IMAGE)
    expected = run(model, IMAGE)
    assert_same(expected, run(copy.deepcopy(fused), IMAGE))
    assert_same(expected, run(pickle.loads(pickle.dumps(fused)), IMAGE))
    assert_same(expected, run(torch.jit.script(fused), IMAGE))


def test_a_state_dict_of_the_result_loads_into_it_again() -> None:
    fused = assert_folds(net(), IMAGE)
    other = bnfold.fuse(trained(Net(), seed=7))
    other.load_state_dict(fused.state_dict())
    assert_same(run(fused, IMAGE), run(other, IMAGE))


def test_channels_last_survives() -> None:
    model = net().to(memory_format=torch.channels_last)
    fused = assert_folds(model, IMAGE)
    assert fused.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_hooks_elsewhere_survive() -> None:
    model = net()
    seen: list[str] = []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append("block"))
    model.head.register_forward_pre_hook(lambda module, args: seen.append("head"))
    fused = assert_folds(model, IMAGE)
    seen.clear()
    fused(IMAGE)
    assert seen == ["block", "head"]


def test_fusing_twice_changes_nothing() -> None:
    fused = assert_folds(net(), IMAGE)
    again, outcomes = fuse(fused, IMAGE)
    assert outcomes == ()
    assert all(torch.equal(fused.state_dict()[name], tensor) for name, tensor in again.state_dict().items())


def test_plan_is_what_fuse_does() -> None:
    model = net()
    assert [each.batchnorm for each in bnfold.plan(model)] == [
        "blocks.0.bn1",
        "blocks.0.bn2",
        "blocks.1.bn1",
        "blocks.1.bn2",
    ]
    assert norms(model) != []


def test_only_and_skip_select_by_qualified_name() -> None:
    fused, outcomes = fuse(net(), IMAGE, only=["blocks.0.*"], skip=["*.bn2"])
    assert norms(fused) == ["blocks.0.bn2", "blocks.1.bn1", "blocks.1.bn2"]
    assert [isinstance(each, Fold) for each in outcomes] == [True, False, False, False]


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
    assert not any(isinstance(each, NormAct) for each in fused.modules())


@pytest.mark.parametrize("frozen", [Frozen, FrozenTheOtherWay])
def test_a_frozen_batchnorm_of_buffers_goes(frozen: type[Frozen]) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), frozen(6)))
    fused, outcomes = fuse(model, IMAGE, example_inputs=IMAGE)
    assert outcomes
    assert all(isinstance(each, Fold) for each in outcomes)
    assert not any(isinstance(each, Frozen) for each in fused.modules())
    assert list(fused[1].state_dict()) == []
    assert [node.op for node in fused[1].graph.nodes] == ["placeholder", "output"]


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
    assert not any(isinstance(each, Frozen) for each in fused.modules())


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
    model = net()
    model.blocks[1].bn2.train()
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.bn2.*training mode.*\.eval\(\)"):
        bnfold.fuse(model)


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


def test_a_standardised_weight_needs_other_forward_code() -> None:
    model = trained(nn.Sequential(Standardised(4, 6, 3), nn.BatchNorm2d(6)))
    refusal = assert_stays(model, Reason.FORWARD_CODE, IMAGE)
    assert "GraphModule" in (refusal.advice or "")


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


# Sharing


class Twice(nn.Module):
    """Modules that are called more than once, in a way given by a function."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


SHARED: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[bool]]] = {
    "a convolution twice in a row": (lambda m, x: m.norm(m.conv(m.conv(x))), [False]),
    "a convolution for two BatchNorms": (lambda m, x: m.norm(m.conv(x)) * m.last(m.conv(x)), [False, False]),
    "a BatchNorm behind two convolutions": (lambda m, x: m.norm(m.conv(x)) * m.norm(m.other(x)), [False, False]),
    "the pair twice": (lambda m, x: m.norm(m.conv(m.norm(m.conv(x)))), [False, False]),
    "a convolution whose output is read twice": (lambda m, x: m.norm(m.conv(x)) + m.conv(x), [False]),
    "a convolution with one reader beside": (lambda m, x: (lambda y: m.norm(y) * y)(m.conv(x)), [False]),
    "others than those called twice": (lambda m, x: m.norm(m.conv(x)) * m.other(m.other(x)), [True]),
}


@pytest.mark.parametrize("name", SHARED)
def test_sharing_is_exact_or_refused(name: str) -> None:
    call, folds = SHARED[name]
    _, outcomes = fuse(trained(Twice(call)), IMAGE)
    assert [isinstance(each, Fold) for each in outcomes] == folds


def test_tied_weights_stay() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1)))
    model[3].weight = model[0].weight
    refusal = assert_stays(model, Reason.FORWARD_CODE, IMAGE)
    assert "its weight is tied: 0.weight, 3.weight" in refusal.detail


def test_a_module_under_two_names_is_one_module() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.same, self.also = self.conv, self.norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    fused = assert_folds(trained(Alias()), IMAGE)
    assert fused.same is fused.conv
    assert fused.also is fused.norm
    assert isinstance(fused.also, nn.Identity)


# Hooks

HOOKS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "forward pre": lambda module, hook: module.register_forward_pre_hook(hook),
    "backward": lambda module, hook: module.register_full_backward_hook(hook),
    "state dict": lambda module, hook: module.register_state_dict_post_hook(hook),
}


def watch(*args: Any) -> None:
    """Does nothing."""


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("index", [0, 1], ids=["convolution", "BatchNorm"])
def test_a_hook_on_what_would_change_refuses(kind: str, index: int) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    HOOKS[kind](model[index], watch)
    refusal = assert_stays(model, Reason.HOOK, IMAGE)
    assert "watch" in refusal.detail


def test_a_hook_that_sees_the_value_between_refuses() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 6, 3))
    model = trained(nn.Sequential(inner, nn.BatchNorm2d(6)))
    inner.register_forward_hook(watch)
    _, outcomes = fuse(model, IMAGE)
    assert isinstance(sole(outcomes), Refusal)


def test_a_global_hook_is_an_error() -> None:
    handle = nn.modules.module.register_module_forward_hook(watch)
    try:
        with pytest.raises(UnsupportedModelError, match="global module hook"):
            bnfold.fuse(net())
    finally:
        handle.remove()


# Code that only a GraphModule or an ExportedProgram can change


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)


def test_a_functional_batchnorm_says_what_to_pass() -> None:
    refusal = assert_stays(trained(Functional()), Reason.FORWARD_CODE, IMAGE)
    assert "GraphModule or an ExportedProgram" in (refusal.advice or "")


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.skip = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(torch.relu(x))) + self.skip(torch.relu(x)))


class Identities(nn.Module):
    """RepVGG's identity branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 1)
        self.conv, self.norm, self.skip = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(self.norm(self.conv(x)) + self.skip(x))


def test_what_only_a_merge_folds_says_what_to_pass() -> None:
    _, outcomes = fuse(trained(Identities()), IMAGE, example_inputs=IMAGE)
    folded, kept = outcomes
    assert isinstance(folded, Fold)
    assert isinstance(kept, Refusal)
    assert (kept.batchnorm, kept.reason) == ("skip", Reason.FORWARD_CODE)
    assert "GraphModule or an ExportedProgram" in (kept.advice or "")


class Peeking(nn.Module):
    """Looks at its BatchNorm in the forward code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y * 2 if isinstance(self.norm, nn.BatchNorm2d) else y


def test_forward_code_that_looks_at_the_batchnorm_refuses() -> None:
    assert_stays(trained(Peeking()), Reason.FORWARD_CODE, IMAGE)


class PeekingAtBias(nn.Module):
    """Looks at whether its convolution has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if self.conv.bias is None else y * 2


def test_forward_code_that_looks_for_a_bias_refuses() -> None:
    assert_stays(trained(PeekingAtBias()), Reason.FORWARD_CODE, IMAGE)


# Dynamic Python


class Control(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if y.sum() > 0 else -y


def test_data_dependent_control_flow_is_an_error_with_the_way_out() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Control cannot be traced.*control flow.*example_inputs"):
        bnfold.fuse(trained(Control()))
    with pytest.raises(UnsupportedModelError, match="Control cannot be exported"):
        bnfold.fuse(trained(Control()), example_inputs=IMAGE)


class Lengths(nn.Module):
    """Code that depends on a size: a symbolic trace cannot see through it, an export can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if x.shape[1] == 4 else y[:, :3]


def test_what_cannot_be_traced_is_exported_with_example_inputs() -> None:
    model = trained(Lengths())
    fused = assert_folds(model, IMAGE, example_inputs=IMAGE)
    assert type(fused) is Lengths
    assert isinstance(fused.norm, nn.Identity)


@dataclasses.dataclass
class Output:
    """A dataclass that no library knows."""

    value: Tensor
    hidden: Tensor | None = None


class Structures(nn.Module):
    """Dictionaries in, a dataclass out, and arguments of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, batch: dict[str, Tensor], scale: Tensor | None = None) -> dict[str, Tensor]:
        y = self.norm(self.conv(batch["image"]))
        return {"value": y if scale is None else y * scale}


def test_dictionaries_go_in_and_out() -> None:
    model = trained(Structures())
    fused = assert_folds(model, {"image": IMAGE}, example_inputs=({"image": IMAGE},))
    with torch.no_grad():
        assert set(fused({"image": IMAGE})) == {"value"}


def test_code_that_depends_on_none_needs_an_example() -> None:
    with pytest.raises(UnsupportedModelError, match=r"depends on what scale is.*example_inputs"):
        bnfold.fuse(trained(Structures()))


class DataclassOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Output:
        return Output(self.norm(self.conv(x)))


def test_a_dataclass_comes_out() -> None:
    model = trained(DataclassOut())
    with torch.no_grad():
        expected = model(IMAGE).value
        fused = bnfold.fuse(model, example_inputs=IMAGE)
        assert norms(fused) == []
        assert_same([expected], [fused(IMAGE).value])


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, *images: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(image)) for image in images]


def test_any_number_of_arguments() -> None:
    model = trained(Variadic())
    assert_folds(model, IMAGE, example_inputs=(IMAGE,))


# dtypes and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_rounded_once(dtype: torch.dtype) -> None:
    exact = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)))
    model = exact.to(dtype)
    wide = bnfold.fuse(copy.deepcopy(model).double())
    narrow = bnfold.fuse(model)
    assert narrow[0].weight.dtype is dtype
    assert norms(narrow) == []
    assert torch.equal(narrow[0].weight, wide[0].weight.to(dtype))
    assert torch.equal(narrow[0].bias, wide[0].bias.to(dtype))


def test_half_precision_convolution_with_single_precision_batchnorm() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    model[0].half()
    model[1].float()
    fused = bnfold.fuse(model)
    assert fused[0].weight.dtype is torch.float16
    assert norms(fused) == []
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        expected, actual = wide(IMAGE), copy.deepcopy(fused).double()(IMAGE)
    assert (expected - actual).abs().max() <= 36 * 2.0**-11 * expected.abs().max()


def test_a_weight_that_would_overflow_half_precision_stays() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    model[0].weight.data.fill_(1000.0)
    model[1].weight.data.fill_(1000.0)
    model.half()
    found = sole(bnfold.plan(model))
    assert isinstance(found, Refusal)
    assert found.reason is Reason.OVERFLOW


def test_meta_tensors_are_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match="meta device"):
        bnfold.fuse(net().to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_stay_on_their_device() -> None:
    model = net().cuda()
    fused = bnfold.fuse(model)
    assert {each.device.type for each in fused.parameters()} == {"cuda"}
    assert_same(run(model, IMAGE.cuda()), run(fused, IMAGE.cuda()), 1e-10)


# Wrappers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module_is_an_error_with_the_way_out() -> None:
    with pytest.raises(UnsupportedModelError, match="_orig_mod"):
        bnfold.fuse(torch.compile(net()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda model: torch.jit.trace(model, IMAGE)], ids=["script", "trace"]
)
def test_a_scripted_module_is_an_error_with_the_way_out(make: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(UnsupportedModelError, match="ScriptModule"):
        bnfold.fuse(make(net()))


def test_data_parallel_is_unwrapped_and_wrapped_again() -> None:
    fused = assert_folds(nn.DataParallel(net()), IMAGE)
    assert type(fused) is nn.DataParallel
    assert type(fused.module) is Net
    assert norms(fused) == []


def test_a_module_that_cannot_be_copied_says_inplace() -> None:
    class Locked(Net):
        def __deepcopy__(self, memo: object) -> Locked:
            raise TypeError("no copies of this")

    model = trained(Locked())
    expected = run(model, IMAGE)
    with pytest.raises(UnsupportedModelError, match=r"no copies of this.*inplace=True"):
        bnfold.fuse(model)
    assert_same(expected, run(bnfold.fuse(model, inplace=True), IMAGE), EXACT)


# What an example tells


class Cropped(nn.Module):
    """An operator that does not run on symbols, and a reshape that regroups what it is given."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.conv(x), (-1, 0, 0, 0))
        return self.norm(y.reshape(y.shape[0], -1, y.shape[3], self.columns)[:, :6])


def test_a_fold_holds_for_other_sizes_than_those_of_the_example() -> None:
    for columns in (6, 3, 2):
        model = trained(Cropped(columns))
        fused = bnfold.fuse(model, example_inputs=drawn(2, 4, 6, 8))
        for height in (6, 12):
            assert_same(run(model, drawn(2, 4, height, 8)), run(fused, drawn(2, 4, height, 8)))


def test_a_fold_with_an_example_of_equal_sizes_holds_for_others() -> None:
    model = trained(Row(nn.Conv2d(4, 4, 1), lambda x: x.transpose(2, 3), nn.BatchNorm2d(4)))
    fused = assert_folds(model, drawn(4, 4, 4, 4), example_inputs=drawn(4, 4, 4, 4))
    assert_same(run(model, drawn(1, 4, 3, 9)), run(fused, drawn(1, 4, 3, 9)))


def test_a_reshape_that_only_the_sizes_of_the_example_make_plain_stays() -> None:
    model = trained(Row(nn.Conv1d(4, 4, 1), lambda x: x.reshape(-1, 4, 4), nn.BatchNorm1d(4)))
    fused = bnfold.fuse(model, example_inputs=drawn(4, 4, 4))
    for length in (4, 8, 1):
        assert_same(run(model, drawn(4, 4, length)), run(fused, drawn(4, 4, length)))


def test_a_channel_that_the_example_happens_to_have_is_not_taken_for_granted() -> None:
    scale = drawn(1, 4, 1, seed=3)
    model = trained(Row(lambda x: x * scale, nn.Conv1d(4, 4, 1)))
    fused = bnfold.fuse(torch.fx.symbolic_trace(model), example_inputs=drawn(2, 4, 5))
    assert_same(run(model, drawn(2, 1, 5)), run(fused, drawn(2, 1, 5)))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    bnfold.fuse(trained(Cropped(3)), example_inputs=drawn(2, 4, 6, 8))
    assert capfd.readouterr() == ("", "")


def test_the_forward_leaves_no_marks() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.norm(self.conv(x))
            return self.last + torch.ones(6, 1, 1, dtype=x.dtype)

    model = trained(Remembers())
    fused = bnfold.fuse(model)
    assert fused.last is None
    assert set(vars(fused)) == set(vars(model))


class Autocast(nn.Module):
    """A convolution that runs in another type than its weight has, which a trace does not record."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.conv(x)
        return self.norm(y.float())


def test_what_runs_under_autocast_stays() -> None:
    model = trained(Autocast()).float()
    refusal = assert_stays(model, Reason.NOT_LINEAR, IMAGE.float())
    assert "autocast" in refusal.detail
    with torch.autocast("cpu", torch.bfloat16):  # around everything, it is the caller's
        assert isinstance(sole(bnfold.plan(nn.Sequential(model.conv, model.norm))), Fold)


def test_an_export_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    bnfold.fuse(trained(Lengths()), example_inputs=IMAGE[:1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("given", [(IMAGE, IMAGE), {"y": IMAGE}], ids=["too many", "another name"])
def test_example_inputs_that_do_not_fit_are_an_error(given: object) -> None:
    with pytest.raises(UnsupportedModelError, match=r"example_inputs do not fit Net\.forward"):
        bnfold.fuse(net(), example_inputs=given)


# What a trace does not show


class Pair(nn.Module):
    """A convolution and a BatchNorm, called by a function, and what else an example needs."""

    def __init__(self, call: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.call = call
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.extra = nn.Parameter(torch.ones(6, 4, 3, 3))
        self.count = torch.zeros(1)
        self.register_buffer("state", torch.zeros(1))
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def pair(call: Callable[..., Any], **held: Any) -> Any:
    return trained(Pair(call, **held))


def count_up(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.norm(m.conv(x))


def halve(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        for each in m.conv.parameters():
            each.mul_(0.5)
    return m.norm(m.conv(x))


def assign_buffer(m: Any, x: Tensor) -> Tensor:
    m.state = m.state + 1
    return m.norm(m.conv(x))


def assign_data(m: Any, x: Tensor) -> Tensor:
    m.conv.weight.data = m.extra * 2
    return m.norm(m.conv(x))


OUTSIDE: dict[str, Callable[[Any, Tensor], Any]] = {
    "a counter": count_up,
    "a write into parameters": halve,
    "an assigned buffer": assign_buffer,
    "assigned data": assign_data,
    "parameters()": lambda m, x: (m.norm(m.conv(x)), sum(each.pow(2).sum() for each in m.parameters())),
    "named_parameters()": lambda m, x: m.norm(m.conv(x)) * dict(m.named_parameters())["conv.weight"].mean(),
    "_parameters": lambda m, x: m.norm(m.conv(x)) * m.conv._parameters["weight"].mean(),
    "state_dict()": lambda m, x: m.norm(m.conv(x)) * m.state_dict()["conv.weight"].mean(),
    "a vector": lambda m, x: m.norm(m.conv(x)) * nn.utils.parameters_to_vector(m.conv.parameters()).mean(),
    "numbers": lambda m, x: m.norm(m.conv(x)) * next(m.conv.parameters()).flatten().tolist()[0],
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_tensors_reached_past_the_trace_are_an_error_and_the_argument_stays(name: str) -> None:
    model = pair(OUTSIDE[name])
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=r"cannot be traced .*: pass example_inputs"):
        bnfold.fuse(model)
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    assert model.count == 0


def test_what_tells_nothing_of_the_content_of_parameters_folds() -> None:
    assert_folds(pair(lambda m, x: m.norm(m.conv(x.to(next(m.parameters()).dtype)))), IMAGE)


@pytest.mark.parametrize("name", ["parameters()", "_parameters", "state_dict()"])
def test_parameters_read_elsewhere_stay_where_the_model_is_exported(name: str) -> None:
    _, outcomes = fuse(pair(OUTSIDE[name]), IMAGE, example_inputs=IMAGE)
    assert isinstance(sole(outcomes), Refusal)


def test_an_export_leaves_the_plain_tensors_of_the_argument_alone() -> None:
    model = pair(count_up)
    bnfold.fuse(model, example_inputs=IMAGE)
    assert model.count == 0


class Doubled(nn.Conv2d):
    """A convolution whose weight is a property."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.raw = self._parameters.pop("weight")

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.raw * 2


MADE: dict[str, Callable[[], nn.Module]] = {
    "in the forward": lambda: pair(lambda m, x: m.norm(F.conv2d(x, torch.ones(6, 4, 1, 1, dtype=x.dtype)))),
    "in the forward, of a type": lambda: pair(lambda m, x: m.norm(F.conv2d(x, torch.ones(6, 4, 1, 1).double()))),
    "a plain tensor": lambda: pair(lambda m, x: m.norm(F.conv2d(x, m.plain)), plain=drawn(6, 4, 1, 1)),
    "a property": lambda: pair(lambda m, x: m.norm(m.conv(x)), conv=Doubled(4, 6, 3)),
    "not registered": lambda: pair(lambda m, x: m.norm(m.inner[0](x)), inner=[nn.Conv2d(4, 6, 1).double()]),
}


@pytest.mark.parametrize("name", MADE)
def test_a_weight_that_is_no_parameter_stays(name: str) -> None:
    _, outcomes = fuse(MADE[name](), IMAGE, example_inputs=IMAGE)
    assert isinstance(sole(outcomes), Refusal)


@pytest.mark.parametrize("name", ["in the forward", "in the forward, of a type"])
def test_a_program_with_a_weight_made_in_the_forward_folds(name: str) -> None:
    assert_folds(torch.export.export(MADE[name](), (IMAGE,)), IMAGE)


def through_list(m: Any, x: Tensor) -> Tensor:
    if x.shape[0] > 1:
        x = x * 1.0
    for each in m.layers:
        x = each(x)
    return x


def look(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) * (0.5 if isinstance(m.norm, nn.BatchNorm2d) else 1.0)


def look_for_bias(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) * (2.0 if m.conv.bias is not None else 1.0)


def with_references() -> Any:
    model = pair(lambda m, x: m.norm(F.conv2d(x, m.held[0], m.held[1])))
    model.held = [model.conv.weight, model.conv.bias]
    return model


LOOKING: dict[str, Callable[[], Any]] = {
    "a number by a type": lambda: pair(look),
    "a number by a bias": lambda: pair(look_for_bias, conv=nn.Conv2d(4, 6, 3, bias=False)),
    "a list of parameters": with_references,
}


@pytest.mark.parametrize("name", LOOKING)
def test_forward_code_that_looks_at_a_module_or_holds_old_parameters_stays(name: str) -> None:
    _, outcomes = fuse(LOOKING[name](), IMAGE)
    assert isinstance(sole(outcomes), Refusal)


def test_an_output_that_tells_the_type_of_a_module_stays() -> None:
    model = pair(lambda m, x: (m.norm(m.conv(x)), isinstance(m.norm, nn.BatchNorm2d)))
    assert bnfold.fuse(model)(IMAGE)[1] is True


def test_a_batchnorm_in_a_plain_list_stays_where_the_model_is_exported() -> None:
    model = pair(through_list)
    model.layers = [model.conv, model.norm]
    _, outcomes = fuse(model, IMAGE, example_inputs=IMAGE)
    assert isinstance(sole(outcomes), Refusal)


@pytest.mark.parametrize("default", [None, False, "a", 0, 1.5])
def test_a_flag_that_chooses_the_way_needs_an_example(default: Any) -> None:
    """Folded for its default, the module would be wrong for every other value."""

    class Chooser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, flag: Any = default) -> Tensor:
            y: Tensor = self.conv(x)
            return y if flag in (2, True, "b") else self.bn(y)

    model = Chooser().eval()
    with pytest.raises(UnsupportedModelError, match="flag"):
        bnfold.fuse(model)
    assert bnfold.plan(model, example_inputs=(torch.zeros(1, 3, 8, 8),))


class Scale(nn.Module):
    """Per channel, with an attribute that other code may ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.is_bounded = nn.Parameter(drawn(4, seed=3)), True

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.view(1, -1, 1, 1)


LOOKS_AT_SCALE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "its attribute": lambda s, x: F.relu(s.scale(s.conv(x))) if s.scale.is_bounded else x,
    "its type": lambda s, x: F.relu(s.scale(s.conv(x))) if isinstance(s.scale, Scale) else x,
    "a list that holds it too": lambda s, x: s.held[0](s.conv(x)),
}


@pytest.mark.parametrize("case", ["nothing", *LOOKS_AT_SCALE])
def test_a_module_of_ones_own_is_replaced_where_nothing_looks_at_it(case: str) -> None:
    """It would be a graph without its attributes, of another type, and in its place alone."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(4, 4, 3), Scale()
            self.held = [self.scale]

        def forward(self, x: Tensor) -> Tensor:
            if case in LOOKS_AT_SCALE:
                return LOOKS_AT_SCALE[case](self, x)
            y: Tensor = self.scale(self.conv(x))
            return y

    model = trained(Model())
    fused, outcomes = bnfold.fuse(model, example_inputs=(IMAGE,), return_outcomes=True)
    assert bool(outcomes) == (case == "nothing")
    with torch.no_grad():
        assert_same(model(IMAGE), fused(IMAGE))
