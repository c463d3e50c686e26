"""Models that draw random numbers: both get the same ones, or they cannot be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import bnfold
from bnfold.errors import IncomparableError
from bnfold.verification.draws import fix_draws
from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32

DRAWS: dict[str, Callable[[dict[str, Any]], list[onnx.NodeProto]]] = {
    "RandomNormal": lambda seed: [node("RandomNormal", "", "d", shape=[2, 4, 6, 6], mean=1.0, scale=0.5, **seed)],
    "RandomUniform": lambda seed: [node("RandomUniform", "", "d", shape=[2, 4, 6, 6], low=-1.0, high=3.0, **seed)],
    "RandomNormalLike": lambda seed: [node("RandomNormalLike", "b", "d", **seed)],
    "RandomUniformLike": lambda seed: [node("RandomUniformLike", "b", "d", dtype=TensorProto.FLOAT, **seed)],
    "Bernoulli": lambda seed: [node("Sigmoid", "b", "p"), node("Bernoulli", "p", "d", **seed)],
    "Dropout": lambda seed: [node("Dropout", "b ratio training", "d", **seed)],
}

SEEDS: dict[str, dict[str, Any]] = {"seeded": {"seed": 1.0}, "unseeded": {}}


def drawing(kind: str, seed: str = "unseeded", *, beta: float = 0.0, dropped: float = 0.3) -> onnx.ModelProto:
    """A convolution with a BatchNorm, and what is drawn added to it."""
    given = {"seed": 1} if kind == "Dropout" and seed == "seeded" else SEEDS[seed]
    nodes = [node("Conv", "x w", "c"), norm("c", "b"), *DRAWS[kind](given), node("Add", "b d", "y")]
    held = {"w": random(4, 3, 3, 3, dtype=FLOAT), **statistics(4, dtype=FLOAT)}
    held["beta"] = held["beta"] + FLOAT(beta)
    if kind == "Dropout":
        held |= {"ratio": np.array(dropped, FLOAT), "training": np.array(True)}
    return model(nodes, held, (2, 3, 8, 8), dtype=FLOAT)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", DRAWS)
def test_a_fold_is_right_whatever_is_drawn_and_a_wrong_model_wrong(kind: str, seed: str) -> None:
    original = drawing(kind, seed)
    verdict = bnfold.verify(original, bnfold.fuse(original))
    assert verdict.is_equivalent
    assert any("draws random numbers" in each for each in verdict.findings)
    assert not bnfold.verify(original, drawing(kind, seed, beta=0.3)).is_equivalent


def test_how_much_is_dropped_is_a_difference() -> None:
    assert not bnfold.verify(drawing("Dropout"), drawing("Dropout", dropped=0.4)).is_equivalent


def test_a_draw_that_leads_nowhere_changes_no_other() -> None:
    original = drawing("RandomNormal")
    other = drawing("RandomNormal")
    other.graph.node.insert(0, node("RandomUniform", "", "unused", shape=[2, 2]))
    assert bnfold.verify(original, other).is_equivalent


@pytest.mark.parametrize(
    ("kind", "mean", "deviation"), [("RandomNormal", 1.0, 0.5), ("RandomUniform", 1.0, 4 / 12**0.5)]
)
def test_what_is_drawn_has_the_distribution_that_was_asked_for(kind: str, mean: float, deviation: float) -> None:
    drawn = DRAWS[kind]({})
    drawn[0].attribute.remove(next(each for each in drawn[0].attribute if each.name == "shape"))
    drawn[0].attribute.append(helper.make_attribute("shape", [100, 300]))
    graph = helper.make_graph(drawn, "g", [], [helper.make_tensor_value_info("d", TensorProto.FLOAT, [100, 300])])
    fixed, count = fix_draws(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert count == 1
    (found,) = onnx.reference.ReferenceEvaluator(fixed).run(None, {})
    assert found.shape == (100, 300)
    assert found.mean() == pytest.approx(mean, abs=0.03)
    assert found.std() == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_draws_by_its_own_weights_cannot_be_compared(seed: str) -> None:
    nodes = [node("MatMul", "x w", "p"), node("Multinomial", "p", "y", sample_size=64, **SEEDS[seed])]
    made = model(nodes, {"w": random(3, 5, dtype=FLOAT)}, (8, 3), dtype=FLOAT)
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    with pytest.raises(IncomparableError, match="'y' is another one each time"):
        bnfold.verify(made, made)


class Noisy(nn.Module):
    """Draws in its forward."""

    def __init__(self, beta: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.bias, beta)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return y + torch.randn_like(y)


def test_torch_draws_the_same_for_both_and_leaves_the_callers_numbers_alone() -> None:
    feeds = {"x": np.ones((2, 3, 8, 8), FLOAT)}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    assert bnfold.verify(Noisy().eval(), Noisy().eval(), inputs=feeds).is_equivalent
    torch.manual_seed(5)
    assert not bnfold.verify(Noisy().eval(), Noisy(0.3).eval(), inputs=feeds).is_equivalent
    torch.manual_seed(5)
    model = Noisy().eval()
    torch.manual_seed(5)
    bnfold.verify(model, model, inputs=feeds)
    assert torch.equal(torch.rand(3), wanted)
