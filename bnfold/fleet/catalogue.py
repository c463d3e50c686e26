"""The models of a run, and where the ledger tells of them: tables on the disk, so that memory does not grow.

The tables live in a temporary folder, and only as long as the run.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from bnfold.errors import BnfoldError
from bnfold.fleet.places import Found
from bnfold.fleet.task import Item

TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE items (
    number INTEGER PRIMARY KEY, source TEXT, relative TEXT, bytes INTEGER, reference TEXT, options TEXT, problem TEXT,
    output TEXT, identity BLOB UNIQUE
);
CREATE UNIQUE INDEX outputs ON items (output) WHERE output IS NOT NULL;
CREATE INDEX sizes ON items (bytes);
CREATE TABLE halves (relative TEXT PRIMARY KEY, name TEXT, bytes INTEGER);
CREATE TABLE stamps (name TEXT PRIMARY KEY, stamp TEXT);
CREATE TABLE lines (identity BLOB PRIMARY KEY, offset INTEGER);
"""

COLUMNS = "items.source, items.relative, items.bytes, items.reference, items.options, items.problem, items.output"


class CollisionError(BnfoldError):
    """Two sources that would become one output: wrong use of the command line."""

    exit_code = 2


class Catalogue:
    """The tables, from `with` on."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bnfold-fleet-")

    def __enter__(self) -> Catalogue:
        self._tables = sqlite3.connect(str(Path(self._folder.name) / "tables"))
        self._tables.executescript(TABLES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tables.close()
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """A folder that is there as long as the tables."""
        return Path(self._folder.name)

    # -------------------------------------------------------------------------------------------------------- models

    def add(self, item: Item, identity: bytes) -> None:
        """Add a model. One that is there already is left alone.

        Raises:
            CollisionError: another model would have its output.
        """
        row = (
            item.source,
            item.relative,
            item.bytes,
            item.reference,
            json.dumps(item.options),
            item.problem,
            item.output,
            identity,
        )
        added = self._tables.execute(f"INSERT OR IGNORE INTO items VALUES (NULL{', ?' * len(row)})", row)
        if added.rowcount:
            return
        [other] = self._tables.execute(
            "SELECT source FROM items WHERE output = ? UNION ALL SELECT source FROM items WHERE identity = ?",
            (item.output, identity),
        ).fetchone()
        if other != item.source:
            raise CollisionError(f"{other} and {item.source} would both become {item.output}")

    def __len__(self) -> int:
        [count] = self._tables.execute("SELECT COUNT(*) FROM items").fetchone()
        return int(count)

    def items(self) -> Iterator[tuple[int, Item, int | None]]:
        """Each model with its number and its place in the ledger, if it has one; the largest first."""
        rows = self._tables.cursor().execute(
            f"SELECT items.number, lines.offset, {COLUMNS} FROM items LEFT JOIN lines USING (identity)"
            " ORDER BY items.bytes DESC, items.number"
        )
        for number, offset, *columns in rows:
            yield number, _item(columns), offset

    def told(self) -> Iterator[int]:
        """The places of the models in the ledger, those in front first."""
        rows = self._tables.cursor().execute("SELECT offset FROM items JOIN lines USING (identity) ORDER BY offset")
        for [offset] in rows:
            yield offset

    # --------------------------------------------------------------------------------------------------------- pairs

    def add_half(self, found: Found) -> None:
        """Add the reference of a pair."""
        self._tables.execute("INSERT OR IGNORE INTO halves VALUES (?, ?, ?)", (found.relative, found.name, found.bytes))

    def half(self, relative: str) -> tuple[str, int] | None:
        """The reference of that path, and its size."""
        row = self._tables.execute("SELECT name, bytes FROM halves WHERE relative = ?", (relative,)).fetchone()
        return None if row is None else (row[0], row[1])

    def lonely_halves(self) -> Iterator[tuple[str, str]]:
        """References without a candidate: their paths and names."""
        yield from self._tables.execute(
            "SELECT relative, name FROM halves WHERE name NOT IN (SELECT reference FROM items WHERE reference NOTNULL)"
        ).fetchall()

    # -------------------------------------------------------------------------------------------------------- stamps

    def note_stamp(self, found: Found) -> None:
        """Note the stamp of a file."""
        self._tables.execute("INSERT OR REPLACE INTO stamps VALUES (?, ?)", (found.name, found.stamp))

    def stamp(self, name: str) -> str | None:
        """The stamp of a file, if one was noted."""
        row = self._tables.execute("SELECT stamp FROM stamps WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    # -------------------------------------------------------------------------------------------------------- ledger

    def note_line(self, identity: bytes, offset: int) -> bool:
        """Note where the last line of a model begins; whether there was an earlier one."""
        had: Any = self._tables.execute("SELECT 1 FROM lines WHERE identity = ?", (identity,)).fetchone()
        self._tables.execute("INSERT OR REPLACE INTO lines VALUES (?, ?)", (identity, offset))
        return had is not None

    def offset(self, identity: bytes) -> int:
        """Where the last line of a model begins, which has one."""
        [offset] = self._tables.execute("SELECT offset FROM lines WHERE identity = ?", (identity,)).fetchone()
        return int(offset)

    def is_current(self, identity: bytes, offset: int) -> bool:
        """Whether the line that begins there is the last of its model."""
        row = self._tables.execute("SELECT offset FROM lines WHERE identity = ?", (identity,)).fetchone()
        return row is not None and row[0] == offset


def _item(columns: list[Any]) -> Item:
    source, relative, size, reference, options, problem, output = columns
    return Item(source, relative, size, reference, tuple(json.loads(options)), problem, output)
