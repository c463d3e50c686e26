"""Laws of `pull` and `push`: what a rule carries across an operator computes the same there.

`prove` is the one helper: it asks a rule, evaluates both sides in float64, and compares them at
1e-12. A row of `ROWS` is an operator with its meaning in numpy, and for each axis what the rule
must carry and what it must refuse, so that a rule that always refuses fails as a wrong one does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import prod
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import Linear
from bnfold.graph import ops
from bnfold.graph.ops import (
    Average,
    Broadcast,
    Concat,
    Identity,
    Maximum,
    Opaque,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Rectifier,
    Reshape,
    Split,
    Sum,
    Take,
    Transpose,
)
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.rules import pull, push, variants

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
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=f"{op} {affines} {carried}")
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
POSITIVE_ONLY = refuses(Reason.NONLINEAR, Kind.POSITIVE)
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


# Moving elements


def joined(s: Sizes) -> tuple[Shapes, tuple[int, ...]]:
    """Three inputs of a concatenation along axis 1, and their sizes on it."""
    sizes = (s.c, s.k, s.f)
    return tuple((s.n, size, *s.space) for size in sizes), sizes


def concatenate(axis: int) -> Evaluate:
    """The concatenation of all inputs."""
    return lambda *xs: np.concatenate(xs, axis)


@row
def concat(s: Sizes) -> Row:
    shapes, sizes = joined(s)
    trials = (
        *pulls(*[ALL] * s.rank),
        Trial(push, (1, 1, 1)),
        Trial(push, (1, None, 1)),
        Trial(push, (None, None, 1)),
        Trial(push, (0, 0, 0), ALL, Shared.ALL),
        Trial(push, (2, 2, 2), ALL, Shared.ALL),
        Trial(push, (2, 2, None), CONFLICTS, Shared.ALL),
        Trial(push, (0, 0, 0), refuses(Reason.CONFLICT, Kind.UNIFORM, Kind.UNIFORM_SHIFT)),
    )
    return Row(Concat(1, sizes), concatenate(1), shapes, trials)


@row
def concat_of_one_unknown_size(s: Sizes) -> Row:
    shapes, (c, _, f) = joined(s)
    trials = (
        *pulls(*[ALL] * s.rank),
        Trial(push, (1, 1, 1)),
        Trial(push, (1, 1, None)),
        Trial(push, (1, None, None), UNKNOWN),
        Trial(push, (2, 2, 2), ALL, Shared.ALL),
    )
    return Row(Concat(1, (c, None, f)), concatenate(1), shapes, trials)


@row
def concat_of_two_unknown_sizes(s: Sizes) -> Row:
    shapes, (c, _, _) = joined(s)
    trials = (*pulls(ALL, UNKNOWN, ALL), Trial(push, (1, 1, 1)), Trial(push, (None, 1, 1)))
    return Row(Concat(1, (c, None, None)), concatenate(1), shapes, trials)


@row
def concat_of_one(s: Sizes) -> Row:
    return Row(
        Concat(1, (s.c,)),
        concatenate(1),
        (s.image,),
        (*pulls(*[ALL] * s.rank), *pushes(*[ALL] * s.rank)),
    )


@row
def split(s: Sizes) -> Row:
    sizes = (s.c, s.k, s.f)
    trials = (
        *pushes(*[ALL] * s.rank),
        Trial(pull, (1, 1, 1)),
        Trial(pull, (1, None, 1)),
        Trial(pull, (None, 1, None)),
        Trial(pull, (2, 2, 2), ALL, Shared.ALL),
        Trial(pull, (2, None, 2), CONFLICTS, Shared.ALL),
        Trial(pull, (0, 0, 0), refuses(Reason.CONFLICT, Kind.UNIFORM, Kind.UNIFORM_SHIFT)),
    )
    return Row(
        Split(1, sizes),
        lambda x: tuple(np.split(x, np.cumsum(sizes)[:-1], axis=1)),
        ((s.n, sum(sizes), *s.space),),
        trials,
    )


def taking(s: Sizes, index: Sequence[int], pulled: Verdict, others: Sequence[int] = ()) -> Row:
    """A Take along axis 1 of ``c + 1`` channels that keeps one position of each of the `others`."""

    def evaluate(x: Array) -> Array:
        taken = x.take(index, axis=1)
        for axis in others:
            taken = taken.take([0], axis)
        return taken

    elsewhere = [UNKNOWN if axis in others else ALL for axis in range(2, s.rank)]
    op = Take(1, np.array(index, np.intp), s.c + 1, frozenset(others))
    trials = (*pulls(ALL, pulled, *elsewhere), *pushes(ALL, ALL, *elsewhere))
    return Row(op, evaluate, ((s.n, s.c + 1, *s.space),), trials)


@row
def take_a_slice(s: Sizes) -> Row:
    return taking(s, range(1, s.c + 1), ALL)


@row
def take_backwards(s: Sizes) -> Row:
    return taking(s, range(s.c, -1, -1), ALL)


@row
def take_negative_positions(s: Sizes) -> Row:
    return taking(s, [-1, 0], ALL)


@row
def take_one_channel_twice(s: Sizes) -> Row:
    return taking(s, [0, s.c, 0], UNIFORM_ONLY)


@row
def take_one_channel_twice_from_either_end(s: Sizes) -> Row:
    return taking(s, [s.c, 0, -1], UNIFORM_ONLY)


@row
def take_with_other_axes_cut(s: Sizes) -> Row:
    return taking(s, [1, 0], ALL, (2,))


@row
def take_only_on_other_axes(s: Sizes) -> Row:
    op = Take(-1, np.zeros(0, np.intp), 0, frozenset({0, 2}))
    verdicts = [UNKNOWN, ALL, UNKNOWN, *[ALL] * (s.rank - 3)]
    return Row(op, lambda x: x[1:, :, 1:], (s.image,), (*pulls(*verdicts), *pushes(*verdicts)))


def transposing(s: Sizes, order: tuple[int, ...]) -> Row:
    """A transposition: every axis is carried both ways."""
    return Row(
        Transpose(order),
        lambda x: x.transpose(order),
        (s.image,),
        (*pulls(*[ALL] * s.rank), *pushes(*[ALL] * s.rank)),
    )


@row
def transpose_channels_last(s: Sizes) -> Row:
    return transposing(s, (0, *range(2, s.rank), 1))


@row
def transpose_channels_first(s: Sizes) -> Row:
    return transposing(s, (0, s.rank - 1, *range(1, s.rank - 1)))


@row
def transpose_rotated(s: Sizes) -> Row:
    return transposing(s, (*range(2, s.rank), 0, 1))


@row
def transpose_reversed(s: Sizes) -> Row:
    return transposing(s, tuple(reversed(range(s.rank))))


def shuffle(x: Array, factor: int, channel_first: bool) -> Array:
    """DepthToSpace as the ONNX specification spells it, for CRD and DCR order."""
    n, packed, h, w = x.shape
    c = packed // factor**2
    if channel_first:
        parts = x.reshape(n, c, factor, factor, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, factor, factor, c, h, w).transpose(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c, h * factor, w * factor)


def unshuffle(x: Array, factor: int, channel_first: bool) -> Array:
    """The inverse of `shuffle`."""
    n, c, height, width = x.shape
    parts = x.reshape(n, c, height // factor, factor, width // factor, factor)
    order = (0, 1, 3, 5, 2, 4) if channel_first else (0, 3, 5, 1, 2, 4)
    return parts.transpose(order).reshape(n, c * factor**2, height // factor, width // factor)


def shuffling(s: Sizes, channel_first: bool) -> Row:
    """A pixel shuffle of `c` channels."""
    return Row(
        PixelShuffle(s.f, s.c, channel_first),
        lambda x: shuffle(x, s.f, channel_first),
        ((s.n, s.f**2 * s.c, 2, 3),),
        (*pulls(ALL, ALL, MIXES, MIXES), *pushes(ALL, UNIFORM_ONLY, MIXES, MIXES)),
    )


def unshuffling(s: Sizes, channel_first: bool) -> Row:
    """A pixel unshuffle of `c` channels."""
    return Row(
        PixelUnshuffle(s.f, s.c, channel_first),
        lambda x: unshuffle(x, s.f, channel_first),
        ((s.n, s.c, 2 * s.f, 3 * s.f),),
        (*pulls(ALL, UNIFORM_ONLY, MIXES, MIXES), *pushes(ALL, ALL, MIXES, MIXES)),
    )


@row
def pixel_shuffle_channel_first(s: Sizes) -> Row:
    return shuffling(s, True)


@row
def pixel_shuffle_channel_last(s: Sizes) -> Row:
    return shuffling(s, False)


@row
def pixel_unshuffle_channel_first(s: Sizes) -> Row:
    return unshuffling(s, True)


@row
def pixel_unshuffle_channel_last(s: Sizes) -> Row:
    return unshuffling(s, False)


# Reshapes


def reshaping(before: tuple[int, ...], after: tuple[int, ...], *trials: Trial, view: Reshape | None = None) -> Row:
    """A reshape between two shapes, described to the rules by `view` where they know less."""
    return Row(view or Reshape(before, after), lambda x: x.reshape(after), (before,), trials)


@row
def reshape_flatten(s: Sizes) -> Row:
    pulled = pulls(ALL, UNIFORM_ONLY)
    return reshaping(s.image, (s.n, prod(s.image[1:])), *pulled, *pushes(*[ALL] * s.rank))


@row
def reshape_unflatten(s: Sizes) -> Row:
    pulled = pulls(*[ALL] * s.rank)
    return reshaping((s.n, prod(s.image[1:])), s.image, *pulled, *pushes(ALL, UNIFORM_ONLY))


@row
def reshape_flatten_of_symbolic_batch(s: Sizes) -> Row:
    view = Reshape(("batch", *s.image[1:]), ("batch", prod(s.image[1:])))
    trials = (Trial(pull, (1,), UNIFORM_ONLY), *pushes(*[ALL] * s.rank)[1:])
    return reshaping(s.image, (s.n, prod(s.image[1:])), *trials, view=view)


@row
def reshape_flatten_to_an_unknown_batch(s: Sizes) -> Row:
    view = Reshape(("batch", *s.image[1:]), (None, prod(s.image[1:])))
    trials = (Trial(pull, (1,), UNIFORM_ONLY), *pushes(*[ALL] * s.rank)[1:])
    return reshaping(s.image, (s.n, prod(s.image[1:])), *trials, view=view)


@row
def reshape_flatten_to_an_unknown_width(s: Sizes) -> Row:
    """The one unknown size follows from the number of elements."""
    view = Reshape(("batch", *s.image[1:]), ("batch", None))
    trials = (Trial(pull, (1,), UNIFORM_ONLY), *pushes(*[ALL] * s.rank)[1:])
    return reshaping(s.image, (s.n, prod(s.image[1:])), *trials, view=view)


@row
def reshape_flatten_from_an_unknown_space(s: Sizes) -> Row:
    image = (s.n, s.c, *s.space[:-1], s.space[-1])
    view = Reshape((s.n, s.c, *s.space[:-1], None), (s.n, prod(s.image[1:])))
    return reshaping(
        image,
        (s.n, prod(image[1:])),
        *pulls(ALL, UNIFORM_ONLY),
        *pushes(*[ALL] * s.rank),
        view=view,
    )


@row
def reshape_flatten_of_symbolic_space(s: Sizes) -> Row:
    """Each channel becomes an unknown number of features; with static shapes it would fold."""
    names = tuple(f"d{axis}" for axis in range(len(s.space)))
    view = Reshape((s.n, s.c, *names), (s.n, None))
    trials = (Trial(push, (1,), UNKNOWN), Trial(push, (0,)), Trial(pull, (0,)))
    return reshaping(s.image, (s.n, prod(s.image[1:])), *trials, view=view)


@row
def reshape_tokens_of_symbolic_space(s: Sizes) -> Row:
    """``[N, C, H, W] -> [N, C, H*W]`` of dynamic sizes: the channels survive."""
    names = tuple(f"d{axis}" for axis in range(len(s.space)))
    view = Reshape(("batch", s.c, *names), ("batch", s.c, None))
    trials = (Trial(push, (1,)), Trial(pull, (1,)))
    return reshaping(s.image, (s.n, s.c, prod(s.space)), *trials, view=view)


@row
def reshape_back_to_symbolic_space(s: Sizes) -> Row:
    names = tuple(f"d{axis}" for axis in range(len(s.space)))
    view = Reshape(("batch", s.c, None), ("batch", s.c, *names))
    return reshaping((s.n, s.c, prod(s.space)), s.image, Trial(push, (1,)), Trial(pull, (1,)), view=view)


@row
def reshape_symbolic_space_with_channels_last(s: Sizes) -> Row:
    """``[N, H, W, C] -> [N, H*W, C]``: what lies before the channels need not be known at all."""
    before = (s.n, *s.space, s.c)
    view = Reshape((None, *[None] * len(s.space), s.c), (None, None, s.c))
    last = s.rank - 1
    return reshaping(before, (s.n, prod(s.space), s.c), Trial(push, (last,)), Trial(pull, (2,)), view=view)


@row
def reshape_with_unknown_space_behind_the_channels(s: Sizes) -> Row:
    view = Reshape((s.n, s.c, *[None] * (len(s.space) + 1)), (s.n, s.c, None))
    before, after = (*s.image, 2), (s.n, s.c, 2 * prod(s.space))
    return reshaping(before, after, Trial(push, (1,), UNKNOWN), Trial(pull, (1,), UNKNOWN), view=view)


@row
def reshape_tokens_into_rows(s: Sizes) -> Row:
    """LeViT: ``[B, N, C] -> [B*N, C]``, BatchNorm, and back."""
    before, after = (s.n, s.k, s.c), (s.n * s.k, s.c)
    trials = (Trial(pull, (1,)), Trial(pull, (0,), UNIFORM_ONLY), *pushes(ALL, ALL, ALL))
    return reshaping(before, after, *trials)


@row
def reshape_features_into_rows(s: Sizes) -> Row:
    """``[N, F*C] -> [N*F, C]``: features alike with a period of C become channels."""
    before, after = (s.n, s.f * s.c), (s.n * s.f, s.c)
    return reshaping(before, after, Trial(push, (1,), UNIFORM_ONLY), Trial(pull, (1,)))


@row
def reshape_rows_into_tokens(s: Sizes) -> Row:
    return reshaping((s.n * s.k, s.c), (s.n, s.k, s.c), *pulls(ALL, ALL, ALL), *pushes(UNIFORM_ONLY, ALL))


@row
def reshape_tokens_into_rows_of_symbolic_batch(s: Sizes) -> Row:
    view = Reshape(("batch", s.k, s.c), (None, s.c))
    after = (s.n * s.k, s.c)
    return reshaping((s.n, s.k, s.c), after, Trial(pull, (1,)), Trial(push, (2,)), view=view)


@row
def reshape_rows_into_tokens_of_symbolic_batch(s: Sizes) -> Row:
    view = Reshape((None, s.c), ("batch", s.k, s.c))
    before = (s.n * s.k, s.c)
    trials = (Trial(pull, (2,)), Trial(pull, (1,), UNKNOWN), Trial(push, (1,)))
    return reshaping(before, (s.n, s.k, s.c), *trials, view=view)


@row
def reshape_repeats_channels_into_features(s: Sizes) -> Row:
    """``[N, C, F] -> [N, C*F]``: each channel F times in a row."""
    return reshaping((s.n, s.c, s.f), (s.n, s.c * s.f), *pulls(ALL, UNIFORM_ONLY), *pushes(ALL, ALL, ALL))


@row
def reshape_tiles_channels_into_features(s: Sizes) -> Row:
    """``[N, F, C] -> [N, F*C]``: all channels F times over."""
    return reshaping((s.n, s.f, s.c), (s.n, s.f * s.c), *pulls(ALL, UNIFORM_ONLY), *pushes(ALL, ALL, ALL))


@row
def reshape_splits_groups(s: Sizes) -> Row:
    """``[N, G*C, *S] -> [N, G, C, *S]``, as a channel shuffle or a grouped head does."""
    before, after = (s.n, s.f * s.c, *s.space), (s.n, s.f, *s.image[1:])
    pulled = pulls(*[ALL] * (s.rank + 1))
    return reshaping(before, after, *pulled, *pushes(ALL, UNIFORM_ONLY, *[ALL] * (s.rank - 2)))


@row
def reshape_merges_groups(s: Sizes) -> Row:
    before, after = (s.n, s.f, *s.image[1:]), (s.n, s.f * s.c, *s.space)
    pulled = pulls(ALL, UNIFORM_ONLY, *[ALL] * (s.rank - 2))
    return reshaping(before, after, *pulled, *pushes(*[ALL] * (s.rank + 1)))


@row
def reshape_folds_batch_into_channels(s: Sizes) -> Row:
    """``[N, C, *S] -> [1, N*C, *S]``, as dynamic convolutions do."""
    before, after = s.image, (1, s.n * s.c, *s.space)
    pulled = (Trial(pull, (1,), UNIFORM_ONLY), Trial(pull, (2,)))
    return reshaping(before, after, *pulled, *pushes(*[ALL] * s.rank))


@row
def reshape_adds_and_removes_ones(s: Sizes) -> Row:
    before, after = (1, *s.image, 1), (s.n, 1, s.c, 1, *s.space)
    trials = (
        *(Trial(push, (axis,)) for axis in range(1, s.rank + 1)),
        *(Trial(pull, (axis,)) for axis in (0, 2, *range(4, s.rank + 2))),
    )
    return reshaping(before, after, *trials)


@row
def reshape_across_channels(s: Sizes) -> Row:
    """``[C, C+1] -> [C+1, C]``: neither axis is made of the other's."""
    return reshaping((s.c, s.c + 1), (s.c + 1, s.c), Trial(push, (0,), MIXED))


@row
def reshape_without_shapes(s: Sizes) -> Row:
    view = Reshape((None, None, None), (None, None))
    trials = (*pulls(UNKNOWN, UNKNOWN), *pushes(UNKNOWN, UNKNOWN, UNKNOWN))
    return reshaping((s.n, s.c, s.k), (s.n, s.c * s.k), *trials, view=view)


# Combining positions of one channel


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


# Working on each position for itself


def adding(signs: tuple[int, ...]) -> Evaluate:
    """The signed sum of all inputs."""
    return lambda *xs: sum(sign * x for sign, x in zip(signs, xs, strict=True))


def summing(
    signs: tuple[int, ...],
    shapes: Shapes,
    *trials: Trial,
    view: tuple[ops.Shape | None, ...] | None = None,
) -> Row:
    """A sum, whose pulled shift goes to the first operand."""
    shares = (1.0,) + (0.0,) * (len(signs) - 1)
    return Row(Sum(signs, view or shapes, shares), adding(signs), shapes, trials)


@row
def sum_of_two(s: Sizes) -> Row:
    return summing(
        (1, 1),
        (s.image, s.image),
        *pulls(*[ALL] * s.rank),
        Trial(push, (1, 1), ALL, Shared.SCALE),
        Trial(push, (1, 1), ALL, Shared.ALL),
        Trial(push, (1, 1), refuses(Reason.CONFLICT, Kind.SHIFT, Kind.UNIFORM, Kind.UNIFORM_SHIFT)),
        Trial(push, (1, None), SHIFT_ONLY),
        Trial(push, (None, 1), SHIFT_ONLY),
        Trial(push, (1, 0), CONFLICTS),
    )


@row
def sum_as_difference(s: Sizes) -> Row:
    return summing(
        (1, -1),
        (s.image, s.image),
        *pulls(*[ALL] * s.rank),
        Trial(push, (1, 1), ALL, Shared.SCALE),
        Trial(push, (2, 2), ALL, Shared.ALL),
        Trial(push, (1, None), SHIFT_ONLY),
        Trial(push, (None, 1), SHIFT_ONLY),
    )


@row
def sum_of_three_with_signs(s: Sizes) -> Row:
    return summing(
        (-1, 1, -1),
        (s.image,) * 3,
        *pulls(*[ALL] * s.rank),
        Trial(push, (1, 1, 1), ALL, Shared.SCALE),
        Trial(push, (1, None, 1), SHIFT_ONLY, Shared.SCALE),
        Trial(push, (None, None, 1), SHIFT_ONLY),
    )


@row
def sum_of_one(s: Sizes) -> Row:
    return summing((-1,), (s.image,), *pulls(*[ALL] * s.rank), *pushes(*[ALL] * s.rank))


@row
def sum_with_an_operand_broadcast_in_space(s: Sizes) -> Row:
    gate = (s.n, s.c, *[1] * len(s.space))
    unshifted = dict.fromkeys([Kind.SHIFT, Kind.UNIFORM_SHIFT], Reason.MIXED_CHANNELS)
    return summing(
        (1, -1),
        (s.image, gate),
        *pulls(ALL, ALL, *[MIXED] * len(s.space)),
        Trial(push, (1, 1), ALL, Shared.SCALE),
        Trial(push, (None, 1), SHIFT_ONLY),
        Trial(push, (1, None), SHIFT_ONLY),
        Trial(push, (2, None), SHIFT_ONLY),
        Trial(push, (None, 2), {**SHIFT_ONLY, **unshifted}),
    )


@row
def sum_with_an_operand_broadcast_along_the_channels(s: Sizes) -> Row:
    """``[N, C, *S] + [N, 1, *S]``: a scale would reach the second operand once for all channels."""
    return summing(
        (1, 1),
        (s.image, (s.n, 1, *s.space)),
        *pulls(ALL, MIXED, *[ALL] * len(s.space)),
        Trial(push, (1, None), SHIFT_ONLY),
        Trial(push, (1, 1), CONFLICTS),
    )


@row
def sum_with_an_operand_of_lower_rank(s: Sizes) -> Row:
    """``[N, C, *S] + [C, *S]``: axes count from the back."""
    return summing(
        (1, 1),
        (s.image, s.image[1:]),
        *pulls(MIXED, *[ALL] * (s.rank - 1)),
        Trial(push, (1, 0), ALL, Shared.SCALE),
        Trial(push, (2, 1), ALL, Shared.ALL),
        Trial(push, (None, 0), SHIFT_ONLY),
        Trial(push, (1, None), SHIFT_ONLY),
        Trial(push, (0, None), SHIFT_ONLY),
        Trial(push, (1, 1), CONFLICTS),
    )


@row
def sum_with_a_first_operand_of_lower_rank(s: Sizes) -> Row:
    return summing(
        (-1, 1),
        (s.image[2:], s.image),
        *pulls(MIXED, MIXED, *[ALL] * (s.rank - 2)),
        Trial(push, (0, 2), ALL, Shared.SCALE),
        Trial(push, (0, None), SHIFT_ONLY),
        Trial(push, (None, 1), SHIFT_ONLY),
    )


@row
def sum_of_operands_that_broadcast_each_other(s: Sizes) -> Row:
    """``[N, C, 1] + [1, C, K]``."""
    return summing(
        (1, 1),
        ((s.n, s.c, 1), (1, s.c, s.k)),
        *pulls(MIXED, ALL, MIXED),
        Trial(push, (1, 1), ALL, Shared.SCALE),
        Trial(push, (1, None), SHIFT_ONLY),
        Trial(push, (0, None), SHIFT_ONLY),
    )


@row
def sum_of_symbolic_shapes(s: Sizes) -> Row:
    view: ops.Shape = ("batch", s.c, *[None] * len(s.space))
    return summing(
        (1, 1),
        (s.image, s.image),
        Trial(pull, (1,)),
        Trial(pull, (0,), UNKNOWN),
        Trial(push, (1, 1), ALL, Shared.SCALE),
        Trial(push, (0, 0), UNKNOWN, Shared.SCALE),
        view=(view, view),
    )


@row
def sum_of_unknown_channels(s: Sizes) -> Row:
    """An operand that may be broadcast along the channels, or not."""
    view: ops.Shape = (s.n, None, *s.space)
    return summing(
        (1, 1), (s.image, s.image), Trial(pull, (1,), UNKNOWN),
        Trial(push, (1, 1), UNKNOWN, Shared.SCALE), view=(s.image, view),
    )  # fmt: skip


@row
def sum_without_shapes(s: Sizes) -> Row:
    return summing(
        (1, 1), (s.image, s.image), Trial(pull, (1,), UNKNOWN),
        Trial(push, (1, 1), UNKNOWN, Shared.SCALE), view=(s.image, None),
    )  # fmt: skip


def everywhere(s: Sizes, op: object, evaluate: Evaluate, verdict: Verdict) -> Row:
    """An operator to which all axes are alike."""
    return Row(op, evaluate, (s.image,), (*pulls(*[verdict] * s.rank), *pushes(*[verdict] * s.rank)))


@row
def rectifier_relu(s: Sizes) -> Row:
    return everywhere(s, Rectifier(), lambda x: np.maximum(x, 0), POSITIVE_ONLY)


@row
def rectifier_leaky_relu(s: Sizes) -> Row:
    return everywhere(s, Rectifier(), lambda x: np.where(x < 0, 0.1 * x, x), POSITIVE_ONLY)


@row
def rectifier_prelu_of_negative_slopes(s: Sizes) -> Row:
    slopes = np.linspace(-2, 2, s.c).reshape(-1, *[1] * len(s.space))
    return everywhere(s, Rectifier(), lambda x: np.where(x < 0, slopes * x, x), POSITIVE_ONLY)


@row
def identity(s: Sizes) -> Row:
    return everywhere(s, Identity(), lambda x: x, ALL)


@row
def opaque(s: Sizes) -> Row:
    op = Opaque(Stop(Reason.NOT_CONSTANT, "it is what it is"))
    return everywhere(s, op, np.tanh, refuses(Reason.NOT_CONSTANT))


@row
def an_operator_without_a_rule(s: Sizes) -> Row:
    return everywhere(s, object(), np.tanh, refuses(Reason.NOT_LINEAR))


# The table is proved


@pytest.mark.parametrize("spatial", [1, 2, 3], ids=["1-d", "2-d", "3-d"])
@pytest.mark.parametrize("build", ROWS.values(), ids=ROWS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), seed=SEEDS)
def test_rules_commute_and_refuse_only_what_they_must(
    build: Callable[[Sizes], Row], spatial: int, data: st.DataObject, seed: int
) -> None:
    sizes = draw_sizes(data, spatial)
    entry = build(sizes)
    random = np.random.default_rng(seed)
    outputs = run(entry.evaluate, tuple(np.zeros(shape) for shape in entry.shapes))
    for trial, kind in itertools.product(entry.trials, Kind):
        values = tuple(output.shape for output in outputs) if trial.rule is pull else entry.shapes
        if any(axis is not None and axis >= len(shape) for axis, shape in zip(trial.axes, values, strict=True)):
            raise AssertionError(f"{trial} speaks of an axis that is not there")
        affines = trial.draw(kind, values, random)
        for variant in variants(entry.op):
            found = prove(trial.rule, variant, entry.evaluate, entry.shapes, affines, seed)
            if isinstance(variant, Reshape) and variant.choice:
                continue  # a further axis, where there is one; what it carries is right all the same
            assert found == trial.verdict.get(kind), f"{trial.rule} {variant} {kind} {trial.axes} {sizes}"


def test_every_operator_is_carried_both_ways_in_the_table() -> None:
    sizes = Sizes(2, 3, 4, 2, (3, 2))
    carried = {
        (type(entry.op), trial.rule)
        for entry in (build(sizes) for build in ROWS.values())
        for trial in entry.trials
        if any(kind not in trial.verdict for kind in Kind)
    }
    not_carriers = {Linear, ops.ChannelAffine, Opaque}
    for kind, rule in itertools.product(set(get_args(ops.Op)) - not_carriers, (pull, push)):
        assert (kind, rule) in carried, f"no row shows that {kind.__name__} is carried by {rule}"


# What does not fit in a row


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (-1, 1, -1, 1)])
def test_variants_of_a_sum_offer_the_shift_to_each_operand_and_to_all_alike(count: int, signs: tuple[int, ...]) -> None:
    shape = (2, 3, 4)
    affine = Kind.ANY.draw(np.random.default_rng(0), 3, 1)
    op = Sum(signs[:count], (shape,) * count, (1.0,) + (0.0,) * (count - 1))
    takers: list[tuple[bool, ...]] = []
    for variant in variants(op):
        assert prove(pull, variant, adding(signs[:count]), (shape,) * count, (affine,)) is None
        pulled = pull(variant, affine)
        assert isinstance(pulled, tuple)
        takers.append(tuple(part is not None and part.has_shift for part in pulled))
    alone = [tuple(index == taker for index in range(count)) for taker in range(count)]
    assert takers == [*alone, (True,) * count]


def test_the_last_variant_of_a_sum_gives_one_value_read_twice_one_affine() -> None:
    """``y + y``: only equal parts can be pulled through both of its uses."""
    affine = Kind.ANY.draw(np.random.default_rng(0), 3, 1)
    pulled = pull(variants(Sum((1, 1), ((2, 3), (2, 3)), (1.0, 0.0)))[-1], affine)
    assert isinstance(pulled, tuple)
    first, second = pulled
    assert first is not None
    assert second is not None
    assert first.equals(second)


@pytest.mark.parametrize("op", [Identity(), Rectifier(), Concat(1, (3,)), Transpose((0, 1))])
def test_other_operators_have_one_variant(op: object) -> None:
    assert variants(op) == (op,)


def test_a_zero_scale_keeps_the_order_of_values() -> None:
    """A pruned channel is constant, and so is its maximum."""
    affine = Affine.of([0.0, 2.0], [3.0, 4.0])
    for rule in (pull, push):
        assert prove(rule, Maximum(frozenset({2})), lambda x: max_pool(x, [2]), ((2, 2, 4),), (affine,)) is None
        relu: Evaluate = lambda x: np.maximum(x, 0)  # noqa: E731
        assert prove(rule, Rectifier(), relu, ((2, 2, 4),), (Affine.of([0.0, 2.0], 0.0),)) is None


def test_one_negative_scale_among_many_stops_a_maximum() -> None:
    affine = Affine.of([1.0, 2.0, -1e-9], 0.0)
    for rule in (pull, push):
        carried = rule(Maximum(frozenset({2})), affine)
        assert isinstance(carried, Stop)
        assert carried.reason is Reason.NEGATIVE_SCALE


@pytest.mark.parametrize("value", [-2.0, 0.5, 3.0, -np.inf])
@pytest.mark.parametrize("off", [None, 0, 2])
def test_padding_with_a_fixed_point_of_every_channel_is_carried(value: float, off: int | None) -> None:
    scale = np.array([0.5, 2.0, 4.0])
    shift = (1 - scale) * value if np.isfinite(value) else np.array([1.0, -2.0, 3.0])
    if off is not None and np.isfinite(value):
        shift[off] += 0.25
    if off is not None and not np.isfinite(value):
        scale[off] = -1
    op, padded = Pad(frozenset({2}), value), (lambda x: surround(x, [2], value=value))
    for rule in (pull, push):
        found = prove(rule, op, padded, ((2, 3, 4),), (Affine(scale, shift, 1),))
        assert found is (None if off is None else Reason.BORDER)


def test_concat_sizes_that_contradict_the_affine_are_refused() -> None:
    affine = Affine.identity(5, 1)
    for sizes in ((2, 2), (2, 4), (6, None), (2, None, None)):
        carried = pull(Concat(1, sizes), affine)
        assert isinstance(carried, Stop)
        assert carried.reason is Reason.UNKNOWN_SHAPE


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 5), (5, None)])
def test_empty_inputs_of_a_concat_get_empty_affines(sizes: tuple[int | None, ...]) -> None:
    affine = Kind.ANY.draw(np.random.default_rng(0), 5, 1)
    shapes = tuple((2, 0 if size is None else size, 3) for size in sizes)
    assert prove(pull, Concat(1, sizes), concatenate(1), shapes, (affine,)) is None


# A single channel


def test_a_sum_of_one_channel_and_an_operand_of_lower_rank() -> None:
    """``[N, 1, K] + [K]``: the second operand has no axis for the affine to lie on."""
    shapes = ((2, 1, 3), (3,))
    op = Sum((1, 1), shapes, (1.0, 0.0))
    affine = Affine.of([2.0], [3.0])
    found = prove(pull, op, adding((1, 1)), shapes, (affine,))  # refusing is right, carrying too; failing is not
    assert found in (None, Reason.MIXED_CHANNELS)
    assert prove(push, op, adding((1, 1)), shapes, (Affine.of([1.0], [3.0]), None)) is None
    assert prove(push, op, adding((1, 1)), shapes, (affine, None)) is Reason.CONFLICT


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shapes", [((1, 1, 1), (1,)), ((1,), (1, 1, 1)), ((1, 1, 1), ()), ((1, 4), (1, 1, 4))])
def test_sums_of_ones_are_carried_or_refused(shapes: Shapes, axis: int) -> None:
    op = Sum((1, -1), shapes, (0.5, 0.5))
    size = np.broadcast_shapes(*shapes)[axis]
    prove(pull, op, adding((1, -1)), shapes, (Kind.ANY.draw(np.random.default_rng(0), size, axis),))


# Random operators against their laws


@st.composite
def shape_pairs(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes with the same number of elements: factors, permuted and merged at random."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3, 3, 4, 5]), min_size=1, max_size=6))
    shapes: list[tuple[int, ...]] = []
    for _ in range(2):
        shape: list[int] = []
        permuted = draw(st.booleans())
        order = draw(st.permutations(factors)) if permuted else factors
        for factor in order:
            if draw(st.booleans()) and shape:
                shape[-1] *= factor
            else:
                shape.append(factor)
        shapes.append(tuple(shape))
    return shapes[0], shapes[1]


def carried_axis(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """The first axis of `after` that tells all positions of `axis`, found by reshaping numbers."""
    numbers = np.arange(before[axis]).reshape([-1] + [1] * (len(before) - axis - 1))
    seen = np.broadcast_to(numbers, before).reshape(after)
    for target in range(len(after)):
        front = np.moveaxis(seen, target, 0).reshape(after[target], -1)
        if (front == front[:, :1]).all():
            return target
    return None


def reshaped(after: tuple[int, ...]) -> Evaluate:
    """The reshape to `after`."""
    return lambda x: x.reshape(after)


@settings(max_examples=400, deadline=None)
@given(shapes=shape_pairs(), seed=SEEDS)
@example(shapes=((2, 6), (4, 3)), seed=0)
@example(shapes=((2, 3), (3, 2)), seed=0)
@example(shapes=((4, 6, 1), (1, 8, 3)), seed=0)
def test_a_reshape_carries_differing_channels_exactly_where_an_axis_tells_them_apart(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    before, after = shapes
    random = np.random.default_rng(seed)
    for axis, size in enumerate(before):
        if size == 1:
            continue
        affine = Kind.ANY.draw(random, size, axis)
        found = prove(push, Reshape(before, after), reshaped(after), (before,), (affine,), seed)
        if carried_axis(before, after, axis) is None:
            assert found is Reason.MIXED_CHANNELS
        else:
            assert found is None
        # Pulling through the reshape back asks the same question.
        assert prove(pull, Reshape(after, before), reshaped(before), (after,), (affine,), seed) is found


@settings(max_examples=400, deadline=None)
@given(
    shapes=shape_pairs(),
    period=st.integers(1, 4),
    run_length=st.integers(1, 4),
    data=st.data(),
    seed=SEEDS,
)
def test_a_reshape_of_patterned_channels_is_right_or_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    period: int,
    run_length: int,
    data: st.DataObject,
    seed: int,
) -> None:
    """Channels alike in runs and periods: uniform ones, and those that merge by chance."""
    before, after = shapes
    random = np.random.default_rng(seed)
    axis = data.draw(st.integers(0, len(before) - 1))
    few = Kind.ANY.draw(random, period, axis)
    affine = few.take(np.arange(before[axis]) // run_length % period)
    found = prove(push, Reshape(before, after), reshaped(after), (before,), (affine,), seed)
    assert found in (None, Reason.MIXED_CHANNELS)
    back = prove(pull, Reshape(after, before), reshaped(before), (after,), (affine,), seed)
    assert back is found


@settings(max_examples=200, deadline=None)
@given(shapes=shape_pairs(), seed=SEEDS)
def test_a_reshape_never_refuses_channels_whose_axis_survives(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    """An axis of the same size with as many elements behind it, a single channel included."""
    before, after = shapes
    random = np.random.default_rng(seed)
    survivors = [
        axis
        for axis, size in enumerate(before)
        if any(size == other and prod(before[axis + 1 :]) == prod(after[k + 1 :]) for k, other in enumerate(after))
    ]
    for axis, kind in itertools.product(survivors, Kind):
        affine = kind.draw(random, before[axis], axis)
        assert prove(push, Reshape(before, after), reshaped(after), (before,), (affine,), seed) is None
        assert prove(pull, Reshape(after, before), reshaped(before), (after,), (affine,), seed) is None


@settings(max_examples=200, deadline=None)
@given(
    kept=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    tails=shape_pairs(),
    kind=st.sampled_from(Kind),
    seed=SEEDS,
)
@example(kept=[2, 1], tails=((3, 4), (12,)), kind=Kind.ANY, seed=0)  # one channel
@example(kept=[1, 1], tails=((2,), (2, 1)), kind=Kind.ANY, seed=0)  # and a batch of one
@example(kept=[2, 2], tails=((3, 4), (12,)), kind=Kind.UNIFORM, seed=0)
def test_a_reshape_beside_the_channels_leaves_them_on_their_axis(
    kept: list[int], tails: tuple[tuple[int, ...], tuple[int, ...]], kind: Kind, seed: int
) -> None:
    """Several axes may satisfy the law; a linear can absorb on the one that stays."""
    axis = len(kept) - 1
    affine = kind.draw(np.random.default_rng(seed), kept[-1], axis)
    behind = push(Reshape((*kept, *tails[0]), (*kept, *tails[1])), affine)
    assert isinstance(behind, tuple)
    assert behind[0] is not None
    assert behind[0].equals(affine)
    if tails[1][: len(tails[0])] == tails[0]:
        return  # every axis stays where it is, counted from the front
    # The same with the channels last.
    last = affine.along(len(tails[0]))
    before = push(Reshape((*tails[0], kept[-1]), (*tails[1], kept[-1])), last)
    assert isinstance(before, tuple)
    assert before[0] is not None
    assert before[0].equals(affine.along(len(tails[1])))


def hidden(
    draw: Callable[[st.SearchStrategy[object]], object],
    shape: tuple[int, ...],
    names: dict[int, str],
) -> ops.Shape:
    """`shape` with sizes replaced by nothing or by a symbol, one for each size: none ever lies."""
    dims: list[ops.Dim] = []
    for size in shape:
        shown = draw(st.sampled_from(["size", "symbol", "nothing"]))
        dims.append(size if shown == "size" else names.setdefault(size, f"s{size}") if shown == "symbol" else None)
    return tuple(dims)


@settings(max_examples=600, deadline=None)
@given(shapes=shape_pairs(), data=st.data(), kind=st.sampled_from(Kind), seed=SEEDS)
def test_a_reshape_that_knows_less_is_right_or_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject, kind: Kind, seed: int
) -> None:
    before, after = shapes
    axis = data.draw(st.integers(0, len(before) - 1))
    names: dict[int, str] = {}
    view, back = hidden(data.draw, before, names), hidden(data.draw, after, names)
    affine = kind.draw(np.random.default_rng(seed), before[axis], axis)
    found = prove(push, Reshape(view, back), reshaped(after), (before,), (affine,), seed)
    assert found in (None, Reason.MIXED_CHANNELS, Reason.UNKNOWN_SHAPE)
    found = prove(pull, Reshape(back, view), reshaped(before), (after,), (affine,), seed)
    assert found in (None, Reason.MIXED_CHANNELS, Reason.UNKNOWN_SHAPE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 3, 0), (0, 6)),
        ((2, 3, 0), (2, 3, 0, 1)),
        ((0, 6), (0, 2, 3)),
        ((2, 0, 3), (2, 0)),
        ((2, 3, 0, 4), (2, 0)),
        ((0,), (0, 5)),
        ((4, 0), (0, 4)),
        ((2, 3, 0), (6, 0)),
    ],
)
@pytest.mark.parametrize("kind", [Kind.ANY, Kind.UNIFORM])
def test_reshapes_of_nothing_are_carried_or_refused(
    before: tuple[int, ...], after: tuple[int, ...], kind: Kind
) -> None:
    """An empty tensor has no wrong answer, but it must have one."""
    random = np.random.default_rng(0)
    for axis, size in enumerate(before):
        affine = kind.draw(random, size, axis)
        prove(push, Reshape(before, after), reshaped(after), (before,), (affine,))
        prove(pull, Reshape(after, before), reshaped(before), (after,), (affine,))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), seed=SEEDS, count=st.integers(1, 3))
def test_random_sums_are_right_or_refused(data: st.DataObject, seed: int, count: int) -> None:
    """Operands of any rank, broadcasting in any way, with affines on any of their axes."""
    random = np.random.default_rng(seed)
    full = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    shapes = tuple(
        tuple(size if data.draw(st.booleans()) else 1 for size in full[len(full) - rank :])
        for rank in [data.draw(st.integers(0, len(full))) for _ in range(count)]
    )
    signs = tuple(data.draw(st.sampled_from([1, -1])) for _ in range(count))
    op = Sum(signs, shapes, (1.0,) + (0.0,) * (count - 1))
    out = np.broadcast_shapes(*shapes)
    kind = data.draw(st.sampled_from(Kind))
    for axis, size in enumerate(out):
        for variant in variants(op):
            prove(pull, variant, adding(signs), shapes, (kind.draw(random, size, axis),), seed)
    axes = [data.draw(st.sampled_from([None, *range(len(shape))])) for shape in shapes]
    shared = data.draw(st.sampled_from([1, None]))
    scales = [1.5, 1.5] if shared else [1.0, 1.5]
    affines = tuple(
        None if axis is None else Affine.of(np.full(shape[axis], scales[k % 2]), random.normal(size=shape[axis]), axis)
        for k, (axis, shape) in enumerate(zip(axes, shapes, strict=True))
    )
    if any(affine is not None for affine in affines):
        prove(push, op, adding(signs), shapes, affines, seed)
        # Plain shifts on some operands.
        shifts = tuple(affine and Affine.of(np.ones(affine.size), affine.shift, affine.axis) for affine in affines)
        prove(push, op, adding(signs), shapes, shifts, seed)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), seed=SEEDS, kind=st.sampled_from(Kind))
def test_random_takes_are_right_and_refuse_only_conflicts(data: st.DataObject, seed: int, kind: Kind) -> None:
    size = data.draw(st.integers(1, 5))
    index = np.array(data.draw(st.lists(st.integers(-size, size - 1), max_size=6)), np.intp)
    random = np.random.default_rng(seed)
    op, shapes = Take(1, index, size), ((2, size, 2),)
    taken: Evaluate = lambda x: x.take(index, axis=1)  # noqa: E731
    assert prove(push, op, taken, shapes, (kind.draw(random, size, 1),), seed) is None
    wide = kind.draw(random, len(index), 1)
    maps = {(int(k) % size, wide.scale[j], wide.shift[j]) for j, k in enumerate(index)}
    clash = len(maps) > len({place for place, _, _ in maps})
    found = prove(pull, op, taken, shapes, (wide,), seed)
    assert found is (Reason.MIXED_CHANNELS if clash else None)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=SEEDS, drops=st.booleans(), largest=st.booleans())
def test_random_reductions_are_carried_on_every_axis_that_they_keep(
    data: st.DataObject, seed: int, drops: bool, largest: bool
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
    axes = data.draw(st.frozensets(st.integers(0, len(shape) - 1)))
    dropped = axes if drops else frozenset()
    op = Maximum(axes, dropped) if largest else Average(axes, dropped=dropped)
    reduce = np.max if largest else np.mean
    evaluate: Evaluate = lambda x: reduce(x, axis=tuple(axes), keepdims=not drops)  # noqa: E731
    random = np.random.default_rng(seed)
    for axis, size in enumerate(shape):
        found = prove(push, op, evaluate, (shape,), (Kind.INCREASING.draw(random, size, axis),), seed)
        assert found is (Reason.AXIS_MISMATCH if axis in axes else None)
    kept = [axis for axis in range(len(shape)) if axis not in dropped]
    for place, axis in enumerate(kept):
        size = 1 if axis in axes else shape[axis]
        found = prove(pull, op, evaluate, (shape,), (Kind.INCREASING.draw(random, size, place),), seed)
        assert found is (Reason.AXIS_MISMATCH if axis in axes else None)


def orders(rank: int) -> Iterator[tuple[int, ...]]:
    """All permutations of the axes."""
    return itertools.permutations(range(rank))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_every_transposition_carries_every_axis(rank: int) -> None:
    shape = (2, 3, 4, 5)[:rank]
    random = np.random.default_rng(0)
    for order, axis in itertools.product(orders(rank), range(rank)):
        transposed: Evaluate = lambda x, order=order: x.transpose(order)  # noqa: E731
        pushed = Kind.ANY.draw(random, shape[axis], axis)
        assert prove(push, Transpose(order), transposed, (shape,), (pushed,)) is None
        pulled = Kind.ANY.draw(random, shape[order[axis]], axis)
        assert prove(pull, Transpose(order), transposed, (shape,), (pulled,)) is None
