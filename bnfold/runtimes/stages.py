"""Says what a runtime is about to do with which model, so that a crash or a hang in it has a name.

A runtime that dies takes its process along. What watches that process (`bnfold.runtimes.apart`) is told beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

Search = Callable[[float], str | None]
"""Finds the node in which a runtime dies or hangs, given the seconds after which it hangs; None where none is found."""


@dataclass(frozen=True)
class Stage:
    """One call of a runtime.

    Attributes:
        label: the model's name in messages.
        action: "loading" or "running".
        runtime: the name of the runtime.
    """

    label: str
    action: str
    runtime: str


class Watcher(Protocol):
    """Is told of each stage."""

    @property
    def is_searching(self) -> bool:
        """Whether a stage may be searched for the node in which it dies."""
        ...

    def enter(self, stage: Stage, search: Search | None) -> None:
        """A stage begins."""
        ...

    def leave(self) -> None:
        """It has ended."""
        ...


WATCHER: ContextVar[Watcher | None] = ContextVar("WATCHER", default=None)
"""Set in a process that is watched."""


def is_searching() -> bool:
    """Whether a stage of this process may be searched, so that what that needs has to be kept."""
    watcher = WATCHER.get()
    return watcher is not None and watcher.is_searching


@contextmanager
def stage(label: str, action: str, runtime: str, search: Search | None = None) -> Iterator[None]:
    """Within this context, a runtime works on a model."""
    watcher = WATCHER.get()
    if watcher is None:
        yield
        return
    watcher.enter(Stage(label, action, runtime), search)
    try:
        yield
    finally:
        watcher.leave()
