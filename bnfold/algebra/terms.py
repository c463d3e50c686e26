"""Computes kernel and bias of a merged operator in float64, from those of its terms.

    K = sum_t place_t(F_tn * ... * F_t1)        b = sum_t (the same chain, applied to the constants)

Each factor brings the affines that it absorbed itself. Those of the merged operator come on top, by
`Linear.solve_kernel`. Terms of a sum have all output channels, terms of a stack have some channels of their own.
Kernels are rows of output channels here, ``[out, in/group, *window]``, so a block of rows needs no other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import gcd, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Array
from bnfold.algebra.linear import Factor, Linear, Term
from bnfold.algebra.rounding import Growth

EVERY_ROW = slice(None)


@dataclass(frozen=True, eq=False)
class Parameters:
    """The stored parameters of a node.

    Attributes:
        kernel: loads the kernel, in canonical layout.
        bias: the bias, if it has one.
        rows: loads only some rows of output channels, ``[rows, in/group, *window]``; None where that would load all.
    """

    kernel: Callable[[], npt.NDArray[np.generic]]
    bias: npt.NDArray[np.generic] | None
    rows: Callable[[slice], npt.NDArray[np.generic]] | None = None


Load = Callable[[Hashable], Parameters]
"""The parameters of a node that a term names."""


def nodes(linear: Linear) -> Iterator[Hashable]:
    """The nodes whose stored parameters a merged operator is made of."""
    for term in linear.terms:
        for factor in term.factors:
            if factor.linear.terms:
                yield from nodes(factor.linear)
            elif factor.node is not None:
                yield factor.node


def is_by_rows(linear: Linear) -> bool:
    """Whether each row of the kernel needs only that row of other kernels, since there are no chains."""
    return all(
        len(term.factors) == 1 and (not factor.linear.terms or is_by_rows(factor.linear))
        for term in linear.terms
        for factor in term.factors
    )


def kernel(linear: Linear, load: Load) -> Array:
    """The kernel of the terms together, in canonical layout, without the merged operator's own affines."""
    rows = kernel_rows(linear, load)
    return rows.reshape(linear.groups, -1, *rows.shape[1:])


def kernel_rows(linear: Linear, load: Load, rows: slice = EVERY_ROW) -> Array:
    """Rows of the kernel of the terms together."""
    assert linear.window is not None
    start, stop, _ = rows.indices(linear.out_channels)
    total = np.zeros((max(0, stop - start), linear.in_channels // linear.groups, *linear.window.taps))
    for term in linear.terms:
        own = slice(max(start - term.start, 0), max(stop - term.start, 0))
        groups, part = _term_rows(term, load, own)
        first = max(term.start, start)
        place: tuple[Any, ...] = slice(first - start, first - start + len(part)), slice(None)
        if groups != linear.groups:
            chosen = first + np.arange(len(part))
            place = (chosen - start)[:, None], _columns(linear, groups, chosen, part.shape[1])
        total[place + tuple(slice(taps.start, taps.stop, taps.step) for taps in term.taps)] += part
    return total


def _columns(linear: Linear, groups: int, rows: npt.NDArray[np.intp], width: int) -> npt.NDArray[np.intp]:
    """The columns of the merged kernel, for each row, that the `width` columns of a part in `groups` groups become."""
    group = rows // (linear.out_channels // groups)
    own = rows // (linear.out_channels // linear.groups)
    start = group * width - own * (linear.in_channels // linear.groups)
    return start[:, None] + np.arange(width)


def _term_rows(term: Term, load: Load, rows: slice) -> tuple[int, Array]:
    """The groups and rows of a term's kernel."""
    *inner, last = term.factors
    result = last.linear.groups, factor_rows(last, load, rows)
    for factor in reversed(inner):
        result = _product(last, *result, factor, factor_rows(factor, load), rows)
    return result


def _product(last: Factor, groups: int, later: Array, factor: Factor, earlier: Array, rows: slice) -> tuple[int, Array]:
    """The product ``later * earlier``, in as many groups as both can be cut into. One has a window of one tap."""
    shared = gcd(groups, factor.linear.groups)
    out, middle, fan_in = last.linear.out_channels, factor.linear.out_channels, factor.linear.in_channels
    window = max(later.shape[2:], earlier.shape[2:])
    chosen = np.arange(out)[rows]
    wide_later = _regroup(later, chosen, out, middle, groups, shared)
    wide_earlier = _regroup(earlier, np.arange(middle), middle, fan_in, factor.linear.groups, shared)
    wide_earlier = wide_earlier.reshape(shared, middle // shared, fan_in // shared, -1)
    product = np.empty((len(chosen), fan_in // shared, *window))
    for group in range(shared):
        mine = np.flatnonzero(chosen // (out // shared) == group)
        left = wide_later[mine].reshape(len(mine), middle // shared, prod(later.shape[2:])).transpose(2, 0, 1)
        right = wide_earlier[group].transpose(2, 0, 1)
        product[mine] = (left @ right).transpose(1, 2, 0).reshape(len(mine), fan_in // shared, *window)
    return shared, product


def _regroup(kernel: Array, rows: npt.NDArray[np.intp], out: int, fan_in: int, groups: int, fewer: int) -> Array:
    """The same rows with the columns of `fewer` groups, which divide `groups`."""
    if groups == fewer:
        return kernel
    wide = np.zeros((len(rows), fan_in // fewer, *kernel.shape[2:]))
    start = rows // (out // groups) * (fan_in // groups) - rows // (out // fewer) * (fan_in // fewer)
    wide[np.arange(len(rows))[:, None], start[:, None] + np.arange(fan_in // groups)] = kernel
    return wide


def factor_rows(factor: Factor, load: Load, rows: slice = EVERY_ROW) -> Array:
    """Rows of one factor's kernel, with the affines that it absorbed."""
    linear = factor.linear
    solved = _stored_rows(factor, load, rows)
    ones = [1] * (solved.ndim - 2)
    if linear.before is not None:
        chosen = np.arange(linear.out_channels)[rows]
        scale = linear.before.scale.reshape(linear.groups, -1)[chosen // (linear.out_channels // linear.groups)]
        solved = solved * scale.reshape(*scale.shape, *ones)
    if linear.after is not None:
        solved = solved * linear.after.scale[rows].reshape(-1, 1, *ones)
    return solved


def _stored_rows(factor: Factor, load: Load, rows: slice) -> Array:
    """Rows of one factor's kernel, without the affines that it absorbed."""
    linear = factor.linear
    if linear.terms:
        return kernel_rows(linear, load, rows)
    if factor.node is not None:
        parameters = load(factor.node)
        if parameters.rows is not None:
            return parameters.rows(rows).astype(np.float64)
        stored = parameters.kernel()
        return stored.reshape(linear.out_channels, *stored.shape[2:])[rows].astype(np.float64)
    assert linear.window is not None
    chosen = np.arange(linear.out_channels)[rows]
    return np.full((len(chosen), linear.in_channels // linear.groups, *linear.window.taps), factor.weight)


def bias(linear: Linear, load: Load) -> Array | None:
    """The bias of the terms together, without the merged operator's own affines; None for zero."""
    total: Array | None = None
    for term in linear.terms:
        if (constant := _term_constant(term, load)) is not None:
            total = np.zeros(linear.out_channels) if total is None else total
            total[term.start : term.start + term.channels] += constant
    return total


def growths(linear: Linear, load: Load, own: Callable[[], Growth]) -> Iterator[Growth]:
    """How much more a linear operator and each of its factors round because of the affines on their input sides.

    Args:
        linear: the operator.
        load: the parameters of the nodes that its terms name.
        own: measures the operator itself.
    """
    if linear.may_cancel:
        yield own()
    for term in linear.terms:
        for factor in term.factors:
            yield from growths(_in_front(factor), load, partial(_factor_growth, factor, load))


def _in_front(factor: Factor) -> Linear:
    """The operator of a factor. For an identity, affines behind it are the same as in front of it."""
    linear = factor.linear
    if factor.node is not None or linear.after is None or linear.window is None or not linear.window.is_point:
        return linear
    return replace(linear, before=linear.after.after(linear.before) if linear.before else linear.after, after=None)


def _factor_growth(factor: Factor, load: Load) -> Growth:
    kernel = _stored_rows(factor, load, EVERY_ROW)
    linear = _in_front(factor)
    return linear.growth(kernel.reshape(linear.groups, -1, *kernel.shape[1:]), _stored_bias(factor, load))


def _term_constant(term: Term, load: Load) -> Array | None:
    """The constant that a term adds to each output channel."""
    total: Array | None = None
    for factor in term.factors:
        constant = _factor_constant(factor, load)
        if total is not None:
            rows = factor_rows(factor, load)
            carried = _carry(rows, total, factor.linear)
            constant = carried if constant is None else constant + carried
        total = constant
    return total


def _carry(rows: Array, constant: Array, linear: Linear) -> Array:
    """The output for a constant input, where every output sees every tap."""
    taps = rows.reshape(linear.groups, linear.out_channels // linear.groups, rows.shape[1], -1).sum(axis=3)
    carried: Array = np.matmul(taps, constant.reshape(linear.groups, -1, 1)).reshape(-1)
    return carried


def _factor_constant(factor: Factor, load: Load) -> Array | None:
    linear = factor.linear

    def canonical() -> Array:
        rows = _stored_rows(factor, load, EVERY_ROW)
        return rows.reshape(linear.groups, -1, *rows.shape[1:])

    return linear.solve_bias(canonical, _stored_bias(factor, load))


def _stored_bias(factor: Factor, load: Load) -> npt.NDArray[np.generic] | None:
    """One factor's bias, without the affines that it absorbed."""
    if factor.linear.terms:
        return bias(factor.linear, load)
    return None if factor.node is None else load(factor.node).bias
