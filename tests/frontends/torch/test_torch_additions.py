"""Additions by index to zeros (graph networks): a scale goes through, a shift does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import bnfold
from bnfold import Fold, Reason, Refusal
from bnfold.errors import NotEquivalentError
from bnfold.frontends.torch.operators import read_carry
from bnfold.proof.torch.check import check_program
from tests.toys.torch_models import assert_same, drawn, exported, fuse, of_batchnorms, run, traced, trained
from tests.toys.torch_proofs import certify

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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SUMS)
def test_behind_a_sum_of_unknown_length_a_batchnorm_becomes_an_addition(name: str, form: str) -> None:
    argument, options = FORMS[form](trained(Behind(SUMS[name])))
    fused, outcomes = fuse(argument, NODES, INDEX, **options)
    (found,) = of_batchnorms(outcomes)
    assert isinstance(found, Fold), found
    assert (found.direction, found.into, found.changes_code) == ("scale upstream", ("first",), form == "module")
    names = fused.state_dict if form == "program" else fused.state_dict()
    assert not any("running" in name for name in names)
    assert "norm_shift" in names


class Named(Behind):
    """A BatchNorm with a parameter behind it that goes with it, of the name that an addition would have."""

    def __init__(self) -> None:
        super().__init__(SUMS["index_add"])
        self.norm_shift = nn.Parameter(drawn(6))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.add(self.first(x), index)) + self.norm_shift)


@pytest.mark.parametrize("form", FORMS)
def test_no_name_of_the_original_means_another_tensor(form: str) -> None:
    argument, options = FORMS[form](trained(Named()))
    fused, outcomes = fuse(argument, NODES, INDEX, **options)
    assert [found.direction for found in of_batchnorms(outcomes)] == ["scale upstream"]
    names = fused.state_dict if form == "program" else fused.state_dict()
    assert "norm_shift" not in names
    assert "norm_shift_folded" in names


class Repeated(nn.Module):
    """A layer without a bias that is called three times, and of which each call gets one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, index: Tensor) -> list[Tensor]:
        made = [x]
        for _ in range(3):
            made.append(torch.zeros_like(x).index_add(0, index, self.norm(self.linear(made[-1]))))
        return made


def test_each_call_of_a_layer_gets_a_bias() -> None:
    _, outcomes = fuse(trained(Repeated()), NODES, INDEX, example_inputs=(NODES, INDEX))
    assert [found.direction for found in of_batchnorms(outcomes)] == ["upstream"] * 3


class Filled(Behind):
    """A node that is set in place, by an index that the code makes."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.norm(self.add(self.first(x), index)).index_fill_(0, torch.tensor([2]), 0.5)


@pytest.mark.parametrize("form", ["module", "program"])
def test_an_index_that_code_makes_is_memory_of_its_own(form: str) -> None:
    argument, options = FORMS[form](trained(Filled(SUMS["index_add"])))
    _, outcomes = fuse(argument, NODES, INDEX, **options)
    assert [found.direction for found in of_batchnorms(outcomes)] == ["scale upstream"]


@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's own, as it decomposes
def test_a_batchnorm_of_core_aten_becomes_an_addition() -> None:
    program = exported(trained(Behind(SUMS["scatter_add in place"])), NODES, INDEX).run_decompositions()
    fused, outcomes = fuse(program, NODES, INDEX)
    (found,) = of_batchnorms(outcomes)
    assert isinstance(found, Fold), found
    assert not any("batch_norm" in str(node.target) for node in fused.graph.nodes)


def test_code_that_stays_gets_no_addition() -> None:
    module = trained(Behind(SUMS["index_add"]))
    _, outcomes = fuse(module, NODES, INDEX, example_inputs=(NODES, INDEX), code="keep")
    (found,) = of_batchnorms(outcomes)
    assert isinstance(found, Refusal), found
    assert found.reason is Reason.FORWARD_CODE


class Mixed(Behind):
    """A sum in float16, normalised by parameters in float32: what is added to it would change its type."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.add(self.first(x.half()), index)))


def test_an_addition_leaves_the_type_of_the_data_alone() -> None:
    module = trained(Mixed(SUMS["index_add"])).float()
    module.first.half()
    _, outcomes = fuse(exported(module, NODES.float(), INDEX), NODES.float(), INDEX)
    (found,) = of_batchnorms(outcomes)
    assert isinstance(found, Refusal), found
    assert found.reason is Reason.SHIFT


def off_by_little(addition: fx.Node, root: Any) -> None:
    root["norm_shift"].data[2] += 1e-9


def of_another_multiple(addition: fx.Node, root: Any) -> None:
    addition.kwargs = {"alpha": 1.0 + 1e-9}


def to_what_is_in_front(addition: fx.Node, root: Any) -> None:
    (data,) = (node for node in addition.graph.nodes if "linear" in node.name or str(node.target) == "first")
    addition.update_arg(0, data)


def in_place(addition: fx.Node, root: Any) -> None:
    addition.target = torch.ops.aten.add_.Tensor


def of_columns(addition: fx.Node, root: Any) -> None:
    root["norm_shift"].data = root["norm_shift"].data.reshape(-1, 1)


FAULTS = (off_by_little, of_another_multiple, to_what_is_in_front, in_place, of_columns)


@pytest.mark.parametrize("fault", [None, *FAULTS], ids=lambda fault: fault.__name__ if fault else "none")
@pytest.mark.parametrize("form", ["graph", "program"])
def test_a_wrong_addition_is_not_proved(form: str, fault: Callable[[fx.Node, Any], None] | None) -> None:
    argument, options = FORMS[form](trained(Behind(SUMS["index_add"])))
    result, certificate = certify(argument, **options)
    graph = result.graph
    (addition,) = (node for node in graph.nodes if "add" in str(node.target) and "index" not in str(node.target))
    held = result.state_dict if form == "program" else dict(result.named_parameters())
    if fault:
        fault(addition, held)
        (result.graph_module if form == "program" else result).recompile()
    proof = check_program(argument, result, certificate, (NODES, INDEX), has_digests=False)
    assert proof.is_proved == (fault is None), proof.failures


class Rows(nn.Module):
    """A product with a computed matrix on the left, over samples of several nodes, and an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        weights = torch.softmax(x @ x.transpose(-1, -2), -1) * 2
        made = self.norm((weights @ self.first(x)).transpose(1, 2))
        return torch.nn.functional.leaky_relu(made, 0.1, inplace=True)


def test_an_addition_lies_along_the_channels() -> None:
    x = drawn(3, 7, 4)
    module = trained(Rows())
    for argument, options in ((module, {"example_inputs": (x, INDEX)}), (exported(module, x, INDEX), {})):
        _, outcomes = fuse(argument, x, INDEX, **options)
        (found,) = of_batchnorms(outcomes)
        assert isinstance(found, Fold), found
        assert found.direction == "scale upstream"


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
