"""A second fold finds nothing: what a fold makes possible is found at once.

Every test that folds a graph by `tests.toys.onnx_graphs.fuse` asserts it; these are the graphs that once broke it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.toys.onnx_branches import CONSTANTS, SAME, C, conv
from tests.toys.onnx_graphs import fuse, model, node, norm, operators, random, statistics

ONE, ZERO = np.ones(C), np.zeros(C)

HALF = {"gamma": ONE, "beta": 0.5 * ONE, "mean": ONE, "var": ONE}
LARGE = {"gamma": ONE, "beta": 1000 * ONE, "mean": ZERO, "var": ONE}
TINY = {"gamma": 2.0**-10 * ONE, "beta": ZERO, "mean": 2.0**-20 * ONE, "var": ONE}

EXTRA: dict[str, np.ndarray] = {
    "none": np.zeros((C, C, 1, 1)),
    "zeros": np.zeros(C),
    "far": np.full(C, 2.0),
    "farther": np.full(C, 20.0),
    "tenth": np.full(C, 0.1),
    **{f"half_{name}": array for name, array in HALF.items()},
    **{f"large_{name}": array for name, array in LARGE.items()},
    **{f"tiny_{name}": array for name, array in TINY.items()},
}


def folded(nodes: list[onnx.NodeProto], shape: tuple[int, ...], **options: Any) -> list[str]:
    """The operators that are left; `fuse` folds twice."""
    named = {name for each in nodes for name in each.input}
    constants = {name: array for name, array in {**CONSTANTS, **EXTRA}.items() if name in named}
    return operators(fuse(model(nodes, constants, shape, **options))[0])


IMAGES: dict[str, tuple[list[onnx.NodeProto], list[str]]] = {
    "a kernel whose other reader gets one of its own": (
        [conv("x v", "c"), conv("c w", "d", **SAME), node("Relu", "d", "e"), conv("e v", "f"), norm("f", "y", "p_")],
        ["Conv", "Relu", "Conv"],
    ),
    "a kernel computed from what another reader stops reading": (
        [
            node("Neg", "v", "k"),
            node("Abs", "v", "l"),
            conv("x k", "c"),
            conv("c w", "d", **SAME),
            node("Relu", "d", "e"),
            conv("e l", "f"),
            norm("f", "y", "p_"),
        ],
        ["Conv", "Relu", "Conv"],
    ),
    "parameters of a BatchNorm whose other reader folds": (
        [
            conv("x w", "c", **SAME),
            norm("x", "n", "p_"),
            node("Add", "c n", "d"),
            node("Relu", "d", "e"),
            conv("e v", "f"),
            norm("f", "y", "p_"),
        ],
        ["Conv", "Relu", "Conv"],
    ),
    "a shift that meets a kernel of zeros": (
        [node("Add", "x s", "a"), conv("a none", "c"), conv("c w", "y", **SAME)],
        ["Conv"],
    ),
    "a convolution that pads with another value than zero": (
        [norm("x", "n", "half_"), conv("n w", "c", **SAME), conv("c v", "y")],
        ["Pad", "Conv"],
    ),
    "a point that pads, whose Pad would leave a point in front of a window": (
        [norm("x", "n", "half_"), conv("n v", "c", **SAME), conv("c w", "y")],
        ["BatchNormalization", "Conv", "Conv"],
    ),
}

ROWS: dict[str, tuple[list[onnx.NodeProto], list[str]]] = {
    "additions that come to stand behind a product": (
        [node("MatMul", "x m", "c"), node("Mul", "c b", "d"), node("Add", "d b2", "e"), node("Add", "e b", "y")],
        ["MatMul", "Add"],
    ),
    "a subtraction behind a product, and a BatchNorm behind it": (
        [node("MatMul", "x m", "c"), node("Sub", "c b", "d"), norm("d", "y", "p_")],
        ["MatMul", "Add"],
    ),
    "a subtraction behind a product": (
        [node("MatMul", "x m", "c"), node("Sub", "c b", "y")],
        ["MatMul", "Sub"],
    ),
    "a product whose addition lets the next one merge": (
        [node("MatMul", "x m", "c"), node("Mul", "c b", "d"), node("Add", "d b2", "e"), node("MatMul", "e m2", "y")],
        ["MatMul", "Add"],
    ),
    "products in a stack, one of them with a bias of zeros": (
        [
            node("Mul", "x two", "a"),
            node("Gemm", "a m zeros", "c"),
            node("Gemm", "a m2 b", "d"),
            node("Concat", "c d", "y", axis=1),
        ],
        ["Gemm"],
    ),
}


@pytest.mark.parametrize("case", IMAGES)
def test_what_a_fold_of_images_makes_possible_is_found_at_once(case: str) -> None:
    nodes, expected = IMAGES[case]
    assert folded(nodes, (2, C, 6, 7)) == expected


@pytest.mark.parametrize("case", ROWS)
def test_what_a_fold_of_rows_makes_possible_is_found_at_once(case: str) -> None:
    nodes, expected = ROWS[case]
    assert folded(nodes, (2, C)) == expected


def test_a_scale_stays_with_the_shift_whose_data_it_describes() -> None:
    """(x - 2) / 0.1 would lose digits. Without the division, x - 2 would be taken to have a deviation of 1."""
    nodes = [node("Sub", "x far", "a"), node("Div", "a tenth", "c"), node("Gemm", "c m b2", "y")]
    assert folded(nodes, (2, C)) == ["Sub", "Div", "Gemm"]


def test_what_stands_behind_counts_before_a_shift_folds_as_it_does_afterwards() -> None:
    """The output is rounded at the size of the BatchNorm's shift, whether x - 20 folds or not."""
    nodes = [node("Sub", "x farther", "a"), node("Gemm", "a m", "c"), norm("c", "y", "large_")]
    assert folded(nodes, (2, C)) == ["Gemm"]


def test_a_bias_that_its_type_stores_as_zero_is_none() -> None:
    nodes = [conv("x v", "c"), norm("c", "d", "tiny_"), conv("x v2", "e"), node("Concat", "d e", "y", axis=1)]
    constants = {**CONSTANTS, **EXTRA}
    named = {name for each in nodes for name in each.input}
    half = {name: array.astype(np.float16) for name, array in constants.items() if name in named}
    fused, _ = fuse(model(nodes, half, (2, C, 3, 3), dtype=np.float16), tolerance=2.0**-8)
    assert operators(fused) == ["Conv"]


def test_a_constant_that_another_was_computed_from_twice_goes_once() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Abs", "k", "once"),
        node("Neg", "once", "twice"),
        node("Mul", "once twice", "factor"),
        node("Mul", "c factor", "y"),
    ]
    fused, _ = fuse(model(nodes, {"w": random(4, 3, 1, 1), "k": np.array(2.0)}, (2, 3, 5, 5)))
    assert operators(fused) == ["Conv"]


@pytest.mark.parametrize("readers", [1, 2])
def test_what_a_constant_takes_its_type_from_is_not_taken_out_with_it(readers: int) -> None:
    """A convolution and its BatchNorm, of which nothing else reads the result: their own folds are still to be made."""
    nodes = [node("Conv", "x w", "c"), norm("c", "n"), node("Conv", "x v", "d")]
    nodes += [node("CastLike", "k n", f"k{number}") for number in range(readers)]
    nodes += [node("Mul", "d k0", "e"), node("Add", f"e k{readers - 1}", "f"), norm("f", "y", "other_")]
    constants = {"w": random(4, 3, 1, 1), "v": random(4, 3, 1, 1), "k": np.array(2.0)}
    fused, _ = fuse(model(nodes, constants | statistics(4) | statistics(4, "other_"), (2, 3, 5, 5)))
    assert operators(fused) == ["Conv", "Conv"]
