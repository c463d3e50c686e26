"""`fuse --bench`: the result beside its original, in every record."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import onnx
from click.testing import CliRunner, Result

from bnfold.cli.commands import cli
from tests.report.schemas import insist_on_schema
from tests.toys.onnx_graphs import model, node, norm, random, statistics


def saved(path: Path, dtype: npt.DTypeLike = np.float32) -> Path:
    constants = {"w": random(4, 3, 3, 3, dtype=dtype), **statistics(4, dtype=dtype)}
    onnx.save(model([node("Conv", "x w", "c"), norm("c", "y")], constants, (1, 3, 9, 9), dtype=dtype), path)
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def test_timings_are_in_every_record(tmp_path: Path) -> None:
    reports = {ending: tmp_path / f"report.{ending}" for ending in ("json", "xml", "html")}
    asked = [argument for path in reports.values() for argument in ("--report", path)]
    done = run("fuse", saved(tmp_path / "m.onnx"), "-o", tmp_path / "out.onnx", "--bench", "--json", *asked)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    insist_on_schema(record)
    assert [entry["model"] for entry in record["bench"]["entries"]] == [
        str(tmp_path / n) for n in ("m.onnx", "out.onnx")
    ]
    texts = {ending: path.read_text(encoding="utf-8") for ending, path in reports.items()}
    assert json.loads(texts["json"])["bench"]["entries"]
    cases = ElementTree.fromstring(texts["xml"]).iter("testcase")
    assert "bench/cpu/all" in {case.attrib["classname"] for case in cases}
    assert 'id="latency"' in texts["html"]


def test_what_cannot_run_is_not_timed_and_written_all_the_same(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    done = run("fuse", saved(tmp_path / "m.onnx", np.float64), "-o", output, "--bench", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    insist_on_schema(record)
    assert record["bench"] is None
    assert "not timed: " in done.stderr
    assert output.exists()


def test_a_result_that_replaces_its_original_has_nothing_beside_it(tmp_path: Path) -> None:
    source = saved(tmp_path / "m.onnx")
    before = source.read_bytes()
    done = run("fuse", source, "-o", source, "--overwrite", "--bench")
    assert (done.exit_code, source.read_bytes()) == (2, before)
