"""`round_once` gives the nearest value, ties to even, in exact fractions; losses are measured."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import copysign, frexp, inf, ldexp, nan

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bnfold.algebra.affine import Array
from bnfold.algebra.rounding import measure_parameters, measure_rounding, round_once


@dataclass(frozen=True)
class Format:
    """A binary format: fraction bits, exponents of its smallest and largest normal values."""

    dtype: np.dtype[np.generic]
    digits: int
    smallest: int
    largest: int

    def __str__(self) -> str:
        """The name, for the test's id."""
        return self.dtype.name

    @property
    def unit(self) -> float:
        """The spacing at 1."""
        return ldexp(1.0, -self.digits)

    def nearest(self, value: float) -> float:
        """The nearest value in exact arithmetic, ties to even, IEEE 754 overflow, signed zeros."""
        exact = abs(Fraction(value))
        exponent = max(frexp(value)[1] - 1, self.smallest)
        quantum = Fraction(2) ** (exponent - self.digits)
        steps, rest = divmod(exact, quantum)
        half = quantum / 2
        steps += rest > half or (rest == half and steps % 2 == 1)
        rounded = steps * quantum
        return copysign(inf if rounded >= Fraction(2) ** (self.largest + 1) else float(rounded), value)


FLOAT16 = Format(np.dtype(np.float16), 10, -14, 15)
FLOAT32 = Format(np.dtype(np.float32), 23, -126, 127)
BFLOAT16 = Format(np.dtype(ml_dtypes.bfloat16), 7, -126, 127)
FORMATS = [FLOAT16, FLOAT32, BFLOAT16]


def widen(rounded: npt.NDArray[np.generic]) -> Array:
    """The stored values in float64, which holds all of them exactly."""
    return rounded.astype(np.float64)


def assert_rounds(form: Format, values: list[float]) -> None:
    """Each value and its negative go to the nearest one of the format, signs of zeros included."""
    signed = np.array([*values, *(-value for value in values)])
    rounded = round_once(signed, form.dtype)
    assert rounded.dtype == form.dtype
    assert rounded.shape == signed.shape
    actual = [value.hex() for value in widen(rounded).tolist()]
    assert actual == [form.nearest(value).hex() for value in signed.tolist()]


@st.composite
def hard_values(draw: st.DrawFn, form: Format) -> float:
    """Values on, half way between and just off a format's grid, from subnormals to overflow."""
    exponent = draw(st.integers(form.smallest - form.digits - 3, form.largest + 1))
    half_steps = draw(st.integers(0, 2 ** (form.digits + 2)))
    on_grid = ldexp(float(half_steps), exponent - form.digits - 1)
    if not np.isfinite(on_grid):
        return ldexp(1.0, form.largest)
    if draw(st.booleans()):
        return float(np.nextafter(on_grid, draw(st.sampled_from([-inf, on_grid, inf]))))
    return on_grid * (1 + draw(st.sampled_from([1, -1])) * ldexp(1.0, draw(st.integers(-40, -10))))


@pytest.mark.parametrize("form", FORMATS, ids=str)
@given(data=st.data())
def test_rounds_to_the_nearest_value(form: Format, data: st.DataObject) -> None:
    assert_rounds(form, data.draw(st.lists(hard_values(form), min_size=1, max_size=20)))


@pytest.mark.parametrize("form", FORMATS, ids=str)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=10))
@example(values=[2.0**-1074, 2.0**1023, 0.0])
def test_rounds_any_finite_value(form: Format, values: list[float]) -> None:
    assert_rounds(form, values)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_stored_value_and_every_half_way_point_rounds_right(form: Format) -> None:
    """All neighbours of the 16-bit formats, a sample of float32's; ties go to the even bits."""
    unsigned = np.dtype(f"u{form.dtype.itemsize}")
    largest = int(np.array(inf, form.dtype).view(unsigned)[()]) - 1
    bits = np.arange(0, largest, 1 if form is not FLOAT32 else 65537)
    low, high = (widen((bits + step).astype(unsigned).view(form.dtype)) for step in (0, 1))
    half = (low + high) / 2
    even = np.where(bits % 2 == 0, low, high)
    below, above = np.nextafter(half, -inf), np.nextafter(half, inf)
    for sign in (1, -1):
        for value, expected in (
            (low, low),
            (high, high),
            (half, even),
            (below, low),
            (above, high),
        ):
            np.testing.assert_array_equal(widen(round_once(sign * value, form.dtype)), sign * expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 2**-8, 1.0),  # tie, to even below
        (1 + 3 * 2**-8, 1 + 2**-6),  # tie, to even above
        (1 + 2**-8 + 2**-40, 1 + 2**-7),  # just above a tie: float32 rounds it onto the tie
        (1 + 3 * 2**-8 - 2**-40, 1 + 2**-7),  # just below a tie
        (1 + 2**-8 + 2**-52, 1 + 2**-7),
        (1 + 3 * 2**-8 - 2**-52, 1 + 2**-7),
    ],
)
def test_bfloat16_is_not_rounded_by_way_of_float32(value: float, expected: float) -> None:
    for sign in (1, -1):
        for scale in (1.0, 2.0**-100, 2.0**100):
            rounded = widen(round_once(np.array([sign * value * scale]), BFLOAT16.dtype))
            assert rounded[0] == sign * expected * scale


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_overflow_goes_to_infinity_at_half_a_step_beyond_the_largest(form: Format) -> None:
    top = ldexp(2 - form.unit, form.largest)
    limit = ldexp(2 - form.unit / 2, form.largest)
    below = float(np.nextafter(limit, 0))
    assert widen(round_once(np.array([top, below, limit, 1e300, inf]), form.dtype)).tolist() == [
        top,
        top,
        inf,
        inf,
        inf,
    ]
    assert_rounds(form, [top, below, limit, 1e300])


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_the_smallest_subnormal_and_its_half(form: Format) -> None:
    tiny = ldexp(1.0, form.smallest - form.digits)
    assert_rounds(
        form,
        [
            tiny,
            tiny / 2,
            float(np.nextafter(tiny / 2, 1)),
            float(np.nextafter(tiny / 2, 0)),
            1.5 * tiny,
        ],
    )


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_infinities_and_nan_stay(form: Format) -> None:
    rounded = widen(round_once(np.array([inf, -inf, nan, 0.0, -0.0]), form.dtype))
    np.testing.assert_array_equal(rounded, [inf, -inf, nan, 0.0, 0.0])
    assert np.signbit(rounded[3:]).tolist() == [False, True]


@pytest.mark.parametrize("form", [*FORMATS, Format(np.dtype(np.float64), 52, -1022, 1023)], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 1, 2)])
def test_shape_dtype_and_the_original_stay(form: Format, shape: tuple[int, ...]) -> None:
    exact = np.random.default_rng(0).normal(size=shape)
    kept = exact.copy()
    rounded = round_once(np.asarray(exact), form.dtype)
    assert rounded.dtype == form.dtype
    assert rounded.shape == shape
    np.testing.assert_array_equal(exact, kept)
    transposed = np.asarray(exact).T
    np.testing.assert_array_equal(widen(round_once(transposed, form.dtype)), widen(np.asarray(rounded).T))


def test_float64_is_not_rounded() -> None:
    exact = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_array_equal(round_once(exact, np.dtype(np.float64)), exact)


# What a rounding loses


@pytest.mark.parametrize("form", FORMATS, ids=str)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.0, 3.0))
def test_ordinary_weights_lose_nothing_that_counts(form: Format, seed: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    kernel = random.normal(size=(2, 3, 4, 3)) * np.exp(spread * random.normal(size=(2, 3, 1, 1)))
    bias = random.normal(size=6)
    found = measure_parameters(kernel, bias, form.dtype, form.unit)
    assert found.overflow is None
    assert found.loss is None
    # Half a step at most: of the channel's largest value, or of what the bias is judged against.
    assert 0 < found.error <= form.unit / 2


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("channel", range(6))
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_of_a_weight_names_the_output_channel(form: Format, channel: int, sign: int) -> None:
    kernel = np.ones((2, 3, 4, 3))
    kernel[channel // 3, channel % 3, 2, 1] = sign * ldexp(1.0, form.largest + 1)
    found = measure_parameters(kernel, np.ones(6), form.dtype, form.unit)
    assert found.overflow == channel
    assert found.error == inf


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("channel", range(6))
def test_overflow_of_a_bias_names_its_channel(form: Format, channel: int) -> None:
    bias = np.ones(6)
    bias[channel] = -ldexp(1.0, form.largest + 1)
    assert measure_parameters(np.ones((2, 3, 4, 3)), bias, form.dtype, form.unit).overflow == channel


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_value_that_was_never_finite_is_an_overflow(bad: float) -> None:
    kernel, bias = np.ones((1, 3, 2)), np.ones(3)
    kernel[0, 2, 1] = bad
    assert measure_parameters(kernel, None, FLOAT32.dtype, FLOAT32.unit).overflow == 2
    bias[1] = bad
    assert measure_parameters(np.ones((1, 3, 2)), bias, FLOAT32.dtype, FLOAT32.unit).overflow == 1


def test_the_largest_value_is_no_overflow() -> None:
    kernel = np.full((1, 2, 2), 65504.0)
    found = measure_parameters(kernel, None, FLOAT16.dtype, FLOAT16.unit)
    assert (found.error, found.overflow, found.loss) == (0.0, None, None)


def test_a_bias_leaves_room_for_the_product_that_it_is_added_to() -> None:
    """A product is about as large as a bias that it cancels, and is a value of its own where the bias is an Add."""
    for bias, overflow in ((32752.0, None), (32776.0, 1)):
        found = measure_parameters(np.ones((1, 2, 2)), np.array([1.0, -bias]), FLOAT16.dtype, FLOAT16.unit)
        assert found.overflow == overflow


@pytest.mark.parametrize("channel", range(6))
@pytest.mark.parametrize("size", [2.0**-25 * 1.1, 2.0**-20 * 1.013, 2.0**-26])
def test_a_subnormal_channel_in_float16_is_a_loss(channel: int, size: float) -> None:
    kernel = np.ones((2, 3, 4, 3))
    kernel[channel // 3, channel % 3] = -size
    found = measure_parameters(kernel, np.ones(6), FLOAT16.dtype, FLOAT16.unit)
    assert found.overflow is None
    assert found.loss == channel
    assert found.error > FLOAT16.unit


def test_the_first_channel_that_loses_is_named() -> None:
    flat = np.array([[1.0, 1.0], [1e-7, 1.0], [1e-7, 1e-7], [1.0, 1.0], [3e-8, 0.0]])
    found = measure_rounding(flat, round_once(flat, FLOAT16.dtype), FLOAT16.unit)
    assert found.loss == 2


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 1e-7], [1.0, 1e-30]],  # tiny beside the largest weight of its channel
        [[0.0, 0.0], [-0.0, 1.0]],  # a pruned channel
        [[2.0**-24, 0.0], [2.0**-20, 2.0**-19]],  # subnormal, but exact
        [[2.0**-14, 2.0**-15 * 1.013], [-(2.0**-14), 0.0]],  # smallest normal
        [[60000.0, 1e-3], [-65504.0, 1.0]],
    ],
    ids=["tiny-weight", "zeros", "exact-subnormal", "smallest-normal", "large"],
)
def test_harmless_float16_channels_are_not_flagged(rows: list[list[float]]) -> None:
    kernel = np.array([rows])
    found = measure_parameters(kernel, None, FLOAT16.dtype, FLOAT16.unit)
    assert (found.overflow, found.loss) == (None, None)
    assert found.error <= FLOAT16.unit / 2


def test_a_tiny_bias_is_judged_beside_the_weights() -> None:
    tiny = np.array([1e-8, 1e-7])
    found = measure_parameters(np.ones((1, 2, 2)), tiny, FLOAT16.dtype, FLOAT16.unit)
    assert (found.overflow, found.loss) == (None, None)
    # Beside no weights at all there is nothing else to judge it by.
    assert measure_parameters(np.zeros((1, 2, 2)), tiny, FLOAT16.dtype, FLOAT16.unit).loss == 0


def test_measured_error_is_relative_to_the_largest_of_its_channel() -> None:
    exact = np.array([[4 + 2.0**-9, 1.0], [2.0, 1.0]])
    found = measure_rounding(exact, round_once(exact, FLOAT16.dtype), FLOAT16.unit)
    assert found.error == 2.0**-9 / (4 + 2.0**-9)
    assert found.loss is None
    floored = measure_rounding(exact, round_once(exact, FLOAT16.dtype), FLOAT16.unit, 8.0)
    assert floored.error == 2.0**-12


@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (3, 0, 2)])
def test_nothing_loses_nothing(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape)
    found = measure_rounding(empty, round_once(empty, FLOAT16.dtype), FLOAT16.unit)
    assert (found.error, found.overflow, found.loss) == (0.0, None, None)
