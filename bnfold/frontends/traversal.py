"""Walks over graphs of any kind, without recursion: graphs may be deeper than Python's stack."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

N = TypeVar("N", bound=Hashable)


def in_order(end: N, needed: Callable[[N], Iterable[N]]) -> list[N]:
    """All that `end` needs, each after what it needs itself; `end` comes last."""
    order: dict[N, None] = {}
    stack = [end]
    while stack:
        missing = [node for node in needed(stack[-1]) if node not in order]
        if missing:
            stack.extend(missing)
        else:
            order[stack.pop()] = None
    return list(order)


def reach(starts: Iterable[N], following: Callable[[N], Iterable[N]]) -> set[N]:
    """The starts, all that follows them, and all that follows that."""
    reached: set[N] = set()
    stack = list(starts)
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack.extend(following(node))
    return reached
