"""Integer inputs: the whole of a small type where they are numbers, rows of tables where they are indices."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

import bnfold
from tests.toys.onnx_graphs import model, node, random

FLOAT = np.float32


def image(*between: onnx.NodeProto, kind: int = TensorProto.UINT8) -> onnx.ModelProto:
    """A convolution of an image of bytes, with something done to them first; reads `f` from `x`."""
    nodes = [*(between or [node("Cast", "x", "f", to=TensorProto.FLOAT)]), node("Conv", "f w", "y")]
    constants = {"w": random(4, 3, 3, 3, dtype=FLOAT), "low": np.array(0, FLOAT), "one": np.array(1, FLOAT)}
    made = model(nodes, constants, (2, 3, 8, 8), dtype=FLOAT)
    made.graph.input[0].type.tensor_type.elem_type = kind
    return made


FAULTS = {
    "wraps": [node("Cast", "x", "i", to=TensorProto.INT8), node("Cast", "i", "f", to=TensorProto.FLOAT)],
    "clips": [node("Cast", "x", "g", to=TensorProto.FLOAT), node("Clip", "g low one", "f")],
    "is true": [node("Cast", "x", "b", to=TensorProto.BOOL), node("Cast", "b", "f", to=TensorProto.FLOAT)],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_candidate_that_loses_bytes_is_found(fault: str) -> None:
    assert bnfold.verify(image(), image()).is_equivalent
    assert not bnfold.verify(image(), image(*FAULTS[fault])).is_equivalent


@pytest.mark.parametrize(("kind", "low", "high"), [(TensorProto.UINT8, 0, 255), (TensorProto.INT8, -128, 127)])
def test_an_image_has_all_bytes(kind: int, low: int, high: int) -> None:
    x = bnfold.verify(image(kind=kind), image(kind=kind)).samples[0].feeds["x"]
    assert low <= x.min() < low + 10
    assert high - 10 < x.max() <= high


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT64])
def test_an_index_stays_below_its_table_through_a_cast(kind: int) -> None:
    nodes = [node("Cast", "x", "i", to=TensorProto.INT64), node("Gather", "table i", "g"), node("MatMul", "g w", "y")]
    made = model(nodes, {"table": random(50, 8, dtype=FLOAT), "w": random(8, 8, dtype=FLOAT)}, (4, 16), dtype=FLOAT)
    made.graph.input[0].type.tensor_type.elem_type = kind
    x = bnfold.verify(made, made).samples[0].feeds["x"]
    assert 2 < x.max() < 50


class Bytes(nn.Module):
    """An image of bytes, as a program takes it."""

    def __init__(self, *, clips: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.clips = nn.Conv2d(3, 4, 3), clips

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        return self.conv(y.clamp(0, 1) if self.clips else y)


def test_a_program_has_all_bytes() -> None:
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    first, second = (torch.export.export(Bytes(clips=clips).eval(), (x,)) for clips in (False, True))
    assert bnfold.verify(first, first).samples[0].feeds["x"].max() > 245
    assert not bnfold.verify(first, second).is_equivalent
