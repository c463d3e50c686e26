"""Toy graphs through both front ends: an fx graph, an exported program and ONNX have the same outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

import bnfold
from bnfold import Fold
from tests.toys.torch_models import Row, drawn, exported, fuse, of_batchnorms, to_onnx, traced, trained

UP, DOWN, BOTH, PART = "upstream", "downstream", "both", "scale upstream"


@dataclass(frozen=True)
class Toy:
    """A graph with what becomes of its BatchNorms: a direction, or the reason of a refusal."""

    module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    expected: tuple[str, ...]
    of_any_size: tuple[str, ...] | None = None  # what an fx graph does, which holds for pictures of any size


class Branches(nn.Module):
    """Values of one input, given to a function."""

    def __init__(self, join: Callable[..., Tensor], *branches: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.join, self.branches, self.after = join, nn.ModuleList(branches), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.join(*[branch(x) for branch in self.branches]))


class Gated(nn.Module):
    """Adds to what a module makes of a value the value's square."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x * x


class Twice(nn.Module):
    """Joins what a module makes of one value in two calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(x), torch.relu(self.inner(x))], 1)


class Beside(nn.Module):
    """Adds to what a module makes of a value something of the same shape and type."""

    def __init__(self, make: Callable[[Tensor], Tensor], inner: nn.Module) -> None:
        super().__init__()
        self.make, self.inner = make, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.make(x)


class PreActivation(nn.Module):
    """Adds to a value what a convolution makes of its normalised and rectified form."""

    def __init__(self, inner: nn.Module, size: int = 3) -> None:
        super().__init__()
        self.inner, self.conv = inner, conv(6, 6, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(torch.relu(self.inner(x)))


def swapped(x: Tensor) -> Tensor:
    """The halves of the channels, the second one first."""
    first, second = torch.split(x, [2, 2], 1)
    return torch.cat([second, first], 1)


def conv(fan_in: int = 4, out: int = 6, size: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(fan_in, out, size, **options)  # type: ignore[arg-type]


def norm(channels: int = 6) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


IMAGE = (2, 4, 8, 8)

TOYS: dict[str, Toy] = {
    # linear operators in front of a BatchNorm
    "conv1d": Toy(lambda: Row(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (2, 4, 9), (UP,)),
    "conv2d": Toy(lambda: Row(conv(), norm()), IMAGE, (UP,)),
    "conv3d": Toy(lambda: Row(nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6)), (2, 4, 5, 5, 5), (UP,)),
    "conv without bias": Toy(lambda: Row(conv(bias=False), norm()), IMAGE, (UP,)),
    "conv with groups": Toy(lambda: Row(conv(groups=2), norm()), IMAGE, (UP,)),
    "conv depthwise": Toy(lambda: Row(conv(4, 8, groups=4), norm(8)), IMAGE, (UP,)),
    "conv dilated": Toy(lambda: Row(conv(dilation=2), norm()), IMAGE, (UP,)),
    "conv padded": Toy(lambda: Row(conv(padding=1, stride=2), norm()), IMAGE, (UP,)),
    "conv with padding same": Toy(lambda: Row(conv(padding="same"), norm()), IMAGE, (UP,)),
    "conv with padding reflect": Toy(lambda: Row(conv(padding=1, padding_mode="reflect"), norm()), IMAGE, (UP,)),
    "transposed conv": Toy(lambda: Row(nn.ConvTranspose2d(4, 6, 3, 2, bias=False), norm()), IMAGE, (UP,)),
    "transposed conv with groups": Toy(lambda: Row(nn.ConvTranspose2d(4, 6, 2, groups=2), norm()), IMAGE, (UP,)),
    "linear": Toy(lambda: Row(nn.Linear(4, 6), nn.BatchNorm1d(6)), (3, 4), (UP,)),
    "linear without bias": Toy(lambda: Row(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)), (3, 4), (UP,)),
    "linear over tokens, along the other axis": Toy(
        lambda: Row(nn.Linear(5, 5), nn.BatchNorm1d(5)), (2, 5, 5), ("axis-mismatch",)
    ),
    # a BatchNorm in front of them
    "before conv": Toy(lambda: Row(F.silu, norm(4), conv()), IMAGE, (DOWN,)),
    "before padded conv": Toy(lambda: Row(F.silu, norm(4), conv(padding=1)), IMAGE, ("not-linear",)),
    "before conv that pads with copies": Toy(
        lambda: Row(F.silu, norm(4), conv(padding=1, padding_mode="reflect")), IMAGE, (DOWN,)
    ),
    "before transposed conv": Toy(lambda: Row(F.silu, norm(4), nn.ConvTranspose2d(4, 6, 2)), IMAGE, ("not-linear",)),
    "before linear": Toy(lambda: Row(F.silu, nn.BatchNorm1d(4), nn.Linear(4, 6)), (3, 4), (DOWN,)),
    # carried through
    "two in a row": Toy(lambda: Row(conv(), norm(), norm()), IMAGE, (UP, UP)),
    "identity and dropout": Toy(lambda: Row(conv(), nn.Identity(), nn.Dropout(), norm()), IMAGE, (UP,)),
    "average pool": Toy(lambda: Row(conv(), nn.AvgPool2d(2), norm()), IMAGE, (UP,)),
    "average pool that counts zeros": Toy(lambda: Row(conv(), nn.AvgPool2d(3, 2, 1), norm()), IMAGE, (PART,)),
    "product with another value": Toy(
        lambda: Branches(torch.bmm, Row(torch.abs, nn.Conv1d(5, 5, 1)), nn.Linear(5, 6), after=nn.BatchNorm1d(5)),
        (2, 5, 5),
        (PART,),
    ),
    "addition by index": Toy(
        lambda: Row(
            nn.Linear(4, 6),
            lambda x: torch.zeros(2, 6, dtype=x.dtype).scatter_add(0, torch.arange(3)[:, None].expand(3, 6) // 2, x),
            nn.BatchNorm1d(6),
        ),
        (3, 4),
        (PART,),
    ),
    "global average pool": Toy(lambda: Row(conv(), nn.AdaptiveAvgPool2d(1), norm()), IMAGE, (UP,)),
    "mean": Toy(lambda: Row(conv(), lambda x: x.mean((2, 3)), nn.BatchNorm1d(6)), IMAGE, (UP,)),
    "flatten one pixel": Toy(
        lambda: Row(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(6)), IMAGE, (UP,)
    ),
    "flatten a picture": Toy(
        lambda: Row(conv(4, 2), nn.Flatten(), nn.BatchNorm1d(72)), IMAGE, ("mixed-channels",), ("unknown-shape",)
    ),
    "flatten into linear": Toy(
        lambda: Row(F.silu, norm(4), nn.Flatten(), nn.Linear(256, 3)), IMAGE, (DOWN,), ("not-linear",)
    ),
    "relu": Toy(lambda: Row(conv(), nn.ReLU(), norm()), IMAGE, ("nonlinear",)),
    "sigmoid": Toy(lambda: Row(conv(), torch.sigmoid, norm()), IMAGE, ("not-linear",)),
    "transpose": Toy(lambda: Row(nn.Linear(4, 6), lambda x: x.transpose(1, 2), nn.BatchNorm1d(6)), (2, 5, 4), (UP,)),
    "adjoint": Toy(lambda: Row(nn.Linear(4, 6), lambda x: x.adjoint(), nn.BatchNorm1d(6)), (2, 5, 4), (UP,)),
    "transposes as attributes": Toy(
        lambda: Row(nn.Linear(4, 6), lambda x: x.mT.mH.mT, nn.BatchNorm1d(6)), (2, 5, 4), (UP,)
    ),
    "permute to channels last": Toy(
        lambda: Row(F.silu, norm(4), lambda x: x.permute(0, 2, 3, 1), nn.Linear(4, 3)), IMAGE, (DOWN,)
    ),
    "pixel shuffle": Toy(lambda: Row(conv(4, 8), nn.PixelShuffle(2), norm(2)), IMAGE, (UP,)),
    "upsample": Toy(lambda: Row(conv(), nn.Upsample(scale_factor=2), norm()), IMAGE, (UP,)),
    "reflection pad": Toy(lambda: Row(conv(), nn.ReflectionPad2d(1), norm()), IMAGE, (UP,)),
    "zero pad": Toy(lambda: Row(conv(), lambda x: F.pad(x, (1, 1, 1, 1)), norm()), IMAGE, ("border",)),
    "slice": Toy(lambda: Row(conv(), lambda x: x[:, :, 1:-1, 2:], norm()), IMAGE, (UP,)),
    "concat": Toy(lambda: Branches(lambda a, b: torch.cat([a, b], 1), conv(), conv(), after=norm(12)), IMAGE, (UP,)),
    "concat of one value twice": Toy(
        lambda: Row(conv(), lambda x: torch.cat([x, x], 1), norm(12)), IMAGE, ("conflict",)
    ),
    "concat with the input": Toy(
        lambda: Branches(lambda a, b: torch.cat([a, b], 1), conv(padding=1), nn.Identity(), after=norm(10)),
        IMAGE,
        ("graph-input",),
    ),
    "split": Toy(lambda: Row(conv(4, 4, 1), swapped, norm(4)), IMAGE, (UP,)),
    "sum": Toy(lambda: Branches(torch.add, conv(size=3, padding=1), conv(size=1), after=norm()), IMAGE, (UP,)),
    # its shift upstream, its scale downstream
    "pre-activation": Toy(
        lambda: Row(conv(), *(PreActivation(nn.BatchNorm2d(6, affine=False)) for _ in range(3))), IMAGE, (BOTH,) * 3
    ),
    "pre-activation of mixed signs": Toy(lambda: Row(conv(), PreActivation(norm())), IMAGE, ("negative-scale",)),
    "pre-activation of the input": Toy(
        lambda: Row(PreActivation(nn.BatchNorm2d(6, affine=False))), (2, 6, 8, 8), ("graph-input",)
    ),
    "scale by a constant": Toy(lambda: Row(conv(), lambda x: x * 2.5 + 1.0, norm()), IMAGE, (UP,)),
    # stays
    "transposed conv of one tap behind": Toy(lambda: Row(norm(4), nn.ConvTranspose2d(4, 6, 1)), IMAGE, (DOWN,)),
    "one norm, twice": Toy(lambda: Branches(lambda c: c, conv(), after=Twice(norm())), IMAGE, (UP, UP)),
    "shape of a second use": Toy(lambda: Row(conv(), Beside(torch.zeros_like, norm())), IMAGE, (UP,)),
    "type of a second use": Toy(lambda: Row(conv(), Beside(lambda x: x.new_ones(6, 6), norm())), IMAGE, (UP,)),
    "second use": Toy(lambda: Branches(lambda x: x, conv(), after=Gated(norm())), IMAGE, ("second-use",)),
    "of the input": Toy(lambda: Row(norm(4)), IMAGE, ("graph-input",)),
    "behind a gate": Toy(
        lambda: Branches(lambda a, b: a * torch.sigmoid(b), conv(), conv(), after=norm()), IMAGE, ("not-linear",)
    ),
    # merged
    "parallel branches": Toy(
        lambda: Branches(
            lambda a, b, c: torch.relu(a + b + c),
            Row(conv(4, 4, 3, padding=1, bias=False), norm(4)),
            Row(conv(4, 4, 1, bias=False), norm(4)),
            norm(4),
        ),
        IMAGE,
        (UP, DOWN, DOWN),
    ),
}


def summary(outcomes: tuple[bnfold.Outcome, ...]) -> tuple[str, ...]:
    return tuple(each.direction if isinstance(each, Fold) else each.reason.value for each in of_batchnorms(outcomes))


def merges(outcomes: tuple[bnfold.Outcome, ...]) -> int:
    return sum(isinstance(each, bnfold.Merge) for each in outcomes)


WITHOUT_ONNX = {"adjoint", "one norm, twice", "transposes as attributes"}
"""Toys that torch does not export to ONNX as they are: it does not know `mH`, and computes nothing twice."""


@pytest.mark.parametrize("name", TOYS)
def test_both_front_ends_agree(name: str) -> None:
    toy = TOYS[name]
    module, x = trained(toy.module()), drawn(*toy.shape)
    _, by_graph = fuse(traced(module), x, example_inputs=x)
    _, by_program = fuse(exported(module, x), x)
    _, by_onnx = (None, by_program) if name in WITHOUT_ONNX else bnfold.fuse(to_onnx(module, x), return_outcomes=True)
    found = {"fx": summary(by_graph), "export": summary(by_program), "onnx": summary(by_onnx)}
    assert found == {**dict.fromkeys(found, toy.expected), "fx": toy.of_any_size or toy.expected}
    assert merges(by_graph) == merges(by_program) == merges(by_onnx)
