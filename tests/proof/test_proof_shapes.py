"""What follows from shapes is known to the checker, in whatever way an exporter spells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest

from bnfold.algebra.affine import Affine
from bnfold.api import certify
from bnfold.proof.certificate import Certificate, Relation
from bnfold.proof.models import Files, Side, digest
from bnfold.proof.shapes import infer
from tests.proof.test_proof import proof_of
from tests.toys.onnx_functions import parse
from tests.toys.onnx_graphs import model, node, norm, random, statistics


def axes_that_are_computed() -> onnx.ModelProto:
    """The shape of the mean follows only from axes that a Reshape makes."""
    nodes = [
        node("Sigmoid", "x", "s"),
        norm("s", "n"),
        node("Constant", "", "row", value_ints=[-1]),
        node("Reshape", "two row", "axes"),
        node("ReduceMean", "n axes", "m", keepdims=0),
        node("Reshape", "m target", "r"),
        node("Gemm", "r w", "y"),
    ]
    constants = {"two": np.array([2, 3]), "target": np.array([2, 4]), "w": random(4, 5)}
    return model(nodes, constants | statistics(4), (2, 4, 6, 6), opset=18)


def a_scale_from_a_shape() -> onnx.ModelProto:
    """As in attention: ``conv(x) / sqrt(size of its last axis)``."""
    nodes = [
        node("Conv", "x w", "c"),
        norm("c", "n"),
        node("Shape", "n", "s"),
        node("Gather", "s last", "size", axis=0),
        node("Cast", "size", "real", to=1),
        node("Sqrt", "real", "root"),
        node("Div", "n root", "y"),
    ]
    constants = {"last": np.array(3), "w": random(4, 3, 1, 1)}
    return model(nodes, constants | statistics(4), (2, 3, 6, 6))


def a_slice_of_computed_bounds() -> onnx.ModelProto:
    """As an exporter writes it: of the shape of the result nothing but the number of axes is inferred."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Unsqueeze", "one zero", "start"),
        node("Unsqueeze", "three zero", "end"),
        node("Slice", "c start end axis", "s"),
        node("Conv", "x v", "d"),
        node("Add", "s d", "a"),
        norm("a", "n"),
        node("Relu", "n", "r"),
        node("Conv", "r u", "e"),
        node("Sub", "a e", "y"),
    ]
    constants = {"w": random(4, 3, 1, 1), "v": random(2, 3, 1, 1), "u": random(2, 2, 1, 1)}
    constants |= {"zero": np.array([0]), "one": np.array(1), "three": np.array(3), "axis": np.array([1])}
    return model(nodes, constants | statistics(2) | {"gamma": np.ones(2)}, (2, 3, 6, 6))


@pytest.mark.parametrize(
    "make", [axes_that_are_computed, a_scale_from_a_shape, a_slice_of_computed_bounds], ids=lambda f: f.__name__
)
def test_a_fold_that_rests_on_shapes_is_proved(make: Callable[[], onnx.ModelProto]) -> None:
    original = make()
    result, certificate = certify(original)
    assert not [each for each in result.graph.node if each.op_type == "BatchNormalization"]
    assert proof_of(original, result, certificate).failures == ()


def windows() -> onnx.ModelProto:
    """As in Swin: channels last, and sizes that the input leaves open are cut into windows of two."""
    sizes = [node("Gather", f"s {k}", f"size{k}") for k in "012"]
    halves = [node("Div", f"size{k} two", f"half{k}") for k in "12"]
    vectors = [node("Unsqueeze", f"{each} zero", f"{each}_") for each in ("size0", "half1", "half2")]
    nodes = [
        node("Sigmoid", "x", "i"),
        norm("i", "n"),
        node("Transpose", "n", "t", perm=[0, 2, 3, 1]),
        node("Shape", "t", "s"),
        *sizes,
        *halves,
        *vectors,
        node("Concat", "size0_ half1_ pair half2_ pair channels", "target", axis=0),
        node("Reshape", "t target", "r"),
        node("MatMul", "r w", "y"),
    ]
    constants = {"0": np.array(0), "1": np.array(1), "2": np.array(2), "two": np.array(2), "zero": np.array([0])}
    constants |= {"pair": np.array([2]), "channels": np.array([4]), "w": random(4, 3)}
    return model(nodes, constants | statistics(4), ("N", 4, "H", "W"))


def clips() -> onnx.ModelProto:
    """As for video: a batch that is left open holds clips of three images each."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Reshape", "c target", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]),
        norm("t", "n"),
        node("Sigmoid", "n", "y"),
    ]
    constants = {"target": np.array([-1, 3, 4, 6, 6]), "w": random(4, 3, 1, 1)}
    return model(nodes, constants | statistics(4), ("N", 3, 6, 6))


@pytest.mark.parametrize("make", [windows, clips], ids=lambda f: f.__name__)
def test_a_reshape_to_sizes_that_are_left_open_is_proved(make: Callable[[], onnx.ModelProto]) -> None:
    """No size that is drawn alone fits it: sizes of the input are drawn, and the others follow."""
    original = make()
    result, certificate = certify(original)
    assert not [each for each in result.graph.node if each.op_type == "BatchNormalization"]
    assert proof_of(original, result, certificate).failures == ()


@pytest.mark.parametrize("make", [windows, clips], ids=lambda f: f.__name__)
def test_a_reshape_to_sizes_that_are_left_open_is_judged(make: Callable[[], onnx.ModelProto]) -> None:
    """A map along another axis, or of the other channels, does not go through it."""
    original = make()
    result, certificate = certify(original)
    key = "main", "r"
    relation = certificate.relations[key]
    affine = relation.pulled or relation.pushed
    assert affine is not None
    turned = Affine(affine.scale[::-1].copy(), affine.shift, affine.axis)
    for wrong in (affine.along(1), turned):
        changed = Relation(wrong) if relation.pulled else Relation(None, wrong)
        relations = {**certificate.relations, key: changed}
        assert not proof_of(original, result, replace(certificate, relations=relations)).is_proved


FIXED = {
    "a Reshape": ["Reshape c two_six_four"],
    "a wildcard and the channels behind it": ["Reshape c two_any_four"],
    "a multiplication on the way": ["Reshape c two_any_four", "Mul last one"],
    "a size that another Reshape copies": ["Reshape c two_any_four", "Reshape last two_copy_four"],
}
"""Nodes between a Conv and a BatchNormalization, by what fixes the batch."""

TARGETS = {"two_six_four": [2, 6, 4], "two_any_four": [2, -1, 4], "two_copy_four": [2, 0, 4]}


def fixed_batch(words: list[str], shape: tuple[int | str, ...]) -> onnx.ModelProto:
    """A batch that is left open, and nodes that run with two images only."""
    nodes = [node("Conv", "x w", "c")]
    for index, word in enumerate(words):
        op, *inputs = word.split()
        nodes.append(node(op, " ".join(inputs).replace("last", nodes[-1].output[0]), f"v{index}"))
    nodes += [norm(nodes[-1].output[0], "n"), node("Sigmoid", "n", "y")]
    constants = {name: np.array(target) for name, target in TARGETS.items() if name in " ".join(words)}
    constants |= {"w": random(6, 3, 1, 1)} | ({"one": np.ones(1)} if "one" in " ".join(words) else {})
    return model(nodes, constants | statistics(6), shape)


@pytest.mark.parametrize("what", FIXED)
def test_a_size_that_the_model_fixes_itself_is_no_other_size(what: str) -> None:
    """Exporters write the batch of the example into a Reshape, and declare a batch of any size all the same."""
    original = fixed_batch(FIXED[what], ("N", 3, 2, 2))
    result, certificate = certify(original)
    assert not [each for each in result.graph.node if each.op_type == "BatchNormalization"]
    assert proof_of(original, result, certificate).failures == ()


@pytest.mark.parametrize("what", FIXED)
def test_several_sizes_that_the_model_fixes_together_are_tried(what: str) -> None:
    original = fixed_batch(FIXED[what], ("N", 3, "H", "W"))
    result, certificate = certify(original)
    assert proof_of(original, result, certificate).failures == ()


def test_a_batch_that_is_squeezed_out_is_one() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Transpose", "c", "t", perm=[2, 0, 3, 1]),
        node("Reshape", "t target", "r"),
        norm("r", "n", "one_"),
        node("Squeeze", "n axis", "s"),
        norm("s", "m", "two_"),
        node("Sigmoid", "m", "y"),
    ]
    constants = {"w": random(2, 3, 1, 1), "target": np.array([4, 0, 2]), "axis": np.array([1])}
    constants |= statistics(1, "one_") | statistics(2, "two_")
    original = model(nodes, constants, ("N", 3, 4, 1))
    result, certificate = certify(original)
    assert not [each for each in result.graph.node if each.op_type == "BatchNormalization"]
    assert proof_of(original, result, certificate).failures == ()


def read_in_part(*more: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """Six channels of as many as a Reshape makes: of all six with two images, of nine with three."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Reshape", "c target", "r"),
        node("Slice", "r zero six one", "s"),
        norm("s", "n"),
        node("Sigmoid", "n", "y"),
        *more,
    ]
    constants |= {"target": np.array([2, -1, 4]), "zero": np.array([0]), "six": np.array([6]), "one": np.array([1])}
    return model(nodes, constants | {"w": random(6, 3, 1, 1)} | statistics(6), (2, 3, 2, 2))


def left_open(original: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, Certificate]:
    """The proof of a fold for two images, claimed of any number."""
    result, certificate = certify(original)
    assert not [each for each in result.graph.node if each.op_type == "BatchNormalization"]
    assert proof_of(original, result, certificate).is_proved
    for proto in (original, result):
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    return original, result, replace(certificate, original=digest(Files(original)))


def test_a_size_at_which_the_model_runs_is_no_size_to_leave_out() -> None:
    """With two images the folded convolution is right, with three it is not."""
    claimed = left_open(read_in_part())
    for _ in range(20):  # sizes are drawn
        assert not proof_of(*claimed).is_proved


def test_what_no_output_needs_fixes_no_size() -> None:
    """A runtime leaves it out, and then runs with any batch."""
    dead = node("Reshape", "c two_six_four", "dead")
    assert not proof_of(*left_open(read_in_part(dead, two_six_four=np.array([2, 6, 4])))).is_proved


def test_a_node_that_is_gone_though_something_reads_it_is_found() -> None:
    original = a_scale_from_a_shape()
    original.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "n"  # no constant then
    result, certificate = certify(original)
    assert proof_of(original, result, certificate).is_proved
    shape = next(each for each in result.graph.node if each.op_type == "Shape")
    gather = next(each for each in result.graph.node if each.op_type == "Gather")
    result.graph.node.remove(shape)
    gather.op_type, gather.input[:] = "Identity", ["last"]
    assert not proof_of(original, result, certificate).is_proved


@pytest.mark.parametrize(
    ("second", "agreed"),
    [("[1,2,8]", (1, 2, None)), ("[1,2,4]", (1, 2, 4)), ("[2,4]", None), ("[N,2,4]", (None, 2, 4))],
)
def test_a_function_has_the_shapes_that_all_calls_agree_on(second: str, agreed: tuple[int | None, ...] | None) -> None:
    proto = parse(
        "y = L.f(x)\n q = L.g(z)",
        "f (x) => (y) { r = Relu(x)\n y = Neg(r) }",
        "g (x) => (y) { y = L.f(x) }",
        values="float[1,2,4]",
    )
    other = parse("y = L.f(x)", values=f"float{second}").graph.input[0]
    other.name = "z"
    proto.graph.input.append(other)
    known = Side(Files(proto), infer).certain
    for name in ("x", "r", "y"):
        assert known["function:L:f:", name] == (agreed, onnx.TensorProto.FLOAT)


def test_a_function_that_is_called_where_nobody_looks_has_no_known_shapes() -> None:
    """`g` has an input for an output, so that its calls are not written out; its `x` is not that of the graph."""
    proto = parse(
        "y = L.f(x)\n p, q = L.g(z)",
        "f (x) => (y) { r = Relu(x)\n y = Neg(r) }",
        "g (x) => (y, x) { y = L.f(x) }",
        values="float[1,2,4]",
    )
    proto.graph.input.append(parse("y = L.f(x)", values="float[3,3]").graph.input[0])
    proto.graph.input[1].name = "z"
    known = Side(Files(proto), infer).certain
    assert known.get(("function:L:f:", "r"), (None, 0))[0] is None


def test_a_call_in_a_body_has_no_shapes_of_another_body() -> None:
    """Both bodies have a value `a`; that of the second depends on a shape that nobody knows."""
    proto = parse(
        "one = Constant<value = bool {1}>()\n u = Z.Unknown(x)\n y = If(one) <then_branch = then () => (b) "
        "{ a = Neg(x)\n b = Relu(a) }, else_branch = other () => (c) { a = Neg(u)\n c = L.f(a) }>",
        "f (x) => (y) { r = Relu(x)\n y = Neg(r) }",
        values="float[1,2,4]",
    )
    proto.opset_import.append(onnx.helper.make_opsetid("Z", 1))
    known = Side(Files(proto), infer).certain
    for name in ("x", "r"):
        assert known.get(("function:L:f:", name), (None, 0))[0] is None


@pytest.mark.parametrize("start", ["x", "c"])
def test_a_constant_is_looked_for_behind_thousands_of_nodes(start: str) -> None:
    """Each value is asked of what it is computed of: of the input of the model, or of a constant."""
    count = 3000
    names = [start, *(f"v{index}" for index in range(count))]
    nodes = [node("Add", f"one {before}", after) for before, after in pairwise(names)]
    proto = model([*nodes, node("Mul", f"x {names[-1]}", "y")], {"one": np.ones(3), "c": np.zeros(3)}, (3,))
    found = Side(Files(proto), infer).main.constant(names[-1])
    if start == "x":
        assert found is None
    else:
        assert found is not None
        assert found.tolist() == [count] * 3
