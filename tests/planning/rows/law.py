"""What a row of the table says of an operator, and `prove`, which checks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine, Array
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.rules import pull, push

SEEDS = st.integers(0, 2**32 - 1)
Arrays = tuple[Array, ...]
Evaluate = Callable[..., Array | Arrays]
"""An operator as a function of its inputs."""

Affines = tuple[Affine | None, ...]
Shapes = tuple[tuple[int, ...], ...]


# The one helper


def apply(affines: Affines, values: Arrays) -> Arrays:
    """Each affine on its value; None leaves one as it is."""
    return tuple(value if affine is None else affine(value) for affine, value in zip(affines, values, strict=True))


def run(evaluate: Evaluate, values: Arrays) -> Arrays:
    """All outputs as a tuple."""
    result = evaluate(*values)
    return result if isinstance(result, tuple) else (result,)


def prove(
    rule: Callable[..., object],
    op: object,
    evaluate: Evaluate,
    shapes: Shapes,
    affines: Affines,
    seed: int = 0,
) -> Reason | None:
    """The reason of a refusal; None where the rule carried the affines and its law held."""
    random = np.random.default_rng(seed)
    inputs = tuple(random.normal(size=shape) for shape in shapes)
    carried = rule(op, *affines)
    if isinstance(carried, Stop):
        assert carried.detail
        return carried.reason
    assert isinstance(carried, tuple)
    before, after = (carried, affines) if rule is pull else (affines, carried)
    expected = run(evaluate, apply(before, inputs))
    actual = apply(after, run(evaluate, inputs))
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        atol = 1e-12 * max(1.0, float(np.abs(other[np.isfinite(other)]).max(initial=0.0)))
        is_same = np.allclose(one, other, rtol=0, atol=atol, equal_nan=True)
        assert is_same, f"{op} {affines} {carried}\n{one}\n{other}"
    return None


# Kinds of affines, and what a rule says to each


class Kind(Enum):
    """What an affine may do; without "uniform" the channels differ."""

    ANY = "scales of both signs and shifts"
    SCALE = "scales of both signs"
    INCREASING = "positive scales and shifts"
    POSITIVE = "positive scales"
    SHIFT = "shifts"
    UNIFORM = "one negative scale and one shift for all channels"
    UNIFORM_SHIFT = "one shift for all channels"

    def draw(self, random: np.random.Generator, size: int, axis: int) -> Affine:
        """One affine of this kind, of `size` channels."""
        scale, shift = random.uniform(0.5, 2, size), random.normal(size=size)
        if self in (Kind.ANY, Kind.SCALE):
            scale[random.integers(size or 1) :] *= -1
        match self:
            case Kind.SCALE | Kind.POSITIVE:
                shift = np.zeros(size)
            case Kind.SHIFT:
                scale = np.ones(size)
            case Kind.UNIFORM:
                return Affine.of(np.full(size, -1.5), np.full(size, 0.75), axis)
            case Kind.UNIFORM_SHIFT:
                return Affine.of(np.ones(size), np.full(size, 0.75), axis)
        return Affine(scale, shift, axis)


Verdict = Mapping[Kind, Reason]
"""The kinds that are refused, and why; every other one must be carried."""


def refuses(reason: Reason, *but: Kind) -> Verdict:
    """Every kind is refused for one reason, but these."""
    return {kind: reason for kind in Kind if kind not in but}


ALL: Verdict = {}
MIXES = refuses(Reason.AXIS_MISMATCH)
UNIFORM_ONLY = refuses(Reason.MIXED_CHANNELS, Kind.UNIFORM, Kind.UNIFORM_SHIFT)
MIXED = refuses(Reason.MIXED_CHANNELS)
UNKNOWN = refuses(Reason.UNKNOWN_SHAPE)
CONFLICTS = refuses(Reason.CONFLICT)
NO_SHIFT = refuses(Reason.SHIFT, Kind.SCALE, Kind.POSITIVE)
NO_BORDER = refuses(Reason.BORDER, Kind.SCALE, Kind.POSITIVE)
NO_NEGATIVE: Verdict = dict.fromkeys([Kind.ANY, Kind.SCALE, Kind.UNIFORM], Reason.NEGATIVE_SCALE)
POSITIVE_ONLY = {**refuses(Reason.NONLINEAR, Kind.POSITIVE), Kind.SCALE: Reason.NEGATIVE_SCALE}
SHIFT_ONLY = refuses(Reason.CONFLICT, Kind.SHIFT, Kind.UNIFORM_SHIFT)


class Shared(Enum):
    """What several affines of one trial have in common."""

    NOTHING = "nothing"
    SCALE = "the scale"
    ALL = "everything"


@dataclass(frozen=True)
class Trial:
    """Affines on these axes of all outputs (pull) or inputs (push); None is no affine."""

    rule: Callable[..., object]
    axes: tuple[int | None, ...]
    verdict: Verdict = field(default_factory=dict)
    shared: Shared = Shared.NOTHING

    def draw(self, kind: Kind, values: Shapes, random: np.random.Generator) -> Affines:
        """One affine of `kind` for each value that has an axis."""
        affines: list[Affine | None] = []
        first: Affine | None = None
        for axis, shape in zip(self.axes, values, strict=True):
            affine = None if axis is None else kind.draw(random, shape[axis], axis)
            if first is not None and affine is not None and self.shared is not Shared.NOTHING:
                shift = first.shift if self.shared is Shared.ALL else affine.shift
                affine = Affine(first.scale, shift, affine.axis)
            affines.append(affine)
            first = first or affine
        return tuple(affines)


def pulls(*verdicts: Verdict) -> tuple[Trial, ...]:
    """An affine on each axis of the only output, in turn."""
    return tuple(Trial(pull, (axis,), verdict) for axis, verdict in enumerate(verdicts))


def pushes(*verdicts: Verdict) -> tuple[Trial, ...]:
    """An affine on each axis of the only input, in turn."""
    return tuple(Trial(push, (axis,), verdict) for axis, verdict in enumerate(verdicts))


@dataclass(frozen=True)
class Row:
    """An operator, its meaning, the shapes of its inputs, and what its rules must do."""

    op: object
    evaluate: Evaluate
    shapes: Shapes
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Sizes:
    """What hypothesis draws for a row: batch, channels, more channels, a factor, spatial sizes."""

    n: int
    c: int
    k: int
    f: int
    space: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The rank of ``[n, c, *space]``."""
        return 2 + len(self.space)

    @property
    def spatial(self) -> frozenset[int]:
        """The axes of `space`."""
        return frozenset(range(2, self.rank))

    @property
    def image(self) -> tuple[int, ...]:
        """``[n, c, *space]``."""
        return (self.n, self.c, *self.space)


def draw_sizes(data: st.DataObject, spatial: int) -> Sizes:
    """Sizes of two and more: a single channel is always uniform, and has tests of its own."""
    several = st.integers(2, 4)
    n, c, k, f = (data.draw(several) for _ in range(4))
    return Sizes(n, c, k, f, tuple(data.draw(several) for _ in range(spatial)))


ROWS: dict[str, Callable[[Sizes], Row]] = {}


def row(build: Callable[[Sizes], Row]) -> Callable[[Sizes], Row]:
    """Enter a row into the table."""
    ROWS[build.__name__] = build
    return build
