"""Writes the record to a file, whose ending chooses the form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.report import html, junit, markdown
from bnfold.report.documents import AnyDocument


def to_json(record: AnyDocument) -> str:
    """The record as one JSON document."""
    return json.dumps(record, indent=2, ensure_ascii=False)


def _json(record: AnyDocument) -> str:
    return to_json(record) + "\n"


RENDERERS: dict[str, Callable[[AnyDocument], str]] = {
    ".html": html.render,
    ".json": _json,
    ".xml": junit.render,
    ".md": markdown.render,
}
"""The renderer of a report, by the ending of its file name."""


def require(path: Path) -> None:
    """Check before the work begins that a report of this kind can be made.

    Raises:
        MissingExtraError: the report needs something that is not installed.
    """
    if path.suffix == ".html":
        html.require()


def render(record: AnyDocument, path: Path) -> str:
    """The text of a report.

    Raises:
        MissingExtraError: an `.html` report without the `report` extra.
    """
    return RENDERERS.get(path.suffix, _json)(record)


def write(record: AnyDocument, path: Path) -> None:
    """Write a report.

    Raises:
        MissingExtraError: an `.html` report without the `report` extra.
        OutputError: the file cannot be written.
    """
    write_text(render(record, path), path)


def write_text(text: str, path: Path) -> None:
    """Write a text.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
