"""The parts of a page: sections of sentences, tables, terms and figures. The template knows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from markupsafe import Markup

from bnfold.report.columns import Column as PlainColumn
from bnfold.report.columns import Row
from bnfold.report.documents import Record
from bnfold.report.html.text import MISSING, number, shown, size

Mood = Literal["good", "bad", "unsure", "plain"]


@dataclass(frozen=True)
class Figure:
    """A drawing, with its content in words."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: the text that it shows.
        value: the number that it sorts by, if there is one.
        mood: its colour.
        figure: a drawing in place of the text.
        full: the whole text, where `text` is shortened.
        link: the page that it opens.
    """

    text: str
    value: float | None = None
    mood: Mood | None = None
    figure: Markup | None = None
    full: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Column(PlainColumn[Row, Cell]):
    """A column of a table. Sentences are set wide, and short texts on one line."""

    is_sortable: bool = True
    is_wide: bool = False
    is_short: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is the row's header.

    Attributes:
        is_collapsed: whether it opens on request.
        hides_figures: whether the drawings in its cells open on request.
    """

    caption: str
    columns: Sequence[Column[Any]]
    rows: Sequence[Sequence[Cell]]
    is_collapsed: bool = False
    hides_figures: bool = False


def tabulate(
    caption: str,
    columns: Sequence[Column[Row]],
    rows: Iterable[Row],
    *,
    is_collapsed: bool = False,
    hides_figures: bool = False,
) -> Table:
    """The table of some rows, by its columns."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    return Table(caption, columns, cells, is_collapsed, hides_figures)


@dataclass(frozen=True)
class Terms:
    """A definition list."""

    title: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the page, in the order of its fields."""

    key: str
    title: str
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    terms: Sequence[Terms] = ()


@dataclass(frozen=True)
class Tile:
    """One figure of the summary."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """What a hurried reader needs."""

    mood: Mood
    headline: str
    sentences: Sequence[str] = ()
    tiles: Sequence[Tile] = field(default=())


def name_cell(name: object, limit: int = 72) -> Cell:
    """The cell of a name from a model."""
    text = shown(name, limit)
    return Cell(text, full=shown(name, 500) if text != str(name) else None)


def number_cell(text: str, value: Any, mood: Mood | None = None) -> Cell:
    """The cell of a number: it shows a readable form, and sorts by the number itself."""
    return Cell(text, value=number(value), mood=mood)


def text_of(key: str, limit: int = 160) -> Callable[[Record], Cell]:
    """The value under a key of a record, as text."""
    return lambda record: Cell(shown(record.get(key) or MISSING, limit))


def number_of(key: str, written: Callable[[Any], str]) -> Callable[[Record], Cell]:
    """The value under a key of a record, as a cell with a number in this form."""
    return lambda record: number_cell(written(record.get(key)), record.get(key))


def terms(title: str, value: Any) -> Terms:
    """The properties of a thing, nested ones included."""
    return Terms(title, [(shown(name, 120), text) for name, text in _flat(value, "")])


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Nested keys as one level: ``versions, numpy``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}, {key}" if name else str(key).replace("_", " "))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name} {index + 1}".strip())
    elif isinstance(value, list):
        yield (
            name,
            "none"
            if not value
            else ", ".join(shown(item, 80) for item in value[:24])
            + (", \N{HORIZONTAL ELLIPSIS}" if len(value) > 24 else ""),
        )
    elif isinstance(value, bool) or value is None:
        yield name, {True: "yes", False: "no", None: MISSING}[value]
    elif isinstance(value, int) and name.endswith("bytes"):
        yield name, size(value)
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else shown(value, 300)
