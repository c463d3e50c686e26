"""Pre-activation networks whose activations write in place: whatever of them is read again is never overwritten."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

import bnfold
from bnfold import Fold, Reason, Refusal
from tests.toys.torch_models import (
    assert_folds,
    assert_same,
    assert_settled,
    drawn,
    exported,
    fuse,
    of_batchnorms,
    run,
    traced,
    trained,
)

IMAGE = drawn(2, 4, 8, 8)

EXAMPLE = {"example_inputs": IMAGE}


def positive(module: nn.Module) -> nn.Module:
    """A trained module of which every scale is positive, so that a shift may go another way than its scale."""
    for each in trained(module).modules():
        if isinstance(each, nn.BatchNorm2d):
            each.weight.data.abs_().add_(0.25)
    return module


class Stream(nn.Module):
    """``x + conv(act(norm(x)))`` behind a convolution, with what else a test does with the values."""

    def __init__(self, branch: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.branch = branch
        self.stem, self.norm, self.conv = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.act, self.leaky = nn.ReLU(inplace=True), nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Any:
        return self.branch(self, self.stem(x))


FORMS: dict[str, Callable[[nn.Module], tuple[Any, dict[str, Any]]]] = {
    "module": lambda model: (model, EXAMPLE),
    "graph": lambda model: (traced(model), EXAMPLE),
    "program": lambda model: (exported(model, IMAGE), {}),
}

ALONE: dict[str, Callable[[Any, Tensor], Any]] = {
    "a function": lambda s, x: x + s.conv(F.relu(s.norm(x), inplace=True)),
    "a function by position": lambda s, x: x + s.conv(F.leaky_relu(s.norm(x), 0.3, True)),
    "a function with an underscore": lambda s, x: x + s.conv(torch.relu_(s.norm(x))),
    "a method": lambda s, x: x + s.conv(s.norm(x).relu_()),
    "a module": lambda s, x: x + s.conv(s.act(s.norm(x))),
    "a module with a slope": lambda s, x: x + s.conv(s.leaky(s.norm(x))),
    "one module, twice": lambda s, x: s.act(x + s.conv(s.act(s.norm(x)))),
    "two in a row": lambda s, x: x + s.conv(s.leaky(s.act(s.norm(x)))),
    "a size that is read": lambda s, x: (lambda y: (x + s.conv(F.relu_(y)), y.size(2)))(s.norm(x)),
    "into a view": lambda s, x: x + s.conv(F.relu_(s.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
}
"""Nothing else reads what is overwritten."""

SEEN: dict[str, Callable[[Any, Tensor], Any]] = {
    "a view is read behind it": lambda s, x: (lambda y, v: x + s.conv(F.relu_(y)) + v.view_as(x))(
        *(lambda y: (y, y.view(-1)))(s.norm(x))
    ),
    "a view is overwritten": lambda s, x: (lambda y: (F.relu_(y[:, :2]), x + s.conv(y))[1])(s.norm(x)),
    "the value leaves": lambda s, x: (lambda y: (x + s.conv(s.act(y)), y))(s.norm(x)),
    "a part of it leaves": lambda s, x: (lambda y: (x + s.conv(s.act(y)), y.chunk(2, 1)[1]))(s.norm(x)),
    "the stream itself is overwritten": lambda s, x: (lambda y: F.relu_(x) + s.conv(F.relu_(y)))(s.norm(x)),
    "a view is added up behind it": lambda s, x: (lambda y, v: x + s.conv(F.relu_(y)) + v.sum())(
        *(lambda y: (y, y[:, :1]))(s.norm(x))
    ),
}
"""Something else reads it, or sees a view of it change."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALONE)
def test_an_activation_in_place_on_a_stream_is_as_good_as_a_plain_one(name: str, form: str) -> None:
    argument, options = FORMS[form](positive(Stream(ALONE[name])))
    fused = assert_folds(argument, IMAGE, **options)
    assert_same(run(argument, IMAGE), run(fused, IMAGE))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SEEN)
def test_a_value_that_something_else_sees_change_refuses(name: str, form: str) -> None:
    argument, options = FORMS[form](positive(Stream(SEEN[name])))
    _, outcomes = fuse(argument, IMAGE, **options)
    (found,) = of_batchnorms(outcomes)
    assert isinstance(found, Refusal)
    assert found.reason in (Reason.SECOND_USE, Reason.GRAPH_OUTPUT)


def test_the_value_by_its_old_name_is_what_was_written_into_it() -> None:
    model = positive(Stream(lambda s, x: (lambda y: x + s.conv(F.relu_(y)) + y)(s.norm(x))))
    assert_folds(exported(model, IMAGE), IMAGE)  # an export knows
    _, outcomes = fuse(traced(model), IMAGE, example_inputs=IMAGE)
    assert [type(each) for each in of_batchnorms(outcomes)] == [Refusal]


def test_a_hook_that_sees_the_value_refuses() -> None:
    model = positive(Stream(ALONE["a module"]))
    model.act.register_forward_pre_hook(lambda module, inputs: None)
    _, outcomes = fuse(model, IMAGE, example_inputs=IMAGE)
    assert [type(each) for each in of_batchnorms(outcomes)] == [Refusal]


def test_a_module_that_is_called_once_keeps_its_code_and_loses_its_flag() -> None:
    model = positive(Stream(ALONE["a module"]))
    fused, outcomes = fuse(model, IMAGE, example_inputs=IMAGE, code="keep")
    assert [type(each) for each in of_batchnorms(outcomes)] == [Fold]
    assert not any(each.changes_code for each in of_batchnorms(outcomes) if isinstance(each, Fold))
    assert type(fused.act) is nn.ReLU
    assert (model.act.inplace, fused.act.inplace, fused.leaky.inplace) == (True, False, True)


@pytest.mark.parametrize("name", ["a function", "one module, twice"])
def test_code_that_is_kept_cannot_make_a_fresh_result(name: str) -> None:
    _, outcomes = fuse(positive(Stream(ALONE[name])), IMAGE, example_inputs=IMAGE, code="keep")
    (found,) = of_batchnorms(outcomes)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.FORWARD_CODE


def test_what_writes_where_nothing_goes_writes_on() -> None:
    model = positive(Stream(lambda s, x: s.conv(s.act(s.norm(x)))))
    fused = assert_folds(model, IMAGE, example_inputs=IMAGE)
    assert fused.act.inplace
    program = assert_folds(exported(model, IMAGE), IMAGE)
    assert [node.name for node in program.graph.nodes if node.target is torch.ops.aten.relu_.default] == ["relu_"]


class Drawn(nn.Module):
    """A random pre-activation network. Its activations write in place, and now and then something sees that."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.stem = nn.Conv2d(4, 4, 3)
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        self.shared, self.own = nn.ReLU(inplace=True), nn.ModuleList()
        self.plan: list[tuple[str, str, str]] = []
        for _ in range(self.random.randint(1, 4)):
            self.norms.append(nn.BatchNorm2d(4))
            self.convs.append(nn.Conv2d(4, 4, 1, bias=self.random.random() < 0.5))
            self.own.append(self.random.choice([nn.ReLU(True), nn.LeakyReLU(0.1, True), nn.Hardswish(True)]))
            views = [*["none"] * 4, "flat", "flat", "cut", "scaled", "dropped"]
            reads = [*["none"] * 6, "later", "view later", "sum", "leaves", "stream", "before"]
            act = self.random.choice(["function", "method", "shared", "own", "own", "silu", "plain", "twice"])
            self.plan.append((act, self.random.choice(views), self.random.choice(reads)))

    def act(self, kind: str, index: int, y: Tensor) -> Tensor:
        if kind == "function":
            return F.relu(y, inplace=True)
        if kind == "method":
            return y.relu_()
        if kind == "shared":
            return self.shared(y)
        if kind == "silu":
            return F.silu(y, inplace=True)
        return (
            F.relu(y) if kind == "plain" else self.shared(self.own[index](y)) if kind == "twice" else self.own[index](y)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        left: list[Tensor] = []
        for index, (kind, view, read) in enumerate(self.plan):
            y = self.norms[index](x)
            seen = y.view(-1) if read == "view later" else y
            early = y.mean((2, 3), keepdim=True) if read == "before" else None
            if view == "flat":
                z = self.act(kind, index, y.flatten(2)).unflatten(2, (6, 6))
            elif view == "cut":
                z = torch.cat([self.act(kind, index, y[:, :2]), y[:, 2:]], 1)
            elif view == "scaled":
                z = self.act(kind, index, y * 0.5)
            elif view == "dropped":
                z = self.act(kind, index, F.dropout(y, 0.5, training=False))
            else:
                z = self.act(kind, index, y)
            z = self.convs[index](z)
            z = z + seen.view_as(z) if read in ("later", "view later") else z
            z = z + seen.sum() if read == "sum" else z
            z = z * early if early is not None else z
            if read == "leaves":
                left.append(seen)
            x = (F.relu_(x) if read == "stream" else x) + z
        return (x, *left)


@pytest.mark.parametrize("seed", range(6))
def test_random_streams_are_never_wrong(seed: int) -> None:
    model = positive(Drawn(seed))
    expected = run(model, IMAGE)
    for form in (*FORMS.values(), lambda model: (model, {}), lambda model: (model, {**EXAMPLE, "code": "keep"})):
        argument, options = form(model)
        fused = bnfold.fuse(argument, **options)
        assert_same(expected, run(fused, IMAGE), 1e-11)
        assert_settled(fused, **options)
