"""What a module is called with, in each form: fuse, verify, assert_equivalent and benchmark take all of them."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import testing
from bnfold.errors import IncomparableError, UnsupportedModelError
from bnfold.frontends.inputs import Inputs
from tests.toys.torch_models import exported, trained

X = torch.rand(1, 3, 8, 8, dtype=torch.float64)


class Scaled(nn.Module):
    """A convolution, a BatchNorm, and an optional factor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: Any = None) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y if scale is None else y * scale


ONE: dict[str, Any] = {
    "a tensor": X,
    "an array": X.numpy(),
    "a tuple": (X,),
    "a list": [X],
    "a dict": {"x": X},
    "another mapping, of arrays": UserDict(x=X.numpy()),
    "both, with nothing by name": ((X,), {}),
    "with None": (X, None),
}

TWO: dict[str, Any] = {
    "a number": (X, 2.0),
    "a number by name": {"x": X, "scale": 2.0},
    "both": ((X,), {"scale": torch.tensor(2.0)}),
}


@pytest.mark.parametrize("form", [*ONE, *TWO])
def test_each_form_is_taken_by_all(form: str) -> None:
    module, inputs = trained(Scaled()), {**ONE, **TWO}[form]
    fused, outcomes = bnfold.fuse(module, example_inputs=inputs, return_outcomes=True)
    assert all(isinstance(outcome, bnfold.Fold) for outcome in outcomes)
    assert testing.assert_equivalent(module, fused, inputs).is_equivalent
    assert not bnfold.verify(module, trained(Scaled(), seed=3), inputs).is_equivalent
    assert bnfold.benchmark([module, fused], inputs=inputs, rounds=32, threads=1).entries


@pytest.mark.parametrize("form", ONE)
def test_a_program_takes_what_its_module_takes(form: str) -> None:
    module = trained(Scaled())
    for other in (exported(module, X), module):
        assert bnfold.verify(exported(module, X), other, ONE[form]).is_equivalent


def test_what_is_no_array_is_named() -> None:
    module = trained(Scaled())
    for inputs in ((X, [X]), {"x": X, "scale": "twice"}):
        with pytest.raises(IncomparableError, match=r"'scale' is of type (list|str): give an array or a number"):
            bnfold.verify(module, module, inputs)


def test_an_array_of_another_type_than_the_weights_is_an_error() -> None:
    """numpy's numbers are float64 by default, and an export of a linear layer takes them."""
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)).eval()
    with pytest.raises(UnsupportedModelError, match="linear would multiply numbers in float32 by others in float64"):
        bnfold.fuse(module, example_inputs=np.ones((2, 3)))


def test_brain_floats_keep_their_type() -> None:
    (found,) = Inputs.of(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).arrays(["x"]).values()
    assert found.dtype.name == "bfloat16"
    assert np.array_equal(found.astype(np.float32), [1, 1])
