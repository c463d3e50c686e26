"""Golden command lines: each file in `golden/` is a command with the exit code and the output that it must have.

A file reads like a terminal: ``$ bnfold ...``, then what it prints (standard error included), then ``exit N`` and
``wrote NAME`` for each new file. Run with UPDATE_GOLDEN=1 to write what the commands say now; read the difference.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

import bnfold
from tests.toys.command_line import run
from tests.toys.onnx_graphs import model, node, norm, random, statistics

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "models"
CASES = sorted((HERE / "golden").glob("*.txt"))


def branches() -> onnx.ModelProto:
    """A block as in RepVGG: 3 x 3, 1 x 1 and identity, each with its BatchNorm, added up."""
    nodes = [
        node("Conv", "x large", "a", pads=[1, 1, 1, 1]),
        norm("a", "b", "large_"),
        node("Conv", "x small", "c"),
        norm("c", "d", "small_"),
        norm("x", "e", "skip_"),
        node("Add", "b d", "f"),
        node("Add", "f e", "g"),
        node("Relu", "g", "y"),
    ]
    weights = {"large": random(4, 4, 3, 3, dtype=np.float32), "small": random(4, 4, 1, 1, dtype=np.float32)}
    for name in ("large_", "small_", "skip_"):
        weights |= statistics(4, name, dtype=np.float32)
    return model(nodes, weights, (1, 4, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved program: a BatchNorm in front of a convolution, one behind it, and one behind a Relu."""
    torch = pytest.importorskip("torch")
    norms = [torch.nn.BatchNorm2d(channels) for channels in (3, 4, 4)]
    for batchnorm in norms:
        channel = torch.arange(batchnorm.num_features)
        batchnorm.running_mean.copy_(channel / 8 - 0.25)
        batchnorm.running_var.copy_(channel / 4 + 0.5)
    before, between, after = norms
    network = torch.nn.Sequential(before, torch.nn.Conv2d(3, 4, 3), between, torch.nn.ReLU(), after)
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    with warnings.catch_warnings(action="ignore"):  # the exporter's, about its own code
        torch.export.save(torch.export.export(network.eval(), (torch.zeros(1, 3, 8, 8),)), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, inputs, and files that are no models."""
    place = tmp_path_factory.mktemp("files")
    for name in ("digits_cnn.onnx", "digits_mlp.onnx", "digits_test.npz"):
        shutil.copy(MODELS / name, place)
    twin = onnx.load(MODELS / "digits_cnn.onnx")
    twin.doc_string = "the same, in other words"
    onnx.save(twin, place / "twin.onnx")
    onnx.save(convert_float_to_float16(onnx.load(MODELS / "digits_cnn.onnx")), place / "half.onnx")
    onnx.save(branches(), place / "branches.onnx")
    onnx.save(bnfold.fuse(branches()), place / "branches.fused.onnx")
    onnx.save(bnfold.fuse(onnx.load(MODELS / "digits_cnn.onnx")), place / "fused.onnx")
    np.savez(place / "nothing.npz", image=np.zeros((0, 1, 8, 8), np.float32))
    (place / "empty.onnx").touch()
    (place / "text.onnx").write_text("This is not a model.\n")
    (place / "old.onnx").write_text("precious")
    (place / "folder.onnx").mkdir()
    with zipfile.ZipFile(place / "module.pt", "w") as archive:
        archive.writestr("module/data.pkl", b"a pickled module")
    return place


@pytest.fixture
def folder(files: Path, tmp_path: Path) -> Path:
    """A copy of the folder for one command."""
    return shutil.copytree(files, tmp_path, dirs_exist_ok=True)


def transcript(command: str, folder: Path) -> str:
    """What a command prints, how it ends and what it leaves, without what changes from run to run."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run(folder, *shlex.split(command)[1:])
    lines = [f"$ {command}", *(done.stdout + done.stderr).splitlines(), f"exit {done.returncode}"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and before.get(path) != path.read_bytes():
            lines.append(f"wrote {path.name}")
    assert all(path.exists() for path in before)
    text = "\n".join(lines) + "\n"
    text = re.sub(r"\d+\.\d+ s\b", "N s", text)
    if ".pt2" in command:  # each release of torch writes other archives
        text = re.sub(r"[\d,]+ -> [\d,]+ bytes", "N -> N bytes", text)
    text = re.sub(r'"(seconds|error|budget|excess|snr_db|ulp|argmax_margin)": [\d.e+-]+', r'"\1": N', text)
    text = re.sub(r'"(date|python|platform)": "[^"]*"', r'"\1": "..."', text)
    text = re.sub(r'"[0-9a-f]{64}"', '"..."', text)
    text = re.sub(r'"libraries": \{[^}]*\}', '"libraries": {}', text)
    text = re.sub(r"largest difference \de-\d+", "largest difference N", text)
    text = re.sub(r'"test": "[^"]*"', '"test": "T"', text)
    text = re.sub(r'"input": "[^"]*"', '"input": "I"', text)
    text = re.sub(r"on the input '[^']*'", "on the input 'I'", text)
    text = re.sub(r"channel \d+, at \[.*\]: [\d.-]+ instead of [\d.-]+", "channel N, at [...]: N instead of N", text)
    text = re.sub(r"--min-snr [\d.]+, or --atol [\d.]+ would", "--min-snr N, or --atol N would", text)
    text = re.sub(r"\b\d+(\.\d)? dB(?!\n?,? on)", "N dB", text)
    text = re.sub(r"[\d.e+]+ times the tolerance", "N times the tolerance", text)
    text = re.sub(r"[\d.e+]+ times what rounding explains \([^)]*\)", "N times what rounding explains (T)", text)
    return re.sub(r"\d\.\d+e-\d\d\b|(?<=: )\d\.\d+e-\d\d\b", "N", text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_command_line(case: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    expected = case.read_text()
    command = expected.splitlines()[0].removeprefix("$ ")
    if "net.pt2" in command:
        shutil.copy(request.getfixturevalue("program"), folder)
    actual = transcript(command, folder)
    if os.environ.get("UPDATE_GOLDEN"):
        case.write_text(actual)
    assert actual == expected


def test_there_are_cases() -> None:
    assert len(CASES) >= 15
