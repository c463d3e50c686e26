"""Shifts that the other readers of a value take back: pre-activation networks, and what must stop them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnfold
from bnfold import Fold, Outcome, Refusal
from bnfold.graph.outcome import Reason
from tests.toys.onnx_graphs import Array, evaluate, fuse, model, node, norm, operators, random

IMAGE = (2, 3, 6, 6)
C = 4


def centred(prefix: str, channels: int = C, **vectors: Any) -> dict[str, Array]:
    """Parameters of a BatchNorm whose shift over its scale is about a deviation of the data."""
    generator = np.random.default_rng(len(prefix) + channels)
    found = {
        "gamma": generator.uniform(0.5, 1.5, channels),
        "beta": generator.uniform(-0.5, 0.5, channels),
        "mean": generator.uniform(-0.5, 0.5, channels),
        "var": generator.uniform(0.5, 1.5, channels),
    }
    return {prefix + name: np.asarray(array, np.float64) for name, array in (found | vectors).items()}


def kernel(out: int = C, fan_in: int = C, taps: int = 1, seed: int = 0) -> Array:
    return random(out, fan_in, taps, taps, seed=seed) / np.sqrt(fan_in * taps**2)


def block(index: int, taps: int = 3) -> list[onnx.NodeProto]:
    """``s' = s + conv(relu(norm(s)))``, as in ResNetV2."""
    return [
        norm(f"s{index}", f"n{index}", f"p{index}"),
        node("Relu", f"n{index}", f"r{index}"),
        node("Conv", f"r{index} k{index}", f"c{index}", pads=[taps // 2] * 4),
        node("Add", f"s{index} c{index}", f"s{index + 1}"),
    ]


def chain(blocks: int, end: Sequence[onnx.NodeProto], **constants: Array) -> onnx.ModelProto:
    """A stem, blocks, and how the stream ends."""
    nodes = [node("Conv", "x stem", "s0", pads=[1] * 4)]
    known = {"stem": kernel(C, 3, 3), "head": kernel(5, C)}
    for index in range(blocks):
        nodes += block(index)
        known |= {f"k{index}": kernel(C, C, 3, seed=index), **centred(f"p{index}")}
    return model([*nodes, *end], known | constants, IMAGE)


def kept(outcomes: Sequence[Outcome]) -> dict[str, tuple[Reason, str]]:
    """Of each BatchNorm that stays, the reason and the place."""
    return {each.batchnorm: (each.reason, each.at) for each in outcomes if isinstance(each, Refusal)}


def directions(outcomes: Sequence[Outcome]) -> list[str]:
    return [each.direction for each in outcomes if isinstance(each, Fold)]


def behind(value: str, prefix: str = "last") -> list[onnx.NodeProto]:
    """A BatchNorm, a Relu and a convolution, which make the output."""
    return [norm(value, "nl", prefix), node("Relu", "nl", "rl"), node("Conv", "rl head", "y")]


# What folds


def test_a_pre_activation_network_keeps_no_batchnorm() -> None:
    proto = chain(6, behind("s6"), **centred("last"))
    fused, outcomes = fuse(proto, 1e-12)
    assert "BatchNormalization" not in operators(fused)
    assert directions(outcomes) == ["both"] * 7
    expected, actual = evaluate(proto)["y"], evaluate(fused)["y"]
    assert np.abs(expected - actual).max() <= 4e-15 * np.abs(expected).max()


def test_a_stream_that_leaves_the_graph_takes_its_shift_back_in_the_block_before() -> None:
    fused, outcomes = fuse(chain(2, [node("Relu", "s2", "y")]), 1e-12)
    assert "BatchNormalization" not in operators(fused)
    assert [each.into for each in outcomes if isinstance(each, Fold)] == [
        ("Conv_s0", "Conv_c0"),
        ("Conv_c0", "Conv_c1"),
    ]


def test_a_shift_rides_on_to_the_next_batchnorm_where_the_block_cannot_take_it_back() -> None:
    """The block ends in a Sigmoid; the next BatchNorm stays, and takes the shift into its mean."""
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:3],
        node("Sigmoid", "c0", "g"),
        node("Add", "s0 g", "s1"),
        norm("s1", "n1", "p1"),
        node("Sigmoid", "n1", "y"),
    ]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3), **centred("p0"), **centred("p1")}
    fused, outcomes = fuse(model(nodes, constants, IMAGE), 1e-12)
    assert kept(outcomes) == {"BatchNormalization_n1": (Reason.NOT_LINEAR, "Sigmoid_g")}
    assert [each.into for each in outcomes if isinstance(each, Fold)] == [
        ("Conv_s0", "Conv_c0", "BatchNormalization_n1"),
    ]
    assert operators(fused).count("BatchNormalization") == 1


def test_a_shift_does_not_ride_on_to_a_batchnorm_whose_data_is_small_beside_it() -> None:
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:3],
        node("Sigmoid", "c0", "g"),
        node("Sub", "s0 g", "s1"),
        norm("s1", "n1", "p1"),
        node("Sigmoid", "n1", "y"),
    ]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3)}
    constants |= {**centred("p0"), **centred("p1", mean=np.zeros(C), var=np.full(C, 1e-6))}
    _, outcomes = fuse(model(nodes, constants, IMAGE), 1e-12)
    assert kept(outcomes)["BatchNormalization_n0"] == (Reason.CANCELLATION, "BatchNormalization_n1")


@pytest.mark.parametrize("op", ["Sub", "Sum"])
@pytest.mark.parametrize("order", ["s0 c0", "c0 s0"])
def test_sums_of_any_sign_take_a_shift_back(op: str, order: str) -> None:
    nodes = [node("Conv", "x stem", "s0"), *block(0)[:3], node(op, order, "s1"), node("Sigmoid", "s1", "y")]
    fused, _ = fuse(model(nodes, {"stem": kernel(C, 3), "k0": kernel(C, C, 3), **centred("p0")}, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)


def test_a_value_added_to_itself_takes_half_of_a_shift() -> None:
    nodes = [node("Conv", "x stem", "a"), node("Add", "a a", "s0"), *block(0), node("Sigmoid", "s1", "y")]
    fused, _ = fuse(model(nodes, {"stem": kernel(C, 3), "k0": kernel(C, C, 3), **centred("p0")}, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)


def test_two_sums_in_a_diamond() -> None:
    """The stream is read by two sums, which are added again: each block takes its part back."""
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:3],
        node("Conv", "r0 k1", "c1"),
        node("Add", "s0 c0", "a"),
        node("Sub", "c1 s0", "b"),
        node("Add", "a b", "s1"),
        node("Sigmoid", "s1", "y"),
    ]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3), "k1": kernel(), **centred("p0")}
    fused, outcomes = fuse(model(nodes, constants, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)
    assert directions(outcomes) == ["both"]


def test_pools_and_slices_carry_a_shift_of_the_stream() -> None:
    """A padded MaxPool pads with what is smaller than anything, which no shift changes."""
    nodes = [
        node("Conv", "x stem", "a"),
        node("MaxPool", "a", "s0", kernel_shape=[3, 3], pads=[1] * 4),
        *block(0)[:3],
        node("AveragePool", "s0", "d", kernel_shape=[1, 1], strides=[2, 2]),
        node("MaxPool", "c0", "e", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("Add", "d e", "s1"),
        node("Sigmoid", "s1", "y"),
    ]
    fused, outcomes = fuse(model(nodes, {"stem": kernel(C, 3), "k0": kernel(C, C, 3), **centred("p0")}, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)
    (fold,) = outcomes
    assert isinstance(fold, Fold)
    assert fold.through == ("MaxPool_s0", "Relu_r0", "AveragePool_d", "MaxPool_e", "Add_s1")


def test_a_convolution_without_padding_takes_a_shift_into_its_bias() -> None:
    """As the one on the short cut of a network that halves its image."""
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:3],
        node("Conv", "s0 k1", "d"),
        node("Add", "d c0", "s1"),
        node("Sigmoid", "s1", "y"),
    ]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3), "k1": kernel(), **centred("p0")}
    fused, outcomes = fuse(model(nodes, constants, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)
    (fold,) = outcomes
    assert isinstance(fold, Fold)
    assert fold.into == ("Conv_s0", "Conv_c0", "Conv_d")


@pytest.mark.parametrize("is_split", [True, False])
def test_parts_of_one_value_shift_each_for_itself(is_split: bool) -> None:
    """As in dual path networks: one part is added to, the other one joined again."""
    nodes = [
        node("Conv", "x stem", "s"),
        node("Split", "s sizes", "a b", axis=1),
        node("Conv", "x other", "t"),
        node("Add", "a t", "d"),
        node("Concat", "d b", "s0", axis=1),
        *block(0)[:3],
        node("Concat", "b d", "e", axis=1),
        node("Sub", "e c0", "s1"),
        node("Sigmoid", "s1", "y"),
    ]
    if not is_split:
        nodes[1:2] = [node("Gather", "s first", "a", axis=1), node("Gather", "s second", "b", axis=1)]
    constants = {"stem": kernel(C, 3), "other": kernel(2, 3), "k0": kernel(C, C, 3), **centred("p0")}
    constants |= {"sizes": np.array([2, 2]), "first": np.array([0, 1]), "second": np.array([2, 3])}
    fused, outcomes = fuse(model(nodes, constants, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)
    assert directions(outcomes) == ["both"]


def test_a_batchnorm_in_front_of_a_border_goes_both_ways() -> None:
    """Nothing else reads its input: what stops it is the sum in front of it, and the padding behind."""
    nodes = [
        node("Conv", "x stem", "a"),
        node("Sigmoid", "x", "z"),
        node("Add", "a t", "b"),
        norm("b", "n", "p"),
        node("Conv", "n k", "y", pads=[1] * 4),
    ]
    nodes[2] = node("Add", "a z", "b")
    constants = {"stem": kernel(3, 3), "k": kernel(C, 3, 3), **centred("p", 3, gamma=[1.0, -2.0, 0.5])}
    fused, outcomes = fuse(model(nodes, constants, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)
    assert directions(outcomes) == ["both"]


def test_a_dense_network_folds_the_batchnorm_that_reads_new_features_first() -> None:
    """Its shift goes through every Concat into the BatchNorms of the later layers, which stay."""
    nodes = [node("Conv", "x stem", "s0")]
    constants = {"stem": kernel(C, 3), "head": kernel(5, C + 4)}
    for index in range(2):
        channels = C + 2 * index
        nodes += [*block(index)[:3], node("Concat", f"s{index} c{index}", f"s{index + 1}", axis=1)]
        constants |= {f"k{index}": kernel(2, channels, 3), **centred(f"p{index}", channels)}
    proto = model([*nodes, *behind("s2")], constants | centred("last", C + 4), IMAGE)
    _, outcomes = fuse(proto, 1e-12)
    assert directions(outcomes) == ["both"]
    assert {reason for reason, _ in kept(outcomes).values()} == {Reason.NONLINEAR}


# What stays


def test_a_stream_that_is_an_output_stays() -> None:
    proto = chain(1, [node("Identity", "s0", "z"), node("Relu", "s1", "y")])
    proto.graph.output.append(helper.make_tensor_value_info("s0", TensorProto.DOUBLE, (2, C, 6, 6)))
    _, outcomes = fuse(proto)
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.GRAPH_OUTPUT, "Conv_s0")}


def test_a_stream_that_ends_in_an_output_stays_where_no_block_takes_its_shift_back() -> None:
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:3],
        node("Sigmoid", "c0", "g"),
        node("Add", "s0 g", "y"),
    ]
    _, outcomes = fuse(model(nodes, {"stem": kernel(C, 3), "k0": kernel(C, C, 3), **centred("p0")}, IMAGE))
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.GRAPH_OUTPUT, "Add_y")}


@pytest.mark.parametrize("bias", [np.zeros(C), np.full(C, 0.5)])
def test_a_padded_convolution_cannot_take_a_shift_back(bias: Array) -> None:
    """Not even where one number would pad it: that would cost an operator."""
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:3],
        node("Conv", "s0 k1", "d", pads=[1] * 4),
        node("Add", "d c0", "s1"),
        node("Sigmoid", "s1", "y"),
    ]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3), "k1": kernel(C, C, 3), **centred("p0")}
    constants |= {"p0gamma": np.ones(C), "p0var": np.ones(C), "p0beta": bias, "p0mean": np.full(C, -0.25)}
    _, outcomes = fuse(model(nodes, constants, IMAGE))
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.BORDER, "Conv_d")}


def test_a_batchnorm_that_is_read_twice_folds_only_where_both_take_its_scale() -> None:
    """A Relu and a Sigmoid read it; then two Relus, as in a block that changes its channels."""
    start = [node("Conv", "x stem", "s0"), *block(0)]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3), "k1": kernel(), **centred("p0")}
    ends = [node("Sigmoid", "n0", "q"), node("Relu", "n0", "q")]
    for end, folds in zip(ends, (0, 1), strict=True):
        nodes = [*start, end, node("Conv", "q k1", "d"), node("Add", "s1 d", "e"), node("Sigmoid", "e", "y")]
        _, outcomes = fuse(model(nodes, constants, IMAGE), 1e-12)
        assert len(directions(outcomes)) == folds


def test_two_batchnorms_of_one_value_shift_it_once() -> None:
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:3],
        norm("s0", "m", "q"),
        node("Relu", "m", "o"),
        node("Conv", "o k1", "d"),
        node("Add", "d c0", "s1"),
        node("Sigmoid", "s1", "y"),
    ]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3), "k1": kernel(), **centred("p0"), **centred("q")}
    _, outcomes = fuse(model(nodes, constants, IMAGE), 1e-12)
    assert directions(outcomes) == ["both"]
    assert kept(outcomes) == {"BatchNormalization_m": (Reason.NONLINEAR, "Relu_r0")}


def test_scales_of_mixed_signs_name_the_channel() -> None:
    proto = chain(1, [node("Sigmoid", "s1", "y")], **centred("p0", gamma=[1.0, 0.5, -1.0, -2.0]))
    _, outcomes = fuse(proto)
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.NEGATIVE_SCALE, "Relu_r0")}
    (refusal,) = outcomes
    assert isinstance(refusal, Refusal)
    assert "channel 2 is negative" in refusal.detail


def test_a_negative_scale_is_not_the_reason_where_the_shift_has_nowhere_to_go() -> None:
    nodes = [*block(0), node("Sigmoid", "s1", "y")]
    nodes = [node("Sigmoid", "x", "s0"), *nodes]
    constants = {"k0": kernel(3, 3, 3), **centred("p0", 3, gamma=[1.0, -1.0, 1.0])}
    _, outcomes = fuse(model(nodes, constants, IMAGE))
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.NOT_LINEAR, "Sigmoid_s0")}


def test_a_scale_of_zero_stops_a_shift_and_nothing_else() -> None:
    dead = {"p0gamma": np.asarray([1.0, 0.0, 1.0, 1.0])}
    constants = {**centred("p0"), **dead}
    _, outcomes = fuse(chain(1, [node("Sigmoid", "s1", "y")], **constants))
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.SHIFT, "BatchNormalization_n0")}
    constants["p0beta"] = np.where(np.arange(C) == 1, 0, constants["p0beta"])
    fused, _ = fuse(chain(1, [node("Sigmoid", "s1", "y")], **constants), 1e-12)
    assert "BatchNormalization" not in operators(fused)


@pytest.mark.parametrize("is_alike", [True, False])
def test_a_value_that_is_joined_to_itself_shifts_in_one_way(is_alike: bool) -> None:
    parameters = {name: np.tile(array[:2], 2) if is_alike else array for name, array in centred("p0").items()}
    nodes = [node("Conv", "x stem", "a"), node("Concat", "a a", "s0", axis=1), *block(0), node("Sigmoid", "s1", "y")]
    fused, outcomes = fuse(model(nodes, {"stem": kernel(2, 3), "k0": kernel(C, C, 3), **parameters}, IMAGE), 1e-12)
    if is_alike:
        assert "BatchNormalization" not in operators(fused)
    else:
        assert kept(outcomes) == {"BatchNormalization_n0": (Reason.CONFLICT, "Concat_s0")}


def test_a_stream_that_is_read_as_slopes_stays() -> None:
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0),
        node("Sigmoid", "x", "z"),
        node("Conv", "z k1", "q"),
        node("PRelu", "q s0", "d"),
        node("Add", "d s1", "e"),
        node("Sigmoid", "e", "y"),
    ]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3), "k1": kernel(C, 3), **centred("p0")}
    _, outcomes = fuse(model(nodes, constants, IMAGE))
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.NOT_LINEAR, "PRelu_d")}


def test_what_joins_the_stream_to_a_scaled_value_stays() -> None:
    """The scale and the shift would meet in one value."""
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:2],
        node("Concat", "r0 s0", "j", axis=1),
        node("Conv", "j k0", "c0"),
        node("Sigmoid", "c0", "y"),
    ]
    _, outcomes = fuse(model(nodes, {"stem": kernel(C, 3), "k0": kernel(C, 2 * C), **centred("p0")}, IMAGE))
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.CONFLICT, "Concat_j")}


def test_an_addition_that_is_broadcast_along_the_channels_takes_no_shift_back() -> None:
    """``[N, C, H, W] + [N, 1, H, W]``: the other operand has one number for all channels."""
    nodes = [*block(0)[:3], node("Add", "s0 c0", "s1"), node("Sigmoid", "s1", "y")]
    constants = {"stem": kernel(C, 3), "k0": kernel(1, C, 3), **centred("p0")}
    _, outcomes = fuse(model([node("Conv", "x stem", "s0"), *nodes], constants, IMAGE))
    assert list(kept(outcomes).values()) == [(Reason.NOT_LINEAR, "Sigmoid_y")]


def test_an_addition_that_is_broadcast_over_positions_takes_a_shift_back() -> None:
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0)[:2],
        node("GlobalAveragePool", "r0", "g"),
        node("Conv", "g k0", "c0"),
        node("Add", "s0 c0", "s1"),
        node("Sigmoid", "s1", "y"),
    ]
    fused, _ = fuse(model(nodes, {"stem": kernel(C, 3), "k0": kernel(), **centred("p0")}, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)


def test_a_stream_that_a_body_reads_stays() -> None:
    body = helper.make_graph(
        [node("Sigmoid", "s0", "in_body")],
        "body",
        [],
        [helper.make_tensor_value_info("in_body", TensorProto.DOUBLE, (2, C, 6, 6))],
    )
    nodes = [
        node("Conv", "x stem", "s0"),
        *block(0),
        node("If", "yes", "d", then_branch=body, else_branch=body),
        node("Add", "d s1", "e"),
        node("Sigmoid", "e", "y"),
    ]
    constants = {"stem": kernel(C, 3), "k0": kernel(C, C, 3), "yes": np.asarray(True), **centred("p0")}
    _, outcomes = fuse(model(nodes, constants, IMAGE))
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.SCOPE_BOUNDARY, "Conv_s0")}


def test_a_stream_within_a_body_folds() -> None:
    inside = chain(2, [node("Sigmoid", "s2", "y")])
    names = {each.name for each in inside.graph.initializer}
    body = helper.make_graph(
        list(inside.graph.node), "body", [], [helper.make_tensor_value_info("y", TensorProto.DOUBLE, (2, C, 6, 6))]
    )
    body.node[-1].output[0] = "inner"
    body.output[0].name = "inner"
    proto = model([node("If", "yes", "y", then_branch=body, else_branch=body)], {"yes": np.asarray(True)}, IMAGE)
    proto.graph.initializer.extend(each for each in inside.graph.initializer if each.name in names)
    _, outcomes = fuse(proto, 1e-12)
    assert directions(outcomes) == ["both"] * 4


# Digits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("ratio", [2.0, 3.0, 50.0])
def test_a_shift_that_is_large_beside_the_deviation_stays(dtype: Any, ratio: float) -> None:
    """The stream would keep fewer digits of what the next addition reads."""
    given = centred("p0", gamma=np.ones(C), var=np.ones(C), mean=np.zeros(C), beta=np.full(C, ratio))
    proto = chain(1, [node("Sigmoid", "s1", "y")], **given)
    arrays = {each.name: onnx.numpy_helper.to_array(each).astype(dtype) for each in proto.graph.initializer}
    narrow = model(proto.graph.node, arrays, IMAGE, dtype=dtype)
    fused, outcomes = bnfold.fuse(narrow, return_outcomes=True)
    if ratio == 2:
        assert "BatchNormalization" not in operators(fused)
        return
    assert kept(outcomes) == {"BatchNormalization_n0": (Reason.CANCELLATION, "BatchNormalization_n0")}
    (refusal,) = outcomes
    assert isinstance(refusal, Refusal)
    assert f"{ratio:.0f} deviations" in refusal.detail


def test_a_large_shift_folds_where_nothing_else_reads_the_value() -> None:
    """What a BatchNorm makes is rounded at that size anyway."""
    given = centred("last", gamma=np.ones(C), var=np.ones(C), mean=np.zeros(C), beta=np.full(C, 50.0))
    nodes = [
        node("Conv", "x stem", "s0"),
        node("Sigmoid", "s0", "z"),
        node("Conv", "s0 k0", "c0"),
        node("Add", "z c0", "s1"),
        *behind("s1"),
    ]
    fused, _ = fuse(model(nodes, {"stem": kernel(C, 3), "k0": kernel(), "head": kernel(5, C), **given}, IMAGE), 1e-12)
    assert "BatchNormalization" not in operators(fused)


def test_shifts_that_add_up_along_a_stream_are_judged_by_what_they_add_up_to() -> None:
    """Each rides on to the next BatchNorm, which judges its data as the original had it."""
    nodes = [node("Conv", "x stem", "s0")]
    constants = {"stem": kernel(C, 3)}
    for index in range(4):
        nodes += [*block(index)[:3], node("Sigmoid", f"c{index}", f"g{index}")]
        nodes += [node("Conv", f"s{index} d{index}", f"t{index}"), node("Add", f"t{index} g{index}", f"s{index + 1}")]
        constants |= {f"k{index}": kernel(C, C, 3), f"d{index}": np.eye(C).reshape(C, C, 1, 1)}
        constants |= centred(
            f"p{index}", gamma=np.ones(C), var=np.ones(C), mean=np.zeros(C), beta=np.full(C, 2.0 + 2 * index)
        )
    _, outcomes = fuse(model([*nodes, node("Sigmoid", "s4", "y")], constants, IMAGE), 1e-12)
    found = kept(outcomes)
    assert {reason for reason, _ in found.values()} == {Reason.CANCELLATION}
    assert "BatchNormalization_n0" not in found
    assert "BatchNormalization_n3" in found
