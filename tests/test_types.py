"""What a type checker says to users: the Python of the pages is clean, and `fuse` returns the type that it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import blocks

ROOT = Path(__file__).parent.parent

KINDS = """
from pathlib import Path
from typing import Any, assert_type
import bnfold, onnx, onnx_ir, torch

class Net(torch.nn.Module): ...
class Model(onnx_ir.Model): ...
Outcomes = tuple[bnfold.Outcome, ...]

def check(
    net: Net, graph: torch.fx.GraphModule, program: torch.export.ExportedProgram, proto: onnx.ModelProto, model: Model,
    path: Path, flag: bool,
) -> None:
    assert_type(bnfold.fuse(net), Net)
    assert_type(bnfold.fuse(graph, only=["a"], merge=False), torch.fx.GraphModule)
    assert_type(bnfold.fuse(program, inplace=True), torch.export.ExportedProgram)
    assert_type(bnfold.fuse(proto, return_outcomes=False), onnx.ModelProto)
    assert_type(bnfold.fuse(model), Model)
    assert_type(bnfold.fuse(net, example_inputs=1, return_outcomes=True), tuple[Net, Outcomes])
    assert_type(bnfold.fuse(proto, return_outcomes=True), tuple[onnx.ModelProto, Outcomes])
    assert_type(bnfold.fuse(path), Any)
    assert_type(bnfold.fuse("net.onnx", return_outcomes=True), tuple[Any, Outcomes])
    assert_type(bnfold.fuse(net, return_outcomes=flag), Any)
    bnfold.fuse(net, example_input=1)  # type: ignore[call-overload]
    bnfold.fuse(3)  # type: ignore[call-overload]
"""
"""An ignored error that does not occur is an error."""


def snippets() -> list[str]:
    """The Python of the README and of the pages for users."""
    pages = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("index.md", "howto", "concepts"))]
    files = [file for page in pages for file in (page.glob("*.md") if page.is_dir() else [page])]
    return [source for file in files for source in blocks.python(file.read_text(encoding="utf-8"))]


def errors(sources: list[str], folder: Path) -> str:
    """What mypy, as strict as pyproject.toml has it, finds wrong. It shares the cache of the check of the package."""
    paths = [folder / f"snippet{index}.py" for index in range(len(sources))]
    for path, source in zip(paths, sources, strict=True):
        path.write_text(source)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", *paths]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_the_pages_and_all_kinds_of_models_are_clean(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    pytest.importorskip("torch")
    assert len(snippets()) >= 6
    assert errors([*snippets(), KINDS], tmp_path) == ""
