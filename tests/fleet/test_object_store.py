"""Models in an object store: S3 as moto's server speaks it, through s3fs, with no line of ours for either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import fsspec
import onnx
import pytest
from moto.server import ThreadedMotoServer

from bnfold import api
from bnfold.fleet import launcher, places, run
from bnfold.fleet.ledger import read_lines
from bnfold.fleet.places import StoreError
from tests.fleet.test_engine import lines
from tests.toys.fleets import save_external, small

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "FSSPEC_S3_USE_LISTINGS_CACHE": "false",
}


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A bucket on a server of this machine."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        patch.setenv(name, value)
    places.filesystem.cache_clear()
    system = fsspec.filesystem("s3")
    system.mkdir("bucket")
    yield system
    patch.undo()
    places.filesystem.cache_clear()
    server.stop()


@pytest.fixture(scope="module")
def cluster(store: Any) -> Iterator[distributed.LocalCluster]:
    """Two workers that know the server from their environment."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=1_500_000_000,
        dashboard_address="127.0.0.1:0",
        silence_logs=60,
        env={name: os.environ[name] for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL")},
    ) as running:
        yield running


@pytest.fixture
def folder(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Models in the bucket, and the same ones here."""
    for number in range(4):
        path = tmp_path / "m" / "ab"[number % 2] / f"m{number}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(small(number), path)
    save_external(tmp_path / "m/pair.onnx")
    store.put(str(tmp_path / "m"), "bucket/m", recursive=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    store.rm("bucket/m", recursive=True)
    with contextlib.suppress(FileNotFoundError):
        store.rm("bucket/o", recursive=True)


def test_from_a_bucket_to_a_bucket(store: Any, cluster: distributed.LocalCluster, folder: Path) -> None:
    options: dict[str, Any] = {
        "out": "s3://bucket/o",
        "ledger": folder / "l.jsonl",
        "scheduler": cluster.scheduler_address,
    }
    result = run("fuse", ["s3://bucket/m/**/*.onnx"], **options)
    assert result.totals.codes == {0: 5}
    store.get("bucket/o", "o", recursive=True)
    for path in sorted(Path("m").rglob("*.onnx")):
        output = Path("o", path.relative_to("m"))
        api.fuse_file(path, folder / "alone.onnx", overwrite=True)
        assert api.inspect_file(output).outcomes == ()
        if path.name != "pair.onnx":
            assert output.read_bytes() == (folder / "alone.onnx").read_bytes()
    found = lines(folder / "l.jsonl")
    pair = found["s3://bucket/m/pair.onnx"]
    assert pair["record"]["model"] == "s3://bucket/m/pair.onnx"
    assert pair["record"]["output"] == "s3://bucket/o/pair.onnx"
    assert {"s3://bucket/m/pair.onnx.data", "s3://bucket/o/pair.onnx"} < set(pair["files"])
    assert "/tmp" not in str(pair)

    assert run("fuse", ["s3://bucket/m/**/*.onnx"], **options).unchanged == 5
    store.rm("bucket/o/a/m0.onnx")
    onnx.save(small(99), folder / "new.onnx")
    store.put_file(str(folder / "new.onnx"), "bucket/m/b/m1.onnx")
    result = run("fuse", ["s3://bucket/m/**/*.onnx"], **options)
    assert (result.unchanged, result.totals.codes) == (3, {0: 5})
    assert store.exists("bucket/o/a/m0.onnx")


def test_a_foreign_object_is_kept(store: Any, cluster: distributed.LocalCluster, folder: Path) -> None:
    store.pipe_file("bucket/o/pair.onnx", b"precious")
    result = run("fuse", ["m"], out="s3://bucket/o", ledger=folder / "l.jsonl", scheduler=cluster.scheduler_address)
    assert result.totals.codes == {0: 4, 2: 1}
    assert store.cat_file("bucket/o/pair.onnx") == b"precious"
    assert [name for name in store.find("bucket/o") if "pair" in name] == ["bucket/o/pair.onnx"]


def test_a_pair_in_two_places(store: Any, cluster: distributed.LocalCluster, folder: Path) -> None:
    result = run("verify", ["s3://bucket/m"], baseline="m", options=["--fast"], scheduler=cluster.scheduler_address)
    assert result.totals.codes == {0: 5}


def test_a_model_whose_data_is_missing_is_a_line(store: Any, cluster: distributed.LocalCluster, folder: Path) -> None:
    store.rm("bucket/m/pair.onnx.data")
    run("inspect", ["s3://bucket/m"], ledger=folder / "l.jsonl", scheduler=cluster.scheduler_address)
    [line] = [line for line in read_lines(folder / "l.jsonl") if line["exit_code"]]
    assert line["record"]["error"]["message"] == "s3://bucket/m/pair.onnx.data: no such file or folder"


def test_a_model_comes_last(store: Any, folder: Path) -> None:
    """Whatever moment a reader chooses, a model that is there has its data."""
    from bnfold.fleet.task import Item, Order, Task
    from bnfold.fleet.worker import Place, perform

    written: list[str] = []
    put = places.Remote.put

    def watched(self: places.Remote, file: Path, name: str) -> None:
        put(self, file, name)
        written.append(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places.Remote, "put", watched)
        save_external(folder / "m/pair.onnx", seed=3)
        item = Item("m/pair.onnx", "pair.onnx", output="s3://bucket/o/pair.onnx")
        task = Task(1, item, Order("fuse", (), False, 60.0, str(folder)))
        line = perform(task, Place("here", folder, 2 << 30))
    launcher.close()
    assert line["exit_code"] == 0
    assert len(written) == 2
    assert written[-1] == "s3://bucket/o/pair.onnx"


def test_an_unreadable_store_is_one_line(store: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="s3://nowhere/m: "):
        run("inspect", ["s3://nowhere/m"])
    with pytest.raises(StoreError, match=r"s3://bucket/gone.onnx: no such file or folder"):
        run("inspect", ["s3://bucket/gone.onnx"])


def test_missing_credentials_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    places.filesystem.cache_clear()
    try:
        with pytest.raises(StoreError, match=r"s3://bucket/m: .*[Cc]redentials"):
            run("inspect", ["s3://bucket/m"])
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        places.filesystem.cache_clear()
