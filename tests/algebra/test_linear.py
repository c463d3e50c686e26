"""Laws of `Linear`: weights with absorbed affines compute what the affines outside computed.

Everything is compared with a plain evaluation in float64, at 1e-12 of the largest value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import Border, Layout, Linear

SEEDS = st.integers(0, 2**32 - 1)
Evaluate = Callable[[Array, Array, Array | None], Array]
"""An operator as a function of its data, its canonical kernel and its bias."""


def assert_close(actual: Array, expected: Array) -> None:
    """Equal at 1e-12 of the largest expected value."""
    assert actual.shape == expected.shape
    atol = 1e-12 * max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


# Plain evaluation


def place_bias(y: Array, bias: Array | None, axis: int) -> Array:
    """`y` with one entry of `bias` for each index of `axis`."""
    return y if bias is None else y + bias.reshape([-1] + [1] * (y.ndim - axis - 1))


def at(places: Sequence[int | slice]) -> Any:
    """An index of the last axes."""
    return (..., *places)


def convolve(
    x: Array,
    kernel: Array,
    bias: Array | None,
    stride: int = 1,
    dilation: int = 1,
    padding: int = 0,
) -> Array:
    """``y[n, g o, p] = sum_{i, t} K[g, o, i, t] x[n, g i, stride p + dilation t]``."""
    groups, out, fan_in, *window = kernel.shape
    x = np.pad(x, [(0, 0), (0, 0)] + [(padding, padding)] * len(window))
    grouped = x.reshape(len(x), groups, fan_in, *x.shape[2:])
    sizes = [
        (length - dilation * (taps - 1) - 1) // stride + 1 for length, taps in zip(x.shape[2:], window, strict=True)
    ]
    y = np.zeros((len(x), groups, out, *sizes))
    for tap in itertools.product(*(range(taps) for taps in window)):
        starts = [dilation * offset for offset in tap]
        seen = [slice(a, a + stride * n, stride) for a, n in zip(starts, sizes, strict=True)]
        y += np.einsum("goi,ngi...->ngo...", kernel[at(tap)], grouped[at(seen)])
    return place_bias(y.reshape(len(x), groups * out, *sizes), bias, 1)


def convolve_transposed(
    x: Array,
    kernel: Array,
    bias: Array | None,
    stride: int = 1,
    dilation: int = 1,
    padding: int = 0,
) -> Array:
    """``y[n, g o, stride p + dilation t - padding] += K[g, o, i, t] x[n, g i, p]``."""
    groups, out, fan_in, *window = kernel.shape
    grouped = x.reshape(len(x), groups, fan_in, *x.shape[2:])
    sizes = [
        stride * (length - 1) + dilation * (taps - 1) + 1 for length, taps in zip(x.shape[2:], window, strict=True)
    ]
    y = np.zeros((len(x), groups, out, *sizes))
    for tap in itertools.product(*(range(taps) for taps in window)):
        starts = [dilation * offset for offset in tap]
        touched = [slice(a, a + stride * (n - 1) + 1, stride) for a, n in zip(starts, x.shape[2:], strict=True)]
        y[at(touched)] += np.einsum("goi,ngi...->ngo...", kernel[at(tap)], grouped)
    kept = [slice(padding, size - padding) for size in sizes]
    return place_bias(y[at(kept)].reshape(len(x), groups * out, *(k.stop - k.start for k in kept)), bias, 1)


def multiply_right(x: Array, kernel: Array, bias: Array | None) -> Array:
    """``x @ K``: channels last; the canonical kernel is ``[1, out, in]``."""
    return place_bias(x @ kernel[0].T, bias, x.ndim - 1)


def multiply_left(x: Array, kernel: Array, bias: Array | None) -> Array:
    """``K @ x``: channels last but one."""
    return place_bias(kernel[0] @ x, bias, x.ndim - 2)


# The operators


@dataclass(frozen=True)
class Case:
    """One operator: how it is described, and how it is evaluated."""

    name: str
    linear: Linear
    evaluate: Evaluate
    data: tuple[int, ...]
    kernel: tuple[int, ...]

    def __str__(self) -> str:
        """The name, for the test's id."""
        return self.name


def conv_cases() -> list[Case]:
    """Convolutions and transposed ones: every grouping, window rank 0 to 3, stride, dilation."""
    groupings = {
        "1-group": (1, 3, 2),
        "2-groups": (2, 2, 3),
        "3-groups": (3, 1, 2),
        "depthwise": (4, 1, 1),
    }
    windows = [
        ((), 1, 1), ((3,), 1, 1), ((3,), 2, 2), ((2, 3), 1, 1), ((3, 2), 2, 1), ((2, 3), 3, 2),
        ((2, 1, 3), 2, 1),
    ]  # fmt: skip
    cases = []
    for (name, (groups, out, fan_in)), (window, stride, dilation) in itertools.product(groupings.items(), windows):
        suffix = f"{name}-window{window}-stride{stride}-dilation{dilation}"
        data = (2, groups * fan_in, *(7 + k for k in range(len(window))))
        kernel = (groups, out, fan_in, *window)

        def conv(x: Array, k: Array, b: Array | None, s: int = stride, d: int = dilation) -> Array:
            return convolve(x, k, b, s, d)

        def transposed(x: Array, k: Array, b: Array | None, s: int = stride, d: int = dilation) -> Array:
            return convolve_transposed(x, k, b, s, d, padding=1)

        plain = Linear(groups, groups * out, groups * fan_in, 1, 1)
        cases.append(Case(f"conv-{suffix}", plain, conv, data, kernel))
        partial = Linear(groups, groups * out, groups * fan_in, 1, 1, Border.PARTIAL)
        cases.append(Case(f"transposed-{suffix}", partial, transposed, data, kernel))
    return cases


CASES = [
    *conv_cases(),
    Case("gemm", Linear(1, 3, 4, 1, 1), multiply_right, (2, 4), (1, 3, 4)),
    Case("matmul-right", Linear(1, 3, 4, 3, 3), multiply_right, (2, 3, 5, 4), (1, 3, 4)),
    Case("matmul-left", Linear(1, 3, 4, 1, 1), multiply_left, (2, 4, 5), (1, 3, 4)),
]


def draw_affine(random: np.random.Generator, size: int, axis: int | None, has_shift: bool = True) -> Affine:
    """An affine with scales of both signs."""
    assert axis is not None
    shift = random.normal(size=size) if has_shift else np.zeros(size)
    return Affine(random.normal(size=size), shift, axis)


def solve(linear: Linear, kernel: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """The kernel and bias with everything absorbed."""
    return linear.solve_kernel(kernel), linear.solve_bias(lambda: kernel, bias)


# Layouts


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("window", [(), (3,), (2, 3), (2, 1, 3)], ids=len)
@pytest.mark.parametrize("layout", [Layout.CONV, Layout.CONV_TRANSPOSE])
@pytest.mark.parametrize(("out", "fan_in"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_canonical_convolution_kernels_name_group_out_in(
    layout: Layout, window: tuple[int, ...], groups: int, out: int, fan_in: int
) -> None:
    first, second = (groups * out, fan_in) if layout is Layout.CONV else (groups * fan_in, out)
    native = np.random.default_rng(0).normal(size=(first, second, *window))
    canonical = layout.canonical(native, groups)
    assert canonical.shape == (groups, out, fan_in, *window)
    for g, o, i in itertools.product(range(groups), range(out), range(fan_in)):
        place = (g * out + o, i) if layout is Layout.CONV else (g * fan_in + i, o)
        np.testing.assert_array_equal(canonical[g, o, i], native[place])
    np.testing.assert_array_equal(layout.native(canonical, native.shape), native)
    # A fresh contiguous kernel, as solve_kernel makes one, comes back alike.
    np.testing.assert_array_equal(layout.native(canonical.copy(), native.shape), native)


@pytest.mark.parametrize("layout", [Layout.IN_OUT, Layout.OUT_IN])
@pytest.mark.parametrize("ones", [0, 1, 2])
def test_canonical_matrices_name_out_in(layout: Layout, ones: int) -> None:
    native = np.random.default_rng(0).normal(size=(*[1] * ones, 3, 4))
    canonical = layout.canonical(native)
    matrix = native.reshape(3, 4)
    np.testing.assert_array_equal(canonical, (matrix.T if layout is Layout.IN_OUT else matrix)[None])
    np.testing.assert_array_equal(layout.native(canonical.copy(), native.shape), native)


def test_stacked_matrices_share_their_input() -> None:
    native = np.random.default_rng(0).normal(size=(2, 12, 5))
    canonical = Layout.STACKED.canonical(native)
    assert canonical.shape == (1, 24, 5)
    np.testing.assert_array_equal(canonical[0, 12:], native[1])
    np.testing.assert_array_equal(Layout.STACKED.native(canonical.copy(), native.shape), native)


@pytest.mark.parametrize("layout", Layout)
def test_canonical_is_a_view(layout: Layout) -> None:
    native = np.zeros((6, 4))
    assert np.shares_memory(layout.canonical(native, 1), native)


# Absorbing


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, outer=st.integers(0, 3), inner=st.integers(0, 3))
def test_absorbed_affines_compute_what_they_computed_outside(
    case: Case, has_bias: bool, seed: int, outer: int, inner: int
) -> None:
    random = np.random.default_rng(seed)
    linear, kernel = case.linear, random.normal(size=case.kernel)
    bias = random.normal(size=linear.out_channels) if has_bias else None
    # A shift does not pass a transposed convolution's border.
    has_shift = linear.border is not Border.PARTIAL
    before = [draw_affine(random, linear.in_channels, linear.axis_in, has_shift) for _ in range(inner)]
    after = [draw_affine(random, linear.out_channels, linear.axis_out) for _ in range(outer)]
    x = random.normal(size=case.data)

    expected = x
    for affine in before:
        expected = affine(expected)
    expected = case.evaluate(expected, kernel, bias)
    for affine in after:
        expected = affine(expected)

    # On the input side the affine nearest to the operator comes first; the sides interleave.
    for k in range(3):
        if k < inner:
            linear = linear.absorb_input(before[-1 - k])
        if k < outer:
            linear = linear.absorb_output(after[k])
    assert linear.is_exact
    assert_close(case.evaluate(x, *solve(linear, kernel, bias)), expected)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_solved_weights_go_back_to_their_native_layout(layout: Layout, groups: int) -> None:
    matrix = layout not in (Layout.CONV, Layout.CONV_TRANSPOSE)
    groups, window = (1, ()) if matrix else (groups, (3, 2))
    out, fan_in = 3 * groups, 2 * groups
    shape = {
        Layout.CONV: (out, 2, *window), Layout.CONV_TRANSPOSE: (fan_in, 3, *window),
        Layout.IN_OUT: (2, 3), Layout.OUT_IN: (3, 2), Layout.STACKED: (3, 1, 2),
    }[layout]  # fmt: skip
    random = np.random.default_rng(1)
    native = random.normal(size=shape)
    before, after = draw_affine(random, fan_in, 1), draw_affine(random, out, 1)
    linear = Linear(groups, out, fan_in, 1, 1).absorb_input(before).absorb_output(after)
    solved = layout.native(linear.solve_kernel(layout.canonical(native, groups)), shape)
    expected = native.copy()
    for place in np.ndindex(shape):
        first, second = place[:2]
        match layout:
            case Layout.CONV:
                o, i = first, first // 3 * 2 + second
            case Layout.CONV_TRANSPOSE:
                o, i = first // 2 * 3 + second, first
            case Layout.IN_OUT:
                o, i = second, first
            case Layout.OUT_IN:
                o, i = first, second
            case Layout.STACKED:
                o, i = first, place[2]
        expected[place] *= after.scale[o] * before.scale[i]
    assert_close(solved, expected)


def test_absorbing_changes_neither_the_operator_nor_the_weights() -> None:
    random = np.random.default_rng(2)
    linear, kernel, bias = (
        Linear(1, 3, 2, 1, 1),
        random.normal(size=(1, 3, 2)),
        random.normal(size=3),
    )
    kept_kernel, kept_bias = kernel.copy(), bias.copy()
    absorbed = linear.absorb_output(draw_affine(random, 3, 1)).absorb_input(draw_affine(random, 2, 1))
    solve(absorbed, kernel, bias)
    assert linear.before is None
    assert linear.after is None
    np.testing.assert_array_equal(kernel, kept_kernel)
    np.testing.assert_array_equal(bias, kept_bias)


def refuse_to_load() -> npt.NDArray[np.generic]:
    """A kernel that nobody may read."""
    raise AssertionError("the kernel was loaded")


def test_a_bias_appears_only_where_something_is_shifted() -> None:
    random = np.random.default_rng(3)
    linear = Linear(1, 3, 2, 1, 1)
    scaled = linear.absorb_output(draw_affine(random, 3, 1, False)).absorb_input(draw_affine(random, 2, 1, False))
    assert not scaled.makes_bias
    assert scaled.solve_bias(refuse_to_load, None) is None
    assert linear.absorb_output(draw_affine(random, 3, 1)).makes_bias
    assert linear.absorb_input(draw_affine(random, 2, 1)).makes_bias


def test_the_kernel_is_read_for_the_bias_only_where_the_input_is_shifted() -> None:
    random = np.random.default_rng(4)
    linear = Linear(1, 3, 2, 1, 1)
    linear = linear.absorb_output(draw_affine(random, 3, 1)).absorb_input(draw_affine(random, 2, 1, False))
    assert linear.solve_bias(refuse_to_load, np.ones(3)) is not None
    with pytest.raises(AssertionError, match="loaded"):
        linear.absorb_input(draw_affine(random, 2, 1)).solve_bias(refuse_to_load, None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_weights_are_solved_in_float64(dtype: npt.DTypeLike) -> None:
    random = np.random.default_rng(5)
    kernel, bias = (
        random.normal(size=(2, 2, 3, 3)).astype(dtype),
        random.normal(size=4).astype(dtype),
    )
    linear = Linear(2, 4, 6, 1, 1).absorb_input(draw_affine(random, 6, 1)).absorb_output(draw_affine(random, 4, 1))
    solved_bias = linear.solve_bias(lambda: kernel, bias)
    wide_kernel, wide_bias = solve(linear, kernel.astype(np.float64), bias.astype(np.float64))
    assert solved_bias is not None
    assert wide_bias is not None
    np.testing.assert_array_equal(linear.solve_kernel(kernel), wide_kernel)
    np.testing.assert_array_equal(solved_bias, wide_bias)


@pytest.mark.parametrize(
    "affine",
    [Affine.identity(3, 2), Affine.identity(2, 1), Affine.identity(1, 1)],
    ids=["axis", "size", "one-channel"],
)
def test_an_affine_off_the_channels_is_an_error(affine: Affine) -> None:
    linear = Linear(1, 3, 3, 1, 1)
    with pytest.raises(ValueError, match="output channels"):
        linear.absorb_output(affine)
    with pytest.raises(ValueError, match="input channels"):
        linear.absorb_input(affine)


def test_a_side_without_an_axis_absorbs_nothing() -> None:
    linear = Linear(1, 3, 3, None, None)
    with pytest.raises(ValueError, match="output channels"):
        linear.absorb_output(Affine.identity(3, 1))
    with pytest.raises(ValueError, match="input channels"):
        linear.absorb_input(Affine.identity(3, 1))


# Borders


def fixing(scale: npt.ArrayLike, point: float) -> Affine:
    """The affine of these scales with ``affine(point) == 0`` in every channel."""
    return Affine.of(scale, -np.asarray(scale, np.float64) * point)


@pytest.mark.parametrize(
    ("border", "affine", "is_exact", "fill"),
    [
        (Border.NONE, Affine.of([1, 2], [3, 4]), True, 0.0),
        (Border.PADDED, Affine.of([1, -2], 0), True, 0.0),
        (Border.PARTIAL, Affine.of([1, -2], 0), True, 0.0),
        (Border.PADDED, Affine.of([0, -2], 0), True, 0.0),
        (Border.PADDED, Affine.of([1, 2], [3, 4]), False, float("nan")),
        (Border.PADDED, Affine.of([1, 1], [3, 0]), False, float("nan")),
        (Border.PADDED, Affine.of([1, 0], [3, 3]), False, float("nan")),
        (Border.PADDED, Affine.of([1, 2], [3, -6]), False, float("nan")),
        (Border.PADDED, fixing([1, 2], 3), True, 3.0),
        (Border.PADDED, fixing([-1, 2], -3), True, -3.0),
        (Border.PARTIAL, fixing([1, 2], 3), False, 0.0),
        (Border.PARTIAL, Affine.of([1, 2], [3, 4]), False, 0.0),
    ],
)
def test_a_shift_is_exact_only_where_the_border_allows_it(
    border: Border, affine: Affine, is_exact: bool, fill: float
) -> None:
    linear = Linear(1, 3, 2, 1, 1, border).absorb_input(affine)
    assert linear.is_exact is is_exact
    np.testing.assert_equal(linear.fill, fill)
    # What is absorbed on the output side has no border.
    assert linear.absorb_output(Affine.of([1, 2, 3], [4, 5, 6])).is_exact is is_exact


@pytest.mark.parametrize("border", Border)
def test_without_absorbed_input_everything_is_exact(border: Border) -> None:
    linear = Linear(1, 3, 2, 1, 1, border)
    assert linear.is_exact
    assert linear.absorb_output(Affine.of([1, 2, 3], [4, 5, 6])).is_exact
    assert linear.fill == 0.0


def test_fill_follows_the_whole_stack_of_absorbed_affines() -> None:
    shift = Affine.of([2, 4], [1, 2])
    assert not Linear(1, 1, 2, 1, 1, Border.PADDED).absorb_input(shift).absorb_input(Affine.of([1, 2], 0)).is_exact
    undone = Affine.of([0.5, 0.25], [-0.5, -0.5])  # inverse of shift: nothing is left to pad
    linear = Linear(1, 1, 2, 1, 1, Border.PADDED).absorb_input(undone).absorb_input(shift)
    assert linear.is_exact
    assert linear.fill == 0.0


@pytest.mark.parametrize("window", [(3,), (3, 2), (2, 1, 3)], ids=len)
@pytest.mark.parametrize("groups", [1, 2])
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, point=st.integers(-8, 8), stride=st.integers(1, 2), padding=st.integers(1, 2))
def test_padding_with_fill_equals_zeros_after_the_affine(
    window: tuple[int, ...], groups: int, seed: int, point: int, stride: int, padding: int
) -> None:
    random = np.random.default_rng(seed)
    kernel = random.normal(size=(groups, 2, 3, *window))
    x = random.normal(size=(2, 3 * groups, *(4 + k for k in range(len(window)))))
    scale = random.choice([-2.0, -0.5, 0.25, 1.0, 4.0], size=3 * groups)
    affine = fixing(scale, point)
    linear = Linear(groups, 2 * groups, 3 * groups, 1, 1, Border.PADDED).absorb_input(affine)
    assert linear.is_exact
    assert linear.fill == point
    around = [(0, 0), (0, 0)] + [(padding, padding)] * len(window)
    filled = np.pad(x, around, constant_values=linear.fill)
    expected = convolve(affine(x), kernel, None, stride, padding=padding)
    assert_close(convolve(filled, *solve(linear, kernel, None), stride), expected)


def test_zero_padding_after_a_shift_is_not_the_padding_of_the_solved_weights() -> None:
    """The trap behind `is_exact`: inside all is well, and at the border the shift is missing."""
    random = np.random.default_rng(6)
    kernel, x = random.normal(size=(1, 2, 3, 3)), random.normal(size=(1, 3, 8))
    affine = draw_affine(random, 3, 1)
    linear = Linear(1, 2, 3, 1, 1, Border.PADDED).absorb_input(affine)
    assert not linear.is_exact
    expected = convolve(affine(x), kernel, None, padding=1)
    actual = convolve(x, *solve(linear, kernel, None), padding=1)
    assert_close(actual[..., 1:-1], expected[..., 1:-1])
    assert np.abs(actual - expected)[..., [0, -1]].min() > 1e-3


def test_a_transposed_convolution_does_not_spread_a_shift_evenly() -> None:
    random = np.random.default_rng(7)
    kernel, x = random.normal(size=(1, 2, 3, 3)), random.normal(size=(1, 3, 6))
    affine = fixing([1.0, 2.0, 4.0], 3.0)
    linear = Linear(1, 2, 3, 1, 1, Border.PARTIAL).absorb_input(affine)
    assert not linear.is_exact
    expected = convolve_transposed(affine(x), kernel, None, stride=2)
    actual = convolve_transposed(x, *solve(linear, kernel, None), stride=2)
    assert np.abs(actual - expected).max() > 1e-3
