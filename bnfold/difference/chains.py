"""Chains of per-channel affines between two nodes that compute, and what of one chain is what of another.

A link is a map with the nodes that it stands for. Two chains that lead from one value to one value are cut where they
agree: ``a_i o ... o a_1 = b_j o ... o b_1``. Between two cuts, nodes of one took the place of nodes of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.algebra.affine import Affine, Array
from bnfold.difference.outline import Item
from bnfold.graph.outcome import Stop
from bnfold.planning.rules import push
from bnfold.planning.rules.registry import stop_several

ROUNDINGS = 16
"""How many roundings of its type a tool may have made on the way to a weight."""


@dataclass(frozen=True, eq=False)
class Link:
    """A map between two values, and the nodes that make it.

    Attributes:
        items: the nodes.
        affine: the map. A scale or shift that nothing tells is NaN: it agrees with all.
        size: the largest number that its shift was computed from, by which its rounding is judged.
    """

    items: tuple[Item, ...]
    affine: Affine
    size: float

    @classmethod
    def of(cls, item: Item) -> Link:
        """The link of one step."""
        assert item.affine is not None
        affine = item.affine
        mean = affine.statistics.mean if affine.statistics is not None else np.zeros(1)
        return cls((item,), affine, largest(affine.shift) + 2 * largest(affine.scale) * largest(mean))


Chain = tuple[Link, ...]

Total = Affine | None
"""The map of a whole chain; None for the identity."""


def largest(vector: Array) -> float:
    """The largest size of the entries that are known."""
    known = np.abs(vector[np.isfinite(vector)])
    return float(known.max(initial=0.0))


def compose(chain: Sequence[Link]) -> Link | None:
    """The whole chain as one link; None where it is empty.

    Raises:
        ValueError: its links lie on different axes.
    """
    total: Link | None = None
    for link in chain:
        if total is None:
            total = link
            continue
        inner, outer = total.affine, link.affine
        if inner.places != outer.places:
            raise ValueError("the links lie on different axes")
        affine = Affine(outer.scale * inner.scale, outer.scale * inner.shift + outer.shift, outer.axis)
        size = link.size + largest(outer.scale) * total.size + largest(affine.shift)
        total = Link((*total.items, *link.items), affine, size)
    return total


def agree(one: Link | None, other: Link | None, unit: float) -> bool:
    """Whether two maps are the same, as far as the rounding of weights can tell."""
    if one is None and other is None:
        return True
    if one is None or other is None:
        link = one or other
        assert link is not None
        identity = Affine.identity(link.affine.size, link.affine.axis)
        return agree(link, Link((), identity, 0.0), unit)
    first, second = one.affine, other.affine
    if first.places != second.places:
        return False
    slack = ROUNDINGS * unit
    sizes = np.maximum(np.abs(first.scale), np.abs(second.scale))
    scale_limit = slack * sizes + 32 * unit * unit * max(1.0, largest(sizes))
    shift_limit = slack * max(one.size, other.size, 1e-30)
    is_scale = _within(first.scale, second.scale, scale_limit)
    is_shift = _within(first.shift, second.shift, shift_limit)
    is_known = np.isfinite(first.scale) & np.isfinite(second.scale)
    return bool(is_scale and is_shift and (is_known.any() or not is_known.size))


def _within(one: Array, other: Array, limit: Any) -> bool:
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - other)
    return bool(np.all(np.isnan(difference) | (difference <= limit)))


def carry(chain: Sequence[Link], op: Any) -> Chain | None:
    """The chain behind an operator of one input that it is in front of; None where the operator does not carry it."""
    carried: list[Link] = []
    for link in chain:
        affine = push_affine(op, link.affine)
        if affine is None:
            return None
        carried.append(Link(link.items, affine, link.size))
    return tuple(carried)


def push_affine(op: Any, *affines: Affine | None) -> Affine | None:
    """What an operator makes of maps of its inputs; None where that is no map of its output."""
    with np.errstate(invalid="ignore"):
        pushed = stop_several(op, affines) or push(op, *affines)
    if isinstance(pushed, Stop) or len(pushed) != 1:
        return None
    return pushed[0]


def along(chain: Sequence[Link], steps: Sequence[Item]) -> Chain | None:
    """A chain followed by steps; None where a reshape on the way does not carry it."""
    links: Chain | None = tuple(chain)
    for item in steps:
        assert links is not None
        if item.affine is not None:
            links = (*links, Link.of(item))
        elif links:
            links = carry(links, item.op)
        if links is None:
            return None
    return links


@dataclass(frozen=True, eq=False)
class Cut:
    """Links of one chain that took the place of links of another."""

    before: Chain
    after: Chain


def cut(before: Sequence[Link], after: Sequence[Link], unit: float) -> Iterator[Cut] | None:
    """The parts of two chains that agree as a whole, as short as they can be; None where the chains do not agree."""
    firsts, seconds = _totals(before), _totals(after)
    if firsts is None or seconds is None or not agree(firsts[-1], seconds[-1], unit):
        return None
    return _cuts(before, after, firsts, seconds, unit)


def _totals(chain: Sequence[Link]) -> list[Link | None] | None:
    """The map of each beginning of a chain; None where they cannot be composed."""
    try:
        return [compose(chain[:count]) for count in range(len(chain) + 1)]
    except ValueError:
        return None


def _cuts(
    before: Sequence[Link],
    after: Sequence[Link],
    firsts: Sequence[Link | None],
    seconds: Sequence[Link | None],
    unit: float,
) -> Iterator[Cut]:
    one = other = 0
    end = len(before), len(after)  # where they agree: `cut` asked
    while (one, other) != end:
        stop_one, stop_other = next(
            (i, j) for i, j in _ahead(one, other, *end) if (i, j) == end or agree(firsts[i], seconds[j], unit)
        )
        yield Cut(tuple(before[one:stop_one]), tuple(after[other:stop_other]))
        one, other = stop_one, stop_other


def _ahead(one: int, other: int, end_one: int, end_other: int) -> Iterator[tuple[int, int]]:
    """The next places where two chains may agree, the nearest first, those that go on in both before the others."""
    places = [(i, j) for i in range(one, end_one + 1) for j in range(other, end_other + 1) if (i, j) != (one, other)]
    yield from sorted(places, key=lambda place: _distance(place, one, other))


def _distance(place: tuple[int, int], one: int, other: int) -> tuple[int, int, int]:
    steps = place[0] - one, place[1] - other
    is_one_sided = 0 in steps
    return sum(steps) - (0 if is_one_sided else 1), int(is_one_sided), steps[1]
