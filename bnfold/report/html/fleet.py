"""The page of a fleet: its sums, what stays and why, what failed, and a table of all models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bnfold.errors import plural
from bnfold.report.documents import Record
from bnfold.report.html.parts import (
    Cell,
    Column,
    Mood,
    Section,
    Summary,
    Tile,
    name_cell,
    number_cell,
    number_of,
    tabulate,
    text_of,
)
from bnfold.report.html.text import change, count, plain, seconds, shown, size

ENDINGS: dict[int, tuple[str, Mood]] = {0: ("done", "good"), 1: ("no", "bad"), 2: ("refused", "unsure")}
"""What an exit code means for a model, and its colour; any other is a failure."""

FAILED: tuple[str, Mood] = ("failed", "bad")

ANSWERS = {
    "fuse": "not proved, or not equivalent",
    "inspect": "with BatchNorms that could fold",
    "verify": "not equivalent",
    "bench": "that did not meet a gate",
}
"""What the answer no means."""


def summarize(record: Record) -> Summary:
    """The answer of a fleet."""
    counts = record.get("counts") or {}
    found, well = int(counts.get("found") or 0), int(counts.get("well") or 0)
    bad = found - well
    headline = (
        f"All {plural(found, 'model')} ended well" if not bad else f"{plural(well, 'model')} of {found:,} ended well"
    )
    mood: Mood = "good" if not bad else "bad" if counts.get("no") or counts.get("failed") else "unsure"
    return Summary(mood, headline, list(_sentences(record, counts)), list(_tiles(record, counts)))


def _sentences(record: Record, counts: Record) -> Iterator[str]:
    task = str(record.get("task"))
    if counts.get("no"):
        yield f"{plural(counts['no'], 'model')} {ANSWERS.get(task, 'with the answer no')}."
    if counts.get("failed"):
        yield f"{plural(counts['failed'], 'model')} without an answer: unreadable, too large, too slow, or crashed."
    if counts.get("refused"):
        yield f"{plural(counts['refused'], 'output')} existed already, and the ledger did not know them."
    if counts.get("left_out"):
        yield f"{plural(counts['left_out'], 'model')} not begun."
    if counts.get("unchanged"):
        yield f"{plural(counts['unchanged'], 'model')} done by an earlier run, and unchanged."


def _tiles(record: Record, counts: Record) -> Iterator[Tile]:
    yield Tile("models", count(counts.get("found")))
    batchnorms = record.get("batchnorms") or {}
    if batchnorms.get("found"):
        label = "BatchNorms folded" if record.get("task") == "fuse" else "BatchNorms that fold"
        yield Tile(label, f"{count(batchnorms.get('folded'))} of {count(batchnorms['found'])}")
    sizes = record.get("bytes") or {}
    if sizes.get("after"):
        note = f"before {size(sizes.get('before'))} ({change(sizes.get('before'), sizes['after'])})"
        yield Tile("bytes", size(sizes["after"]), note)
    yield Tile("time taken", seconds(record.get("seconds")), f"on {plural(int(record.get('workers') or 0), 'worker')}")
    yield Tile("time of all models", seconds(record.get("model_seconds")))
    yield Tile("most memory of a model", size(record.get("peak_bytes")))


def sections(record: Record) -> Iterator[Section]:
    """The sections of a fleet."""
    rows = record.get("rows") or []
    failed = [row for row in rows if row.get("exit_code")]
    if failed:
        yield Section("failures", "What did not end well", tables=[tabulate("Failures", _FAILURES, failed)])
    reasons = record.get("reasons") or {}
    if reasons:
        table = tabulate("BatchNorms that stay", _REASONS, list(reasons.items()))
        yield Section("reasons", "What stays, and why", tables=[table])
    ends = [
        tabulate(title, columns, record[key])
        for key, title, columns in (("slowest", "Slowest", _SLOWEST), ("largest", "Largest", _LARGEST))
        if record.get(key)
    ]
    if ends:
        yield Section("ends", "Slowest and largest", tables=ends)
    if rows:
        omitted = int(record.get("omitted") or 0)
        note = [f"{plural(omitted, 'further model')} that ended well, in the ledger."] if omitted else []
        yield Section("models", "Models", [*note], tables=[tabulate("Models", _MODELS, rows)])


def _source(row: Record) -> Cell:
    name = name_cell(row.get("source"), 120)
    link = str(row.get("report") or "")
    return Cell(name.text, full=name.full, link=link if re.fullmatch(r"[\w%~.-]+/[\w%~.-]+\.html", link) else None)


def _ending(row: Record) -> Cell:
    text, mood = ENDINGS.get(int(row.get("exit_code") or 0), FAILED)
    return Cell(text, mood=mood)


def _pair(row: tuple[str, Any]) -> Cell:
    return Cell(shown(row[0]))


_NAME: Column[Record] = Column("model", _source)

_FAILURES: tuple[Column[Record], ...] = (
    _NAME,
    Column("ended", _ending),
    Column("why", text_of("message", 400), is_wide=True),
)

_REASONS: tuple[Column[tuple[str, Any]], ...] = (
    Column("reason", _pair),
    Column("BatchNorms", lambda row: number_cell(count(row[1]), row[1]), is_number=True),
)

_SLOWEST: tuple[Column[Record], ...] = (_NAME, Column("seconds", number_of("seconds", plain), is_number=True))

_LARGEST: tuple[Column[Record], ...] = (_NAME, Column("size", number_of("bytes", size), is_number=True))

_MODELS: tuple[Column[Record], ...] = (
    _NAME,
    Column("ended", _ending),
    Column("BatchNorms", number_of("found", count), is_number=True),
    Column("fold", number_of("folded", count), is_number=True),
    Column("stay", number_of("kept", count), is_number=True),
    Column("size", number_of("bytes", size), is_number=True),
    Column("seconds", number_of("seconds", plain), is_number=True),
    Column("memory", number_of("peak_bytes", size), is_number=True),
)
