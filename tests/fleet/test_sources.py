"""What the sources of a fleet name, and what is wrong with some before any work begins."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bnfold.errors import BnfoldError, InvalidModelError, MissingExtraError
from bnfold.fleet import run
from bnfold.fleet.catalogue import Catalogue, CollisionError
from bnfold.fleet.places import StoreError
from bnfold.fleet.sources import UsageError, Wanted, collect, read_list
from bnfold.fleet.task import Item

FILES = (
    "a.onnx",
    "b.pt2",
    "b/c.onnx",
    "b/d/e.onnx",
    "b/d/f.onnx.data",
    "b/x1.onnx",
    "note.txt",
    ".a.onnx.q.bnfold/a.onnx",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        path = tmp_path / "m" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(wanted: Wanted) -> dict[str, Item]:
    with Catalogue() as catalogue:
        collect(wanted, catalogue)
        return {item.source: item for _, item, _ in catalogue.items()}


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["m"], {"m/a.onnx", "m/b.pt2", "m/b/c.onnx", "m/b/d/e.onnx", "m/b/x1.onnx"}),
        (["m/b"], {"m/b/c.onnx", "m/b/d/e.onnx", "m/b/x1.onnx"}),
        (["m/note.txt"], {"m/note.txt"}),
        (["m/*.onnx"], {"m/a.onnx"}),
        (["m/**/*.onnx"], {"m/a.onnx", "m/b/c.onnx", "m/b/d/e.onnx", "m/b/x1.onnx"}),
        (["m/*/?.onnx"], {"m/b/c.onnx"}),
        (["m/b/[a-d].onnx", "m/b/[!c]*.onnx"], {"m/b/c.onnx", "m/b/x1.onnx"}),
        (["m", "m"], {"m/a.onnx", "m/b.pt2", "m/b/c.onnx", "m/b/d/e.onnx", "m/b/x1.onnx"}),
        (["."], {"m/a.onnx", "m/b.pt2", "m/b/c.onnx", "m/b/d/e.onnx", "m/b/x1.onnx"}),
    ],
)
def test_files_folders_and_globs(folder: Path, sources: list[str], names: set[str]) -> None:
    assert set(found(Wanted("inspect", sources))) == names


def test_a_file_may_be_called_like_a_glob(folder: Path) -> None:
    (folder / "m[1].onnx").touch()
    assert set(found(Wanted("inspect", ["m[1].onnx"]))) == {"m[1].onnx"}


def test_outputs_keep_the_paths_below_their_source(folder: Path) -> None:
    items = found(Wanted("fuse", ["m/b", "m/a.onnx"], out="o"))
    assert {name: item.output for name, item in items.items()} == {
        "m/b/c.onnx": "o/c.onnx",
        "m/b/d/e.onnx": "o/d/e.onnx",
        "m/b/x1.onnx": "o/x1.onnx",
        "m/a.onnx": "o/a.onnx",
    }


def test_a_destination_inside_a_source_is_no_source(folder: Path) -> None:
    (folder / "m/out").mkdir()
    (folder / "m/out/old.onnx").touch()
    assert "m/out/old.onnx" not in found(Wanted("fuse", ["m"], out="m/out"))
    assert "m/out/old.onnx" in found(Wanted("inspect", ["m"]))


def test_pairs_are_matched_by_their_paths(folder: Path) -> None:
    for name in ("a.onnx", "b/c.onnx", "new.onnx"):
        (folder / "n" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "n" / name).touch()
    items = found(Wanted("verify", ["n"], baseline="m"))
    assert {name: item.reference for name, item in items.items() if not item.problem} == {
        "n/a.onnx": "m/a.onnx",
        "n/b/c.onnx": "m/b/c.onnx",
    }
    assert {name for name, item in items.items() if item.problem} == {
        "n/new.onnx",
        "m/b.pt2",
        "m/b/d/e.onnx",
        "m/b/x1.onnx",
    }


def test_two_single_models_are_a_pair_whatever_they_are_called(folder: Path) -> None:
    items = found(Wanted("verify", ["m/b/c.onnx"], baseline="m/a.onnx"))
    assert [(item.reference, item.problem) for item in items.values()] == [("m/a.onnx", "")]


def test_a_list_has_options_for_each_model(folder: Path) -> None:
    lines = [
        "# a comment",
        "m/a.onnx",
        "",
        json.dumps(
            {"source": "m/b/c.onnx", "output": "new/c.onnx", "dims": {"N": 2}, "only": ["bn*"], "inputs": ["x.npz"]}
        ),
        "s3://bucket/far/away.onnx",
        "../up.onnx",
    ]
    (folder / "list").write_text("\n".join(lines))
    items = list(read_list(folder / "list", "fuse"))
    assert [item.relative for item in items] == ["m/a.onnx", "new/c.onnx", "far/away.onnx", "up.onnx"]
    assert items[1].options == ("--inputs=x.npz", "--dim=N=2", "--only=bn*")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object"),
        ('{"output": "x.onnx"}', "no 'source'"),
        ('{"source": "a.onnx", "colour": 1}', "fuse takes no 'colour'"),
        ('{"source": "a.onnx", "dims": ["N"]}', "'dims' has to be a dict"),
        ('{"source": "a.onnx", "dims": {"N": 0}}', "'N' has to be a number of at least 1"),
        ('{"source": "a.onnx", "output": "../a.onnx"}', "below the destination"),
        ("m/*.onnx", "does not end in"),
        ("m", "does not end in"),
    ],
)
def test_a_bad_line_is_named(folder: Path, line: str, message: str) -> None:
    (folder / "list").write_text(f"m/a.onnx\n{line}\n")
    with pytest.raises(InvalidModelError, match=r"list:2: ") as caught:
        run("fuse", listed=folder / "list", out="o")
    assert message in str(caught.value)


def test_external_data_counts_for_the_size_of_a_model(folder: Path) -> None:
    for name, size in {"x.onnx": 1, "x.onnx.data": 10, "x.data": 100, "xy.data": 1000, "z.onnx": 7}.items():
        (folder / "n").mkdir(exist_ok=True)
        (folder / "n" / name).write_bytes(bytes(size))
    assert {name: item.bytes for name, item in found(Wanted("inspect", ["n"])).items()} == {
        "n/x.onnx": 111,
        "n/z.onnx": 7,
    }


def test_a_name_that_is_no_text_is_one_line(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder / "m") + b"/\xff.onnx")).touch()
    with pytest.raises(InvalidModelError, match=r"udcff.onnx: its name is no text"):
        found(Wanted("inspect", ["m"]))


def test_a_line_may_only_say_what_its_command_takes(folder: Path) -> None:
    (folder / "list").write_text('{"source": "m/a.onnx", "only": ["*"]}')
    with pytest.raises(InvalidModelError, match=r"list:1: inspect takes no 'only' \(but source, inputs\)"):
        run("inspect", listed=folder / "list")
    (folder / "list").write_text("m/a.onnx")
    with pytest.raises(InvalidModelError, match=r"list:1: there is no 'reference' to verify it against"):
        run("verify", listed=folder / "list")


def error_of(**options: object) -> BnfoldError:
    with pytest.raises(BnfoldError) as caught:
        run("fuse", **options)  # type: ignore[arg-type]
    assert not Path("o").exists()
    return caught.value


def test_what_is_wrong_is_said_before_work_begins(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "n").mkdir()
    (folder / "n/a.onnx").touch()
    (folder / "file").touch()
    cases = [
        (UsageError, 2, "there are no sources", {"sources": [], "out": "o"}),
        (UsageError, 2, "fuse needs a destination", {"sources": ["m"]}),
        (UsageError, 2, "file: is not a folder", {"sources": ["m"], "out": "file"}),
        (UsageError, 2, "m/b/c.onnx: a source lies in the destination m", {"sources": ["m/b/c.onnx"], "out": "m"}),
        (UsageError, 2, "a source lies in the destination m", {"sources": ["m"], "out": "m"}),
        (CollisionError, 2, "m/a.onnx and n/a.onnx would both become o/a.onnx", {"sources": ["m", "n"], "out": "o"}),
        (InvalidModelError, 3, "gone: no such file or folder", {"sources": ["gone"], "out": "o"}),
        (InvalidModelError, 3, "empty: no .onnx or .pt2 file there", {"sources": ["empty"], "out": "o"}),
        (InvalidModelError, 3, "m/*.pb: no .onnx or .pt2 file there", {"sources": ["m/*.pb"], "out": "o"}),
        (InvalidModelError, 3, "gone: No such file", {"listed": Path("gone"), "out": "o"}),
        (MissingExtraError, 3, "abfs://: ", {"sources": ["abfs://host/m"], "out": "o"}),
        (StoreError, 3, "nonsense://: ", {"sources": ["nonsense://m"], "out": "o"}),
        (UsageError, 2, "nothing can be appended there", {"sources": ["m"], "out": "s3://bucket/o"}),
    ]
    for kind, code, message, options in cases:
        error = error_of(**options)
        assert (type(error), error.exit_code) == (kind, code), str(error)
        assert message in str(error)


def test_a_link_does_not_hide_that_a_source_lies_in_the_destination(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "m", target_is_directory=True)
    assert "a source lies in the destination" in str(error_of(sources=["m/a.onnx"], out="link"))
