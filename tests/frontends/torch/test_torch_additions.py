"""Additions by index to zeros (graph networks): a scale goes through, a shift does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import Fold, Reason, Refusal
from bnfold.errors import NotEquivalentError
from bnfold.frontends.torch.operators import read_carry
from tests.toys.torch_models import assert_same, drawn, exported, fuse, of_batchnorms, run, traced, trained

NODES, INDEX = drawn(7, 4), torch.tensor([0, 1, 1, 4, 2, 0, 0])


class Messages(nn.Module):
    """``x + linear(add(relu(norm(x))))``, a layer of a deep graph network, behind a linear layer."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.add = add
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        x = self.first(x)
        return torch.tanh(x + self.last(self.add(torch.relu(self.norm(x)), index)))


def positive(module: nn.Module) -> nn.Module:
    for each in trained(module).modules():
        if isinstance(each, nn.BatchNorm1d):
            each.weight.data.abs_().add_(0.25)
    return module


def rows(index: Tensor, like: Tensor) -> Tensor:
    return index[:, None].expand(-1, like.shape[1])


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_add": lambda m, i: torch.index_add(m.new_zeros(7, 6), 0, i, m),
    "index_add in place": lambda m, i: m.new_zeros(7, 6).index_add_(0, i, m),
    "index_add of a multiple": lambda m, i: torch.zeros_like(m).index_add(0, i, m, alpha=-3),
    "scatter_add": lambda m, i: torch.scatter_add(m.new_zeros(7, 6), 0, rows(i, m), m),
    "scatter_add in place": lambda m, i: m.new_zeros(7, 6).scatter_add_(0, rows(i, m), m),
    "scatter_add by keywords": lambda m, i: m.new_zeros(7, 6).scatter_add(dim=-2, index=rows(i, m), src=m),
    "scatter_reduce": lambda m, i: m.new_zeros(7, 6).scatter_reduce(0, rows(i, m), m, "sum"),
    "scatter_reduce without zeros": lambda m, i: m.new_zeros(7, 6).scatter_reduce_(
        0, rows(i, m), m, "sum", include_self=False
    ),
}

OTHERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Reason]] = {
    "to ones": (lambda m, i: torch.ones_like(m).index_add(0, i, m), Reason.NOT_LINEAR),
    "to itself": (lambda m, i: m.index_add(0, i, m), Reason.NOT_LINEAR),
    "to zeros that were written into": (
        lambda m, i: torch.zeros_like(m).add_(1).index_add_(0, i, m),
        Reason.NOT_LINEAR,
    ),
    "a mean": (lambda m, i: m.new_zeros(7, 6).scatter_reduce(0, rows(i, m), m, "mean"), Reason.NOT_LINEAR),
    "a product": (lambda m, i: m.new_zeros(7, 6).scatter_reduce(0, rows(i, m), m, "prod"), Reason.NOT_LINEAR),
    "along the channels": (lambda m, i: m.new_zeros(7, 6).index_add(1, i[:6], m), Reason.AXIS_MISMATCH),
    "of other channels": (
        lambda m, i: m.new_zeros(7, 8).scatter_add(0, rows(i, m), m)[:, 2:],
        Reason.UNKNOWN_SHAPE,
    ),
}

FORMS: dict[str, Callable[[nn.Module], tuple[Any, dict[str, Any]]]] = {
    "module": lambda model: (model, {"example_inputs": (NODES, INDEX)}),
    "graph": lambda model: (traced(model), {"example_inputs": (NODES, INDEX)}),
    "program": lambda model: (exported(model, NODES, INDEX), {}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SUMS)
def test_a_scale_goes_through_an_addition_to_zeros(name: str, form: str) -> None:
    argument, options = FORMS[form](positive(Messages(SUMS[name])))
    _, outcomes = fuse(argument, NODES, INDEX, **options)
    (found,) = of_batchnorms(outcomes)
    assert isinstance(found, Fold), found
    assert (found.direction, found.into) == ("both", ("first", "last"))


class Behind(Messages):
    """A BatchNorm behind the sum."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.add(self.first(x), index)))


@pytest.mark.parametrize("name", OTHERS)
def test_other_additions_refuse(name: str) -> None:
    call, reason = OTHERS[name]
    for model in (Messages(call), Behind(call)):
        _, outcomes = fuse(exported(positive(model), NODES, INDEX), NODES, INDEX)
        (found,) = of_batchnorms(outcomes)
        assert isinstance(found, Refusal), found
    assert found.reason is reason, found


def test_a_shift_stays_behind_a_sum_of_unknown_length() -> None:
    _, outcomes = fuse(exported(trained(Behind(SUMS["index_add"])), NODES, INDEX), NODES, INDEX)
    assert [each.reason for each in of_batchnorms(outcomes) if isinstance(each, Refusal)] == [Reason.SHIFT]


def test_a_reader_that_takes_anything_for_zeros_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_carry, "_is_zero", lambda reader, start: True)
    with pytest.raises(NotEquivalentError, match="it does not add to zeros"):
        bnfold.fuse(exported(positive(Messages(OTHERS["to ones"][0])), NODES, INDEX))


@pytest.mark.parametrize("seed", range(4))
def test_random_graph_networks_are_never_wrong(seed: int) -> None:
    draw = random.Random(seed)
    adds = [draw.choice([*SUMS.values(), *(call for call, _ in OTHERS.values())]) for _ in range(3)]
    model = positive(nn.ModuleList([Messages(add) for add in adds]))
    for each in model:
        argument, options = FORMS[draw.choice(list(FORMS))](each if draw.random() < 0.7 else trained(each, seed))
        fused = bnfold.fuse(argument, **options)
        assert_same(run(argument, NODES, INDEX), run(fused, NODES, INDEX))
