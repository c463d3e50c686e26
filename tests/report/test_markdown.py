"""Markdown says what the other reports say, and names of a model stay text in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from markdown_it.token import Token

from bnfold.cli import cli
from bnfold.report import markdown
from tests.toys.html_records import RECORDS, fleet, rename

MODELS = Path(__file__).parents[2] / "models"


def record_of(command: str, *, is_hostile: bool = False) -> Any:
    """The record of a command as this version writes it."""
    record: Any = rename(RECORDS[command]()) if is_hostile else RECORDS[command]()
    record["command"] = command
    return record


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def words(text: str) -> str:
    """What a reader sees of it."""
    return "\n".join("".join(child.content for child in token.children or ()) for token in tokens(text))


def rows(text: str) -> Iterator[int]:
    """How many cells each row of a table has; 0 between tables."""
    count = 0
    for token in tokens(text):
        if token.type == "tr_open":
            count = 0
        elif token.type in ("td_open", "th_open"):
            count += 1
        elif token.type == "tr_close":
            yield count


@pytest.mark.parametrize("command", ["fuse", "inspect", "verify", "diff"])
def test_it_names_the_models_and_the_answer(command: str) -> None:
    record = record_of(command)
    title = markdown.render(record).splitlines()[0]
    assert title.startswith(("### ✅ bnfold ", "### ❌ bnfold ", "### ⚠️ bnfold "))
    assert f"bnfold {record['command']}" in title


@pytest.mark.parametrize("command", ["fuse", "inspect", "verify", "diff"])
def test_hostile_names_stay_text(command: str) -> None:
    """No name becomes markup, and none breaks a table: it would, with a bar or a line break in it."""
    plain, hostile = (markdown.render(record_of(command, is_hostile=hostile)) for hostile in (False, True))
    kinds = [{token.type for token in tokens(each)} for each in (plain, hostile)]
    assert kinds[0] == kinds[1]
    inner = [child.type for token in tokens(hostile) for child in token.children or ()]
    assert {"link_open", "image", "code_inline", "em_open"}.isdisjoint(inner)
    html = [token.content.strip() for token in tokens(hostile) if token.type == "html_block"]
    assert all(each.startswith(("<details><summary>", "</details>")) for each in html)
    inline = [
        child.content for token in tokens(hostile) for child in token.children or () if child.type == "html_inline"
    ]
    assert set(inline) <= {"<sub>", "</sub>"}
    assert set(rows(plain)) == set(rows(hostile))
    assert len(hostile.splitlines()) <= len(plain.splitlines())


def test_what_stays_is_counted_by_reason_with_what_helps() -> None:
    record = record_of("fuse")
    kept = [row for row in record["outcomes"] if row["status"] == "kept"]
    assert kept
    text = words(markdown.render(record))
    assert all(row["reason"] in text for row in kept)
    assert all(row["detail"].split("\n")[0][:40] in text for row in kept)


def test_a_long_table_ends_with_how_much_is_left_out() -> None:
    record = record_of("fuse")
    record["outcomes"] = [dict(record["outcomes"][0], batchnorm=f"bn{index}") for index in range(3000)]
    text = markdown.render(record)
    assert "... and 2800 more" in text
    assert len(text) < 1 << 16


def test_timings_are_tables_with_their_conclusions(tmp_path: Path) -> None:
    report, models = tmp_path / "r.md", [str(MODELS / f"digits_{name}.onnx") for name in ("cnn", "mlp")]
    quick = ["--level", "all", "--rounds", "32", "--warmup", "0", "--threads", "1"]
    done = CliRunner().invoke(cli, ["bench", *models, *quick, "--report", str(report)])
    assert done.exit_code == 0, done.output
    text = report.read_text(encoding="utf-8")
    assert text.startswith("### ✅ bnfold bench: ")
    assert "cpu at level all" in text
    assert set(rows(text)) == {7}
    conclusion = done.stdout.splitlines()[-1]
    assert conclusion.split(";")[0] in words(text)


def test_a_fleet_is_its_sums_and_what_did_not_end_well() -> None:
    record: Any = fleet(40)
    text = markdown.render(record)
    assert text.startswith("### ❌ bnfold fleet fuse: out")
    seen = words(text)
    assert "40 models" in seen
    assert all(failure["source"] in seen for failure in record["failures"])
