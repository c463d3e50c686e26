"""States of folded modules: which names they have, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, fx, nn

import bnfold
from tests.toys.torch_models import assert_same, drawn, run, trained

IMAGE = (1, 8, 9, 9)


class Branches(nn.Module):
    """Two convolutions and an identity that become one."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norms[0](self.large(x)) + self.norms[1](self.small(x)) + self.norms[2](x))


class Functional(nn.Module):
    """A convolution and a BatchNorm in forward code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = F.conv2d(x, self.conv.weight)
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, 1e-5)


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, bias=False, **options)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "behind convolutions": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(groups=8), nn.BatchNorm2d(8)),
        IMAGE,
    ),
    "in front of one": (lambda: nn.Sequential(nn.BatchNorm2d(8), conv()), IMAGE),
    "behind a transposed one": (
        lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)),
        IMAGE,
    ),
    "behind a linear layer": (lambda: nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4)), (3, 8)),
    "branches": (Branches, IMAGE),
    "forward code": (Functional, IMAGE),
}


@pytest.fixture(params=MODULES)
def made(request: pytest.FixtureRequest) -> tuple[Callable[[], nn.Module], Tensor]:
    build, shape = MODULES[request.param]
    return build, drawn(*shape)


def test_names_of_parameters_depend_on_no_values(made: tuple[Callable[[], nn.Module], Tensor]) -> None:
    """A BatchNorm that was never trained shifts nothing; the convolution that it folds into has a bias all the same."""
    build, x = made
    fused = bnfold.fuse(trained(build()), example_inputs=x)
    fresh = bnfold.fuse(build().double().eval(), example_inputs=x)
    fresh.load_state_dict(fused.state_dict())
    assert_same(run(fused, x), run(fresh, x))


def test_the_state_of_the_unfolded_model_is_refused(made: tuple[Callable[[], nn.Module], Tensor]) -> None:
    build, x = made
    module = trained(build())
    fused = bnfold.fuse(module, example_inputs=x)
    for each in (fused, copy.deepcopy(fused)):
        with pytest.raises(RuntimeError, match="before it was folded"):
            each.load_state_dict(module.state_dict(), strict=False)
        each.load_state_dict(fused.state_dict())
    whole = nn.ModuleDict({"part": fused})
    with pytest.raises(RuntimeError, match=r"'part\..*before it was folded"):
        whole.load_state_dict({f"part.{name}": held for name, held in module.state_dict().items()}, strict=False)


def test_a_graph_module_refuses_the_state_of_the_unfolded_one(made: tuple[Callable[[], nn.Module], Tensor]) -> None:
    build, x = made
    module = fx.symbolic_trace(trained(build()))
    fused = bnfold.fuse(module, example_inputs=x)
    again = bnfold.fuse(fused, example_inputs=x)
    for each in (fused, copy.deepcopy(fused), again, nn.Sequential(fused)):
        prefix = "0." if type(each) is nn.Sequential else ""
        with pytest.raises(RuntimeError, match="before it was folded"):
            each.load_state_dict({prefix + name: held for name, held in module.state_dict().items()}, strict=False)
        each.load_state_dict({prefix + name: held for name, held in fused.state_dict().items()})


def test_a_graph_module_is_loaded_without_bnfold() -> None:
    build, shape = MODULES["behind convolutions"]
    fused = bnfold.fuse(fx.symbolic_trace(trained(build())), example_inputs=(x := drawn(*shape)))
    pickled = pickle.dumps(fused)
    assert b"bnfold" not in pickled
    assert_same(run(pickle.loads(pickled), x), run(fused, x))


def test_a_graph_module_in_which_nothing_folds_has_no_guard() -> None:
    module = fx.symbolic_trace(trained(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())))
    assert not bnfold.fuse(module)._load_state_dict_pre_hooks


def test_a_module_without_generated_code_is_loaded_without_bnfold() -> None:
    build, shape = MODULES["behind convolutions"]
    fused = bnfold.fuse(trained(build()), example_inputs=drawn(*shape))
    pickled = pickle.dumps(fused)
    assert b"bnfold" not in pickled
    assert type(pickle.loads(pickled)[1]) is nn.Identity


def test_hooks_on_what_stands_for_a_batchnorm_are_copied() -> None:
    build, shape = MODULES["behind convolutions"]
    fused = bnfold.fuse(trained(build()), example_inputs=drawn(*shape))
    seen: list[int] = []
    fused[1].register_forward_hook(lambda module, given, result: seen.append(1))
    copy.deepcopy(fused)(drawn(*shape))
    assert seen == [1]
    assert repr(fused[1]) == "Identity()"


class Normalised(nn.Module):
    """A BatchNorm by buffers of the model itself, and a buffer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)
        self.register_buffer("offset", torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(nn.functional.batch_norm(self.conv(x), self.mean, self.var)) + self.offset


def test_a_model_without_some_of_its_buffers_can_be_exported() -> None:
    """torch.export takes those that are None for inputs of the graph."""
    model, x = Normalised().eval(), torch.randn(2, 3, 5, 5)
    fused = bnfold.fuse(model, example_inputs=x)
    program = torch.export.export(fused, (x,), strict=False)
    assert set(fused.state_dict()) == {"conv.weight", "conv.bias", "offset"}
    assert torch.allclose(program.module()(x), model(x), atol=1e-5)
