"""What running a model does to the machine beside running it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DIGITS = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"


COMMANDS = {
    "verify": [DIGITS, DIGITS, "--provider", "cpu"],
    "bench": [DIGITS, DIGITS, "--rounds", "32", "--level", "all"],
    "fuse": [DIGITS, "-o", "out.onnx", "--verify", "full"],
    "inspect": [DIGITS, "--inputs", DIGITS.with_name("digits_test.npz")],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_runtime_leaves_nothing_behind(
    command: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It would write a device id and a database under the user's cache folder."""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")
    }
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", command, *COMMANDS[command]],
        env={**clean, "HOME": str(tmp_path)},
        cwd=tmp_path_factory.mktemp("work"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert list(tmp_path.rglob("*")) == []
