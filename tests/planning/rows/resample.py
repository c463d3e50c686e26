"""Operators that combine positions of one channel, add some or repeat them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bnfold.algebra.affine import Array
from bnfold.graph.ops import Average, Broadcast, Maximum, Pad, Product
from bnfold.graph.outcome import Reason
from bnfold.planning.rules import push
from tests.planning.rows.law import (
    ALL,
    MIXES,
    NO_BORDER,
    NO_NEGATIVE,
    NO_SHIFT,
    Evaluate,
    Kind,
    Row,
    Sizes,
    Trial,
    Verdict,
    pulls,
    pushes,
    refuses,
    row,
)


def mean_pool(x: Array, axes: Sequence[int]) -> Array:
    """The mean over windows of two, one after the other."""
    window = sliding_window_view(x, (2,) * len(axes), tuple(axes))
    return np.asarray(window.mean(axis=tuple(range(x.ndim, window.ndim))))


def max_pool(x: Array, axes: Sequence[int]) -> Array:
    """The largest value of windows of two."""
    window = sliding_window_view(x, (2,) * len(axes), tuple(axes))
    return np.asarray(window.max(axis=tuple(range(x.ndim, window.ndim))))


def surround(x: Array, axes: Sequence[int], mode: str = "constant", value: float = 0.0) -> Array:
    """One more position at both ends of `axes`."""
    widths = [(1, 1) if axis in axes else (0, 0) for axis in range(x.ndim)]
    pad: Callable[..., Array] = np.pad
    return pad(x, widths, constant_values=value) if mode == "constant" else pad(x, widths, mode)


def over_space(s: Sizes, op: object, evaluate: Evaluate, elsewhere: Verdict) -> Row:
    """An operator that mixes all spatial axes and keeps them."""
    verdicts = [elsewhere, elsewhere, *[MIXES] * len(s.space)]
    return Row(op, evaluate, (s.image,), (*pulls(*verdicts), *pushes(*verdicts)))


@row
def average_pool(s: Sizes) -> Row:
    return over_space(s, Average(s.spatial), lambda x: mean_pool(x, sorted(s.spatial)), ALL)


@row
def average_pool_that_counts_zeros(s: Sizes) -> Row:
    axes = sorted(s.spatial)
    op = Average(s.spatial, sums_to_one=False)
    return over_space(s, op, lambda x: mean_pool(surround(x, axes), axes), NO_SHIFT)


@row
def average_as_resize(s: Sizes) -> Row:
    """Any weights that sum to one, negative ones (cubic) included."""
    mix = np.random.default_rng(s.c).normal(size=(5, s.space[0]))
    mix /= mix.sum(axis=1, keepdims=True)

    def evaluate(x: Array) -> Array:
        return np.moveaxis(np.tensordot(mix, x, (1, 2)), 0, 2)

    verdicts = [ALL, ALL, MIXES, *[ALL] * (s.rank - 3)]
    return Row(Average(frozenset({2})), evaluate, (s.image,), (*pulls(*verdicts), *pushes(*verdicts)))


@row
def average_over_no_axis(s: Sizes) -> Row:
    verdicts = [ALL] * s.rank
    return Row(Average(frozenset()), lambda x: x, (s.image,), (*pulls(*verdicts), *pushes(*verdicts)))


@row
def average_that_drops_space(s: Sizes) -> Row:
    return Row(
        Average(s.spatial, dropped=s.spatial),
        lambda x: x.mean(axis=tuple(s.spatial)),
        (s.image,),
        (*pulls(ALL, ALL), *pushes(ALL, ALL, *[MIXES] * len(s.space))),
    )


@row
def average_that_drops_axes_around_the_channels(s: Sizes) -> Row:
    """``[N, C, *S, K]`` loses axes 0 and 2: what remains moves to the front."""
    shape = (*s.image, s.k)
    op = Average(frozenset({0, 2}), dropped=frozenset({0, 2}))
    rest = [ALL] * (len(shape) - 3)
    trials = (*pulls(ALL, *rest), *pushes(MIXES, ALL, MIXES, *rest))
    return Row(op, lambda x: x.mean(axis=(0, 2)), (shape,), trials)


@row
def average_that_drops_neighbours_in_front(s: Sizes) -> Row:
    shape = (s.f, *s.image)
    op = Average(frozenset({0, 1}), dropped=frozenset({0, 1}))
    rest = [ALL] * (len(shape) - 2)
    trials = (*pulls(*rest), *pushes(MIXES, MIXES, *rest))
    return Row(op, lambda x: x.mean(axis=(0, 1)), (shape,), trials)


@row
def sum_over_space(s: Sizes) -> Row:
    """ReduceSum: weights that do not sum to one, and axes that vanish."""
    return Row(
        Average(s.spatial, sums_to_one=False, dropped=s.spatial),
        lambda x: x.sum(axis=tuple(s.spatial)),
        (s.image,),
        (*pulls(NO_SHIFT, NO_SHIFT), *pushes(NO_SHIFT, NO_SHIFT, *[MIXES] * len(s.space))),
    )


@row
def maximum_pool(s: Sizes) -> Row:
    return over_space(s, Maximum(s.spatial), lambda x: max_pool(x, sorted(s.spatial)), NO_NEGATIVE)


@row
def maximum_pool_with_padding(s: Sizes) -> Row:
    axes = sorted(s.spatial)
    padded: Evaluate = lambda x: max_pool(surround(x, axes, value=-np.inf), axes)  # noqa: E731
    return over_space(s, Maximum(s.spatial), padded, NO_NEGATIVE)


@row
def maximum_that_drops_axes_around_the_channels(s: Sizes) -> Row:
    shape = (*s.image, s.k)
    op = Maximum(frozenset({0, 2}), dropped=frozenset({0, 2}))
    rest = [NO_NEGATIVE] * (len(shape) - 3)
    trials = (*pulls(NO_NEGATIVE, *rest), *pushes(MIXES, NO_NEGATIVE, MIXES, *rest))
    return Row(op, lambda x: x.max(axis=(0, 2)), (shape,), trials)


def padding(s: Sizes, mode: str) -> Row:
    """A padding of the spatial axes with copies of the data."""
    return over_space(s, Pad(s.spatial, None), lambda x: surround(x, sorted(s.spatial), mode), ALL)


@row
def pad_reflect(s: Sizes) -> Row:
    return padding(s, "reflect")


@row
def pad_edge(s: Sizes) -> Row:
    return padding(s, "edge")


@row
def pad_wrap(s: Sizes) -> Row:
    return padding(s, "wrap")


@row
def pad_zero(s: Sizes) -> Row:
    return over_space(s, Pad(s.spatial, 0.0), lambda x: surround(x, sorted(s.spatial)), NO_BORDER)


@row
def pad_a_constant(s: Sizes) -> Row:
    padded: Evaluate = lambda x: surround(x, sorted(s.spatial), value=0.3)  # noqa: E731
    return over_space(s, Pad(s.spatial, 0.3), padded, refuses(Reason.BORDER))


@row
def pad_channels(s: Sizes) -> Row:
    verdicts = [NO_BORDER, MIXES, *[NO_BORDER] * len(s.space)]
    op = Pad(frozenset({1}), 0.0)
    return Row(op, lambda x: surround(x, [1]), (s.image,), (*pulls(*verdicts), *pushes(*verdicts)))


@row
def broadcast(s: Sizes) -> Row:
    ones = (s.n, s.c, *[1] * len(s.space))
    op = Broadcast(s.spatial)
    trials = (*pulls(ALL, ALL, *[MIXES] * len(s.space)), *pushes(ALL, ALL, *[MIXES] * len(s.space)))
    return Row(op, lambda x: np.broadcast_to(x, s.image), (ones,), trials)


@row
def broadcast_adds_axes(s: Sizes) -> Row:
    """Axes of the input, and two more in front."""
    op = Broadcast(frozenset({2}), added=2)
    before = (s.n, s.c, 1, *s.space[1:])
    rest = [ALL] * (s.rank - 3)
    trials = (*pulls(MIXES, MIXES, ALL, ALL, MIXES, *rest), *pushes(ALL, ALL, MIXES, *rest))
    return Row(op, lambda x: np.broadcast_to(x, (s.f, s.k, *s.image)), (before,), trials)


@row
def broadcast_tiles(s: Sizes) -> Row:
    verdicts = [ALL, ALL, MIXES, *[ALL] * (s.rank - 3)]
    times = (1, 1, s.f, *[1] * (s.rank - 3))
    op = Broadcast(frozenset({2}))
    return Row(op, lambda x: np.tile(x, times), (s.image,), (*pulls(*verdicts), *pushes(*verdicts)))


def product_of(first: tuple[int, ...], second: tuple[int, ...], axes: int) -> Row:
    """A product with `axes` leading axes in front of the two of matrices."""
    row, column = len(first) - 2, len(second) - 1
    conflicts = dict.fromkeys(NO_SHIFT, Reason.SHIFT) | {
        kind: Reason.CONFLICT for kind in (*Kind,) if kind not in NO_SHIFT
    }
    return Row(
        Product((len(first), len(second))),
        np.matmul,
        (first, second),
        (
            *pulls(*[MIXES] * axes, NO_SHIFT, NO_SHIFT),
            Trial(push, (row, None), NO_SHIFT),
            Trial(push, (None, column), NO_SHIFT),
            Trial(push, (row + 1, None), MIXES),
            Trial(push, (None, column - 1), MIXES),
            Trial(push, (row, column), conflicts),
        ),
    )


@row
def product_of_matrices(s: Sizes) -> Row:
    return product_of((s.n, s.c, s.k), (s.n, s.k, s.f), 1)


@row
def product_with_a_matrix_for_all(s: Sizes) -> Row:
    return product_of((s.c, s.k), (s.n, s.f, s.k, s.n), 2)


@row
def product_for_each_of_several(s: Sizes) -> Row:
    return product_of((s.n, s.f, s.c, s.k), (s.k, s.c), 2)
