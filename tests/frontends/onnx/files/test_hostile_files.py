"""A bad file is one line and exit code 3, no traceback, no crash, nothing written or changed; an odd one works."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import onnx
import pytest

import bnfold
from tests.toys import hostile
from tests.toys.command_line import run


def state(folder: Path) -> dict[str, bytes | None]:
    """What a folder holds; of a file as long as a disk only that it is there."""
    return {
        path.name: path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 24 else None
        for path in folder.iterdir()
    }


def test_there_are_many_cases() -> None:
    assert len(hostile.CASES) >= 60


@pytest.mark.parametrize("case", hostile.CASES)
def test_a_bad_file_is_one_line(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write, expected = hostile.CASES[case]
    path = write(folder)
    before = state(folder)
    good = hostile.save(hostile.good(), tmp_path)
    out = folder / "out.onnx"
    for command in (["fuse", path, "-o", out], ["fuse", path, "-o", out, "--no-verify"], ["inspect", path]):
        assert re.search(expected, error_of(run(tmp_path, *command), path))
    for command in (["verify", path, good], ["verify", good, path]):
        if case in hostile.SORTED:
            assert run(tmp_path, *command).returncode == 0
            continue
        error = error_of(run(tmp_path, *command), path)
        assert case in hostile.LABORIOUS or re.search(expected, error)  # the runtime has its own words for those
    assert state(folder) == before


def error_of(done: subprocess.CompletedProcess[str], path: Path) -> str:
    """The one line of a command that failed because of a file."""
    assert (done.returncode, done.stdout) == (3, "")
    error = done.stderr
    assert error.count("\n") == 1
    assert len(error) < 700
    assert "Traceback" not in error
    assert error.rstrip("\n").isprintable()
    assert error.startswith(f"bnfold: {path}: ")
    return error


@pytest.mark.parametrize("case", hostile.EXPANDING)
def test_a_constant_that_cannot_be_made_is_not_known(case: str, tmp_path: Path) -> None:
    """Nobody misses it but the runtime, where one runs the model."""
    write, expected = hostile.EXPANDING[case]
    path, out = write(tmp_path), tmp_path / "out.onnx"
    (tmp_path / "other").mkdir()
    good = hostile.save(hostile.good(), tmp_path / "other")
    for command in (["verify", path, good], ["verify", good, path]):
        error_of(run(tmp_path, *command), path)
    for options in (["--no-verify"], ["--verify", "proof", "--overwrite"]):
        done = run(tmp_path, "fuse", path, "-o", out, "--json", *options)
        assert (done.returncode, done.stderr) == (0, "")
        (outcome,) = json.loads(done.stdout)["outcomes"]
        assert outcome["reason"] == "not-constant"
        assert re.search(expected, outcome["detail"])


@pytest.mark.parametrize("case", hostile.FIT)
def test_an_odd_file_is_folded_as_far_as_it_goes(case: str, tmp_path: Path) -> None:
    write, expected = hostile.FIT[case]
    path = write(tmp_path)
    done = run(tmp_path, "fuse", path, "-o", "out.onnx", "--no-verify", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record["outcomes"][0].get("reason") == expected
    operators = [each.op_type for each in onnx.load(tmp_path / "out.onnx").graph.node]
    assert operators.count("BatchNormalization") == record["batchnorms"]["kept"]
    assert len(record["outcomes"]) == sum(record["batchnorms"][each] for each in ("folded", "kept"))


def test_what_the_runtime_does_not_know_is_proved_and_compared_by_nobody(tmp_path: Path) -> None:
    path = hostile.FIT["unknown-operator"][0](tmp_path)
    done = run(tmp_path, "fuse", path, "-o", "out.onnx", "--verify", "full")
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(rf"bnfold: {path}: onnxruntime cannot load it .*com.example.*\n", done.stderr)
    assert not (tmp_path / "out.onnx").exists()
    done = run(tmp_path, "fuse", path, "-o", "out.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("2 folds proved .*not run: onnxruntime does not know the operator com.example", done.stdout)


def test_any_truncation_is_an_error_or_a_model(tmp_path: Path) -> None:
    whole = hostile.good().SerializeToString()
    loaded = 0
    for size in range(len(whole)):
        (tmp_path / "m.onnx").write_bytes(whole[:size])
        try:
            loaded += len(bnfold.plan(tmp_path / "m.onnx"))
        except bnfold.BnfoldError:
            continue
    assert loaded <= 1  # a message without its last field can be whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-nodes", "1"], "more than 1 nodes"),
        (["--max-bytes", "60"], "declare more than 60 bytes"),
        (["--max-depth", "2"], "nested more than 2 deep"),
    ],
)
def test_limits_are_options(options: list[str], message: str, tmp_path: Path) -> None:
    proto = hostile.good()
    if "--max-depth" in options:
        hostile.nest(proto, 3)
    path = hostile.save(proto, tmp_path)
    done = run(tmp_path, "inspect", path, *options)
    assert done.returncode == 3
    assert message in done.stderr
    assert run(tmp_path, "inspect", path).returncode == 0
