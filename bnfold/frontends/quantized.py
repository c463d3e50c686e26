"""Quantised weights: integers that are dequantised absorb a per-channel scale in their own scales.

    (q - zero_point) * scale[c] * s[c]  =  (q - zero_point) * (scale[c] * s[c])

Integers stay as they are where s is positive. Where it is negative, q becomes ``2 zero_point - q``, if its type has
that; where it is zero, q becomes the zero point, and the scale stays. So this is exact up to the one rounding of the
scales.

Where a quantiser makes the integers of a float weight w, as training that knows of quantisation exports it, the
weight takes in s as well. Mostly ``w * s`` then has the same integer under the new scale. Near a tie or beyond the
range of its type it may have another, or one that depends on the runtime. Such an element becomes ``(q - zero_point) *
scale``, the number that q stands for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Array
from bnfold.algebra.linear import Layout
from bnfold.algebra.rounding import round_once

AnyArray = npt.NDArray[Any]

DOUBT = 2.0**-20
"""How far from a tie a weight must lie, relatively. Runtimes divide by a scale, or multiply by its inverse."""


def limits_of(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """The least and the most integer of a type; None for a type of floating point."""
    try:
        limits = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    except ValueError:
        return None
    return int(limits.min), int(limits.max)


@dataclass(frozen=True, eq=False)
class Quantizer:
    """What makes integers of float32 numbers.

    Attributes:
        scales, zero_points: vectors, of one entry if per tensor. Zero points have the type of the integers.
        axis: along which they differ, for more than one.
    """

    scales: AnyArray
    zero_points: AnyArray
    axis: int

    def __call__(self, values: AnyArray) -> AnyArray:
        """The integers that stand for these numbers."""
        limits = limits_of(self.zero_points.dtype)
        assert limits is not None
        with np.errstate(over="ignore"):
            rounded = np.rint(values / self.along(self.scales, values.ndim))
        shifted = rounded + self.along(self.zero_points, values.ndim).astype(np.float64)
        integers: AnyArray = np.clip(shifted, float(limits[0]), float(limits[1])).astype(np.int64)
        return integers.astype(self.zero_points.dtype)

    def along(self, vector: AnyArray, rank: int) -> AnyArray:
        """One of its vectors beside data of `rank` axes."""
        shape = [1] * rank
        if vector.size > 1:
            shape[self.axis] = vector.size
        return vector.reshape(shape)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight of integers, with their scales, as the operator reads it.

    Attributes:
        integers: the integers.
        scales, zero_points: vectors, of one entry if per tensor.
        axis: along which scales differ, for more than one.
        weights: the float32 numbers of which a quantiser makes the integers; None where these are stored.
        limits: the least and the most integer; None for those of the type.
        is_turned: whether a matrix is stored transposed.
    """

    integers: AnyArray
    scales: AnyArray
    zero_points: AnyArray
    axis: int
    weights: AnyArray | None = None
    limits: tuple[int, int] | None = None
    is_turned: bool = False

    def turned(self) -> Quantized:
        """The transposed matrix."""
        weights = None if self.weights is None else self.weights.T
        return replace(self, integers=self.integers.T, axis=1 - self.axis, weights=weights, is_turned=True)

    def dequantize(self) -> AnyArray:
        """The values, in the type of the scales."""
        axis = self.axis if self.scales.size > 1 else 0
        wide = self.integers.astype(np.float64) - self._along(self.zero_points, axis).astype(np.float64)
        return (wide * self._along(self.scales, axis).astype(np.float64)).astype(self.scales.dtype)

    def rescaled(self, factor: Array) -> Array:
        """The scales, one for each output channel, times the size of `factor` where that is not zero; float64."""
        sizes = np.where(factor == 0, 1.0, np.abs(factor))
        return np.broadcast_to(self.scales.astype(np.float64), factor.shape) * sizes

    def mirrored(self, axis: int) -> npt.NDArray[np.bool_]:
        """The channels along `axis` of which every integer has a negative in its type."""
        channels, limits = self.integers.shape[axis], self.limits or limits_of(self.integers.dtype)
        if limits is None:
            return np.zeros(channels, bool)
        by_channel = np.moveaxis(self._negatives(axis), axis, 0).reshape(channels, -1)
        return np.asarray(((by_channel >= limits[0]) & (by_channel <= limits[1])).all(axis=1))

    def resigned(self, factor: Array, axis: int) -> AnyArray:
        """The integers times the sign of `factor`, which has an entry for each channel along `axis`."""
        if (factor > 0).all():
            return self.integers
        signs = self._along(factor, axis)
        zero_points = self._along(self.zero_points, axis).astype(np.int64)
        signed = np.where(signs < 0, self._negatives(axis), self.integers.astype(np.int64))
        return np.where(signs == 0, zero_points, signed).astype(self.integers.dtype)

    def reweighted(self, factor: Array, axis: int) -> AnyArray | None:
        """The weights times `factor`, with the integers of `resigned` under the scales of `rescaled`; None without any.

        They may miss an integer where a new scale or weight leaves the range of normal numbers; see `requantizes`.
        """
        if self.weights is None:
            return None
        wanted, quantize = self.resigned(factor, axis), self._requantizer(factor, axis)
        scaled = round_once(self.weights.astype(np.float64) * self._along(factor, axis), self.weights.dtype)
        points, scales = (quantize.along(vector, wanted.ndim) for vector in (quantize.zero_points, quantize.scales))
        steps = wanted.astype(np.float64) - points.astype(np.float64)
        meant = round_once(steps * scales.astype(np.float64), self.weights.dtype)
        is_same = np.isfinite(scaled)
        for doubt in (1 - DOUBT, 1 + DOUBT):
            is_same &= quantize(np.multiply(scaled, doubt, dtype=np.float32)) == wanted
        return np.where(is_same, scaled, meant)

    def requantizes(self, factor: Array, axis: int) -> npt.NDArray[np.bool_]:
        """The channels along `axis` whose weights, as `reweighted` gives them, have the integers of `resigned`."""
        channels = self.integers.shape[axis]
        weights = self.reweighted(factor, axis)
        if weights is None:
            return np.ones(channels, bool)
        is_same = np.isfinite(weights) & (self._requantizer(factor, axis)(weights) == self.resigned(factor, axis))
        return np.asarray(np.moveaxis(is_same, axis, 0).reshape(channels, -1).all(axis=1))

    def _requantizer(self, factor: Array, axis: int) -> Quantizer:
        scales = round_once(self.rescaled(factor), self.scales.dtype)
        return Quantizer(scales, np.broadcast_to(self.zero_points, scales.shape), axis)

    def _negatives(self, axis: int) -> npt.NDArray[np.int64]:
        zero_points = self._along(self.zero_points, axis).astype(np.int64)
        return np.asarray(2 * zero_points - self.integers.astype(np.int64), np.int64)

    def _along(self, vector: AnyArray, axis: int) -> AnyArray:
        """A vector with an entry for each channel along `axis`, or one for all, beside the integers."""
        shape = [1] * self.integers.ndim
        if vector.size > 1:
            shape[axis] = vector.size
        return vector.reshape(shape)


def kernel_axis(quantized: Quantized, layout: Layout) -> int:
    """The axis of the stored kernel along which the output channels lie."""
    rank = quantized.integers.ndim
    return {Layout.CONV: 0, Layout.CONV_TRANSPOSE: 1, Layout.IN_OUT: rank - 1, Layout.OUT_IN: rank - 2}[layout]
