"""The page in Qt's Chromium: needs no browser, only bnfold[page]."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bnfold.report import html
from tests.toys.html_records import RECORDS, fuse

WEB_ENGINE = [sys.executable, "-c", "import PyQt6.QtWebEngineWidgets"]

pytestmark = pytest.mark.skipif(
    subprocess.run(WEB_ENGINE, capture_output=True, check=False).returncode != 0, reason="needs bnfold[page]"
)


def ask(page: Path, script: str, width: int = 1400) -> Any:
    """What a script says on a page."""
    code = f"JSON.stringify((() => {{ {script} }})())"
    command = [sys.executable, str(Path(__file__).with_name("qt_page.py")), str(width), str(page), code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """The page of a model with 3,000 BatchNorms of long names."""
    record = fuse()
    record["outcomes"] = [
        {
            **record["outcomes"][index % 6],
            "batchnorm": f"/model/backbone/stages.{index % 4}/a/long/path/of/modules/bn_{index}/BatchNormalization",
            "cost": {"parameters": 256, "elements": index * 7919 % 100_000},
        }
        for index in range(3000)
    ]
    path = tmp_path / "large.html"
    path.write_text(html.render(record), encoding="utf-8")
    return path


SIDEWAYS = """
    return [document.documentElement, ...document.querySelectorAll('.scroll')]
        .filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.getAttribute('aria-label'));
"""


@pytest.mark.parametrize("command", RECORDS)
def test_no_table_scrolls_sideways_at_1400_pixels(command: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(html.render(RECORDS[command]()), encoding="utf-8")
    assert ask(path, SIDEWAYS) == []


def test_thousands_of_batchnorms_fit_sort_and_filter(large: Path) -> None:
    assert ask(large, SIDEWAYS) == []
    said = ask(
        large,
        """
        const section = document.querySelector('#batchnorms'), table = section.querySelector('table');
        const column = (index) => [...table.tBodies[0].rows].filter((row) => !row.hidden)
            .map((row) => row.cells[index].textContent.trim());
        const statuses = column(1), button = [...table.querySelectorAll('th button')].at(-1);
        const at_first = column(5);
        button.click();
        const ascending = column(5);
        button.click();
        const descending = column(5), field = section.querySelector('input');
        field.value = 'second-use';
        field.dispatchEvent(new Event('input'));
        return {statuses, at_first, ascending, descending, left: section.querySelector('output').textContent};
        """,
    )
    assert said["statuses"] == ["kept"] * 1500 + ["folded"] * 1500
    numbers = {key: [_number(text) for text in said[key]] for key in ("at_first", "ascending", "descending")}
    known = [number for number in numbers["ascending"] if number is not None]
    assert known == sorted(known)
    assert [number for number in numbers["descending"] if number is not None] == known[::-1]
    kept = [number or 0 for number in numbers["at_first"][:1500]]
    assert kept == sorted(kept, reverse=True)
    assert said["left"] == "500 of 3000"


def test_a_picture_of_a_graph_enlarges(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(html.render(fuse()), encoding="utf-8")
    said = ask(
        path,
        """
        const before = document.querySelector('svg.graph').getBoundingClientRect().width;
        document.querySelector('.zoom').click();
        const dialog = document.querySelector('dialog'), enlarged = dialog.querySelector('svg.graph');
        const words = enlarged.querySelector('title').textContent, after = enlarged.getBoundingClientRect().width;
        const opened = dialog.open, first = document.querySelector('svg.graph title').textContent;
        dialog.querySelector('button').click();
        return {ratio: after / before, is_same: words === first, opened, closed: !dialog.open};
        """,
    )
    assert said["ratio"] > 1.5
    assert (said["is_same"], said["opened"], said["closed"]) == (True, True, True)


def _number(text: str) -> int | None:
    return int(text.replace(",", "")) if text[0].isdigit() else None
