"""Fleets on two worker processes of Dask: each model ends as it should, once, whatever the others do."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import onnx
import pytest

from bnfold.fleet import cluster as clusters
from bnfold.fleet import engine, run
from bnfold.fleet.cluster import ClusterError
from bnfold.fleet.ledger import NAME, read_lines
from bnfold.fleet.sources import UsageError
from tests.proof.test_proof_files import crashing
from tests.toys.fleets import greedy, hanging, populate, save_external, small

MEMORY = 1_500_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    """A scheduler that runs, with two workers; it takes a task away after the first death of its worker."""
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=MEMORY,
            resources={"memory": MEMORY},
            dashboard_address="127.0.0.1:0",
            silence_logs=60,
        ) as running,
    ):
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(ledger: Path) -> dict[str, dict[str, Any]]:
    """The lines of a ledger that hold one for each model."""
    found = list(read_lines(ledger))
    assert len(found) == len(ledger.read_text().splitlines())
    return {line["source"]: line for line in found}


def test_every_model_ends_as_it_should(cluster: distributed.LocalCluster, folder: Path) -> None:
    """A broken one, one that crashes its runtime, one that hangs, one too large for a worker, one too greedy for it."""
    populate(folder / "m", 4)
    (folder / "m/broken.onnx").write_text("no model")
    onnx.save(crashing(), folder / "m/crash.onnx")
    onnx.save(hanging(), folder / "m/hang.onnx")
    onnx.save(greedy(), folder / "m/greedy.onnx")
    save_external(folder / "m/pair.onnx")
    with (folder / "m/vast.onnx").open("wb") as file:
        file.truncate(MEMORY)
    result = run(
        "fuse",
        ["m"],
        out="o",
        scheduler=cluster.scheduler_address,
        options=["--verify", "full", "--timeout", "60", "--fast"],
        seconds=10,
    )
    assert result.exit_code == 3
    assert result.totals.codes == {0: 5, 3: 5}
    found = lines(folder / "o" / NAME)
    messages = {name: line["record"]["error"]["message"] for name, line in found.items() if line["exit_code"]}
    assert set(messages) == {f"m/{name}.onnx" for name in ("broken", "crash", "hang", "greedy", "vast")}
    assert "not an ONNX model" in messages["m/broken.onnx"]
    assert "crashed running it, in 'BatchNormalization_y' (signal 11, SIGSEGV)" in messages["m/crash.onnx"]
    assert messages["m/hang.onnx"] == "m/hang.onnx: ended, since it took more than 10 seconds"
    assert messages["m/greedy.onnx"] == "m/greedy.onnx: ended, since it took more memory than a worker has (1.5 GB)"
    assert messages["m/vast.onnx"].startswith("m/vast.onnx: needs about 6.27 GB of memory, and the largest worker has")
    data = [name for name in found["m/pair.onnx"]["files"] if name.startswith("o/pair.onnx.")]
    assert sorted(str(path) for path in Path("o").rglob("*") if path.is_file()) == sorted(
        ["o/a/m0.onnx", "o/a/m2.onnx", "o/b/m1.onnx", "o/b/m3.onnx", "o/pair.onnx", *data, f"o/{NAME}"]
    )
    for name, line in found.items():
        if not line["exit_code"]:
            assert line["record"]["model"] == name
            assert line["record"]["output"] == line["output"]
            assert line["peak_bytes"] > 1e7


def test_a_second_run_does_what_failed_changed_or_is_missing(cluster: distributed.LocalCluster, folder: Path) -> None:
    populate(folder / "m", 6)
    (folder / "m/broken.onnx").write_text("no model")
    ran: list[str] = []

    def again(**options: Any) -> engine.FleetResult:
        before = {name: line["finished"] for name, line in lines(ledger).items()} if ledger.exists() else {}
        result = run("fuse", ["m"], out="o", scheduler=cluster.scheduler_address, **options)
        ran[:] = sorted(name for name, line in lines(ledger).items() if line["finished"] != before.get(name))
        return result

    ledger = folder / "o" / NAME
    assert again().totals.codes == {0: 6, 3: 1}
    assert len(ran) == 7
    assert again().unchanged == 6
    assert ran == ["m/broken.onnx"]
    onnx.save(small(99), folder / "m/broken.onnx")
    onnx.save(small(100), folder / "m/a/m0.onnx")
    (folder / "o/b/m1.onnx").unlink()
    (folder / "m/a/m2.onnx").touch()
    assert again().totals.codes == {0: 7}
    assert ran == ["m/a/m0.onnx", "m/b/m1.onnx", "m/broken.onnx"]
    assert again(options=["--no-merge"]).totals.codes == {0: 7}
    assert len(ran) == 7


def test_an_output_that_no_ledger_knows_is_kept(cluster: distributed.LocalCluster, folder: Path) -> None:
    populate(folder / "m", 2)
    (folder / "o/a").mkdir(parents=True)
    (folder / "o/a/m0.onnx").write_text("precious")
    options: dict[str, Any] = {"out": "o", "scheduler": cluster.scheduler_address}
    result = run("fuse", ["m"], **options)
    assert (result.exit_code, result.totals.codes) == (2, {0: 1, 2: 1})
    assert (folder / "o/a/m0.onnx").read_text() == "precious"
    assert run("fuse", ["m"], **options, overwrite=True).exit_code == 0


def test_an_output_whose_line_was_lost_is_taken_for_done(cluster: distributed.LocalCluster, folder: Path) -> None:
    populate(folder / "m", 2)
    options: dict[str, Any] = {"out": "o", "scheduler": cluster.scheduler_address}
    assert run("fuse", ["m"], **options).exit_code == 0
    (folder / "o" / NAME).unlink()
    assert run("fuse", ["m"], **options).exit_code == 0


def test_inspect_verify_and_bench(cluster: distributed.LocalCluster, folder: Path) -> None:
    populate(folder / "m", 2)
    address = cluster.scheduler_address
    assert run("fuse", ["m"], out="o", scheduler=address).exit_code == 0
    inspected = run("inspect", ["m", "o"], options=["--fail-on-foldable"], scheduler=address, ledger=folder / "i.jsonl")
    assert (inspected.exit_code, inspected.totals.codes) == (1, {0: 2, 1: 2})
    assert (inspected.totals.found, inspected.totals.kept) == (4, 2)
    onnx.save(small(7), folder / "o/a/m0.onnx")
    onnx.save(small(8), folder / "o/a/m8.onnx")
    rows: list[dict[str, Any]] = []
    verified = run("verify", ["o"], baseline="m", options=["--fast"], scheduler=address, each=rows.append)
    assert verified.exit_code == 1
    assert {row["source"]: row["exit_code"] for row in rows} == {"o/b/m1.onnx": 0, "o/a/m0.onnx": 1, "o/a/m8.onnx": 3}
    timed = run("bench", ["o/b"], baseline="m/b", options=["--rounds=32", "--level=all"], scheduler=address)
    assert timed.exit_code == 0


def test_a_list_gives_each_model_its_options(cluster: distributed.LocalCluster, folder: Path) -> None:
    populate(folder / "m", 2)
    entries = [{"source": "m/a/m0.onnx", "output": "x.onnx", "skip": ["*"]}, {"source": "m/gone.onnx"}]
    (folder / "list").write_text("\n".join(["m/b/m1.onnx", *map(json.dumps, entries)]))
    result = run("fuse", listed=folder / "list", out="o", scheduler=cluster.scheduler_address)
    assert result.totals.codes == {0: 2, 3: 1}
    assert result.totals.folded == 1
    assert (folder / "o/x.onnx").exists()


def test_it_can_stop_at_the_first_failure(cluster: distributed.LocalCluster, folder: Path) -> None:
    populate(folder / "m", 60)
    (folder / "m/broken.onnx").write_text("no model, and larger than all others" * 100)
    result = run("inspect", ["m"], keep_going=False, scheduler=cluster.scheduler_address)
    assert result.exit_code == 3
    assert 0 < result.left_out < 60


def kill_whoever_has(name: str, cluster: distributed.LocalCluster, stop: threading.Event) -> None:
    """Kill workers that have a file of such a name open, until it is enough."""
    while not stop.wait(0.1):
        for nanny in cluster.workers.values():
            pid = nanny.process.pid if nanny.process else None
            if pid is not None and any(name in place for place in opened(pid)):
                os.kill(pid, signal.SIGKILL)


def opened(pid: int) -> Iterator[str]:
    """The files and folders that a process has open."""
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())


def test_a_worker_that_dies_costs_no_other_model(
    cluster: distributed.LocalCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one worker that hangs on a model is killed again and again; the rest of its batch is done elsewhere."""
    monkeypatch.setattr(engine, "BATCH", 100)
    populate(folder / "m", 8)
    onnx.save(hanging(), folder / "m/hang.onnx")
    stop = threading.Event()
    killer = threading.Thread(target=kill_whoever_has, args=(".hang.onnx.", cluster, stop))
    killer.start()
    try:
        result = run(
            "fuse",
            ["m"],
            out="o",
            scheduler=cluster.scheduler_address,
            options=["--verify=full", "--fast"],
            seconds=300,
        )
    finally:
        stop.set()
        killer.join()
    assert result.totals.codes == {0: 8, 3: 1}
    line = lines(folder / "o" / NAME)["m/hang.onnx"]
    assert line["record"]["error"]["message"] == "m/hang.onnx: its worker died 3 times on it"
    assert line["attempts"] == 3


def test_a_scheduler_that_cannot_be_used_is_one_line(
    cluster: distributed.LocalCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "PATIENCE", 1.0)
    onnx.save(small(), folder / "m.onnx")
    with pytest.raises(ClusterError, match=r"tcp://127.0.0.1:9: no scheduler of Dask answers there"):
        run("inspect", ["m.onnx"], scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ClusterError, match="no scheduler of Dask answers there"):
        run("inspect", ["m.onnx"], scheduler="nonsense")
    with pytest.raises(UsageError, match="have the number and the memory that they were given"):
        run("inspect", ["m.onnx"], scheduler=cluster.scheduler_address, workers=2)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=60) as empty,
        pytest.raises(ClusterError, match="the scheduler has no worker"),
    ):
        run("inspect", ["m.onnx"], scheduler=empty.scheduler_address)
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("9", "9", "9"))
    with pytest.raises(ClusterError, match=r"the worker has Python 3\.\d+, and here it is 9.9"):
        run("inspect", ["m.onnx"], scheduler=cluster.scheduler_address)


def test_workers_that_do_not_fit_are_wrong_use(folder: Path) -> None:
    onnx.save(small(), folder / "m.onnx")
    with pytest.raises(UsageError, match=r"2 workers of 1e\+06 GB do not fit"):
        run("inspect", ["m.onnx"], workers=2, memory="1PB")


def test_an_interrupted_run_is_gone_on_with(folder: Path) -> None:
    populate(folder / "m", 3)
    onnx.save(hanging(), folder / "m/hang.onnx")
    command = [sys.executable, "-m", "bnfold", "fleet", "fuse", "m", "--out", "o", "--workers", "2"]
    client = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    ledger = folder / "o" / NAME
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (ledger.exists() and len(ledger.read_text().splitlines()) == 3):
        time.sleep(0.05)
    client.send_signal(signal.SIGINT)
    _, said = client.communicate(timeout=60)
    assert (client.returncode, said.strip()) == (130, "bnfold: interrupted")
    assert set(lines(ledger)) == {"m/a/m0.onnx", "m/b/m1.onnx", "m/a/m2.onnx"}
    assert [path.name for path in (folder / "o").iterdir() if "hang" in path.name] == []
