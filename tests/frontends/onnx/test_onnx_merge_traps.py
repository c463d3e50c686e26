"""ONNX graphs whose linear operators look as if they could become one, and must not, in part or as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest

from bnfold import Refusal
from tests.toys.onnx_branches import BOTH, CENTRED, OTHER, SAME, C, build, conv, fuse_cheaply, merges
from tests.toys.onnx_graphs import fuse, node, norm, operators

# No two operators of these become one.
STAYS: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "branches of different values": ([OTHER, conv("x w", "c", **SAME), conv("z v", "d"), node("Add", "c d", "y")], "y"),
    "values of equal content": (
        [OTHER, node("Sigmoid", "x", "a"), conv("a w", "c", **SAME), conv("z v", "d"), node("Add", "c d", "y")],
        "y",
    ),
    "a second use": ([*BOTH, node("Add", "c d", "y"), node("Relu", "d", "z")], "y z"),
    "a second use of the host": ([*BOTH, node("Add", "c d", "y"), node("Relu", "c", "z")], "y z"),
    "a second use of an inner sum": (
        [OTHER, *BOTH, node("Add", "c z", "e"), node("Add", "e d", "y"), node("Relu", "e", "f")],
        "y f",
    ),
    "a branch that leaves the graph": ([*BOTH, node("Add", "c d", "y")], "y d"),
    "a convolution added to itself": ([conv("x w", "c", **SAME), node("Add", "c c", "y")], "y"),
    "a nonlinear operator between": ([*BOTH, node("Relu", "d", "e"), node("Add", "c e", "y")], "y"),
    "one channel that is broadcast": (
        [conv("x w", "c", **SAME), conv("x one", "d", **SAME), node("Add", "c d", "y")],
        "y",
    ),
    "a stride of its own": (
        [conv("x w", "c", strides=[1, 1], **SAME), conv("x v", "d", strides=[6, 7]), node("Add", "c d", "y")],
        "y",
    ),
    "a pad that shifts": (
        [conv("x w", "c", pads=[0, 0, 2, 2]), conv("x even", "d", pads=[1, 1, 0, 0]), node("Add", "c d", "y")],
        "y",
    ),
    "a window across another": (
        [
            conv("x row", "c", pads=[0, 1, 0, 1]),
            node("AveragePool", "x", "d", kernel_shape=[3, 1], pads=[1, 0, 1, 0], count_include_pad=1),
            node("Add", "c d", "y"),
        ],
        "y",
    ),
    "a border of reflections": (
        [
            node("Pad", "x pads", "a", mode="reflect"),
            conv("a w", "c"),
            conv("x v", "d"),
            node("Add", "c d", "y"),
        ],
        "y",
    ),
    "an average that counts data alone": (
        [conv("x w", "c", **SAME), node("AveragePool", "x", "e", **CENTRED), node("Add", "c e", "y")],
        "y",
    ),
    "an average that rounds up": (
        [
            conv("x even", "c", strides=[2, 2], pads=[0, 0, 0, 1]),
            node("AveragePool", "x", "e", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
            node("Add", "c e", "y"),
        ],
        "y",
    ),
    "dense beside depthwise": ([conv("x dw", "c", group=C, **SAME), conv("x v", "d"), node("Add", "c d", "y")], "y"),
    "same padding that depends on the size": (
        [
            conv("x w", "c", auto_pad="SAME_UPPER", strides=[2, 2]),
            conv("x v", "d", strides=[2, 2]),
            node("Add", "c d", "y"),
        ],
        "y",
    ),
    "a chain with a border between": ([conv("x v b", "c"), conv("c w", "y", **SAME)], "y"),
    "a chain that would cost more": ([conv("x thin", "c"), conv("c wide", "y", **SAME)], "y"),
    "two windows in a row": ([conv("x w", "c"), conv("c w2", "y")], "y"),
    "depthwise, then a point": ([conv("x dw", "c", group=C, **SAME), conv("c v", "y")], "y"),
    "a chain whose middle leaves the graph": ([conv("x w", "c", **SAME), conv("c v", "y")], "y c"),
    "a chain whose middle is read twice": ([conv("x w", "c", **SAME), conv("c v", "y"), node("Relu", "c", "z")], "y z"),
    "a concatenation along another axis": ([*BOTH, node("Concat", "c d", "y", axis=2)], "y"),
    "a concatenation of different windows": ([*BOTH, node("Concat", "c d", "y", axis=1)], "y"),
    "a concatenation of one value twice": ([conv("x w", "c", **SAME), node("Concat", "c c", "y", axis=1)], "y"),
    "a concatenation with something else": (
        [*BOTH[:1], conv("x w2", "d", **SAME), node("Concat", "c d x", "y", axis=1)],
        "y",
    ),
    "a concatenation of branches of different values": (
        [OTHER, *BOTH[:1], conv("z w2", "d", **SAME), node("Concat", "c d", "y", axis=1)],
        "y",
    ),
    "a concatenation of grouped convolutions": (
        [conv("x gw", "c", group=2, **SAME), conv("x dw", "d", group=C, **SAME), node("Concat", "c d", "y", axis=1)],
        "y",
    ),
    "two operators that share a weight": ([conv("x v", "c"), conv("c v", "y")], "y"),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_does_not_become_one(case: str) -> None:
    nodes, outputs = STAYS[case]
    proto = build(nodes, outputs=outputs)
    fused, outcomes = fuse(proto)
    assert not merges(outcomes)
    assert operators(fused) == operators(proto)


def test_a_shift_before_padding_does_not_merge() -> None:
    nodes = [norm("x", "a", "p_"), conv("a w", "c", **SAME), conv("x v", "d"), node("Add", "c d", "y")]
    fused, outcomes = fuse(build(nodes))
    assert isinstance(outcomes[0], Refusal)
    assert operators(fused) == operators(build(nodes))


def test_an_inner_sum_merges_where_the_whole_tree_does_not() -> None:
    nodes = [OTHER, *BOTH, node("Add", "c d", "e"), node("Add", "e x", "f"), node("Add", "z f", "y")]
    fused, _ = fuse_cheaply(build(nodes))
    assert operators(fused) == ["Sigmoid", "Conv", "Add"]


# Only some operands of a sum become one; what is left of each graph.
PARTS: dict[str, tuple[list[onnx.NodeProto], list[str]]] = {
    "one after the other": (
        [OTHER, *BOTH, norm("x", "n", "p_"), node("Add", "z c", "e"), node("Add", "e d", "f"), node("Add", "f n", "y")],
        ["Sigmoid", "Conv", "Add"],
    ),
    "taken away": ([OTHER, *BOTH, node("Sub", "z c", "e"), node("Sub", "e d", "y")], ["Sigmoid", "Conv", "Sub"]),
    "with other signs": (
        [
            OTHER,
            node("Tanh", "x", "u"),
            *BOTH,
            node("Sub", "c z", "e"),
            node("Sub", "u d", "f"),
            node("Sub", "e f", "y"),
        ],
        ["Sigmoid", "Tanh", "Conv", "Sub", "Sub"],
    ),
    "an addition of which nothing is left": (
        [OTHER, *BOTH, norm("x", "n", "p_"), node("Add", "d n", "e"), node("Add", "z c", "f"), node("Add", "e f", "y")],
        ["Sigmoid", "Conv", "Add"],
    ),
    "branches of two values": (
        [
            OTHER,
            *BOTH,
            conv("z w2", "e", **SAME),
            norm("z", "n", "p_"),
            node("Add", "c e", "f"),
            node("Add", "f n", "g"),
            node("Add", "g d", "y"),
        ],
        ["Sigmoid", "Conv", "Conv", "Add"],
    ),
    "dense beside depthwise, and an identity for either": (
        [
            conv("x dw", "c", group=C, **SAME),
            conv("x v", "d"),
            norm("x", "n", "p_"),
            node("Add", "c d", "e"),
            node("Add", "e n", "y"),
        ],
        ["Conv", "Conv", "Add"],
    ),
    "a sum of many of which one is left": (
        [
            OTHER,
            *BOTH,
            norm("d", "n", "p_"),
            node("Sum", "n c x", "e"),
            node("Add", "z e", "f"),
            node("Add", "f x", "y"),
        ],
        ["Sigmoid", "Conv", "Add"],
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_some_operands_of_a_sum_become_one(case: str) -> None:
    nodes, expected = PARTS[case]
    for shape in [(2, C, 6, 7), ("n", C, 6, 7)]:
        fused, outcomes = fuse_cheaply(build(nodes, shape))
        assert operators(fused) == expected
        assert not any(isinstance(each, Refusal) for each in outcomes)
        through = {name for each in merges(outcomes) for name in each.through}
        assert {each.name for each in nodes} >= through
        assert not through & {each.name for each in fused.graph.node}


PARTS_THAT_STAY: dict[str, tuple[list[onnx.NodeProto], Sequence[int | str]]] = {
    "what would be left is negative": (
        [OTHER, *BOTH, node("Sub", "d z", "e"), node("Add", "c e", "y")],
        (2, C, 6, 7),
    ),
    "sizes that are not known may be broadcast": (
        [OTHER, *BOTH, node("Add", "z c", "e"), node("Add", "e d", "y")],
        ("n", C, "h", "w"),
    ),
    "an operand that is broadcast": (
        [node("GlobalAveragePool", "x", "z"), *BOTH, node("Add", "z c", "e"), node("Add", "e d", "y")],
        (2, C, 6, 7),
    ),
}


@pytest.mark.parametrize("case", PARTS_THAT_STAY)
def test_parts_that_stay(case: str) -> None:
    nodes, shape = PARTS_THAT_STAY[case]
    fused, outcomes = fuse(build(nodes, shape))
    assert not merges(outcomes)
    assert len(fused.graph.node) == len(nodes)


def test_the_values_that_change_in_a_part_are_renamed() -> None:
    """A value keeps its name only where it keeps its content: `fuse` compares all that do."""
    nodes = [
        OTHER,
        node("Tanh", "x", "u"),
        *BOTH,
        node("Add", "z c", "e"),
        node("Add", "e u", "f"),
        node("Add", "f d", "y"),
    ]
    fused, _ = fuse_cheaply(build(nodes))
    made = {name for each in fused.graph.node for name in each.output}
    assert "y" in made
    assert not {"c", "d", "e", "f"} & made


SCALAR: dict[str, list[onnx.NodeProto]] = {
    "a number": [node("Add", "x two", "e")],
    "a constant that is read elsewhere": [node("Add", "x s", "e"), node("Mul", "x s", "z")],
    "a BatchNorm that shares its parameters": [OTHER, norm("x", "e", "p_"), norm("z", "q", "p_")],
}


@pytest.mark.parametrize("case", SCALAR)
def test_no_bias_is_made_of_parameters_that_stay_or_are_fewer(case: str) -> None:
    nodes = [conv("x w", "c", **SAME), *SCALAR[case], node("Add", "c e", "y")]
    read = {name for each in nodes for name in each.input}
    outputs = " ".join(each.output[0] for each in nodes if each.output[0] not in read)
    _, outcomes = fuse_cheaply(build(nodes, outputs=outputs))
    assert not merges(outcomes)


MEASURED: dict[str, list[onnx.NodeProto]] = {
    "the first of a stack": [conv("x v", "c"), conv("x v2", "d"), node("Concat", "c d", "y", axis=1)],
    "the second of a stack": [conv("x v", "d"), conv("x v2", "c"), node("Concat", "d c", "y", axis=1)],
    "one behind a BatchNorm": [
        conv("x v", "n"), norm("n", "c", "p_"), conv("x v2", "d"), node("Concat", "c d", "y", axis=1)
    ],
    "the inner one of a chain": [conv("x w", "c", **SAME), conv("c thin", "y")],
    "an addend": [conv("x w", "d", **SAME), conv("x v", "c"), node("Add", "d c", "y")],
}  # fmt: skip


@pytest.mark.parametrize("case", MEASURED)
def test_a_value_whose_shape_is_read_keeps_its_shape(case: str) -> None:
    proto = build([*MEASURED[case], node("Shape", "c", "k"), node("Cast", "k", "z", to=11)], outputs="y z")
    _, outcomes = fuse(proto)
    assert not merges(outcomes)
