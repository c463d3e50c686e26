"""A fold keeps the digits of the original: what floating point makes of a right equation, and what it forbids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import bnfold
from bnfold import Fold, Outcome, Reason, Refusal
from tests.toys.onnx_graphs import BatchNormalization, model, node, norm, random

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)

IMAGE_MEAN, IMAGE_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The output of onnxruntime, as nodes stand in the file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], np.float64)


def exactly(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The output in float64, from the constants as they are stored."""
    wide = {name: each.astype(np.float64) if each.dtype.kind == "f" else each for name, each in constants.items()}
    return np.asarray(
        ReferenceEvaluator(model(nodes, wide, x.shape), new_ops=[BatchNormalization]).run(None, {"x": x.astype(float)})[
            0
        ]
    )


def folded(outcomes: tuple[Outcome, ...]) -> list[str]:
    """Direction or reason of each outcome, in the order of the graph."""
    return [
        each.direction if isinstance(each, Fold) else str(each.reason) if isinstance(each, Refusal) else "merged"
        for each in outcomes
    ]


@dataclass(frozen=True)
class Case:
    """A model and data for it.

    Attributes:
        nodes: from `x` to `y`.
        constants: in float64; they are stored in `dtype`.
        x: the data.
        outcomes: what is expected.
        dtype: of the model.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, Any]
    x: np.ndarray
    outcomes: list[str]
    dtype: np.dtype[Any] = FLOAT32

    def arrays(self) -> dict[str, np.ndarray]:
        stored = {name: np.asarray(array) for name, array in self.constants.items()}
        return {name: each.astype(self.dtype) if each.dtype.kind == "f" else each for name, each in stored.items()}


def image(scale: float, mean: np.ndarray, deviation: np.ndarray) -> Case:
    """Scaled pixels, a BatchNorm that cannot pass the zeros of the padding, a convolution."""
    drawn = np.random.default_rng(1).normal(size=(2, 3, 12, 12))
    x = (mean[:, None, None] + deviation[:, None, None] * drawn) / scale
    parameters = {"gamma": np.ones(3), "beta": np.zeros(3), "mean": mean, "var": deviation**2}
    nodes = [node("Mul", "x k", "a"), norm("a", "n"), node("Conv", "n w", "y", pads=[1, 1, 1, 1])]
    return Case(nodes, {"k": scale, "w": random(4, 3, 3, 3), **parameters}, x, ["downstream", "graph-input"])


def features(mean: float, deviation: float, outcomes: list[str], *, dtype: np.dtype[Any] = FLOAT32) -> Case:
    """Normalised by constants in front of a matrix product, which takes a bias."""
    x = mean + deviation * np.random.default_rng(2).normal(size=(64, 6))
    nodes = [node("Sub", "x m", "a"), node("Div", "a s", "b"), node("Gemm", "b w", "y")]
    constants = {"m": np.full(6, mean), "s": np.full(6, deviation), "w": random(6, 8)}
    return Case(nodes, constants, x, outcomes, dtype)


def normed(mean: float, deviation: float, outcomes: list[str], front: list[onnx.NodeProto], x: np.ndarray) -> Case:
    """Normalised by a BatchNorm in front of a convolution without padding; `front` makes `a`, of 4 channels."""
    parameters = {"gamma": np.ones(4), "beta": np.zeros(4), "mean": np.full(4, mean), "var": np.full(4, deviation**2)}
    nodes = [*front, norm("a", "n"), node("Conv", "n w", "y")]
    return Case(
        nodes, {"w": random(5, 4, 1, 1), "v": random(4, 4, 1, 1, seed=3), "two": 2.0, **parameters}, x, outcomes
    )


FAR = 1000.0 + np.random.default_rng(3).normal(size=(2, 4, 6, 6))

COLUMN = np.array([1.0, 1.0, 5e-6, 1.0])

CASES = {
    "8 bits into a BatchNorm that stays": image(255.0, IMAGE_MEAN * 255, IMAGE_STD * 255),
    "16 bits into a BatchNorm that stays": image(65535.0, IMAGE_MEAN * 65535, IMAGE_STD * 65535),
    "a mean of 1e4 deviations into a BatchNorm that stays": image(255.0, np.array([1e4, -2e4, 3e4]), np.ones(3)),
    "Unix time": features(1.7e9, 1e4, ["downstream"]),  # the division folds, the subtraction stays
    "years": features(2015.0, 6.0, ["downstream"]),
    "air pressure": features(101325.0, 800.0, ["downstream"]),
    "temperature in float16": features(293.0, 5.0, ["downstream"], dtype=FLOAT16),
    "pixels between -1 and 1": features(0.5, 0.5, ["downstream", "downstream"]),
    "pixels of photographs": features(0.485, 0.229, ["downstream", "downstream"]),
    "centred for a division and a matrix product": Case(
        [node("Sub", "x m", "a"), node("Gemm", "a w", "b"), node("Div", "a s", "c"), node("Gemm", "c v", "d"),
         node("Add", "b d", "y")],
        {"m": np.full(6, 0.55), "s": np.full(6, 0.01), "w": random(6, 8), "v": random(6, 8, seed=3) * 1e-3},
        0.55 + 0.01 * np.random.default_rng(2).normal(size=(64, 6)),
        ["downstream"],  # the division tells both how large the data is
    ),
    "centred for a BatchNorm and a matrix product": Case(
        [node("Sub", "x m", "a"), node("Gemm", "a w", "b"), norm("a", "c"), node("Gemm", "c v", "d"),
         node("Add", "b d", "y")],
        {"m": np.full(6, 0.55), "w": random(6, 8), "v": random(6, 8, seed=3) * 1e-3,
         "gamma": np.ones(6), "beta": np.zeros(6), "mean": np.zeros(6), "var": np.full(6, 1e-6)},
        0.55 + 1e-3 * np.random.default_rng(2).normal(size=(64, 6)),
        ["downstream"],
    ),
    "a BatchNorm of data far from zero": normed(1000.0, 1.0, ["cancellation"], [node("Identity", "x", "a")], FAR),
    "behind what moves elements": normed(
        1000.0, 1.0, ["cancellation"], [node("Transpose", "x", "b", perm=[0, 1, 3, 2]), node("Relu", "b", "a")], FAR
    ),
    "behind a power of two": normed(
        2000.0, 2.0, ["downstream", "cancellation"], [node("Mul", "x two", "a")], FAR
    ),
    "a mean of data far from zero": Case(
        [node("Sub", "x m", "a"), node("Div", "a s", "b"), node("GlobalAveragePool", "b", "c"),
         node("Conv", "c w", "y")],
        {"m": 1000.0, "s": 5.0, "w": random(3, 4, 1, 1)},
        5.0 * FAR - 4000.0,
        ["downstream"],  # the division: the mean of what is centred has its digits
    ),
    "a sum of data far from zero": Case(
        [norm("x", "a"), node("Add", "a a", "b"), node("Conv", "b w", "y")],
        {"gamma": np.ones(4), "beta": np.zeros(4), "mean": np.full(4, 1000.0), "var": np.ones(4),
         "w": random(3, 4, 1, 1)},
        FAR,
        ["graph-input"],  # and downstream the sum, which would round more
    ),
    "columns that become subnormal": Case(
        [node("Mul", "x k", "a"), node("MatMul", "a w", "y")],
        {"k": COLUMN, "w": random(4, 8)},
        random(64, 4) / COLUMN * np.array([1, 1, 0.05, 1]),
        [],
        FLOAT16,
    ),
    "a subnormal gamma": Case(
        [norm("x", "a"), norm("a", "y", "other_")],
        {
            "gamma": np.full(4, 3e-3), "beta": np.zeros(4), "mean": np.zeros(4), "var": np.ones(4),
            "other_gamma": np.full(4, 1.3e-3), "other_beta": np.zeros(4),
            "other_mean": np.zeros(4), "other_var": np.ones(4),
        },
        random(2, 4, 6, 6),
        ["precision-loss", "precision-loss"],
        FLOAT16,
    ),
    "a subnormal gamma beside a large beta": Case(
        [norm("x", "a"), node("Mul", "a k", "b"), node("Sub", "b k", "y")],
        {"gamma": np.full(4, 8.7e-5), "beta": np.ones(4), "mean": np.zeros(4), "var": np.ones(4), "k": 1e-3},
        random(2, 4, 6, 6) * 1e3,
        ["graph-input"],
        FLOAT16,
    ),
    "a sum that cancels and is scaled up": Case(
        [node("MatMul", "x w", "a"), node("Sub", "a a", "b"), node("Div", "b s", "y")],
        {"w": random(4, 3) * 100, "s": 1e-3},
        random(8, 4),
        [],
        FLOAT16,
    ),
    "a mean that cancels and is scaled up": Case(
        [node("Conv", "x w", "a"), node("GlobalAveragePool", "a", "b"), node("Div", "b s", "y")],
        {"w": random(3, 4, 1, 1) * 100, "s": 1e-3},
        np.concatenate([FAR, -FAR], axis=2) / 100,
        [],
        FLOAT16,
    ),
    "a row whose large data have subnormal weights": Case(
        [norm("x", "n"), node("MatMul", "n w", "y")],
        {"gamma": np.array([1e-3, 1.0]), "beta": np.zeros(2), "mean": np.zeros(2), "var": np.array([36100.0, 0.25]),
         "w": np.array([[1.0, 1000.0], [1e-3, 1.0]])},
        random(32, 2) * np.array([190.0, 0.5]),
        ["precision-loss"],
        FLOAT16,
    ),
    "padding that its type does not have": Case(
        [norm("x", "n"), node("Conv", "n w", "y", pads=[1, 1, 1, 1])],
        {"gamma": np.full(2, 1e-5), "beta": np.ones(2), "mean": np.zeros(2), "var": np.ones(2),
         "w": random(3, 2, 3, 3)},
        random(1, 2, 6, 6),
        ["overflow"],
        FLOAT16,
    ),
    "padding that even float32 does not have": Case(
        [norm("x", "n"), node("Conv", "n w", "y", pads=[1, 1, 1, 1])],
        {"gamma": np.full(2, 1e-20), "beta": np.full(2, 1e20), "mean": np.zeros(2), "var": np.ones(2),
         "w": random(3, 2, 3, 3)},
        random(1, 2, 6, 6),
        ["overflow"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_fold_keeps_the_digits(case: Case) -> None:
    """At most twice the error of the original, and one rounding of the output, or the fold is refused."""
    x, constants = case.x.astype(case.dtype), case.arrays()
    proto = model(case.nodes, constants, x.shape, dtype=case.dtype)
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    expected = exactly(case.nodes, constants, x)
    before, after = (float(np.abs(run(each, x) - expected).max()) for each in (proto, fused))
    rounding = float(np.finfo(case.dtype).eps) * float(np.abs(expected).max())
    assert folded(outcomes) == case.outcomes
    assert after <= 2 * before + rounding


def test_the_refusal_says_how_much_would_be_lost() -> None:
    case = CASES["a BatchNorm of data far from zero"]
    proto = model(case.nodes, case.arrays(), case.x.shape, dtype=case.dtype)
    (refusal,) = bnfold.plan(proto)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.CANCELLATION
    assert "times the rounding error" in refusal.detail
    assert refusal.advice is not None


def test_an_identity_branch_of_data_far_from_zero_stays() -> None:
    """A merge would add the BatchNorm's scale to the kernel: the same sum of large numbers."""
    parameters = {"gamma": np.ones(4), "beta": np.zeros(4), "mean": np.full(4, 1000.0), "var": np.ones(4)}
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), norm("x", "n"), node("Add", "c n", "y")]
    for mean, merges in ((1000.0, False), (1.0, True)):
        constants = {"w": random(4, 4, 3, 3) * 1e-3, **parameters, "mean": np.full(4, mean)}
        proto = model(nodes, {k: np.asarray(v, np.float32) for k, v in constants.items()}, (2, 4, 6, 6), dtype=FLOAT32)
        assert ("merged" in folded(bnfold.plan(proto))) is merges


def test_a_fold_that_cancels_is_found_behind_a_merge() -> None:
    """The operator that absorbed it became a part of another meanwhile."""
    parameters = {"gamma": np.ones(4), "beta": np.zeros(4), "mean": np.full(4, 1000.0), "var": np.ones(4)}
    nodes = [norm("x", "n"), node("Conv", "n v", "c"), node("Conv", "c w", "y")]
    constants = {"v": random(2, 4, 1, 1), "w": random(4, 2, 1, 1), **parameters}
    proto = model(nodes, {k: np.asarray(v, np.float32) for k, v in constants.items()}, (2, 4, 6, 6), dtype=FLOAT32)
    assert folded(bnfold.plan(proto))[0] == "cancellation"


class Scaled(nn.Module):
    """Scaled pixels, a BatchNorm that cannot pass the zeros of the padding, a convolution."""

    def __init__(self, scale: float, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.scale = scale
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(deviation**2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.norm(x * self.scale))
        return y


class Features(nn.Module):
    """Normalised by constants in front of a linear layer."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((6,), mean))
        self.register_buffer("deviation", torch.full((6,), deviation))
        self.linear = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear((x - self.mean) / self.deviation)
        return y


def far(mean: float, deviation: float) -> nn.Module:
    """A BatchNorm of data far from zero in front of a convolution without padding."""
    norm = nn.BatchNorm2d(3)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(mean)
    norm.running_var.fill_(deviation**2)
    return nn.Sequential(norm, nn.Conv2d(3, 4, 1))


class Columns(nn.Module):
    """A factor for each feature in front of a linear layer, in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(COLUMN, dtype=torch.float16))
        self.linear = nn.Linear(4, 8).half()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x * self.factor)
        return y


def twice() -> nn.Module:
    """Two BatchNorms of float16 in a row, whose gammas have a subnormal product."""
    layers = [nn.BatchNorm2d(3).half() for _ in range(2)]
    for layer, gamma in zip(layers, (3e-3, 1.3e-3), strict=True):
        nn.init.constant_(layer.weight, gamma)
    return nn.Sequential(*layers)


def drawn_about(mean: Any, deviation: Any, *shape: int) -> Tensor:
    return torch.as_tensor(mean) + torch.as_tensor(deviation) * torch.randn(
        shape, generator=torch.Generator().manual_seed(0)
    )


PIXELS = torch.tensor(IMAGE_MEAN, dtype=torch.float32), torch.tensor(IMAGE_STD, dtype=torch.float32)
PLANES = tuple(each.view(3, 1, 1) for each in PIXELS)

MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str]]] = {
    "8 bits into a BatchNorm that stays": (
        lambda: Scaled(255.0, PIXELS[0] * 255, PIXELS[1] * 255), drawn_about(*PLANES, 2, 3, 12, 12),
        ["downstream", "graph-input"],
    ),
    "16 bits into a BatchNorm that stays": (
        lambda: Scaled(65535.0, PIXELS[0] * 65535, PIXELS[1] * 65535), drawn_about(*PLANES, 2, 3, 12, 12),
        ["downstream", "graph-input"],
    ),
    "Unix time": (lambda: Features(1.7e9, 1e4), drawn_about(1.7e9, 1e4, 64, 6), ["downstream"]),
    "pixels of photographs": (
        lambda: Features(0.485, 0.229), drawn_about(0.485, 0.229, 64, 6), ["downstream", "downstream"]
    ),
    "a BatchNorm of data far from zero": (
        lambda: far(1000.0, 1.0), drawn_about(1000.0, 1.0, 2, 3, 6, 6), ["cancellation"]
    ),
    "columns that become subnormal": (Columns, drawn_about(0.0, 0.05 / COLUMN, 64, 4).half(), []),
    "a subnormal gamma": (twice, drawn_about(0.0, 1.0, 2, 3, 6, 6).half(), ["precision-loss", "precision-loss"]),
    "a BatchNorm of data near zero": (lambda: far(1.0, 1.0), drawn_about(1.0, 1.0, 2, 3, 6, 6), ["downstream"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "x", "expected"), MODULES.values(), ids=MODULES.keys())
def test_a_fold_of_a_program_keeps_the_digits(make: Callable[[], nn.Module], x: Tensor, expected: list[str]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    program = torch.export.export(module, (x,))
    exact = make().double().eval()
    exact.load_state_dict(module.state_dict())
    with torch.no_grad():
        reference = exact(x.double())
        fused, outcomes = bnfold.fuse(program, return_outcomes=True)
        before, after = (float((each.module()(x).double() - reference).abs().max()) for each in (program, fused))
    assert folded(outcomes) == expected
    assert after <= 2 * before + float(torch.finfo(x.dtype).eps) * float(reference.abs().max())


def test_a_module_that_keeps_its_batchnorm_gets_its_statistics_moved() -> None:
    make, x, _ = MODULES["16 bits into a BatchNorm that stays"]
    module = make().eval()
    with torch.no_grad():
        fused = bnfold.fuse(torch.fx.symbolic_trace(module), example_inputs=(x,))
        assert torch.allclose(fused(x), module(x), atol=1e-5)
        assert torch.allclose(fused.norm.running_mean, PIXELS[0], rtol=1e-6)
        assert float(module.norm.running_mean[0]) > 1000
