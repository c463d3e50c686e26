"""JUnit XML as the tools read that show it: Jenkins' schema, in its own words, and red where the exit code is."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from bnfold.cli.commands import cli
from tests.toys.onnx_graphs import model, node, norm, random, statistics

SUITE = {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}
CASE = {"name", "classname", "time"}
WITHIN = {
    "testsuite": {"properties", "testcase"},
    "properties": {"property"},
    "testcase": {"skipped", "error", "failure", "system-out"},
}
"""What may be inside what."""

FLOAT = np.float32

NAME = "norm\x1b[31m\x00<&>"
"""A node's name that neither a terminal nor XML can hold."""


def saved(path: Path, *, name: str = "norm", is_other: bool = False) -> Path:
    """A model with a BatchNorm that folds, and one that does not."""
    nodes = [node("Conv", "x w", "c"), norm("c", "b"), node("Sigmoid", "b", "s"), norm("s", "y", "last_")]
    nodes[1].name = name
    weights = {
        "w": random(4, 3, 3, 3, dtype=FLOAT),
        **statistics(4, dtype=FLOAT),
        **statistics(4, "last_", dtype=FLOAT),
    }
    if is_other:
        weights["beta"] = weights["beta"] + 1
    onnx.save(model(nodes, weights, (1, 3, 5, 5), dtype=FLOAT), path)
    return path


def insist_on_junit(text: str) -> ElementTree.Element:
    """A suite with the attributes and elements that the schema allows, and counts that are right."""
    suite = ElementTree.fromstring(text)
    assert suite.tag == "testsuite"
    assert {"name", "tests", "failures", "errors"} <= set(suite.attrib) <= SUITE
    for each in suite.iter():
        assert {inner.tag for inner in each} <= WITHIN.get(each.tag, set())
    cases = suite.findall("testcase")
    assert all({"name", "classname"} <= set(case.attrib) <= CASE for case in cases)
    assert int(suite.attrib["tests"]) == len(cases)
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(suite.attrib[attribute]) == sum(case.find(kind) is not None for case in cases)
    return suite


def run(folder: Path, *arguments: str | Path) -> tuple[Result, ElementTree.Element]:
    """A command with a report."""
    report = folder / "report.xml"
    result = CliRunner().invoke(cli, [*map(str, arguments), "--report", str(report)])
    return result, insist_on_junit(report.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("fuse one.onnx -o out.onnx", 0),
        ("fuse one.onnx -o one.onnx", 2),
        ("fuse nowhere.onnx -o out.onnx", 3),
        ("inspect one.onnx", 0),
        ("inspect one.onnx --fail-on-foldable", 1),
        ("verify one.onnx one.onnx", 0),
        ("verify one.onnx other.onnx", 1),
        ("verify one.onnx nowhere.onnx", 3),
        ("diff one.onnx one.onnx --exit-code", 0),
        ("diff one.onnx other.onnx", 0),
        ("diff one.onnx other.onnx --exit-code", 1),
        ("diff one.onnx nowhere.onnx", 3),
    ],
)
def test_a_report_is_red_where_the_exit_code_is(
    command: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(Path("one.onnx"))
    saved(Path("other.onnx"), is_other=True)
    result, suite = run(tmp_path, *command.split())
    given = getattr(result.exception, "exit_code", result.exit_code)
    assert given == code, result.output
    assert (int(suite.attrib["failures"]) + int(suite.attrib["errors"]) > 0) == (code != 0)


@pytest.mark.parametrize("command", ["inspect", "fuse"])
def test_a_name_that_xml_cannot_hold_is_escaped(command: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "one.onnx", name=NAME)
    _, suite = run(tmp_path, command, source, *(["-o", tmp_path / "out.onnx"] if command == "fuse" else []))
    assert any(case.attrib["name"].startswith(r"norm\x1b[31m\x00<&>") for case in suite.findall("testcase"))


def test_a_report_says_where_it_comes_from(tmp_path: Path) -> None:
    _, suite = run(tmp_path, "inspect", saved(tmp_path / "one.onnx"))
    named = {each.attrib["name"]: each.attrib["value"] for each in suite.iter("property")}
    assert len(named[f"sha256 of {tmp_path / 'one.onnx'}"]) == 64
    assert {"version of bnfold", "version of onnx", "command"} <= set(named)
    assert suite.attrib["timestamp"]
