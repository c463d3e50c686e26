"""Searches for folds that lose digits: random graphs and real normalisations, judged against float64.

    python scripts/benchmarks/rounding.py random [--first N] [--count N] [--list N]
    python scripts/benchmarks/rounding.py replay SEED...
    python scripts/benchmarks/rounding.py traps
    python scripts/benchmarks/rounding.py sweep [--seeds N] [--docs PAGE]
    python scripts/benchmarks/rounding.py table [--seeds N] [--docs PAGE]

The reference is the original in float64 on the weights as they are stored. Original and result are run in their own
type, by onnxruntime without optimisation and by an evaluator that subtracts a BatchNorm's mean first and rounds every
node's result. The root mean square of the result's error may be at most twice the original's plus one rounding of the
output: of an output as a whole, where each channel counts by its own size; of a single channel it may be twice that.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

import bnfold
from scripts.benchmarks import node_evaluator
from scripts.benchmarks.page import write_section
from scripts.benchmarks.rounding_graphs import Case, random_case
from scripts.benchmarks.rounding_judge import Verdict, judge
from scripts.benchmarks.rounding_normalisations import table
from scripts.benchmarks.rounding_sweep import sweep
from scripts.benchmarks.rounding_traps import traps

# -------------------------------------------------------------------------------------------------------------- causes


def cause(case: Case, outcomes: tuple[bnfold.Outcome, ...], seed: int) -> str:
    """The kinds of the fewest folds, found by leaving out one after another, that still make the result wrong."""
    left_out: list[str] = []

    def is_wrong(names: list[str], *, merge: bool) -> bool:
        return judge(case, bnfold.fuse(case.model, skip=names, merge=merge), seed).is_violation

    merge = not is_wrong([], merge=False)
    for each in outcomes:
        if isinstance(each, bnfold.Fold) and is_wrong([*left_out, each.batchnorm], merge=merge):
            left_out.append(each.batchnorm)
    _, kept = bnfold.fuse(case.model, skip=left_out, merge=merge, return_outcomes=True)
    ops = {node.name: node.op_type for node in case.model.graph.node}
    return "; ".join(sorted({kind(each, ops) for each in kept if not isinstance(each, bnfold.Refusal)}))


ARITHMETIC = dict.fromkeys(("Add", "Sub", "Mul", "Div"), "arithmetic")


def kind(outcome: bnfold.Fold | bnfold.Merge, ops: dict[str, str]) -> str:
    def known(*names: str) -> str:
        found = {ops.get(part, part) for name in names for part in name.split("+")}
        return "+".join(sorted({ARITHMETIC.get(op, op) for op in found}))

    if isinstance(outcome, bnfold.Merge):
        return f"merge of {known(*outcome.branches)} into {known(outcome.into)}"
    return f"{known(outcome.batchnorm)} {outcome.direction} into {known(*outcome.into)}"


# ------------------------------------------------------------------------------------------------------------ a search


@dataclass
class Tally:
    """What a search found."""

    judged: int = 0
    undescribed: int = 0
    unusable: int = 0
    folded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    ratios: list[float] = field(default_factory=list)
    deployed: list[float] = field(default_factory=list)
    violations: list[tuple[float, int, str, str]] = field(default_factory=list)
    stored: list[tuple[float, int, str, str]] = field(default_factory=list)


def count(tally: Tally, outcomes: tuple[bnfold.Outcome, ...]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, bnfold.Fold):
            what = "BatchNorms" if outcome.is_batchnorm else "other affines"
            tally.folded[f"{what} {outcome.direction}"] += 1
        elif isinstance(outcome, bnfold.Merge):
            tally.folded["merges"] += 1
        else:
            tally.refused[str(outcome.reason)] += 1


def search(seeds: range) -> Tally:
    tally = Tally()
    for seed in seeds:
        case = random_case(seed)
        if case is None:
            tally.unusable += 1
            continue
        result, outcomes = bnfold.fuse(case.model, return_outcomes=True)
        count(tally, outcomes)
        changed = any(not isinstance(each, bnfold.Refusal) for each in outcomes)
        if not changed:
            tally.judged += 1
            continue
        verdict = judge(case, result, seed)
        tally.judged += 1
        tally.undescribed += not case.is_described
        if verdict.worst and verdict.deployed:
            tally.ratios.append(verdict.worst.excess)
            tally.deployed.append(verdict.deployed.excess)
        if verdict.is_violation:
            excess = verdict.worst.excess if verdict.worst else np.inf
            listed = tally.stored if verdict.is_like_storing else tally.violations
            listed.append((excess, seed, cause(case, outcomes, seed), line(case, verdict)))
    return tally


def line(case: Case, verdict: Verdict) -> str:
    if verdict.wrong:
        return f"{verdict.wrong}; {case.note}"
    channel, deployed = verdict.worst, verdict.deployed
    assert channel
    assert deployed
    return (
        f"error {channel.original:.1e} -> {channel.result:.1e} of {channel.size:.1e} (x{channel.ratio:.1f}; by "
        f"onnxruntime x{deployed.ratio:.1f}); {case.note}"
    )


def report(tally: Tally, listed: int, seconds: float) -> Iterator[str]:
    yield (
        f"{tally.judged} graphs ({tally.undescribed} changed ones whose statistics say nothing about the data), "
        f"{tally.unusable} unusable, {seconds:.0f} s"
    )
    yield (
        f"beyond twice the original's error and one rounding: {len(tally.violations)}, and {len(tally.stored)} that "
        "are as accurate as the original with its kernels rounded once more"
    )
    yield "folded: " + ", ".join(f"{number} {what}" for what, number in tally.folded.most_common())
    yield "refused: " + ", ".join(f"{number} {reason}" for reason, number in tally.refused.most_common())
    for name, values in (("at its best", tally.ratios), ("by onnxruntime", tally.deployed)):
        if values:
            at = np.percentile(values, [50, 90, 99, 99.9, 100])
            yield f"error over allowed error, {name}: " + ", ".join(
                f"{share} {value:.2g}" for share, value in zip(("p50", "p90", "p99", "p99.9", "max"), at, strict=True)
            )
    yield from grouped("violations", tally.violations, listed)
    yield from grouped("as accurate as the original with its kernels rounded once more", tally.stored, listed)


def grouped(title: str, violations: list[tuple[float, int, str, str]], listed: int) -> Iterator[str]:
    """Violations by cause, the most frequent cause and the largest excess first."""
    yield f"\n{title}"
    groups: dict[str, list[tuple[float, int, str, str]]] = {}
    for violation in sorted(violations, reverse=True):
        groups.setdefault(violation[2], []).append(violation)
    for name, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        excesses = [each[0] for each in members]
        yield f"{len(members)} x {name} (excess {min(excesses):.2g} to {max(excesses):.2g})"
        for excess, seed, _, text in members[:listed]:
            yield f"    seed {seed}: {excess:.2g}; {text}"


def replay(seed: int) -> Iterator[str]:
    """Everything about one graph."""
    case = random_case(seed)
    if case is None:
        yield f"seed {seed}: unusable"
        return
    result, outcomes = bnfold.fuse(case.model, return_outcomes=True)
    yield f"seed {seed}: {case.note}"
    for model in (case.model, result):
        yield onnx.printer.to_text(model)
        for name, array in node_evaluator.constants(model).items():
            yield f"  {name} = {np.array2string(array, precision=4, threshold=40)}"
    yield from map(str, outcomes)
    verdict = judge(case, result, seed)
    yield f"{verdict.wrong or ''} {verdict.worst} {verdict.deployed}"
    yield f"cause: {cause(case, outcomes, seed)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    random = commands.add_parser("random", help="random graphs")
    random.add_argument("--first", type=int, default=0)
    random.add_argument("--count", type=int, default=50_000)
    random.add_argument("--list", type=int, default=2, help="violations shown of each cause")
    again = commands.add_parser("replay", help="one random graph, in full")
    again.add_argument("seeds", type=int, nargs="+")
    swept = commands.add_parser("sweep", help="the error of a fold as its normalisation's mean grows")
    swept.add_argument("--seeds", type=int, default=20)
    commands.add_parser("traps", help="graphs that are known to lose digits")
    real = commands.add_parser("table", help="normalisations from real life")
    real.add_argument("--seeds", type=int, default=5)
    for each in (swept, real):
        each.add_argument("--docs", type=Path, help="write the table between its markers in this page")
    options = parser.parse_args()
    if options.command == "traps":
        print(*traps(), sep="\n")
        return
    if options.command in ("sweep", "table"):
        rows = sweep if options.command == "sweep" else table
        text = "\n".join(rows(options.seeds))
        print(text)
        if options.docs:
            write_section(options.docs, f"rounding-{options.command}", text)
        return
    if options.command == "random":
        start = time.perf_counter()
        tally = search(range(options.first, options.first + options.count))
        print(*report(tally, options.list, time.perf_counter() - start), sep="\n")
        raise SystemExit(bool(tally.violations))
    for seed in options.seeds:
        print(*replay(seed), sep="\n")


if __name__ == "__main__":
    main()
