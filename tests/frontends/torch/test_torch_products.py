"""Products: with a bias for each row, and of two computed matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnfold import Fold, Reason, Refusal
from tests.toys.torch_models import drawn, exported, fuse, trained


class Rows(nn.Module):
    """A product with a bias that differs from row to row, and a BatchNorm behind it."""

    def __init__(self, shape: tuple[int, ...], *, second: bool = False) -> None:
        super().__init__()
        self.kernel, self.bias, self.norm = nn.Parameter(drawn(4, 3)), nn.Parameter(drawn(*shape)), nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 2) if second else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.second(self.norm(torch.addmm(self.bias, x, self.kernel, alpha=2, beta=0.5)))


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (1, 3), (3,), (1, 1)], ids=str)
@pytest.mark.parametrize("second", [False, True], ids=["alone", "with a product behind it"])
def test_addmm_with_a_bias_of_any_shape(shape: tuple[int, ...], second: bool) -> None:
    model, x = trained(Rows(shape, second=second)), drawn(5, 4)
    for given in (model, exported(model, x)):
        options = {"example_inputs": x} if given is model else {}
        _, outcomes = fuse(given, x, **options)
        assert isinstance(outcomes[0], Fold)


def test_addmm_with_as_many_rows_as_channels() -> None:
    model, x = trained(Rows((3, 3))), drawn(3, 4)
    assert isinstance(fuse(exported(model, x), x)[1][0], Fold)


class Graph(nn.Module):
    """A graph convolution, and a BatchNorm without a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Any:
        return self.norm(torch.softmax(x @ x.t(), 1) @ self.linear(x))


def test_a_scale_goes_through_a_graph_convolution_and_a_shift_does_not() -> None:
    model, x = trained(Graph()), drawn(5, 4)
    (split,) = fuse(exported(model, x), x)[1]
    assert isinstance(split, Fold)
    assert split.direction == "scale upstream"
    model.norm.bias.data.zero_()
    model.norm.running_mean.zero_()
    for given in (model, exported(model, x)):
        options = {"example_inputs": x} if given is model else {}
        (folded,) = fuse(given, x, **options)[1]
        assert isinstance(folded, Fold)
        assert folded.direction == "upstream"


class Plain(nn.Module):
    """A graph convolution whose weight is a product's, which takes no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(4, 6)), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Any:
        return self.norm(torch.softmax(x @ x.t(), 1) @ (x @ self.weight))


def test_a_scale_alone_adds_no_zeros() -> None:
    fused, _ = fuse(exported(trained(Plain()), drawn(5, 4)), drawn(5, 4))
    assert sum("add" in str(node.target) for node in fused.graph.nodes) == 1  # the shift, behind the convolution


class Squared(nn.Module):
    """A value that both operands of a product are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return self.norm(y @ y)


def test_one_value_as_both_operands_stays() -> None:
    model, x = trained(Squared()), drawn(4, 4)
    model.norm.running_mean.zero_()
    (refused,) = fuse(exported(model, x), x)[1]
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.SECOND_USE
