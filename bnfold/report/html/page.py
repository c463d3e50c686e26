"""The page: one file that fetches nothing, and whose only script is its own."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from bnfold.report.documents import Record
from bnfold.report.html.sections import sections
from bnfold.report.html.summary import summarize
from bnfold.report.html.text import breakable, file_names, shown

TEMPLATES = "templates"


def render(record: Record) -> str:
    """The whole page."""
    script = _asset("page.js")
    return _template().render(
        command=shown(record.get("command", "report"), 40),
        names=[shown(name, 100) for name in file_names(_subject(record)).values()],
        paths=[shown(path, 300) for path in _subject(record)],
        summary=summarize(record),
        sections=list(sections(record)),
        style=_asset("page.css"),
        script=script,
        policy=_policy(script),
        data=_embedded(record),
        schema=shown(record.get("schema", "")),
    )


@cache
def _template() -> Template:
    """The template, which takes longer to read than to fill."""
    environment = Environment(
        loader=PackageLoader("bnfold.report.html", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment.get_template("page.html")


@cache
def _asset(name: str) -> Markup:
    """A file of this package, which is trusted and so not escaped."""
    return Markup(files("bnfold.report.html").joinpath(TEMPLATES, name).read_text(encoding="utf-8"))


def _policy(script: str) -> str:
    """A content security policy: nothing is fetched, and no script but the page's own runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _embedded(record: Record) -> Markup:
    """The record as JSON that no HTML parser mistakes for markup."""
    text = json.dumps(record, ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _subject(record: Record) -> list[str]:
    """The files that the record is about."""
    named = [record.get(key) for key in ("model", "output", "reference", "candidate", "out")]
    entries = record.get("entries") or []
    return list(
        dict.fromkeys(str(path) for path in [*named, *(entry.get("model") for entry in entries)] if path is not None)
    )
