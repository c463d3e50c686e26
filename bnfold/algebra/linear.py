"""Linear operators, described and not loaded: convolution, transposed convolution, matrix product.

Every kernel is seen in one canonical layout ``[group, out/group, in/group, *window]``. Affines that an operator
absorbs stay pending on two per-channel vectors until `solve_kernel` and `solve_bias` compute the weights once:

    out(K * in(x) + b)  =  K' * x + b'
    K'[o, i] = out.scale[o] * K[o, i] * in.scale[i]
    b'[o]    = out.scale[o] * (b[o] + sum_i K[o, i] in.shift[i]) + out.shift[o]

An operator that others were merged into has `terms`; K and b are then computed from theirs (`bnfold.algebra.terms`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.rounding import DATA_RANGE, Growth, measure_growth, round_once

STRIP = 1 << 16
"""How many weights are solved at a time where they are only looked at: so few that they stay in a processor's cache."""


class Layout(StrEnum):
    """How a native kernel is stored. The number of groups is kept separately."""

    CONV = "conv"  # [out, in/group, *window]
    CONV_TRANSPOSE = "conv-transpose"  # [in, out/group, *window]
    IN_OUT = "in-out"  # [..1, in, out], as in x @ kernel
    OUT_IN = "out-in"  # [..1, out, in], as in kernel @ x
    STACKED = "stacked"  # [stack, out/stack, in], as in recurrent layers: all read one input

    def canonical(self, kernel: Array, groups: int = 1) -> Array:
        """A view of a native kernel as ``[group, out/group, in/group, *window]``."""
        window = kernel.shape[2:]
        match self:
            case Layout.CONV:
                out, fan_in = kernel.shape[:2]
                return kernel.reshape(groups, out // groups, fan_in, *window)
            case Layout.CONV_TRANSPOSE:
                fan_in, out = kernel.shape[:2]
                return kernel.reshape(groups, fan_in // groups, out, *window).swapaxes(1, 2)
            case Layout.IN_OUT:
                return kernel.reshape(1, *kernel.shape[-2:]).swapaxes(1, 2)
            case Layout.OUT_IN:
                return kernel.reshape(1, *kernel.shape[-2:])
            case Layout.STACKED:
                return kernel.reshape(1, -1, kernel.shape[-1])

    def native(self, kernel: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `canonical`, back to the native `shape`."""
        if self in (Layout.CONV_TRANSPOSE, Layout.IN_OUT):
            kernel = kernel.swapaxes(1, 2)
        return kernel.reshape(shape)


class Border(Enum):
    """Whether every output position sees data at every tap of the window."""

    NONE = "none"  # yes: no padding
    PADDED = "padded"  # no: explicit zero padding, which another constant could replace
    PARTIAL = "partial"  # no, and no padding value can mend it (transposed convolution, SAME padding)


@dataclass(frozen=True, slots=True)
class Window:
    """Which inputs an output sees: along each axis, output `p` and tap `t` read ``stride p + dilation t - begin``.

    Outside of the data there are zeros. A matrix product has no such axes.

    Attributes:
        taps: the size of the window.
        strides, dilations: as of a convolution.
        begins, ends: zeros in front of and behind the data.
        outputs: the number of outputs; None where it is not known.
    """

    taps: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    outputs: tuple[int | None, ...] = ()

    @classmethod
    def point(cls, axes: int) -> Window:
        """The window of one tap on the output's own position."""
        ones, zeros = (1,) * axes, (0,) * axes
        return cls(ones, ones, ones, zeros, zeros, (None,) * axes)

    @property
    def is_point(self) -> bool:
        """Whether each output sees the input of its own position alone."""
        return set(self.taps + self.strides) <= {1} and not any(self.begins + self.ends)

    @property
    def growth(self) -> tuple[int, ...]:
        """How much longer than the data the output is with stride 1.

        With any stride, there are ``(length + growth - 1) // stride + 1`` outputs.
        """
        axes = zip(self.taps, self.dilations, self.begins, self.ends, strict=True)
        return tuple(begin + end - dilation * (taps - 1) for taps, dilation, begin, end in axes)


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """A linear operator ``x -> K * x + b`` with the affines it has absorbed so far.

    Attributes:
        groups, out_channels, in_channels: the sizes of the canonical layout (channels over all groups).
        axis_in, axis_out: the channel axes of input and output; None for a side that cannot absorb.
        border: whether a constant added to the input reaches every output alike.
        has_bias_slot: whether the native operator takes a bias; else a new bias costs a node.
        is_quantized: whether its kernel is one of integers, which has a scale for each output channel.
        mirrored: for a quantised kernel, the output channels whose integers can all be negated.
        before, after: pending affines on the input and on the output side; None is the identity.
        window: where its taps lie. None where that is not known or the kernel must stay; it then merges with nothing.
        has_bias: whether a bias other than zero is stored.
        is_shared: whether something else reads the stored kernel or bias too, so that it stays whatever becomes of
            this operator; `Draft` finds that out where the front end does not know better.
        terms: the terms of kernel and bias, in place of stored ones; empty where those are used.
    """

    groups: int
    out_channels: int
    in_channels: int
    axis_in: int | None
    axis_out: int | None
    border: Border = Border.NONE
    has_bias_slot: bool = True
    is_quantized: bool = False
    mirrored: npt.NDArray[np.bool_] | None = None
    before: Affine | None = None
    after: Affine | None = None
    window: Window | None = None
    has_bias: bool = True
    is_shared: bool = True
    terms: tuple[Term, ...] = ()

    def absorb_output(self, affine: Affine) -> Linear:
        """``affine(self(x))`` as one operator; the affine must lie on `axis_out`."""
        if (affine.axis, affine.size) != (self.axis_out, self.out_channels):
            raise ValueError("the affine does not lie on the output channels")
        return replace(self, after=affine.after(self.after) if self.after else affine)

    def absorb_input(self, affine: Affine) -> Linear:
        """``self(affine(x))`` as one operator; exact only where `is_exact` says so afterwards."""
        if (affine.axis, affine.size) != (self.axis_in, self.in_channels):
            raise ValueError("the affine does not lie on the input channels")
        return replace(self, before=self.before.after(affine) if self.before else affine)

    @property
    def fill(self) -> float:
        """The padding value `p` with ``before(p) == 0`` in every channel; NaN where there is none.

        0 where nothing is padded or shifted. A convolution pads with zeros *after* the absorbed affine, so the
        unshifted input must be padded with ``p = -shift / scale``. The first operator of a chain keeps its fill, and
        ``before(p)`` must be that.
        """
        inner = self.terms[0].factors[0].linear.fill if self.terms else 0.0
        if self.border is not Border.PADDED or self.before is None or not (self.before.has_shift or inner):
            return inner
        if not np.all(self.before.scale):
            return float("nan")
        values = (inner - self.before.shift) / self.before.scale
        return float(values[0]) if np.all(values == values[0]) else float("nan")

    @property
    def is_exact(self) -> bool:
        """Whether the affines that it absorbed on the input side survive its border."""
        if self.before is None or self.border is Border.NONE:
            return True
        return bool(np.isfinite(self.fill)) if self.border is Border.PADDED else not self.before.has_shift

    @property
    def makes_bias(self) -> bool:
        """Whether the affines that it absorbed add a constant to its output."""
        return self._is_shifted or any(factor.makes_bias for term in self.terms for factor in term.factors)

    @property
    def stores_bias(self) -> bool:
        """Whether it will have a bias, even if one of zeros."""
        if not self.terms:
            return self._is_shifted or self.has_bias
        return self._is_shifted or any(factor.linear.stores_bias for term in self.terms for factor in term.factors)

    @property
    def _is_shifted(self) -> bool:
        return any(pending is not None and pending.has_shift for pending in (self.before, self.after))

    @property
    def is_normalised(self) -> bool:
        """Whether it absorbed a BatchNorm, which has a shift, even if one of zeros."""
        pending = (self.before, self.after)
        factors = [factor.linear for term in self.terms for factor in term.factors]
        has_own = any(affine is not None and affine.statistics is not None for affine in pending)
        return has_own or any(linear.is_normalised for linear in factors)

    @property
    def input_sizes(self) -> Array | None:
        """Root mean squares of its input, where they are known; rounded to powers of two, with 1 as the largest."""
        if self.before is None or self.before.statistics is None:
            return None
        known = self.before.statistics
        with np.errstate(over="ignore", invalid="ignore"):
            sizes = np.sqrt(known.mean**2 + known.variance)
        largest = float(sizes.max(initial=0.0))
        if not np.isfinite(largest) or not largest:
            return None
        sizes = np.maximum(sizes, largest / DATA_RANGE)  # a channel that never varied may vary once
        return np.asarray(np.ldexp(1.0, np.frexp(sizes)[1] - np.frexp(largest)[1]), np.float64)

    @property
    def output_sums(self) -> tuple[Array, Array] | None:
        """Mean squares of its outputs before and behind the absorbed shift; infinite where they are not known."""
        if self.after is None or self.after.statistics is None or self.terms:
            return None
        is_measured = self.after.statistics.measured > 0
        products, results = self.after.sizes
        return np.where(is_measured, products, np.inf), np.where(is_measured, results, 0.0)

    @property
    def may_cancel(self) -> bool:
        """Whether it absorbed a shift on its input side, on data of known size."""
        return self.before is not None and self.before.has_shift and self.before.statistics is not None

    def solve_kernel(self, kernel: npt.NDArray[np.generic]) -> Array:
        """The kernel with everything pending absorbed, in float64 and canonical layout."""
        return _scaled(kernel, self._factors(kernel))

    def solve_strips(self, kernel: npt.NDArray[np.generic]) -> Iterator[tuple[slice, Array]]:
        """The same, for some output channels of each group at a time."""
        for strip, factors in self._strips(kernel):
            yield strip, _scaled(kernel[:, strip], factors)

    def round_into(self, rounded: npt.NDArray[np.generic], kernel: npt.NDArray[np.generic]) -> None:
        """Fill an array with the same, rounded once to its type."""
        for strip, factors in self._strips(kernel):
            _round_scaled(rounded[:, strip], kernel[:, strip], factors)

    def _strips(self, kernel: npt.NDArray[np.generic]) -> Iterator[tuple[slice, list[Array]]]:
        """Some output channels of each group at a time, with what their weights are multiplied by."""
        out, factors = kernel.shape[1], self._factors(kernel)
        step = max(1, STRIP * out // max(1, kernel.size))
        for start in range(0, out, step):
            strip = slice(start, start + step)
            yield strip, [each[:, strip] if each.shape[1] > 1 else each for each in factors]

    def solve_rows(self, rows: npt.NDArray[np.generic], channels: npt.NDArray[np.intp]) -> Array:
        """Rows of weights, one for each of these output channels, with what is pending on the output side."""
        return _scaled(rows, [] if self.after is None else [self.after.scale[channels, None]])

    def _factors(self, kernel: npt.NDArray[np.generic]) -> list[Array]:
        """What the weights of a canonical kernel are multiplied by."""
        groups, out, fan_in, *window = kernel.shape
        ones = [1] * len(window)
        factors = []
        if self.before is not None:
            factors.append(self.before.scale.reshape(groups, 1, fan_in, *ones))
        if self.after is not None:
            factors.append(self.after.scale.reshape(groups, out, 1, *ones))
        return factors

    def sizes(self, kernel: npt.NDArray[np.generic]) -> tuple[Array, Array, Array]:
        """The sums of products for each output channel, for data with the statistics of `before`.

        Args:
            kernel: the original kernel, in canonical layout; or a block of it, for the addends of its input channels.

        Returns:
            The sum of the squares of all ``K * scale * x``, of all ``K * before(x)``, and of ``K * shift`` itself.
        """
        assert self.before is not None
        groups, out, fan_in = kernel.shape[:3]
        wide = kernel.astype(np.float64).reshape(groups, out, fan_in, -1)
        squares, sums = np.square(wide).sum(axis=3), wide.sum(axis=3)
        products, results = self.before.sizes
        addends = (squares, products), (squares, results), (sums, self.before.shift)
        first, second, third = (
            np.matmul(taps, inputs.reshape(groups, fan_in, 1)).reshape(-1) for taps, inputs in addends
        )
        return first, second, third

    def growth(self, kernel: npt.NDArray[np.generic], bias: npt.NDArray[np.generic] | None) -> Growth:
        """How much more it rounds because of the affines on its input side, given old kernel (canonical) and bias."""
        return self.growth_of(self.sizes(kernel), bias)

    def growth_of(self, sizes: tuple[Array, Array, Array], bias: npt.NDArray[np.generic] | None) -> Growth:
        """The same, given the result of `sizes` for the whole kernel.

        The affines on its output side count before and after, since the original rounded them at their size, too.
        """
        products, results, shifts = sizes
        before = np.zeros(self.out_channels) if bias is None else bias.astype(np.float64)
        constant = before + shifts
        if self.after is not None:
            scale, shift = self.after.scale, self.after.shift
            products, results = scale**2 * products, scale**2 * results
            before, constant = scale * before + shift, scale * constant + shift
        return measure_growth(products, results, constant, before)

    def solve_bias(
        self, load: Callable[[], npt.NDArray[np.generic]], bias: npt.NDArray[np.generic] | None
    ) -> Array | None:
        """The bias with everything pending absorbed, in float64; None where there was none and none is needed.

        Args:
            load: gives the original kernel in canonical layout; called only where an input shift passes through it.
            bias: the original bias, whose last axis is that of the output channels, or None.
        """
        if bias is None and not self.makes_bias:
            return None
        constant = np.zeros(self.out_channels) if bias is None else bias.astype(np.float64)
        if self.before is not None and self.before.has_shift:
            kernel = load().astype(np.float64)
            groups, out, fan_in = kernel.shape[:3]
            taps = kernel.reshape(groups, out, fan_in, -1).sum(axis=3)
            constant = constant + np.matmul(taps, self.before.shift.reshape(groups, fan_in, 1)).reshape(-1)
        return constant if self.after is None else self.after.scale * constant + self.after.shift


def _scaled(kernel: npt.NDArray[np.generic], factors: Sequence[Array]) -> Array:
    """A kernel times factors, in float64."""
    if not factors or kernel.dtype.kind != "f":
        kernel = kernel.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite weight is refused when it is measured
        for factor in factors:  # a product widens on the way, faster than a copy that is then multiplied
            kernel = np.multiply(kernel, factor, dtype=np.float64)
    return np.asarray(kernel, np.float64)


def _round_scaled(rounded: npt.NDArray[np.generic], kernel: npt.NDArray[np.generic], factors: Sequence[Array]) -> None:
    """Fill an array with a kernel times factors, rounded once to its type.

    As the last factor is multiplied, numpy goes by way of float64 in buffers that stay in a processor's cache.
    """
    if not factors or rounded.dtype.kind != "f":
        rounded[...] = round_once(_scaled(kernel, factors), rounded.dtype)
        return
    *others, last = factors
    if others or kernel.dtype.kind != "f":
        kernel = _scaled(kernel, others)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.multiply(kernel, last, out=rounded, dtype=np.float64, casting="same_kind")


@dataclass(frozen=True, eq=False, slots=True)
class Factor:
    """A linear operator that became a part of another.

    Attributes:
        linear: the operator, with the affines that it absorbed.
        node: the node with its stored kernel and bias; None for an identity or an average, which has neither.
        weight: without a node, the weight at every tap of every channel.
        stays: whether the stored kernel or bias stays, for other readers, whatever becomes of the operator.
        is_unbiased: whether everything that it adds to its output is known to be zero, for example where a shift meets
            a kernel of zeros.
    """

    linear: Linear
    node: Hashable | None = None
    weight: float = 1.0
    stays: bool = False
    is_unbiased: bool = False

    def absorb_output(self, affine: Affine) -> Factor:
        """The factor with a map behind it."""
        is_unbiased = self.is_unbiased and not affine.has_shift
        return replace(self, linear=self.linear.absorb_output(affine), is_unbiased=is_unbiased)

    def absorb_input(self, affine: Affine) -> Factor:
        """The factor with a map in front of it."""
        is_unbiased = self.is_unbiased and not affine.has_shift
        return replace(self, linear=self.linear.absorb_input(affine), is_unbiased=is_unbiased)

    @property
    def makes_bias(self) -> bool:
        """Whether it adds a constant to its output."""
        if self.is_unbiased:
            return False
        return self.linear.makes_bias or (self.node is not None and not self.linear.terms and self.linear.has_bias)


@dataclass(frozen=True, eq=False, slots=True)
class Term:
    """One addend of a merged operator: ``last(... first(x))``, with its taps among those of the operator's window.

    Attributes:
        factors: its operators in the order of the data. All but one have a window of one tap.
        taps: for each axis of the window, the tap of the merged operator that each of its own becomes.
        start: the output channel of the merged operator that its own first one becomes.
    """

    factors: tuple[Factor, ...]
    taps: tuple[range, ...]
    start: int = 0

    @property
    def channels(self) -> int:
        """The number of its output channels."""
        return self.factors[-1].linear.out_channels
