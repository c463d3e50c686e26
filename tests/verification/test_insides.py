"""Inner values of one name: a difference that is taken back is a note; one that something hides decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from tests.toys.onnx_graphs import model, node, random

FLOAT = np.float32

Array = np.ndarray[Any, Any]

HIDDEN = 16

PERMUTATION = np.random.default_rng(1).permutation(HIDDEN)

SCALES = np.random.default_rng(2).uniform(0.1, 10, HIDDEN)

END = {
    "mean": [node("GlobalAveragePool", "c", "y")],
    "softmax": [node("GlobalAveragePool", "c", "m"), node("Softmax", "m", "y", axis=1)],
}


def weights(*, hidden: int = HIDDEN, seed: int = 1) -> dict[str, Array]:
    return {
        "w1": random(hidden, 3, 3, 3, dtype=FLOAT, seed=seed),
        "b1": random(hidden, dtype=FLOAT, seed=seed + 1),
        "w2": random(8, hidden, 3, 3, dtype=FLOAT, seed=seed + 2),
    }


def convolutional(held: dict[str, Array], end: str = "mean") -> onnx.ModelProto:
    """Two convolutions with a Relu between."""
    nodes = [node("Conv", "x w1 b1", "a"), node("Relu", "a", "r"), node("Conv", "r w2", "c"), *END[end]]
    return model(nodes, held, (2, 3, 9, 9), dtype=FLOAT)


def rearranged(held: dict[str, Array], order: Array = PERMUTATION, scales: Array = SCALES) -> dict[str, Array]:
    """The same function: channels between the two layers in another order, and scaled up and down again."""
    along = (slice(None), *[None] * (held["w1"].ndim - 1))
    back = (None, slice(None), *[None] * (held["w2"].ndim - 2))
    return {
        "w1": (held["w1"][order] * scales[along]).astype(FLOAT),
        "b1": (held["b1"][order] * scales).astype(FLOAT),
        "w2": (held["w2"][:, order] / scales[back]).astype(FLOAT),
    }


ONES, SAME = np.ones(HIDDEN), np.arange(HIDDEN)


@pytest.mark.parametrize(("order", "scales"), [(PERMUTATION, ONES), (SAME, SCALES), (PERMUTATION, SCALES)])
@pytest.mark.parametrize("end", END)
def test_channels_that_are_exchanged_and_scaled_are_a_note(order: Array, scales: Array, end: str) -> None:
    first, second = convolutional(weights(), end), convolutional(rearranged(weights(), order, scales), end)
    verdict = bnfold.verify(first, second)
    assert verdict.is_equivalent
    assert any("'a'" in each and "what follows agrees" in each for each in verdict.findings)
    assert not bnfold.verify(first, second, strict_inside=True).is_equivalent


def test_a_value_that_differs_before_its_end_is_a_note_even_where_the_end_is_saturated() -> None:
    held = weights()
    held["w2"] = held["w2"] * 100  # the softmax has one winner
    assert bnfold.verify(convolutional(held, "softmax"), convolutional(rearranged(held), "softmax")).is_equivalent


def test_a_fault_that_nothing_reads_decides() -> None:
    """The second layer ignores a channel, whose bias is wrong in the candidate."""
    held = weights()
    held["w2"][:, 5] = 0
    wrong = {**held, "b1": held["b1"] + np.where(SAME == 5, 0.1, 0).astype(FLOAT)}
    verdict = bnfold.verify(convolutional(held), convolutional(wrong))
    assert not verdict.is_equivalent
    assert verdict.first_divergence is not None
    assert verdict.first_divergence.name == "a"


@pytest.mark.parametrize("hides", ["Sigmoid", "Relu", "ArgMax"])
def test_a_fault_that_is_saturated_away_decides(hides: str) -> None:
    held = weights()
    nodes = [node("Conv", "x w1 b1", "a"), node("Add", "a far", "b"), node(hides, "b", "y")]
    held["far"] = np.full(1, 200 if hides == "Sigmoid" else -200, FLOAT)
    if hides == "ArgMax":
        nodes = [node("Conv", "x w1 b1", "a"), node("Add", "a far", "b"), node("ArgMax", "b", "y", axis=1)]
        held["far"] = np.zeros((1, HIDDEN, 1, 1), FLOAT)
        held["far"][:, 3] = 500
    del held["w2"]
    wrong = {**held, "w1": held["w1"] * FLOAT(1.01)}
    first, second = (model(nodes, each, (2, 3, 9, 9), dtype=FLOAT) for each in (held, wrong))
    if hides == "ArgMax":
        for each in (first, second):
            each.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    assert not bnfold.verify(first, second).is_equivalent


def test_an_output_that_differs_leaves_no_difference_a_note() -> None:
    held = rearranged(weights())
    held["w2"] = held["w2"] * FLOAT(1.01)
    verdict = bnfold.verify(convolutional(weights()), convolutional(held))
    assert not verdict.is_equivalent
    assert not any("what follows agrees" in each for each in verdict.findings)


def products(held: dict[str, Array]) -> onnx.ModelProto:
    """Two matrix products on tokens, as in a transformer's block."""
    nodes = [node("MatMul", "x w1", "p"), node("Add", "p b1", "a"), node("Relu", "a", "r"), node("MatMul", "r w2", "y")]
    turned = {**held, "w1": held["w1"].T.copy(), "w2": held["w2"].T.copy()}
    return model(nodes, turned, (2, 7, 12), dtype=FLOAT)


def test_features_of_tokens_that_are_exchanged_are_a_note() -> None:
    held = {
        "w1": random(HIDDEN, 12, dtype=FLOAT, seed=1),
        "b1": random(HIDDEN, dtype=FLOAT, seed=2),
        "w2": random(5, HIDDEN, dtype=FLOAT, seed=3),
    }
    assert bnfold.verify(products(held), products(rearranged(held))).is_equivalent
    assert not bnfold.verify(products(held), products(rearranged(held)), strict_inside=True).is_equivalent


def twice(first: dict[str, Array], second: dict[str, Array]) -> onnx.ModelProto:
    """Two such pairs of convolutions, one behind the other."""
    nodes = [
        *(node("Conv", "x w1 b1", "a"), node("Relu", "a", "r"), node("Conv", "r w2", "c")),
        *(node("Conv", "c v1 v2", "d"), node("Relu", "d", "e"), node("Conv", "e v3", "f")),
        node("GlobalAveragePool", "f", "y"),
    ]
    others = {"v1": second["w1"], "v2": second["b1"], "v3": second["w2"]}
    return model(nodes, {**first, **others}, (2, 3, 13, 13), dtype=FLOAT)


def test_each_place_decides_for_itself() -> None:
    """What is taken back in one does not excuse what is hidden in the other."""
    one, two = weights(), {**weights(seed=5), "w1": random(HIDDEN, 8, 3, 3, dtype=FLOAT, seed=9)}
    assert bnfold.verify(twice(one, two), twice(rearranged(one), rearranged(two))).is_equivalent
    two["w2"][:, 3] = 0
    wrong = {**two, "b1": two["b1"] + np.where(SAME == 3, 1, 0).astype(FLOAT)}
    verdict = bnfold.verify(twice(one, two), twice(rearranged(one), wrong))
    assert not verdict.is_equivalent
    assert verdict.first_divergence is not None
    assert verdict.first_divergence.name == "d"


def test_an_output_that_hides_a_difference_decides_beside_one_that_takes_it_back() -> None:
    """Channels are exchanged and put back on one way, and are not on another, where a Sigmoid is saturated."""

    def forked(held: dict[str, Array]) -> onnx.ModelProto:
        nodes = [node("Conv", "x w1 b1", "a"), node("Conv", "a w2", "y"), node("Sigmoid", "a", "z")]
        made = model(nodes, {**held, "b1": held["b1"] + FLOAT(2000)}, (2, 3, 9, 9), dtype=FLOAT)
        made.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
        return made

    first, second = forked(weights()), forked(rearranged(weights(), PERMUTATION, ONES))
    assert bnfold.verify(first, second, outputs_only=True, effort="fast").is_equivalent
    assert not bnfold.verify(first, second).is_equivalent


def test_channels_that_round_otherwise_need_not_show_beside_others_that_are_scaled() -> None:
    """Two of sixteen, which are looked at together, keep their size, and their weights move in the last place."""
    held = weights()
    scales = np.where(np.arange(HIDDEN) % 8 == 2, 1.0, SCALES)
    candidate = rearranged(held, SAME, scales)
    candidate["w1"][2::8] = np.nextafter(candidate["w1"][2::8], np.inf)
    verdict = bnfold.verify(convolutional(held), convolutional(candidate))
    assert verdict.is_equivalent
    assert any("something else in the candidate" in finding for finding in verdict.findings)


def test_a_faint_channel_that_is_hidden_beside_others_that_are_scaled_decides() -> None:
    """It differs by less than the whole value may, and by all of its own size."""
    held = weights()
    held["w1"][2::8] *= FLOAT(1e-9)
    held["b1"][2::8] = FLOAT(-1e-6)  # so that the Relu hides it
    candidate = rearranged(held, SAME, np.where(np.arange(HIDDEN) % 8 == 2, 1.0, SCALES))
    candidate["b1"][2::8] *= 2
    assert not bnfold.verify(convolutional(held), convolutional(candidate)).is_equivalent
