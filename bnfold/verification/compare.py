"""The judgement: are the outputs of two models the same, apart from rounding?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError
from bnfold.verification.inputs import InputOptions, find
from bnfold.verification.onnx_runner import OnnxRunner

ROUNDINGS = 512
"""Roundings of the output's type that a fold may move an output by, relative to its largest value."""


@dataclass(frozen=True)
class OutputVerdict:
    """One output on one provider.

    Attributes:
        error: largest absolute difference over the largest absolute reference value; the worst over all inputs.
        budget: the largest error that passes.
        is_equivalent: whether it passes.
    """

    name: str
    provider: str
    error: float
    budget: float
    is_equivalent: bool


@dataclass(frozen=True)
class Verdict:
    """All outputs together."""

    outputs: tuple[OutputVerdict, ...]
    inputs: int

    @property
    def is_equivalent(self) -> bool:
        """Whether every output passes."""
        return all(output.is_equivalent for output in self.outputs)

    @property
    def worst(self) -> OutputVerdict:
        """The output with the largest error."""
        return max(self.outputs, key=lambda output: (not output.is_equivalent, output.error))


def compare_files(reference: Path, candidate: Path, options: InputOptions) -> Verdict:
    """Run two files, unoptimised and on the CPU, on the same inputs.

    Raises:
        IncomparableError: other inputs or outputs, or a runtime that cannot run one of them.
    """
    first, second = _runner(reference), _runner(candidate)
    if first.inputs != second.inputs or first.outputs != second.outputs:
        raise IncomparableError(f"{reference} and {candidate} have other inputs or outputs")
    worst: dict[str, OutputVerdict] = {}
    feeds = find(first.inputs, options)
    for feed in feeds:
        for name, expected, actual in zip(first.outputs, first.run(feed), second.run(feed), strict=True):
            verdict = _judge(name, expected, actual)
            known = worst.get(name)
            if known is None or (not verdict.is_equivalent, verdict.error) > (not known.is_equivalent, known.error):
                worst[name] = verdict
    return Verdict(tuple(worst.values()), len(feeds))


def _runner(path: Path) -> Any:
    if path.suffix != ".pt2":
        return OnnxRunner(path)
    from bnfold.verification.torch_runner import TorchRunner

    return TorchRunner(path)


def _judge(name: str, expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> OutputVerdict:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return OutputVerdict(name, "cpu", float("inf"), 0.0, False)
    if expected.dtype.kind != "f":
        same = bool(np.array_equal(expected, actual))
        return OutputVerdict(name, "cpu", 0.0 if same else float("inf"), 0.0, same)
    budget = ROUNDINGS * float(np.finfo(expected.dtype).eps)
    error = _error(expected.astype(np.float64), actual.astype(np.float64))
    return OutputVerdict(name, "cpu", error, budget, error <= budget)


def _error(expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> float:
    """Scaled difference; infinite where either is not finite in the same places, or nowhere finite."""
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True) or not np.isfinite(actual[finite]).all():
        return float("inf")
    if expected.size and not finite.any():
        return float("inf")
    difference = float(np.abs(expected[finite] - actual[finite]).max(initial=0.0))
    return difference / float(np.abs(expected[finite]).max(initial=0.0)) if difference else 0.0
