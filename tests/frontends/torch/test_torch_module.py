"""An `nn.Module` comes back as the same class, without BatchNorms, and with everything else as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

import bnfold
from bnfold import Fold, Reason, Refusal, UnsupportedModelError
from tests.toys.torch_models import (
    EXACT,
    assert_folds,
    assert_same,
    assert_stays,
    exported,
    fuse,
    norms,
    of_batchnorms,
    run,
    sole,
    trained,
)
from tests.toys.torch_networks import IMAGE, Net, net

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


def test_the_result_shares_no_tensor_with_the_original() -> None:
    model = net()
    for options in ({}, {"example_inputs": IMAGE}):
        fused = assert_folds(model, IMAGE, **options)
        own = {each.data_ptr() for each in (*fused.parameters(), *fused.buffers())}
        assert own.isdisjoint(each.data_ptr() for each in (*model.parameters(), *model.buffers()))


def test_only_changed_tensors_are_copied_where_sharing_is_asked_for() -> None:
    model = net()
    fused = assert_folds(model, IMAGE, share=True)
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
def test_sharing_is_exact_or_refused_where_the_code_stays(name: str) -> None:
    call, folds = SHARED[name]
    fused, outcomes = fuse(trained(Twice(call)), IMAGE, code="keep")
    assert [isinstance(each, Fold) for each in outcomes] == folds
    assert type(fused) is Twice


@pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])
@pytest.mark.parametrize("name", SHARED)
def test_what_is_called_twice_folds_into_weights_of_each_call(name: str, options: dict[str, Any]) -> None:
    _, outcomes = fuse(trained(Twice(SHARED[name][0])), IMAGE, **options)
    folded = [isinstance(each, Fold) for each in of_batchnorms(outcomes)]
    assert all(folded) or name == "a convolution with one reader beside"


class Siamese(nn.Module):
    """Calls an encoder twice, and may read one of its layers beside that."""

    def __init__(self, *, has_reader: bool = False) -> None:
        super().__init__()
        pair = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.encoder = nn.Sequential(*pair, nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.has_reader = has_reader

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        difference: Tensor = self.encoder(x) - self.encoder(y)
        return difference + self.encoder[0](x).mean() if self.has_reader else difference


SIAMESE = IMAGE, IMAGE.flip(0)

GIVEN = pytest.mark.parametrize("options", [{}, {"example_inputs": SIAMESE}], ids=["traced", "exported"])


@GIVEN
def test_calls_that_become_the_same_read_the_same_weights(options: dict[str, Any]) -> None:
    model = trained(Siamese())
    fused, outcomes = bnfold.fuse(model, return_outcomes=True, **options)
    assert [isinstance(each, Fold) and not each.changes_code for each in outcomes] == [True] * 4
    assert not any(hasattr(type(each), "_bnfold_code") for each in fused.modules())
    assert list(fused.state_dict()) == [f"encoder.{index}.{kind}" for index in (0, 3) for kind in ("weight", "bias")]
    assert_same(run(model, *SIAMESE), run(fused, *SIAMESE))


@GIVEN
def test_a_further_reader_of_a_weight_keeps_the_old_one(options: dict[str, Any]) -> None:
    model = trained(Siamese(has_reader=True))
    fused, outcomes = bnfold.fuse(model, return_outcomes=True, **options)
    folds = [each for each in outcomes if isinstance(each, Fold)]
    assert [each.changes_code for each in folds] == [each.batchnorm.startswith("encoder.1") for each in folds]
    assert len({each.data_ptr() for each in fused.parameters() if each.shape == (4, 4, 3, 3)}) == 2
    assert_same(run(model, *SIAMESE), run(fused, *SIAMESE))


@pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])
def test_calls_that_become_the_same_may_need_other_code_all_the_same(options: dict[str, Any]) -> None:
    """A convolution without a bias in the forward code gets one."""

    def call(m: Any, x: Tensor) -> Tensor:
        return m.norm(F.conv2d(x, m.conv.weight)) * m.norm(F.conv2d(x + 1, m.conv.weight))

    fused, outcomes = bnfold.fuse(trained(Twice(call)), return_outcomes=True, **options)
    assert [each.changes_code for each in of_batchnorms(outcomes) if isinstance(each, Fold)] == [True] * 2
    assert any(hasattr(type(each), "_bnfold_code") for each in fused.modules())


def test_calls_of_a_program_that_become_the_same_read_the_same_weights() -> None:
    program = exported(trained(Siamese()), *SIAMESE)
    fused = bnfold.fuse(program)
    assert list(fused.state_dict) == [f"encoder.{index}.{kind}" for index in (0, 3) for kind in ("weight", "bias")]
    assert_same(run(program.module(), *SIAMESE), run(fused.module(), *SIAMESE))


def test_batchnorms_that_are_equal_by_chance_get_weights_of_their_own() -> None:
    """Else names of parameters depended on values, and weights did not go from one folded model to another."""

    def keys(module: nn.Module) -> set[str]:
        return set(bnfold.fuse(module, example_inputs=IMAGE).state_dict())

    def call(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x)) * m.last(m.conv(x + 1))

    different = trained(Twice(call))
    equal = trained(Twice(call))
    equal.last.load_state_dict(equal.norm.state_dict())
    assert keys(equal) == keys(different)


def test_tied_weights_are_copied_on_write() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1)))
    model[3].weight = model[0].weight
    fused = assert_folds(model, IMAGE, example_inputs=IMAGE)
    assert fused[0].weight is not fused[3].weight
    assert torch.equal(fused[3].weight, model[3].weight)
    refusal = assert_stays(model, Reason.FORWARD_CODE, IMAGE, code="keep")
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


def test_a_functional_batchnorm_needs_other_code() -> None:
    assert_folds(trained(Functional()), IMAGE, example_inputs=IMAGE)
    refusal = assert_stays(trained(Functional()), Reason.FORWARD_CODE, IMAGE, example_inputs=IMAGE, code="keep")
    assert refusal.advice


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


def test_an_identity_branch_needs_other_code() -> None:
    fused = assert_folds(trained(nn.Sequential(Identities())), IMAGE, example_inputs=IMAGE)
    assert type(fused) is nn.Sequential
    assert isinstance(fused[0], Identities)
    assert list(fused.state_dict()) == ["0.stem.weight", "0.stem.bias", "0.conv.weight", "0.conv.bias"]


def test_what_only_a_merge_folds_says_so_where_the_code_stays() -> None:
    _, outcomes = fuse(trained(Identities()), IMAGE, example_inputs=IMAGE, code="keep")
    folded, kept = outcomes
    assert isinstance(folded, Fold)
    assert isinstance(kept, Refusal)
    assert (kept.batchnorm, kept.reason) == ("skip", Reason.FORWARD_CODE)
    assert kept.advice


class Peeking(nn.Module):
    """Looks at its BatchNorm in the forward code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y * 2 if isinstance(self.norm, nn.BatchNorm2d) else y


@pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])
def test_forward_code_that_looks_at_the_batchnorm_is_replaced(options: dict[str, Any]) -> None:
    assert_folds(trained(Peeking()), IMAGE, **options)
    assert_stays(trained(Peeking()), Reason.FORWARD_CODE, IMAGE, code="keep", **options)


class PeekingAtBias(nn.Module):
    """Looks at whether its convolution has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if self.conv.bias is None else y * 2


@pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])
def test_forward_code_that_looks_for_a_bias_is_replaced(options: dict[str, Any]) -> None:
    assert_folds(trained(PeekingAtBias()), IMAGE, **options)
    assert_stays(trained(PeekingAtBias()), Reason.FORWARD_CODE, IMAGE, code="keep", **options)


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
def test_a_compiled_module_is_unwrapped_and_wrapped_again() -> None:
    model = net()
    compiled = torch.compile(model)
    fused = bnfold.fuse(compiled, example_inputs=IMAGE)
    assert type(fused) is type(compiled)
    assert norms(fused) == []
    assert_same(run(model, IMAGE), run(fused._orig_mod, IMAGE))


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
    seen: list[str] = []
    model.head.register_forward_hook(lambda module, args, output: seen.append("head"))
    with pytest.raises(UnsupportedModelError, match=r"no copies of this.*inplace=True"):
        bnfold.fuse(model)
    for options in ({}, {"example_inputs": IMAGE}):
        assert_same(expected, run(bnfold.fuse(model, inplace=True, **options), IMAGE), EXACT)
    assert seen == ["head", "head"]
