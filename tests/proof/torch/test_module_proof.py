"""A module is proved by what is captured of the one that is given back: faults planted there, one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

import bnfold
from bnfold.errors import NotEquivalentError, UnsupportedModelError
from bnfold.frontends.torch.change.project import Projection
from bnfold.proof.torch.calls import kind_of
from bnfold.proof.torch.same import find_difference

IMAGE = torch.randn(2, 3, 8, 8)


class Plain(nn.Module):
    """A convolution, its BatchNorm, and a layer that no fold changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("others", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = F.relu(self.bn(self.conv(x)))
        return {"features": y, "scores": self.head(y)}


class Functional(Plain):
    """The same, whose forward has to change."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls.add_(1)
        bn = self.bn
        y = F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        y = F.relu(y)
        return {"features": y, "scores": self.head(y)}


def one_ulp(tensor: Any) -> None:
    with torch.no_grad():
        flat = tensor.view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf))


def set_padding(module: Any) -> None:
    module.conv.padding = (0, 0)


def set_border(module: Any) -> None:
    module.conv.padding_mode = "circular"
    module.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


def swap_results(module: Any) -> None:
    forward = type(module).forward

    def swapped(self: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
        made = forward(self, x)
        return {"scores": made["features"], "features": made["scores"]}

    module.forward = swapped.__get__(module)


def return_a_list(module: Any) -> None:
    forward = type(module).forward
    module.forward = (lambda self, x: list(forward(self, x).values())).__get__(module)


def skip_the_relu(module: Any) -> None:
    module.forward = (lambda self, x: {"features": (y := self.conv(x)), "scores": self.head(y)}).__get__(module)


FAULTS: dict[str, Callable[[Any], None]] = {
    "a folded weight, one ulp off": lambda module: one_ulp(module.conv.weight),
    "a folded bias, one ulp off": lambda module: one_ulp(module.conv.bias),
    "the weight of another layer": lambda module: one_ulp(module.head.weight),
    "another bias gone": lambda module: setattr(module.head, "bias", None),
    "a bias that is another": lambda module: setattr(module.conv, "bias", nn.Parameter(module.conv.bias + 1e-6)),
    "results that changed places": swap_results,
    "another structure": return_a_list,
    "other code": skip_the_relu,
}


SURVIVED: dict[str, Callable[[Any], None]] = {"a padding": set_padding, "a border": set_border}
"""Faults in what other code does not read, which is tried next."""


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    changed = Projection._changed

    def planted(fault: Callable[[Any], None]) -> None:
        def faulty(self: Projection, *args: Any, **options: Any) -> nn.Module:
            made = changed(self, *args, **options)
            fault(made)
            return made

        monkeypatch.setattr(Projection, "_changed", faulty)

    return planted


@pytest.mark.parametrize("inputs", [IMAGE, None], ids=["exported", "traced"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_is_given_back_is_found(fault: str, inputs: Any, plant: Any) -> None:
    model = Plain().eval()
    bnfold.fuse(model, example_inputs=inputs)
    plant(FAULTS[fault])
    with pytest.raises(NotEquivalentError, match="not proved"):
        bnfold.fuse(model, example_inputs=inputs)


@pytest.mark.parametrize("fault", SURVIVED)
def test_a_fault_in_code_that_stays_is_found(fault: str, plant: Any) -> None:
    model = Plain().eval()
    plant(SURVIVED[fault])
    with pytest.raises(NotEquivalentError, match="not proved"):
        bnfold.fuse(model)
    fused = bnfold.fuse(model, example_inputs=IMAGE)  # by the code of the program, which asks no module for its padding
    expected = model(IMAGE)
    assert all(torch.allclose(made, expected[name], atol=1e-5) for name, made in fused(IMAGE).items())


@pytest.mark.parametrize("fault", ["a folded weight, one ulp off", "the weight of another layer", "another structure"])
def test_a_fault_beside_generated_code_is_found(fault: str, plant: Any) -> None:
    model = Functional().eval()
    bnfold.fuse(model, example_inputs=IMAGE)
    plant(FAULTS[fault])
    with pytest.raises(NotEquivalentError, match="not proved"):
        bnfold.fuse(model, example_inputs=IMAGE)


def test_a_buffer_that_another_is_written_into_is_found(plant: Any) -> None:
    """They hold the same, so that only their names tell them apart."""

    def exchange(module: Any) -> None:
        buffers = module._buffers
        buffers["calls"], buffers["others"] = buffers["others"], buffers["calls"]
        forward = type(module).forward

        def exchanged(self: Any, x: torch.Tensor) -> Any:
            self.others.add_(1)
            self.calls.sub_(1)
            return forward(self, x)

        module.forward = exchanged.__get__(module)

    plant(exchange)
    with pytest.raises(NotEquivalentError, match="not proved"):
        bnfold.fuse(Functional().eval(), example_inputs=IMAGE)


def test_a_module_that_is_not_proved_is_as_it_was(plant: Any) -> None:
    """In place as well."""
    model = Plain().eval()
    before = dict(model.state_dict())
    expected = model(IMAGE)
    plant(FAULTS["a folded bias, one ulp off"])
    with pytest.raises(NotEquivalentError):
        bnfold.fuse(model, example_inputs=IMAGE, inplace=True)
    assert type(model) is Plain
    assert type(model.bn) is nn.BatchNorm2d
    assert {name: id(each) for name, each in model.state_dict(keep_vars=True).items()}.keys() == before.keys()
    assert all(torch.equal(made, expected[name]) for name, made in model(IMAGE).items())


def test_a_handle_of_a_hook_works_after_a_fold_in_place() -> None:
    model = Plain().eval()
    handle = model.head.register_forward_hook(lambda module, args, made: made + 1)
    expected = model(IMAGE)["scores"]
    fused = bnfold.fuse(model, example_inputs=IMAGE, inplace=True)
    assert torch.allclose(fused(IMAGE)["scores"], expected, atol=1e-5)
    handle.remove()
    assert torch.allclose(fused(IMAGE)["scores"], expected - 1, atol=1e-5)


def test_a_module_that_is_another_graph_each_time_is_not_called_a_bug() -> None:
    class Counting(Plain):
        calls_made = 0

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            Counting.calls_made += 1
            made = super().forward(x)
            return {**made, "scores": made["scores"] * Counting.calls_made}

    with pytest.raises(UnsupportedModelError, match="looks at what these folds change"):
        bnfold.fuse(Counting().eval(), example_inputs=IMAGE, code="keep")


def test_without_proof_the_graph_is_compared_as_well(plant: Any) -> None:
    plant(FAULTS["another structure"])
    with pytest.raises(UnsupportedModelError):
        bnfold.fuse(Plain().eval(), example_inputs=IMAGE, prove=False)


class Labelled(nn.Conv2d):
    """A subclass that does nothing else."""

    label = "first"

    def extra_repr(self) -> str:
        return self.label


class Doubled(nn.Conv2d):
    def _conv_forward(self, *args: Any) -> torch.Tensor:
        return 2 * super()._conv_forward(*args)


class Computed(nn.Conv2d):
    @property
    def padding_mode(self) -> str:
        return "circular"

    @padding_mode.setter
    def padding_mode(self, value: str) -> None:
        pass


class Loud(nn.Module):
    def __call__(self, *args: Any) -> Any:
        return 2 * super().__call__(*args)


class Mixed(nn.Conv2d, Loud):
    """A class between torch's own and `nn.Module` changes what a call does."""


def test_a_subclass_is_what_its_class_is_where_it_leaves_that_alone() -> None:
    assert kind_of(nn.Conv2d(3, 4, 3)) is nn.Conv2d
    assert kind_of(Labelled(3, 4, 3)) is nn.Conv2d
    for kind in (Doubled, Computed, Mixed):
        assert kind_of(kind(3, 4, 3)) is None
    assert kind_of(Plain()) is None


class Flattening(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.relu(x)).reshape(2, x.shape[2], -1)


def test_a_size_may_be_read_from_any_value_that_has_it() -> None:
    """Which one that is depends on what torch knows of a size when it captures a graph."""
    dims = {"x": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
    program, other = (torch.export.export(Flattening(), (IMAGE,), dynamic_shapes=dims, strict=False) for _ in range(2))
    nodes = {node.name: node for node in other.graph.nodes}
    (size,) = [node for node in other.graph.nodes if node.target is torch.ops.aten.sym_size.int]
    nodes["reshape"].prepend(size)
    for name, dim, is_same in (
        ("x", 2, True),
        ("relu", 2, True),
        ("tanh", 2, True),
        ("x", 3, False),
        ("tanh", 3, False),
    ):
        size.args = (nodes[name], dim)
        assert (find_difference(program, other) is None) == is_same


def test_large_tensors_are_compared_to_their_ends() -> None:
    size = 200
    original = nn.Sequential(nn.Linear(size, size), nn.Linear(size, size)).eval()
    with torch.no_grad():
        original[1].weight.copy_(original[0].weight)
        original[1].weight[-1, -1] += 1
    image = (torch.randn(2, size),)

    def captured(module: nn.Module) -> Any:
        return torch.export.export(module, image)

    swapped, other = copy.deepcopy(original), copy.deepcopy(original)
    swapped[0].weight, swapped[1].weight = swapped[1].weight, swapped[0].weight
    one_ulp(other[1].weight.detach().flip(0))  # a copy
    assert find_difference(captured(original), captured(other)) is None
    one_ulp(other[1].weight.detach()[-1, -1])
    assert find_difference(captured(original), captured(other)) is not None
    assert find_difference(captured(original), captured(swapped)) is not None
