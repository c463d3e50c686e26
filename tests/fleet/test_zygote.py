"""A fork that runs the command line: how it ends is told, and nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from bnfold.fleet.launcher import Launcher, LostError
from bnfold.fleet.zygote import Ending
from tests.toys.fleets import greedy, hanging, small


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher("onnx")
    yield launcher
    launcher.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(small(), tmp_path / "small.onnx")
    onnx.save(hanging(), tmp_path / "hang.onnx")
    onnx.save(greedy(), tmp_path / "greedy.onnx")
    return tmp_path


def run(launcher: Launcher, folder: Path, *arguments: str, seconds: float = 60, memory: int | None = None) -> Ending:
    return launcher.run(arguments, str(folder), [folder / "out", folder / "err"], seconds, memory)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_fork_does_what_a_new_process_does(launcher: Launcher, folder: Path) -> None:
    for arguments in (
        ["inspect", "--json", "small.onnx"],
        ["fuse", "small.onnx", "-o", "o.onnx"],
        ["fuse", "gone.onnx"],
    ):
        ending = run(launcher, folder, *arguments)
        (folder / "o.onnx").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "bnfold", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        (folder / "o.onnx").unlink(missing_ok=True)
        assert ending.code == done.returncode
        if "--json" in arguments:
            mine, its = (json.loads(text) for text in ((folder / "out").read_text(), done.stdout))
            assert mine | {"seconds": 0, "provenance": 0} == its | {"seconds": 0, "provenance": 0}
        assert (folder / "err").read_text() == done.stderr


def test_what_takes_too_long_is_ended_with_all_it_started(launcher: Launcher, folder: Path) -> None:
    ending = run(launcher, folder, "fuse", "hang.onnx", "-o", "o.onnx", "-q", seconds=4)
    assert (ending.cause, ending.signal) == ("time", signal.SIGKILL)
    assert 4 < ending.seconds < 8
    assert children(launcher._process.pid) == []
    assert not (folder / "o.onnx").exists()


def test_what_takes_too_much_memory_is_ended(launcher: Launcher, folder: Path) -> None:
    ending = run(launcher, folder, "fuse", "greedy.onnx", "-o", "o.onnx", "-q", memory=1_000_000_000)
    assert (ending.cause, ending.signal) == ("memory", signal.SIGKILL)
    assert run(launcher, folder, "inspect", "small.onnx", memory=1_000_000_000).code == 0


def test_a_signal_from_elsewhere_is_told(launcher: Launcher, folder: Path) -> None:
    def kill() -> None:
        while not (found := children(launcher._process.pid)):
            time.sleep(0.01)
        os.kill(found[0], signal.SIGSEGV)

    killer = threading.Thread(target=kill)
    killer.start()
    ending = run(launcher, folder, "fuse", "hang.onnx", "-o", "o.onnx")
    killer.join()
    assert (ending.cause, ending.signal) == ("", signal.SIGSEGV)


def test_a_launcher_that_is_killed_says_so_and_leaves_nothing_running(folder: Path) -> None:
    launcher = Launcher("onnx")
    forks: list[int] = []

    def kill() -> None:
        while not (found := children(launcher._process.pid)):
            time.sleep(0.01)
        forks.extend(found)
        launcher._process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(LostError):
        run(launcher, folder, "fuse", "hang.onnx", "-o", "o.onnx")
    killer.join()
    launcher.close()
    deadline = time.monotonic() + 10
    while forks and Path(f"/proc/{forks[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{fork}/fd/0").exists() for fork in forks)
