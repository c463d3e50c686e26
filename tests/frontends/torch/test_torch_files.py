"""Saved programs, ``.pt2`` files: fused and inspected on the command line, and never a way to run code."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bnfold
from bnfold import InvalidModelError, Limits, OutputError
from bnfold.cli import cli
from tests.report.schemas import insist_on_schema
from tests.toys.torch_models import assert_same, drawn, exported, run, to_onnx_by_export, trained

IMAGE = drawn(2, 4, 8, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with one BatchNorm that folds and one that stays."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6))
    path = tmp_path_factory.mktemp("programs") / "model.pt2"
    torch.export.save(exported(trained(model), IMAGE), path, extra_files={"labels.txt": "cat dog"})
    return path


def command(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=True)


def test_fuse_writes_a_program_that_torch_loads(saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "fused.pt2"
    result = command("fuse", saved, "-o", output, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    insist_on_schema(record)
    assert record["batchnorms"] == {"found": 2, "folded": 1, "kept": 1}
    assert record["verification"]["equivalent"]
    extra: dict[str, str] = {"labels.txt": ""}
    fused = torch.export.load(output, extra_files=extra)
    assert extra["labels.txt"] in ("cat dog", b"cat dog")
    assert_same(run(torch.export.load(saved), IMAGE), run(fused, IMAGE))
    assert [each.name for each in tmp_path.iterdir()] == ["fused.pt2"]


def test_fuse_takes_a_path(saved: Path) -> None:
    fused = bnfold.fuse(saved)
    assert isinstance(fused, torch.export.ExportedProgram)
    assert [each.batchnorm for each in bnfold.plan(str(saved))] == ["1", "3"]


def test_inspect_writes_nothing(saved: Path) -> None:
    before = saved.read_bytes()
    result = command("inspect", saved, "--fail-on-foldable")
    assert result.exit_code == 1
    assert "would fold  1" in result.output
    assert saved.read_bytes() == before


def test_a_fused_file_has_nothing_left_to_fold(saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "fused.pt2"
    assert command("fuse", saved, "-o", output, "-q").exit_code == 0
    assert command("inspect", output, "--fail-on-foldable").exit_code == 0


def test_the_output_has_the_format_of_the_model(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="format of its model"):
        bnfold.api.fuse_file(saved, tmp_path / "fused.onnx")  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_no_program(tmp_path: Path) -> None:
    """Nor is a pipe, whose opening might never end."""
    path = tmp_path / "model.pt2"
    path.symlink_to(os.devnull)
    with pytest.raises(InvalidModelError, match="is not a plain file"):
        bnfold.plan(path)


def test_an_output_that_exists_is_refused(saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "fused.pt2"
    output.write_text("mine")
    assert isinstance(command("fuse", saved, "-o", output).exception, bnfold.OutputExistsError)
    assert output.read_text() == "mine"


def test_verify_mixes_the_formats(saved: Path, tmp_path: Path) -> None:
    onnx_file, other = tmp_path / "model.onnx", tmp_path / "other.pt2"
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6))).float()
    single = tmp_path / "single.pt2"
    torch.export.save(exported(model, IMAGE.float()), single)
    onnx_file.write_bytes(to_onnx_by_export(model, IMAGE.float()).SerializeToString())
    torch.export.save(bnfold.fuse(torch.export.load(single)), other)
    assert bnfold.verify(single, other).is_equivalent
    assert bnfold.verify(single, onnx_file).is_equivalent
    assert command("verify", onnx_file, other).exit_code == 0
    model[3].running_mean.add_(0.01)
    torch.export.save(exported(model, IMAGE.float()), tmp_path / "moved.pt2")
    assert not bnfold.verify(single, tmp_path / "moved.pt2").is_equivalent


@pytest.mark.parametrize(
    ("limits", "message"), [(Limits(nodes=3), "3 nodes"), (Limits(bytes=100), "100 bytes")], ids=["nodes", "bytes"]
)
def test_limits_hold(saved: Path, limits: Limits, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        bnfold.plan(saved, limits=limits)


# Files that are not what they should be


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"a": 1}), b"PK\x03\x04" + b"\0" * 40], ids=repr)
def test_what_is_no_program_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=str(path)):
        bnfold.fuse(path)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pt2", tmp_path):
        with pytest.raises(InvalidModelError):
            bnfold.fuse(path if path.suffix else _as_folder(path))


def _as_folder(path: Path) -> Path:
    made = path / "folder.pt2"
    made.mkdir()
    return made


def test_a_truncated_file_is_an_error(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    data = saved.read_bytes()
    for size in (len(data) // 4, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:size])
        with pytest.raises(InvalidModelError):
            bnfold.fuse(path)


# Files that would run code

RAN: list[str] = []


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return RAN.append, ("unpickled",)


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save(Bomb(), file)
    return file.getvalue()


Entries = dict[str, bytes]

CODE = "__import__('test_torch_files').RAN.append('evaluated')"


def _program(change: Callable[[dict[str, Any]], None]) -> Callable[[Entries], None]:
    def apply(entries: Entries) -> None:
        program = json.loads(entries["models/model.json"])
        change(program)
        entries["models/model.json"] = json.dumps(program).encode()

    return apply


def _weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Entries], None]:
    def apply(entries: Entries) -> None:
        name = "data/weights/model_weights_config.json"
        config = json.loads(entries[name])
        change(next(iter(config["config"].values())))
        entries[name] = json.dumps(config).encode()

    return apply


def _set(entries: Entries, name: str, data: bytes) -> None:
    entries[name] = data


def _first_node(program: dict[str, Any]) -> dict[str, Any]:
    nodes: list[dict[str, Any]] = program["graph_module"]["graph"]["nodes"]
    return nodes[0]


def _expression(program: dict[str, Any]) -> None:
    graph = program["graph_module"]["graph"]
    first = next(iter(graph["tensor_values"].values()))
    first["sizes"][0] = {"as_expr": {"expr_str": CODE, "hint": None}}


ATTACKS: dict[str, Callable[[Entries], None]] = {
    "pickled sample inputs": lambda entries: _set(entries, "data/sample_inputs/model.pt", pickled()),
    "pickled weight": _weights(lambda payload: payload.update(use_pickle=True)),
    "weight outside of its folder": _weights(lambda payload: payload.update(path_name="../../extra/x")),
    "huge weight": _weights(lambda payload: payload["tensor_meta"].update(sizes=[{"as_int": 1 << 40}])),
    "compiled library": lambda entries: _set(entries, "data/aotinductor/model/model.so", b"\x7fELF"),
    "other model": lambda entries: _set(entries, "models/other.json", entries["models/model.json"]),
    "expression": _program(_expression),
    "guard": _program(lambda program: program.update(guards_code=[CODE])),
    "guard that calls": _program(lambda program: program.update(guards_code=["L['x'].__class__()"])),
    "operator of Python": _program(lambda program: _first_node(program).update(target="os.system")),
    "operator by getattr": _program(lambda program: _first_node(program).update(target="torch.ops.aten.__class__")),
    "name that is code": _program(lambda program: _first_node(program).update(name="x; import os")),
    "no JSON": lambda entries: _set(entries, "models/model.json", b"{"),
    "deep JSON": lambda entries: _set(entries, "models/model.json", b"[" * 100_000),
}


def rewritten(saved: Path, path: Path, change: Callable[[Entries], None], **options: Any) -> None:
    """The archive with other entries."""
    with zipfile.ZipFile(saved) as archive:
        root = archive.namelist()[0].partition("/")[0]
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries.items():
            archive.writestr(f"{root}/{name}", data)


def test_a_rewritten_archive_loads(saved: Path, tmp_path: Path) -> None:
    rewritten(saved, tmp_path / "model.pt2", lambda entries: None)
    assert len(bnfold.plan(tmp_path / "model.pt2")) == 2


@pytest.mark.parametrize("name", ATTACKS)
def test_what_would_run_code_is_refused_by_name(saved: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.pt2"
    rewritten(saved, path, ATTACKS[name])
    RAN.clear()
    with pytest.raises(InvalidModelError, match=str(path)):
        bnfold.fuse(path)
    assert RAN == []


def test_a_compressed_archive_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    rewritten(saved, path, lambda entries: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InvalidModelError, match="compressed"):
        bnfold.fuse(path)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_an_error_or_loads(saved: Path, tmp_path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = bytearray(saved.read_bytes())
    for place in torch.randint(len(data), (8,), generator=generator).tolist():
        data[place] ^= 1 << seed % 8
    path = tmp_path / "model.pt2"
    path.write_bytes(data)
    with suppress(InvalidModelError):
        bnfold.fuse(path)
