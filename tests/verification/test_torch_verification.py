"""Torch models as subjects of the verification: modules, programs, and either against ONNX."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import bnfold
from bnfold import IncomparableError
from bnfold.testing import assert_equivalent
from tests.toys.torch_models import drawn, exported, to_onnx_by_export, traced, trained

IMAGE = drawn(2, 4, 8, 8).float()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.norm(self.conv(x)))
        return {"value": self.last(y), "class": y.mean((2, 3)).argmax(1)}


def net(**changes: float) -> nn.Module:
    model = trained(Net()).float()
    for name, amount in changes.items():
        with torch.no_grad():
            model.get_parameter(f"norm.{name}").add_(amount)
    return model


def moved(amount: float) -> nn.Module:
    """The model with one BatchNorm that is a little different."""
    return net(bias=amount)


def forms(model: nn.Module) -> dict[str, Any]:
    """One model in every form that can be verified."""
    return {
        "module": model,
        "graph module": traced(model),
        "program": exported(model, IMAGE),
        "onnx": to_onnx_by_export(model, IMAGE),
    }


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    return forms(net())


@pytest.fixture(scope="module")
def faulty() -> dict[str, Any]:
    return forms(moved(0.001))


PAIRS = [
    (one, two) for one in ("module", "graph module", "program", "onnx") for two in ("module", "graph module", "program")
]


def inputs_for(one: str, two: str) -> dict[str, np.ndarray] | None:
    both_are_modules = "module" in one and "module" in two
    return {"x": IMAGE.numpy()} if both_are_modules else None


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_forms_of_one_model_are_equivalent(references: dict[str, Any], one: str, two: str) -> None:
    fused = bnfold.fuse(references[two], **({} if two == "program" else {"example_inputs": IMAGE}))
    assert_equivalent(references[one], fused, inputs_for(one, two), effort="fast")


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_a_moved_shift_is_found(references: dict[str, Any], faulty: dict[str, Any], one: str, two: str) -> None:
    verdict = bnfold.verify(references[one], faulty[two], inputs_for(one, two), effort="fast")
    assert not verdict.is_equivalent
    assert verdict.worst.error > 3 * verdict.worst.budget


def test_two_modules_need_inputs() -> None:
    with pytest.raises(IncomparableError, match="give inputs"):
        bnfold.verify(net(), net())


def test_arguments_are_found_by_name() -> None:
    class Difference(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - right

    left, right = IMAGE[:, :2].numpy(), IMAGE[:, 2:].numpy()
    assert_equivalent(Difference(), traced(Difference()), {"right": right, "left": left})
    program = exported(Difference(), IMAGE[:, :2], IMAGE[:, 2:])
    assert_equivalent(program, Difference(), {"right": right, "left": left})


def test_other_numbers_of_outputs_are_incomparable() -> None:
    class One(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)["value"]

    model = net()
    with pytest.raises(IncomparableError, match="outputs"):
        bnfold.verify(exported(model, IMAGE), exported(One(model), IMAGE))
    with pytest.raises(IncomparableError, match="1 output, not 2"):
        bnfold.verify(exported(model, IMAGE), One(model))


def test_half_precision_programs_are_judged_by_their_own_noise() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = trained(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))).to(dtype)
        program = exported(model, torch.zeros(4, 16, dtype=dtype))
        assert_equivalent(program, bnfold.fuse(program))
        worse = copy.deepcopy(model)
        with torch.no_grad():
            worse[1].running_mean.add_(2.0)
        assert not bnfold.verify(program, exported(worse, torch.zeros(4, 16, dtype=dtype))).is_equivalent


def test_a_model_that_torch_cannot_run_is_an_error() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.reshape, (x, (7, -1))))
    with pytest.raises(IncomparableError, match="torch cannot run it"):
        bnfold.verify(fx.GraphModule({}, graph), net(), {"x": IMAGE.numpy()})


def test_a_provider_that_is_no_device_of_torch_is_an_error() -> None:
    program = exported(net(), IMAGE)
    with pytest.raises(IncomparableError, match="tensorrt"):
        bnfold.verify(program, program, providers=["tensorrt"])


def test_nothing_of_a_subject_changes() -> None:
    model = net()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bnfold.verify(model, net(), {"x": IMAGE.numpy()})
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
