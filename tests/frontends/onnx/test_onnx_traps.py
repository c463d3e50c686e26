"""One regression for each bug that a peer or we have had, and for each way to be wrong that we could think of."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold import Fold, Reason, Refusal
from tests.toys.onnx_graphs import BatchNormalization, evaluate, fuse, model, node, norm, operators, random, statistics

CONV = {"w": random(3, 4, 1, 1), **statistics(3)}


def outcomes(proto: onnx.ModelProto) -> list[str]:
    """ "folded", or the reason, for each BatchNorm; the fused model is checked on the way."""
    return ["folded" if isinstance(each, Fold) else str(each.reason) for each in fuse(proto)[1]]


@pytest.mark.parametrize(
    "between", [node("Dropout", "c", "d mask"), node("MaxPool", "c", "d places", kernel_shape=[1, 1])]
)
def test_a_mask_or_places_that_nobody_reads(between: onnx.NodeProto) -> None:
    """A second output that is no data counts for nothing, in front of the BatchNorm and behind it."""
    constants = {"w": CONV["w"], **statistics(3, sign=1.0)}
    assert outcomes(model([node("Conv", "x w", "c"), between, norm("d", "y")], constants, (2, 4, 3, 3))) == ["folded"]
    downstream = [norm("x", "c"), between, node("Conv", "d w", "y")]
    constants = {"w": CONV["w"], **statistics(4, sign=1.0)}
    assert outcomes(model(downstream, constants, (2, 4, 3, 3))) == ["folded"]


def test_a_second_use_of_the_convolution() -> None:
    proto = model([node("Conv", "x w", "c"), norm("c", "y"), node("Relu", "c", "z")], CONV, (2, 4, 3, 3), outputs="y z")
    assert outcomes(proto) == ["second-use"]


def test_a_convolution_that_is_an_output() -> None:
    proto = model([node("Conv", "x w", "c"), norm("c", "y")], CONV, (2, 4, 3, 3), outputs="y c")
    assert outcomes(proto) == ["graph-output"]


def test_reading_only_the_shape_is_no_second_use() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "n"), node("Shape", "c", "s"), node("Reshape", "n s", "y")]
    assert outcomes(model(nodes, CONV, (2, 4, 3, 3))) == ["folded"]


@pytest.mark.parametrize(
    "reader",
    [
        node("CastLike", "k c", "k2"),
        node("RandomNormalLike", "c", "k2"),
        node("RandomUniformLike", "c", "k2"),
        node("Size", "c", "k2"),
    ],
    ids=lambda reader: reader.op_type,
)
def test_reading_only_the_type_or_shape_is_no_second_use(reader: onnx.NodeProto) -> None:
    """Exporters write CastLike for each constant beside a value."""
    last = node("Cast", "k2", "z", to=TensorProto.DOUBLE)
    around = {"w": CONV["w"], "k": np.asarray(2, np.int64), **statistics(3)}
    upstream = model([node("Conv", "x w", "c"), reader, last, norm("c", "y")], around, (2, 4, 3, 3), outputs="y z")
    assert [each.op_type for each in bnfold.fuse(upstream).graph.node].count("BatchNormalization") == 0
    if reader.op_type in ("CastLike", "Size"):  # whose result is no other one each time
        assert outcomes(upstream) == ["folded"]


def test_a_constant_in_the_type_of_what_folds() -> None:
    """A CastLike that is constant itself, and goes into the kernel together with the BatchNorm."""
    nodes = [node("Conv", "x w", "c"), norm("c", "n"), node("CastLike", "k n", "k2"), node("Mul", "n k2", "y")]
    proto = model(nodes, {**CONV, "k": random(3, 1, 1).astype(np.float32)}, (2, 4, 3, 3))
    fused = fuse(proto)[0]
    assert operators(fused) == ["Conv"]


@pytest.mark.parametrize(("outputs", "folds"), [("y", True), ("a y", True), ("b y", True), ("a b y", False)])
def test_batchnorms_that_make_the_same_of_one_value_fold_together(outputs: str, folds: bool) -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "a"), norm("c", "b", "o_"), node("Concat", "a b", "y", axis=1)]
    same = {f"o_{name}": array for name, array in statistics(3).items()}
    proto = model(nodes, {**CONV, **same}, (2, 4, 3, 3), outputs=outputs)
    assert outcomes(proto) == (["folded", "folded"] if folds else ["second-use", "second-use"])
    assert operators(fuse(proto)[0]).count("BatchNormalization") == (0 if folds else 2)


def test_batchnorms_that_make_almost_the_same_of_one_value_stay() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "a"), norm("c", "b", "o_"), node("Concat", "a b", "y", axis=1)]
    other = {f"o_{name}": array for name, array in statistics(3).items()}
    other["o_beta"] = np.nextafter(other["o_beta"], 9.0)
    assert outcomes(model(nodes, {**CONV, **other}, (2, 4, 3, 3))) == ["second-use", "second-use"]
    third = [*nodes, norm("c", "d"), node("Add", "a d", "z")]
    assert outcomes(model(third, {**CONV, **other}, (2, 4, 3, 3), outputs="y z")) == ["second-use"] * 3


@pytest.mark.parametrize("wide", [True, False], ids=["alone", "beside another"])
def test_an_infinite_variance_makes_its_channel_a_constant(wide: bool) -> None:
    """``gamma (x - mean) / inf + beta`` is beta, which is what the operator's definition says."""
    constants = {**CONV, **statistics(3, "o_"), "var": np.asarray([1.0, np.inf, 2.0])}
    nodes = [node("Conv", "x w", "c"), norm("c", "y" if wide else "d"), *([] if wide else [norm("d", "y", "o_")])]
    fused, found = fuse(model(nodes, constants, (2, 4, 3, 3)))
    assert operators(fused) == ["Conv"]
    assert all(isinstance(each, Fold) for each in found)
    behind = [norm("x", "n"), node("Conv", "n w", "y")]
    constants = {"w": random(2, 3, 1, 1), **statistics(3), "var": np.asarray([1.0, np.inf, 2.0])}
    assert outcomes(model(behind, constants, (2, 3, 3, 3))) == ["folded"]


def test_a_batchnorm_of_infinite_variance_that_stays_takes_nothing_in() -> None:
    """It has no gamma that would make it another map."""
    constants = {**statistics(3), **statistics(3, "o_"), "var": np.asarray([1.0, np.inf, 2.0])}
    proto = model([node("Sigmoid", "x", "s"), norm("s", "c"), norm("c", "y", "o_")], constants, (2, 3, 3, 3))
    assert all(isinstance(each, Fold | Refusal) for each in fuse(proto)[1])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"var": np.asarray([1.0, 1.0, np.nan])}, "its variance is not finite in channel 2"),
        ({"mean": np.asarray([1.0, np.inf, 1.0])}, "its mean is not finite in channel 1"),
        ({"var": np.asarray([1.0, 0.0, 1.0])}, "its variance is negative, or zero with epsilon zero, in channel 1"),
        ({"var": np.asarray([1.0, 1.0, -np.inf])}, "its variance is negative, or zero with epsilon zero, in channel 2"),
        ({"gamma": np.asarray([1.0, 1e300, 1.0]), "var": np.asarray([1.0, 1e-300, 1.0])}, "channel 1"),
    ],
    ids=["not a number", "infinite mean", "zero variance", "minus infinity", "overflow"],
)
def test_a_refusal_for_statistics_names_the_channel(changed: dict[str, np.ndarray], said: str) -> None:
    proto = model([node("Conv", "x w", "c"), norm("c", "y", epsilon=0.0)], {**CONV, **changed}, (2, 4, 3, 3))
    (outcome,) = bnfold.plan(proto)
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.INVALID_PARAMETERS
    assert said in outcome.detail


ENDS = {
    "rectifier": [node("Relu", "c", "d1")],
    "batchnorm": [norm("c", "d1", "o_")],
    "product and bias": [node("MatMul", "c k", "d1"), node("Add", "d1 k", "d2")],
    "convolution and batchnorm": [node("Sin", "c", "d1"), node("Conv", "d1 v", "d2"), norm("d2", "d3", "o_")],
    "batchnorm and convolution": [norm("c", "d1", "o_"), node("Conv", "d1 v", "d2")],
    "sum": [node("Add", "c c", "d1"), norm("d1", "d2", "o_")],
}


@pytest.mark.parametrize("end", ENDS)
def test_a_reader_that_leads_to_no_output_is_no_second_use(end: str) -> None:
    constants = {**CONV, **statistics(3, "o_"), "k": random(3, 3), "v": random(3, 3, 1, 1)}
    proto = model([node("Conv", "x w", "c"), norm("c", "y"), *ENDS[end]], constants, (2, 4, 3, 3))
    outcomes = fuse(proto)[1]
    assert isinstance(outcomes[0], Fold)
    kept = [each.detail for each in outcomes[1:] if isinstance(each, Refusal)]
    assert kept == [] if end == "convolution and batchnorm" else all("no output" in each for each in kept)


def test_what_leads_to_no_output_keeps_operators_from_merging() -> None:
    """The value that it reads would be gone."""
    nodes = [node("Conv", "x w", "c"), node("Conv", "c v", "y"), node("Relu", "c", "d")]
    proto = model(nodes, {"w": random(3, 4, 1, 1), "v": random(3, 3, 1, 1)}, (2, 4, 3, 3))
    assert operators(fuse(proto)[0]) == ["Conv", "Conv", "Relu"]


def test_a_batchnorm_that_leads_to_no_output_stays() -> None:
    """Each would fold into nothing, along one axis and along another."""
    nodes = [
        node("Conv", "x w", "y"),
        node("Sigmoid", "y", "s"),
        norm("s", "n"),
        node("Mul", "n k", "m"),
        node("Transpose", "m", "t", perm=[0, 2, 3, 1]),
    ]
    proto = model(nodes, CONV | {"k": random(6)}, (2, 4, 6, 6), outputs="y")
    (outcome,) = [each for each in fuse(proto)[1] if each.is_batchnorm]
    assert isinstance(outcome, Refusal)


def test_a_reader_of_another_domain_is_a_second_use() -> None:
    """Nobody reads what it makes, but it may do more than that."""
    proto = model([node("Conv", "x w", "c"), norm("c", "y"), node("Relu", "c", "d")], CONV, (2, 4, 3, 3))
    proto.graph.node[2].domain = "org.example"
    proto.opset_import.append(helper.make_opsetid("org.example", 1))
    assert [each.reason for each in bnfold.plan(proto)] == ["second-use"]  # type: ignore[union-attr]


def test_casting_the_content_is_a_second_use() -> None:
    """CastLike reads the content of its first operand, and here that of a value which it reads the type of as well."""
    nodes = [node("Conv", "x w", "c"), norm("c", "y"), node("CastLike", "c c", "z")]
    assert outcomes(model(nodes, CONV, (2, 4, 3, 3), outputs="y z")) == ["second-use"]


def test_concat_reading_one_value_twice_refuses_different_halves() -> None:
    nodes = [node("Conv", "x w", "c"), node("Concat", "c c", "d", axis=1), norm("d", "y")]
    assert outcomes(model(nodes, {"w": CONV["w"], **statistics(6)}, (2, 4, 3, 3))) == ["conflict"]
    halves = {name: np.tile(array, 2) for name, array in statistics(3).items()}
    assert outcomes(model(nodes, {"w": CONV["w"], **halves}, (2, 4, 3, 3))) == ["folded"]


def test_two_convolutions_share_a_weight_and_a_bias() -> None:
    nodes = [node("Conv", "x w b", "c"), norm("c", "y", "one_"), node("Conv", "x w b", "d"), norm("d", "z", "two_")]
    constants = {"w": CONV["w"], "b": random(3), **statistics(3, "one_"), **statistics(3, "two_")}
    assert outcomes(model(nodes, constants, (2, 4, 3, 3), outputs="y z")) == ["folded"] * 2


def test_two_batchnorms_share_their_parameters() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "y"), node("Conv", "x v", "d"), norm("d", "z")]
    constants = {**CONV, "v": random(3, 4, 3, 3)}
    assert outcomes(model(nodes, constants, (2, 4, 5, 5), outputs="y z")) == ["folded"] * 2


@pytest.mark.parametrize("bias", ["", "b"])
def test_convolutions_that_become_the_same_share_what_they_get(bias: str) -> None:
    """A model that calls a part twice (Siamese networks) is no larger for it."""
    nodes = [node("Conv", f"x w {bias}", "c"), norm("c", "y"), node("Conv", f"y w {bias}", "d"), norm("d", "z")]
    constants = {"w": random(3, 3, 1, 1), **({"b": random(3)} if bias else {}), **statistics(3)}
    fused, found = fuse(model(nodes, constants, (2, 3, 3, 3), outputs="y z"))
    assert all(isinstance(each, Fold) for each in found)
    assert {each.name for each in fused.graph.initializer} == {"w_folded", "b_folded" if bias else "y_bias"}


def test_convolutions_that_become_the_same_are_padded_each() -> None:
    """A shift goes through padding where that has another value then, which each call needs."""
    pads = [1, 1, 1, 1]
    alike = {"gamma": np.full(3, 1.5), "beta": np.full(3, 0.5), "mean": np.full(3, 0.25), "var": np.ones(3)}
    nodes = [norm("x", "n"), node("Conv", "n w", "c", pads=pads), node("Sigmoid", "c", "s")]
    nodes += [norm("s", "m"), node("Conv", "m w", "d", pads=pads), node("Sigmoid", "d", "y")]
    fused, found = fuse(model(nodes, {"w": random(3, 3, 3, 3), **alike}, (2, 3, 4, 4)))
    assert all(isinstance(each, Fold) for each in found)
    assert operators(fused).count("Pad") == 2
    assert [each.name for each in fused.graph.initializer if each.name.startswith("w")] == ["w_folded"]


def test_a_shared_weight_stays_for_who_still_reads_it() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "y"), node("Conv", "x w", "z")]
    fused, _ = fuse(model(nodes, CONV, (2, 4, 3, 3), outputs="y z"))
    assert {each.name for each in fused.graph.initializer} == {"w", "w_folded", "y_bias"}


def test_one_convolution_with_two_batchnorms() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "y", "one_"), norm("c", "z", "two_")]
    constants = {"w": CONV["w"], **statistics(3, "one_"), **statistics(3, "two_")}
    assert outcomes(model(nodes, constants, (2, 4, 3, 3), outputs="y z")) == ["second-use"] * 2


def test_a_diamond_that_reaches_one_convolution_twice() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("MaxPool", "c", "p", kernel_shape=[1, 1]),
        node("AveragePool", "c", "q", kernel_shape=[1, 1]),
        node("Add", "p q", "s"),
        norm("s", "y"),
    ]
    positive = {"w": CONV["w"], **statistics(3, sign=1.0)}
    assert outcomes(model(nodes, positive, (2, 4, 3, 3))) == ["folded"]


def test_square_sizes_do_not_hide_the_wrong_axis() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Reshape", "m s", "r"), norm("r", "y")]
    constants = {"w": random(4, 4), "s": np.asarray([4, 4, 4], np.int64), **statistics(4)}
    assert outcomes(model(nodes, constants, (4, 4, 4))) == ["axis-mismatch"]
    turned = [node("MatMul", "x w", "m"), node("Transpose", "m", "r", perm=[1, 2, 0]), norm("r", "y")]
    assert outcomes(model(turned, constants, (4, 4, 4))) == ["folded"]


def test_a_transposed_batch_is_no_channel() -> None:
    nodes = [node("Gemm", "x w", "g"), node("Transpose", "g", "t", perm=[1, 0]), norm("t", "y")]
    assert outcomes(model(nodes, {"w": random(4, 4), **statistics(4)}, (4, 4))) == ["axis-mismatch"]


@pytest.mark.parametrize("taken", ["w_folded", "y_bias", "c_folded", "y_product", "w_folded_2"])
def test_names_that_are_taken(taken: str) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Transpose", "c", "t", perm=[0, 1, 3, 2]),
        norm("t", "y"),
        node("Relu", "x", taken),
    ]
    assert outcomes(model(nodes, CONV, (2, 4, 3, 3), outputs=f"y {taken}")) == ["folded"]


def test_values_on_the_way_get_fresh_names() -> None:
    nodes = [node("Conv", "x w", "c"), node("Transpose", "c", "t", perm=[0, 1, 3, 2]), norm("t", "y")]
    fused, _ = fuse(model(nodes, CONV, (2, 4, 3, 3)))
    assert [list(each.output) for each in fused.graph.node] == [["c_folded"], ["y"]]


def test_an_unread_batchnorm_stays_or_goes_but_is_named() -> None:
    nodes = [node("Sigmoid", "x", "y"), norm("x", "unread")]
    assert outcomes(model(nodes, statistics(4), (2, 4, 3, 3))) == ["graph-input"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"var": np.zeros(3)}, "folded"),
        ({"gamma": np.zeros(3)}, "folded"),
        ({"var": np.asarray([1.0, -0.5, 1.0])}, "invalid-parameters"),
        ({"var": np.asarray([1.0, -1e-7, 1.0])}, "invalid-parameters"),
        ({"mean": np.asarray([1.0, np.nan, 1.0])}, "invalid-parameters"),
        ({"gamma": np.asarray([1.0, np.inf, 1.0])}, "invalid-parameters"),
        ({"gamma": np.ones(4)}, "invalid-parameters"),
        ({"beta": np.ones((3, 1))}, "invalid-parameters"),
    ],
)
def test_odd_parameters(change: dict[str, np.ndarray], expected: str) -> None:
    proto = model([node("Conv", "x w", "c"), norm("c", "y")], {**CONV, **change}, (2, 4, 3, 3))
    (found,) = bnfold.plan(proto)
    assert ("folded" if isinstance(found, Fold) else str(found.reason)) == expected


def half(gamma: float, kernel: float, beta: float = 0.5) -> onnx.ModelProto:
    stats = {name: array.astype(np.float16) for name, array in statistics(3).items()}
    stats["beta"][1] = beta
    stats["gamma"] = np.asarray([1, gamma, 1], np.float16)
    stats["var"] = np.ones(3, np.float16)
    constants = {"w": np.full((3, 4, 1, 1), kernel, np.float16), **stats}
    return model([node("Conv", "x w", "c"), norm("c", "y")], constants, (2, 4, 3, 3), dtype=np.float16, opset=15)


def test_float16_overflow_refuses_and_names_the_channel() -> None:
    (found,) = bnfold.plan(half(1000.0, 100.0))
    assert isinstance(found, Refusal)
    assert (found.reason, found.at) == (Reason.OVERFLOW, "Conv_c")
    assert "channel 1" in found.detail


def test_float16_subnormal_loss_refuses() -> None:
    (found,) = bnfold.plan(half(1e-4, 1.234e-3, 0.0))
    assert isinstance(found, Refusal)
    assert found.reason is Reason.PRECISION_LOSS
    assert isinstance(bnfold.plan(half(0.0, 1.234e-3))[0], Fold)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("size", "beta", "folds"), [(1.0, 0.0, True), (30.0, 0.5, True), (30.0, 0.02, False), (30.0, 0.0, False)], ids=str
)
def test_a_pruned_channel_of_float16_keeps_no_batchnorm(size: float, beta: float, folds: bool, groups: int) -> None:
    """Its weights become subnormal. Beside beta, or the spacing of what it makes, that is nothing; else it is."""
    weights = np.random.default_rng(0).normal(size=(4, 4 // groups, 3, 3)) * 0.1
    variance = size**2 * (weights**2).sum(axis=(1, 2, 3))
    stats = {"gamma": np.array([1, 1e-5, 1, 1]), "beta": np.array([0.1, beta, 0.2, 0.3]), "mean": np.zeros(4)}
    constants = {"w": weights, **stats, "var": variance}
    narrow = {name: array.astype(np.float16) for name, array in constants.items()}
    proto = model([node("Conv", "x w", "c", group=groups), norm("c", "y")], narrow, (2, 4, 5, 5), dtype=np.float16)
    assert isinstance(bnfold.plan(proto)[0], Fold) == folds


def test_an_overflow_bars_the_latest_affine_alone() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "n"), node("Mul", "n k", "y")]
    constants = {"w": np.full((3, 4, 1, 1), 1e30, np.float32), "k": np.full((3, 1, 1), 1e30, np.float32)}
    constants |= {name: array.astype(np.float32) for name, array in statistics(3).items()}
    found = bnfold.plan(model(nodes, constants, (2, 4, 3, 3), dtype=np.float32))
    assert [type(each) for each in found] == [Fold]


def test_bfloat16_is_rounded_once() -> None:
    constants = {"w": random(3, 4, 1, 1), **statistics(3)}
    stored = {name: array.astype(ml_dtypes.bfloat16) for name, array in constants.items()}
    proto = model([node("Conv", "x w", "c"), norm("c", "y")], stored, (2, 4, 3, 3), opset=15, dtype=ml_dtypes.bfloat16)
    fused, (found,) = bnfold.fuse(proto, return_outcomes=True)
    assert isinstance(found, Fold)
    exact = {name: array.astype(np.float64) for name, array in stored.items()}
    scale = exact["gamma"] / np.sqrt(exact["var"] + np.float64(np.float32(1e-5)))
    kernel = onnx_ir.from_proto(next(each for each in fused.graph.initializer if each.name == "w_folded")).numpy()
    error = np.abs(kernel.astype(np.float64) - exact["w"] * scale.reshape(3, 1, 1, 1))
    assert (error <= 2.0**-8 * np.abs(exact["w"] * scale.reshape(3, 1, 1, 1))).all()


def test_a_further_output_that_is_read() -> None:
    pool = node("MaxPool", "c", "p i", kernel_shape=[2, 2])
    nodes = [node("Conv", "x w", "c"), pool, norm("p", "y"), node("Cast", "i", "z", to=TensorProto.DOUBLE)]
    proto = model(nodes, {"w": CONV["w"], **statistics(3, sign=1.0)}, (2, 4, 3, 3), outputs="y z")
    assert outcomes(proto) == ["not-linear"]


def test_a_sum_that_broadcasts_along_the_channels() -> None:
    nodes = [node("Conv", "x w", "a"), node("Conv", "x v", "b"), node("Add", "a b", "s"), norm("s", "y")]
    constants = {**CONV, "v": random(1, 4, 1, 1)}
    assert outcomes(model(nodes, constants, (2, 4, 3, 3))) == ["mixed-channels"]


def test_an_operator_of_another_domain_is_opaque() -> None:
    nodes = [node("Conv", "x w", "c"), helper.make_node("Relu", ["c"], ["r"], domain="custom"), norm("r", "y")]
    proto = model([node("Conv", "x w", "c"), node("Relu", "c", "r"), norm("r", "y")], CONV, (2, 4, 3, 3))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.opset_import.append(helper.make_opsetid("custom", 1))
    (found,) = bnfold.plan(proto)
    assert isinstance(found, Refusal)
    assert "custom.Relu" in found.detail


def test_a_widening_cast_carries_downstream_alone() -> None:
    """In front of the cast, what the BatchNorm makes could overflow float16."""
    cast = node("Cast", "c", "f", to=TensorProto.FLOAT)
    narrow = {"w": random(3, 4, 1, 1, dtype=np.float16)}
    nodes = [node("Conv", "x w", "c"), cast, norm("f", "n"), node("Cast", "n", "y", to=TensorProto.FLOAT16)]
    proto = model(nodes, {**narrow, **statistics(3, dtype=np.float32)}, (2, 4, 3, 3), dtype=np.float16)
    (found,) = bnfold.plan(proto)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.OVERFLOW
    nodes = [node("Sigmoid", "x", "s"), norm("s", "n"), node("Cast", "n", "f", to=TensorProto.FLOAT)]
    nodes += [node("Conv", "f w", "c"), node("Cast", "c", "y", to=TensorProto.FLOAT16)]
    constants = {"w": random(3, 4, 1, 1, dtype=np.float32), **statistics(4, dtype=np.float16)}
    (found,) = bnfold.plan(model(nodes, constants, (2, 4, 3, 3), dtype=np.float16))
    assert isinstance(found, Fold)


def test_a_target_shape_that_a_caller_may_replace() -> None:
    nodes = [node("Conv", "x w", "c"), node("Reshape", "c s", "r"), norm("r", "y")]
    constants = {**CONV, "s": np.asarray([2, 3, 9], np.int64)}
    (found,) = bnfold.plan(model(nodes, constants, (2, 4, 3, 3), overridable=["s"]))
    assert isinstance(found, Refusal)
    assert found.reason is Reason.OVERRIDABLE


def test_a_scale_that_rounds_to_the_same_size_is_still_a_change() -> None:
    resize = node("Resize", "c _ k", "u", mode="linear", axes=[1])
    constants = {**CONV, "k": np.asarray([1.1], np.float32)}
    proto = model([node("Conv", "x w", "c"), resize, norm("u", "y")], constants, (2, 4, 3, 3), opset=18)
    (found,) = bnfold.plan(proto)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.AXIS_MISMATCH


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_an_aspect_ratio_that_is_kept_moves_an_axis_that_keeps_its_size(policy: str) -> None:
    """Channels are scaled by 0.99, and 40 of them rounded up to 40."""
    nodes = [
        node("Conv", "x w", "a"),
        node("Resize", "a _ _ sizes", "r", mode="nearest", keep_aspect_ratio_policy=policy, axes=[1, 2]),
        norm("r", "y"),
    ]
    constants = {"w": random(40, 3, 1, 1), "sizes": np.array([40, 99]), **statistics(40)}
    _, (outcome,) = fuse(model(nodes, constants, (1, 3, 100, 2), opset=19, ir_version=9))
    assert isinstance(outcome, Refusal)


def test_a_shape_far_behind_one_that_a_caller_may_replace() -> None:
    nodes = [
        node("Reshape", "x s", "u"),
        node("Conv", "u w", "a"),
        node("Reshape", "a t", "b"),
        norm("b", "y"),
    ]
    constants = {
        "s": np.array([1, 4, 8, 8]), "t": np.array([1, 4, 64]), "w": random(4, 4, 1, 1), **statistics(4)
    }  # fmt: skip
    proto = model(nodes, constants, (256,), overridable=["s"])
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(3))
    del proto.graph.value_info[:]
    fused = bnfold.fuse(proto)
    feeds = {"x": random(256), "s": np.array([2, 4, 8, 4])}
    expected, actual = (
        ReferenceEvaluator(each, new_ops=[BatchNormalization]).run(None, feeds)[0] for each in (proto, fused)
    )
    np.testing.assert_allclose(actual, expected, 1e-10)


@pytest.mark.parametrize("left_out", ["most", "going"])
def test_a_loop_without_a_count_or_a_condition_is_valid(left_out: str) -> None:
    """Both inputs are optional, though there have to be two."""
    end = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Conv", "a w", "c"), norm("c", "b"), node("Identity", "go", "on")],
        "body",
        [end("i", TensorProto.INT64, []), end("go", TensorProto.BOOL, []), end("a", TensorProto.DOUBLE, [1, 4, 5, 5])],
        [end("on", TensorProto.BOOL, []), end("b", TensorProto.DOUBLE, [1, 4, 5, 5])],
    )
    inputs = ["" if each == left_out else each for each in ("most", "going")]
    constants = {"most": np.array(3), "going": np.array(True), "w": random(4, 4, 1, 1), **statistics(4)}
    proto = model([node("Relu", "x", "y")], constants, (1, 4, 5, 5))
    proto.graph.node[0].CopyFrom(helper.make_node("Loop", [*inputs, "x"], ["y"], name="loop", body=body))
    onnx.checker.check_model(proto)
    (outcome,) = bnfold.plan(proto)
    assert isinstance(outcome, Fold)


@pytest.mark.parametrize("opset", [1, 6])
def test_padding_before_opset_7(opset: int) -> None:
    extra: dict[str, Any] = {"is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {"is_test": 1}
    nodes = [norm("x", "a", **extra), node("Conv", "a w", "y", pads=[1] * 4, kernel_shape=[3, 3])]
    proto = model(nodes, {"w": random(3, 4, 3, 3), **statistics(4)}, (1, 4, 8, 8), opset=opset, ir_version=3)
    onnx.checker.check_model(bnfold.fuse(proto))


def test_a_bias_beside_a_product_from_the_left_before_opset_7() -> None:
    """It has to say along which axis it lies."""
    nodes = [node("MatMul", "w x", "p"), node("Add", "p c", "q", broadcast=1), norm("q", "y", is_test=1)]
    constants = {"w": random(5, 4), "c": np.array([1.5]), **statistics(5)}
    fused = bnfold.fuse(model(nodes, constants, (2, 4, 5), opset=6, ir_version=3))
    (add,) = [each for each in fused.graph.node if each.op_type == "Add"]
    assert {each.name: each.i for each in add.attribute} == {"broadcast": 1, "axis": 1}


def test_a_computed_parameter_that_is_read_twice_goes_once() -> None:
    nodes = [node("Mul", "k k", "square"), node("Conv", "x w", "c")]
    nodes.append(node("BatchNormalization", "c square square mean var", "y"))
    constants = {"w": random(3, 4, 1, 1), "k": random(3), **{name: statistics(3)[name] for name in ("mean", "var")}}
    fused, (outcome,) = fuse(model(nodes, constants, (2, 4, 3, 3)))
    assert isinstance(outcome, Fold)
    assert operators(fused) == ["Conv"]


def test_a_constant_that_one_node_reads_twice_goes_with_it() -> None:
    """As mean and as variance of one BatchNorm, once another that reads it as well is gone."""
    constants = {**CONV, "v": random(3, 4, 1, 1, seed=1), "both": statistics(3)["var"]}
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c both beta mean var", "y"),
        node("Conv", "x v", "d"),
        node("BatchNormalization", "d gamma beta both both", "z"),
    ]
    fused, _ = fuse(model(nodes, constants, (2, 4, 3, 3), outputs="y z"))
    assert operators(fused) == ["Conv", "Conv"]
    assert "both" not in {each.name for each in fused.graph.initializer}


def test_idempotence() -> None:
    fused, _ = fuse(model([node("Conv", "x w", "c"), norm("c", "y")], CONV, (2, 4, 3, 3)))
    again, found = fuse(fused)
    assert found == ()
    assert again.SerializeToString() == fused.SerializeToString()


def branches(then: list[onnx.NodeProto], other: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Conv outside, and an If whose bodies make `t` and `e` from captured values."""
    info = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [2, 3, 3, 3]) for name in ("t", "e", "y")]
    bodies = [
        helper.make_graph(nodes, name, [], [end])
        for nodes, name, end in ((then, "then", info[0]), (other, "else", info[1]))
    ]
    nodes = [
        node("Conv", "x w", "c"),
        helper.make_node("If", ["condition"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [2, 4, 3, 3])]
    constants = [
        numpy_helper.from_array(array, name) for name, array in {**CONV, "condition": np.asarray(True)}.items()
    ]
    graph = helper.make_graph(nodes, "graph", inputs, [info[2]], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_bodies_fold_within_and_not_across_their_border() -> None:
    inside = [node("Conv", "x w", "tc"), norm("tc", "t")]
    proto = branches(inside, [norm("c", "e")])
    fused, found = bnfold.fuse(proto, return_outcomes=True)
    onnx.checker.check_model(fused)
    assert [type(each) for each in found] == [Refusal, Fold] or [type(each) for each in found] == [Fold, Refusal]
    by_scope = {each.scope: each for each in found}
    assert isinstance(by_scope["main/if/then_branch"], Fold)
    refused = by_scope["main/if/else_branch"]
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.SCOPE_BOUNDARY
    assert np.allclose(evaluate(proto)["y"], evaluate(fused)["y"], rtol=1e-12, atol=1e-12)


def test_a_convolution_that_a_body_captures_stays() -> None:
    proto = branches([norm("c", "t")], [node("Relu", "c", "e")])
    fused, (found,) = bnfold.fuse(proto, return_outcomes=True)
    assert isinstance(found, Refusal)
    assert fused.SerializeToString() == bnfold.fuse(fused).SerializeToString()


def test_the_body_of_a_loop_folds() -> None:
    end = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Conv", "a w", "c"), norm("c", "b"), node("Identity", "go", "going")],
        "body",
        [end("i", TensorProto.INT64, []), end("go", TensorProto.BOOL, []), end("a", TensorProto.DOUBLE, [2, 4, 3, 3])],
        [end("going", TensorProto.BOOL, []), end("b", TensorProto.DOUBLE, [2, 4, 3, 3])],
    )
    constants = {"w": random(4, 4, 1, 1), **statistics(4), "times": np.asarray(3), "yes": np.asarray(True)}
    proto = model([node("Relu", "x", "y")], constants, (2, 4, 3, 3))
    proto.graph.node[0].CopyFrom(helper.make_node("Loop", ["times", "yes", "x"], ["y"], name="loop", body=body))
    onnx.checker.check_model(proto)
    fused, (found,) = fuse(proto)
    assert isinstance(found, Fold)
    assert found.scope == "main/loop/body"
    assert operators(fused) == ["Loop"]


def test_the_body_of_a_scan_folds() -> None:
    end = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Gemm", "a w", "c"), norm("c", "b")],
        "body",
        [end("a", TensorProto.DOUBLE, [4, 3])],
        [end("b", TensorProto.DOUBLE, [4, 5])],
    )
    proto = model([node("Relu", "x", "y")], {"w": random(3, 5), **statistics(5)}, (2, 4, 3))
    proto.graph.node[0].CopyFrom(helper.make_node("Scan", ["x"], ["y"], name="scan", body=body, num_scan_inputs=1))
    proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 5
    _, (found,) = fuse(proto)
    assert isinstance(found, Fold)
    assert found.scope == "main/scan/body"


def test_a_function_folds_once_for_all_its_callers() -> None:
    constants = [node("Constant", "", name, value=numpy_helper.from_array(array)) for name, array in CONV.items()]
    body = [*constants, node("Conv", "a w", "c"), norm("c", "b")]
    block = helper.make_function("local", "Block", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto = model([node("Relu", "x", "y"), node("Relu", "x", "z")], {}, (2, 4, 3, 3), outputs="y z", ir_version=9)
    for each in proto.graph.node:
        each.op_type, each.domain = "Block", "local"
    for each in proto.graph.output:
        each.type.tensor_type.shape.dim[1].dim_value = 3
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.append(block)
    onnx.checker.check_model(proto)
    fused, (found,) = bnfold.fuse(proto, return_outcomes=True)
    onnx.checker.check_model(fused)
    assert isinstance(found, Fold)
    assert found.scope == "local.Block"
    assert [each.op_type for each in fused.functions[0].node if each.op_type != "Constant"] == ["Conv"]
    assert np.allclose(evaluate(proto)["y"], evaluate(fused)["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["w", "gamma"])
def test_integers_in_a_function_are_no_weights(name: str) -> None:
    """Inside a function nothing says the type of a value; only the constant itself does."""
    arrays = {**CONV, name: np.ones_like(CONV[name], np.int64)}
    constants = [node("Constant", "", each, value=numpy_helper.from_array(array)) for each, array in arrays.items()]
    body = [*constants, node("Conv", "a w", "c"), norm("c", "b")]
    proto = model([node("Relu", "x", "y")], {}, (2, 4, 3, 3), ir_version=9)
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Block", "local"
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.append(helper.make_function("local", "Block", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    (found,) = bnfold.plan(proto)
    assert isinstance(found, Refusal)


def test_a_constant_that_each_call_of_a_function_gives_folds() -> None:
    arrays = {name: array for name, array in CONV.items() if name != "gamma"}
    constants = [node("Constant", "", each, value=numpy_helper.from_array(array)) for each, array in arrays.items()]
    given = node("Constant", "", "gamma")
    given.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="scale")
    body = [*constants, given, node("Conv", "a w", "c"), norm("c", "b")]
    opsets = [helper.make_opsetid("", 17)]
    block = helper.make_function("local", "Block", ["a"], ["b"], body, opsets, attributes=["scale"])
    scale = numpy_helper.from_array(CONV["gamma"])
    proto = model([node("Relu", "x", "y")], {}, (2, 4, 3, 3), ir_version=9)
    proto.graph.node[0].CopyFrom(helper.make_node("Block", ["x"], ["y"], domain="local", scale=scale))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.append(block)
    onnx.checker.check_model(proto)
    fused, (found,) = bnfold.fuse(proto, return_outcomes=True)
    assert isinstance(found, Fold)
    assert operators(fused) == ["Conv"]


@pytest.mark.parametrize("given", ["parameters", "epsilon"])
def test_what_the_call_of_a_function_gives_folds_in_its_opset(given: str) -> None:
    """As exporters write them: a function for each module or operator, whose weights are its inputs."""
    parameters = ["w", "gamma", "beta", "mean", "var"]
    body = [node("Conv", "a w", "c"), node("Cast", "gamma", "scale", to=TensorProto.DOUBLE),
            node("BatchNormalization", "c scale beta mean var", "b")]  # fmt: skip
    body[-1].attribute.add(name="epsilon", type=onnx.AttributeProto.FLOAT, ref_attr_name="eps")
    if given == "epsilon":
        stored = [node("Constant", "", each, value=numpy_helper.from_array(CONV[each])) for each in parameters]
        body, parameters = [*stored, *body], []
    opsets = [helper.make_opsetid("", 17)]
    block = helper.make_function("local", "Block", ["a", *parameters], ["b"], body, opsets, attributes=["eps"])
    proto = model([node("Relu", "x", "y")], CONV, (2, 4, 3, 3), ir_version=9)
    call = helper.make_node("Block", ["x", *parameters], ["y"], domain="local", eps=1e-3)
    proto.graph.node[0].CopyFrom(call)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.append(block)
    onnx.checker.check_model(proto)
    fused, (found,) = bnfold.fuse(proto, return_outcomes=True)
    assert isinstance(found, Fold)
    assert "BatchNormalization" not in operators(fused)
    proto.functions[0].opset_import[0].version = 16  # whose operators are those of 17
    (found,) = bnfold.plan(proto)
    assert isinstance(found, Fold)
    proto.functions[0].opset_import[0].version = 14  # whose nodes cannot stand among those of the graph
    (found,) = bnfold.plan(proto)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.FUNCTION_INPUT
    assert found.advice is not None
    assert "the same opsets" in found.advice


def test_sparse_weights_fold_and_others_stay_sparse() -> None:
    values = numpy_helper.from_array(np.asarray([1.5, -2.0]), "w")
    indices = numpy_helper.from_array(np.asarray([0, 7], np.int64), "w_indices")
    proto = model(
        [node("Conv", "x w", "c"), norm("c", "y"), node("Conv", "x w", "z")], CONV, (2, 4, 3, 3), outputs="y z"
    )
    dense = next(each for each in proto.graph.initializer if each.name == "w")
    proto.graph.initializer.remove(dense)
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4, 1, 1]))
    fused, (found,) = bnfold.fuse(proto, return_outcomes=True)
    assert isinstance(found, Fold)
    assert [each.values.name for each in fused.graph.sparse_initializer] == ["w"]
    folded = {each.name: numpy_helper.to_array(each) for each in fused.graph.initializer}["w_folded"]
    assert np.count_nonzero(folded) == 2


def test_a_weight_that_is_data_elsewhere() -> None:
    nodes = [node("Conv", "x w", "c"), norm("c", "y"), node("Relu", "w", "z")]
    fused, _ = fuse(model(nodes, CONV, (2, 4, 3, 3), outputs="y z"))
    assert operators(fused) == ["Conv", "Relu"]


MISSING: dict[str, tuple[dict[str, Any], int | str, bool]] = {
    # attributes, the size of the data, whether a window can lie wholly in padding
    "a gap as long as the data": ({"kernel_shape": [2, 1], "dilations": [3, 1], "pads": [1, 0, 1, 0]}, 2, True),
    "a gap shorter than the data": ({"kernel_shape": [2, 1], "dilations": [3, 1], "pads": [1, 0, 1, 0]}, 3, False),
    "a gap, and data of any size": ({"kernel_shape": [2, 1], "dilations": [3, 1], "pads": [1, 0, 1, 0]}, "h", True),
    "a gap without padding": ({"kernel_shape": [2, 1], "dilations": [3, 1]}, "h", False),
    "a gap, and data of any size in its middle": (
        {"kernel_shape": [3, 1], "dilations": [3, 1], "pads": [3, 0, 3, 0]}, "h", False
    ),
    "a gap and padding that follows from the size": (
        {"kernel_shape": [2, 1], "dilations": [3, 1], "auto_pad": "SAME_UPPER"}, "h", True
    ),
    "padding that follows from the size": (
        {"kernel_shape": [3, 1], "strides": [2, 1], "auto_pad": "SAME_UPPER"}, "h", False
    ),
    "a last window behind the data": ({"kernel_shape": [1, 1], "strides": [2, 1], "ceil_mode": 1}, 4, True),
    "a last window at the end of the data": ({"kernel_shape": [1, 1], "strides": [2, 1], "ceil_mode": 1}, 5, False),
    "a last window, and data of any size": ({"kernel_shape": [2, 1], "strides": [3, 1], "ceil_mode": 1}, "h", True),
    "an ordinary last window": ({"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, "h", False),
    "an ordinary window": ({"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}, "h", False),
    "a pyramid's window": ({"kernel_shape": [5, 5], "pads": [2] * 4}, "h", False),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("downstream", [False, True])
def test_the_largest_of_nothing_is_no_value_of_the_data(name: str, downstream: bool) -> None:
    """A runtime has the lowest number there, whatever the data is multiplied with."""
    attributes, size, misses = MISSING[name]
    before, after = ("p", "y") if downstream else ("c", "p")
    pool = node("MaxPool", before, after, **attributes)
    upstream = [node("Conv", "x w", "c"), pool, norm("p", "y")]
    nodes = [norm("x", "p"), pool, node("Conv", "y w", "z")] if downstream else upstream
    constants = {"w": CONV["w"], **statistics(4 if downstream else 3, sign=1.0)}
    proto = model(nodes, constants, (2, 4, size, 9), outputs="z" if downstream else "y")
    if misses:
        (found,) = bnfold.plan(proto)
        assert isinstance(found, Refusal)
        assert downstream or found.reason is Reason.BORDER
        assert f"MaxPool_{after}: a window of it can lie wholly in padding" in found.detail
    else:
        dims = {"h": 7}
        fused, (outcome,) = bnfold.fuse(proto, return_outcomes=True)
        assert isinstance(outcome, Fold)
        for key, value in evaluate(proto, dims).items():
            if key in "yz" and key == proto.graph.output[0].name:
                np.testing.assert_allclose(evaluate(fused, dims)[key], value, 1e-10)


@pytest.mark.parametrize(("size", "direction"), [(2, "scale upstream"), (3, "upstream")])
def test_the_mean_of_nothing_takes_no_shift(size: int, direction: str) -> None:
    """onnxruntime has zero there: it stays zero if the data is scaled, but not if it is shifted."""
    pool = node("AveragePool", "c", "p", kernel_shape=[2, 1], dilations=[3, 1], pads=[1, 0, 1, 0])
    nodes, constants = [node("Conv", "x w", "c"), pool, norm("p", "y")], {"w": CONV["w"], **statistics(3)}
    (found,) = bnfold.plan(model(nodes, constants, (2, 4, size, 3), opset=19, ir_version=9))
    assert isinstance(found, Fold)
    assert found.direction == direction
    constants |= {"beta": np.zeros(3), "mean": np.zeros(3)}
    (found,) = bnfold.plan(model(nodes, constants, (2, 4, size, 3), opset=19, ir_version=9))
    assert isinstance(found, Fold)


@pytest.mark.parametrize(
    "reduce",
    [
        node("ReduceMax", "c", "p", axes=[2]),
        node("ReduceMean", "c", "p", axes=[2]),
        node("GlobalMaxPool", "c", "p"),
        node("GlobalAveragePool", "c", "p"),
    ],
)
@pytest.mark.parametrize(("size", "expected"), [(0, Refusal), (1, Fold)])
def test_an_axis_that_is_empty_is_not_reduced_to_a_value_of_the_data(
    reduce: onnx.NodeProto, size: int, expected: type
) -> None:
    nodes = [node("Conv", "x w", "c"), reduce, norm("p", "y")]
    (found,) = bnfold.plan(model(nodes, {"w": CONV["w"], **statistics(3, sign=1.0)}, (2, 4, size, 3)))
    assert isinstance(found, expected)


SQUARE = {"w": random(3, 4, 1, 1), "k": np.asarray([2.0, 3.0, 5.0])}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(
    ("attributes", "aligned"),
    [
        ({"broadcast": 1}, None),  # along the width, which is as long as there are channels
        ({"broadcast": 1, "axis": 3}, None),
        ({"broadcast": 1, "axis": 2}, None),
        ({"broadcast": 1, "axis": 1}, (3, 1, 1)),
        ({"broadcast": 1, "axis": -3}, None),  # which opsets below 7 do not know
        ({"axis": 1}, None),  # which broadcasts nothing
    ],
)
def test_below_opset_7_a_constant_lies_along_its_axis(
    op: str, attributes: dict[str, int], aligned: tuple[int, ...] | None
) -> None:
    nodes = [node("Conv", "x w", "c"), node(op, "c k", "y", **attributes)]
    fused = bnfold.fuse(model(nodes, SQUARE, (2, 4, 3, 3), opset=6))
    assert operators(fused) == (["Conv", op] if aligned is None else ["Conv"])
    if aligned is not None:
        modern = [node("Conv", "x w", "c"), node(op, "c k", "y")]
        expected = evaluate(model(modern, {"w": SQUARE["w"], "k": SQUARE["k"].reshape(aligned)}, (2, 4, 3, 3)))
        np.testing.assert_allclose(evaluate(fused)["y"], expected["y"], 1e-10)


def test_below_opset_7_a_vector_in_front_is_not_broadcast() -> None:
    """Were it the bias of the product, the new one would be another vector in front."""
    nodes = [node("MatMul", "x w", "p"), node("Add", "k p", "s"), norm("s", "y", is_test=1)]
    constants = {"w": random(4, 3), "k": random(1, 3), **statistics(3)}
    fused = bnfold.fuse(model(nodes, constants, (1, 4), opset=6))
    assert operators(fused) == ["MatMul", "Add"]
    (add,) = [each for each in fused.graph.node if each.op_type == "Add"]
    assert add.input[1].endswith("bias")
    assert {each.name: each.i for each in add.attribute} == {"broadcast": 1, "axis": 1}
    fuse(model(nodes, constants, (1, 4), opset=6))
    constants["k"] = random(3)  # which the opset does not broadcast at all
    (found,) = bnfold.plan(model(nodes, constants, (2, 4), opset=6))
    assert isinstance(found, Refusal)


def test_below_opset_7_a_gamma_that_is_computed_along_an_axis() -> None:
    computed = [node("Mul", "m k", "n", broadcast=1, axis=0), node("Reshape", "n s", "gamma")]
    nodes = [*computed, node("Conv", "x w", "c"), norm("c", "y", is_test=1)]
    constants = {**CONV, "m": random(3, 3), "k": random(3), "s": np.asarray([9], np.int64), "w": random(9, 4, 1, 1)}
    constants |= {name: array for name, array in statistics(9).items() if name != "gamma"}
    del constants["gamma"]
    fused = bnfold.fuse(model(nodes, constants, (2, 4, 3, 3), opset=6))
    gamma = (constants["m"] * constants["k"][:, None]).reshape(9)
    stored = [node("Conv", "x w", "c"), norm("c", "y")]
    expected = evaluate(model(stored, {**constants, "gamma": gamma}, (2, 4, 3, 3)))["y"]
    assert operators(fused) == ["Conv"]
    np.testing.assert_allclose(evaluate(fused)["y"], expected, 1e-10)


@pytest.mark.parametrize(("axis", "expected"), [(1, Refusal), (2, Fold)])
def test_below_opset_6_a_tile_has_one_axis(axis: int, expected: type) -> None:
    nodes = [node("Conv", "x w", "c"), node("Tile", "c n a", "t")]
    nodes += [norm("t", "y", is_test=1, consumed_inputs=[0, 0, 0, 1, 1])]
    channels = 4 if axis == 1 else 2
    constants = {"w": random(2, 4, 1, 1), "n": np.asarray(2.0), "a": np.asarray(float(axis)), **statistics(channels)}
    (found,) = bnfold.plan(model(nodes, constants, (2, 4, 3, 3), opset=1))
    assert isinstance(found, expected)


def test_a_table_whose_rows_are_taken_asks_for_no_more_than_them() -> None:
    nodes = [node("Gather", "table places", "k"), node("Add", "x k", "a"), node("Conv", "a w", "c"), norm("c", "y")]
    constants = {"table": random(1 << 15, 9), "places": np.arange(1 << 8), **CONV}
    assert outcomes(model(nodes, constants, (1, 4, 1 << 8, 9))) == ["folded"]


def test_a_constant_that_expands_without_bounds_is_not_evaluated() -> None:
    huge = [node("ConstantOfShape", "dims", "k", value=numpy_helper.from_array(np.ones(1)))]
    nodes = [*huge, node("Conv", "x k", "c"), norm("c", "y")]
    constants = {**statistics(3), "dims": np.asarray([3, 4, 1 << 20, 1 << 20], np.int64)}
    proto = model([node("Conv", "x w", "c"), norm("c", "y")], CONV, (2, 4, 3, 3))
    del proto.graph.node[:]
    del proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    (found,) = bnfold.plan(proto)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.NOT_CONSTANT
    assert "asks for" in found.detail


@pytest.mark.parametrize("merge", [True, False])
def test_products_in_a_row_that_both_get_a_bias(merge: bool) -> None:
    """The first one's bias is an Add that is put in; the second one is written after that, and reads a new value."""
    nodes = [
        node("MatMul", "x w", "c"),
        norm("c", "n"),
        node("MatMul", "n v", "d"),
        norm("d", "m"),
        node("Relu", "n", "z"),
    ]
    nodes += [node("Relu", "m", "y")]
    proto = model(nodes, {"w": random(4, 3), "v": random(3, 3), **statistics(3)}, (2, 4), outputs="y z")
    fused = bnfold.fuse(proto, merge=merge)
    assert operators(fused) == ["MatMul", "Add", "MatMul", "Add", "Relu", "Relu"]
    fuse(proto)


def test_float64_overflow_refuses_without_a_warning() -> None:
    """The product is not even finite in the type in which it is computed."""
    stats = statistics(4) | {"gamma": np.full(4, 1e10), "var": np.ones(4)}
    nodes = [node("Conv", "x w", "c"), norm("c", "y")]
    (found,) = bnfold.plan(model(nodes, {"w": np.full((4, 3, 1, 1), 1e305), **stats}, (1, 3, 2, 2)))
    assert isinstance(found, Refusal)
    assert found.reason is Reason.OVERFLOW


@pytest.mark.parametrize("carrier", [[], [node("MaxPool", "a", "b", kernel_shape=[1, 1])]], ids=["none", "a carrier"])
def test_a_scale_of_zero_does_not_go_where_two_batchnorms_would_be_equal(carrier: list[onnx.NodeProto]) -> None:
    """Pushed into both, it would let them go upstream together, which is right and was not proved."""
    last = carrier[0].output[0] if carrier else "a"
    first, second, third = norm("r", "a", "p"), norm(last, "c", "q"), norm(last, "d", "s")
    nodes = [node("Conv", "x w", "v"), node("Relu", "v", "r"), first, *carrier, second, third]
    nodes += [node("Relu", "c", "y"), node("Sigmoid", "d", "z")]
    unit = {"mean": np.zeros(2), "var": np.full(2, 1 - float(np.float32(1e-5)))}
    maps = {"p": ([0.0, 2.0], [1.0, 1.0]), "q": ([1.0, 1.0], [-1.0, -1.0]), "s": ([3.0, 1.0], [-3.0, -1.0])}
    constants = {"w": random(2, 4, 1, 1)}
    for prefix, (gamma, beta) in maps.items():
        constants |= {prefix + name: array for name, array in unit.items()}
        constants |= {f"{prefix}gamma": np.array(gamma), f"{prefix}beta": np.array(beta)}
    assert outcomes(model(nodes, constants, (2, 4, 3, 3), outputs="y z")) == ["folded", "folded", "second-use"]
