"""Random reshapes against their law: what they carry, and what they must refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine, Grid
from bnfold.graph import ops
from bnfold.graph.ops import Reshape, Transpose
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.rules import pull, push
from tests.planning.rows.law import SEEDS, Evaluate, Kind, prove


@st.composite
def shape_pairs(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes with the same number of elements: factors, permuted and merged at random."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3, 3, 4, 5]), min_size=1, max_size=6))
    shapes: list[tuple[int, ...]] = []
    for _ in range(2):
        shape: list[int] = []
        permuted = draw(st.booleans())
        order = draw(st.permutations(factors)) if permuted else factors
        for factor in order:
            if draw(st.booleans()) and shape:
                shape[-1] *= factor
            else:
                shape.append(factor)
        shapes.append(tuple(shape))
    return shapes[0], shapes[1]


def carried_axis(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """The first axis of `after` that tells all positions of `axis`, found by reshaping numbers."""
    numbers = np.arange(before[axis]).reshape([-1] + [1] * (len(before) - axis - 1))
    seen = np.broadcast_to(numbers, before).reshape(after)
    for target in range(len(after)):
        front = np.moveaxis(seen, target, 0).reshape(after[target], -1)
        if (front == front[:, :1]).all():
            return target
    return None


def reshaped(after: tuple[int, ...]) -> Evaluate:
    """The reshape to `after`."""
    return lambda x: x.reshape(after)


@settings(max_examples=400, deadline=None)
@given(shapes=shape_pairs(), seed=SEEDS)
@example(shapes=((2, 6), (4, 3)), seed=0)
@example(shapes=((2, 3), (3, 2)), seed=0)
@example(shapes=((4, 6, 1), (1, 8, 3)), seed=0)
def test_a_reshape_carries_differing_channels_to_one_axis_exactly_where_one_tells_them_apart(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    before, after = shapes
    random = np.random.default_rng(seed)
    for axis, size in enumerate(before):
        if size == 1:
            continue
        affine = Kind.ANY.draw(random, size, axis)
        found = prove(push, Reshape(before, after), reshaped(after), (before,), (affine,), seed)
        assert found is None
        (pushed,) = carried(push, Reshape(before, after), affine)
        assert isinstance(pushed, Grid) == (carried_axis(before, after, axis) is None)
        # Pulling through the reshape back asks the same question.
        assert prove(pull, Reshape(after, before), reshaped(before), (after,), (affine,), seed) is None


@settings(max_examples=400, deadline=None)
@given(shapes=shape_pairs(), seed=SEEDS)
@example(shapes=((2, 6, 2), (2, 2, 3, 2)), seed=0)
def test_a_map_along_several_axes_follows_reshapes_and_transposes_and_comes_back(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    """There and back by either rule it is the map that it was; each step keeps its law."""
    before, after = shapes
    random = np.random.default_rng(seed)
    order = tuple(int(each) for each in random.permutation(len(after)))
    moved = tuple(after[each] for each in order)
    steps: list[tuple[object, Evaluate, tuple[int, ...]]] = [
        (Reshape(before, after), reshaped(after), before),
        (Transpose(order), lambda x: x.transpose(order), after),
        (Reshape(moved, before), reshaped(before), moved),
    ]
    axis = int(random.integers(len(before)))
    start = affine = Kind.ANY.draw(random, before[axis], axis)
    for op, evaluate, shape in steps:
        assert prove(push, op, evaluate, (shape,), (affine,), seed) is None
        (affine,) = carried(push, op, affine)
    for op, evaluate, shape in reversed(steps):
        assert prove(pull, op, evaluate, (shape,), (affine,), seed) is None
        (affine,) = carried(pull, op, affine)
    assert np.array_equal(affine(np.ones(before)), start(np.ones(before)))


def carried(rule: Callable[..., object], op: object, affine: Affine) -> tuple[Affine]:
    """What a rule gives for one map, which it carries."""
    found = rule(op, affine)
    assert isinstance(found, tuple)
    return found


@settings(max_examples=400, deadline=None)
@given(
    shapes=shape_pairs(),
    period=st.integers(1, 4),
    run_length=st.integers(1, 4),
    data=st.data(),
    seed=SEEDS,
)
def test_a_reshape_of_patterned_channels_is_right_or_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    period: int,
    run_length: int,
    data: st.DataObject,
    seed: int,
) -> None:
    """Channels alike in runs and periods: uniform ones, and those that merge by chance."""
    before, after = shapes
    random = np.random.default_rng(seed)
    axis = data.draw(st.integers(0, len(before) - 1))
    few = Kind.ANY.draw(random, period, axis)
    affine = few.take(np.arange(before[axis]) // run_length % period)
    found = prove(push, Reshape(before, after), reshaped(after), (before,), (affine,), seed)
    assert found in (None, Reason.MIXED_CHANNELS)
    back = prove(pull, Reshape(after, before), reshaped(before), (after,), (affine,), seed)
    assert back is found


@settings(max_examples=200, deadline=None)
@given(shapes=shape_pairs(), seed=SEEDS)
def test_a_reshape_never_refuses_channels_whose_axis_survives(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    """An axis of the same size with as many elements behind it, a single channel included."""
    before, after = shapes
    random = np.random.default_rng(seed)
    survivors = [
        axis
        for axis, size in enumerate(before)
        if any(size == other and prod(before[axis + 1 :]) == prod(after[k + 1 :]) for k, other in enumerate(after))
    ]
    for axis, kind in itertools.product(survivors, Kind):
        affine = kind.draw(random, before[axis], axis)
        assert prove(push, Reshape(before, after), reshaped(after), (before,), (affine,), seed) is None
        assert prove(pull, Reshape(after, before), reshaped(before), (after,), (affine,), seed) is None


@settings(max_examples=200, deadline=None)
@given(
    kept=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    tails=shape_pairs(),
    kind=st.sampled_from(Kind),
    seed=SEEDS,
)
@example(kept=[2, 1], tails=((3, 4), (12,)), kind=Kind.ANY, seed=0)  # one channel
@example(kept=[1, 1], tails=((2,), (2, 1)), kind=Kind.ANY, seed=0)  # and a batch of one
@example(kept=[2, 2], tails=((3, 4), (12,)), kind=Kind.UNIFORM, seed=0)
def test_a_reshape_beside_the_channels_leaves_them_on_their_axis(
    kept: list[int], tails: tuple[tuple[int, ...], tuple[int, ...]], kind: Kind, seed: int
) -> None:
    """Several axes may satisfy the law; a linear can absorb on the one that stays."""
    axis = len(kept) - 1
    affine = kind.draw(np.random.default_rng(seed), kept[-1], axis)
    behind = push(Reshape((*kept, *tails[0]), (*kept, *tails[1])), affine)
    assert isinstance(behind, tuple)
    assert behind[0] is not None
    assert behind[0].equals(affine)
    if tails[1][: len(tails[0])] == tails[0]:
        return  # every axis stays where it is, counted from the front
    # The same with the channels last.
    last = affine.along(len(tails[0]))
    before = push(Reshape((*tails[0], kept[-1]), (*tails[1], kept[-1])), last)
    assert isinstance(before, tuple)
    assert before[0] is not None
    assert before[0].equals(affine.along(len(tails[1])))


def hidden(
    draw: Callable[[st.SearchStrategy[object]], object],
    shape: tuple[int, ...],
    names: dict[int, str],
) -> ops.Shape:
    """`shape` with sizes replaced by nothing or by a symbol, one for each size: none ever lies."""
    dims: list[ops.Dim] = []
    for size in shape:
        shown = draw(st.sampled_from(["size", "symbol", "nothing"]))
        dims.append(size if shown == "size" else names.setdefault(size, f"s{size}") if shown == "symbol" else None)
    return tuple(dims)


@settings(max_examples=600, deadline=None)
@given(shapes=shape_pairs(), data=st.data(), kind=st.sampled_from(Kind), seed=SEEDS)
def test_a_reshape_that_knows_less_is_right_or_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject, kind: Kind, seed: int
) -> None:
    before, after = shapes
    axis = data.draw(st.integers(0, len(before) - 1))
    names: dict[int, str] = {}
    view, back = hidden(data.draw, before, names), hidden(data.draw, after, names)
    affine = kind.draw(np.random.default_rng(seed), before[axis], axis)
    found = prove(push, Reshape(view, back), reshaped(after), (before,), (affine,), seed)
    assert found in (None, Reason.MIXED_CHANNELS, Reason.UNKNOWN_SHAPE)
    found = prove(pull, Reshape(back, view), reshaped(before), (after,), (affine,), seed)
    assert found in (None, Reason.MIXED_CHANNELS, Reason.UNKNOWN_SHAPE)


@pytest.mark.parametrize(
    ("before", "after"), [(("N", 4, "r", "s"), ("N", "c", "h", 2, "w", 2)), (("N", 4, 6), ("N", "c", 2, "t"))], ids=str
)
def test_a_size_without_a_number_is_no_mixture_of_channels(before: ops.Shape, after: ops.Shape) -> None:
    """Where the channels go to depends on such a size; to know it would help."""
    affine = Affine.of([1.0, 2.0, 3.0, 4.0], 0.0)
    carried = push(Reshape(before, after), affine)
    assert isinstance(carried, Stop)
    assert carried.reason is Reason.UNKNOWN_SHAPE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 3, 0), (0, 6)),
        ((2, 3, 0), (2, 3, 0, 1)),
        ((0, 6), (0, 2, 3)),
        ((2, 0, 3), (2, 0)),
        ((2, 3, 0, 4), (2, 0)),
        ((0,), (0, 5)),
        ((4, 0), (0, 4)),
        ((2, 3, 0), (6, 0)),
    ],
)
@pytest.mark.parametrize("kind", [Kind.ANY, Kind.UNIFORM])
def test_reshapes_of_nothing_are_carried_or_refused(
    before: tuple[int, ...], after: tuple[int, ...], kind: Kind
) -> None:
    """An empty tensor has no wrong answer, but it must have one."""
    random = np.random.default_rng(0)
    for axis, size in enumerate(before):
        affine = kind.draw(random, size, axis)
        prove(push, Reshape(before, after), reshaped(after), (before,), (affine,))
        prove(pull, Reshape(after, before), reshaped(before), (after,), (affine,))
