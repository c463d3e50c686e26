"""Sizes that the checker works out: short to write, right at other sizes, and without a trace in the program."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from bnfold.proof.torch.shapes import Shapes
from bnfold.proof.torch.sides import Side
from tests.toys.torch_models import drawn, exported

DEPTH = 2


class Halving(nn.Module):
    """Strided convolutions that pad as TensorFlow does: each size is a quotient of quotients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(DEPTH):
            missing = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
            x = self.conv(F.pad(x, [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0]]))
        return x


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    sizes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    return exported(Halving().double(), drawn(2, 2, 200, 333), dynamic_shapes=({**sizes},))


def last(program: torch.export.ExportedProgram) -> torch.fx.Node:
    return [node for node in program.graph.nodes if "conv" in node.name and node.op == "call_function"][-1]


def test_sizes_are_short_and_right(program: torch.export.ExportedProgram) -> None:
    shapes = Shapes(Side(program))
    shape = shapes.shape(last(program))
    assert shape is not None
    assert max(len(str(size)) for size in shape) < 12
    for step in range(4):
        made = program.module()(drawn(2 + step, 2, 200 + step, 333 + step))
        assert [shapes.concrete(size, step) for size in shape] == list(made.shape)


def test_the_program_has_no_more_symbols(program: torch.export.ExportedProgram) -> None:
    mode = detect_fake_mode([node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"])
    assert mode is not None
    environment = mode.shape_env
    assert isinstance(environment, ShapeEnv)
    tables = ("backed_var_to_val", "var_to_range", "var_to_sources", "var_to_range_sloc", "source_to_var")
    before = {name: dict(getattr(environment, name)) for name in tables}
    assert Shapes(Side(program)).values
    assert {name: dict(getattr(environment, name)) for name in tables} == before
