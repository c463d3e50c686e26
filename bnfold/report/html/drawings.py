"""Draws the graph around one BatchNorm: the operators that absorbed it, those that carried it, and itself.

Data flows from left to right. Columns are joined by one line and not pairwise, since a record lists operators and not
the edges between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from bnfold.report.html.text import shown

WIDTH, HEIGHT, GAP, AISLE, TOP = 142, 26, 6, 32, 15
"""Sizes of a box, between boxes, between columns, and of the column titles, in CSS pixels."""

MOST = 4
"""How many boxes a column shows. The rest are counted."""

LETTERS = 18
"""How many letters fit into a box."""


@dataclass(frozen=True)
class Lane:
    """A column of boxes under one title."""

    title: str
    style: str
    names: Sequence[str]

    @property
    def boxes(self) -> list[tuple[str, str]]:
        """The label and the whole name of each box."""
        listed = [(shown(name, LETTERS), shown(name, 200)) for name in self.names]
        if len(listed) <= MOST:
            return listed
        rest = f"and {len(listed) - MOST + 1} more"
        return [*listed[: MOST - 1], (rest, rest)]

    @property
    def height(self) -> int:
        """The height of the boxes, without the title."""
        return len(self.boxes) * (HEIGHT + GAP) - GAP


def picture(outcome: Mapping[str, Any], key: str) -> Markup:
    """An inline SVG of one outcome; `key` makes its identifiers unique on the page."""
    lanes = _lanes(outcome)
    tall = max(lane.height for lane in lanes)
    width, height = len(lanes) * (WIDTH + AISLE) - AISLE + 2, TOP + tall + 2
    parts = [
        Markup(
            '<svg class="graph" role="img" aria-labelledby="{0}" width="{1}" height="{2}" viewBox="0 0 {1} {2}">'
        ).format(key, width, height),
        Markup('<title id="{}">{}</title>').format(key, sentence(outcome)),
    ]
    is_barred = outcome.get("status") == "kept"
    for index, lane in enumerate(lanes):
        x = 1 + index * (WIDTH + AISLE)
        parts += [_boxes(lane, x, TOP + (tall - lane.height) // 2)]
        if index:
            parts += [_aisle(lanes[index - 1], lane, x - AISLE, tall, is_barred)]
    return Markup("").join([*parts, Markup("</svg>")])


STYLES = {"batchnorm": "gone", "into": "into", "beside": "through"}
"""How the nodes around a BatchNorm are drawn, by their role."""


def beside(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], words: str, key: str) -> Markup:
    """An inline SVG of the nodes around a BatchNorm in two models, each in the order of the data; `words` says it."""
    columns = [list(nodes)[: 2 * MOST] for nodes in (before, after)]
    tall = max(1, *map(len, columns)) * (HEIGHT + GAP) - GAP
    width, height = 2 * WIDTH + AISLE + 2, TOP + tall + 2
    parts = [
        Markup(
            '<svg class="graph" role="img" aria-labelledby="{0}" width="{1}" height="{2}" viewBox="0 0 {1} {2}">'
        ).format(key, width, height),
        Markup('<title id="{}">{}</title>').format(key, words),
    ]
    for index, (title, nodes) in enumerate(zip(("before", "after"), columns, strict=True)):
        x = 1 + index * (WIDTH + AISLE)
        parts.append(Markup('<text class="lane" x="{}" y="{}">{}</text>').format(x + WIDTH // 2, TOP - 5, title))
        for place, node in enumerate(nodes):
            lane = Lane("", STYLES.get(str(node.get("role")), "through"), [str(node.get("name", ""))])
            parts.append(_boxes(lane, x, TOP + place * (HEIGHT + GAP)))
    return Markup("").join([*parts, Markup("</svg>")])


def sentence(outcome: Mapping[str, Any]) -> str:
    """The outcome in words, as the picture shows it."""
    batchnorm = shown(outcome.get("batchnorm", ""), 200)
    if outcome.get("status") == "kept":
        return f"{batchnorm} stays: {shown(outcome.get('reason', ''))} at {shown(outcome.get('at', ''), 200)}"
    into = ", ".join(name for _, name in Lane("", "", outcome.get("into") or []).boxes)
    if outcome.get("direction") == "computed":
        return f"{batchnorm} is computed once, for {into}"
    through = ", ".join(name for _, name in Lane("", "", outcome.get("through") or []).boxes)
    carried = f", carried through {through}" if through else ""
    return f"{batchnorm} is absorbed {outcome.get('direction', '')} by {into}{carried}".replace("  ", " ")


def _lanes(outcome: Mapping[str, Any]) -> list[Lane]:
    name = str(outcome.get("batchnorm", ""))
    if outcome.get("status") == "kept":
        at = str(outcome.get("at") or name)
        stays = Lane("stays", "kept", [name])
        return [stays] if at == name else [Lane("stops it", "stop", [at]), stays]
    through = list(map(str, outcome.get("through") or []))
    lanes = [
        Lane("absorbs it", "into", list(map(str, outcome.get("into") or []))),
        Lane("carry it" if len(through) > 1 else "carries it", "through", through),
        Lane("folded away", "gone", [name]),
    ]
    lanes = [lane for lane in lanes if lane.names]
    return lanes[::-1] if outcome.get("direction") == "downstream" else lanes


def _boxes(lane: Lane, x: int, y: int) -> Markup:
    middle = x + WIDTH // 2
    title = Markup('<text class="lane" x="{}" y="{}">{}</text>').format(middle, y - 5, lane.title)
    parts = [title if lane.title else Markup("")]
    for index, (label, whole) in enumerate(lane.boxes):
        top = y + index * (HEIGHT + GAP)
        hint = Markup("<title>{}</title>").format(whole) if whole != label else ""
        parts.append(
            Markup(
                '<g class="{}">{}<rect x="{}" y="{}" width="{}" height="{}" rx="5"/><text x="{}" y="{}">{}</text></g>'
            ).format(lane.style, hint, x, top, WIDTH, HEIGHT, middle, top + 17, label)
        )
    return Markup("").join(parts)


def _aisle(left: Lane, right: Lane, x: int, tall: int, is_barred: bool) -> Markup:
    """The line from one column to the next: from each box, over a bus, with an arrow into each box."""
    bus, end = x + AISLE // 2, x + AISLE

    def middles(lane: Lane) -> list[int]:
        start = TOP + (tall - lane.height) // 2 + HEIGHT // 2
        return [start + index * (HEIGHT + GAP) for index in range(len(lane.boxes))]

    starts, ends = middles(left), middles(right)
    steps = [f"M{x} {y}H{bus}" for y in starts]
    steps += [f"M{bus} {min(starts + ends)}V{max(starts + ends)}"] if len({*starts, *ends}) > 1 else []
    steps += [f"M{bus} {y}H{end}M{end - 5} {y - 4}L{end} {y}L{end - 5} {y + 4}" for y in ends]
    line = Markup('<path class="edge" d="{}"/>').format("".join(steps))
    y = starts[0]
    bar = f"M{bus - 5} {y - 5}L{bus + 5} {y + 5}M{bus + 5} {y - 5}L{bus - 5} {y + 5}"
    return line + (Markup('<path class="bar" d="{}"/>').format(bar) if is_barred else "")
