"""The rule by which several linear operators are one: sums of branches of one value, chains, and stacks.

    sum_t F_t(x)  =  K * x + b     K = sum_t place(K_t), each K_t among the taps and channels of the largest, the *host*
    F_2(F_1(x))   =  K * x + b     K = K_2 * K_1, where one of them sees the output's own position alone
    concat_t F_t(x)  =  K * x + b     K = all K_t, one below the other

The host keeps its window, so a sum costs what the host did, and a stack what its operators did.
`bnfold.planning.cost` decides whether a chain costs no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import Border, Factor, Linear, Term, Window
from bnfold.algebra.masks import has_any
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.cost import COST, SHARED, size, stays, stop_chain, stop_sharing

KEPT = Stop(Reason.NOT_CONSTANT, "its weight cannot take another's, or its window is not known")
GEOMETRY = Stop(Reason.UNKNOWN_SHAPE, "its outputs are not provably those of the others")
OUTSIDE = Stop(Reason.BORDER, "its taps do not lie on taps of the largest window")
CHANNELS = Stop(Reason.MIXED_CHANNELS, "it connects channels that the largest window keeps apart")
AXES = Stop(Reason.AXIS_MISMATCH, "its channels lie on another axis")
EDGE = Stop(Reason.BORDER, "padding does not see the constant in front of it")
WINDOWS = Stop(Reason.NOT_LINEAR, "two windows in a row are a larger one")
LARGE = Stop(Reason.SEARCH_LIMIT, "its weight is too large to make another from it in memory")

ELEMENTS = 1 << 24
"""The most elements of a kernel that may merge. The kernel of a chain is made as a whole, in float64."""


@dataclass(frozen=True, eq=False)
class Branch:
    """Linear operators in a row, seen as one; `factors` in the order of the data."""

    factors: tuple[Factor, ...]

    @property
    def first(self) -> Linear:
        """The operator that reads the data."""
        return self.factors[0].linear

    @property
    def last(self) -> Linear:
        """The operator that makes the output."""
        return self.factors[-1].linear

    @property
    def groups(self) -> int:
        """The number of groups that the row as a whole keeps apart."""
        return gcd(*(factor.linear.groups for factor in self.factors))

    @property
    def window(self) -> Window | None:
        """The only window that is more than a point, or a point; None where several are."""
        windows = [factor.linear.window for factor in self.factors]
        wide = [entry for entry in windows if entry is None or not entry.is_point]
        return wide[0] if len(wide) == 1 else None if wide else windows[0]


def per_channel(window: Window, channels: int, axis: int) -> Linear:
    """An identity, or an average over a window, as a factor that works on each channel by itself."""
    border = Border.PADDED if any(window.begins + window.ends) else Border.NONE
    return Linear(channels, channels, channels, axis, axis, border, window=window, has_bias=False, is_shared=False)


def place(inner: Window, outer: Window) -> tuple[range, ...] | Stop:
    """The taps of `outer` at the places of those of `inner`. Both have the same data and outputs of the same size."""
    if len(inner.taps) != len(outer.taps) or inner.strides != outer.strides:
        return GEOMETRY
    sizes = zip(inner.growth, outer.growth, inner.outputs, outer.outputs, strict=True)
    if any(mine != other and (a is None or a != b) for mine, other, a, b in sizes):
        return GEOMETRY
    axes = zip(inner.taps, inner.dilations, inner.begins, outer.taps, outer.dilations, outer.begins, strict=True)
    places = [
        _place(taps, step, outer_begin - begin, unit, count) for taps, step, begin, count, unit, outer_begin in axes
    ]
    positions = tuple(position for position in places if position is not None)
    return positions if len(positions) == len(places) else OUTSIDE


def _place(taps: int, step: int, offset: int, unit: int, count: int) -> range | None:
    """Positions ``offset + step t`` of `taps` taps, in units of `unit`, where all are among `count`."""
    step = step if taps > 1 else unit
    if offset % unit or step % unit:
        return None
    positions = range(offset // unit, offset // unit + (taps - 1) * (step // unit) + 1, step // unit)
    return positions if positions[0] >= 0 and positions[-1] < count else None


def stop_branch(branch: Branch, *, is_filled: bool = False) -> Stop | None:
    """The reason why operators in a row are not one operator with one window, if there is one.

    With `is_filled`, the first may have padded with another value than zero.
    """
    for index, factor in enumerate(branch.factors):
        linear = factor.linear
        if linear.window is None or linear.is_quantized or None in (linear.axis_in, linear.axis_out):
            return KEPT
        if size(linear) > ELEMENTS:
            return LARGE
        if (linear.fill and not (is_filled and index == 0)) or not linear.is_exact:
            return EDGE
    if len({len(factor.linear.window.taps) for factor in branch.factors if factor.linear.window}) > 1:
        return GEOMETRY  # a convolution and a matrix product, whose axes behind the channels mean different things
    if branch.window is None:
        return WINDOWS
    has_constant = False
    for before, factor in zip(branch.factors, branch.factors[1:], strict=False):
        linear = factor.linear
        has_constant = has_constant or before.makes_bias
        if (before.linear.axis_out, before.linear.out_channels) != (linear.axis_in, linear.in_channels):
            return AXES
        if has_constant and linear.border is not Border.NONE:
            return EDGE
    return None


def merge(host: Factor, branches: Sequence[Branch], constant: Array) -> Linear | Stop:
    """The sum of `host`, all `branches` and a constant for each channel as one operator in the place of the host."""
    linear = host.linear
    if stop := stop_branch(Branch((host,))):
        return stop
    assert linear.window is not None
    terms = [Term((host,), tuple(range(taps) for taps in linear.window.taps))]
    for branch in branches:
        if stop := stop_branch(branch):
            return stop
        assert branch.window is not None
        if (branch.first.axis_in, branch.last.axis_out) != (linear.axis_in, linear.axis_out):
            return AXES
        sizes = branch.first.in_channels, branch.last.out_channels
        if sizes != (linear.in_channels, linear.out_channels) or branch.groups % linear.groups:
            return CHANNELS
        placed = place(branch.window, linear.window)
        if isinstance(placed, Stop):
            return placed
        terms.append(Term(branch.factors, placed))
    factors = [factor for branch in branches for factor in branch.factors]
    if stop := stop_sharing(host, factors):
        return stop
    merged = replace(linear, before=None, after=None, terms=tuple(terms), is_shared=False)
    if not has_any(constant):
        return merged
    assert linear.axis_out is not None
    return merged.absorb_output(Affine.of(np.ones(linear.out_channels), constant, linear.axis_out))


def chain(first: Factor, last: Factor) -> tuple[Linear, bool] | Stop:
    """``last(first(x))`` as one operator, and whether it stands in the place of `last`, not of `first`."""
    branch = Branch((first, last))
    if stop := stop_branch(branch, is_filled=True):
        return stop
    one, two = first.linear, last.linear
    if stays(one) or stays(two):
        return SHARED
    assert one.window is not None
    assert two.window is not None
    is_last = _can_host(two, branch) and one.window.is_point
    is_first = _can_host(one, branch) and two.window.is_point
    if not is_last and not is_first:
        return AXES if one.groups == two.groups else CHANNELS
    is_last = is_last and (two.has_bias_slot or not (is_first and one.has_bias_slot))
    host = two if is_last else one
    assert host.window is not None
    merged = replace(
        host,
        in_channels=one.in_channels,
        out_channels=two.out_channels,
        has_bias_slot=one.has_bias_slot or two.has_bias_slot,
        before=None,
        after=None,
        is_shared=False,
        terms=(Term(branch.factors, tuple(range(taps) for taps in host.window.taps)),),
    )
    return stop_chain(first, last, merged) or (merged, is_last)


def stack(factors: Sequence[Factor]) -> Linear | Stop:
    """Operators with equal windows as one in the place of the first. It makes their channels one after the other."""
    first = factors[0].linear
    terms: list[Term] = []
    start = 0
    for factor in factors:
        linear = factor.linear
        if stop := stop_branch(Branch((factor,))):
            return stop
        assert linear.window is not None
        if linear.window != first.window:
            return GEOMETRY
        if (linear.axis_in, linear.axis_out) != (first.axis_in, first.axis_out):
            return AXES
        if linear.groups != 1 or linear.in_channels != first.in_channels:
            return CHANNELS
        if stays(linear):
            return SHARED
        terms.append(Term((factor,), tuple(range(taps) for taps in linear.window.taps), start))
        start += linear.out_channels
    if len({factor.makes_bias for factor in factors}) > 1 and not all(factor.linear.stores_bias for factor in factors):
        return COST
    has_slot = all(factor.linear.has_bias_slot for factor in factors)
    return replace(
        first,
        out_channels=start,
        has_bias_slot=has_slot,
        before=None,
        after=None,
        terms=tuple(terms),
        is_shared=False,
    )


def _can_host(linear: Linear, branch: Branch) -> bool:
    axes = branch.first.axis_in, branch.last.axis_out
    return linear.groups == branch.groups and (linear.axis_in, linear.axis_out) == axes
