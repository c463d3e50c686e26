"""Remarks: one line for each BatchNorm, merge and warning of a record, which a schema describes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from bnfold.cli import cli
from bnfold.report import remarks
from tests.report.schemas import closed, schema
from tests.toys.html_records import RECORDS
from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two BatchNorms: one that folds, and one behind a Softmax."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        norm("c", "n", "p_"),
        node("Softmax", "n", "s", axis=1),
        norm("s", "y", "q_"),
    ]
    constants = {"w": random(8, 3, 3, 3, dtype=FLOAT), **statistics(8, "p_"), **statistics(8, "q_")}
    held = {name: np.asarray(array).astype(FLOAT) for name, array in constants.items()}
    onnx.save(model(nodes, held, ("N", 3, 6, 6), dtype=FLOAT), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("command", ["fuse", "inspect"])
def test_there_is_a_line_for_each_outcome(command: str, source: Path, tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "f.onnx")] if command == "fuse" else []
    places = ["--remarks", str(tmp_path / "r.jsonl"), "--json"]
    done = CliRunner().invoke(cli, [command, str(source), *output, *places])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        jsonschema.validate(line, closed(schema("remark")), jsonschema.Draft202012Validator)
    found = [line for line in lines if line["is_batchnorm"] and line["kind"] != "analysis"]
    assert [(line["node"], line["kind"]) for line in found] == [
        (row["batchnorm"], "passed" if row["status"] == "folded" else "missed") for row in record["outcomes"]
    ]
    missed = next(line for line in found if line["kind"] == "missed")
    assert (missed["reason"], missed["at"]) == ("not-linear", record["outcomes"][1]["at"])
    assert [line["cost"] for line in found] == [{"parameters": 32, "elements": 8 * 36}] * 2


@pytest.mark.parametrize("command", ["fuse", "inspect"])
def test_every_warning_and_merge_has_a_line(command: str) -> None:
    record = RECORDS[command]()
    lines = [json.loads(line) for line in remarks.render(record).splitlines()]
    assert sum(line["kind"] == "analysis" for line in lines) == len(record["warnings"])
    assert sum(line["name"] == "merge" for line in lines) == len(record["merges"])
    assert len(lines) == sum(len(record[key]) for key in ("outcomes", "affine_outcomes", "merges", "warnings"))


def test_no_remarks_are_left_where_nothing_is_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "f.onnx").write_text("there already")
    command = ["fuse", str(source), "-o", str(tmp_path / "f.onnx"), "--remarks", str(tmp_path / "r.jsonl")]
    assert CliRunner().invoke(cli, command).exit_code != 0
    assert not (tmp_path / "r.jsonl").exists()
