"""Laws of what is known of the data, of the growth of rounding errors, and of BatchNorms that absorb an affine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine, Statistics
from bnfold.algebra.kernels import Kernel
from bnfold.algebra.linear import Layout, Linear
from bnfold.algebra.rounding import KernelPeaks, measure_growth, measure_parameters, round_once, solve_batchnorm

SEEDS = st.integers(0, 2**32 - 1)
TYPES = [np.dtype(each) for each in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


def drawn(random: np.random.Generator, size: int) -> Affine:
    """An affine with statistics."""
    known = Statistics(random.normal(size=size) * 10, random.uniform(0.1, 3, size), np.ones(size))
    return Affine(random.normal(size=size), random.normal(size=size), 1, known)


def close(actual: Statistics | None, mean: Any, square: Any) -> None:
    assert actual is not None
    np.testing.assert_allclose(actual.mean, mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(actual.variance, square, rtol=1e-9)


@given(SEEDS, st.integers(1, 6))
def test_statistics_in_front_of_a_map_are_those_behind_it(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    inner, known = drawn(random, size), drawn(random, size).statistics
    assert known is not None
    front = known.in_front_of(inner)
    close(known, inner.scale * front.mean + inner.shift, inner.scale**2 * front.variance)


@given(SEEDS, st.integers(1, 6))
def test_sizes_are_mean_squares_of_drawn_data(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    affine = drawn(random, size)
    assert affine.statistics is not None
    signs = np.array([[-1.0], [1.0]])  # two values with this mean and deviation
    x = affine.statistics.mean + signs * np.sqrt(affine.statistics.variance)
    products, results = affine.sizes
    np.testing.assert_allclose(products, ((affine.scale * x) ** 2).mean(axis=0))
    np.testing.assert_allclose(results, ((affine.scale * x + affine.shift) ** 2).mean(axis=0))


@given(SEEDS)
def test_what_a_batchnorm_measured_in_front_counts_more_than_what_is_behind(seed: int) -> None:
    random = np.random.default_rng(seed)
    outer, inner = drawn(random, 4), drawn(random, 4)
    assert outer.statistics is not None
    assert inner.statistics is not None
    front = outer.statistics.in_front_of(inner)
    close(outer.after(inner).statistics, inner.statistics.mean, inner.statistics.variance)
    close(outer.after(inner.with_statistics(None)).statistics, front.mean, front.variance)
    close(outer.after(inner.with_statistics(inner.assumed)).statistics, front.mean, front.variance)
    half = Affine.join([inner.take([0, 1]), inner.take([2, 3]).with_statistics(None)])
    mixed = np.where([True, True, False, False], inner.statistics.mean, front.mean)
    close(outer.after(half).statistics, mixed, np.where([1, 1, 0, 0], inner.statistics.variance, front.variance))


def test_the_scale_next_to_the_shift_tells_the_deviation() -> None:
    """Data of 100 +- 5 in ``((x - 100) / 5) * 1e-3 + 1e-4``, and of 100 / 255 with a factor in front."""
    maps = [(1e-3, 0.0), (0.2, 0.0), (1.0, -100.0)]
    known = [each.with_statistics(each.assumed) for each in (Affine.of(scale, shift) for scale, shift in maps)]
    total = Affine.of(1.0, 1e-4)
    total = total.with_statistics(total.assumed)
    for inner in known:
        total = total.after(inner)
    close(total.statistics, [100 - 0.5], [25.0])
    factor = Affine.of(255.0, 0.0)
    normal = known[1].after(known[2])
    close(normal.after(factor.with_statistics(factor.assumed)).statistics, [100 / 255], [(5 / 255) ** 2])


@given(SEEDS)
def test_statistics_follow_their_channels(seed: int) -> None:
    random = np.random.default_rng(seed)
    affine = drawn(random, 4)
    assert affine.statistics is not None
    order = random.permutation(4)
    close(affine.take(order).along(2).statistics, affine.statistics.mean[order], affine.statistics.variance[order])
    close(Affine.join(affine.split([1, 3])).statistics, affine.statistics.mean, affine.statistics.variance)
    spread = affine.spread(order, 5)
    assert spread is not None
    close(spread.take(order).statistics, affine.statistics.mean, affine.statistics.variance)
    doubled = affine.plus(affine.negated())
    close(doubled.statistics, np.zeros(4), 2 * affine.statistics.variance)


def kernels(random: np.random.Generator, layout: Layout, groups: int) -> tuple[np.ndarray, Linear]:
    window = () if layout in (Layout.IN_OUT, Layout.OUT_IN) else (3,)
    groups = groups if window else 1
    out, fan_in = 4 * groups, 3 * groups
    shapes = {
        Layout.CONV: (out, 3, *window),
        Layout.CONV_TRANSPOSE: (fan_in, 4, *window),
        Layout.IN_OUT: (fan_in, out),
        Layout.OUT_IN: (out, fan_in),
    }
    linear = Linear(groups, out, fan_in, 1, 1)
    return random.normal(size=shapes[layout]), linear.absorb_input(drawn(random, fan_in))


@pytest.mark.parametrize("layout", [Layout.CONV, Layout.CONV_TRANSPOSE, Layout.IN_OUT, Layout.OUT_IN])
@settings(deadline=None)  # threads of a busy machine may wait
@given(SEEDS, st.integers(1, 3), st.sampled_from([1, 7, 1 << 18]), st.sampled_from([1, 20, 1 << 16]))
def test_growth_and_peaks_are_those_of_the_whole_in_any_blocks_and_strips(
    layout: Layout, seed: int, groups: int, elements: int, strip: int
) -> None:
    random = np.random.default_rng(seed)
    stored, linear = kernels(random, layout, groups)
    bias = random.normal(size=linear.out_channels)
    rows = stored.reshape(stored.shape[-2] if layout in (Layout.IN_OUT, Layout.OUT_IN) else stored.shape[0], -1)
    kernel = Kernel(stored.shape, layout, linear.groups, lambda: lambda start, stop: rows[start:stop])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bnfold.algebra.kernels.ELEMENTS", elements)
        patch.setattr("bnfold.algebra.linear.STRIP", strip)
        patch.setattr("bnfold.algebra.kernels.STRIP", strip)
        growth, rounding = (
            kernel.measure_growth(linear, bias),
            kernel.measure(linear, bias, np.dtype(np.float16), 2.0**-10),
        )
    whole = linear.growth(kernel.canonical(), bias)
    assert growth.factor == pytest.approx(whole.factor)
    exact = linear.solve_kernel(kernel.canonical())
    assert rounding == measure_parameters(exact, bias, np.dtype(np.float16), 2.0**-10, linear.input_sizes)


@pytest.mark.parametrize("with_sizes", [False, True])
@given(SEEDS, st.integers(1, 3), st.integers(1, 5))
def test_peaks_of_strips_are_those_of_the_whole(with_sizes: bool, seed: int, groups: int, step: int) -> None:
    """Of inputs, too, which each strip has weights of."""
    random = np.random.default_rng(seed)
    outputs, inputs = (int(size) for size in random.integers(1, 6, 2))
    exact = random.standard_normal((groups, outputs, inputs, 3))
    sizes = random.random(groups * inputs) + 0.1 if with_sizes else None
    dtype = np.dtype(np.float16 if with_sizes else np.float32)
    strips = [slice(start, start + step) for start in range(0, outputs, step)]
    parts = ((strip, KernelPeaks.of(exact[:, strip], dtype, sizes)) for strip in strips)
    found = KernelPeaks.whole(parts, groups, groups * outputs, groups * inputs)
    expected = KernelPeaks.of(exact, dtype, sizes)
    for name in ("output_errors", "output_peaks", "input_errors", "input_peaks"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}

SCALES = [1.0, -1.0, 0.0, 2.0**-60, 2.0**-126, 2.0**-140, 2.0**-1070, 2.0**127, 2.0**300, np.inf, np.nan]
"""Factors of a channel; with some, its weights become subnormal or end up beyond a type."""


@pytest.mark.parametrize("layout", [Layout.CONV, Layout.OUT_IN, Layout.STACKED])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@settings(deadline=None)  # threads of a busy machine may wait
@given(
    SEEDS,
    st.integers(1, 3),
    st.lists(st.sampled_from(SCALES), max_size=4),
    st.sampled_from([1, 30, 1 << 18]),
    st.booleans(),
)
def test_channels_that_are_rounded_only_where_they_may_be_the_worst_tell_the_same(
    layout: Layout, dtype: np.dtype[Any], seed: int, groups: int, odd: list[float], elements: int, is_known: bool
) -> None:
    """Beside channels that lose digits, which may count or be hidden behind a shift, and beside infinite ones."""
    random = np.random.default_rng(seed)
    groups = groups if layout is Layout.CONV else 1
    out = 12 * groups
    shapes = {Layout.CONV: (out, 4, 3), Layout.OUT_IN: (out, 12), Layout.STACKED: (3, out // 3, 12)}
    stored = random.normal(size=shapes[layout]).astype(dtype if dtype.itemsize > 2 else np.float32)
    affine = drawn(random, out)
    scale = affine.scale.copy()
    scale[random.permutation(out)[: len(odd)]] = odd
    known = affine.statistics if is_known else None
    linear = Linear(groups, out, 4 * groups if layout is Layout.CONV else 12, 1, 1)
    linear = linear.absorb_output(Affine(scale, affine.shift, 1, known))
    rows = stored.reshape(out, -1)
    kernel = Kernel(stored.shape, layout, groups, lambda: lambda start, stop: rows[start:stop])
    unit = UNITS[dtype.name]
    expected = kernel.measure(linear, None, dtype, unit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bnfold.algebra.kernels.ELEMENTS", elements)
        patch.setattr("bnfold.algebra.kernels.STRIP", 24)
        assert kernel.measure(linear, None, dtype, unit) == expected


def test_few_channels_of_a_large_kernel_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=(1024, 1024)).astype(np.float32)
    kernel = Kernel((1024, 1024), Layout.OUT_IN, 1, lambda: lambda start, stop: weights[start:stop])
    linear = Linear(1, 1024, 1024, 1, 1).absorb_output(drawn(random, 1024))
    rounded: list[int] = []
    measure = KernelPeaks.of
    monkeypatch.setattr(
        KernelPeaks, "of", lambda exact, dtype: (rounded.append(exact.shape[1]), measure(exact, dtype))[1]
    )
    kernel.measure(linear, None, np.dtype(np.float32), 2.0**-23)
    assert 0 < sum(rounded) < 512


@pytest.mark.parametrize("layout", [Layout.CONV, Layout.CONV_TRANSPOSE, Layout.IN_OUT, Layout.OUT_IN])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@given(SEEDS, st.integers(1, 3), st.sampled_from([1, 20, 1 << 16]), st.booleans())
def test_a_kernel_is_rounded_once_in_any_strips(
    layout: Layout, dtype: np.dtype[Any], seed: int, groups: int, strip: int, is_wide: bool
) -> None:
    """With factors on both sides of weights in float64, and on the output side of weights in the type itself."""
    random = np.random.default_rng(seed)
    stored, linear = kernels(random, layout, groups)
    if not is_wide:
        stored, linear = stored.astype(dtype), replace(linear, before=None)
    linear = linear.absorb_output(drawn(random, linear.out_channels))
    rows = stored.reshape(stored.shape[-2] if layout in (Layout.IN_OUT, Layout.OUT_IN) else stored.shape[0], -1)
    kernel = Kernel(stored.shape, layout, linear.groups, lambda: lambda start, stop: rows[start:stop])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bnfold.algebra.kernels.ELEMENTS", 7)
        patch.setattr("bnfold.algebra.linear.STRIP", strip)
        found = np.concatenate([block.round(linear, dtype) for block in kernel.blocks()])
    assert found.dtype == dtype
    assert found.tobytes() == round_once(kernel.solve(linear), dtype).tobytes()


@given(SEEDS)
def test_growth_counts_what_is_added_and_what_is_moved(seed: int) -> None:
    random = np.random.default_rng(seed)
    stored, linear = kernels(random, Layout.CONV, 1)
    bias = random.normal(size=4)
    assert linear.before is not None
    products, results = linear.before.sizes
    squares = (stored**2).sum(axis=2)
    constant = linear.solve_bias(lambda: stored[None], bias)
    assert constant is not None
    after, before = squares @ products + constant**2, squares @ results + bias**2
    channels = np.maximum(after / before, 1)
    expected = max(np.sqrt(channels.mean()), np.sqrt(channels.max()) / 4)
    assert linear.growth(stored[None], bias).factor == pytest.approx(float(expected))


def test_a_channel_of_which_nothing_is_left_grows_by_nothing() -> None:
    zeros = np.zeros(3)
    assert measure_growth(zeros, zeros, zeros, zeros).factor == 1.0
    assert measure_growth(np.ones(1), np.zeros(1), np.zeros(1), np.zeros(1)).factor == np.inf


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@given(SEEDS, st.sampled_from([1e-3, 1.0, 255.0, 1000.0]))
def test_a_batchnorm_that_absorbed_a_map_computes_it(dtype: np.dtype[Any], seed: int, far: float) -> None:
    """From its stored parameters, within one unit of what it computes, however far its data is from zero."""
    random = np.random.default_rng(seed)
    gamma, beta = (round_once(random.normal(size=5), dtype) for _ in range(2))
    mean, var = (round_once(each, dtype) for each in (random.normal(size=5) * far, random.uniform(0.5, 2, 5)))
    original = Affine.from_batchnorm(*(each.astype(np.float64) for each in (gamma, beta, mean, var)), 1e-5)
    inner = Affine(random.uniform(0.5, 2, 5) * random.choice([-1, 1], 5), random.normal(size=5), 1)
    affine = original.after(inner)
    unit = float(ml_dtypes.finfo(dtype).eps)
    solved = solve_batchnorm(affine, mean, var, 1e-5, dtype, unit)
    if solved.rounding.loss is not None:
        assert far * unit > 0.1  # the type cannot tell this mean from one that is a deviation away
        return
    assert solved.rounding.error <= unit
    stored = (each.astype(np.float64) for each in (solved.gamma, solved.beta, solved.mean, solved.var))
    again = Affine.from_batchnorm(*stored, 1e-5)
    assert affine.statistics is not None
    x = affine.statistics.mean + np.sqrt(affine.statistics.variance)
    size = np.abs(affine.scale) * np.sqrt(affine.statistics.variance) + np.abs(original.scale * 0 + beta.astype(float))
    near = 2 * np.finfo(np.float64).eps * far / unit  # the statistics themselves are float64
    np.testing.assert_array_less(
        np.abs(again.scale * x + again.shift - (affine.scale * x + affine.shift)), 2 * (unit + near) * size + 1e-30
    )


@given(SEEDS)
def test_a_batchnorm_that_only_something_behind_it_went_into_keeps_its_statistics(seed: int) -> None:
    random = np.random.default_rng(seed)
    mean, var = random.normal(size=5).astype(np.float32), np.float32([1e-30, 0.0, 1.0, 2.0, 3.0])
    original = Affine.from_batchnorm(random.normal(size=5), random.normal(size=5), mean, var, 1e-5)
    outer = Affine(random.normal(size=5), random.normal(size=5), 1)
    solved = solve_batchnorm(outer.after(original), mean, var, 1e-5, np.dtype(np.float32), 2.0**-23)
    np.testing.assert_array_equal(solved.mean, mean)
    np.testing.assert_array_equal(solved.var, var)


def test_a_column_that_becomes_subnormal_is_a_loss() -> None:
    kernel = np.ones((1, 4, 3))
    kernel[0, :, 1] = 1.013 * 2.0**-20
    found = measure_parameters(kernel, None, np.dtype(np.float16), 2.0**-10)
    assert (found.loss, found.input_loss) == (None, 1)
    assert measure_parameters(kernel, None, np.dtype(np.float32), 2.0**-23).input_loss is None
    kernel[0, :, 1] = 1e-42  # no data of float32 is so large that this counts
    assert measure_parameters(kernel, None, np.dtype(np.float32), 2.0**-23).input_loss is None
