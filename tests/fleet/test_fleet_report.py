"""The record of a fleet, its lines and its reports are what the schemas say, and tell of every model."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from bnfold.cli import cli
from bnfold.fleet.ledger import NAME
from bnfold.report.fleet_record import Rows
from tests.report.schemas import closed, insist_on_schema, schema
from tests.report.test_junit import insist_on_junit
from tests.toys.fleets import populate, small
from tests.toys.html_records import fleet


class Page(HTMLParser):
    """The links and the rows of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.rows = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        self.links += [value or "" for name, value in attrs if tag == "a" and name == "href"]


def test_the_reports_of_a_real_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jsonschema

    monkeypatch.chdir(tmp_path)
    populate(tmp_path / "m", 3)
    (tmp_path / "m/broken <&>.onnx").write_text("no model")
    done = CliRunner().invoke(
        cli, ["fleet", "fuse", "m", "-o", "o", "--workers", "1", "--report", "r.html", "--json"], catch_exceptions=False
    )
    assert done.exit_code == 3
    record = json.loads(done.stdout)
    insist_on_schema(record)
    assert record["counts"]["found"] == 4
    assert record["failures"][0]["source"] == "m/broken <&>.onnx"
    for line in (tmp_path / "o" / NAME).read_text().splitlines():
        jsonschema.validate(json.loads(line), closed(schema("ledger")), jsonschema.Draft202012Validator)
    page = Page((tmp_path / "r.html").read_text())
    opened = {link for link in page.links if not link.startswith(("#", "data:"))}
    assert len(opened) == 4
    assert {str(path.relative_to(tmp_path)) for path in (tmp_path / "r.models").iterdir()} == opened
    assert "a/m0.onnx" in "".join((tmp_path / link).read_text() for link in opened)

    onnx.save(small(9), tmp_path / "m/broken <&>.onnx")
    for report in ("r.html", "r.xml", "r.json"):
        done = CliRunner().invoke(cli, ["fleet", "fuse", "m", "-o", "o", "--workers", "1", "--report", report, "-q"])
        assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "r.models").iterdir())) == 4
    insist_on_junit((tmp_path / "r.xml").read_text())
    document = json.loads((tmp_path / "r.json").read_text())
    insist_on_schema(document)
    assert len(document["rows"]) == 4
    assert document["counts"] | {"unchanged": 4} == document["counts"]


def test_a_page_names_every_reason_and_every_failure() -> None:
    from bnfold.report import html

    record = fleet(30)
    text = html.render(record)
    page = Page(text)
    for row in record["rows"]:
        assert row["source"].partition("/")[2] in text.replace("<wbr>", "")
    assert len([link for link in page.links if link.startswith("fleet.models/")]) >= 30
    for reason, count in record["reasons"].items():
        assert re.search(rf"{reason}.*?{count}", text.replace("<wbr>", ""), re.DOTALL)


def line(number: int, code: int) -> dict[str, Any]:
    record = {"command": "inspect", "batchnorms": {"found": 2, "folded": 2, "kept": 0}}
    return {
        "source": f"m{number}",
        "output": None,
        "exit_code": code,
        "record": record,
        "bytes": 1,
        "seconds": 0.1,
        "peak_bytes": 1,
        "worker": "w",
    }


def test_a_report_of_too_many_models_lists_those_that_failed() -> None:
    rows = Rows(limit=10)
    for number in range(100):
        rows.add(line(number, int(number % 20 == 19)))
    document = rows.complete({})  # type: ignore[typeddict-item]
    assert [row["source"] for row in document["rows"][:5]] == ["m19", "m39", "m59", "m79", "m99"]
    assert (len(document["rows"]), document["omitted"]) == (10, 90)
