"""Writes the record to a file, whose ending chooses the form."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

from bnfold.errors import OutputError
from bnfold.report import html, junit, markdown
from bnfold.report.documents import AnyDocument


def to_json(record: AnyDocument) -> str:
    """The record as one JSON document."""
    return json.dumps(record, indent=2, ensure_ascii=False)


def _json(record: AnyDocument) -> str:
    return to_json(record) + "\n"


RENDERERS: dict[str, ModuleType] = {".html": html, ".xml": junit, ".md": markdown}
"""The module that renders a report, by the ending of its file name. Any other ending is JSON."""


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
    renderer = RENDERERS.get(path.suffix)
    return _json(record) if renderer is None else str(renderer.render(record))


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
