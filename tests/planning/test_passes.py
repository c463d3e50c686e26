"""Passes: each says whether it added steps, and the driver stops when none does."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from bnfold.frontends.onnx.view import OnnxGraph
from bnfold.planning.biases import find_replaced
from bnfold.planning.draft import Draft
from bnfold.planning.passes import FOLDS, FOLDS_AND_MERGES
from bnfold.planning.planner import make_plan
from tests.frontends.onnx.test_random_branches import build

SEEDS = range(0, 40, 4)


def graph(seed: int) -> Any:
    return OnnxGraph(ir.from_proto(build(seed)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pass_says_whether_it_added_steps(seed: int) -> None:
    draft = Draft(graph(seed))
    for each in FOLDS_AND_MERGES * 3:
        before = len(draft.steps)
        assert each.run(draft) == (len(draft.steps) > before)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("merge", [False, True])
def test_no_pass_finds_anything_once_a_plan_is_made(seed: int, merge: bool) -> None:
    branches = graph(seed)
    draft = Draft(branches)
    planned = make_plan(branches, merge=merge).steps
    for step in planned:
        draft.add(step)
    for each in FOLDS_AND_MERGES if merge else FOLDS:
        each.run(draft)
    more = {step.node for step in draft.steps[len(planned) :]}
    assert more <= set(find_replaced(draft)), "what a plan leaves out gains nothing"
