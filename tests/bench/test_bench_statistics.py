"""What bench concludes from timings is right, on simulated timings whose truth is known; no clock is read."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.bench import statistics
from bnfold.bench.gate import Answer, Gate
from bnfold.bench.statistics import (
    Ratio,
    Verdict,
    decide,
    doubling_looks,
    is_narrow,
    looks,
    paired_ratio,
    student_quantile,
    visible_change,
)

RUNS, SITTINGS, ROUNDS = 400, 24, 4


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)


def simulate(generator: np.random.Generator, *, effect: float, placement: float = 0.02) -> np.ndarray:
    """Turns of baseline, candidate and the baseline's twin, [3, sittings, rounds].

    On a machine that drifts, with load that comes and goes over several turns, a tenth of the turns interrupted for any
    length, and sessions that are faster or slower for as long as they live.
    """
    turns = 3 * SITTINGS * ROUNDS
    drift = np.cumsum(generator.normal(0, 0.01, turns))
    load, shocks = np.zeros(turns), generator.standard_t(2, turns) * 0.02
    for turn in range(1, turns):
        load[turn] = 0.9 * load[turn - 1] + shocks[turn]
    interrupted = 1 + np.where(generator.random(turns) < 0.1, generator.pareto(1.5, turns), 0)
    in_time = (np.exp(drift + load) * interrupted).reshape(-1, 3)
    order = np.argsort(generator.random(in_time.shape), axis=1)
    seconds = np.take_along_axis(in_time, order, axis=1)
    seconds *= np.exp(np.repeat(generator.normal(0, placement, (SITTINGS, 3)), ROUNDS, axis=0))
    seconds[:, 1] *= effect
    return seconds.T.reshape(3, SITTINGS, ROUNDS)


def conclude(seconds: np.ndarray) -> tuple[Ratio, Verdict]:
    """As a measurement goes: it stops at the first look where the intervals are narrow enough."""
    for look in looks(SITTINGS):
        baseline, candidate, twin = seconds[:, :look]
        ratio, noise = paired_ratio(candidate, baseline), paired_ratio(twin, baseline)
        if is_narrow([ratio, noise]):
            break
    return ratio, decide(ratio, noise)


def conclusions(effect: float, *, runs: int = RUNS, placement: float = 0.02) -> list[tuple[Ratio, Verdict]]:
    generator = np.random.default_rng(1)
    return [conclude(simulate(generator, effect=effect, placement=placement)) for _ in range(runs)]


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


@pytest.mark.parametrize("placement", [0.0, 0.05])
def test_false_alarms_are_rare(placement: float) -> None:
    results = conclusions(1.0, placement=placement)
    assert share([verdict is not Verdict.UNCHANGED for _, verdict in results]) < statistics.ALPHA
    assert share([not ratio.low <= 1 <= ratio.high for ratio, _ in results]) < statistics.ALPHA


def test_stopping_early_adds_no_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "PRECISION", 0.025)  # so that about half of the runs stop before the last look
    results = conclusions(1.0)
    assert share([verdict is not Verdict.UNCHANGED for _, verdict in results]) < statistics.ALPHA
    assert share([not ratio.low <= 1 <= ratio.high for ratio, _ in results]) < statistics.ALPHA


def test_differences_are_found() -> None:
    results = conclusions(1 / 1.1, runs=100)
    assert share([verdict is Verdict.FASTER for _, verdict in results]) > 0.95
    results = conclusions(1.1, runs=100)
    assert share([verdict is Verdict.SLOWER for _, verdict in results]) > 0.95


def test_rounds_of_one_sitting_are_not_independent() -> None:
    """The trap: a bootstrap over rounds takes the placement of a few sessions for a difference."""
    generator = np.random.default_rng(1)
    alarms = []
    for _ in range(RUNS // 4):
        baseline, candidate, _ = simulate(generator, effect=1.0, placement=0.05)
        # Two long-lived sessions each, as without sittings: placement is drawn once, rounds are many.
        steady = np.exp(generator.normal(0, 0.05, 2))
        rounds = [
            (each / np.median(each) * factor).reshape(-1, 1)
            for each, factor in zip((baseline, candidate), steady, strict=True)
        ]
        ratio = paired_ratio(rounds[1], rounds[0])
        alarms.append(not ratio.low <= 1 <= ratio.high)
    assert share(alarms) > 0.3


def test_the_interval_is_the_same_each_time() -> None:
    baseline, candidate, _ = simulate(np.random.default_rng(5), effect=1.0)
    assert paired_ratio(candidate, baseline) == paired_ratio(candidate, baseline)


def test_a_ratio_is_time_over_the_time_of_the_baseline() -> None:
    baseline = np.full((SITTINGS, ROUNDS), 2.0)
    ratio = paired_ratio(baseline / 2, baseline)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    assert decide(ratio, Ratio(1, 1, 1)) is Verdict.FASTER


@pytest.mark.parametrize(
    ("ratio", "noise", "expected"),
    [
        (Ratio(0.9, 0.85, 0.95), Ratio(1, 0.98, 1.02), Verdict.FASTER),
        (Ratio(1.1, 1.05, 1.15), Ratio(1, 0.98, 1.02), Verdict.SLOWER),
        (Ratio(0.9, 0.80, 1.01), Ratio(1, 0.98, 1.02), Verdict.UNCHANGED),  # holds 1
        (Ratio(1.1, 0.99, 1.20), Ratio(1, 0.98, 1.02), Verdict.UNCHANGED),
        (Ratio(0.9, 0.85, 0.95), Ratio(1, 0.85, 1.00), Verdict.UNCHANGED),  # chance alone reaches as far
        (Ratio(0.9, 0.85, 0.95), Ratio(1, 1.00, 1.15), Verdict.UNCHANGED),  # in whichever direction
        (Ratio(1.1, 1.05, 1.15), Ratio(1, 0.85, 1.00), Verdict.UNCHANGED),
        (Ratio(1.0, 1.0, 1.0), Ratio(1, 1, 1), Verdict.UNCHANGED),
    ],
)
def test_decisions(ratio: Ratio, noise: Ratio, expected: Verdict) -> None:
    assert decide(ratio, noise) is expected


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 5, 2.5706), (0.975, 9, 2.2622), (0.995, 7, 3.4995), (0.99, 23, 2.4999), (0.975, 100, 1.9840)],
)
def test_student_quantiles_are_those_of_the_tables(probability: float, freedom: int, expected: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=2e-3)


def test_looks_are_few_and_fixed() -> None:
    assert looks(60) == (15, 30, 60)
    assert looks(8) == (8,)
    assert all(len(looks(count)) <= len(statistics.LOOKS) and looks(count)[-1] == count for count in range(8, 100))
    assert len(doubling_looks()) == statistics.MOST_LOOKS


# ------------------------------------------------------------------------------------------------------------- the gate

QUIET = Ratio(1, 0.99, 1.01)


@pytest.mark.parametrize(
    ("gate", "ratio", "noise", "expected"),
    [
        (Gate(speedup=1.05), Ratio(0.90, 0.88, 0.92), QUIET, Answer.MET),
        (Gate(speedup=1.05), Ratio(0.95, 0.93, 0.97), QUIET, Answer.UNKNOWN),  # 1 / 1.05 is inside
        (Gate(speedup=1.05), Ratio(0.98, 0.96, 0.99), QUIET, Answer.NOT_MET),
        (Gate(speedup=1.05), Ratio(0.90, 0.88, 0.92), Ratio(1, 0.85, 1.1), Answer.UNKNOWN),  # chance reaches as far
        (Gate(speedup=0.95), Ratio(1.02, 1.00, 1.04), QUIET, Answer.MET),  # may lose 5 %
        (Gate(no_slower=True), Ratio(1.00, 0.98, 1.02), QUIET, Answer.UNKNOWN),
        (Gate(no_slower=True), Ratio(0.95, 0.93, 0.97), QUIET, Answer.MET),
        (Gate(no_slower=True), Ratio(1.05, 1.03, 1.07), QUIET, Answer.NOT_MET),
        (Gate(no_slower=True), Ratio(1.05, 1.03, 1.07), Ratio(1, 0.9, 1.1), Answer.UNKNOWN),
        (Gate(speedup=0.9, no_slower=True), Ratio(1.05, 1.03, 1.07), QUIET, Answer.NOT_MET),
    ],
)
def test_what_a_gate_answers(gate: Gate, ratio: Ratio, noise: Ratio, expected: Answer) -> None:
    assert gate.answer(ratio, noise) is expected


def test_a_speedup_has_to_be_shown_and_so_has_a_slowdown() -> None:
    assert [Gate(speedup=1.1).passes(each) for each in Answer] == [True, False, False]
    assert [Gate(no_slower=True).passes(each) for each in Answer] == [True, False, True]


def test_gates_give_few_false_alarms() -> None:
    results = conclusions(1.0)
    alarms = [Gate(no_slower=True).answer(ratio, QUIET) is Answer.NOT_MET for ratio, _ in results]
    assert share(alarms) < statistics.ALPHA
    lucky = [Gate(speedup=1.02).answer(ratio, QUIET) is Answer.MET for ratio, _ in conclusions(1 / 1.01)]
    assert share(lucky) < statistics.ALPHA


@pytest.mark.parametrize("placement", [0.0, 0.05])
def test_a_visible_change_is_seen_and_a_smaller_one_often_is_not(placement: float) -> None:
    generator = np.random.default_rng(2)

    def found(effect: float) -> bool:
        baseline, candidate, twin = simulate(generator, effect=effect, placement=placement)
        ratio, noise = paired_ratio(candidate, baseline), paired_ratio(twin, baseline)
        return decide(ratio, noise) is Verdict.SLOWER

    changes = []
    for _ in range(100):
        baseline, candidate, twin = simulate(generator, effect=1.0, placement=placement)
        changes.append(visible_change(paired_ratio(candidate, baseline), paired_ratio(twin, baseline), SITTINGS))
    typical = float(np.median(changes))
    assert share([found(1 + typical) for _ in range(200)]) >= 0.9  # the interval that tells it is drawn itself
    assert share([found(1 + typical / 3) for _ in range(200)]) < 0.5
