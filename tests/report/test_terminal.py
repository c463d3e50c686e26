"""Lines of the terminal are sentences, for one thing as for several."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from bnfold import api
from bnfold.errors import plural
from bnfold.report import terminal
from bnfold.report.record import record_file
from bnfold.report.terminal import summary
from tests.toys.html_records import RECORDS
from tests.toys.onnx_graphs import model, node, norm, random, statistics


def row(length: int) -> onnx.ModelProto:
    """Convolutions, each with a BatchNorm behind it and a Sigmoid behind that."""
    nodes = []
    for index in range(length):
        nodes += [node("Conv", f"x{index or ''} w", f"c{index}"), norm(f"c{index}", f"n{index}")]
        nodes.append(node("Sigmoid", f"n{index}", f"x{index + 1}" if index < length - 1 else "y"))
    return model(nodes, {"w": random(3, 3, 1, 1), **statistics(3)}, (1, 3, 2, 2))


@pytest.mark.parametrize(("length", "line"), [(1, "1 BatchNorm found"), (2, "2 BatchNorms found")])
def test_the_summary_counts_in_english(length: int, line: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(row(length).SerializeToString())
    first, *_ = summary(record_file("inspect", api.inspect_file(tmp_path / "m.onnx")))
    assert first.startswith(f"{line}: ")


@pytest.mark.parametrize(("number", "words"), [(0, "0 nodes"), (1, "1 node"), (2, "2 nodes"), (1234, "1,234 nodes")])
def test_plural(number: int, words: str) -> None:
    assert plural(number, "node") == words


def test_thousands_of_batchnorms_are_a_few_lines_and_all_of_them_on_demand() -> None:
    record: Any = RECORDS["fuse"]()
    record["outcomes"] = [
        {**record["outcomes"][index % 6], "batchnorm": f"/model/stage{index % 4}/a/long/path/of/modules/bn_{index}"}
        for index in range(3000)
    ]
    record["merges"] = record["merges"] * 400
    few, all_of_them = (printed(record, verbose=verbose) for verbose in (False, True))
    assert len(few) <= 24
    groups = [line for line in few if line.startswith(("folded  500  ", "kept  500  "))]
    assert len(groups) == 6
    assert any("second-use: its output is read elsewhere" in line and "/bn_4, " in line for line in groups)
    assert len(all_of_them) > 3400


def printed(record: Any, **options: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    terminal.show(record, console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()
