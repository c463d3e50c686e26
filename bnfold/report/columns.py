"""Columns of the tables of a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")
Cell = TypeVar("Cell")


@dataclass(frozen=True)
class Column(Generic[Row, Cell]):
    """One column: its title, and its text for a row. Numbers are right-aligned.

    A renderer's table is a tuple of these, so that one line adds a column to it.
    """

    label: str
    cell: Callable[[Row], Cell]
    is_number: bool = False
