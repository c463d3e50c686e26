"""Compares one value on one input, between the reference, the candidate and the disturbed references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import plural
from bnfold.verification.metrics import (
    Agreement,
    Counts,
    agree_on_argmax,
    count_nonfinite,
    signal_to_noise,
    worst_ulp,
)
from bnfold.verification.noise import (
    FACTOR,
    KNOWN,
    Extent,
    Judgement,
    combine,
    count_distinct,
    judge,
    measure,
    no_shares,
    shares_of_draws,
)

AnyArray = npt.NDArray[Any]

HOPELESS = 1000.0
"""How many times its budget a value must differ by so that no further draws of smooth noise make it pass."""

SMOOTH = 2
"""After how many draws that is said: one alone may cancel."""

CHAOS = 0.5
"""How far noise may move a value, as a share of its size. Beyond that a comparison says nothing."""


@dataclass(frozen=True)
class Place:
    """The worst element: its position, and its values in the two models."""

    position: tuple[int, ...]
    expected: Any
    actual: Any


@dataclass(frozen=True)
class Observation:
    """One value on one input, compared.

    Attributes:
        judgement: the difference against its budget.
        counts: NaN and infinity that came and went.
        snr_db: the ratio of signal to difference, in decibels.
        reason: why it fails; empty where it passes.
        is_void: whether nothing can be said: the reference has no number there, or differs where it moves as much by
            rounding alone.
        place: the worst element, where it fails.
        ulp, agreement: further figures, for outputs only.
        noise: the noise of each channel, where it fails and enough draws tell it.
    """

    judgement: Judgement
    counts: Counts
    snr_db: float = float("inf")
    reason: str = ""
    is_void: bool = False
    place: Place | None = None
    ulp: int | None = None
    agreement: Agreement | None = None
    noise: Extent | None = None

    @property
    def is_scattered(self) -> bool:
        """Whether rounding alone moves the value as much as it is large."""
        return self.is_void and not self.counts.is_void and not self.reason

    @property
    def rank(self) -> tuple[bool, float]:
        """The key that sorts observations: the worse, the larger."""
        return bool(self.reason), self.judgement.excess


def is_float(array: AnyArray) -> bool:
    """Whether it holds floating point numbers."""
    return is_float_type(array.dtype)


def is_float_type(dtype: np.dtype[Any]) -> bool:
    """Whether it is a floating point type."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether it is float16 or bfloat16."""
    return dtype.name in ("float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Move:
    """The move of a value under a disturbance of the weights.

    Attributes:
        extent: the extent of the difference; None for a value that holds no floating point numbers.
        counts: NaN and infinity that came and went.
        unequal: how many elements differ, if there is no extent.
    """

    extent: Extent | None
    counts: Counts
    unequal: int = 0


def observe_move(expected: AnyArray, disturbed: AnyArray) -> Move:
    """Measure how far a disturbance moved a value. A change of shape moves everything."""
    if expected.shape != disturbed.shape:
        return Move(None, Counts(0, expected.size, nan_created=expected.size), expected.size)
    if not is_float(expected):
        return Move(None, Counts(0, expected.size), int((expected != disturbed).sum()))
    extent = measure(disturbed, expected)
    return Move(extent, _count(expected, disturbed, extent))


def _count(expected: AnyArray, actual: AnyArray, difference: Extent) -> Counts:
    """Count NaN and infinity that came and went: none, where every difference is finite."""
    return Counts(0, expected.size) if difference.is_finite else count_nonfinite(expected, actual)


class Weighing:
    """Two arrays of one shape and type, measured once and judged by the noise that is known so far.

    Args:
        expected: the value of the reference.
        actual: the value of the candidate.
        moves: the moves of the reference's value by disturbances. More may be added.
        limit: how many moves decide. With `KNOWN` of them, each channel is judged by its own noise alone.
    """

    def __init__(self, expected: AnyArray, actual: AnyArray, moves: list[Move], limit: int) -> None:
        self.expected, self.actual, self.moves, self._limit = expected, actual, moves, limit
        if is_float(expected):
            self._difference = measure(actual, expected, with_means=False)
            self._signal = measure(expected, with_means=False)
            self._counts = _count(expected, actual, self._difference)
        self._judged: tuple[tuple[int, bool], tuple[Judgement, bool]] | None = None
        """The last judgement, with the number of moves that it is by."""

    @property
    def is_clear(self) -> bool:
        """Whether the value passes, and would pass with all moves as well.

        With any noise at all, more is allowed than with none. A root mean square over more moves, and the share of the
        whole that a channel is allowed, are hardly smaller than those of fewer by more than the root of the ratio.
        """
        draws = len(self.moves)
        if not is_float(self.expected):
            return not _observe_discrete(self.expected, self.actual, self.moves).judgement.excess
        judgement, is_void = self._judge(is_known=self._limit >= KNOWN)
        if is_void or _reason(judgement, self._counts, self.moves):
            return False
        return judgement.excess <= (sqrt(draws / self._limit) if draws else 1.0)

    @property
    def is_hopeless(self) -> bool:
        """Whether the value fails by far, so that more draws will not let it pass. Jumps may do so after many draws."""
        if not is_float(self.expected) or len(self.moves) < SMOOTH:
            return False
        judgement, is_void = self._judge(is_known=False)
        return not is_void and judgement.excess > HOPELESS

    def observe(self, *, is_output: bool) -> Observation:
        """The outcome; with the figures for outputs, if it is one."""
        if not is_float(self.expected):
            return _observe_discrete(self.expected, self.actual, self.moves)
        judgement, is_void = self._judge(is_known=len(self.moves) >= KNOWN)
        reason = _reason(judgement, self._counts, self.moves)
        return Observation(
            judgement,
            self._counts,
            signal_to_noise(self._signal.rms[0], self._difference.rms[0]),
            reason,
            is_void=is_void,
            place=worst_place(self.expected, self.actual) if reason else None,
            ulp=worst_ulp(self.expected, self.actual) if is_output else None,
            agreement=agree_on_argmax(self.expected, self.actual) if is_output else None,
            noise=self._noise if reason and len(self.moves) >= KNOWN else None,
        )

    @property
    def _noise(self) -> Extent:
        """The noise as far as it is known."""
        extents = [move.extent for move in self.moves if move.extent is not None]
        silence = replace(self._signal, rms=np.zeros_like(self._signal.rms), peak=np.zeros_like(self._signal.peak))
        return combine(extents) if extents else silence

    def _judge(self, *, is_known: bool) -> tuple[Judgement, bool]:
        """The judgement, and whether it is void."""
        key = len(self.moves), is_known
        if self._judged is None or self._judged[0] != key:
            self._judged = key, self._judge_anew(is_known=is_known)
        return self._judged[1]

    def _judge_anew(self, *, is_known: bool) -> tuple[Judgement, bool]:
        signal, difference = self._signal, self._difference
        noise = self._noise
        is_scattered = bool(not difference.is_zero and noise.rms[0] >= CHAOS * signal.rms[0] > 0)
        judgement = judge(difference, noise, signal, self.expected.dtype, no_shares if is_known else shares_of_draws)
        if judgement.excess > 1 and not is_known and len(self.moves) >= self._limit:
            noise = replace(noise, elements=np.minimum(noise.elements, len(self.moves) * count_distinct(self.expected)))
            judgement = judge(difference, noise, signal, self.expected.dtype)
        return judgement, self._counts.is_void or is_scattered


def _reason(judgement: Judgement, counts: Counts, moves: Sequence[Move]) -> str:
    if counts.created > FACTOR * max((move.counts.created for move in moves), default=0):
        return f"{counts.nan_created} NaN and {counts.inf_created} infinite where the reference has numbers"
    if counts.lost > FACTOR * max((move.counts.lost for move in moves), default=0):
        return f"{plural(counts.lost, 'number')} where the reference has NaN or infinity"
    if judgement.excess > 1:
        return f"{judgement.excess:.3g} times what rounding explains ({judgement.test})"
    return ""


def _observe_discrete(expected: AnyArray, actual: AnyArray, moves: Sequence[Move]) -> Observation:
    """Compare integers, truth values or strings. As many may differ as differ when the weights are disturbed."""
    counts = Counts(0, expected.size)
    unequal = int((expected != actual).sum())
    if not unequal:
        return Observation(Judgement(0.0, 0.0, 0.0, "equal"), counts)
    allowed = FACTOR * max((move.unequal for move in moves), default=0)
    excess = unequal / allowed if allowed else float("inf")
    judgement = Judgement(unequal / expected.size, allowed / expected.size, excess, "unequal elements")
    if excess <= 1:
        return Observation(judgement, counts, float("-inf"))
    reason = f"{unequal} of {plural(expected.size, 'element')} {'is' if unequal == 1 else 'are'} unequal"
    return Observation(judgement, counts, float("-inf"), reason, place=worst_place(expected, actual))


def worst_place(expected: AnyArray, actual: AnyArray) -> Place:
    """The element that differs most. One that is finite in one array alone comes first."""
    if is_float(expected):
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        one_sided = (np.isfinite(expected) != np.isfinite(actual)) | (np.isnan(expected) != np.isnan(actual))
        distance = np.where(one_sided, np.inf, np.nan_to_num(distance, nan=0.0))
    else:
        distance = (expected != actual).astype(np.float64)
    index = np.unravel_index(int(np.argmax(distance)), expected.shape)
    position = tuple(int(coordinate) for coordinate in index)
    return Place(position, expected[position].item(), actual[position].item())
