"""The smoke run: what no right result reaches is refused, and whatever keeps a model from running is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import bnfold
from bnfold.errors import IncomparableError
from bnfold.runtimes.inputs import DRAWN, InputOptions
from bnfold.verification import smoke
from bnfold.verification.onnx_subject import OnnxSubject
from bnfold.verification.smoke import SmokeRun, run_once
from tests.proof.test_proof_files import conv, crashing, drawn, shapeless
from tests.toys.onnx_graphs import model, node, random

FLOAT = np.float32

Run = Callable[..., SmokeRun]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a model and another one."""

    def both(original: onnx.ModelProto, result: onnx.ModelProto, inputs: InputOptions = DRAWN) -> SmokeRun:
        paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
        for path, proto in zip(paths, (original, result), strict=True):
            onnx.save(proto, path)
        return run_once(*paths, lambda: OnnxSubject(original, "the model").inputs, inputs)

    return both


def chain(kernel: np.ndarray, *behind: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    nodes = [node("Conv", "x w", "c"), *behind]
    kind = FLOAT if behind[-1:] == () or behind[-1].op_type != "ArgMax" else np.int64
    proto = model(nodes, {"w": kernel, **constants}, (1, 4, 6, 6), outputs=nodes[-1].output[0], dtype=FLOAT)
    proto.graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return proto


KERNEL = random(5, 4, 3, 3, dtype=FLOAT)


def test_what_is_the_same_has_no_difference(run: Run) -> None:
    found = run(chain(KERNEL), chain(KERNEL))
    assert (found.has_run, found.error, found.difference, found.notes) == (True, 0.0, "", ())
    assert found.shapes == {"x": [1, 4, 6, 6]}


def test_another_weight_is_refused(run: Run) -> None:
    found = run(chain(KERNEL), chain(KERNEL * FLOAT(1.01)))
    assert found.difference.startswith("output 'c' is off by 1.0e-02 of its size, and rounding alone moves it by ")


def test_a_number_that_is_lost_is_refused(run: Run) -> None:
    kernel = KERNEL.copy()
    kernel[0, 0, 0, 0] = np.nan
    assert run(chain(KERNEL), chain(kernel)).difference == (
        "output 'c' holds NaN or infinity, where the original has numbers"
    )
    assert run(chain(kernel), chain(KERNEL)).difference == ""


def test_what_cancels_is_no_false_alarm(run: Run) -> None:
    """The output is what rounding leaves of a difference."""
    behind = [node("Conv", "x w2", "d"), node("Sub", "c d", "e"), node("Mul", "e many", "y")]
    constants = {"w2": KERNEL, "many": np.asarray(1e6, FLOAT)}
    moved = np.nextafter(KERNEL, FLOAT(9))
    found = run(chain(KERNEL, *behind, **constants), chain(moved, *behind, **constants))
    assert found.difference == ""
    assert found.notes[0].startswith("output 'y' is not compared: rounding alone moves it by ")
    assert run(chain(KERNEL, *behind, **constants), chain(KERNEL * 2, *behind, **constants)).difference


def test_a_choice_is_not_compared(run: Run) -> None:
    behind = node("ArgMax", "c", "y", axis=1)
    found = run(chain(KERNEL, behind), chain(-KERNEL, behind))
    assert found.difference == ""
    assert found.notes == ("output 'y' is not compared: it lies behind an operator that jumps, as ArgMax does",)
    assert run(chain(KERNEL, behind), chain(KERNEL, behind)).error == 0


def test_another_shape_is_refused(run: Run) -> None:
    assert run(chain(KERNEL), chain(KERNEL[:, :, :2, :2])).difference == (
        "output 'c' is float32[1, 5, 5, 5] and was float32[1, 5, 4, 4]"
    )


def test_random_numbers_are_not_compared(run: Run) -> None:
    found = run(drawn(), bnfold.fuse(drawn()))
    assert found.error is not None
    assert found.error < 1e-6
    assert found.notes == ("output 'r' is not compared: the model draws random numbers",)


def test_a_result_that_alone_crashes_the_runtime_is_refused(run: Run) -> None:
    found = run(conv(FLOAT, opset=9), crashing())
    assert found.difference == "onnxruntime crashes on the result (signal 11), and not on the original"
    assert not run(crashing(), conv(FLOAT, opset=9)).has_run


def test_a_result_that_alone_cannot_be_loaded_is_refused(run: Run) -> None:
    unknown = chain(KERNEL)
    unknown.graph.node[0].op_type = "Convolve"
    assert run(chain(KERNEL), unknown).difference.startswith("the result: onnxruntime cannot load it (")
    found = run(unknown, chain(KERNEL))
    assert (found.has_run, found.difference) == (False, "")


def test_what_takes_too_long_is_not_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "SECONDS", 0.01)
    found = run(chain(KERNEL), chain(KERNEL))
    assert found.notes == ("not run: the runtime takes more than 0.01 seconds for it",)


def test_a_process_that_is_ended_from_outside_says_nothing_of_the_result(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.CompletedProcess([], -9, f"{smoke.ABOUT}\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    assert run(chain(KERNEL), chain(KERNEL)).notes == ("not run: onnxruntime crashed on it (signal 9)",)


def test_without_a_runtime_nothing_is_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "find_spec", lambda name: None)
    assert run(chain(KERNEL), chain(KERNEL)).notes == (
        "not run: onnxruntime is not installed (pip install 'bnfold[cpu]')",
    )


@pytest.mark.parametrize("is_path", [True, False])
def test_an_input_without_a_shape_is_run_on_what_the_caller_gives(is_path: bool, run: Run, tmp_path: Path) -> None:
    assert not run(shapeless(), shapeless()).has_run
    feeds: dict[str, Any] = {"x": np.ones((2, 4, 5, 5), FLOAT)}
    np.savez(tmp_path / "x.npz", **feeds)
    inputs = InputOptions((tmp_path / "x.npz",)) if is_path else InputOptions(given=(feeds,))
    found = run(shapeless(), shapeless(), inputs)
    assert (found.error, found.shapes) == (0.0, {"x": [2, 4, 5, 5]})


def test_inputs_that_do_not_fit_are_an_error(run: Run) -> None:
    with pytest.raises(IncomparableError, match="no such dimension"):
        run(chain(KERNEL), chain(KERNEL), InputOptions(dims={"N": 3}))
    with pytest.raises(IncomparableError, match="the model wants"):
        run(chain(KERNEL), chain(KERNEL), InputOptions(given=({"x": np.ones(3, FLOAT)},)))


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("smoke", ["torch", "onnx_ir", "bnfold.verification.compare", "bnfold.frontends.onnx", "bnfold.api"]),
        (
            "onnx_subject",
            ["torch", "bnfold.frontends.onnx.view", "bnfold.planning", "bnfold.proof.checker", "bnfold.api"],
        ),
    ],
)
def test_a_process_starts_without_what_it_does_not_need(module: str, heavy: list[str]) -> None:
    code = f"import sys, bnfold.verification.{module}; print([each for each in sys.argv[1:] if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
