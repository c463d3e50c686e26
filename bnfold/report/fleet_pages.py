"""The pages of the models of a fleet, in a folder beside the page of the fleet."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import quote

from bnfold.errors import OutputError
from bnfold.fleet.task import Line
from bnfold.report import html

NAME_LENGTH = 80
"""How much of a model's name is in the name of its page."""


class Pages:
    """The folder of pages, ``REPORT.models`` beside ``REPORT.html``. A page that is there already is not made again."""

    def __init__(self, report: Path) -> None:
        self._folder = report.with_name(f"{report.stem}.models")
        self._made: set[str] = set()

    def close(self) -> None:
        """Remove the pages of models as they were before."""
        for path in self._folder.glob("*.html"):
            if path.name not in self._made:
                path.unlink()

    def add(self, line: Line) -> str:
        """Make the page of a model; gives where it is, relative to the report.

        Raises:
            OutputError: it cannot be written.
        """
        digest = hashlib.sha256(json.dumps([line["source"], line["output"], line["finished"]]).encode()).hexdigest()
        name = "".join(each if each.isalnum() or each in "-_." else "_" for each in line["relative"])[-NAME_LENGTH:]
        path = self._folder / f"{name}.{digest[:12]}.html"
        self._made.add(path.name)
        try:
            if not path.exists():
                self._folder.mkdir(exist_ok=True)
                path.write_text(html.render(line["record"]), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        return f"{quote(self._folder.name)}/{quote(path.name)}"
