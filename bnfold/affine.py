"""Per-channel affine maps ``y = scale * x + shift``: what eval-mode BatchNorm is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _vector(values: npt.ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64).reshape(-1)


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``y[..., c, ...] = scale[c] * x[..., c, ...] + shift[c]`` along one axis.

    Attributes:
        scale: float64 vector, one entry per channel.
        shift: float64 vector of the same length.
        axis: the channel axis, counted from the front.
    """

    scale: Array
    shift: Array
    axis: int

    def __post_init__(self) -> None:
        if self.scale.shape != self.shift.shape or self.scale.ndim != 1:
            raise ValueError(f"scale {self.scale.shape} and shift {self.shift.shape} must be equal vectors")
        if self.axis < 0:
            raise ValueError(f"axis {self.axis} must count from the front")

    @classmethod
    def of(cls, scale: npt.ArrayLike, shift: npt.ArrayLike, axis: int = 1) -> Affine:
        """The affine of two vectors; either may be a single number."""
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
        """``scale = gamma / sqrt(var + eps)``, ``shift = beta - mean * scale``.

        Source: Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 2.
        """
        scale = _vector(gamma) / np.sqrt(_vector(var) + eps)
        return cls.of(scale, _vector(beta) - _vector(mean) * scale, axis)

    def batchnorm_parameters(self, mean: npt.ArrayLike, var: npt.ArrayLike, eps: float) -> tuple[Array, Array]:
        """The gamma and beta that make a BatchNorm with these statistics equal to self."""
        return self.scale * np.sqrt(_vector(var) + eps), self.shift + _vector(mean) * self.scale

    @classmethod
    def identity(cls, size: int, axis: int) -> Affine:
        """The affine that changes nothing."""
        return cls(np.ones(size), np.zeros(size), axis)

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.scale)

    @property
    def has_shift(self) -> bool:
        """Whether any channel is shifted."""
        return bool(np.any(self.shift))

    @property
    def is_increasing(self) -> bool:
        """Whether no channel changes the order of values (``scale >= 0``)."""
        return bool(np.all(self.scale >= 0))

    @property
    def is_finite(self) -> bool:
        """Whether every entry is a finite number."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def equals(self, other: Affine) -> bool:
        """Whether both are the same map on the same axis."""
        return (
            self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.shift, other.shift)
        )

    def after(self, inner: Affine) -> Affine:
        """The composition ``self(inner(x))``."""
        if (self.axis, self.size) != (inner.axis, inner.size):
            raise ValueError("only affines of one axis and size compose")
        return Affine(self.scale * inner.scale, self.scale * inner.shift + self.shift, self.axis)

    def along(self, axis: int) -> Affine:
        """The same vectors on another axis."""
        return Affine(self.scale, self.shift, axis)

    def with_shift(self, shift: Array) -> Affine:
        """The same scale with another shift."""
        return Affine(self.scale, shift, self.axis)

    def take(self, index: npt.ArrayLike) -> Affine:
        """The channels that `index` names, in its order."""
        positions = np.asarray(index, dtype=np.intp)
        return Affine(self.scale[positions], self.shift[positions], self.axis)

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
        return Affine(
            np.concatenate([part.scale for part in parts]),
            np.concatenate([part.shift for part in parts]),
            parts[0].axis,
        )

    def spread(self, index: npt.ArrayLike, size: int) -> Affine | None:
        """The affine `u` of `size` channels with ``u.take(index)`` equal to self, identity elsewhere.

        None where one channel of `u` would have to be two different maps.
        """
        positions = np.asarray(index, dtype=np.intp)
        scale, shift = np.ones(size), np.zeros(size)
        scale[positions], shift[positions] = self.scale, self.shift
        candidate = Affine(scale, shift, self.axis)
        return candidate if candidate.take(positions).equals(self) else None

    def __call__(self, x: Array) -> Array:
        """Apply to an array of any rank above `axis`."""
        shape = [1] * x.ndim
        shape[self.axis] = self.size
        return self.scale.reshape(shape) * x + self.shift.reshape(shape)


def per_channel_axis(shape: tuple[int, ...], rank: int) -> int | None:
    """The only axis along which a constant varies once broadcast to `rank` axes.

    None for a constant of one element; -1 where it varies along several axes or has more than `rank`.
    """
    if len(shape) > rank:
        return -1
    long = [axis + rank - len(shape) for axis, dim in enumerate(shape) if dim != 1]
    return None if not long else long[0] if len(long) == 1 else -1
