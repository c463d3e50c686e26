"""The hook for pre-commit and the action for GitHub: what their files say is run as it stands there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
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


@pytest.mark.skipif(importlib.util.find_spec("check_jsonschema") is None, reason="needs check-jsonschema")
def test_the_action_is_one_by_the_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions"]
    done = subprocess.run([*command, ROOT / "action.yml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def has_index() -> bool:
    """Whether the index of Python packages can be reached."""
    try:
        socket.create_connection(("pypi.org", 443), timeout=3).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pre_commit") is None, reason="needs pre-commit")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
@pytest.mark.skipif(not has_index(), reason="needs an index to install the hook from")
def test_pre_commit_installs_the_hook_and_stops_a_model_that_could_fold(tmp_path: Path) -> None:
    def run(*command: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["PRE_COMMIT_HOME"] = str(tmp_path / "home")
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    assert run("git", "clone", "--quiet", f"file://{ROOT}", "hooks").returncode == 0
    assert run("git", "init", "--quiet", "mine").returncode == 0
    mine = tmp_path / "mine"
    shutil.copy(MODELS / "digits_cnn.onnx", mine / "model.onnx")
    assert run("git", "add", "model.onnx", cwd=mine).returncode == 0
    hook = [sys.executable, "-m", "pre_commit", "try-repo", f"file://{tmp_path / 'hooks'}", "bnfold-inspect"]
    done = run(*hook, cwd=mine)
    assert done.returncode == 1, done.stdout
    assert "4 BatchNorms found: 4 would fold, 0 kept" in done.stdout


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    command = tmp_path / "bnfold"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bnfold "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    script = """
        eval "$(_BNFOLD_COMPLETE=bash_source bnfold)"
        complete -p bnfold
        COMP_WORDS=(bnfold ins) COMP_CWORD=1; _bnfold_completion bnfold; echo "${COMPREPLY[@]}"
        COMP_WORDS=(bnfold fuse --pro) COMP_CWORD=2 COMPREPLY=(); _bnfold_completion bnfold; echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines()[1:] == ["inspect", "--proof"], done.stderr


@pytest.mark.parametrize(("shell", "word"), [("bash", "1"), ("zsh", "1"), ("fish", "ins")])
def test_shells_complete_commands(shell: str, word: str) -> None:
    code = "from bnfold.cli import main; import sys; sys.argv = ['bnfold']; main()"
    words = {"COMP_WORDS": "bnfold ins", "COMP_CWORD": word}
    environment = {**os.environ, "_BNFOLD_COMPLETE": f"{shell}_complete", **words}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert "inspect" in done.stdout
