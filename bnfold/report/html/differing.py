"""What changed between two models: the sections of `diff`, and its summary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from bnfold.errors import plural
from bnfold.report.diff_terminal import TITLES
from bnfold.report.documents import Record
from bnfold.report.html import drawings
from bnfold.report.html.folding import DRAWN, DRAWN_OPEN, outcome_name
from bnfold.report.html.parts import Cell, Column, Mood, Section, Summary, Tile, name_cell, number_of, tabulate, text_of
from bnfold.report.html.text import MISSING, count, scientific, seconds, shown

MOODS: dict[str, Mood] = {"unknown": "bad", "kept": "unsure"}
"""The colours of statuses; the others are good."""

LISTED = 1000
"""The most rows of a table."""


def summarize_difference(record: Record) -> Summary:
    """The top of the page."""
    statuses = record.get("statuses") or {}
    total = sum(int(number) for number in statuses.values())
    told = ", ".join(f"{int(number):,} {shown(status, 20)}" for status, number in statuses.items())
    mood: Mood = "bad" if statuses.get("unknown") else "plain"
    headline = f"{plural(total, 'BatchNorm')}: {told}" if total else "The models differ"
    if record.get("identical"):
        mood, headline = "good", "The models are identical"
    elif record.get("related") is False:
        mood, headline = "unsure", "The models have no weights, and few names, in common"
    nodes = record.get("nodes") or {}
    tiles = [
        Tile("nodes", count(nodes.get("after")), f"before {count(nodes.get('before'))}"),
        Tile("nodes gone", count(len(nodes.get("gone") or []))),
        Tile("new nodes", count(len(nodes.get("new") or []))),
        Tile("time", seconds(record.get("seconds"))),
    ]
    return Summary(mood, headline, [], tiles)


def difference_sections(record: Record) -> Iterator[Section]:
    """The sections in the order in which a reader wants them."""
    yield from _fates(record.get("fates"))
    yield from _interface(record.get("interface"))
    yield from _nodes(record.get("nodes"))
    yield from _weights(record.get("weights"))


class Numbered(NamedTuple):
    """A row: a fate, and its number."""

    number: int
    fate: Record


def _fates(fates: Any) -> Iterator[Section]:
    if not fates:
        return
    ordered = sorted(fates, key=lambda fate: fate.get("status") != "unknown")
    rows = [Numbered(number, fate) for number, fate in enumerate(ordered)]
    sentences = [
        "A node took the place of a BatchNorm where its weights are the old ones with the BatchNorm's scale and shift, "
        "to the rounding of their type. The pictures have the nodes around it in both models, in the order of the data."
    ]
    if len(rows) > DRAWN:
        sentences.append(f"The first {DRAWN} are drawn.")
    table = tabulate("Where each BatchNorm went", _FATE, rows, hides_figures=len(rows) > DRAWN_OPEN)
    yield Section("fates", "BatchNorms", sentences, tables=[table])


def _status(row: Numbered) -> Cell:
    status = str(row.fate.get("status", MISSING))
    return Cell(shown(status), mood=MOODS.get(status, "good"))


def _picture(row: Numbered) -> Cell:
    if row.number >= DRAWN:
        return Cell(MISSING)
    words = f"{shown(row.fate.get('batchnorm', ''), 200)}: {_words(row.fate)}"
    before, after = row.fate.get("before") or [], row.fate.get("after") or []
    return Cell("", figure=drawings.beside(before, after, words, f"d{row.number}"))


def _words(fate: Record) -> str:
    parts = [TITLES.get(str(fate.get("status")), shown(fate.get("status", "")))]
    if fate.get("direction"):
        parts.append(shown(fate["direction"], 20))
    if fate.get("into"):
        parts.append(f"in {', '.join(shown(name, 60) for name in fate['into'][:4])}")
    text = " ".join(parts)
    details = [shown(fate["detail"], 300)] if fate.get("detail") else []
    said = fate.get("bnfold")
    if isinstance(said, dict):
        would = "bnfold would fold it"
        if said.get("status") == "kept":
            would = f"bnfold would keep it: {shown(said.get('reason', ''))}, {shown(said.get('detail', ''), 300)}"
        details.append(would)
    return "; ".join([text, *details])


_FATE: tuple[Column[Numbered], ...] = (
    Column("BatchNorm", lambda row: name_cell(outcome_name(row.fate))),
    Column("status", _status),
    Column("before and after", _picture, is_sortable=False),
    Column("where it is now", lambda row: Cell(_words(row.fate)), is_wide=True),
)


def _interface(changes: Any) -> Iterator[Section]:
    if changes:
        yield Section("interface", "Interface", [shown(change, 400) for change in changes])


def _nodes(nodes: Any) -> Iterator[Section]:
    if not isinstance(nodes, dict):
        return
    tables = []
    for key, title in (("gone", "Gone"), ("new", "New")):
        if listed := nodes.get(key):
            caption = f"{title}: {plural(len(listed), 'node')}"
            tables.append(tabulate(caption, _NODE, listed[:LISTED], is_collapsed=len(listed) > DRAWN_OPEN))
    if listed := nodes.get("changed"):
        caption = f"Changed: {plural(len(listed), 'node')}"
        tables.append(tabulate(caption, _CHANGED, listed[:LISTED], is_collapsed=len(listed) > DRAWN_OPEN))
    if tables:
        yield Section("nodes", "Nodes", tables=tables)


_NODE: tuple[Column[Record], ...] = (
    Column("node", lambda node: name_cell(outcome_name(node, "name"))),
    Column("operator", text_of("operator")),
)

_CHANGED: tuple[Column[Record], ...] = (
    Column("node", lambda node: name_cell(outcome_name(node, "name"))),
    Column("in B", text_of("other", 72)),
    Column(
        "change", lambda node: Cell("; ".join(shown(each, 200) for each in node.get("changes") or [])), is_wide=True
    ),
)


def _weights(weights: Any) -> Iterator[Section]:
    if not isinstance(weights, dict):
        return
    sentences = [
        f"{plural(len(weights.get(key) or []), 'name')} of weights {word}."
        for key, word in (("gone", "of A alone"), ("new", "of B alone"))
        if weights.get(key)
    ]
    changed = sorted(weights.get("changed") or [], key=lambda row: -(row.get("largest") or 0.0))
    tables = []
    if changed:
        caption = f"Under the same name: {plural(len(changed), 'weight')}"
        tables.append(tabulate(caption, _WEIGHT, changed[:LISTED], is_collapsed=len(changed) > DRAWN_OPEN))
    if sentences or tables:
        yield Section("weights", "Weights", sentences, tables=tables)


_WEIGHT: tuple[Column[Record], ...] = (
    Column("weight", lambda row: name_cell(row.get("name", ""))),
    Column("largest relative change", number_of("largest", scientific), is_number=True),
    Column("also", text_of("detail")),
)
