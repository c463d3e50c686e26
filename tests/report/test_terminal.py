"""Lines of the terminal are sentences, for one thing as for several."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from bnfold import api
from bnfold.errors import plural
from bnfold.report.record import record_file
from bnfold.report.terminal import summary
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
