"""Without a GPU the check of GPUs says so, and neither falls back nor writes anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "gpu_check.py"


def check(output: Path, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--output", str(output), *arguments]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a driver")
def test_without_a_driver_it_says_so(tmp_path: Path) -> None:
    done = check(tmp_path / "gpu.md", os.environ["PATH"])
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "gpu_check: no NVIDIA driver is installed here (nvidia-smi is missing)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("says", "engine", "message"),
    [
        ("echo 'No devices were found'; exit 6", "torch", "the driver finds no GPU (No devices were found)"),
        ("exit 0", "torch", "the driver finds no GPU (nvidia-smi lists none)"),
        ("echo 'NVIDIA X, 1.2, 3 MiB'", "torch", "finds no CUDA device"),
        ("echo 'NVIDIA X, 1.2, 3 MiB'", "onnxruntime", "has no CUDAExecutionProvider"),
    ],
)
def test_a_driver_alone_is_not_enough(says: str, engine: str, message: str, tmp_path: Path) -> None:
    onnxruntime, torch = pytest.importorskip("onnxruntime"), pytest.importorskip("torch")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() or torch.cuda.is_available():
        pytest.skip("there is a GPU")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{says}\n")
    tool.chmod(0o755)
    done = check(tmp_path / "gpu.md", f"{tool.parent}{os.pathsep}{os.environ['PATH']}", "--engine", engine)
    assert (done.returncode, done.stdout) == (3, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "gpu.md").exists()
