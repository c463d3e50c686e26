"""Which windows of a pooling see no data: what is said of them against trying them all, and against two runtimes."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from bnfold.algebra.pooling import PoolAxis

SIZES = range(1, 24)


def taps_in_data(axis: PoolAxis, place: int, size: int) -> bool:
    start = axis.stride * place - axis.begin
    return any(0 <= start + axis.dilation * tap < size for tap in range(axis.taps))


def outputs(axis: PoolAxis, size: int) -> int:
    left = size + axis.begin + axis.end - axis.dilation * (axis.taps - 1) - 1
    count = int(np.ceil(left / axis.stride) if axis.rounds_up else np.floor(left / axis.stride)) + 1
    if not axis.is_strict:
        return max(1, count)
    behind = axis.rounds_up and axis.stride * (count - 1) >= size + axis.begin
    return count - 1 if behind else count


def misses(axis: PoolAxis, size: int) -> bool:
    return not all(taps_in_data(axis, place, size) for place in range(outputs(axis, size)))


@pytest.mark.parametrize("rounds_up", [False, True])
@pytest.mark.parametrize("is_strict", [False, True])
def test_a_window_misses_where_no_tap_of_it_is_in_the_data(rounds_up: bool, is_strict: bool) -> None:
    """Of any size it is said only if there is one at which a window misses."""
    for taps, stride, dilation, begin, end in product(range(1, 5), range(1, 4), range(1, 6), range(5), range(5)):
        axis = PoolAxis(taps, stride, dilation, begin, end, rounds_up, is_strict)
        found = [misses(axis, size) for size in SIZES]
        assert [axis.can_miss(size) for size in SIZES] == found, axis
        assert axis.can_miss(None) == any(found), axis


@pytest.mark.parametrize(
    "axis",
    [
        PoolAxis(2, 2, 1, 0, 0),
        PoolAxis(3, 2, 1, 1, 1),
        PoolAxis(3, 2, 1, 0, 0, rounds_up=True),
        PoolAxis(3, 2, 1, 1, 1, rounds_up=True),
        *(PoolAxis(size, 1, 1, size // 2, size // 2) for size in (3, 5, 9, 13)),
        *(PoolAxis(3, 1, dilation, dilation, dilation) for dilation in (2, 3, 6, 12, 18)),
        PoolAxis(2, 1, 3, 0, 0),
        PoolAxis(2, 1, 1 << 9, 0, 0),
    ],
)
def test_ordinary_pooling_never_misses(axis: PoolAxis) -> None:
    assert not axis.can_miss(None)


def test_a_huge_dilation_is_answered_at_once() -> None:
    assert PoolAxis(2, 1, 1 << 60, 0, 0).can_miss(None)
    assert not PoolAxis(2, 1, 1 << 60, 0, 0).can_miss(1 << 61)
    assert PoolAxis(2, 1, 1 << 30, 1, 1).can_miss((1 << 30) - 1)


CASES = list(product(range(1, 4), range(1, 4), range(1, 5), range(3), range(1, 7), (False, True)))


def test_pytorch_fills_exactly_what_misses() -> None:
    for taps, stride, dilation, pad, size, rounds_up in CASES:
        if pad > (dilation * (taps - 1) + 1) // 2:
            continue
        axis = PoolAxis(taps, stride, dilation, pad, pad, rounds_up, is_strict=True)
        try:
            y = torch.nn.functional.max_pool1d(torch.ones(1, 1, size), taps, stride, pad, dilation, rounds_up)
        except RuntimeError:  # it is too short for a window
            continue
        assert bool(torch.isinf(y).any()) == axis.can_miss(size), (axis, size)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_onnxruntime_fills_nothing_else(op: str) -> None:
    for taps, stride, dilation, pad, size, rounds_up in CASES[::3]:
        if pad >= taps or size + 2 * pad + 2 * stride <= dilation * (taps - 1) + 1:  # an error
            continue
        axis = PoolAxis(taps, stride, dilation, pad, pad, rounds_up)
        attributes = {"kernel_shape": [taps], "strides": [stride], "dilations": [dilation], "pads": [pad, pad]}
        node = helper.make_node(op, ["x"], ["y"], ceil_mode=int(rounds_up), **attributes)
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
        graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {"x": np.ones((1, 1, size), np.float32)})
        assert axis.can_miss(size) or (y == 1).all(), (axis, size)
