"""What a comparison costs, in runs of the models: noise is measured where it decides, names are looked up at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.runtimes.onnx_runtime import OnnxSession
from bnfold.verification.observe import Move, Weighing, observe_move
from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32


def chain(count: int) -> onnx.ModelProto:
    """Convolutions with a BatchNorm each."""
    nodes, constants, last = [], dict[str, np.ndarray](), "x"
    for index in range(count):
        nodes += [
            node("Conv", f"{last} w{index}", f"c{index}", pads=[1, 1, 1, 1]),
            norm(f"c{index}", f"n{index}", f"p{index}_"),
            node("Relu", f"n{index}", f"r{index}"),
        ]
        last = f"r{index}"
        constants[f"w{index}"] = random(8, 8, 3, 3, dtype=FLOAT, seed=index) / FLOAT(6)
        constants |= statistics(8, f"p{index}_", dtype=FLOAT)
    return model([*nodes, node("Identity", last, "y")], constants, (2, 8, 6, 6), dtype=FLOAT)


def with_first_names(original: onnx.ModelProto) -> onnx.ModelProto:
    """Folded by a tool that gives what is fused the name of its first part."""
    fused = bnfold.fuse(original)
    for each in fused.graph.node:
        for names in (each.input, each.output):
            names[:] = [f"c{name[1:]}" if name[0] == "n" and name[1:].isdigit() else name for name in names]
    return fused


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the runs of sessions."""
    counted, call = [0], OnnxSession.__call__

    def counting(self: OnnxSession, *arguments: object, **options: object) -> object:
        counted[0] += 1
        return call(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxSession, "__call__", counting)
    return counted


def test_names_that_moved_cost_two_runs_for_each_input(runs: list[int]) -> None:
    """However many they are: they are all compared at once."""
    costs: list[int] = []
    for count in (4, 12):
        original = chain(count)
        candidate = with_first_names(original)
        runs[0] = 0
        verdict = bnfold.verify(original, candidate)
        assert verdict.is_equivalent
        assert any(f"{count} in all" in finding for finding in verdict.findings)
        costs.append(runs[0])
    assert costs[1] <= costs[0] + 2  # one more draw of the noise is a matter of chance


def test_noise_is_not_measured_where_a_candidate_needs_none(runs: list[int]) -> None:
    original = chain(4)
    bnfold.verify(original, original, samples=1, effort="fast")
    least = runs[0]
    runs[0] = 0
    wrong = chain(4)
    wrong.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(random(8, 8, 3, 3, dtype=FLOAT, seed=9), "w0"))
    assert not bnfold.verify(original, wrong, samples=1, effort="fast").is_equivalent
    assert runs[0] > least, "a difference was judged without measuring the noise"


@pytest.mark.parametrize("seed", range(40))
def test_what_passes_with_less_noise_passes_with_more(seed: int) -> None:
    """So that it is no other verdict, only an earlier one."""
    generator = np.random.default_rng(seed)
    expected = (generator.standard_normal((2, 16, 4, 4)) * 10.0 ** generator.integers(-4, 1, (1, 16, 1, 1))).astype(
        FLOAT
    )

    def moved(size: float) -> np.ndarray:
        return (expected * (1 + size * generator.standard_normal(expected.shape))).astype(FLOAT)

    disturbed = [moved(2e-7) for _ in range(3)]
    moves: Sequence[Move] = [observe_move(expected, array) for array in disturbed]
    for size in np.geomspace(1e-7, 1e-4, 24):
        actual = moved(size)
        full = Weighing(expected, actual, list(moves), 3).observe(is_output=True)
        for known in range(3):
            if Weighing(expected, actual, list(moves[:known]), 3).is_clear:
                assert not full.reason


def test_a_model_runs_twice_where_an_operator_may_draw(runs: list[int]) -> None:
    """The reference and the candidate run once each, the candidate once more as deployed."""
    plain, unknown = chain(1), chain(1)
    unknown.graph.node[-1].CopyFrom(node("Gelu", "r0", "y", domain="com.microsoft"))
    unknown.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    costs: list[int] = []
    for original in (plain, unknown):
        runs[0] = 0
        assert bnfold.verify(original, original, samples=1, effort="fast", outputs_only=True).is_equivalent
        costs.append(runs[0])
    assert costs == [3, 4]
