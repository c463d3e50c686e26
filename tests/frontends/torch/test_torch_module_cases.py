"""Laws of `bnfold.fuse(module, example_inputs=...)`, each for every module of a list."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

import bnfold
from bnfold import Fold, Outcome, Refusal
from tests.toys.module_cases import CASES, Output
from tests.toys.torch_models import assert_same, trained


@dataclass(frozen=True, eq=False)
class Fused:
    """A module, what it was before, and what became of it.

    Attributes:
        name: that of the case.
        model: the original.
        before, after: what it held before it was fused, and after.
        result: the other module.
        outcomes: of its BatchNorms.
        expected: what the original gives.
        copied, pickled: copies of the result; None where the original cannot be pickled.
    """

    name: str
    model: nn.Module
    before: Any
    after: Any
    result: nn.Module
    outcomes: tuple[Outcome, ...]
    expected: list[Any]
    copied: nn.Module
    pickled: nn.Module | None


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Fused:
    """A case, fused once for all laws, which are tested case by case."""
    name: str = request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated, and in use
        model, inputs = trained(CASES[name].make()), CASES[name].inputs
    before = portrait(model)
    result, outcomes = bnfold.fuse(model, example_inputs=inputs, return_outcomes=True)
    after = portrait(model)
    pickled = pickle.loads(pickle.dumps(result)) if _can_be_pickled(model) else None
    copied = copy.deepcopy(result)
    return Fused(name, model, before, after, result, outcomes, run(model, name), copied, pickled)


def _can_be_pickled(model: nn.Module) -> bool:
    try:
        pickle.dumps(model)
    except Exception:  # pickle raises anything
        return False
    return True


def portrait(model: nn.Module) -> list[Any]:
    """All that a module holds, and the states of the random generators."""
    seen: set[int] = set()
    held = [
        (path, type(each), each.training, {key: _portray(value, seen) for key, value in vars(each).items()})
        for path, each in model.named_modules()
    ]
    return [held, _portray(torch.get_rng_state(), seen), str(np.random.get_state()), random.getstate()]


def _portray(value: Any, seen: set[int]) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.requires_grad, value.is_leaf, value.tolist()
    if isinstance(value, Mapping):
        return {key: _portray(each, seen) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_portray(each, seen) for each in value]
    return value if isinstance(value, int | float | str | None) else id(value)


def called(name: str) -> Any:
    """The arguments of a call."""
    inputs = CASES[name].inputs
    return copy.deepcopy(((), inputs) if isinstance(inputs, dict) else (inputs, {}))


def run(model: nn.Module, name: str) -> list[Any]:
    """Everything that a call gives back, of two calls in a row: the second finds what the first left."""
    found: list[Any] = []
    for _ in range(2):
        torch.manual_seed(0)
        args, kwargs = called(name)
        with torch.no_grad():
            found.extend(_leaves(model(*args, **kwargs)))
    return found


def _leaves(made: Any) -> Iterator[Any]:
    for leaf in _pytree.tree_leaves(made):
        yield from vars(leaf).values() if isinstance(leaf, Output) else [leaf]


def assert_equal(expected: list[Any], actual: list[Any]) -> None:
    """Tensors to rounding in float64; anything else is the same."""
    assert [each for each in expected if not isinstance(each, Tensor)] == [
        each for each in actual if not isinstance(each, Tensor)
    ]
    assert_same(*([each for each in made if isinstance(each, Tensor)] for made in (expected, actual)))


def test_what_folds_and_what_stays_for_which_reason(case: Fused) -> None:
    found = [each for each in case.outcomes if isinstance(each, Fold | Refusal)]
    assert found
    kept = tuple(each.reason for each in found if isinstance(each, Refusal) and each.is_batchnorm)
    assert kept == CASES[case.name].stays, found


def test_the_result_computes_the_same_and_so_does_its_copy(case: Fused) -> None:
    assert_equal(case.expected, run(case.result, case.name))
    if case.name != "marks: copies in training mode":
        assert_equal(case.expected, run(case.copied, case.name))


def test_the_original_is_as_it_was(case: Fused) -> None:
    assert case.before == case.after


def test_the_result_is_of_the_same_class_and_has_tensors_of_its_own(case: Fused) -> None:
    mine, its = type(case.model), type(case.result)
    assert issubclass(its, fx.GraphModule if isinstance(case.model, fx.GraphModule) else mine)
    assert its.__name__ == mine.__name__ or isinstance(case.model, fx.GraphModule)
    flags = {path: each.training for path, each in case.model.named_modules()}
    assert all(each.training == flags.get(path, False) for path, each in case.result.named_modules())
    own = {each.data_ptr() for each in (*case.result.parameters(), *case.result.buffers()) if each.numel()}
    assert own.isdisjoint(each.data_ptr() for each in (*case.model.parameters(), *case.model.buffers()))


def test_the_result_can_be_pickled_where_the_original_can(case: Fused) -> None:
    if case.pickled is not None:
        assert_equal(case.expected, run(case.pickled, case.name))


def test_the_result_can_be_exported_where_the_original_can(case: Fused) -> None:
    assert _can_be_exported(case.copied, case.name) or not _can_be_exported(case.model, case.name)


def _can_be_exported(model: nn.Module, name: str) -> bool:
    args, kwargs = called(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.export.export(model, args, kwargs, strict=False)
        except Exception:  # it runs the model's code
            return False
    return True
