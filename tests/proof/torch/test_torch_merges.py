"""Parts of a sum that merge beside another operand, at sizes that the checker makes smaller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import Merge, Refusal
from bnfold.proof.torch.check import check_program
from tests.toys.torch_models import exported, traced, trained
from tests.toys.torch_proofs import certify

IMAGE = torch.randn(2, 4, 20, 19, dtype=torch.float64)


class Branches(nn.Module):
    """Two convolutions of one value, and what something else makes of it."""

    def __init__(self, stride: int, padding: int, *, is_inplace: bool) -> None:
        super().__init__()
        self.one, self.two, self.other = (
            nn.Sequential(nn.Conv2d(4, 4, 3, stride, padding, bias=False), nn.BatchNorm2d(4)) for _ in range(3)
        )
        self.is_inplace = is_inplace

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        total = torch.sigmoid(self.other(x)) + 1
        if not self.is_inplace:
            return torch.relu(total + self.one(x) + self.two(x))
        total += self.one(x)
        total += self.two(x)
        return torch.relu(total)


WAYS: dict[str, Any] = {
    "module": lambda module: bnfold.fuse(module, example_inputs=IMAGE, return_outcomes=True),
    "program": lambda module: bnfold.fuse(exported(module, IMAGE), return_outcomes=True),
    "trace": lambda module: bnfold.fuse(traced(module), example_inputs=IMAGE, return_outcomes=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (3, 1), (1, 0)])
@pytest.mark.parametrize("is_inplace", [False, True], ids=["new", "in place"])
def test_parts_of_a_sum_are_proved(way: str, stride: int, padding: int, *, is_inplace: bool) -> None:
    module = trained(Branches(stride, padding, is_inplace=is_inplace))
    expected = module(IMAGE)
    fused, outcomes = WAYS[way](module)
    assert any(isinstance(outcome, Merge) for outcome in outcomes)
    made = fused.module()(IMAGE) if way == "program" else fused(IMAGE)
    assert torch.allclose(made, expected, atol=1e-12)


class TwoNorms(nn.Module):
    """A convolution whose output one BatchNorm hands on to a convolution, and another one to the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, (5, 1), padding=(2, 0))
        self.inner, self.outer = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(x))
        return torch.relu(self.second(self.inner(x)) + self.outer(x))


@pytest.mark.parametrize("way", WAYS)
def test_two_values_that_become_one_are_proved(way: str) -> None:
    module = trained(TwoNorms())
    nn.init.constant_(module.inner.weight, 2.0)  # a small one would lose digits of the shift
    fused, outcomes = WAYS[way](module)
    assert any(isinstance(outcome, Merge) for outcome in outcomes)
    assert not any(isinstance(outcome, Refusal) for outcome in outcomes)
    made = fused.module()(IMAGE) if way == "program" else fused(IMAGE)
    assert torch.allclose(made, module(IMAGE), atol=1e-12)


@pytest.mark.parametrize("size", [19, 20])
@pytest.mark.parametrize("is_open", [False, True], ids=["fixed", "any size"])
def test_a_border_that_some_sizes_do_not_see_is_found(size: int, *, is_open: bool) -> None:
    """A strided window begins no more often for a wider border at the end, unless the size is right for that."""
    dims = {"x": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}} if is_open else None
    module = trained(Branches(2, 1, is_inplace=False))
    program = exported(module, torch.randn(2, 4, size, size).double(), dynamic_shapes=dims)
    result, certificate = certify(program)
    assert check_program(program, result, certificate).is_proved
    graph = result.graph_module.graph
    (merged,) = [node for node in graph.nodes if "two" in str(node.args[1:2])]
    with graph.inserting_before(merged):
        padded = graph.call_function(torch.ops.aten.pad.default, (merged.args[0], [1, 2, 1, 2]))
    merged.args = (padded, *merged.args[1:4], [0, 0], *merged.args[5:])
    result.graph_module.recompile()
    proof = check_program(program, result, certificate, has_digests=False)
    assert proof.is_proved == (not is_open and size == 19)
