"""Every command of docs/pipelines.md, in its order, in one folder: it does what the page says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

from tests.docs import blocks
from tests.report.test_junit import insist_on_junit
from tests.toys.command_line import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")

COMMANDS = [step.source for step in blocks.steps(PAGE)] + re.findall(r"^ +- run: (bnfold .*)$", PAGE, re.MULTILINE)

FOLDABLE = "inspect model.onnx --fail-on-foldable"
"""The only one that is red: of a model that was not folded yet."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pipeline has at the start: two candidates that other tools could have made, one of them in float16."""
    place = tmp_path_factory.mktemp("pipeline")
    shutil.copy(ROOT / "models" / "digits_cnn.onnx", place / "model.onnx")
    with np.load(ROOT / "models" / "digits_test.npz") as data:
        np.savez(place / "inputs.npz", image=data["image"][:32])
    onnx.save(convert_float_to_float16(onnx.load(place / "model.onnx")), place / "half.onnx")
    made = run(place, "fuse", "model.onnx", "-o", "candidate.onnx", "-q")
    assert made.returncode == 0, made.stderr
    return place


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8
    assert {command.split()[1] for command in COMMANDS} == {"inspect", "fuse", "verify", "bench"}


def test_the_commands_of_the_page_one_after_the_other(folder: Path) -> None:
    for written in COMMANDS:
        command = written.replace("--seconds 60", "--seconds 5")
        if " fuse " in command:  # the second pipeline starts afresh
            for path in ("model.fused.onnx", "model.proof.json", "model.intoto.json"):
                (folder / path).unlink(missing_ok=True)
        done = run(folder, *shlex.split(command)[1:])
        if " bench " in command:  # what this machine does meanwhile decides; that it is an answer does not
            assert done.returncode in (0, 1), (command, done.stderr)
        else:
            assert done.returncode == (1 if FOLDABLE in command else 0), (command, done.stderr)
        report = folder / re.search(r"--report (\S+)", command)[1]  # type: ignore[index]
        insist_on_junit(report.read_text(encoding="utf-8"))
