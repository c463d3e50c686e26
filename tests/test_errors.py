"""Errors keep what they say on their way between processes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from inspect import isclass
from pathlib import Path
from typing import Any

import pytest

import bnfold
from bnfold import errors
from bnfold.report import files
from bnfold.runtimes.child import run_module, serve

KINDS = [each for each in vars(errors).values() if isclass(each) and issubclass(each, bnfold.BnfoldError)]


def example(kind: type[bnfold.BnfoldError]) -> bnfold.BnfoldError:
    """An error with a value for every attribute that its class describes."""
    error = kind("net.onnx: is wrong")
    if isinstance(error, bnfold.NotEquivalentError):
        error.result = ("outcomes", 1)
    error.add_note("seen on a Monday")
    return error


def through_pickle(error: Any) -> Any:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("remake", [through_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_an_error_says_the_same(kind: type[bnfold.BnfoldError], remake: Callable[[Any], Any]) -> None:
    error = example(kind)
    other = remake(error)
    assert type(other) is kind
    assert (str(other), vars(other), other.exit_code) == (str(error), vars(error), error.exit_code)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_process_of_a_cold_start_is_raised_here(
    kind: type[bnfold.BnfoldError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(job: object) -> dict[str, Any]:
        raise example(kind)

    def run_here(command: list[str], *, input: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: A002
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        serve(fail)
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(subprocess, "run", run_here)
    with pytest.raises(bnfold.BnfoldError, match=r"net\.onnx: is wrong") as raised:
        run_module("bnfold.bench.worker", {}, "net.onnx")
    assert type(raised.value) is kind


def test_a_report_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(bnfold.OutputError, match="No such file"):
        files.write({"command": "inspect"}, tmp_path / "missing" / "report.json")


def test_every_error_but_those_of_tensors_is_public() -> None:
    assert {each.__name__ for each in KINDS} - set(bnfold.__all__) == {"UnreadableTensorError"}
