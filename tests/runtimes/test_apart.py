"""What comes back from the process in which runtimes run: results, errors, and the way in which it ended."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnfold.errors import IncomparableError, InvalidModelError
from bnfold.runtimes.apart import METHOD, Apart
from bnfold.runtimes.child import CrashError
from bnfold.runtimes.inputs import Sample
from bnfold.runtimes.stages import stage


def double(number: int, progress: Callable[[str, int, int], None] | None = None) -> tuple[int, int]:
    """A result, and the process that computed it."""
    if progress is not None:
        progress("double", 1, 2)
    return 2 * number, os.getpid()


def refuse(message: str) -> None:
    raise InvalidModelError(message)


def fail() -> None:
    raise KeyError("a defect")


def warn() -> None:
    sys.stderr.write("mind this\n")


def swallow_memory() -> None:
    raise MemoryError


def die(action: str, number: int) -> None:
    with stage("a.onnx", action, "onnxruntime"):
        os.kill(os.getpid(), number)
        time.sleep(10)


def die_between() -> None:
    with stage("a.onnx", "running", "onnxruntime"):
        pass
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    with stage("a.onnx", "running", "torch"):
        os._exit(7)


def sleep(seconds: float) -> None:
    with stage("a.onnx", "loading", "torch"):
        time.sleep(seconds)


def compute_long() -> str:
    """More than a second in all, but in no stage."""
    for _ in range(3):
        with stage("a.onnx", "running", "torch"):
            time.sleep(0.3)
        time.sleep(0.3)
    return "done"


@pytest.mark.parametrize("method", sorted({METHOD, "spawn"}))
def test_calls_are_answered_by_one_other_process(method: str) -> None:
    steps: list[Any] = []
    with Apart(method=method) as other:
        first = other.call(double, 1, progress=lambda *step: steps.append(step))
        second = other.call(double, 2)
    assert (first[0], second[0], steps) == (2, 4, [("double", 1, 2)])
    assert first[1] == second[1] != os.getpid()


def test_errors_of_users_come_back_as_they_are() -> None:
    with Apart() as other:
        with pytest.raises(InvalidModelError, match=r"^a.onnx: is none$"):
            other.call(refuse, "a.onnx: is none")
        with pytest.raises(IncomparableError, match="too much memory"):
            other.call(swallow_memory)
        assert other.call(double, 3)[0] == 6


def test_a_defect_shows_where_it_is() -> None:
    with Apart() as other, pytest.raises(RuntimeError, match=r"in fail\n.*\nKeyError: 'a defect'"):
        other.call(fail)


def test_what_is_written_to_standard_error_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    with Apart() as other:
        other.call(warn)
        other.call(warn)
    assert capsys.readouterr().err == "mind this\nmind this\n"


ENDS: dict[str, tuple[Callable[..., None], tuple[Any, ...], str]] = {
    "a crash while it is loaded": (
        die,
        ("loading", signal.SIGSEGV),
        r"^a.onnx: onnxruntime crashed loading it \(signal 11, SIGSEGV\)$",
    ),
    "an abort": (die, ("running", signal.SIGABRT), r"^a.onnx: onnxruntime crashed running it \(signal 6, SIGABRT\)$"),
    "a kill": (die, ("running", signal.SIGKILL), r"^a.onnx: onnxruntime was killed running it \(signal 9, SIGKILL\)"),
    "a crash in none": (die_between, (), r"^the process that runs the models ended \(signal 11, SIGSEGV\)$"),
    "an exit": (leave, (), r"^a.onnx: torch crashed running it \(exit code 7\)$"),
}


@pytest.mark.parametrize("case", ENDS)
def test_an_end_has_the_name_of_its_model(case: str) -> None:
    function, arguments, message = ENDS[case]
    with Apart() as other, pytest.raises(CrashError, match=message):
        other.call(function, *arguments)


def test_the_time_of_one_stage_is_bounded() -> None:
    began = time.monotonic()
    late = r"^a.onnx: loading it takes torch more than 0.5 seconds$"
    with Apart(0.5) as other, pytest.raises(IncomparableError, match=late):
        other.call(sleep, 300)
    assert time.monotonic() - began < 60


def test_the_time_of_all_stages_is_not_bounded() -> None:
    with Apart(1) as other:
        assert other.call(compute_long) == "done"


def test_inputs_are_sent_without_their_numbers() -> None:
    sample = Sample("normal", {"x": np.ones((1000, 1000), np.float32)}, is_probe=True, is_inside=False)
    sent = pickle.dumps(sample)
    again: Sample = pickle.loads(sent)
    assert len(sent) < 10_000
    assert (again.label, again.is_probe, again.is_inside) == ("normal", True, False)
    assert (again.shapes, again.feeds["x"].dtype) == ({"x": [1000, 1000]}, np.float32)
