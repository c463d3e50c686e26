"""Reshapes whose targets are computed from sizes, some of which are open, as exporters write them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from bnfold import Fold, Refusal
from tests.toys.onnx_graphs import fuse, model, node, norm, operators, random, statistics

NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
CONSTANTS = {name: np.asarray(number, np.int64) for name, number in NUMBERS.items()}
CONSTANTS |= {"axes": np.array([0]), "twos": np.array([2, 2])}


def sizes(of: str) -> list[onnx.NodeProto]:
    """``n, c, h, w`` of a value, each as a number of its own."""
    axes = zip("nchw", ("zero", "one", "two", "three"), strict=True)
    return [node("Shape", of, "size"), *(node("Gather", f"size {place}", name, axis=0) for name, place in axes)]


def vector(name: str, *parts: str) -> list[onnx.NodeProto]:
    """The numbers as one vector."""
    alone = [node("Unsqueeze", f"{part} axes", f"{name}{index}") for index, part in enumerate(parts)]
    return [*alone, node("Concat", " ".join(f"{name}{index}" for index in range(len(parts))), name, axis=0)]


SHUFFLE = [
    node("Conv", "x k", "v", pads=[1, 1, 1, 1]),
    *sizes("v"),
    node("Div", "c four", "d"),
    node("Mul", "h two", "height"),
    node("Mul", "w two", "width"),
    *vector("six", "n", "d", "two", "two", "h", "w"),
    *vector("last", "n", "d", "height", "width"),
    node("Reshape", "v six", "r"),
    node("Transpose", "r", "t", perm=[0, 1, 4, 2, 5, 3]),
    node("Reshape", "t last", "s"),
]
"""Pixel shuffle in plain operators: the channels stay where they are, and space takes two axes of each."""


def shuffled(nodes: list[onnx.NodeProto], channels: int = 3) -> onnx.ModelProto:
    constants = {**CONSTANTS, "k": random(12, 2, 3, 3), **statistics(channels)}
    read = {name for each in nodes for name in each.input}
    kept = {name: array for name, array in constants.items() if name in read}
    proto = model([*nodes, norm("s", "y")], {**kept, **statistics(channels)}, ("N", 2, "H", "W"), opset=17)
    return proto


def test_pixel_shuffle_of_open_height_and_width() -> None:
    fused, outcomes = fuse(shuffled(SHUFFLE))
    assert [isinstance(each, Fold) for each in outcomes] == [True]
    assert operators(fused).count("BatchNormalization") == 0


def test_a_size_that_is_copied_and_one_that_is_left() -> None:
    """Zero stands for the size of the input, and -1 for the rest."""
    constants = {"k": random(12, 2, 3, 3), "minus": np.asarray(-1), **CONSTANTS, **statistics(3)}
    nodes = [each for each in SHUFFLE if not (each.op_type == "Concat" and each.output[0] == "last")]
    nodes = [each for each in nodes if not (each.op_type == "Unsqueeze" and each.output[0].startswith("last"))]
    nodes[-1:-1] = vector("last", "zero", "d", "height", "minus")
    read = {name for each in nodes for name in each.input}
    kept = {name: array for name, array in constants.items() if name in {*read, *statistics(3)}}
    fused, outcomes = fuse(model([*nodes, norm("s", "y")], kept, ("N", 2, "H", "W")))
    assert [isinstance(each, Fold) for each in outcomes] == [True]
    assert operators(fused).count("BatchNormalization") == 0


@pytest.mark.parametrize("order", [[0, 2, 4, 1, 5, 3], [0, 1, 2, 4, 3, 5]], ids=str)
def test_channels_that_are_mixed_stay(order: list[int]) -> None:
    """The target is the same, but other axes take part in the channels; or the same ones, and then it is right."""
    nodes = [*SHUFFLE[:-2], node("Transpose", "r", "t", perm=order), SHUFFLE[-1]]
    _, outcomes = fuse(shuffled(nodes))
    assert isinstance(outcomes[0], Fold if order[1] == 1 else Refusal)


def test_channels_by_the_batch_stay() -> None:
    """The second size of the target is that of the batch, which nothing tells."""
    nodes = [*SHUFFLE[:-1]]
    nodes = [*nodes, *vector("other", "d", "n", "height", "width"), node("Reshape", "t other", "s")]
    proto = shuffled([each for each in nodes if each.output[0] not in ("last", *(f"last{i}" for i in range(4)))])
    assert isinstance(bnfold.plan(proto)[0], Refusal)
