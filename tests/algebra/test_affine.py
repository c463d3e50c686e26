"""Laws of `Affine`: composition, reindexing and the BatchNorm formula, in float64 at 1e-12."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine, Array

SEEDS = st.integers(0, 2**32 - 1)
CHANNELS = st.integers(1, 7)


def draw_affine(random: np.random.Generator, size: int, axis: int = 1) -> Affine:
    """An affine with scales of both signs, some of them zero."""
    scale = random.normal(size=size) * random.integers(0, 5, size).clip(max=1)
    return Affine(scale, random.normal(size=size), axis)


def draw_data(random: np.random.Generator, size: int, axis: int, rank: int) -> Array:
    """Data of `rank` with `size` channels along `axis`."""
    shape = [int(length) for length in random.integers(1, 4, rank)]
    shape[axis] = size
    return random.normal(size=shape)


def assert_close(actual: Array, expected: Array) -> None:
    """Equal at 1e-12 of the largest value, shape and dtype included."""
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    atol = 1e-12 * max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def assert_same_map(actual: Affine, expected: Affine) -> None:
    """Two affines on one axis that agree at 1e-12."""
    assert actual.axis == expected.axis
    assert_close(actual.scale, expected.scale)
    assert_close(actual.shift, expected.shift)


@given(SEEDS, CHANNELS, st.integers(1, 5), st.data())
def test_call_scales_and_shifts_each_channel(seed: int, size: int, rank: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, rank - 1))
    random = np.random.default_rng(seed)
    affine, x = draw_affine(random, size, axis), draw_data(random, size, axis, rank)
    expected = np.empty_like(x)
    for channel in range(size):
        place = (slice(None),) * axis + (channel,)
        expected[place] = affine.scale[channel] * x[place] + affine.shift[channel]
    assert_close(affine(x), expected)


@given(SEEDS, CHANNELS, st.integers(0, 3))
def test_after_is_one_application_after_the_other(seed: int, size: int, axis: int) -> None:
    random = np.random.default_rng(seed)
    outer, inner = draw_affine(random, size, axis), draw_affine(random, size, axis)
    x = draw_data(random, size, axis, 4)
    assert_close(outer.after(inner)(x), outer(inner(x)))


@given(SEEDS, CHANNELS)
def test_after_is_associative(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    a, b, c = (draw_affine(random, size) for _ in range(3))
    assert_same_map(a.after(b).after(c), a.after(b.after(c)))


@given(SEEDS, st.integers(2, 6), st.booleans())
def test_a_chain_is_composed_exactly_and_rounded_once(seed: int, count: int, from_left: bool) -> None:
    """In whatever order, though the shifts cancel: as rational numbers compose."""
    random = np.random.default_rng(seed)
    parts = [Affine(*(random.normal(size=(2, 5)) * 10.0 ** random.integers(-3, 3, (2, 5))), 1) for _ in range(count)]
    last = -0.999999 * reduce(Affine.after, parts).shift  # which cancels nearly all of it
    parts.insert(0, Affine(np.ones(5), last, 1))
    chain = reduce(Affine.after, parts) if from_left else reduce(lambda behind, front: front.after(behind), parts[::-1])
    for channel in range(5):
        scale, shift = Fraction(1), Fraction(0)
        for part in reversed(parts):
            scale, shift = (Fraction(part.scale[channel]) * each for each in (scale, shift))
            shift += Fraction(part.shift[channel])
        assert chain.scale[channel] == float(scale)
        assert abs(chain.shift[channel] - shift) <= abs(shift) * Fraction(2) ** -52


@given(SEEDS, CHANNELS, st.integers(0, 3))
def test_identity_is_neutral_on_both_sides(seed: int, size: int, axis: int) -> None:
    affine = draw_affine(np.random.default_rng(seed), size, axis)
    identity = Affine.identity(size, axis)
    assert identity.after(affine).equals(affine)
    assert affine.after(identity).equals(affine)
    assert not identity.has_shift
    assert identity.is_increasing


@given(SEEDS, st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 2))
def test_split_and_join_are_inverse(seed: int, sizes: list[int], axis: int) -> None:
    random = np.random.default_rng(seed)
    parts = [draw_affine(random, size, axis) for size in sizes]
    joined = Affine.join(parts)
    again = joined.split(sizes)
    assert len(again) == len(parts)
    assert all(one.equals(other) for one, other in zip(again, parts, strict=True))
    assert Affine.join(again).equals(joined)


@given(SEEDS, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_split_acts_on_parts_of_the_data(seed: int, sizes: list[int]) -> None:
    random = np.random.default_rng(seed)
    affine = draw_affine(random, sum(sizes))
    x = draw_data(random, sum(sizes), 1, 3)
    pieces = np.split(x, np.cumsum(sizes)[:-1], axis=1)
    applied = [part(piece) for part, piece in zip(affine.split(sizes), pieces, strict=True)]
    assert_close(np.concatenate(applied, axis=1), affine(x))


@given(SEEDS, CHANNELS, st.integers(1, 4))
def test_repeat_and_tile_follow_the_data(seed: int, size: int, times: int) -> None:
    random = np.random.default_rng(seed)
    affine, x = draw_affine(random, size), draw_data(random, size, 1, 3)
    assert_close(affine.repeat(times)(np.repeat(x, times, axis=1)), affine(x).repeat(times, axis=1))
    assert_close(affine.tile(times)(np.tile(x, (1, times, 1))), np.tile(affine(x), (1, times, 1)))


@given(SEEDS, CHANNELS, st.integers(1, 4))
def test_tile_joins_copies_and_repeat_is_its_transpose(seed: int, size: int, times: int) -> None:
    affine = draw_affine(np.random.default_rng(seed), size)
    assert affine.tile(times).equals(Affine.join([affine] * times))
    across = np.arange(size * times).reshape(times, size).T.reshape(-1)
    assert affine.tile(times).take(across).equals(affine.repeat(times))
    assert affine.repeat(1).equals(affine)
    assert affine.tile(1).equals(affine)


@given(SEEDS, CHANNELS, st.data())
def test_take_composes_and_follows_the_data(seed: int, size: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    affine, x = draw_affine(random, size), draw_data(random, size, 1, 3)
    names = st.lists(st.integers(-size, size - 1), min_size=1, max_size=6)
    first = np.array(data.draw(names))
    taken = affine.take(first)
    assert_close(taken(x.take(first, axis=1)), affine(x).take(first, axis=1))
    last = data.draw(st.integers(-len(first), len(first) - 1))
    assert taken.take([last]).equals(affine.take(first[[last]]))


@given(SEEDS, CHANNELS, st.data())
def test_spread_undoes_take_where_no_channel_is_named_twice(seed: int, size: int, data: st.DataObject) -> None:
    index = data.draw(st.permutations(range(size)))[: data.draw(st.integers(0, size))]
    affine = draw_affine(np.random.default_rng(seed), len(index))
    spread = affine.spread(index, size)
    assert spread is not None
    assert spread.take(index).equals(affine)
    untouched = [channel for channel in range(size) if channel not in index]
    assert spread.take(untouched).equals(Affine.identity(len(untouched), affine.axis))


@given(SEEDS, CHANNELS, st.integers(2, 4))
def test_spread_is_the_left_inverse_of_repeat_and_tile(seed: int, size: int, times: int) -> None:
    affine = draw_affine(np.random.default_rng(seed), size)
    packed = np.arange(size * times)
    for wide, index in (
        (affine.repeat(times), packed // times),
        (affine.tile(times), packed % size),
    ):
        narrow = wide.spread(index, size)
        assert narrow is not None
        assert narrow.equals(affine)


@pytest.mark.parametrize("index", [[0, 2, 0], [0, 2, -3], [-1, 1, 2]])
@pytest.mark.parametrize("differs", ["scale", "shift"])
def test_spread_of_one_channel_with_two_maps_is_none(index: list[int], differs: str) -> None:
    vector, constant = np.array([1.0, 2.0, 3.0]), np.ones(3)
    affine = Affine.of(vector, constant) if differs == "scale" else Affine.of(constant, vector)
    assert affine.spread(index, 3) is None
    agreeing = Affine.of(constant, constant).spread(index, 3)
    assert agreeing is not None
    assert agreeing.take(index).equals(Affine.of(constant, constant))


@given(SEEDS, CHANNELS, st.sampled_from([1e-5, 1e-3, 0.1, 1.0]), st.integers(0, 2))
def test_from_batchnorm_is_the_plain_formula(seed: int, size: int, eps: float, axis: int) -> None:
    random = np.random.default_rng(seed)
    gamma, beta, mean = random.normal(size=(3, size))
    var = random.uniform(0, 3, size)
    x = draw_data(random, size, axis, 3)
    shape = [size if place == axis else 1 for place in range(3)]
    g, b, m, v = (vector.reshape(shape) for vector in (gamma, beta, mean, var))
    expected = (x - m) / np.sqrt(v + eps) * g + b
    assert_close(Affine.from_batchnorm(gamma, beta, mean, var, eps, axis)(x), expected)


@given(SEEDS, CHANNELS, st.sampled_from([1e-5, 1e-3, 1.0]))
def test_batchnorm_parameters_is_the_inverse_of_from_batchnorm(seed: int, size: int, eps: float) -> None:
    random = np.random.default_rng(seed)
    gamma, beta, mean = random.normal(size=(3, size))
    var = random.uniform(0, 3, size)
    affine = Affine.from_batchnorm(gamma, beta, mean, var, eps)
    again_gamma, again_beta = affine.batchnorm_parameters(mean, var, eps)
    assert_close(again_gamma, gamma)
    assert_close(again_beta, beta)
    # The other way round, for statistics that have nothing to do with the affine.
    other = draw_affine(random, size)
    assert_same_map(Affine.from_batchnorm(*other.batchnorm_parameters(mean, var, eps), mean, var, eps), other)


def test_from_batchnorm_computes_float32_and_float16_parameters_in_float64() -> None:
    # In float32, 1 + 2**-30 is 1: eps would be lost.
    one = np.ones(1, np.float32)
    affine = Affine.from_batchnorm(one, 0 * one, 0 * one, one, 2.0**-30)
    assert affine.scale.dtype == np.float64
    assert affine.scale[0] == 1 / np.sqrt(1 + 2.0**-30) != 1
    # 300 squared is beyond float16.
    wide = np.full(1, 300, np.float16)
    assert Affine.from_batchnorm(wide, 0 * wide, wide, wide / 300, 0.0).shift[0] == -90000


def test_parameters_of_any_shape_become_vectors() -> None:
    affine = Affine.of(np.arange(3.0).reshape(3, 1, 1), 2.0)
    assert affine.scale.shape == affine.shift.shape == (3,)
    assert affine.size == 3


@pytest.mark.parametrize(
    ("affine", "has_shift", "is_increasing", "is_finite"),
    [
        (Affine.of([1.0, 0.0], 0.0), False, True, True),
        (Affine.of([1.0, -1e-300], 0.0), False, False, True),
        (Affine.of(1.0, [0.0, 1e-300]), True, True, True),
        (Affine.of(1.0, [0.0, -np.inf]), True, True, False),
        (Affine.of([np.nan, 1.0], 0.0), False, False, False),
    ],
)
def test_predicates_look_at_every_channel(
    affine: Affine, has_shift: bool, is_increasing: bool, is_finite: bool
) -> None:
    assert affine.has_shift is has_shift
    assert affine.is_increasing is is_increasing
    assert affine.is_finite is is_finite


@pytest.mark.parametrize(
    "other",
    [
        Affine.of([1, 2], 3, 0),
        Affine.of([1, 5], 3),
        Affine.of([1, 2], [3, 4]),
        Affine.of([1, 2, 2], 3),
    ],
    ids=["axis", "scale", "shift", "size"],
)
def test_equals_compares_everything(other: Affine) -> None:
    affine = Affine.of([1, 2], 3)
    assert affine.equals(Affine.of([1, 2], 3))
    assert not affine.equals(other)
    assert not other.equals(affine)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Affine.identity(2, 1).after(Affine.identity(2, 2)),
        lambda: Affine.identity(2, 1).after(Affine.identity(3, 1)),
        lambda: Affine.identity(2, 1).after(Affine.identity(1, 1)),
        lambda: Affine.identity(2, 1).along(-1),
        lambda: Affine(np.ones(2), np.zeros(3), 1),
        lambda: Affine(np.ones((2, 1)), np.zeros((2, 1)), 1),
        lambda: Affine.identity(3, 1).split((1, 1)),
        lambda: Affine.identity(3, 1).split((2, 2)),
        lambda: Affine.identity(3, 1).split(()),
        lambda: Affine.of([1, 2], [1, 2, 3]),
    ],
    ids=[
        "after-axis", "after-size", "after-one-channel", "negative-axis", "lengths", "matrix",
        "split-short", "split-long", "split-nothing", "of-lengths",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        wrong()
