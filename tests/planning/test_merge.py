"""Laws of merging: one operator computes what several computed, in float64 at 1e-12.

The oracle adds up taps one by one and knows nothing of kernels that are placed in kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bnfold.algebra import terms
from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import Border, Factor, Linear, Window
from bnfold.algebra.terms import Parameters
from bnfold.graph.outcome import Stop
from bnfold.planning.merging import rule
from bnfold.planning.merging.rule import Branch, chain, merge, per_channel, place, stack

Draw = Callable[[int, int], int]


def convolve(x: Array, kernel: Array, window: Window) -> Array:
    """``y[n, g o, p] = sum_{i, t} K[g, o, i, t] x[n, g i, stride p + dilation t - begin]``; outside of `x` is zero."""
    groups, out, fan_in = kernel.shape[:3]
    axes = list(
        zip(window.taps, window.strides, window.dilations, window.begins, window.ends, x.shape[2:], strict=True)
    )
    sizes = [(length + b + e - d * (k - 1) - 1) // s + 1 for k, s, d, b, e, length in axes]
    grouped = x.reshape(len(x), groups, fan_in, *x.shape[2:])
    y = np.zeros((len(x), groups, out, *sizes))
    for tap in itertools.product(*(range(k) for k in window.taps)):
        for position in itertools.product(*(range(size) for size in sizes)):
            read = [s * p + d * t - b for (_, s, d, b, _, _), p, t in zip(axes, position, tap, strict=True)]
            if all(0 <= r < length for r, length in zip(read, x.shape[2:], strict=True)):
                seen = grouped[(..., *read)]
                y[(..., *position)] += np.einsum("goi,ngi->ngo", kernel[(..., *tap)], seen)
    return y.reshape(len(x), groups * out, *sizes)


def apply(linear: Linear, kernel: Array, bias: Array | None, x: Array) -> Array:
    """The operator with what it absorbed, evaluated one step after the other."""
    assert linear.window is not None
    y = convolve(x if linear.before is None else linear.before(x), kernel, linear.window)
    if bias is not None:
        y = y + bias.reshape(-1, *[1] * (y.ndim - 2))
    return y if linear.after is None else linear.after(y)


def solved(linear: Linear, stored: dict[Any, Parameters], x: Array) -> Array:
    """The merged operator as it would be written, evaluated."""
    load = stored.__getitem__
    inner = terms.kernel(linear, load)
    kernel = linear.solve_kernel(inner)
    bias = linear.solve_bias(lambda: inner, terms.bias(linear, load))
    return apply(replace(linear, before=None, after=None), kernel, bias, x)


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    bound = 1e-12 * max(1.0, float(np.abs(expected).max(initial=0.0)))
    assert float(np.abs(actual - expected).max(initial=0.0)) <= bound


class Drawn:
    """Operators with random weights, drawn one after the other."""

    def __init__(self, draw: Draw, seed: int) -> None:
        self.draw = draw
        self.random = np.random.default_rng(seed)
        self.stored: dict[Any, Parameters] = {}

    def affine(self, size: int, has_shift: bool = True) -> Affine:
        shift = self.random.standard_normal(size) if has_shift else np.zeros(size)
        return Affine.of(self.random.standard_normal(size), shift)

    def factor(self, window: Window, groups: int, out: int, fan_in: int, shifts: bool = True) -> tuple[Factor, Array]:
        """A convolution with weights, and what it has absorbed."""
        border = Border.PADDED if any(window.begins + window.ends) else Border.NONE
        kernel = self.random.standard_normal((groups, out // groups, fan_in // groups, *window.taps))
        bias = self.random.standard_normal(out) if shifts and self.draw(0, 1) else None
        linear = Linear(groups, out, fan_in, 1, 1, border, window=window, has_bias=bias is not None, is_shared=False)
        if self.draw(0, 2) == 0:
            linear = linear.absorb_input(self.affine(fan_in, shifts and border is Border.NONE))
        if self.draw(0, 1):
            linear = linear.absorb_output(self.affine(out, shifts))
        node = f"conv{len(self.stored)}"
        self.stored[node] = Parameters(lambda: kernel, bias)
        return Factor(linear, node), kernel

    def evaluate(self, branch: Branch, x: Array) -> Array:
        for factor in branch.factors:
            linear = factor.linear
            if factor.node is None:
                assert linear.window is not None
                kernel, bias = np.full((linear.groups, 1, 1, *linear.window.taps), factor.weight), None
            else:
                parameters = self.stored[factor.node]
                kernel, bias = np.asarray(parameters.kernel()), parameters.bias
            x = apply(linear, kernel, None if bias is None else np.asarray(bias), x)
        return x


def inside(draw: Draw, host: Window) -> Window | None:
    """A window whose taps are among the host's and whose outputs are as many."""
    columns = []
    for k, s, d, b, _, growth in zip(
        host.taps, host.strides, host.dilations, host.begins, host.ends, host.growth, strict=True
    ):
        step = draw(1, 2)
        taps = draw(1, 1 + (k - 1) // step)
        start = draw(0, k - 1 - step * (taps - 1))
        begin = b - d * start
        end = growth + step * d * (taps - 1) - begin
        if begin < 0 or end < 0:
            return None
        columns.append((taps, s, step * d, begin, end, None))
    return Window(*zip(*columns, strict=True))


def drawn_window(draw: Draw, axes: int) -> Window:
    columns = [(draw(1, 4), draw(1, 3), draw(1, 2), draw(0, 3), draw(0, 3), None) for _ in range(axes)]
    return Window(*zip(*columns, strict=True))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 2**16))
def test_a_merge_is_the_sum_of_its_branches(data: st.DataObject, seed: int) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    made = Drawn(draw, seed)
    axes = draw(1, 2)
    host_window = drawn_window(draw, axes)
    groups = draw(1, 2)
    fan_in, out = groups * draw(1, 2) * 2, groups * draw(1, 2) * 2
    host, kernel = made.factor(host_window, groups, out, fan_in)
    branches = [Branch((host,))]
    for _ in range(draw(1, 3)):
        window = inside(draw, host_window)
        if window is None:
            continue
        if fan_in == out and draw(0, 2) == 0:
            linear = per_channel(window, out, 1).absorb_output(made.affine(out))
            branches.append(Branch((Factor(linear, None, 1 / np.prod(window.taps)),)))
        elif draw(0, 2) == 0:
            middle = groups * draw(1, 3)
            point = Window.point(axes)
            is_padded = any(window.begins + window.ends)
            first, _ = made.factor(point, groups, middle, fan_in, shifts=not is_padded)
            branches.append(Branch((first, made.factor(window, groups, out, middle)[0])))
        else:
            branches.append(Branch((made.factor(window, groups * draw(1, 2), out, fan_in)[0],)))
    constant = made.random.standard_normal(out)
    shape = [max(1, 4 - growth) for growth in host_window.growth]
    x = made.random.standard_normal((2, fan_in, *shape))
    merged = merge(host, branches[1:], constant)
    assert isinstance(merged, Linear), merged
    expected = sum(made.evaluate(branch, x) for branch in branches) + constant.reshape(-1, *[1] * axes)
    assert_close(solved(merged, made.stored, x), expected)
    assert merged.window == host_window  # what it costs
    assert terms.kernel(merged, made.stored.__getitem__).shape == kernel.shape
    rows = slice(draw(0, out - 1), draw(0, out))
    part = terms.kernel_rows(merged, made.stored.__getitem__, rows)
    assert_close(part, terms.kernel_rows(merged, made.stored.__getitem__)[rows])


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 2**16))
def test_a_chain_is_the_composition_and_costs_less(data: st.DataObject, seed: int) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    made = Drawn(draw, seed)
    window = drawn_window(draw, draw(1, 2))
    point = Window.point(len(window.taps))
    windows = (point, window) if draw(0, 1) else (window, point)
    fan_in, middle, out = (2 * draw(1, 3) for _ in range(3))
    both = [1, 2]
    first, one = made.factor(windows[0], both[draw(0, 1)], middle, fan_in, shifts=bool(draw(0, 1)))
    last, two = made.factor(windows[1], both[draw(0, 1)], out, middle)
    found = chain(first, last)
    assume(not isinstance(found, Stop))
    assert not isinstance(found, Stop)
    merged, _ = found
    shape = [max(1, 4 - growth) for growth in window.growth]
    x = made.random.standard_normal((2, fan_in, *shape))
    assert_close(solved(merged, made.stored, x), made.evaluate(Branch((first, last)), x))
    between = apply(first.linear, one, None, x)
    behind = apply(last.linear, two, None, between)
    before = between[0, 0].size * one.size + behind[0, 0].size * two.size
    assert behind[0, 0].size * terms.kernel(merged, made.stored.__getitem__).size <= before


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 2**16))
def test_a_stack_is_the_concatenation(data: st.DataObject, seed: int) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    made = Drawn(draw, seed)
    window = drawn_window(draw, draw(1, 2))
    shifts = bool(draw(0, 1))
    drawn = [made.factor(window, 1, draw(1, 3), 3, shifts)[0] for _ in range(draw(2, 3))]
    found = stack(drawn)
    if len({factor.makes_bias for factor in drawn}) > 1:
        assert found is rule.COST
        return
    assert isinstance(found, Linear)
    x = made.random.standard_normal((2, 3, *[max(1, 4 - growth) for growth in window.growth]))
    parts = [made.evaluate(Branch((factor,)), x) for factor in drawn]
    assert_close(solved(found, made.stored, x), np.concatenate(parts, axis=1))
    load = made.stored.__getitem__
    rows = slice(draw(0, found.out_channels), draw(0, found.out_channels))
    assert_close(terms.kernel_rows(found, load, rows), terms.kernel_rows(found, load)[rows])


def windows_of_one_axis() -> list[Window]:
    sizes = itertools.product((1, 2, 3), (1, 2), (1, 2), (0, 1, 2), (0, 1, 2))
    return [Window((k,), (s,), (d,), (b,), (e,), (None,)) for k, s, d, b, e in sizes if k > 1 or d == 1]


def reads(window: Window, length: int) -> list[list[int]]:
    """For each output, where its taps read (what lies outside of the data too)."""
    ((k,), (s,), (d,), (b,)) = window.taps, window.strides, window.dilations, window.begins
    count = (length + window.growth[0] - 1) // s + 1 if length + window.growth[0] > 0 else 0
    return [[s * p + d * t - b for t in range(k)] for p in range(count)]


def test_place_is_exact_and_complete() -> None:
    """It places exactly the windows that, at every size, see a part of what the other sees."""
    lengths = range(5, 11)
    found = 0
    for inner, outer in itertools.product(windows_of_one_axis(), repeat=2):
        pairs = [(reads(inner, length), reads(outer, length)) for length in lengths]
        fits = inner.strides == outer.strides and all(
            len(mine) == len(other) and all(set(a) <= set(b) for a, b in zip(mine, other, strict=True))
            for mine, other in pairs
        )
        placed = place(inner, outer)
        assert isinstance(placed, Stop) != fits, (inner, outer)
        if not isinstance(placed, Stop):
            found += 1
            assert all(
                [b[t] for t in placed[0]] == a for mine, other in pairs for a, b in zip(mine, other, strict=True)
            )
    assert found > 100


def test_sizes_that_are_known_stand_in_for_unequal_ends() -> None:
    """With stride 2 a zero more at the end is seen at odd lengths only."""
    one, two = (Window((3,), (2,), (1,), (1,), (end,), (4,)) for end in (0, 1))
    assert place(one, two) == (range(3),)
    assert place(replace(one, outputs=(None,)), two) is rule.GEOMETRY
    assert place(replace(one, outputs=(3,)), two) is rule.GEOMETRY


POINT = Window.point(2)
THREE = Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (None, None))


def operator(window: Window | None = THREE, groups: int = 1, out: int = 4, fan_in: int = 4, **others: Any) -> Linear:
    border = Border.PADDED if window is not None and any(window.begins) else Border.NONE
    return Linear(groups, out, fan_in, 1, 1, border, window=window, has_bias=False, is_shared=False, **others)


REFUSALS: dict[str, tuple[Linear, Linear, Stop]] = {
    "dense beside depthwise": (operator(groups=4), operator(POINT), rule.CHANNELS),
    "groups that do not nest": (
        operator(groups=2, out=12, fan_in=12),
        operator(groups=3, out=12, fan_in=12),
        rule.CHANNELS,
    ),
    "other outputs": (operator(), operator(POINT, out=1), rule.CHANNELS),
    "other stride": (operator(), operator(replace(POINT, strides=(2, 2))), rule.GEOMETRY),
    "even window": (operator(), operator(Window((2, 2), (1, 1), (1, 1), (1, 1), (1, 1), (None, None))), rule.GEOMETRY),
    "larger window": (operator(POINT), operator(), rule.OUTSIDE),
    "taps between taps": (
        operator(replace(THREE, dilations=(2, 2), begins=(2, 2), ends=(2, 2))),
        operator(),
        rule.OUTSIDE,
    ),
    "quantised": (operator(), operator(POINT, is_quantized=True), rule.KEPT),
    "quantised host": (operator(is_quantized=True), operator(POINT), rule.KEPT),
    "window not known": (operator(), operator(None), rule.KEPT),
    "a shift before padding": (
        operator(),
        operator().absorb_input(Affine.of(np.ones(4), np.arange(4.0))),
        rule.EDGE,
    ),
    "the same shift before padding": (operator(), operator().absorb_input(Affine.of(np.ones(4), 1.0)), rule.EDGE),
    "a weight of gigabytes": (operator(out=1 << 13, fan_in=1 << 13), operator(), rule.LARGE),
    "a shared host": (replace(operator(), is_shared=True), operator(POINT), rule.SHARED),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_merge(case: str) -> None:
    host, branch, reason = REFUSALS[case]
    factor = Factor(host, "host", stays=host.is_shared)
    found = merge(factor, [Branch((Factor(branch, "branch"),))], np.zeros(host.out_channels))
    assert found is reason


def test_a_shared_kernel_merges_where_another_of_its_size_vanishes() -> None:
    host, branch = Factor(operator(), "a", stays=True), Branch((Factor(operator(), "b"),))
    assert isinstance(merge(host, [branch], np.zeros(4)), Linear)
    kept = Branch((Factor(operator(), "b", stays=True),))
    assert merge(host, [kept], np.zeros(4)) is rule.SHARED
    biased = replace(host, linear=replace(host.linear, has_bias=True))
    assert merge(biased, [branch], np.zeros(4)) is rule.SHARED
    assert isinstance(merge(biased, [branch, branch], np.zeros(4)), Linear)


CHAINS: dict[str, tuple[Linear, Linear, Stop]] = {
    "two windows": (operator(), operator(), rule.WINDOWS),
    "a padded point": (operator(replace(POINT, begins=(1, 1), ends=(1, 1))), operator(), rule.WINDOWS),
    "a strided point behind": (operator(), operator(replace(POINT, strides=(2, 2))), rule.WINDOWS),
    "a bias before padding": (replace(operator(POINT), has_bias=True), operator(), rule.EDGE),
    "more channels at the ends": (operator(POINT, out=1), operator(POINT, fan_in=1), rule.COST),
    "few channels before a window": (operator(POINT, out=2), operator(fan_in=2), rule.COST),
    "depthwise before pointwise": (operator(groups=4), operator(POINT), rule.CHANNELS),
    "shared": (replace(operator(POINT), is_shared=True), operator(POINT), rule.SHARED),
    "a convolution before a matrix product": (operator(POINT), operator(Window()), rule.GEOMETRY),
    "a matrix product before a convolution": (operator(Window()), operator(POINT), rule.GEOMETRY),
    "weights of gigabytes": (*[operator(POINT, out=1 << 13, fan_in=1 << 13)] * 2, rule.LARGE),
}


@pytest.mark.parametrize("case", CHAINS)
def test_what_is_no_chain(case: str) -> None:
    first, last, reason = CHAINS[case]
    assert chain(Factor(first, "first"), Factor(last, "last")) is reason


def test_a_point_in_front_of_a_window_that_makes_more_outputs_must_pay_for_itself() -> None:
    """Padding beyond the window makes more outputs than the point had: its multiplications do not count."""
    wide = Window((1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (None, None))
    first, last = operator(POINT, fan_in=4, out=3), operator(wide, fan_in=3, out=4)
    assert chain(Factor(first, "first"), Factor(last, "last")) is rule.COST
    first, last = operator(POINT, fan_in=6, out=5), operator(replace(wide, taps=(3, 3)), fan_in=5, out=5)
    assert isinstance(chain(Factor(first, "first"), Factor(last, "last")), Stop)


STACKS: dict[str, tuple[Linear, Stop]] = {
    "another window": (operator(POINT), rule.GEOMETRY),
    "another pad": (operator(replace(THREE, ends=(2, 1))), rule.GEOMETRY),
    "groups": (operator(groups=2), rule.CHANNELS),
    "shared": (replace(operator(), is_shared=True), rule.SHARED),
    "a bias beside none": (replace(operator(), has_bias=True), rule.COST),
}


@pytest.mark.parametrize("case", STACKS)
def test_what_does_not_stack(case: str) -> None:
    other, reason = STACKS[case]
    assert stack([Factor(operator(), "one"), Factor(other, "other")]) is reason
