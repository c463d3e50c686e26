"""A runtime that dies or hangs is one line with the model and the node, exit code 3, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.proof.test_proof_files import conv, crashing

BNFOLD = [sys.executable, "-m", "bnfold"]


def looping(count: int) -> onnx.ModelProto:
    """A Relu in a Loop. The runtime does not end if it is to do that often enough."""
    shapes = {"i": [], "more": [], "state": None}
    kinds = {"i": TensorProto.INT64, "more": TensorProto.BOOL, "state": TensorProto.FLOAT}
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["more_on"]), helper.make_node("Relu", ["state"], ["state_on"])],
        "body",
        [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in kinds],
        [helper.make_tensor_value_info(f"{name}_on", kinds[name], shapes[name]) for name in ("more", "state")],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "before"),
        helper.make_node("Loop", ["count", "true", "a"], ["b"], "endless", body=body),
        helper.make_node("Relu", ["b"], ["y"], "behind"),
    ]
    constants = [
        helper.make_tensor("count", TensorProto.INT64, [], [count]),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = {
        "fine.onnx": conv(np.float32, opset=9),
        "crash.onnx": crashing(),
        "short.onnx": looping(2),
        "hang.onnx": looping(1 << 62),
    }
    for name, proto in models.items():
        onnx.save(proto, tmp_path / name)
    np.savez(tmp_path / "data.npz", **{models["crash.onnx"].graph.input[0].name: np.ones((2, 4, 5, 5), np.float32)})
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and all that the command says; no file may appear."""
    before = set(folder.rglob("*"))
    done = subprocess.run([*BNFOLD, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert set(folder.rglob("*")) == before
    return done.returncode, done.stdout + done.stderr


CRASH = "bnfold: crash.onnx: onnxruntime crashed running it, in 'BatchNormalization_y' (signal 11, SIGSEGV)\n"
HANG = "bnfold: hang.onnx: running it takes onnxruntime more than 3 seconds, in 'endless'\n"

COMMANDS = {
    "verify crash.onnx fine.onnx": CRASH,
    "verify fine.onnx crash.onnx": CRASH,
    "verify hang.onnx short.onnx --timeout 3": HANG,
    "verify short.onnx hang.onnx --timeout 3": HANG,
    "fuse crash.onnx -o out.onnx --verify full": CRASH,
    "inspect crash.onnx --inputs data.npz": CRASH,
    "bench crash.onnx fine.onnx --level disabled": "bnfold: crash.onnx: the runtime crashed on it (signal 11)\n",
    "bench hang.onnx short.onnx --level disabled --timeout 3": (
        "bnfold: hang.onnx: the runtime takes more than 3 seconds for it\n"
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_runtime_that_dies_or_hangs_is_one_line(command: str, folder: Path) -> None:
    assert run(folder, *command.split()) == (3, COMMANDS[command])


@pytest.fixture
def hanging(folder: Path) -> subprocess.Popen[str]:
    command = [*BNFOLD, "verify", "hang.onnx", "short.onnx"]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a process started; waits until there is one that has computed for a while."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        if any(spent(pid) > 1.5 for pid in found):
            return found
        time.sleep(0.05)
    raise AssertionError("it never ran the model")


def spent(pid: int) -> float:
    """The seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_runtime_that_the_system_kills_is_one_line(hanging: subprocess.Popen[str]) -> None:
    (child,) = children(hanging)
    os.kill(child, signal.SIGKILL)
    said, errors = hanging.communicate(timeout=60)
    killed = "onnxruntime was killed running it (signal 9, SIGKILL): perhaps it takes too much memory"
    assert (hanging.returncode, said, errors) == (3, "", f"bnfold: hang.onnx: {killed}\n")


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "bnfold: interrupted"), (signal.SIGTERM, 143, "")]
)
def test_a_command_that_is_interrupted_ends_its_runtime(
    hanging: subprocess.Popen[str], number: signal.Signals, code: int, line: str
) -> None:
    (child,) = children(hanging)
    hanging.send_signal(number)
    said, errors = hanging.communicate(timeout=60)
    assert (said, errors.strip()) == ("", line)
    assert (hanging.returncode, is_alive(child)) == (code, False)


def test_a_command_that_is_killed_leaves_no_runtime_behind(hanging: subprocess.Popen[str]) -> None:
    (child,) = children(hanging)
    hanging.kill()
    hanging.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)
