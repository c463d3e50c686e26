"""Lets models take turns, for the timings that `statistics` judges."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from bnfold.bench.statistics import Array
from bnfold.runtimes.timed_session import Session

ROUNDS_PER_SITTING = 4
"""For how many rounds one set of sessions lives."""

TURN_SECONDS = 0.003
"""How long a turn lasts where MOST_RUNS does not end it before."""

MOST_RUNS = 10
"""The most timed inferences of one turn."""

SETTLING_SECONDS = 0.02
"""With an inference faster than this, each turn starts with an untimed one, since the others have used the caches."""


@dataclass
class Track:
    """The timings of one contestant.

    Attributes:
        starts: seconds to create each session, one a sitting.
        turns: seconds of each inference, by sitting and round.
    """

    starts: list[float] = field(default_factory=list)
    turns: list[list[list[float]]] = field(default_factory=list)

    @property
    def medians(self) -> Array:
        """The median of each turn, [sittings, rounds]."""
        return np.array([[np.median(turn) for turn in sitting] for sitting in self.turns])

    @property
    def runs(self) -> Array:
        """The seconds of every inference, flat."""
        return np.array([run for sitting in self.turns for turn in sitting for run in turn])


def take_turns(
    openers: Sequence[Callable[[], Session]],
    *,
    feeds: int,
    warmup: int,
    sittings: int,
    seed: int,
    is_done: Callable[[Sequence[Track]], bool],
    advance: Callable[[int], None],
) -> list[Track]:
    """Time contestants in sittings: new sessions for all of them, then some rounds in which each has one turn.

    The order is drawn anew for each sitting's start and for each round. All run on the same inputs within a round.

    Args:
        openers: one for each contestant; each call creates a session.
        feeds: how many inputs a session has; a round uses one of them.
        warmup: untimed inferences of each new session.
        sittings: the most sittings.
        seed: the seed of the order.
        is_done: asked after each sitting.
        advance: called with the number of sittings done.
    """
    tracks = [Track() for _ in openers]
    generator = np.random.default_rng(seed)
    turn = None
    for sitting in range(sittings):
        sessions = _open(openers, tracks, generator)
        for index in generator.permutation(len(sessions)):
            _warm_up(sessions[index], feeds, warmup)
        if turn is None:
            turn = _Turn.for_speed(min(session.time(0) for session in sessions))
        for track in tracks:
            track.turns.append([])
        with _without_garbage_collection():
            for number in range(ROUNDS_PER_SITTING):
                feed = (sitting * ROUNDS_PER_SITTING + number) % feeds
                for index in generator.permutation(len(sessions)):
                    tracks[index].turns[-1].append(turn.take(sessions[index], feed))
        del sessions
        advance(sitting + 1)
        if is_done(tracks):
            break
    return tracks


def _open(
    openers: Sequence[Callable[[], Session]], tracks: Sequence[Track], generator: np.random.Generator
) -> list[Session]:
    gc.collect()
    sessions: dict[int, Session] = {}
    for index in map(int, generator.permutation(len(openers))):
        start = time.perf_counter()
        sessions[index] = openers[index]()
        tracks[index].starts.append(time.perf_counter() - start)
    return [sessions[index] for index in range(len(openers))]


def _warm_up(session: Session, feeds: int, count: int) -> None:
    for number in range(max(count, feeds)):  # each input at least once
        session.time(number % feeds)


@dataclass(frozen=True)
class _Turn:
    """How many times a session runs in its turn: the same for all contestants of a group."""

    untimed: int
    timed: int

    @classmethod
    def for_speed(cls, seconds: float) -> _Turn:
        """The turn for a group whose fastest contestant takes so long."""
        timed = max(1, min(MOST_RUNS, math.ceil(TURN_SECONDS / max(seconds, 1e-9))))
        return cls(int(seconds < SETTLING_SECONDS), timed)

    def take(self, session: Session, feed: int) -> list[float]:
        for _ in range(self.untimed):
            session.time(feed)
        return [session.time(feed) for _ in range(self.timed)]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
