"""How a command ends that is not left alone: interrupted, with a reader that has gone, or with nowhere to write to."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"
BNFOLD = [sys.executable, "-m", "bnfold"]


def test_an_interrupted_command_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    os.mkfifo(inputs)
    command = [
        *BNFOLD,
        "fuse",
        str(MODELS / "digits_cnn.onnx"),
        "-o",
        "out.onnx",
        "--report",
        "r.json",
        "--inputs",
        inputs,
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    with inputs.open("wb"):  # the command waits for what is written here
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (130, "bnfold: interrupted")
    assert list(tmp_path.iterdir()) == [inputs]


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(("asked", "code"), [([], 0), (["--fail-on-foldable"], 1)])
def test_a_reader_that_has_gone_changes_no_exit_code(form: list[str], asked: list[str], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*BNFOLD, "inspect", str(MODELS / "digits_cnn.onnx"), *asked, *form]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is full")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_standard_output_that_is_full_is_one_line(form: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*BNFOLD, "inspect", str(MODELS / "digits_cnn.onnx"), *form]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "bnfold: standard output: No space left on device\n")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_a_quiet_command_shows_progress_on_a_terminal_and_colours_unless_told_not_to(
    variables: dict[str, str], tmp_path: Path
) -> None:
    mine, theirs = pty.openpty()
    command = [*BNFOLD, "fuse", str(MODELS / "digits_cnn.onnx"), "-o", "out.onnx", "--verify", "full", "--fast", "-q"]
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80", **variables}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        shown = b""
        while part := _read(mine):
            shown += part
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0
    assert "verify" in shown.decode()
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", shown.decode())) is not bool(variables)
    assert said.startswith(str(MODELS / "digits_cnn.onnx"))
    assert "\x1b" not in said


def _read(terminal: int) -> bytes:
    """What a process writes to a terminal; nothing once it has closed it, which Linux tells as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
