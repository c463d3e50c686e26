"""Constants mean what their opset says: old forms of operators against numpy, each written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Reason, Refusal
from bnfold.frontends.onnx.operators.constants import FOLDABLE, Constants
from bnfold.frontends.onnx.operators.shapes import Inference
from bnfold.frontends.onnx.scopes import Scopes
from bnfold.frontends.reading import Unreadable
from tests.toys.onnx_graphs import norm, random, statistics

Array = np.ndarray

BATCH = random(2, 3, 4, 5, seed=1)
ONES = random(1, 3, 1, 2, 1, seed=2)
MATRIX = random(3, 4, seed=3)

INT64 = np.int64


def integers(*values: int) -> Array:
    return np.asarray(values, INT64)


def node(op: str, count: int, outputs: int, **attributes: Any) -> onnx.NodeProto:
    inputs, made = ([f"{letter}{index}" for index in range(size)] for letter, size in (("i", count), ("o", outputs)))
    return helper.make_node(op, inputs, made, name="computed", **attributes)


def model(op: str, opset: int, operands: list[Array], outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    """A model that is one node whose operands are stored."""
    stored = [numpy_helper.from_array(np.asarray(array), f"i{index}") for index, array in enumerate(operands)]
    single = node(op, len(operands), outputs, **attributes)
    graph = helper.make_graph([single], "graph", [], [onnx.ValueInfoProto(name=name) for name in single.output], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def evaluated(proto: onnx.ModelProto) -> list[Array]:
    read = ir.serde.deserialize_model(proto)
    scopes = Scopes(read)
    inference = Inference(read, Constants(read, scopes, {}, {}))
    constants = Constants(read, scopes, inference.shapes, inference.types)
    assert all(constants.holds(value) for value in read.graph.outputs)
    return [constants.get(value) for value in read.graph.outputs]


def consumed(op: str, function: Any) -> tuple[str, list[int], list[Array], dict[str, Any], list[Array]]:
    operand = np.abs(MATRIX)
    return op, [1, 5], [operand], {"consumed_inputs": [0]}, [function(operand)]


ELEMENTWISE = {"Add": np.add, "Div": np.divide, "Mul": np.multiply, "Pow": np.power, "Sub": np.subtract}

OLD: dict[str, tuple[str, list[int], list[Array], dict[str, Any], list[Array]]] = {
    # operator, opsets, operands, attributes, results
    "Cast to a name": ("Cast", [1, 5], [MATRIX * 9], {"to": "INT32"}, [(MATRIX * 9).astype(np.int32)]),
    "Cast to a number": ("Cast", [6, 13], [MATRIX], {"to": TensorProto.FLOAT}, [MATRIX.astype(np.float32)]),
    "Clip by attributes": ("Clip", [1, 6, 10], [MATRIX], {"min": -0.5, "max": 0.25}, [MATRIX.clip(-0.5, 0.25)]),
    "Clip from below": ("Clip", [1, 6, 10], [MATRIX], {"min": -0.5}, [np.maximum(MATRIX, -0.5)]),
    "Concat without an axis": ("Concat", [1, 3], [MATRIX, MATRIX], {}, [np.concatenate([MATRIX, MATRIX], 1)]),
    "Flatten without an axis": ("Flatten", [1, 9], [BATCH], {}, [BATCH.reshape(2, 60)]),
    "Gather from the front": ("Gather", [1, 10], [MATRIX, integers(2, 0)], {}, [MATRIX[[2, 0]]]),
    "Max of one shape": ("Max", [1, 6], [MATRIX, -MATRIX, MATRIX / 2], {}, [np.abs(MATRIX)]),
    "Pad by paddings": ("Pad", [1], [MATRIX], {"paddings": [1, 0, 0, 2], "value": 0.5},
                        [np.pad(MATRIX, ((1, 0), (0, 2)), constant_values=0.5)]),
    "Pad by pads": ("Pad", [2, 10], [MATRIX], {"pads": [1, 0, 0, 2], "mode": "edge"},
                    [np.pad(MATRIX, ((1, 0), (0, 2)), "edge")]),
    "ReduceSum along axes": ("ReduceSum", [1, 11], [BATCH], {"axes": [3, 1], "keepdims": 0}, [BATCH.sum((1, 3))]),
    "ReduceSum of everything": ("ReduceSum", [1, 11], [BATCH], {}, [BATCH.sum(keepdims=True)]),
    "ReduceProd along axes": ("ReduceProd", [1, 17], [BATCH], {"axes": [2]}, [BATCH.prod(2, keepdims=True)]),
    "Reshape by an attribute": ("Reshape", [1, 4], [BATCH], {"shape": [0, -1, 5]}, [BATCH.reshape(2, 12, 5)]),
    "Slice by attributes": ("Slice", [1, 9], [BATCH], {"starts": [1, -3], "ends": [9, -1], "axes": [1, 3]},
                            [BATCH[:, 1:, :, -3:-1]]),
    "Slice without axes": ("Slice", [1, 9], [BATCH], {"starts": [0, 1], "ends": [1, 3]}, [BATCH[0:1, 1:3]]),
    "Split by an attribute": ("Split", [1, 2, 12], [MATRIX], {"axis": 1, "split": [1, 3]},
                              [MATRIX[:, :1], MATRIX[:, 1:]]),
    "Split in halves": ("Split", [1, 2, 12], [MATRIX], {"axis": 1}, [MATRIX[:, :2], MATRIX[:, 2:]]),
    "Squeeze all": ("Squeeze", [1, 12], [ONES], {}, [ONES.squeeze()]),
    "Squeeze in any order": ("Squeeze", [1, 12], [ONES], {"axes": [4, 0]}, [ONES.squeeze((0, 4))]),
    "Squeeze from behind": ("Squeeze", [11, 12], [ONES], {"axes": [-3, -1]}, [ONES.squeeze((2, 4))]),
    "Tile along an axis": ("Tile", [1, 5], [MATRIX, np.asarray(2.0), np.asarray(1.0)], {}, [np.tile(MATRIX, (1, 2))]),
    "Tile by repeats": ("Tile", [6, 13], [MATRIX, integers(2, 3)], {}, [np.tile(MATRIX, (2, 3))]),
    "Unsqueeze in any order": ("Unsqueeze", [1, 12], [MATRIX], {"axes": [3, 0]}, [MATRIX[None, :, :, None]]),
    "Unsqueeze from behind": ("Unsqueeze", [11, 12], [MATRIX], {"axes": [-2, -1]}, [MATRIX[:, :, None, None]]),
    **{f"{op} that consumes": consumed(op, function) for op, function in {
        "Abs": np.abs, "Ceil": np.ceil, "Exp": np.exp, "Floor": np.floor, "Neg": np.negative,
        "Reciprocal": np.reciprocal, "Sqrt": np.sqrt}.items()},
}  # fmt: skip


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name, row in OLD.items() for opset in row[1]])
def test_an_operator_means_what_its_opset_says(name: str, opset: int) -> None:
    op, _, operands, attributes, expected = OLD[name]
    assert op in FOLDABLE
    actual = evaluated(model(op, opset, operands, len(expected), **attributes))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize("op", ELEMENTWISE)
@pytest.mark.parametrize(
    ("shape", "attributes", "aligned"),
    [
        ((2, 3, 4, 5), {}, (2, 3, 4, 5)),
        ((5,), {"broadcast": 1}, (5,)),
        ((4, 5), {"broadcast": 1}, (4, 5)),
        ((3,), {"broadcast": 1, "axis": 1}, (3, 1, 1)),
        ((3, 4), {"broadcast": 1, "axis": 1}, (3, 4, 1)),
        ((2,), {"broadcast": 1, "axis": 0}, (2, 1, 1, 1)),
        ((), {"broadcast": 1}, ()),
        ((1,), {"broadcast": 1, "axis": 1}, ()),
        ((1, 1), {"broadcast": 1}, ()),
    ],
)
def test_below_opset_7_the_second_operand_lies_along_an_axis(
    op: str, opset: int, shape: tuple[int, ...], attributes: dict[str, int], aligned: tuple[int, ...]
) -> None:
    first, second = np.abs(BATCH), np.abs(random(*shape)) + 0.5
    (actual,) = evaluated(model(op, opset, [first, second], **attributes))
    np.testing.assert_array_equal(actual, ELEMENTWISE[op](first, second.reshape(aligned)))


def test_below_opset_7_equality_lies_along_an_axis() -> None:
    first, second = np.arange(24).reshape(2, 3, 4) % 3, np.arange(3)
    (actual,) = evaluated(model("Equal", 6, [first, second], broadcast=1, axis=1))
    np.testing.assert_array_equal(actual, first == second[:, None])


MEANINGLESS: dict[str, tuple[str, int, list[Array], dict[str, Any]]] = {
    "no broadcasting": ("Add", 6, [BATCH, BATCH[0, 0, 0]], {}),
    "an axis alone does not broadcast": ("Mul", 6, [BATCH, BATCH[0, :, 0, 0]], {"axis": 1}),
    "the first operand is not broadcast": ("Add", 6, [BATCH[0, 0, 0], BATCH], {"broadcast": 1}),
    "sizes that do not fit": ("Add", 6, [BATCH, BATCH[0, 0, :, 0]], {"broadcast": 1}),
    "an axis beyond": ("Add", 6, [BATCH, BATCH[0, 0, 0]], {"broadcast": 1, "axis": 4}),
    "an axis from behind": ("Add", 6, [BATCH, BATCH[0, 0, 0]], {"broadcast": 1, "axis": -1}),
    "opset 7 has no axis": ("Add", 7, [BATCH, BATCH[0, :, 0, 0]], {"broadcast": 1, "axis": 1}),
    "no largest of two shapes": ("Max", 6, [BATCH, BATCH[0]], {}),
    "no such type": ("Cast", 5, [BATCH], {"to": "FLOAT12"}),
    "an attribute that came later": ("Reshape", 13, [BATCH, integers(2, 60)], {"allowzero": 1}),
    "an axis that is not said": ("Split", 1, [MATRIX], {"split": [1, 3]}),
    "positions beyond": ("Gather", 13, [MATRIX, integers(7)], {}),
}


@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_means_nothing_is_not_evaluated(name: str) -> None:
    op, opset, operands, attributes = MEANINGLESS[name]
    with pytest.raises(Unreadable):
        evaluated(model(op, opset, operands, 2 if op == "Split" else 1, **attributes))


@pytest.mark.parametrize("name", MEANINGLESS)
@pytest.mark.parametrize("place", ["gamma", "w", "b", "k"])
def test_a_constant_that_cannot_be_evaluated_is_not_known(name: str, place: str) -> None:
    """It keeps one BatchNorm, or what else reads it, from folding, and nothing else."""
    op, opset, operands, attributes = MEANINGLESS[name]
    computed = helper.make_node(op, [f"i{index}" for index in range(len(operands))], ["odd"], name="computed")
    computed.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    if op == "Split":
        computed.output.append("rest")
    arrays = {"w": random(3, 4, 1, 1), "v": random(3, 3, 1, 1), "b": random(3), **statistics(3)}
    arrays.update({f"i{index}": operand for index, operand in enumerate(operands)})
    names = {each: "odd" if each == place else each for each in ("w", "b")}
    inference = {"is_test": 1} if opset < 7 else {}
    first = norm("s", "n", **inference)
    first.input[1] = "odd" if place == "gamma" else "gamma"
    nodes = [
        computed,
        helper.make_node("Conv", ["x", names["w"], names["b"]], ["c"], name="first"),
        helper.make_node(
            "Add" if place == "k" else "Identity", ["c", "odd"][: 1 + (place == "k")], ["s"], name="between"
        ),
        first,
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "v"], ["d"], name="second"),
        norm("d", "y", **inference),
    ]
    stored = [numpy_helper.from_array(array, key) for key, array in arrays.items()]
    ends = [
        helper.make_tensor_value_info(key, TensorProto.DOUBLE, (2, size, 3, 3)) for key, size in (("x", 4), ("y", 3))
    ]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    kept, folded = [each for each in bnfold.plan(proto) if each.is_batchnorm]
    assert isinstance(folded, Fold)
    assert isinstance(kept, Refusal)
    if place != "k":
        assert kept.reason is Reason.NOT_CONSTANT
        assert "computed" in kept.detail


def test_text_is_no_constant() -> None:
    proto = model("Identity", 13, [MATRIX])
    proto.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["o0"], value_string="words"))
    read = ir.serde.deserialize_model(proto)
    assert not Constants(read, Scopes(read), {}, {}).holds(read.graph.outputs[0])
