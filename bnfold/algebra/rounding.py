"""The rounding of solved parameters to their stored type: each is rounded once, and the effect is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.masks import has_all, has_any

Mask = npt.NDArray[np.bool_]

FLOAT64_UNIT = 2.0**-52
"""The spacing of float64 at 1, in which everything is computed."""

DEVIATIONS = 64.0
"""How many deviations data may have while the loss of a weight must not show."""

DATA_RANGE = 2.0**20
"""How much larger the data of one input channel may be than another's: from a sixteenth to the largest float16."""


def round_once(exact: Array, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """`exact` (float64) as the nearest values of `dtype`, ties to even.

    numpy rounds to bfloat16 by way of float32, which is two roundings; rounding to odd first makes the second one exact
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    with np.errstate(over="ignore", under="ignore"):
        return _round(exact, dtype)


def _round(exact: Array, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    if dtype.kind == "f" or dtype.name != "bfloat16":  # of which the name is made anew each time
        return exact.astype(dtype)
    near = np.array(exact, dtype=np.float32, order="C")
    bits = near.view(np.int32)
    wide = near.astype(np.float64)
    inexact = (wide != exact) & ~np.isnan(exact)
    bits -= (inexact & (np.abs(wide) > np.abs(exact))).astype(np.int32)
    bits |= inexact.astype(np.int32)
    return near.astype(dtype)


@dataclass(frozen=True)
class Growth:
    """How much more an operator rounds once it has absorbed an affine on its input side.

    Attributes:
        factor: that of all output channels together, or a quarter of that of one channel if this is more.
        channel: the output channel whose errors grow most.
    """

    factor: float
    channel: int


@dataclass(frozen=True)
class Rounding:
    """The effect of rounding solved parameters once to their stored type.

    Attributes:
        error: the largest absolute rounding error over the largest absolute value of its output channel.
        overflow: the first output channel with a value that is not finite, or became so; None if there is none.
        loss: the first output channel that lost more than the type's rounding explains; None if there is none.
        input_loss: the first input channel whose weights all together lost more; None if there is none.
        is_fill_lost: whether the padding value is not finite in its type, or lost more than rounding explains.
        growth: the growth of the operator's own rounding errors, because of the affines on its input side.
        is_narrow: whether the type ends below 1e5, as float16 does: values that are scaled up may not fit.
    """

    error: float
    overflow: int | None = None
    loss: int | None = None
    input_loss: int | None = None
    is_fill_lost: bool = False
    growth: Growth = Growth(1.0, 0)
    is_narrow: bool = False

    def with_fill(self, fill: float, dtype: np.dtype[np.generic], unit: float) -> Rounding:
        """The same, with the rounding of a padding value."""
        if not fill:
            return self
        stored = float(round_once(np.asarray(fill), dtype))
        return replace(self, is_fill_lost=not abs(stored - fill) <= unit * abs(fill))

    def with_growth(self, growth: Growth) -> Rounding:
        """The same, with another growth if that is larger."""
        return replace(self, growth=max(self.growth, growth, key=lambda one: one.factor))


def measure_rounding(exact: Array, rounded: npt.NDArray[np.generic], unit: float, floor: float = 0.0) -> Rounding:
    """Measure how `exact` was rounded to `rounded`, channel by channel along axis 0.

    Args:
        exact: float64, channels on axis 0.
        rounded: the stored values, of the same shape.
        unit: the type's spacing at 1 (``2**-10`` for float16); a normal value errs by at most half of it.
        floor: errors are judged against a value of this size where the channel's own largest is smaller.
    """
    channels = len(exact)
    if exact.size == 0:
        return Rounding(0.0)
    with np.errstate(invalid="ignore"):
        errors = np.abs(exact - rounded.astype(np.float64))
    if exact.ndim == 1:
        peaks = np.abs(exact)
    else:
        flat, errors = exact.reshape(channels, -1), errors.reshape(channels, -1).max(axis=1)
        peaks = np.maximum(flat.max(axis=1), -flat.min(axis=1))
    return _judge(errors, peaks, np.maximum(peaks, floor), unit)


def _judge(errors: Array, peaks: Array, sizes: Array, unit: float, harmless: Mask | None = None) -> Rounding:
    """The rounding of output channels with these largest errors and values, judged against `sizes`."""
    is_finite = np.isfinite(errors + peaks)
    if not has_all(is_finite):
        return Rounding(float("inf"), overflow=int(np.argmin(is_finite)))
    lost, is_judged = errors > unit * sizes, sizes > 0
    if harmless is not None:
        lost, is_judged = lost & ~harmless, is_judged & ~harmless
    relative = np.divide(errors, sizes, out=np.zeros(errors.shape), where=is_judged)
    return Rounding(float(relative.max(initial=0.0)), loss=_first(lost))


def _first(channels: Mask) -> int | None:
    """The first of the channels that are marked."""
    return int(np.argmax(channels)) if has_any(channels) else None


@dataclass
class Worst:
    """The largest relative rounding error that is known of a kernel, for all threads that measure parts of it.

    If two note one at the same time, the smaller may stay. Then more is rounded than is needed, and nothing is wrong.
    """

    error: float = 0.0

    def note(self, peaks: KernelPeaks, unit: float) -> None:
        """Note the errors of a part, but for channels that lose more than rounding explains, which may not count."""
        errors, sizes = peaks.output_errors, peaks.output_peaks
        relative = np.divide(errors, sizes, out=np.zeros_like(sizes), where=errors < unit * sizes)
        self.error = max(self.error, float(relative.max()))


def bound_errors(peaks: Array, dtype: np.dtype[np.generic], unit: float) -> Array:
    """How large the relative rounding error of channels with these largest values may be; infinite where it may be any.

    A normal number ``m 2**e`` with m from 1/2 to 1 is rounded by at most half the spacing there, ``2**(e-1) unit / 2``,
    and a smaller one by no more. So the error is at most ``unit / 4 m`` of the largest value.
    """
    is_normal = (unit * peaks >= _smallest(dtype)) & (peaks <= _largest(dtype))
    bounds = np.where(peaks == 0, 0.0, np.inf)
    return np.divide(unit / 4, np.frexp(peaks)[0], out=bounds, where=is_normal)


@dataclass(frozen=True, eq=False)
class KernelPeaks:
    """Largest rounding error and largest absolute value of a kernel's weights in each channel.

    Attributes:
        output_errors, output_peaks: one entry for each output channel. The error is 0 where that of another channel is
            known to be a larger share of its peak.
        input_errors, input_peaks: one entry for each input channel.
    """

    output_errors: Array
    output_peaks: Array
    input_errors: Array
    input_peaks: Array

    @classmethod
    def zeros(cls, outputs: int, inputs: int) -> KernelPeaks:
        """The peaks of a kernel before anything is measured."""
        return cls(*(np.zeros(size) for size in (outputs, outputs, inputs, inputs)))

    @classmethod
    def of(cls, exact: Array, dtype: np.dtype[np.generic], sizes: Array | None = None) -> KernelPeaks:
        """The peaks of a solved kernel, ``[group, out/group, in/group, *window]``.

        Args:
            exact: the kernel.
            dtype: the type in which it is stored.
            sizes: the sizes of each input channel's data, where they are known. An output adds up products with these.
        """
        groups, outputs, inputs = exact.shape[:3]
        if exact.size == 0:
            return cls.zeros(groups * outputs, groups * inputs)
        with np.errstate(over="ignore", invalid="ignore"):
            error = _round(exact, dtype).astype(np.float64)
            np.subtract(exact, error, out=error)
            np.abs(error, out=error)
        if sizes is None and not is_narrow(dtype):  # subnormal numbers of a wide type count for nothing beside others
            behind = tuple(range(2, exact.ndim))
            peaks = np.maximum(exact.max(axis=behind), -exact.min(axis=behind))
            nothing = np.zeros(groups * inputs)
            return cls(error.max(axis=behind).reshape(-1), peaks.reshape(-1), nothing, nothing)
        boxes, errors = exact.reshape(groups, outputs, inputs, -1), error.reshape(groups, outputs, inputs, -1)
        sizes = np.ones((groups, 1, inputs)) if sizes is None else sizes.reshape(groups, 1, inputs)
        errors = errors.max(axis=3) * sizes
        peaks = np.maximum(boxes.max(axis=3), -boxes.min(axis=3)) * sizes
        return cls(*(values.max(axis=axis).reshape(-1) for axis in (2, 1) for values in (errors, peaks)))

    @classmethod
    def whole(cls, strips: Iterable[tuple[slice, KernelPeaks]], groups: int, outputs: int, inputs: int) -> KernelPeaks:
        """The peaks of a kernel of so many channels, made of those of some output channels of each group."""
        peaks = cls.zeros(outputs, inputs)
        for strip, part in strips:
            for mine, other in ((peaks.output_errors, part.output_errors), (peaks.output_peaks, part.output_peaks)):
                mine.reshape(groups, -1)[:, strip] = other.reshape(groups, -1)
            for mine, other in ((peaks.input_errors, part.input_errors), (peaks.input_peaks, part.input_peaks)):
                np.maximum(mine, other, out=mine)
        return peaks

    def add(self, block: KernelPeaks, outputs: slice, inputs: slice) -> None:
        """Take note of a part of the kernel that has these channels."""
        for mine, other in ((self.output_errors, block.output_errors), (self.output_peaks, block.output_peaks)):
            np.maximum(mine[outputs], other, out=mine[outputs])
        for mine, other in ((self.input_errors, block.input_errors), (self.input_peaks, block.input_peaks)):
            np.maximum(mine[inputs], other, out=mine[inputs])

    def loses(self, unit: float) -> bool:
        """Whether an output channel loses more than rounding explains."""
        return has_any(self.output_errors > unit * self.output_peaks)

    def hidden(self, sums: tuple[Array, Array], dtype: np.dtype[np.generic], unit: float) -> Mask:
        """Output channels whose loss does not show in their sums.

        The weights of a channel that is scaled down to almost nothing lose digits, as they become subnormal. Beside
        what is added to them, or beside the spacing of the type, that is nothing.

        Args:
            sums: mean squares of the sums of each output channel, before and after a shift, by its statistics.
            dtype: the type of weights and output.
            unit: its spacing at 1.
        """
        peaks = self.output_peaks
        share = np.divide(self.output_errors, peaks, out=np.zeros_like(peaks), where=peaks > 0)
        is_lost = np.asarray(share > unit)
        products, results = (np.sqrt(part) for part in sums)
        lost, roundings = np.where(is_lost, share, 1.0) * products, 2 * _smallest(dtype)  # of half the spacing each
        return np.asarray(is_lost & ((DEVIATIONS * lost <= unit * results) | (lost <= roundings)))

    def judge(
        self,
        bias: Array | None,
        dtype: np.dtype[np.generic],
        unit: float,
        harmless: Mask | None = None,
        groups: int = 1,
    ) -> Rounding:
        """Judge the rounding of the kernel, and of a bias with it, to `dtype`; see `measure_rounding` for `unit`.

        An input channel of which no weight keeps its digits (subnormal ones beside normal ones) counts as much as
        others where its data is as much larger. A bias is judged against the largest weight too: one that is tiny
        beside the weights loses nothing that counts. It may have half the size that its type allows: what it is added
        to is as large.
        """
        kernel = _judge(self.output_errors, self.output_peaks, self.output_peaks, unit, harmless)
        if kernel.overflow is not None:
            return replace(kernel, is_narrow=is_narrow(dtype))
        peak = float(self.output_peaks.max(initial=0.0))
        lost = (self.input_errors > unit * self.input_peaks) & (self.input_errors * DATA_RANGE > unit * peak)
        if harmless is not None:
            lost &= ~_read_by(harmless, groups, len(lost))
        input_loss = _first(lost)
        if bias is None:
            return replace(kernel, input_loss=input_loss, is_narrow=is_narrow(dtype))
        largest = float(np.abs(bias).max(initial=0.0))
        beside = measure_rounding(bias.T, round_once(bias.T, dtype), unit, max(peak, largest))  # a Gemm's may have rows
        return Rounding(
            max(kernel.error, beside.error),
            overflow=None if 2 * largest <= _largest(dtype) else _find_crowded(bias, dtype),
            loss=beside.loss if kernel.loss is None else kernel.loss,
            input_loss=input_loss,
            is_narrow=is_narrow(dtype),
        )


def _find_crowded(bias: Array, dtype: np.dtype[np.generic]) -> int | None:
    """The first output channel whose bias is more than half of what its type holds."""
    is_held = np.isfinite(round_once(2 * bias.T, dtype).astype(np.float64))
    return _first(np.asarray(~is_held.reshape(bias.shape[-1], -1).all(axis=1)))


def _read_by(outputs: Mask, groups: int, inputs: int) -> Mask:
    """The input channels of a kernel that none but these output channels read."""
    return np.repeat(outputs.reshape(groups, -1).all(axis=1), inputs // groups)


@cache
def _smallest(dtype: np.dtype[np.generic]) -> float:
    """The smallest number of a type that is more than zero."""
    powers = np.ldexp(1.0, -np.arange(1075))
    return float(powers[round_once(powers, dtype).astype(np.float64) > 0].min())


@cache
def _largest(dtype: np.dtype[np.generic]) -> float:
    """The largest power of two that a type holds."""
    powers = np.ldexp(1.0, np.arange(1024))
    return float(powers[np.isfinite(round_once(powers, dtype).astype(np.float64))].max())


def measure_parameters(
    kernel: Array, bias: Array | None, dtype: np.dtype[np.generic], unit: float, sizes: Array | None = None
) -> Rounding:
    """Measure the rounding of a solved kernel (canonical) and bias to `dtype`; see `KernelPeaks`."""
    return KernelPeaks.of(kernel, dtype, sizes).judge(bias, dtype, unit)


@cache
def is_narrow(dtype: np.dtype[np.generic]) -> bool:
    """Whether a type ends below 1e5."""
    return not np.isfinite(float(round_once(np.asarray(1e5), dtype)))


def measure_growth(products: Array, results: Array, constant: Array, bias: Array) -> Growth:
    """Measure the growth of rounding errors, for data with these statistics.

    An output is a sum, whose addends are each rounded by a share of their size, at random; the errors add up as squares
    do. The operator added ``K * before(x)`` and a bias; now it adds ``K * scale * x`` and ``constant``. Where the data
    is far from zero beside its deviation, these are large and cancel each other.

    Args:
        products: the sum of the squares of the new products, for each output channel.
        results: the sum of the squares of the old ones.
        constant: the new bias.
        bias: the old bias.
    """
    before = results + bias**2
    with np.errstate(all="ignore"):
        after = products + constant**2
        squares = np.divide(after, before, out=np.ones_like(after), where=after > before)
    whole, channel = np.sqrt(np.mean(squares)), np.sqrt(squares.max(initial=1.0))
    return Growth(max(float(whole), float(channel) / 4), int(np.argmax(squares)) % squares.shape[-1])


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """The stored parameters of a BatchNorm that absorbed an affine: its map, with the statistics of its new input.

    gamma and beta are solved for the statistics as they are stored, so that each parameter is rounded once and none
    has to make up for another. beta is then the output at the running mean, and not the small difference of large
    numbers that it becomes where the data moves and the running mean does not.
    """

    gamma: npt.NDArray[np.generic]
    beta: npt.NDArray[np.generic]
    mean: npt.NDArray[np.generic]
    var: npt.NDArray[np.generic]
    rounding: Rounding


def solve_batchnorm(
    affine: Affine,
    mean: npt.NDArray[np.generic],
    var: npt.NDArray[np.generic],
    eps: float,
    dtype: np.dtype[np.generic],
    unit: float,
) -> BatchNorm:
    """The parameters with which a BatchNorm is `affine`.

    Args:
        affine: the map, with statistics.
        mean: the running mean until now; it stays where the statistics are still its own.
        var: the running variance until now.
        eps: its epsilon, which stays.
        dtype: the type of gamma and beta.
        unit: the spacing of `dtype` at 1.
    """
    known = affine.statistics
    assert known is not None
    pairs = (known.mean, mean), (known.variance, var)
    if not all(np.array_equal(wide, stored.astype(np.float64)) for wide, stored in pairs):
        mean, var = round_once(known.mean, mean.dtype), round_once(known.variance, var.dtype)
        var = np.where(np.isfinite(var), var, np.ones_like(var))  # any value will do, since gamma is solved for it
    with np.errstate(all="ignore"):
        gamma, beta = affine.batchnorm_parameters(mean, var, eps)
        stored_gamma, stored_beta = round_once(gamma, dtype), round_once(beta, dtype)
        stored = Affine.from_batchnorm(stored_gamma, stored_beta, mean, var, eps, affine.axis)
        deviation = np.sqrt(known.variance)
        size = np.abs(affine.scale) * deviation + np.abs(affine.scale * known.mean + affine.shift)
        moved = stored.shift - affine.shift + (stored.scale - affine.scale) * known.mean
        slope = np.abs(stored.scale - affine.scale)
        error = slope * deviation + np.abs(moved)
        size += 8 * FLOAT64_UNIT / unit * (np.abs(affine.scale * known.mean) + np.abs(affine.shift))
    rounding = _judge(error, size, size, unit)
    lost = slope > unit * np.abs(affine.scale)  # a subnormal gamma, though a large beta may hide it
    if rounding.overflow is None and rounding.loss is None and has_any(lost):
        rounding = replace(rounding, loss=int(np.argmax(lost)))
    return BatchNorm(stored_gamma, stored_beta, mean, var, replace(rounding, is_narrow=is_narrow(dtype)))
