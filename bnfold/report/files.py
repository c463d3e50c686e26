"""The record in a file, whose ending chooses the form."""

from __future__ import annotations

import json
from pathlib import Path

from bnfold.errors import InvalidModelError
from bnfold.report import junit
from bnfold.report.record import Record

ENDINGS = (".json", ".xml")


def to_json(record: Record) -> str:
    """The record as one JSON document."""
    return json.dumps(record, indent=2, ensure_ascii=False)


def write(record: Record, path: Path) -> None:
    """Write a report.

    Raises:
        InvalidModelError: the file cannot be written.
    """
    text = junit.render(record) if path.suffix == ".xml" else to_json(record) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from error
