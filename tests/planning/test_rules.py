"""Laws of `pull` and `push`: what a rule carries across an operator computes the same there.

`prove` is the one helper: it asks a rule, evaluates both sides in float64, and compares them at
1e-12. A row of `ROWS` is an operator with its meaning in numpy, and for each axis what the rule
must carry and what it must refuse, so that a rule that always refuses fails as a wrong one does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.graph import ops
from bnfold.graph.ops import Average, Concat, Identity, Maximum, Opaque, Pad, Rectifier, Reshape, Sum, Take, Transpose
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.rules import pull, push, variants
from tests.planning.rows import ROWS
from tests.planning.rows.law import SEEDS, Evaluate, Kind, Row, Shapes, Sizes, draw_sizes, prove, run
from tests.planning.rows.pointwise import adding
from tests.planning.rows.reindex import concatenate
from tests.planning.rows.resample import max_pool, surround

# The table is proved


@pytest.mark.parametrize("spatial", [1, 2, 3], ids=["1-d", "2-d", "3-d"])
@pytest.mark.parametrize("build", ROWS.values(), ids=ROWS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), seed=SEEDS)
def test_rules_commute_and_refuse_only_what_they_must(
    build: Callable[[Sizes], Row], spatial: int, data: st.DataObject, seed: int
) -> None:
    sizes = draw_sizes(data, spatial)
    entry = build(sizes)
    random = np.random.default_rng(seed)
    outputs = run(entry.evaluate, tuple(np.zeros(shape) for shape in entry.shapes))
    for trial, kind in itertools.product(entry.trials, Kind):
        values = tuple(output.shape for output in outputs) if trial.rule is pull else entry.shapes
        if any(axis is not None and axis >= len(shape) for axis, shape in zip(trial.axes, values, strict=True)):
            raise AssertionError(f"{trial} speaks of an axis that is not there")
        affines = trial.draw(kind, values, random)
        for variant in variants(entry.op):
            found = prove(trial.rule, variant, entry.evaluate, entry.shapes, affines, seed)
            if isinstance(variant, Reshape) and variant.choice:
                continue  # a further axis, where there is one; what it carries is right all the same
            assert found == trial.verdict.get(kind), f"{trial.rule} {variant} {kind} {trial.axes} {sizes}"


def test_every_operator_is_carried_both_ways_in_the_table() -> None:
    sizes = Sizes(2, 3, 4, 2, (3, 2))
    carried = {
        (type(entry.op), trial.rule)
        for entry in (build(sizes) for build in ROWS.values())
        for trial in entry.trials
        if any(kind not in trial.verdict for kind in Kind)
    }
    not_carriers = {Linear, ops.ChannelAffine, ops.Computed, Opaque}
    for kind, rule in itertools.product(set(get_args(ops.Op)) - not_carriers, (pull, push)):
        assert (kind, rule) in carried, f"no row shows that {kind.__name__} is carried by {rule}"


# What does not fit in a row


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (-1, 1, -1, 1)])
def test_variants_of_a_sum_offer_the_shift_to_each_operand_and_to_all_alike(count: int, signs: tuple[int, ...]) -> None:
    shape = (2, 3, 4)
    affine = Kind.ANY.draw(np.random.default_rng(0), 3, 1)
    op = Sum(signs[:count], (shape,) * count, (1.0,) + (0.0,) * (count - 1))
    takers: list[tuple[bool, ...]] = []
    for variant in variants(op):
        assert prove(pull, variant, adding(signs[:count]), (shape,) * count, (affine,)) is None
        pulled = pull(variant, affine)
        assert isinstance(pulled, tuple)
        takers.append(tuple(part is not None and part.has_shift for part in pulled))
    alone = [tuple(index == taker for index in range(count)) for taker in range(count)]
    assert takers == [*alone, (True,) * count]


def test_the_last_variant_of_a_sum_gives_one_value_read_twice_one_affine() -> None:
    """``y + y``: only equal parts can be pulled through both of its uses."""
    affine = Kind.ANY.draw(np.random.default_rng(0), 3, 1)
    pulled = pull(variants(Sum((1, 1), ((2, 3), (2, 3)), (1.0, 0.0)))[-1], affine)
    assert isinstance(pulled, tuple)
    first, second = pulled
    assert first is not None
    assert second is not None
    assert first.equals(second)


@pytest.mark.parametrize("op", [Identity(), Rectifier(), Concat(1, (3,)), Transpose((0, 1))])
def test_other_operators_have_one_variant(op: object) -> None:
    assert variants(op) == (op,)


def test_a_zero_scale_keeps_the_order_of_values() -> None:
    """A pruned channel is constant, and so is its maximum."""
    affine = Affine.of([0.0, 2.0], [3.0, 4.0])
    for rule in (pull, push):
        assert prove(rule, Maximum(frozenset({2})), lambda x: max_pool(x, [2]), ((2, 2, 4),), (affine,)) is None
        relu: Evaluate = lambda x: np.maximum(x, 0)  # noqa: E731
        assert prove(rule, Rectifier(), relu, ((2, 2, 4),), (Affine.of([0.0, 2.0], 0.0),)) is None


def test_one_negative_scale_among_many_stops_a_maximum() -> None:
    affine = Affine.of([1.0, 2.0, -1e-9], 0.0)
    for rule in (pull, push):
        carried = rule(Maximum(frozenset({2})), affine)
        assert isinstance(carried, Stop)
        assert carried.reason is Reason.NEGATIVE_SCALE


@pytest.mark.parametrize("value", [-2.0, 0.5, 3.0, -np.inf])
@pytest.mark.parametrize("off", [None, 0, 2])
def test_padding_with_a_fixed_point_of_every_channel_is_carried(value: float, off: int | None) -> None:
    scale = np.array([0.5, 2.0, 4.0])
    shift = (1 - scale) * value if np.isfinite(value) else np.array([1.0, -2.0, 3.0])
    if off is not None and np.isfinite(value):
        shift[off] += 0.25
    if off is not None and not np.isfinite(value):
        scale[off] = -1
    op, padded = Pad(frozenset({2}), value), (lambda x: surround(x, [2], value=value))
    for rule in (pull, push):
        found = prove(rule, op, padded, ((2, 3, 4),), (Affine(scale, shift, 1),))
        assert found is (None if off is None else Reason.BORDER)


def test_concat_sizes_that_contradict_the_affine_are_refused() -> None:
    affine = Affine.identity(5, 1)
    for sizes in ((2, 2), (2, 4), (6, None), (2, None, None)):
        carried = pull(Concat(1, sizes), affine)
        assert isinstance(carried, Stop)
        assert carried.reason is Reason.UNKNOWN_SHAPE


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 5), (5, None)])
def test_empty_inputs_of_a_concat_get_empty_affines(sizes: tuple[int | None, ...]) -> None:
    affine = Kind.ANY.draw(np.random.default_rng(0), 5, 1)
    shapes = tuple((2, 0 if size is None else size, 3) for size in sizes)
    assert prove(pull, Concat(1, sizes), concatenate(1), shapes, (affine,)) is None


# A single channel


def test_a_sum_of_one_channel_and_an_operand_of_lower_rank() -> None:
    """``[N, 1, K] + [K]``: the second operand has no axis for the affine to lie on."""
    shapes = ((2, 1, 3), (3,))
    op = Sum((1, 1), shapes, (1.0, 0.0))
    affine = Affine.of([2.0], [3.0])
    found = prove(pull, op, adding((1, 1)), shapes, (affine,))  # refusing is right, carrying too; failing is not
    assert found in (None, Reason.MIXED_CHANNELS)
    assert prove(push, op, adding((1, 1)), shapes, (Affine.of([1.0], [3.0]), None)) is None
    assert prove(push, op, adding((1, 1)), shapes, (affine, None)) is Reason.CONFLICT


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shapes", [((1, 1, 1), (1,)), ((1,), (1, 1, 1)), ((1, 1, 1), ()), ((1, 4), (1, 1, 4))])
def test_sums_of_ones_are_carried_or_refused(shapes: Shapes, axis: int) -> None:
    op = Sum((1, -1), shapes, (0.5, 0.5))
    size = np.broadcast_shapes(*shapes)[axis]
    prove(pull, op, adding((1, -1)), shapes, (Kind.ANY.draw(np.random.default_rng(0), size, axis),))


# Random operators against their laws


@settings(max_examples=200, deadline=None)
@given(data=st.data(), seed=SEEDS, count=st.integers(1, 3))
def test_random_sums_are_right_or_refused(data: st.DataObject, seed: int, count: int) -> None:
    """Operands of any rank, broadcasting in any way, with affines on any of their axes."""
    random = np.random.default_rng(seed)
    full = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    shapes = tuple(
        tuple(size if data.draw(st.booleans()) else 1 for size in full[len(full) - rank :])
        for rank in [data.draw(st.integers(0, len(full))) for _ in range(count)]
    )
    signs = tuple(data.draw(st.sampled_from([1, -1])) for _ in range(count))
    op = Sum(signs, shapes, (1.0,) + (0.0,) * (count - 1))
    out = np.broadcast_shapes(*shapes)
    kind = data.draw(st.sampled_from(Kind))
    for axis, size in enumerate(out):
        for variant in variants(op):
            prove(pull, variant, adding(signs), shapes, (kind.draw(random, size, axis),), seed)
    axes = [data.draw(st.sampled_from([None, *range(len(shape))])) for shape in shapes]
    shared = data.draw(st.sampled_from([1, None]))
    scales = [1.5, 1.5] if shared else [1.0, 1.5]
    affines = tuple(
        None if axis is None else Affine.of(np.full(shape[axis], scales[k % 2]), random.normal(size=shape[axis]), axis)
        for k, (axis, shape) in enumerate(zip(axes, shapes, strict=True))
    )
    if any(affine is not None for affine in affines):
        prove(push, op, adding(signs), shapes, affines, seed)
        # Plain shifts on some operands.
        shifts = tuple(affine and Affine.of(np.ones(affine.size), affine.shift, affine.axis) for affine in affines)
        prove(push, op, adding(signs), shapes, shifts, seed)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), seed=SEEDS, kind=st.sampled_from(Kind))
def test_random_takes_are_right_and_refuse_only_conflicts(data: st.DataObject, seed: int, kind: Kind) -> None:
    size = data.draw(st.integers(1, 5))
    index = np.array(data.draw(st.lists(st.integers(-size, size - 1), max_size=6)), np.intp)
    random = np.random.default_rng(seed)
    op, shapes = Take(1, index, size), ((2, size, 2),)
    taken: Evaluate = lambda x: x.take(index, axis=1)  # noqa: E731
    assert prove(push, op, taken, shapes, (kind.draw(random, size, 1),), seed) is None
    wide = kind.draw(random, len(index), 1)
    maps = {(int(k) % size, wide.scale[j], wide.shift[j]) for j, k in enumerate(index)}
    clash = len(maps) > len({place for place, _, _ in maps})
    found = prove(pull, op, taken, shapes, (wide,), seed)
    assert found is (Reason.MIXED_CHANNELS if clash else None)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=SEEDS, drops=st.booleans(), largest=st.booleans())
def test_random_reductions_are_carried_on_every_axis_that_they_keep(
    data: st.DataObject, seed: int, drops: bool, largest: bool
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
    axes = data.draw(st.frozensets(st.integers(0, len(shape) - 1)))
    dropped = axes if drops else frozenset()
    op = Maximum(axes, dropped) if largest else Average(axes, dropped=dropped)
    reduce = np.max if largest else np.mean
    evaluate: Evaluate = lambda x: reduce(x, axis=tuple(axes), keepdims=not drops)  # noqa: E731
    random = np.random.default_rng(seed)
    for axis, size in enumerate(shape):
        found = prove(push, op, evaluate, (shape,), (Kind.INCREASING.draw(random, size, axis),), seed)
        assert found is (Reason.AXIS_MISMATCH if axis in axes else None)
    kept = [axis for axis in range(len(shape)) if axis not in dropped]
    for place, axis in enumerate(kept):
        size = 1 if axis in axes else shape[axis]
        found = prove(pull, op, evaluate, (shape,), (Kind.INCREASING.draw(random, size, place),), seed)
        assert found is (Reason.AXIS_MISMATCH if axis in axes else None)


def orders(rank: int) -> Iterator[tuple[int, ...]]:
    """All permutations of the axes."""
    return itertools.permutations(range(rank))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_every_transposition_carries_every_axis(rank: int) -> None:
    shape = (2, 3, 4, 5)[:rank]
    random = np.random.default_rng(0)
    for order, axis in itertools.product(orders(rank), range(rank)):
        transposed: Evaluate = lambda x, order=order: x.transpose(order)  # noqa: E731
        pushed = Kind.ANY.draw(random, shape[axis], axis)
        assert prove(push, Transpose(order), transposed, (shape,), (pushed,)) is None
        pulled = Kind.ANY.draw(random, shape[order[axis]], axis)
        assert prove(pull, Transpose(order), transposed, (shape,), (pulled,)) is None
