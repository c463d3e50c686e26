"""Models that a careless fold gets wrong: each is run beside its original, in every form that it has."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

import bnfold
from bnfold import Fold, Outcome, Reason, Refusal
from tests.toys.torch_models import assert_same, drawn, exported, traced, trained

IMAGE = drawn(2, 4, 8, 8)


class Code(nn.Module):
    """Four convolutions, three BatchNorms, and a function that calls them."""

    def __init__(self, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.call = call
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2)
        self.n, self.m, self.p = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.linear, self.flat = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.gain, self.shift = nn.Parameter(drawn(4, 1, 1, seed=3)), nn.Parameter(drawn(4, 1, 1, seed=4))
        self.wide = nn.Parameter(drawn(8, seed=5))
        self.whole = nn.Parameter(drawn(1, 4, 8, 8, seed=6))
        self.square, self.e = nn.Parameter(drawn(4, 4, seed=7)), nn.Conv1d(4, 4, 1, groups=2)
        self.seven = nn.Parameter(torch.tensor(7.0))

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


TRAPS: dict[str, Callable[[Any, Tensor], Any]] = {
    # axes
    "a width as large as another model's channels": lambda s, x: s.n(s.a(x) * s.wide[:8]),
    "a constant along the width": lambda s, x: s.n(s.a(x) + s.wide),
    "a constant along channels in front": lambda s, x: s.n(s.shift - s.gain * s.a(x)),
    "a constant for each element": lambda s, x: s.n(s.a(x) * s.whole),
    "tokens of as many features as tokens": lambda s, x: s.flat(s.linear(x.reshape(8, 8, 8))),
    "tokens, transposed": lambda s, x: s.flat(s.linear(x.reshape(8, 8, 8)).transpose(1, 2)),
    "channels swapped with the height": lambda s, x: s.m(s.n(s.a(x)).transpose(1, 2)[:, :4].transpose(1, 2)),
    "batch swapped with channels": lambda s, x: s.n(s.a(x).transpose(0, 1).reshape(4, 2, 8, 8).transpose(0, 1)),
    "view that regroups": lambda s, x: s.n(s.a(x).reshape(2, 8, 4, 8)[:, :4].contiguous()),
    "view that splits the batch": lambda s, x: s.n(s.a(x).reshape(1, 8, 8, 8)[:, 2:6]),
    "channels stacked into the batch": lambda s, x: s.n(s.a(x).reshape(8, 1, 8, 8).expand(-1, 4, -1, -1)),
    "flip of the channels": lambda s, x: s.n(s.a(x).flip(1)),
    "roll of the channels": lambda s, x: s.n(s.a(x).roll(1, 1)),
    "gather of channels": lambda s, x: s.n(s.a(x)[:, [3, 1, 0, 2]]),
    "channels taken twice": lambda s, x: s.n(s.a(x)[:, [0, 0, 1, 1]]),
    # functions with further arguments
    "softmax over channels": lambda s, x: s.n(s.a(x).softmax(1)),
    "a mean over channels": lambda s, x: s.n(s.a(x).mean(1, keepdim=True).expand(-1, 4, -1, -1)),
    "a sum over positions": lambda s, x: s.n(s.a(x).sum((2, 3), keepdim=True)),
    "a pool that divides by something else": lambda s, x: s.n(F.avg_pool2d(s.a(x), 2, divisor_override=3)),
    "a pool that rounds up": lambda s, x: s.n(F.avg_pool2d(s.a(x), 3, 2, 1, ceil_mode=True)),
    "a max pool behind negative scales": lambda s, x: s.a(F.max_pool2d(s.n(s.b(x)), 2)),
    "an alpha": lambda s, x: s.n(torch.add(s.a(x), s.b(x), alpha=3)),
    "a subtraction": lambda s, x: s.n(torch.sub(s.a(x), s.b(x), alpha=2)),
    "a reversed subtraction": lambda s, x: s.n(torch.rsub(s.a(x), s.b(x))),
    "a division that rounds": lambda s, x: s.n(torch.div(s.a(x), 0.5, rounding_mode="floor")),
    "a division of a constant": lambda s, x: s.n(2.0 / (s.a(x).abs() + 1)),
    "a power": lambda s, x: s.n(s.a(x) ** 2),
    "pad with a constant": lambda s, x: s.n(F.pad(s.a(x), (1, 1), value=2.0)),
    "pad that cuts": lambda s, x: s.n(F.pad(s.a(x), (-1, 0, 2, 1), value=1.0)),
    "pad over channels": lambda s, x: s.n(F.pad(s.a(x)[:, :2], (0, 0, 0, 0, 1, 1))),
    "interpolate over positions": lambda s, x: s.n(F.interpolate(s.a(x), scale_factor=2, mode="bicubic")),
    "grid sample, which pads with zeros": lambda s, x: s.n(
        F.grid_sample(s.a(x), torch.full((2, 3, 3, 2), 1.4, dtype=x.dtype), align_corners=False)
    ),
    "unfold": lambda s, x: s.n(F.unfold(s.a(x), 2).reshape(2, 4, 4, 49)),
    "fold of a conjugate axis": lambda s, x: s.n(s.a(x).movedim(1, -1).movedim(-1, 1)),
    "dropout that is on": lambda s, x: s.n(F.dropout(s.a(x), 0.0, training=True)),
    "a transposed convolution with groups": lambda s, x: s.n(s.d(x)),
    "in front of a transposed convolution": lambda s, x: s.d(s.n(torch.sin(x))),
    "in front of a padded convolution": lambda s, x: s.a(s.n(torch.sin(x))),
    "in front of one without padding": lambda s, x: s.b(s.n(torch.sin(x))),
    # the same value, or the same module, more than once
    "concatenated with itself": lambda s, x: s.n(torch.cat([s.a(x)[:, :2]] * 2, 1)),
    "added to itself": lambda s, x: (lambda y: s.n(y + y))(s.a(x)),
    "added to itself, halved": lambda s, x: (lambda y: s.n(y + y * 0.5))(s.a(x)),
    "multiplied with itself": lambda s, x: (lambda y: s.n(y * y))(s.a(x)),
    "a residual whose skip is read": lambda s, x: (lambda y: s.n(s.b(y)) + y)(s.n(s.a(x))),
    "split, one half used": lambda s, x: s.n(torch.cat([s.a(x).chunk(2, 1)[0]] * 2, 1)),
    "split, halves swapped": lambda s, x: s.n(torch.cat([s.a(x).chunk(2, 1)[1], s.a(x).chunk(2, 1)[0]], 1)),
    "split, the last half by a negative index": lambda s, x: (lambda p: s.n(torch.cat([p[0], p[-1]], 1)))(
        s.a(x).chunk(2, 1)
    ),
    "split, one half by a negative index": lambda s, x: s.b(
        torch.cat([s.n(s.a(x)).split([2, 2], 1)[-2], s.m(s.b(x)).split(2, 1)[-1]], 1)
    ),
    "split of unknown sizes, by a negative index": lambda s, x: s.b(
        torch.cat([s.n(s.a(x)).split([x.shape[1] - 2, 2], 1)[-1]] * 2, 1)
    ),
    "one convolution, two scales": lambda s, x: s.n(s.a(x)) - s.m(s.a(x) * 2),
    "one BatchNorm, two places": lambda s, x: s.n(s.a(torch.sin(s.n(s.b(x))))),
    "the value and the norm leave": lambda s, x: (lambda y: (y, s.n(y)))(s.a(x)),
    "the norm leaves twice": lambda s, x: (lambda y: {"one": y, "two": [y, (y,)]})(s.n(s.a(x))),
    "a convolution, then a matrix product": lambda s, x: (s.a(x).reshape(2, 4, 64).transpose(1, 2) @ s.square).relu(),
    "a matrix product along the axis of a convolution": lambda s, x: s.e(s.square @ s.e(x.reshape(2, 4, 64))),
    # writing in place
    "into a transpose": lambda s, x: (lambda h: (s.b(F.relu(s.n(h).adjoint(), inplace=True)), h * 2))(F.silu(x)),
    "into a transpose as an attribute": lambda s, x: (lambda h: (s.b(F.relu_(s.n(h).mT)), h * 2))(F.silu(x)),
    "a power in place": lambda s, x: (lambda h: (lambda y: (operator.ipow(h, 2), s.b(y))[::-1])(s.n(h)))(F.silu(x)),
    "into an expanded value": lambda s, x: (s.n(s.a(x))[:, :1].expand(-1, 4, -1, -1) * 1.0).mul_(s.gain.detach()),
    "relu in place on the norm": lambda s, x: F.relu(s.n(s.a(x)), inplace=True),
    "relu in place on what the norm reads": lambda s, x: (lambda y: F.relu_(y) + s.n(y))(s.a(x)),
    "a view of the value is scaled": lambda s, x: (lambda y: (y[:, :1].mul_(0), s.n(y))[1])(s.a(x)),
    "a view of the norm is scaled": lambda s, x: (lambda y: (y[:, :1].mul_(0), y)[1])(s.n(s.a(x))),
    "copy into a slice": lambda s, x: (lambda y: (y[:, :2].copy_(y[:, 2:]), s.n(y))[1])(s.a(x).clone()),
    "out= of a function": lambda s, x: (lambda y: (torch.sin(x, out=y), s.n(y))[1])(s.a(x)),
    "out= of a function, into what was read": lambda s, x: (lambda y: s.a(y) + (torch.mul(y, 2, out=y), s.b(y))[1])(
        x * x
    ),
    "out= of a function, into statistics": lambda s, x: (
        torch.mul(s.gain.detach().reshape(4), 2, out=s.n.running_mean),
        s.n(s.a(x)),
    )[1],
    "a function in place on what was read": lambda s, x: (lambda y: s.a(y) + (F.selu(y, inplace=True), s.b(y))[1])(
        x * x
    ),
    "a function in place by position": lambda s, x: (lambda y: s.a(y) + (F.celu(y, 0.5, True), s.b(y))[1])(
        torch.sin(x)
    ),
    "a threshold in place by position": lambda s, x: (lambda y: s.a(y) + (F.threshold(y, 0.5, 9, True), s.b(y))[1])(
        x * x
    ),
    "a cast to a tensor class": lambda s, x: s.b(s.n(torch.sin(x)).type("torch.HalfTensor").double()),
    "a cast to a computed type": lambda s, x: s.b(s.n(torch.sin(x)).to(device="cpu", dtype=x.half().dtype).double()),
    "into a constant that is computed": lambda s, x: (
        lambda k: (k[1:2].fill_(3), s.b(x) * (k * 3).view(1, -1, 1, 1))[1]
    )(torch.ones(4, dtype=x.dtype)),
    "into a computed bias": lambda s, x: (lambda b: (b.clamp_(min=0), s.n(F.conv2d(x, s.a.weight, b.exp())))[1])(
        s.a.bias * 1.0
    ),
    "a cast to a computed type behind a convolution": lambda s, x: s.b(
        s.n(s.a(x).relu()).to("cpu", x.half().dtype).double()
    ),
    "a cast to another's type behind a convolution": lambda s, x: s.b(s.n(s.a(x).relu()).type_as(x.half()).double()),
    "a cast to what another is": lambda s, x: s.b(s.n(s.a(x).relu()).to(x.half()).double()),
    "a cast to another's device": lambda s, x: s.b(s.n(s.a(x).relu()).to(x.device).to(x.device, non_blocking=True)),
    "into a view with axes moved": lambda s, x: (lambda y: s.a(y) + (y.movedim(0, 1).mul_(2), s.b(y))[1])(x * x),
    "into one of many views": lambda s, x: (lambda y: s.a(y) + (y.unbind(0)[0].mul_(2), s.b(y))[1])(x * x),
    "into one of several views": lambda s, x: (lambda y: s.a(y) + (y.tensor_split(2, 1)[1].mul_(2), s.b(y))[1])(x * x),
    "into a diagonal": lambda s, x: (lambda y: s.a(y) + (y.diagonal(0, 2, 3).mul_(2), s.b(y))[1])(x * x),
    "into windows": lambda s, x: (lambda y: s.a(y) + (y.unfold(2, 2, 2).mul_(2), s.b(y))[1])(x * x),
    "into what may be a view": lambda s, x: (lambda y: s.a(y) + (torch.atleast_2d(y).mul_(2), s.b(y))[1])(x * x),
    "into a sum over nothing": lambda s, x: (lambda y: s.a(y) + (torch.einsum("abcd->abdc", y).mul_(2), s.b(y))[1])(
        x * x
    ),
    "added to in place": lambda s, x: s.n(s.a(x).add_(s.b(x))),
    "a chain in place": lambda s, x: s.n(s.a(x).mul_(2).add_(1).sub_(s.shift.detach())),
    "index_put": lambda s, x: s.n(s.a(x).index_put((torch.tensor([0]),), torch.zeros((), dtype=x.dtype))),
    "masked_fill": lambda s, x: s.n(s.a(x).masked_fill(x > 0, 0.0)),
    "where": lambda s, x: s.n(torch.where(x > 0, s.a(x), s.b(x))),
    # parameters that are read as data, shapes that are read from values
    "the weight is read as well": lambda s, x: s.n(s.a(x)) * s.a.weight.sum(),
    "the running mean is read as well": lambda s, x: s.n(s.a(x)) + s.n.running_mean.sum(),
    "a shape that comes from the value": lambda s, x: (lambda y: s.n(y).reshape(y.shape[0], -1))(s.a(x)),
    "a scalar parameter": lambda s, x: s.n(s.a(x) * s.seven),
    "a norm without affine behind one with": lambda s, x: s.p(s.n(s.a(x))),
    "a norm without affine between": lambda s, x: s.b(s.p(torch.sin(s.n(s.a(x))))),
    "keywords": lambda s, x: s.n(input=s.a(input=x)),
    "functions on the parameters of modules": lambda s, x: s.n(F.conv2d(x, s.a.weight, s.a.bias, padding=1)),
    "functions that leave the bias out": lambda s, x: s.n(F.conv2d(x, s.a.weight)),
    "another norm's statistics": lambda s, x: F.batch_norm(
        s.a(x), s.m.running_mean, s.n.running_var, s.n.weight, s.m.bias
    ),
    "a functional norm beside the module": lambda s, x: (
        F.batch_norm(s.a(x), s.n.running_mean, s.n.running_var) + s.n(s.c(x))
    ),
    "a norm with momentum and epsilon given": lambda s, x: F.batch_norm(
        s.a(x), s.n.running_mean, s.n.running_var, None, s.n.bias, False, 0.9, 0.25
    ),
    "a standardised weight": lambda s, x: s.n(
        F.conv2d(x, (s.a.weight - s.a.weight.mean()) / s.a.weight.std(), s.a.bias)
    ),
    "a masked weight": lambda s, x: s.n(F.conv2d(x, s.a.weight * (s.a.weight > 0), s.a.bias)),
    # sums of branches
    "an identity branch": lambda s, x: (lambda y: s.n(s.a(y)) + s.m(y))(torch.sin(x)),
    "a negative identity branch": lambda s, x: (lambda y: s.n(s.a(y)) - s.m(y))(torch.sin(x)),
    "a grouped branch": lambda s, x: (lambda y: s.n(s.a(y)) + s.m(s.c(y)) + y)(torch.sin(x)),
    "a transposed branch": lambda s, x: (lambda y: s.n(s.a(y)) + s.m(s.d(y)))(torch.sin(x)),
    "a pooled branch": lambda s, x: (lambda y: s.n(s.a(y)) + s.m(F.avg_pool2d(y, 3, 1, 1)))(torch.sin(x)),
    "a pooled branch without zeros": lambda s, x: (
        lambda y: s.n(s.a(y)) + s.m(F.avg_pool2d(y, 3, 1, 1, count_include_pad=False))
    )(torch.sin(x)),
    "a branch that leaves as well": lambda s, x: (lambda y: (lambda z: (z, s.a(y) + z))(s.b(y)))(torch.sin(x)),
    "branches added in place": lambda s, x: (lambda y: s.a(y).add_(s.b(y)).add_(y))(torch.sin(x)),
    "a branch into a sum with what is read": lambda s, x: (
        lambda y: (lambda p: ((p + s.b(y)).add_(s.a(y)) * 3, p))(y.relu())
    )(torch.sin(x)),
    "a branch into a sum in place, of what is read": lambda s, x: (
        lambda y: (lambda p: (s.b(y).add_(p).add_(s.a(y)) * 3, p))(y.relu())
    )(torch.sin(x)),
    "a branch into a sum of sums": lambda s, x: (
        lambda y: (lambda p: ((p + s.b(y) + s.c(y)).add_(s.a(y)) * 3, p))(y.relu())
    )(torch.sin(x)),
    "branches, one module": lambda s, x: (lambda y: s.a(y) + s.a(y) + s.n(s.a(y)))(torch.sin(x)),
    "a row of convolutions": lambda s, x: s.a(s.n(s.b(s.m(s.b(x))))),
    "beside each other": lambda s, x: torch.cat([s.n(s.a(x)), s.m(s.a(x)), s.a(x)], 1),
}


def leaves(made: Any) -> list[Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(made) if isinstance(each, Tensor)]


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda model: bnfold.fuse(model),
    "module with an example": lambda model: bnfold.fuse(model, example_inputs=IMAGE.clone()),
    "graph": lambda model: bnfold.fuse(traced(model)),
    "graph with an example": lambda model: bnfold.fuse(traced(model), example_inputs=IMAGE.clone()),
    "program": lambda model: bnfold.fuse(exported(model, IMAGE.clone())).module(),
}

PLANS: dict[str, Callable[[nn.Module], tuple[Outcome, ...]]] = {
    "module": lambda model: bnfold.plan(model),
    "module with an example": lambda model: bnfold.plan(model, example_inputs=IMAGE.clone()),
    "graph": lambda model: bnfold.plan(traced(model)),
    "graph with an example": lambda model: bnfold.plan(traced(model), example_inputs=IMAGE.clone()),
    "program": lambda model: bnfold.plan(exported(model, IMAGE.clone())),
}


@pytest.mark.parametrize("name", TRAPS)
def test_trap(name: str) -> None:
    model = trained(Code(TRAPS[name]))
    with torch.no_grad():
        expected = leaves(copy.deepcopy(model)(IMAGE.clone()))
        for form, make in FORMS.items():
            print(form)
            assert_same(expected, leaves(make(model)(IMAGE.clone())), 1e-11)


ANY_SIZE = tuple(form for form in FORMS if form != "program")

MISSING: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {
    # a pool, and the forms in which a window of it can lie wholly in padding: a program's data has 8 positions
    "a gap longer than some data": (lambda y: F.max_pool2d(y, 2, 1, 1, 3), ANY_SIZE),
    "a gap as long as the data": (lambda y: F.max_pool2d(y, 2, 1, 1, 8), ANY_SIZE),
    "a gap longer than the data": (lambda y: F.max_pool2d(y, 2, 1, 1, 9), tuple(FORMS)),
    "a gap longer than the data, by torch": (lambda y: torch.max_pool2d(y, 2, 1, 1, 9), tuple(FORMS)),
    "a gap longer than the width": (lambda y: F.max_pool2d(y, (1, 2), 1, (0, 1), (1, 9)), tuple(FORMS)),
    "a gap without padding": (lambda y: F.max_pool2d(y, 2, 1, 0, 3), ()),
    "gaps that need longer data": (lambda y: F.max_pool2d(y, 3, 1, 1, 3), ()),
    "an ordinary window": (lambda y: F.max_pool2d(y, 3, 2, 1), ()),
    "a pyramid's window": (lambda y: F.max_pool2d(y, 5, 1, 2), ()),
    "a last window": (lambda y: F.max_pool2d(y, 3, 2, 1, ceil_mode=True), ()),
    "a last window that could start behind the data": (lambda y: F.max_pool2d(y, 2, 3, 1, ceil_mode=True), ()),
    "an adaptive window": (lambda y: F.adaptive_max_pool2d(y, 3), ()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MISSING)
def test_the_largest_of_nothing_is_no_value_of_the_data(name: str, form: str) -> None:
    """It is minus infinity, which a scale of zero makes NaN; and a form without a size stands for data of any."""
    pool, missing = MISSING[name]
    model = trained(Code(lambda s, x: s.n(pool(s.a(x)))))
    with torch.no_grad():
        model.n.weight.abs_()
        model.n.weight[1] = 0
        expected = leaves(copy.deepcopy(model)(IMAGE.clone()))
        (outcome,) = PLANS[form](model)
        if form in missing:
            assert isinstance(outcome, Refusal)
            assert outcome.reason is Reason.BORDER
            assert "wholly in padding" in outcome.detail
        else:
            assert isinstance(outcome, Fold)
            assert_same(expected, leaves(FORMS[form](model)(IMAGE.clone())), 1e-11)


def test_statistics_that_change_under_another_name() -> None:
    model = trained(Code(lambda s, x: (s.tied.add_(x.mean() + 1), s.n(s.a(x)))[1]))
    model.register_buffer("tied", model.n.running_mean)
    with torch.no_grad():
        expected = leaves(copy.deepcopy(model)(IMAGE.clone()))
        for form in ("graph", "graph with an example"):
            assert_same(expected, leaves(FORMS[form](copy.deepcopy(model))(IMAGE.clone())), 1e-11)


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")  # torch's own
@pytest.mark.parametrize("name", [name for name in TRAPS if "in place" in name or "branch" in name or "norm" in name])
def test_trap_in_a_decomposed_program(name: str) -> None:
    model = trained(Code(TRAPS[name]))
    with torch.no_grad():
        expected = leaves(copy.deepcopy(model)(IMAGE.clone()))
        program = exported(model, IMAGE.clone()).run_decompositions()
        assert_same(expected, leaves(bnfold.fuse(program).module()(IMAGE.clone())), 1e-11)


def test_parts_that_leave_as_one_say_that_they_leave() -> None:
    (found,) = PLANS["graph with an example"](trained(Code(lambda s, x: s.n(torch.relu(x)).chunk(2, 1))))
    assert isinstance(found, Refusal)
    assert "downstream chunk: its output leaves the graph" in found.detail
