"""Operators that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from bnfold.algebra.affine import Array
from bnfold.graph.ops import Concat, PixelShuffle, PixelUnshuffle, Reshape, Split, Take, Transpose
from bnfold.graph.outcome import Reason
from bnfold.planning.rules import pull, push
from tests.planning.rows.law import (
    ALL,
    CONFLICTS,
    MIXES,
    UNIFORM_ONLY,
    UNKNOWN,
    Evaluate,
    Kind,
    Row,
    Shapes,
    Shared,
    Sizes,
    Trial,
    Verdict,
    pulls,
    pushes,
    refuses,
    row,
)


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
    pulled = pulls(ALL, ALL)
    return reshaping(s.image, (s.n, prod(s.image[1:])), *pulled, *pushes(*[ALL] * s.rank))


@row
def reshape_unflatten(s: Sizes) -> Row:
    pulled = pulls(*[ALL] * s.rank)
    return reshaping((s.n, prod(s.image[1:])), s.image, *pulled, *pushes(ALL, ALL))


@row
def reshape_flatten_of_symbolic_batch(s: Sizes) -> Row:
    view = Reshape(("batch", *s.image[1:]), ("batch", prod(s.image[1:])))
    trials = (Trial(pull, (1,)), *pushes(*[ALL] * s.rank)[1:])
    return reshaping(s.image, (s.n, prod(s.image[1:])), *trials, view=view)


@row
def reshape_flatten_to_an_unknown_batch(s: Sizes) -> Row:
    view = Reshape(("batch", *s.image[1:]), (None, prod(s.image[1:])))
    trials = (Trial(pull, (1,)), *pushes(*[ALL] * s.rank)[1:])
    return reshaping(s.image, (s.n, prod(s.image[1:])), *trials, view=view)


@row
def reshape_flatten_to_an_unknown_width(s: Sizes) -> Row:
    """The one unknown size follows from the number of elements."""
    view = Reshape(("batch", *s.image[1:]), ("batch", None))
    trials = (Trial(pull, (1,)), *pushes(*[ALL] * s.rank)[1:])
    return reshaping(s.image, (s.n, prod(s.image[1:])), *trials, view=view)


@row
def reshape_flatten_from_an_unknown_space(s: Sizes) -> Row:
    image = (s.n, s.c, *s.space[:-1], s.space[-1])
    view = Reshape((s.n, s.c, *s.space[:-1], None), (s.n, prod(s.image[1:])))
    return reshaping(
        image,
        (s.n, prod(image[1:])),
        *pulls(ALL, ALL),
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
    """As many elements lie in front of the channels on both sides, so as many lie behind them."""
    view = Reshape((s.n, s.c, *[None] * (len(s.space) + 1)), (s.n, s.c, None))
    before, after = (*s.image, 2), (s.n, s.c, 2 * prod(s.space))
    return reshaping(before, after, Trial(push, (1,)), Trial(pull, (1,)), view=view)


@row
def reshape_tokens_into_rows(s: Sizes) -> Row:
    """LeViT: ``[B, N, C] -> [B*N, C]``, BatchNorm, and back."""
    before, after = (s.n, s.k, s.c), (s.n * s.k, s.c)
    trials = (Trial(pull, (1,)), Trial(pull, (0,)), *pushes(ALL, ALL, ALL))
    return reshaping(before, after, *trials)


@row
def reshape_features_into_rows(s: Sizes) -> Row:
    """``[N, F*C] -> [N*F, C]``: features alike with a period of C become channels."""
    before, after = (s.n, s.f * s.c), (s.n * s.f, s.c)
    return reshaping(before, after, Trial(push, (1,)), Trial(pull, (1,)))


@row
def reshape_rows_into_tokens(s: Sizes) -> Row:
    return reshaping((s.n * s.k, s.c), (s.n, s.k, s.c), *pulls(ALL, ALL, ALL), *pushes(ALL, ALL))


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
    return reshaping((s.n, s.c, s.f), (s.n, s.c * s.f), *pulls(ALL, ALL), *pushes(ALL, ALL, ALL))


@row
def reshape_tiles_channels_into_features(s: Sizes) -> Row:
    """``[N, F, C] -> [N, F*C]``: all channels F times over."""
    return reshaping((s.n, s.f, s.c), (s.n, s.f * s.c), *pulls(ALL, ALL), *pushes(ALL, ALL, ALL))


@row
def reshape_splits_groups(s: Sizes) -> Row:
    """``[N, G*C, *S] -> [N, G, C, *S]``, as a channel shuffle or a grouped head does."""
    before, after = (s.n, s.f * s.c, *s.space), (s.n, s.f, *s.image[1:])
    pulled = pulls(*[ALL] * (s.rank + 1))
    return reshaping(before, after, *pulled, *pushes(ALL, ALL, *[ALL] * (s.rank - 2)))


@row
def reshape_merges_groups(s: Sizes) -> Row:
    before, after = (s.n, s.f, *s.image[1:]), (s.n, s.f * s.c, *s.space)
    pulled = pulls(ALL, ALL, *[ALL] * (s.rank - 2))
    return reshaping(before, after, *pulled, *pushes(*[ALL] * (s.rank + 1)))


@row
def reshape_folds_batch_into_channels(s: Sizes) -> Row:
    """``[N, C, *S] -> [1, N*C, *S]``, as dynamic convolutions do."""
    before, after = s.image, (1, s.n * s.c, *s.space)
    pulled = (Trial(pull, (1,)), Trial(pull, (2,)))
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
    """``[C, C+1] -> [C+1, C]``: neither axis is made of the other's, and both together are."""
    return reshaping((s.c, s.c + 1), (s.c + 1, s.c), Trial(push, (0,)))


@row
def reshape_without_shapes(s: Sizes) -> Row:
    view = Reshape((None, None, None), (None, None))
    trials = (*pulls(UNKNOWN, UNKNOWN), *pushes(UNKNOWN, UNKNOWN, UNKNOWN))
    return reshaping((s.n, s.c, s.k), (s.n, s.c * s.k), *trials, view=view)
