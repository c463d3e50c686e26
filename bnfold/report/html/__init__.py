"""Renders the record as one self-contained HTML page; needs the `report` extra."""

from __future__ import annotations

from importlib.util import find_spec

from bnfold.errors import MissingExtraError
from bnfold.report.documents import Record

LIBRARIES = ("jinja2", "matplotlib")


def require() -> None:
    """Check that everything a page needs is installed, without importing it.

    Raises:
        MissingExtraError: something is missing.
    """
    for library in LIBRARIES:
        if find_spec(library) is None:
            raise MissingExtraError(f"an HTML report needs {library}: pip install 'bnfold[report]'")


def render(record: Record) -> str:
    """A page that shows what a record of any command says, whether fresh or read from a JSON file.

    The same record gives the same bytes. A missing key leaves out its own part of the page, and nothing else.

    Raises:
        MissingExtraError: the `report` extra is not installed.
    """
    require()
    from bnfold.report.html import page

    return page.render(record)
