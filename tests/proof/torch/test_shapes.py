"""Sizes that the checker works out: those that the model makes, for its example and for larger inputs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, fx, nn
from torch.export import Dim

from bnfold.proof.torch import shapes as shapes_module
from bnfold.proof.torch.shapes import Shapes
from bnfold.proof.torch.sides import Side
from tests.toys.torch_models import drawn, exported


class Halving(nn.Module):
    """Strided convolutions that pad as TensorFlow does: each size is a quotient of quotients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            missing = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
            x = self.conv(F.pad(x, [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0]]))
        return x


class Windowed(nn.Module):
    """Takes what can be cut into windows of four."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], x.shape[2] // 4, 4)


def last(program: torch.export.ExportedProgram) -> Any:
    return [node for node in program.graph.nodes if node.op == "call_function" and "sym" not in node.name][-1]


def test_sizes_are_those_of_the_model() -> None:
    sizes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    program = exported(Halving().double(), drawn(2, 2, 200, 333), dynamic_shapes=({**sizes},))
    shapes = Shapes(Side(program))
    assert len(shapes.steps) == 3
    for step in shapes.steps:
        made = program.module()(drawn(2 + step, 2, 200 + step, 333 + step))
        assert shapes.shape(last(program), step) == tuple(made.shape)
    assert len(set(shapes.shapes(last(program)))) > 1


def test_larger_sizes_are_those_that_the_model_takes(capfd: pytest.CaptureFixture[str]) -> None:
    """A width that is no multiple of four is not taken, and torch's own message of that is not printed."""
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    program = torch.export.export(
        Windowed(), (drawn(2, 3, 8),), dynamic_shapes=(sizes,), prefer_deferred_runtime_asserts_over_guards=True
    )
    capfd.readouterr()
    shapes = Shapes(Side(program))
    assert [shape for (shape,) in shapes.shapes(last(program))] == [(2, 3, 2, 4), (3, 3, 2, 4), (2, 3, 10, 4)]
    data = next(node for node in program.graph.nodes if node.op == "placeholder")
    assert [shape for (shape,) in shapes.shapes(data)] == [(2, 3, 8), (3, 3, 9), (3, 3, 8), (2, 3, 40)]
    assert capfd.readouterr() == ("", "")


def test_a_model_of_one_size_is_looked_at_at_that_size() -> None:
    program = exported(Halving().double(), drawn(2, 2, 20, 33))
    assert Shapes(Side(program)).shapes(last(program)) == [((2, 2, 5, 9),)]


class Attention(nn.Module):
    """Heads lie beside each other in memory, where attention is computed on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.view(2, 6, 3, 4).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).view(2, 6, 12)


class ChannelsLast(nn.Module):
    """Channels lie beside each other in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(torch.relu(self.conv(x.contiguous(memory_format=torch.channels_last))))
        return y.permute(0, 2, 3, 1).view(2, -1, 4)


LAYOUTS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "attention": (Attention(), (2, 6, 12), (2, 6, 12)),
    "channels last": (ChannelsLast().double(), (2, 2, 8, 8), (2, 9, 4)),
}


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("is_told", [True, False], ids=["", "all operators on the meta device first"])
def test_what_lies_otherwise_in_memory_may_be_viewed(case: str, is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_told:
        monkeypatch.setattr(shapes_module._Interpreter, "_is_of_shapes", lambda self, node: True)
    module, size, expected = LAYOUTS[case]
    program = exported(module, drawn(*size))
    assert Shapes(Side(program)).shape(last(program)) == expected


class Locked(nn.Conv2d):
    """A layer that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(2, 3, 3)
        self.lock = threading.Lock()


class Layers(fx.Tracer):
    """Calls the layers of a model, whatever their classes are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def test_layers_are_left_as_they_are() -> None:
    """One that cannot be copied is run, and one that counts its runs is not."""
    model = nn.Sequential(Locked(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    graph = fx.GraphModule(model, Layers().trace(model))
    shapes = Shapes(Side(graph), (drawn(2, 2, 7, 8).float(),))
    made = {node.target: shapes.shape(node) for node in graph.graph.nodes if node.op == "call_module"}
    assert made == {"0": (2, 3, 5, 6), "1": (2, 3, 5, 6), "2": (2, 4, 5, 6)}
    assert int(model[1].num_batches_tracked) == 0
