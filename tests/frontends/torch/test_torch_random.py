"""Random modules: whatever folds, and in whatever form, the outputs are those of the original."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

import bnfold
from tests.toys.torch_models import assert_same, assert_settled, drawn, exported, run, traced, trained

SEEDS = [*range(60), 1043]
"""The last one writes in place behind a padding, which the checker took for a view of what it pads."""

Step = Callable[["Drawn", dict[int, Tensor]], Tensor]


class Drawn(nn.Module):
    """A random graph on images: each step reads earlier values, and the last value that nothing reads is the output."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.steps: list[tuple[str, tuple[int, ...]]] = []
        self.channels = {0: 4}
        self.parts = nn.ModuleDict()
        for index in range(1, self.random.randint(5, 14)):
            self._add(index)

    def _add(self, index: int) -> None:
        last = max(self.channels)
        source = last if self.random.random() < 0.75 else self.random.choice(list(self.channels))
        width = self.channels[source]
        kind = self.random.choice(KINDS)
        reads = (source,)
        if kind in ("add", "sub", "mul", "cat"):
            same = [each for each, size in self.channels.items() if kind == "cat" or size == width]
            reads = (source, self.random.choice(same))
            width = sum(self.channels[each] for each in reads) if kind == "cat" else width
        elif kind in ("conv", "point", "padded", "grouped", "transposed", "tokens"):
            out = self.random.choice([4, 4, 8])
            self.parts[str(index)] = self._linear(kind, width, out)
            width = out
        elif kind == "norm":
            self.parts[str(index)] = nn.BatchNorm2d(width, affine=self.random.random() < 0.8)
        elif kind == "again":
            fitting = [
                name
                for name, part in self.parts.items()
                if getattr(part, "in_channels", getattr(part, "num_features", None)) == width
            ]
            if not fitting:
                kind = "relu"
            else:
                name = self.random.choice(fitting)
                kind = f"again {name}"
                width = getattr(self.parts[name], "out_channels", width)
        if width > 32:
            return
        self.steps.append((kind, (index, *reads)))
        self.channels[index] = width

    def _linear(self, kind: str, fan_in: int, out: int) -> nn.Module:
        bias = self.random.random() < 0.5
        if kind == "transposed":
            return nn.ConvTranspose2d(fan_in, out, 3, padding=1, bias=bias, groups=self.random.choice([1, 2]))
        if kind == "tokens":
            return nn.Linear(fan_in, out, bias=bias)
        groups = self.random.choice([2, 4]) if kind == "grouped" else 1
        size = 1 if kind == "point" else 3
        mode = self.random.choice(["zeros", "reflect"]) if kind == "padded" else "zeros"
        return nn.Conv2d(fan_in, out, size, padding=size // 2, bias=bias, groups=groups, padding_mode=mode)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = {0: x}
        unread = {0: x}
        for kind, (index, *reads) in self.steps:
            values[index] = self.apply_step(kind, index, [values[each] for each in reads])
            for each in reads:
                unread.pop(each, None)
            unread[index] = values[index]
        return tuple(unread.values())

    def apply_step(self, kind: str, index: int, read: list[Tensor]) -> Tensor:
        x = read[0]
        if kind.startswith("again"):
            part = self.parts[kind.split()[1]]
            return part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if isinstance(part, nn.Linear) else part(x)
        if kind == "tokens":
            return self.parts[str(index)](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if str(index) in self.parts:
            return self.parts[str(index)](x)
        return FUNCTIONS[kind](*read)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * torch.sigmoid(b),
    "cat": lambda a, b: torch.cat([a, b], 1),
    "relu": F.relu,
    "relu in place": lambda a: F.relu(a * 1.0, inplace=True),
    "add in place": lambda a: (a + 0.0).add_(1.5),
    "scaled": lambda a: a * -0.5 + 0.25,
    "silu": F.silu,
    "pool": lambda a: F.avg_pool2d(a, 3, 1, 1),
    "pool without zeros": lambda a: F.avg_pool2d(a, 3, 1, 1, count_include_pad=False),
    "max pool": lambda a: F.max_pool2d(a, 3, 1, 1),
    "flipped": lambda a: torch.cat(torch.chunk(a, 2, 1)[::-1], 1) if False else a.flip(1),
    "shuffled": lambda a: F.channel_shuffle(a, 2),
    "there and back": lambda a: a.transpose(1, 3).contiguous().transpose(1, 3),
    "spread": lambda a: a.flatten(2).unflatten(2, (8, 8)),
    "padded and cut": lambda a: F.pad(a, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1],
    "dropped": lambda a: F.dropout(a, 0.5, training=False),
}

KINDS = [
    *FUNCTIONS,
    *["norm"] * 9,
    *["conv", "point", "padded", "grouped", "transposed", "tokens"] * 2,
    "again",
    "again",
]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_modules_are_never_wrong(seed: int) -> None:
    model, x = trained(Drawn(seed), seed), drawn(2, 4, 8, 8)
    expected = run(model, x)
    with torch.no_grad():
        example = {"example_inputs": x}
        for name, argument, options in (
            ("module", model, {}),
            ("module with an example", model, example),
            ("graph", traced(model), {}),
            ("graph with an example", traced(model), example),
            ("program", exported(model, x), {}),
        ):
            fused = bnfold.fuse(argument, **options)
            assert_same(expected, run(fused, x), 1e-10), name
            assert_settled(fused, **options)
