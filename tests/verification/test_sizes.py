"""Candidates that are right at some sizes of dynamic dimensions, and wrong at others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

import bnfold
from bnfold.runtimes.inputs import Declared, InputOptions, Sample
from bnfold.verification.onnx_sizes import find_hints
from bnfold.verification.sizes import SizeHints, find_further
from tests.toys.onnx_graphs import model, node, random

FLOAT = np.float32
KERNEL = random(4, 3, 3, 3, dtype=FLOAT)


def strided(stride: int, **padding: object) -> onnx.ModelProto:
    attributes = {"strides": [stride, stride], **padding}
    return model([node("Conv", "x w", "y", **attributes)], {"w": KERNEL}, ("N", 3, "H", "W"), dtype=FLOAT)


@pytest.mark.parametrize(
    ("stride", "pads"), [(2, [0, 0, 1, 1]), (2, [1, 1, 1, 1]), (3, [0, 0, 1, 1]), (3, [1, 1, 1, 1])]
)
def test_fixed_pads_are_not_those_of_every_length(stride: int, pads: list[int]) -> None:
    right = strided(stride, auto_pad="SAME_UPPER")
    assert bnfold.verify(right, right).is_equivalent
    verdict = bnfold.verify(right, strided(stride, pads=pads))
    assert not verdict.is_equivalent


def beyond(batch: int) -> onnx.ModelProto:
    """Wrong for batches above a number: it adds one to what is beyond."""
    nodes = [
        node("Slice", "x zero many axis", "first"),
        node("Slice", "x many last axis", "rest"),
        node("Add", "rest one", "wrong"),
        node("Concat", "first wrong", "z", axis=0),
        node("Conv", "z w", "y"),
    ]
    numbers = {"zero": 0, "many": batch, "last": 1 << 40, "axis": 0}
    constants = {name: np.array([number]) for name, number in numbers.items()}
    return model(nodes, {**constants, "one": np.array([1], FLOAT), "w": KERNEL}, ("N", 3, 8, 8), dtype=FLOAT)


@pytest.mark.parametrize("batch", [2, 4, 6])
def test_a_candidate_that_is_wrong_beyond_a_batch_is_found(batch: int) -> None:
    right = model([node("Conv", "x w", "y")], {"w": KERNEL}, ("N", 3, 8, 8), dtype=FLOAT)
    verdict = bnfold.verify(right, beyond(batch))
    assert not verdict.is_equivalent
    assert all("N=" in output.sample for output in verdict.outputs if output.reason)
    assert bnfold.verify(right, beyond(batch), effort="fast").is_equivalent
    assert bnfold.verify(right, beyond(batch), dims={"N": 2}).is_equivalent


def test_a_size_that_the_candidate_does_not_take_is_a_difference() -> None:
    right = model([node("Relu", "x", "y")], {}, ("N", 3), dtype=FLOAT)
    made = model(
        [node("Reshape", "x shape", "z"), node("Reshape", "z back", "r"), node("Relu", "r", "y")],
        {"shape": np.array([-1, 6]), "back": np.array([-1, 3])},
        ("N", 3),
        dtype=FLOAT,
    )
    verdict = bnfold.verify(right, made, samples=1)
    assert not verdict.is_equivalent
    assert verdict.interface[0].startswith("not on the input 'ones' (x [1, 3]): ")
    assert bnfold.verify(right, made, samples=1, allow_interface=True).is_equivalent


def test_height_and_width_are_not_one() -> None:
    def shaped(first: int, second: int) -> onnx.ModelProto:
        """Divides by the height, say, that it reads off the input."""
        nodes = [
            node("Shape", "x", "all"),
            node("Gather", "all which", "size", axis=0),
            node("Cast", "size", "number", to=TensorProto.FLOAT),
            node("ReduceSum", "x axes", "sum"),
            node("Div", "sum number", "y"),
        ]
        return model(nodes, {"which": np.array([first]), "axes": np.array([second])}, ("N", 3, "H", "W"), dtype=FLOAT)

    assert bnfold.verify(shaped(2, 2), shaped(2, 2)).is_equivalent
    assert not bnfold.verify(shaped(2, 2), shaped(3, 2)).is_equivalent


def test_hints_are_strides_and_numbers() -> None:
    nodes = [
        node("Conv", "x w", "a", strides=[2, 2]),
        node("MaxPool", "a", "b", kernel_shape=[3, 3], strides=[3, 3]),
        node("Shape", "x", "s"),
        node("Less", "s nine", "l"),
        node("Slice", "b zero seven", "y"),
    ]
    constants = {"w": KERNEL, "nine": np.array([9]), "zero": np.array([0]), "seven": np.array([7])}
    made = model(nodes, constants, ("N", 3, "H", "W"), dtype=FLOAT)
    assert find_hints(made) == SizeHints(((1, 2), (2, 3)), (9, 7))


def test_remainders_take_few_lengths() -> None:
    declared = [Declared("x", np.dtype(FLOAT), ("N", 3, "H", "W"))]
    samples = [Sample("normal", {"x": np.zeros((batch, 3, size, size))}) for batch, size in ((2, 32), (1, 33))]
    halves = SizeHints(tuple((2**power, 2) for power in range(5)))
    found = find_further(declared, InputOptions(), samples, (halves, halves), lambda feeds: None)
    assert [sample.shapes["x"] for sample in found] == [[3, 3, 32, 32]]
    thirds = SizeHints(((1, 3),))
    found = find_further(declared, InputOptions(), samples, (thirds, thirds), lambda feeds: None)
    assert [sample.shapes["x"] for sample in found] == [[3, 3, 34, 35]]
    assert not any(sample.is_inside for sample in found)


class Thirds(nn.Module):
    """Adds the number of whole threes in a batch, or nothing."""

    def __init__(self, *, is_wrong: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.is_wrong = nn.Conv1d(3, 4, 3, stride=3), is_wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + (x.shape[0] // 3 if self.is_wrong else 0)


def test_a_program_has_further_sizes_too() -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    first, second = (
        torch.export.export(Thirds(is_wrong=wrong).eval(), (torch.randn(2, 3, 32),), dynamic_shapes=dynamic)
        for wrong in (False, True)
    )
    verdict = bnfold.verify(first, first)
    assert verdict.is_equivalent
    assert [sample.shapes["x"] for sample in verdict.samples if sample.label.startswith("normal, ")] == [[3, 3, 34]]
    assert not bnfold.verify(first, second).is_equivalent


def image(side: int, *nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """Nodes from an image of a fixed size to its channels' means."""
    ends = [node("Relu", "c", "r"), node("GlobalAveragePool", "r", "y")]
    return model([*nodes, *ends], {"w": KERNEL, **constants}, (1, 3, side, side), dtype=FLOAT)


def padded(side: int, **padding: object) -> onnx.ModelProto:
    return image(side, node("Conv", "x w", "c", strides=[3, 3], **padding))


def sides(verdict: bnfold.Verdict) -> set[int]:
    return {shape[-1] for sample in verdict.samples for shape in sample.shapes.values()}


def test_extremes_of_fixed_images_are_smaller() -> None:
    original = padded(128, pads=[1] * 4)
    moved = image(128, node("Conv", "x v", "c", strides=[3, 3], pads=[1] * 4), v=KERNEL * FLOAT(1.001))
    reordered = image(
        128, node("Mul", "w one", "v"), node("Conv", "x v", "c", strides=[3, 3], pads=[1] * 4), one=FLOAT(1)
    )
    verdict = bnfold.verify(original, reordered)
    assert verdict.is_equivalent
    assert sides(verdict) == {64, 128}
    assert sides(bnfold.verify(padded(96, pads=[1] * 4), padded(96, pads=[1] * 4, dilations=[1, 1]))) == {96}
    assert not bnfold.verify(original, moved).is_equivalent


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_last_normal_input_of_several_is_the_smaller_one(count: int) -> None:
    verdict = bnfold.verify(padded(128, pads=[1] * 4), padded(128, pads=[1] * 4, dilations=[1, 1]), samples=count)
    normal = [each for each in verdict.samples if each.label.startswith("normal")]
    assert [shape[-1] for each in normal for shape in each.shapes.values()] == [*[128] * max(1, count - 1), 64]


def test_a_size_that_nobody_declared_decides_nothing() -> None:
    """With 128 pixels, SAME_UPPER pads by nothing before and one behind; with 64 by one on each side."""
    verdict = bnfold.verify(padded(128, auto_pad="SAME_UPPER"), padded(128, pads=[0, 0, 1, 1]))
    assert verdict.is_equivalent
    assert sides(verdict) == {128}


def test_a_model_for_one_size_alone_is_compared_at_it() -> None:
    flat = [
        node("Conv", "x w", "c", strides=[3, 3]),
        node("Relu", "c", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f m", "y"),
    ]
    weights = {"w": KERNEL, "m": random(4 * 42 * 42, 5, dtype=FLOAT)}
    original = model(flat, weights, (1, 3, 128, 128), dtype=FLOAT)
    other = model(
        [node("Identity", "x", "i"), node("Conv", "i w", "c", strides=[3, 3]), *flat[1:]],
        weights,
        (1, 3, 128, 128),
        dtype=FLOAT,
    )
    verdict = bnfold.verify(original, other)
    assert verdict.is_equivalent
    assert sides(verdict) == {128}
