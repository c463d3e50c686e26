"""Both front ends say the same, in the same words, of an operator that cannot be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from bnfold.frontends import reading
from bnfold.frontends.door import open_model
from bnfold.frontends.protocol import OpenOptions
from bnfold.graph.ops import Opaque
from bnfold.graph.outcome import Stop
from tests.toys.onnx_graphs import model, node, statistics
from tests.toys.torch_models import drawn, exported

SHAPE = (4, 4, 4, 4)


def stops(opened: Any) -> set[Stop]:
    """Why the operators of a model stop every affine."""
    graph = open_model(opened, OpenOptions()).graph
    return {op.stop for each in graph.nodes() if isinstance(op := graph.op(each), Opaque)}


def negative(channels: int) -> nn.Module:
    """A BatchNorm whose variance is negative in one channel."""
    module = nn.BatchNorm2d(channels)
    assert module.running_var is not None
    module.running_var[1] = -1.0
    return module


class Pick(nn.Module):
    """Takes positions that are no vector."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([[0, 1], [1, 2]]))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.index]


class Function(nn.Module):
    """A function of the input alone."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[no-any-return]


def negative_statistics() -> dict[str, np.ndarray]:
    found = statistics(4)
    found["var"][1] = -1.0
    return found


REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], nn.Module, tuple[int, ...]]] = {
    "a cast to a narrower type": (
        [node("Cast", "x", "y", to=onnx.TensorProto.FLOAT16)],
        {},
        Function(lambda x: x.half()),
        SHAPE,
    ),
    "dropout in training mode": (
        [node("Dropout", "x ratio training", "y")],
        {"ratio": np.asarray(0.5, np.float32), "training": np.asarray(True)},
        Function(lambda x: F.dropout(x, training=True)),
        SHAPE,
    ),
    "a negative variance": (
        [node("BatchNormalization", "x gamma beta mean var", "y")],
        negative_statistics(),
        negative(4).double().eval(),
        SHAPE,
    ),
    "indices that are no vector": (
        [node("Gather", "x index", "y", axis=1)],
        {"index": np.asarray([[0, 1], [1, 2]])},
        Pick(),
        SHAPE,
    ),
    "a sum of values that are no floats": (
        [node("Cast", "x", "a", to=onnx.TensorProto.INT64), node("Add", "a a", "y")],
        {},
        Function(lambda x: x.to(torch.int64) + x.to(torch.int64)),
        SHAPE,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_both_front_ends_refuse_in_the_same_words(case: str) -> None:
    nodes, constants, module, shape = REFUSED[case]
    said = stops(model(nodes, constants, shape))
    assert said
    assert said == stops(exported(module.eval(), drawn(*shape)))


@pytest.mark.parametrize("size", [0, 1, 4])
@pytest.mark.parametrize("step", [-3, -1, 1, 2])
def test_a_slice_keeps_what_the_standard_says(size: int, step: int) -> None:
    """Start and end are clamped to the data: for a negative step to ``[0, size - 1]`` and ``[-1, size - 1]``."""
    for start in range(-6, 7):
        for end in range(-6, 7):
            first, last = (at + size if at < 0 else at for at in (start, end))
            first = min(max(first, 0), size if step > 0 else size - 1)
            last = min(max(last, 0 if step > 0 else -1), size if step > 0 else size - 1)
            op = reading.take((2, size), {1: slice(start, end, step)})
            assert (op.axis, op.size, op.index.tolist()) == (1, size, list(range(first, last, step)))
