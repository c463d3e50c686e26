"""Golden command lines: each file in `golden/` is a command with the exit code and the output that it must have.

A file reads like a terminal: ``$ bnfold ...``, then what it prints (standard error included), then ``exit N`` and
``wrote NAME`` for each new file. Run with UPDATE_GOLDEN=1 to write what the commands say now; read the difference.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
CASES = sorted((HERE / "golden").glob("*.txt"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, inputs, and files that are no models."""
    for name in ("digits_cnn.onnx", "digits_mlp.onnx", "digits_test.npz"):
        shutil.copy(MODELS / name, tmp_path)
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "text.onnx").write_text("This is not a model.\n")
    (tmp_path / "old.onnx").write_text("precious")
    (tmp_path / "folder.onnx").mkdir()
    return tmp_path


def transcript(command: str, folder: Path) -> str:
    """What a command prints, how it ends and what it leaves, without what changes from run to run."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = [sys.executable, "-m", "bnfold.cli", *shlex.split(command)[1:]]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    lines = [f"$ {command}", *(done.stdout + done.stderr).splitlines(), f"exit {done.returncode}"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and before.get(path) != path.read_bytes():
            lines.append(f"wrote {path.name}")
    assert all(path.exists() for path in before)
    text = "\n".join(lines) + "\n"
    text = re.sub(r"\d+\.\d+ s\b", "N s", text)
    text = re.sub(r'"(seconds|error|budget|excess|snr_db|ulp|argmax_margin)": [\d.e+-]+', r'"\1": N', text)
    text = re.sub(r'"test": "[^"]*"', '"test": "T"', text)
    text = re.sub(r"\b\d+ dB", "N dB", text)
    text = re.sub(r"[\d.e+]+ times what rounding explains \([^)]*\)", "N times what rounding explains (T)", text)
    return re.sub(r"\d\.\d+e-\d\d\b|(?<=: )\d\.\d+e-\d\d\b", "N", text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_command_line(case: Path, folder: Path) -> None:
    expected = case.read_text()
    command = expected.splitlines()[0].removeprefix("$ ")
    actual = transcript(command, folder)
    if os.environ.get("UPDATE_GOLDEN"):
        case.write_text(actual)
    assert actual == expected


def test_there_are_cases() -> None:
    assert len(CASES) >= 15
