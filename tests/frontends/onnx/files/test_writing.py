"""OUT appears complete or not at all, whatever happens while it is written, and nothing else is lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from bnfold.algebra import kernels
from bnfold.api import fuse_file
from bnfold.errors import OutputError
from bnfold.frontends.onnx.files import loading, publishing, saving
from tests.toys.onnx_graphs import model, node, norm, random, statistics


def write(path: Path, *, seed: int = 0, location: str = "weights.bin", channels: int = 16) -> Path:
    """A model with external data: two convolutions, one with a BatchNorm."""
    constants = {
        "w": random(channels, 4, 3, 3, seed=seed, dtype=np.float32),
        "v": random(8, 4, 3, 3, seed=seed, dtype=np.float32),
    }
    nodes = [node("Conv", "x w", "c"), norm("c", "y"), node("Conv", "x v", "z")]
    proto = model(
        nodes, {**constants, **statistics(channels, dtype=np.float32)}, (1, 4, 8, 8), outputs="y z", dtype=np.float32
    )
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=1024)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def weights(path: Path) -> dict[str, bytes]:
    return {each.name: numpy_helper.to_array(each).tobytes() for each in onnx.load(path).graph.initializer}


def data_names(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.endswith(".data")]


def fuse(source: Path, output: Path) -> None:
    fuse_file(source, output, checks="none", overwrite=True)


def test_an_output_that_is_replaced_takes_its_data_along(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    fuse(write(tmp_path / "a.onnx", seed=1), output)
    (old,) = data_names(tmp_path)
    fuse(write(tmp_path / "a.onnx", seed=2), output)
    (new,) = data_names(tmp_path)
    assert new != old
    assert weights(output).keys() == {"w_folded", "y_bias", "v"}


def test_data_that_another_model_refers_to_stays(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    fuse(write(tmp_path / "a.onnx", seed=1), output)
    shutil.copy(output, tmp_path / "copy.onnx")
    expected = weights(tmp_path / "copy.onnx")
    fuse(write(tmp_path / "a.onnx", seed=2), output)
    assert len(data_names(tmp_path)) == 2
    assert weights(tmp_path / "copy.onnx") == expected


@pytest.mark.parametrize("location", ["m.onnx.data", "out.onnx.data", "out.onnx.0123456789ab.data"])
def test_the_data_of_the_input_survives_whatever_its_name(location: str, tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", location=location)
    expected = weights(source)
    fuse(source, tmp_path / "out.onnx")
    assert weights(source) == expected
    assert weights(tmp_path / "out.onnx")["v"] == expected["v"]


def test_a_model_that_replaces_itself_again_and_again(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx")
    fuse(source, source)
    expected, listing = weights(source), names(tmp_path)
    for _ in range(2):
        fuse(source, source)
        assert weights(source) == expected
        assert names(tmp_path) == listing


def test_the_same_bytes_whatever_lies_around(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx")
    for _ in range(2):
        fuse(source, tmp_path / "out.onnx")
        first = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    fuse(source, tmp_path / "out.onnx")
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == first


def test_tensors_that_share_bytes_are_written_once(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx")
    proto = onnx.load(source, load_external_data=False)
    for name in ("v2", "v3"):
        copy = proto.graph.initializer.add()
        copy.CopyFrom(next(each for each in proto.graph.initializer if each.name == "v"))
        copy.name = name
        proto.graph.node.append(node("Identity", name, f"{name}_out"))
    source.write_bytes(proto.SerializeToString())
    fuse(source, tmp_path / "out.onnx")
    found = weights(tmp_path / "out.onnx")
    assert found["v"] == found["v2"] == found["v3"]
    (data,) = data_names(tmp_path)
    assert (tmp_path / data).stat().st_size == sum(map(len, found.values())) - 2 * len(found["v"]) - 16 * 4


def test_external_tensors_of_constant_nodes_move_along(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx")
    proto = onnx.load(source, load_external_data=False)
    weight = next(each for each in proto.graph.initializer if each.name == "v")
    proto.graph.initializer.remove(weight)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["v"], value=weight))
    source.write_bytes(proto.SerializeToString())
    expected = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    fuse(source, tmp_path / "elsewhere" / "out.onnx")
    fused = loading.load(tmp_path / "elsewhere" / "out.onnx")
    tensor = next(each for each in fused.graph if each.op_type == "Constant").attributes["value"].as_tensor()
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.tobytes() in expected


def test_a_large_model_gets_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.load(write(tmp_path / "m.onnx", channels=64))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    fuse(tmp_path / "m.onnx", tmp_path / "small.onnx")
    assert not data_names(tmp_path)
    monkeypatch.setattr(saving, "SIZE_LIMIT", 8000)
    fuse(tmp_path / "m.onnx", tmp_path / "large.onnx")
    assert len(data_names(tmp_path)) == 1
    assert weights(tmp_path / "small.onnx") == weights(tmp_path / "large.onnx")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="nothing is flushed in between on this system")
@pytest.mark.parametrize("failing", ["first", "last"])
def test_what_cannot_be_flushed_is_an_error_and_no_output(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells it once, to whoever asks first: in the middle of the file, or before its end is flushed."""
    monkeypatch.setattr(saving, "FLUSHED", 3000)
    monkeypatch.setattr(kernels, "ELEMENTS", 100)
    flushes: list[int] = []
    flush, wrong = os.fdatasync, 0

    def fail(descriptor: int) -> None:
        flushes.append(descriptor)
        if len(flushes) == wrong:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail)
    source, output = write(tmp_path / "m.onnx", channels=64), tmp_path / "out.onnx"
    fuse(source, output)
    assert len(flushes) > 2
    expected, listing = weights(output), names(tmp_path)
    wrong = 1 if failing == "first" else len(flushes)
    flushes.clear()
    with pytest.raises(OutputError, match="cannot be written"):
        fuse(source, output)
    assert (weights(output), names(tmp_path)) == (expected, listing)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_one_error(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        fuse(source, folder / "out.onnx")


def test_a_folder_where_nothing_can_be_made_is_one_error(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx")
    for folder in (Path("/proc/self"), tmp_path / "missing", source):
        with pytest.raises(OutputError, match="cannot be written to"):
            fuse(source, folder / "out.onnx")


def test_a_name_that_is_too_long_is_one_error(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="too long"):
        fuse(source, tmp_path / ("o" * 300))


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", channels=512)
    fuse(write(tmp_path / "old.onnx", location="old.bin"), tmp_path / "out.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in (0, 1000, 70_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OutputError, match="too large"):
                fuse(source, tmp_path / "out.onnx")
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("step", range(1, 12))
def test_an_interruption_between_any_two_steps_leaves_the_old_or_the_new(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, as if killed, at the n-th call that changes a folder."""
    output = tmp_path / "out.onnx"
    fuse(write(tmp_path / "m.onnx", seed=1), output)
    old = weights(output)
    source = write(tmp_path / "m.onnx", seed=2)
    child = f"""
import os, pathlib, shutil, sys
from bnfold.api import fuse_file
left = [{step}]
def dying(function):
    def call(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return function(*arguments, **options)
    return call
for owner, names in ((pathlib.Path, ("replace", "rename", "unlink")), (os, ("fsync",)), (shutil, ("rmtree",))):
    for name in names:
        setattr(owner, name, dying(getattr(owner, name)))
fuse_file(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), checks="none", overwrite=True)
"""
    ended = subprocess.run([sys.executable, "-c", child, source, output], check=False, capture_output=True)
    assert ended.returncode in (0, 9), ended.stderr
    after = weights(output)
    fuse(source, tmp_path / "expected.onnx")
    new = weights(tmp_path / "expected.onnx")
    assert after in (old, new)
    fuse(source, output)
    assert weights(output) == new
    assert names(tmp_path) == sorted(["m.onnx", "weights.bin", "out.onnx", "expected.onnx", *data_names(tmp_path)])
    assert len(data_names(tmp_path)) == 2


def test_a_failed_rename_leaves_no_data_behind(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx")
    (tmp_path / "out.onnx").mkdir()
    (tmp_path / "staged").mkdir()
    written = saving.save(loading.load(source), tmp_path / "staged" / "out.onnx")
    before = names(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        publishing.publish(written, tmp_path / "out.onnx")
    assert names(tmp_path) == before


def test_the_folder_of_a_living_run_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with publishing.staging(output) as living:
        (living / "file").touch()
        with publishing.staging(output) as other:
            assert other != living
            assert (living / "file").exists()
    assert names(tmp_path) == []


def test_stale_folders_of_this_output_alone_are_removed(tmp_path: Path) -> None:
    for name in (".out.onnx.abc.bnfold", ".other.onnx.abc.bnfold", ".out.onnx.abc"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.onnx.file.bnfold").touch()
    with publishing.staging(tmp_path / "out.onnx"):
        pass
    assert names(tmp_path) == [".other.onnx.abc.bnfold", ".out.onnx.abc", ".out.onnx.file.bnfold"]


def test_a_killed_run_leaves_nothing_torn(tmp_path: Path) -> None:
    """A small form of what `scripts/benchmarks/kill_test.py` does with 300 MB, both signals, onto no OUT and an old
    one."""
    script = Path(__file__).parents[4] / "scripts" / "benchmarks" / "kill_test.py"
    command = [sys.executable, script, "--kills", "4", "--megabytes", "12", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("4 kills, 0 of them wrong\n")


def test_a_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    """A superuser may replace any file by another, the null device included."""
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "null.html").symlink_to(os.devnull)
    source = write(tmp_path / "m.onnx")
    command = [sys.executable, "-m", "bnfold", "fuse", str(source), "--overwrite", "--no-verify", "-o"]
    refused = subprocess.run([*command, str(tmp_path / "pipe.onnx")], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "pipe.onnx: is a device or a pipe" in refused.stderr
    assert (tmp_path / "pipe.onnx").is_fifo()
    written = subprocess.run([*command, str(tmp_path / "f.onnx"), "--report", str(tmp_path / "null.html")], check=False)
    assert written.returncode == 0
    assert (tmp_path / "null.html").is_symlink()
