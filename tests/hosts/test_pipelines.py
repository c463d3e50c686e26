"""The hook for pre-commit and the action for GitHub: what their files say is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
HOOK = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))[0]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def hook(*models: str | Path) -> subprocess.CompletedProcess[str]:
    """Call the hook as pre-commit does: the entry, then the changed files."""
    script, *arguments = HOOK["entry"].split()
    assert script == "bnfold-inspect"
    code = "import sys; sys.argv[0] = 'bnfold-inspect'; from bnfold.cli.hook import inspect_each; inspect_each()"
    command = [sys.executable, "-c", code, *arguments, *map(str, models)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_hook_takes_many_files_and_fails_if_one_does(tmp_path: Path) -> None:
    folded = tmp_path / "folded.onnx"
    fuse = [sys.executable, "-m", "bnfold", "fuse", str(MODELS / "digits_cnn.onnx"), "-o", str(folded), "-q"]
    subprocess.run(fuse, capture_output=True, check=True)
    assert re.search(HOOK["files"], str(folded))
    assert hook(folded).returncode == 0
    done = hook(folded, MODELS / "digits_residual.onnx")
    assert done.returncode == 1
    assert done.stdout.index(f"{folded}:") < done.stdout.index(f"{MODELS / 'digits_residual.onnx'}:")
    assert hook(folded, tmp_path / "nothing.onnx").returncode == 3
    assert hook().returncode == 2


@pytest.mark.parametrize(("candidate", "code"), [("digits_cnn.onnx", 0), ("digits_mlp.onnx", 1), ("none.onnx", 3)])
def test_the_action_keeps_reports_and_writes_a_summary(candidate: str, code: int, tmp_path: Path) -> None:
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("name") == "Run"]
    values = {"command": "verify", "arguments": f"'{MODELS}/digits_cnn.onnx' '{MODELS}/{candidate}' --fast -q"}
    assert step["env"] == {name.upper(): f"${{{{ inputs.{name} }}}}" for name in ("command", "arguments", "reports")}
    folder = Path(sys.executable).parent
    environment: dict[str, Any] = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "COMMAND": values["command"],
        "ARGUMENTS": values["arguments"],
        "REPORTS": "reports of a job",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    made = {path.name for path in (tmp_path / "reports of a job").iterdir()}
    assert made == {f"bnfold.{ending}" for ending in ("html", "xml", "json", "md")}
    assert "bnfold verify" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_the_action_asks_for_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(ACTION["inputs"]["extras"]["default"].split(",")) <= set(extras)
    (dependency,) = HOOK["additional_dependencies"]
    assert set(re.findall(r"\w+", dependency)) <= set(extras)


@pytest.mark.parametrize(("shell", "word"), [("bash", "1"), ("zsh", "1"), ("fish", "ins")])
def test_shells_complete_commands(shell: str, word: str) -> None:
    code = "from bnfold.cli import main; import sys; sys.argv = ['bnfold']; main()"
    environment = {
        **os.environ,
        "_BNFOLD_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "bnfold ins",
        "COMP_CWORD": word,
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert "inspect" in done.stdout
