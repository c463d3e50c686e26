"""Operators that work on each position for itself."""

from __future__ import annotations

import numpy as np

from bnfold.graph import ops
from bnfold.graph.ops import Identity, Lookup, Opaque, Rectifier, Select, Sum
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.rules import pull, push
from tests.planning.rows.law import (
    ALL,
    CONFLICTS,
    MIXED,
    MIXES,
    POSITIVE_ONLY,
    SHIFT_ONLY,
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


def choosing(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Every other element of the one, with numpy broadcasting, and of the other."""
    shape = np.broadcast_shapes(first.shape, second.shape)
    return np.where(np.indices(shape).sum(axis=0) % 2, first, second)


@row
def selection(s: Sizes) -> Row:
    return Row(
        Select((s.image, s.image), s.rank),
        choosing,
        (s.image, s.image),
        (
            *pulls(*[ALL] * s.rank),
            Trial(push, (1, 1), ALL, Shared.ALL),
            Trial(push, (1, None), CONFLICTS),
            Trial(push, (1, 0), CONFLICTS),
        ),
    )


@row
def lookup_by_a_matrix_of_indices(s: Sizes) -> Row:
    indices = np.arange(6).reshape(2, 3) % s.image[1]
    behind = [ALL] * (s.rank - 2)
    return Row(
        Lookup(1, 2),
        lambda table: np.take(table, indices, axis=1),
        (s.image,),
        (*pulls(ALL, MIXES, MIXES, *behind), *pushes(ALL, MIXES, *behind)),
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
