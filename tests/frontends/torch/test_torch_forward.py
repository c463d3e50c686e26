"""Modules whose forward is ordinary Python, and what a fold makes of them: it never runs, changes or crashes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn
from torch.nn.utils import prune

import bnfold
from bnfold import Fold
from tests.toys.torch_models import (
    assert_folds,
    assert_same,
    drawn,
    exported,
    fuse,
    norms,
    of_batchnorms,
    run,
    trained,
)
from tests.toys.torch_networks import IMAGE, Net, net

OPTIONS = pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])


class Pair(nn.Module):
    """A convolution and a BatchNorm, called by a function."""

    def __init__(self, call: Callable[[Any, Tensor], Any], **held: Any) -> None:
        super().__init__()
        self.call = call
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.register_buffer("count", torch.zeros(1))
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def pair(call: Callable[[Any, Tensor], Any], **held: Any) -> Any:
    return trained(Pair(call, **held))


def both(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.norm(m.conv(x))
    return y


# Tensors made of sizes: a proxy that claims to be a tensor kills the interpreter there

SIZES: dict[str, Callable[[Tensor], Any]] = {
    "zeros": lambda x: torch.zeros(x.shape[0], 3),
    "ones": lambda x: torch.ones(x.shape[0], x.shape[1]),
    "empty": lambda x: torch.empty(x.shape[0], 2).fill_(1),
    "full": lambda x: torch.full((x.shape[0],), 2.0),
    "arange": lambda x: torch.arange(x.shape[0]),
    "linspace": lambda x: torch.linspace(0, 1, x.shape[2]),
    "eye": lambda x: torch.eye(x.shape[2]),
    "tensor": lambda x: torch.tensor(x.shape[0]),
    "tril": lambda x: torch.tril(torch.ones(x.shape[2], x.shape[3])),
    "meshgrid": lambda x: torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")[0],
    "a window": lambda x: torch.hann_window(x.shape[2]),
    "an inverse transform": lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]),
    "an expansion": lambda x: torch.ones(1).expand(x.shape[0], 3),
    "new zeros": lambda x: x.new_zeros(x.shape[0], 2),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_tensor_made_of_a_size_folds_with_an_example(name: str) -> None:
    fused = assert_folds(pair(lambda m, x: (both(m, x), SIZES[name](x))), IMAGE, example_inputs=IMAGE)
    assert isinstance(fused.norm, nn.Identity)
    model = pair(lambda m, x: (both(m, x), SIZES[name](x)))
    fused = bnfold.fuse(model, example_inputs=IMAGE[:1])
    for other in (drawn(1, 4, 8, 8), drawn(3, 4, 10, 7)):
        assert_same(run(model, other), run(fused, other))


@pytest.mark.parametrize("name", SIZES)
def test_a_tensor_made_of_a_size_folds_or_is_an_error_without_an_example(name: str) -> None:
    try:
        fuse(pair(lambda m, x: (both(m, x), SIZES[name](x))), IMAGE)
    except bnfold.UnsupportedModelError as error:
        assert "pass example_inputs" in str(error)  # noqa: PT017 (either is right)


class Twofold(torch.autograd.Function):
    """An operator of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 2


@OPTIONS
def test_a_function_with_a_gradient_of_its_own(options: dict[str, Any]) -> None:
    assert_folds(pair(lambda m, x: both(m, Twofold.apply(x))), IMAGE, **options)


# What the code changes is not changed by a fold


def count(m: Any, x: Tensor) -> Tensor:
    m.count.add_(1)
    return both(m, x)


def assign(m: Any, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return both(m, x) + m.count.to(x.dtype)


def remember(m: Any, x: Tensor) -> Tensor:
    m.cache.setdefault(tuple(x.shape), torch.arange(6, dtype=x.dtype).view(6, 1, 1))
    return both(m, x) + m.cache[tuple(x.shape)]


def note(m: Any, x: Tensor) -> Tensor:
    m.cache["last"] = both(m, x)
    return m.cache["last"]  # type: ignore[no-any-return]


def draw(m: Any, x: Tensor) -> Tensor:
    torch.rand(1)
    return both(m, x)


MARKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a counter": count,
    "an assigned buffer": assign,
    "a cache by size": remember,
    "the last value": note,
    "a random number": draw,
}


@pytest.mark.parametrize("name", MARKS)
def test_neither_plan_nor_fuse_leaves_a_mark(name: str) -> None:
    model = pair(MARKS[name], cache={})
    expected = run(copy.deepcopy(model), IMAGE)
    state, random = {name: each.clone() for name, each in model.state_dict().items()}, torch.random.get_rng_state()
    bnfold.plan(model, example_inputs=IMAGE)
    fused, outcomes = bnfold.fuse(model, example_inputs=IMAGE, return_outcomes=True)
    assert all(isinstance(each, Fold) for each in outcomes)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.cache == {}
    assert fused.cache == {}
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert_same(expected, run(fused, IMAGE))
    assert torch.equal(fused.count, run_once(model).count)


def run_once(model: Any) -> Any:
    twin = copy.deepcopy(model)
    run(twin, IMAGE)
    return twin


@pytest.mark.parametrize("name", ["a cache by size", "the last value"])
def test_a_module_that_has_run_folds(name: str) -> None:
    """Its cache holds results of autograd, which torch does not copy."""
    model = pair(MARKS[name], cache={})
    expected = model(IMAGE)
    held = dict(model.cache)
    fused = bnfold.fuse(model, example_inputs=IMAGE)
    assert all(model.cache[key] is held[key] for key in held)
    assert_same([expected.detach()], run(fused, IMAGE))


def test_example_inputs_are_not_changed() -> None:
    x = IMAGE.clone()
    bnfold.fuse(net(), example_inputs=x)
    assert torch.equal(x, IMAGE)
    assert vars(x) == {}


class Flipping(Net):
    """Copies itself as a class does that builds anew: in training mode."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Flipping:
        twin = Flipping()
        for name, each in self._modules.items():
            twin._modules[name] = copy.deepcopy(each, memo)
        return twin.double().train()


@OPTIONS
def test_the_copy_has_the_flags_of_the_original(options: dict[str, Any]) -> None:
    model = trained(Flipping())
    fused = bnfold.fuse(model, **options)
    assert not any(each.training for each in fused.modules())
    assert norms(fused) == []
    assert_same(run(model, IMAGE), run(fused, IMAGE))


def test_a_step_of_an_optimiser_on_the_original_leaves_the_copy() -> None:
    for made in (net(), torch.fx.symbolic_trace(net())):
        fused = bnfold.fuse(made)
        before = run(fused, IMAGE)
        optimiser = torch.optim.SGD(made.parameters(), lr=1.0)
        made(IMAGE).sum().backward()
        optimiser.step()
        assert_same(before, run(fused, IMAGE), 0.0)


def test_a_program_shares_no_tensor_with_the_original() -> None:
    program = exported(net(), IMAGE)
    fused = bnfold.fuse(program)
    own = {each.data_ptr() for each in fused.state_dict.values()}
    assert own.isdisjoint(each.data_ptr() for each in program.state_dict.values())
    shared = bnfold.fuse(program, share=True)
    assert shared.state_dict["head.weight"] is program.state_dict["head.weight"]


# Arguments


class Optional(nn.Module):
    """Arguments with defaults, and any others by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, **others: Tensor) -> Tensor:
        norm = self.norm
        y = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias) * scale
        for each in others.values():
            y = y + each
        return y if mask is None else y * mask


GIVEN: list[dict[str, Any]] = [
    {"x": IMAGE},
    {"x": IMAGE, "scale": 2.0},
    {"x": IMAGE, "mask": drawn(6, 6)},
    {"x": IMAGE, "shift": drawn(6, 6), "mask": drawn(6, 6)},
]


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: " ".join(given))
def test_example_inputs_say_which_arguments_are_given(given: dict[str, Any]) -> None:
    model = trained(Optional())
    fused, outcomes = bnfold.fuse(model, example_inputs=given, return_outcomes=True)
    assert all(isinstance(each, Fold) for each in outcomes)
    with torch.no_grad():
        assert_same([model(**given)], [fused(**given)])


def test_generated_code_refuses_other_arguments() -> None:
    fused = bnfold.fuse(trained(Optional()), example_inputs=IMAGE)
    with pytest.raises(ValueError, match="generated the forward of Optional"):
        fused(IMAGE, scale=3.0)
    with pytest.raises(ValueError, match="generated the forward of Optional"):
        fused(IMAGE, drawn(6, 6))


def test_example_inputs_that_the_model_cannot_run_are_an_error() -> None:
    with pytest.raises(bnfold.UnsupportedModelError, match="cannot be exported"):
        bnfold.fuse(net(), example_inputs=drawn(2, 5, 8, 8))


# Constants, modes, wrappers


def test_a_constant_that_is_moved_to_a_device_is_no_obstacle() -> None:
    assert_folds(pair(lambda m, x: both(m, x) + m.plain.to(x.device), plain=drawn(1)), IMAGE, example_inputs=IMAGE)


@OPTIONS
def test_inference_mode_around_everything(options: dict[str, Any]) -> None:
    with torch.inference_mode():
        model = pair(both)
        expected = run(model, IMAGE)
        fused = bnfold.fuse(model, **options)
    assert norms(fused) == []
    assert not any(each.is_inference() for each in fused.parameters())
    assert_same(expected, run(fused, IMAGE))
    fused(IMAGE).sum().backward()


@OPTIONS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_submodule_is_opaque_and_the_rest_folds(options: dict[str, Any]) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), torch.jit.script(nn.SiLU())))
    fused = bnfold.fuse(model, **options)
    assert norms(fused) == []
    assert_same(run(model, IMAGE), run(fused, IMAGE))


def test_code_without_gradients_is_no_border() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = m.conv(x)
        return m.norm(y)  # type: ignore[no-any-return]

    assert_folds(pair(call), IMAGE, example_inputs=IMAGE)


def test_a_failing_export_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = pair(lambda m, x: both(m, x) if x.sum() > 0 else x)
    with pytest.raises(bnfold.UnsupportedModelError, match="cannot be exported"):
        bnfold.fuse(model, example_inputs=IMAGE)
    assert capfd.readouterr() == ("", "")


def test_a_branch_on_values_names_the_way_out() -> None:
    """Which is to fuse by itself what can be captured: code on the branch not taken may reach into any of it."""
    part = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    model = pair(lambda m, x: m.part(x) if x.sum() > 0 else m.part(-x), part=part)
    with pytest.raises(bnfold.UnsupportedModelError, match="decides by values: fuse the submodules"):
        bnfold.fuse(model, example_inputs=IMAGE)
    expected = [run(model, each) for each in (IMAGE.abs(), -IMAGE.abs())]
    model.part = bnfold.fuse(model.part, example_inputs=IMAGE)
    for before, each in zip(expected, (IMAGE.abs(), -IMAGE.abs()), strict=True):
        assert_same(before, run(model, each))
    assert len(norms(model.part)) == 0


def test_the_module_of_a_program_folds_behind_its_input() -> None:
    """It has a module for guards, which reads the inputs."""
    model = trained(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)))
    assert_folds(exported(model, IMAGE).module(), IMAGE)


WEIGHTS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "the old weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "the old spectral_norm": nn.utils.spectral_norm,
    "pruning": lambda module: prune.l1_unstructured(module, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_that_is_computed_from_others_becomes_a_parameter(name: str) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    WEIGHTS[name](model[0])
    fused = assert_folds(model, IMAGE, example_inputs=IMAGE)
    assert sorted(fused.state_dict()) == ["0.bias", "0.weight"]
    assert type(fused[0]) is nn.Conv2d
    assert isinstance(fused[0].weight, nn.Parameter)
    assert_same(run(model, IMAGE), run(pickle.loads(pickle.dumps(fused)), IMAGE))
    model[0](IMAGE)  # which it still does


# What generated code is


class Functional(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.note = "kept"

    def forward(self, x: Tensor, is_last: bool = False) -> Tensor:
        norm = self.norm
        y = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return y if is_last else y.relu()

    def double_it(self, x: Tensor) -> Tensor:
        return 2 * self(x, is_last=True)


class Holder(nn.Module):
    """A block with code that has to change, among others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.tail = Net().blocks, Functional(), Net().blocks

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"value": self.tail(self.block(self.stem(x), is_last=True))}


def test_the_smallest_module_gets_the_code() -> None:
    fused = assert_folds(trained(Holder()), IMAGE, example_inputs=IMAGE)
    assert [name for name, each in fused.named_modules() if hasattr(type(each), "_bnfold_code")] == ["block"]
    assert type(fused) is Holder
    assert isinstance(fused.block, Functional)
    assert type(fused.block).__name__ == "Functional"
    assert fused.block.note == "kept"
    assert sorted(fused.block.state_dict()) == ["conv.bias", "conv.weight"]
    for size in (drawn(1, 4, 5, 9), drawn(5, 4, 8, 8)):
        model = trained(Holder())
        assert_same(run(model, size), run(bnfold.fuse(model, example_inputs=IMAGE[:1]), size))


class Padded(nn.Conv2d):
    """A convolution that pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        missing = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
        x = F.pad(x, [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Layers(nn.Module):
    """Layers with code of their own, which fold into each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.tail = Padded(4, 4, 3, 2, bias=False), Activated(4), Padded(4, 4, 3, 2)
        self.last = Activated(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.tail(self.norm(self.conv(x))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


class Windows(nn.Module):
    """Reads a size behind what becomes one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(4, 4, 3, 2), Residual()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.stem(x))
        return F.pad(y, (0, -y.shape[-1] % 7, 0, -y.shape[-2] % 7)) + y.mean()


@pytest.mark.parametrize(("make", "changed"), [(Layers, {"conv", "norm", "last"}), (Windows, {"block"})])
def test_code_around_layers_stays_where_each_can_change_alone(make: type[nn.Module], changed: set[str]) -> None:
    model = trained(make())
    fused = assert_folds(model, IMAGE, example_inputs=IMAGE)
    assert {name for name, each in fused.named_modules() if hasattr(type(each), "_bnfold_code")} == changed
    for size in (drawn(1, 4, 15, 19), drawn(5, 4, 8, 8)):
        assert_same(run(model, size), run(fused, size))


def test_a_block_that_is_called_twice_keeps_what_one_of_its_calls_reads() -> None:
    """One call becomes part of the layer behind it; the other one reads the weight, by another path of the block."""
    block = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    model = trained(nn.Sequential(block, nn.ReLU(), block, nn.Conv2d(4, 4, 1)))
    fused = assert_folds(model, IMAGE, example_inputs=IMAGE)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in fused.modules())


def test_the_outcome_says_whether_the_code_changes() -> None:
    for options in ({}, {"example_inputs": IMAGE}):
        outcomes = of_batchnorms(bnfold.plan(trained(nn.Sequential(net().blocks, nn.Conv2d(4, 4, 1))), **options))
        assert [each.changes_code for each in outcomes if isinstance(each, Fold)] == [False] * 4
    outcomes = of_batchnorms(bnfold.plan(trained(Holder()), example_inputs=IMAGE))
    changing = {each.batchnorm for each in outcomes if isinstance(each, Fold) and each.changes_code}
    assert changing == {"block.norm"}


def test_generated_code_calls_what_need_not_change() -> None:
    class Outer(Holder):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.stem(x)
            norm = self.block.norm
            y = F.batch_norm(self.block.conv(y), norm.running_mean, norm.running_var, norm.weight, norm.bias)
            return {"value": self.tail(y)}

    fused = assert_folds(trained(Outer()), IMAGE, example_inputs=IMAGE)
    seen: list[str] = []
    fused.tail[0].register_forward_hook(lambda module, args, output: seen.append("tail"))
    fused(IMAGE)
    assert seen == ["tail"]
    assert isinstance(fused, Outer)


def test_what_is_generated_can_be_copied_pickled_saved_exported_and_traced() -> None:
    model = trained(nn.Sequential(Functional(), nn.Conv2d(4, 4, 1)))
    fused = assert_folds(model, IMAGE, example_inputs=IMAGE)
    expected = run(model, IMAGE)
    saved = io.BytesIO()
    torch.save(fused, saved)
    saved.seek(0)
    again = [
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        torch.load(saved, weights_only=False),
        exported(fused, IMAGE),
        torch.compile(fused, backend="eager"),
        bnfold.fuse(fused, example_inputs=IMAGE),
    ]
    for each in again:
        assert_same(expected, run(each, IMAGE))
    assert isinstance(again[0][0], Functional)
    assert isinstance(again[1][0], Functional)
    fused.load_state_dict(copy.deepcopy(fused).state_dict())


def test_a_copy_of_generated_code_is_independent() -> None:
    fused = bnfold.fuse(trained(Functional()), example_inputs=IMAGE)
    twin = copy.deepcopy(fused)
    before = run(twin, IMAGE)
    with torch.no_grad():
        fused.conv.weight.zero_()
    assert_same(before, run(twin, IMAGE), 0.0)


@pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])
def test_hooks_keep_the_code(options: dict[str, Any]) -> None:
    model = trained(nn.Sequential(net().blocks[0], Functional()))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    fused, outcomes = bnfold.fuse(model[:1], return_outcomes=True, **options)
    assert all(type(each) is type(torch.zeros(1)) for each in seen)
    assert [type(each) for each in of_batchnorms(outcomes)] == [Fold, Fold]
    expected = run(model[:1], IMAGE)
    seen.clear()
    assert_same(expected, run(fused, IMAGE))
    assert_same(expected, seen)


@OPTIONS
def test_a_forward_that_is_set_on_the_instance_is_what_is_read(options: dict[str, Any]) -> None:
    """A symbolic trace asks the class."""
    model = pair(both)
    model.forward = (lambda self, x: self.norm(self.conv(x)) + self.conv(x)).__get__(model)
    before, (fused, _) = run(model, IMAGE), fuse(model, IMAGE, **options)
    assert_same(before, run(fused, IMAGE), 1e-5)
    assert_same(before, run(model, IMAGE), 0)


class Watched(nn.Module):
    """Some code of each kind: a part that keeps its code, parts that need other code."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.free, self.inner = Functional(), Functional()
        self.last = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.inner(self.free(self.plain(x))))
        return made


@OPTIONS
def test_a_hook_keeps_only_the_batchnorms_that_it_sees(options: dict[str, Any]) -> None:
    """Not the code of the whole model."""
    model = trained(Watched())
    seen: list[Tensor] = []
    model.free.register_forward_hook(lambda module, args, made: seen.extend([*args, made]))
    model.inner.conv.register_forward_hook(lambda module, args, made: seen.append(made))
    outcomes = bnfold.plan(model, **options)
    refused = [each for each in of_batchnorms(outcomes) if not isinstance(each, Fold)]
    assert len(of_batchnorms(outcomes)) == 4
    assert [each.batchnorm for each in refused] == ["inner.norm"]
    assert "hook" in getattr(refused[0], "reason", "")
    expected = run(model, IMAGE)
    before = [*seen]
    fused = bnfold.fuse(model, **options)
    seen.clear()
    assert_same(expected, run(fused, IMAGE))
    assert_same(before, seen)


def test_a_hook_on_what_other_code_would_not_call_keeps_the_code() -> None:
    """Two convolutions with hooks, which would become one."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.one(x) + self.two(x))
            return y

    model = trained(Both())
    seen: list[Tensor] = []
    model.one.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    expected = run(model, IMAGE)
    fused = bnfold.fuse(model, example_inputs=IMAGE)
    seen.clear()
    assert_same(expected, run(fused, IMAGE))
    assert len(seen) == 1
