"""What a comparison asks for once only, however large the models: bytes of files, and parameters of operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from bnfold import api
from bnfold.frontends.onnx.view import OnnxGraph
from tests.difference.pairs import PAIRS


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    pair = PAIRS["three_layers"]()
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path, model in zip(paths, (pair.one, pair.other), strict=True):
        onnx.save(model, path)
    return paths


def test_each_file_is_read_once(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read_bytes = Counter[Path](), Path.read_bytes

    def count(path: Path) -> bytes:
        reads[path] += 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", count)
    api.diff_files(*files)
    assert reads == dict.fromkeys(files, 1)


def test_a_small_kernel_is_read_once(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reads, parameters = Counter[object](), OnnxGraph.parameters

    def count(graph: OnnxGraph, node: ir.Node) -> object:
        reads[node] += 1
        return parameters(graph, node)

    monkeypatch.setattr(OnnxGraph, "parameters", count)
    api.diff_files(*files)
    assert reads
    assert set(reads.values()) == {1}
