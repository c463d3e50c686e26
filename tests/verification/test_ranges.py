"""Inputs that reach far, and inputs as the first normalisation expects them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32
KERNEL = random(4, 3, 3, 3, dtype=FLOAT)


def bounded(bound: float | None, place: str) -> onnx.ModelProto:
    """Two convolutions with a BatchNorm, and a bound on the input, on what is between, or on the output."""
    nodes = [
        node("Conv", "x w", "a"),
        norm("a", "b"),
        node("Relu", "b", "c"),
        node("Conv", "c v", "y"),
    ]
    constants = {"w": KERNEL, "v": random(4, 4, 1, 1, dtype=FLOAT), **statistics(4, dtype=FLOAT)}
    if bound is not None:
        constants |= {"low": np.array(-bound, FLOAT), "high": np.array(bound, FLOAT)}
        for each in nodes:
            each.input[:] = ["clipped" if name == place else name for name in each.input]
            each.output[:] = ["unclipped" if name == place == "y" else name for name in each.output]
        clip = node("Clip", f"{'unclipped' if place == 'y' else place} low high", "y" if place == "y" else "clipped")
        nodes.insert({"x": 0, "b": 2, "y": 4}[place], clip)
    return model(nodes, constants, (2, 3, 8, 8), dtype=FLOAT)


@pytest.mark.parametrize("place", ["x", "b", "y"])
@pytest.mark.parametrize("bound", [100.0, 1e5, 1e9])
def test_a_bound_that_a_candidate_adds_is_found(place: str, bound: float) -> None:
    verdict = bnfold.verify(bounded(None, ""), bounded(bound, place))
    assert not verdict.is_equivalent
    if bound > 1000:
        assert all("far" in output.sample for output in verdict.outputs if output.reason)


@pytest.mark.parametrize("place", ["x", "b", "y"])
def test_a_bound_of_the_reference_is_none_of_the_candidate(place: str) -> None:
    clipped = bounded(3000, place)
    assert bnfold.verify(clipped, bnfold.fuse(clipped)).is_equivalent
    assert not bnfold.verify(clipped, bounded(None, "")).is_equivalent


def test_float16_reaches_far_in_float32() -> None:
    def half(bound: float | None) -> onnx.ModelProto:
        made = bounded(bound, "y")
        for info in (*made.graph.input, *made.graph.output):
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
        for tensor in made.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return made

    assert bnfold.verify(half(None), half(None)).is_equivalent
    assert not bnfold.verify(half(None), half(3000)).is_equivalent


def test_what_overflows_by_itself_is_not_far() -> None:
    nodes = [node("Exp", "x", "e"), node("Exp", "e", "y")]
    made = model(nodes, {}, (2, 8), dtype=FLOAT)
    verdict = bnfold.verify(made, made)
    assert verdict.is_equivalent
    assert not any(sample.label.startswith("far") for sample in verdict.samples)


def normalised(kind: str, factor: float = 1) -> onnx.ModelProto:
    """An image of 0 to 255 that is normalised first, and a Relu behind a convolution."""
    mean, deviation = np.array([124, 116, 104], FLOAT), np.array([58, 57, 55], FLOAT)
    column = (3, 1, 1)
    constants = {"w": KERNEL, "mean": mean.reshape(column), "deviation": deviation.reshape(column)}
    nodes = {
        "Sub Div": [node("Sub", "x mean", "s"), node("Div", "s deviation", "n")],
        "Mul Add": [node("Mul", "x inverse", "s"), node("Add", "s shift", "n")],
        "BatchNormalization": [norm("x", "n")],
    }[kind]
    constants |= {"inverse": 1 / constants["deviation"], "shift": -constants["mean"] / constants["deviation"]}
    constants |= {"scale": np.ones(3, FLOAT), "bias": np.zeros(3, FLOAT), "mean1": mean, "var": deviation**2}
    if kind == "BatchNormalization":
        nodes = [node("BatchNormalization", "x scale bias mean1 var", "n")]
    nodes = [*nodes, node("Conv", "n w", "c"), node("Relu", "c", "y")]
    used = {name for each in nodes for name in each.input}
    constants = {name: np.asarray(array * factor if name == "w" else array, FLOAT) for name, array in constants.items()}
    return model(nodes, {name: array for name, array in constants.items() if name in used}, ("N", 3, 8, 8), dtype=FLOAT)


@pytest.mark.parametrize("kind", ["Sub Div", "Mul Add", "BatchNormalization"])
def test_the_first_normalisation_tells_how_inputs_look(kind: str) -> None:
    verdict = bnfold.verify(normalised(kind), normalised(kind))
    assert verdict.is_equivalent
    (sample,) = [sample for sample in verdict.samples if sample.label == "as normalised"]
    x = sample.feeds["x"]
    assert x.mean(axis=(0, 2, 3)) == pytest.approx([124, 116, 104], abs=25)
    assert x.std(axis=(0, 2, 3)) == pytest.approx([58, 57, 55], rel=0.3)
    assert not bnfold.verify(normalised(kind), normalised(kind, 1.001)).is_equivalent


def test_a_model_that_normalises_nothing_has_no_such_inputs() -> None:
    verdict = bnfold.verify(bounded(None, ""), bounded(None, ""))
    assert not any(sample.label == "as normalised" for sample in verdict.samples)


def test_what_one_of_two_far_inputs_shows_is_a_note() -> None:
    """As if rounding had decided a gate: the candidate adds something where the first number is large and positive."""

    def gated(size: float) -> onnx.ModelProto:
        nodes = [
            node("Slice", "x zero one axes", "first"),
            node("Greater", "first bound", "is_beyond"),
            node("Where", "is_beyond size zero_", "more"),
            node("Add", "x more", "y"),
        ]
        constants = {
            "zero": np.zeros(2, np.int64),
            "one": np.ones(2, np.int64),
            "axes": np.arange(2),
            "bound": np.array(1e9, FLOAT),
            "size": np.array(size, FLOAT),
            "zero_": np.array(0, FLOAT),
        }
        return model(nodes, constants, (2, 8), dtype=FLOAT)

    notes = []
    for seed in range(8):
        verdict = bnfold.verify(gated(0), gated(1e17), seed=seed)
        noted = any("differs on one of two far inputs" in finding for finding in verdict.findings)
        assert verdict.is_equivalent or not noted
        notes.append(noted)
    assert 0 < sum(notes) < 8


def test_inputs_that_are_given_are_not_stretched() -> None:
    x = random(2, 3, 8, 8, dtype=FLOAT)
    assert [sample.label for sample in bnfold.verify(bounded(None, ""), bounded(3000, "x"), {"x": x}).samples] == [
        "given 0"
    ]
