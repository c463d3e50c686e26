"""Shapes that a graph notes of its values may be older than the graph: what follows from its inputs counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

import bnfold
from bnfold import Fold, Refusal

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")  # torch's own


class Spread(nn.Module):
    """A convolution whose channels are those of the BatchNorm; or, spread otherwise, its batch is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).view(4, 4, 1, 1))


X = torch.randn(4, 4, 1, 1)


def captured(kind: str) -> Any:
    """With the shapes of all values noted in its graph."""
    torch.manual_seed(0)
    module = Spread().eval()
    if kind == "program":
        return torch.export.export(module, (X,))
    traced = fx.symbolic_trace(module)
    FakeTensorProp(traced, FakeTensorMode(allow_non_fake_inputs=True)).propagate(X)
    return traced


def graph_module(model: Any) -> fx.GraphModule:
    return model.graph_module if isinstance(model, torch.export.ExportedProgram) else model


def spread_otherwise(model: Any) -> None:
    """Edit the graph, and leave what it notes."""
    for node in graph_module(model).graph.nodes:
        if "view" in str(node.target):
            node.args = (node.args[0], [1, 4, 4, 1]) if node.op == "call_function" else (node.args[0], 1, 4, 4, 1)
    graph_module(model).recompile()


@pytest.mark.parametrize("kind", ["program", "graph module"])
def test_a_shape_noted_before_the_graph_was_edited_is_not_believed(kind: str) -> None:
    (outcome,) = bnfold.plan(captured(kind))
    assert isinstance(outcome, Fold)
    model = captured(kind)
    spread_otherwise(model)
    (outcome,) = bnfold.plan(model)
    assert isinstance(outcome, Refusal)


class Shifted(Spread):
    """The size of a parameter decides what the batch is."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(1, 4, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x + self.extra).reshape(1, 4, 4, 1))


def test_the_size_of_a_parameter_is_that_of_the_parameter() -> None:
    """It was replaced after the export; the graph notes the old one."""
    program = torch.export.export(Shifted().eval(), (torch.randn(1, 4, 1, 1),))
    (outcome,) = bnfold.plan(program)
    assert isinstance(outcome, Fold)
    program.state_dict["extra"] = nn.Parameter(torch.randn(4, 4, 1, 1))
    (outcome,) = bnfold.plan(program)
    assert isinstance(outcome, Refusal)


def test_what_is_noted_of_a_graph_that_nobody_edited_is_what_follows() -> None:
    """Sizes that are symbols, and operators that take the example's sizes where they run by themselves."""
    from bnfold.frontends.torch.capture import values
    from bnfold.frontends.torch.operators import shapes

    class Resized(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.pad(x, (1, 0, 1, 0))
            return nn.functional.interpolate(x, scale_factor=2, mode="bilinear").flatten(2)

    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Resized(), (torch.randn(2, 3, 8, 9),), dynamic_shapes=(sizes,))
    recorded = shapes.recorded(program.graph_module.graph)
    known = values.recompute(program.graph_module, program.graph_module.graph, recorded)
    assert shapes.noted(known) == shapes.noted(recorded)
