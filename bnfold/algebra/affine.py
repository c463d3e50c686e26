"""Per-channel affine maps ``y = scale * x + shift``, such as a BatchNorm in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bnfold.algebra.exact import DoubleDouble
from bnfold.algebra.masks import has_all, has_any

Array = npt.NDArray[np.float64]


def _vector(values: npt.ArrayLike) -> Array:
    vector = np.asarray(values, dtype=np.float64)
    return vector if vector.ndim == 1 else vector.reshape(-1)


@lru_cache(maxsize=256)
def _ones(size: int) -> Array:
    """One vector of ones for all that need one of that size; nobody can change it."""
    ones = np.ones(size)
    ones.flags.writeable = False
    return ones


@dataclass(frozen=True, eq=False, slots=True)
class Statistics:
    """The size of the data that an affine reads, channel by channel.

    Attributes:
        mean: float64 vector, one entry per channel.
        variance: float64 vector of squared deviations from the mean.
        measured: 1 for a channel that a BatchNorm measured, 0 where mean and variance are assumed.
    """

    mean: Array
    variance: Array
    measured: Array

    def each(self, select: Callable[[Array], Array]) -> Statistics:
        """The same with every vector changed in the same way."""
        return Statistics(select(self.mean), select(self.variance), select(self.measured))

    def or_else(self, other: Statistics) -> Statistics:
        """These statistics where they are measured, else the other ones."""
        pairs = (self.mean, other.mean), (self.variance, other.variance), (self.measured, other.measured)
        return Statistics(*(np.where(self.measured > 0, mine, theirs) for mine, theirs in pairs))

    def in_front_of(self, affine: Affine) -> Statistics:
        """The statistics of `x`, if these are the statistics of ``affine(x)``; zero where that is a constant."""
        scale = np.where(affine.scale == 0, np.inf, affine.scale)
        with np.errstate(over="ignore", invalid="ignore"):
            return replace(self, mean=(self.mean - affine.shift) / scale, variance=self.variance / scale / scale)


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """The map ``y[..., c, ...] = scale[c] * x[..., c, ...] + shift[c]`` along one axis.

    Attributes:
        scale: float64 vector, one entry per channel.
        shift: float64 vector of the same length.
        axis: the channel axis, counted from the front.
        statistics: the statistics of its input, if rounding is to be judged by them. They do not change the map.
        rest: for a composition, what is missing from `scale` and `shift`, which are rounded. The next composition takes
            it into account, so the vectors do not depend on the order in which maps are composed.
    """

    scale: Array
    shift: Array
    axis: int
    statistics: Statistics | None = None
    rest: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        if self.scale.shape != self.shift.shape or self.scale.ndim != 1:
            raise ValueError(f"scale {self.scale.shape} and shift {self.shift.shape} must be equal vectors")
        if self.axis < 0:
            raise ValueError(f"axis {self.axis} must count from the front")

    @classmethod
    def of(cls, scale: npt.ArrayLike, shift: npt.ArrayLike, axis: int = 1) -> Affine:
        """The affine of two vectors, either of which may be a single number."""
        wide_scale, wide_shift = np.broadcast_arrays(_vector(scale), _vector(shift))
        return cls(wide_scale, wide_shift, axis)

    @classmethod
    def from_batchnorm(
        cls,
        gamma: npt.ArrayLike,
        beta: npt.ArrayLike,
        mean: npt.ArrayLike,
        var: npt.ArrayLike,
        eps: float,
        axis: int = 1,
    ) -> Affine:
        """``scale = gamma / sqrt(var + eps)``, ``shift = beta - mean * scale``; its statistics are mean and var.

        Source: Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 2.
        """
        scale = _vector(gamma) / np.sqrt(_vector(var) + eps)
        statistics = Statistics(_vector(mean), _vector(var), _ones(scale.size))
        return cls(scale, _vector(beta) - statistics.mean * scale, axis, statistics)

    def batchnorm_parameters(self, mean: npt.ArrayLike, var: npt.ArrayLike, eps: float) -> tuple[Array, Array]:
        """The gamma and beta that make a BatchNorm with these statistics equal to self."""
        return self.scale * np.sqrt(_vector(var) + eps), self.shift + _vector(mean) * self.scale

    @property
    def sizes(self) -> tuple[Array, Array]:
        """Mean squares of ``scale * x`` and of ``scale * x + shift`` for data as the statistics describe it."""
        assert self.statistics is not None
        spread = self.scale**2 * self.statistics.variance
        product = self.scale * self.statistics.mean
        return product**2 + spread, (product + self.shift) ** 2 + spread

    def with_statistics(self, statistics: Statistics | None) -> Affine:
        """The same map, on data with these statistics."""
        return replace(self, statistics=statistics)

    @classmethod
    def identity(cls, size: int, axis: int) -> Affine:
        """The affine that changes nothing."""
        return cls(np.ones(size), np.zeros(size), axis)

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.scale)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The axes that it lies on, each with its size."""
        return ((self.axis, self.size),)

    @property
    def has_shift(self) -> bool:
        """Whether any channel is shifted."""
        return has_any(self.shift)

    @property
    def is_increasing(self) -> bool:
        """Whether no channel changes the order of values (``scale >= 0``)."""
        return has_all(self.scale >= 0)

    @property
    def is_finite(self) -> bool:
        """Whether every entry is a finite number."""
        return has_all(np.isfinite(self.scale)) and has_all(np.isfinite(self.shift))

    def equals(self, other: Affine) -> bool:
        """Whether both are the same map on the same axis."""
        return (
            self.places == other.places
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.shift, other.shift)
        )

    def after(self, inner: Affine) -> Affine:
        """The composition ``self(inner(x))``."""
        if self.places != inner.places:
            raise ValueError("only affines of one axis and size compose")
        (outer_scale, outer_shift), (inner_scale, inner_shift) = self._exact, inner._exact
        scale, shift = outer_scale * inner_scale, outer_scale * inner_shift + outer_shift
        return replace(
            self,
            scale=scale.high,
            shift=shift.high,
            statistics=self._statistics_after(inner),
            rest=(scale.low, shift.low),
        )

    @property
    def _exact(self) -> tuple[DoubleDouble, DoubleDouble]:
        """Scale and shift, with what is missing from them."""
        scale_rest, shift_rest = self.rest or (None, None)
        return DoubleDouble.of(self.scale, scale_rest), DoubleDouble.of(self.shift, shift_rest)

    @property
    def rounded(self) -> Affine:
        """The map of the two vectors alone."""
        return replace(self, rest=None)

    def _statistics_after(self, inner: Affine) -> Statistics | None:
        """The statistics of the inner map where they are measured; else derived from those of this map.

        Assumed ones take the deviation from the scale next to the shift: in ``((x - a) / b) * c`` it is b.
        """
        if self.statistics is None:
            return inner.statistics
        behind = self.statistics.in_front_of(inner)
        if inner.statistics is None:
            return behind
        is_nearer = (np.abs(inner.scale) != 1) & (np.abs(self.shift) < 1) & (self.statistics.measured == 0)
        behind = replace(behind, variance=np.where(is_nearer, inner.statistics.variance, behind.variance))
        return inner.statistics.or_else(behind)

    def each(self, select: Callable[[Array], Array]) -> Affine:
        """The same with every vector changed in the same way."""
        statistics = None if self.statistics is None else self.statistics.each(select)
        rest = None if self.rest is None else (select(self.rest[0]), select(self.rest[1]))
        return Affine(select(self.scale), select(self.shift), self.axis, statistics, rest)

    def negated(self) -> Affine:
        """The map from ``-x`` to ``-y``."""
        statistics, rest = self.statistics, self.rest
        if statistics is not None:
            statistics = replace(statistics, mean=-statistics.mean)
        if rest is not None:
            rest = rest[0], -rest[1]
        return replace(self, shift=-self.shift, statistics=statistics, rest=rest)

    def plus(self, other: Affine) -> Affine:
        """The map from ``x + x'`` to ``y + y'``. The other map must have the same scale."""
        known = [term.statistics for term in (self, other) if term.statistics is not None]
        statistics = known[0] if known else None
        if len(known) == 2:
            mean, variance = known[0].mean + known[1].mean, known[0].variance + known[1].variance
            statistics = Statistics(mean, variance, np.minimum(known[0].measured, known[1].measured))
        return Affine(self.scale, self.shift + other.shift, self.axis, statistics)

    def along(self, axis: int) -> Affine:
        """The same vectors on another axis."""
        return Affine(self.scale, self.shift, axis, self.statistics, self.rest)

    def with_shift(self, shift: Array) -> Affine:
        """The same scale with another shift."""
        rest = None if self.rest is None else (self.rest[0], np.zeros(self.size))
        return replace(self, shift=shift, rest=rest)

    def with_vectors(self, scale: Array, shift: Array) -> Affine:
        """Another map along the same axes, on data of unknown statistics."""
        return replace(self, scale=scale, shift=shift, statistics=None, rest=None)

    def take(self, index: npt.ArrayLike) -> Affine:
        """The channels that `index` names, in its order."""
        positions = np.asarray(index, dtype=np.intp)
        return self.each(lambda vector: vector[positions])

    def repeat(self, times: int) -> Affine:
        """Each channel `times` times in a row: ``c0 c0 c1 c1``."""
        return self.take(np.repeat(np.arange(self.size), times))

    def tile(self, times: int) -> Affine:
        """All channels `times` times over: ``c0 c1 c0 c1``."""
        return self.take(np.tile(np.arange(self.size), times))

    def split(self, sizes: Sequence[int]) -> tuple[Affine, ...]:
        """Consecutive parts of the given sizes."""
        ends = np.cumsum(sizes)
        if not len(ends) or ends[-1] != self.size:
            raise ValueError(f"parts {tuple(sizes)} do not add up to {self.size} channels")
        return tuple(self.take(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True))

    @staticmethod
    def join(parts: Sequence[Affine]) -> Affine:
        """The inverse of `split`."""
        statistics = None
        if any(part.statistics for part in parts):
            known = [part.statistics or part.assumed for part in parts]
            statistics = Statistics(
                np.concatenate([part.mean for part in known]),
                np.concatenate([part.variance for part in known]),
                np.concatenate([part.measured for part in known]),
            )
        rest: tuple[Array, Array] | None = None
        if any(part.rest is not None for part in parts):
            exact = [part._exact for part in parts]
            rest = np.concatenate([scale.low for scale, _ in exact]), np.concatenate([shift.low for _, shift in exact])
        return Affine(
            np.concatenate([part.scale for part in parts]),
            np.concatenate([part.shift for part in parts]),
            parts[0].axis,
            statistics,
            rest,
        )

    @property
    def assumed(self) -> Statistics:
        """The statistics under which the map gives mean 0 and deviation 1, as a normalisation does."""
        return Statistics(np.zeros(self.size), np.ones(self.size), np.zeros(self.size)).in_front_of(self)

    def spread(self, index: npt.ArrayLike, size: int) -> Affine | None:
        """The affine `u` of `size` channels with ``u.take(index)`` equal to self, identity elsewhere.

        None where one channel of `u` would have to be two different maps.
        """
        positions = np.asarray(index, dtype=np.intp)
        chosen = np.full(size, -1)
        chosen[positions] = np.arange(self.size)
        candidate = Affine.join([self, Affine.identity(1, self.axis)]).take(chosen)
        return candidate if candidate.take(positions).equals(self) else None

    def __call__(self, x: Array) -> Array:
        """Apply to an array of any rank above `axis`."""
        shape = [1] * x.ndim
        for axis, size in self.places:
            shape[axis] = size
        return self.scale.reshape(shape) * x + self.shift.reshape(shape)


SEVERAL = 1 << 20
"""The axis of a map along several axes. No value has it, so nothing takes the map for one along a single axis."""


@dataclass(frozen=True, eq=False, slots=True)
class Grid(Affine):
    """A map along several axes. Its vectors have an entry for each place on all of them, in row-major order.

    Attributes:
        lengths: of the axes; the first is the outermost.
        axes: in ascending order.
    """

    axes: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The axes that it lies on, each with its size."""
        return tuple(zip(self.axes, self.lengths, strict=True))


def lay_out(flat: Affine, axes: Sequence[int], lengths: Sequence[int]) -> Affine:
    """The map along these axes. `flat` has its places, with the axes in the given order.

    Axes along which it does not vary are left out, but one axis is kept.
    """
    order = sorted(range(len(axes)), key=lambda k: axes[k])
    index = np.arange(flat.size).reshape(tuple(lengths)).transpose(order)
    kept = [axes[k] for k in order]
    for place in reversed(range(len(kept))):
        first = index.take([0], axis=place)
        if len(kept) > 1 and all(np.all(vector[index] == vector[first]) for vector in (flat.scale, flat.shift)):
            index = first.squeeze(place)
            del kept[place]
    along = flat.take(index.reshape(-1))
    if len(kept) == 1:
        return along.along(kept[0])
    parts = along.scale, along.shift, SEVERAL, along.statistics, along.rest
    return Grid(*parts, axes=tuple(kept), lengths=index.shape)


def align(*affines: Affine) -> tuple[Affine, ...]:
    """Maps of one value, laid out along the axes of all of them.

    Raises:
        ValueError: they disagree about the size of an axis.
    """
    places = dict(place for affine in affines for place in affine.places)
    if any(places[axis] != size for affine in affines for axis, size in affine.places):
        raise ValueError("the axis of a value has one size")
    axes = sorted(places)
    lengths = tuple(places[axis] for axis in axes)
    if len(axes) == 1:
        return affines
    aligned: list[Affine] = []
    for affine in affines:
        own = dict(affine.places)
        index = np.arange(affine.size).reshape([own.get(axis, 1) for axis in axes])
        flat = affine.take(np.broadcast_to(index, lengths).reshape(-1))
        parts = flat.scale, flat.shift, SEVERAL, flat.statistics, flat.rest
        aligned.append(Grid(*parts, axes=tuple(axes), lengths=lengths))
    return tuple(aligned)


def per_channel_axis(shape: tuple[int, ...], rank: int) -> int | None:
    """The only axis along which a constant varies once broadcast to `rank` axes.

    None for a constant of one element; -1 where it varies along several axes or has more than `rank`.
    """
    if len(shape) > rank:
        return -1
    long = [axis + rank - len(shape) for axis, dim in enumerate(shape) if dim != 1]
    return None if not long else long[0] if len(long) == 1 else -1


def narrowest(affine: Affine, behind: Sequence[Affine]) -> Statistics:
    """The statistics of the input of an arithmetic operator: the narrowest that a reader of its result tells.

    A BatchNorm among them measured its data, and a scale next to a shift tells the deviation, whoever else reads the
    same value: in ``c = x - a``, ``c / b``, ``c @ k`` the data of the matrix product has the deviation b.

    Args:
        affine: the map of the operator.
        behind: the maps of its readers.
    """
    best = affine.assumed
    for reader in behind:
        if (reader.axis, reader.size) != (affine.axis, affine.size):
            continue
        claim = reader.statistics.in_front_of(affine) if reader.statistics else reader.after(affine).assumed
        is_better = (claim.measured > best.measured) | (
            (claim.measured == best.measured) & (claim.variance < best.variance)
        )
        pairs = (
            (claim.mean, best.mean),
            (claim.variance, best.variance),
            (claim.measured, best.measured),
        )
        best = Statistics(*(np.where(is_better, new, old) for new, old in pairs))
    return best
