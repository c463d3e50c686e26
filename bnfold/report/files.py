"""The record in a file, whose ending chooses the form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.report import html, junit
from bnfold.report.documents import Document


def to_json(record: Document) -> str:
    """The record as one JSON document."""
    return json.dumps(record, indent=2, ensure_ascii=False)


def _json(record: Document) -> str:
    return to_json(record) + "\n"


RENDERERS: dict[str, Callable[[Document], str]] = {".html": html.render, ".json": _json, ".xml": junit.render}
"""What writes a report, by the ending of its name."""


def require(path: Path) -> None:
    """Check, before the work begins, that a report of that kind can be made.

    Raises:
        MissingExtraError: it needs something that is not installed.
    """
    if path.suffix == ".html":
        html.require()


def write(record: Document, path: Path) -> None:
    """Write a report.

    Raises:
        MissingExtraError: an `.html` report without the `report` extra.
        OutputError: the file cannot be written.
    """
    text = RENDERERS.get(path.suffix, _json)(record)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
