"""Searches for folds that lose digits: random graphs and real normalisations, judged against float64.

    python scripts/benchmarks/rounding.py random [--first N] [--count N] [--list N]
    python scripts/benchmarks/rounding.py replay SEED...

The reference is the original in float64 on the weights as they are stored. Original and result are run in their own
type, by onnxruntime without optimisation and by an evaluator that subtracts a BatchNorm's mean first and rounds every
node's result. For each output channel, the root mean square of the result's error may be at most twice the original's
plus one rounding of the output.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import node_evaluator
import numpy as np
import onnx
import onnxruntime
from rounding_graphs import Case, random_case

import bnfold

Array = np.ndarray
onnxruntime.set_default_logger_severity(4)

FACTOR = 2.0
"""How much larger than the original's the result's error may be, beside one rounding."""


def run_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@dataclass(frozen=True)
class Channel:
    """One output channel: root mean squares of the reference and of both models' errors."""

    output: str
    index: int
    size: float
    original: float
    result: float
    allowed: float

    @property
    def excess(self) -> float:
        """The result's error over what is allowed."""
        return self.result / self.allowed

    @property
    def ratio(self) -> float:
        return self.result / self.original if self.original else np.inf if self.result else 1.0


@dataclass(frozen=True, eq=False)
class Verdict:
    """How a model and its result compare.

    Attributes:
        worst: the channel with the largest excess, where the original and the result are as accurate as they can be
            run; None where the statistics say nothing about the data.
        deployed: the same as onnxruntime alone runs both.
        wrong: what is wrong otherwise; empty where nothing is.
    """

    worst: Channel | None
    deployed: Channel | None
    wrong: str = ""

    @property
    def is_violation(self) -> bool:
        return bool(self.wrong) or (self.worst is not None and self.worst.excess > 1)


def rms(array: Array, axis: int) -> Array:
    others = tuple(k for k in range(array.ndim) if k != axis)
    peak = np.abs(array).max(axis=others, keepdims=True)
    peak = np.where(peak > 0, peak, 1.0)
    return np.sqrt(np.mean((array / peak) ** 2, axis=others)) * peak.reshape(-1)


def judge(case: Case, result: onnx.ModelProto, seed: int) -> Verdict:
    """Compare a case's model with its result, on fresh data."""
    x = case.draw(np.random.default_rng([14, seed]))
    feeds, dtype = {"x": x}, x.dtype
    reference = node_evaluator.evaluate(case.model, feeds, node_evaluator.EXACT)
    nodewise = node_evaluator.nodewise(dtype)
    ours = [node_evaluator.evaluate(model, feeds, nodewise) for model in (case.model, result)]
    theirs = [run_onnxruntime(model, feeds) for model in (case.model, result)]
    finite = [all(np.isfinite(each).all() for each in outputs) for outputs in (reference, *ours, *theirs)]
    if not all((finite[0], finite[1], finite[3])):
        return Verdict(None, None)
    if not (finite[2] and finite[4]):
        return Verdict(None, None, "not finite")
    bounds = [node_evaluator.evaluate(model, feeds, node_evaluator.BOUND) for model in (case.model, result)]
    exact = node_evaluator.evaluate(result, feeds, node_evaluator.EXACT)
    if wrong := differs(case, reference, exact, bounds):
        return Verdict(None, None, wrong)
    if not case.is_described:
        return Verdict(None, None)
    return Verdict(
        # onnxruntime keeps float32 between nodes of float16
        worst_channel(case, reference, bounds[0], [ours, theirs] if dtype == np.float32 else [ours]),
        worst_channel(case, reference, bounds[0], [theirs]),
    )


def differs(case: Case, reference: list[Array], exact: list[Array], bounds: list[list[Array]]) -> str:
    """What is wrong with the result in exact arithmetic, beyond the rounding of its weights; empty for nothing."""
    steps = 4 * len(case.model.graph.node)
    for name, was, now, *sizes in zip(case.model.graph.output, reference, exact, *bounds, strict=True):
        if was.shape != now.shape:
            return f"{name.name} has the shape {now.shape}, not {was.shape}"
        explained = np.maximum(*sizes) * float(case.limit.eps) * steps + float(case.limit.smallest_subnormal)
        off = (np.abs(now - was) / explained).max()
        if not off <= 1:
            return f"{name.name} is off by {off:.1e} of what rounding explains"
    return ""


def worst_channel(case: Case, reference: list[Array], bounds: list[Array], runs: list[list[list[Array]]]) -> Channel:
    """The channel with the largest excess; of several ways to run a model the most accurate one counts.

    Where the original's magnitudes cancel to nothing, as for a constant input, it may have no error at all by luck:
    the square of one rounding of these magnitudes is allowed always.
    """
    eps = float(case.limit.eps)
    channels = []
    for index, (exact, bound, axis) in enumerate(zip(reference, bounds, case.axes, strict=True)):
        size = rms(exact, axis)
        original, result = (
            np.min([rms(run[which][index].astype(np.float64) - exact, axis) for run in runs], axis=0)
            for which in range(2)
        )
        luck = eps**2 * rms(bound, axis)
        allowed = FACTOR * original + eps * size + luck + float(case.limit.smallest_subnormal)
        name = case.model.graph.output[index].name
        rows = zip(size, original, result, allowed, strict=True)
        channels += [Channel(name, k, *map(float, row)) for k, row in enumerate(rows)]
    return max(channels, key=lambda channel: channel.excess)


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
            tally.violations.append((excess, seed, cause(case, outcomes, seed), line(case, verdict)))
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
        f"{tally.unusable} unusable, {len(tally.violations)} violations, {seconds:.0f} s"
    )
    yield "folded: " + ", ".join(f"{number} {what}" for what, number in tally.folded.most_common())
    yield "refused: " + ", ".join(f"{number} {reason}" for reason, number in tally.refused.most_common())
    for name, values in (("at its best", tally.ratios), ("by onnxruntime", tally.deployed)):
        if values:
            at = np.percentile(values, [50, 90, 99, 99.9, 100])
            yield f"error over allowed error, {name}: " + ", ".join(
                f"{share} {value:.2g}" for share, value in zip(("p50", "p90", "p99", "p99.9", "max"), at, strict=True)
            )
    yield ""
    groups: dict[str, list[tuple[float, int, str, str]]] = {}
    for violation in sorted(tally.violations, reverse=True):
        groups.setdefault(violation[2], []).append(violation)
    for name, violations in sorted(groups.items(), key=lambda item: -len(item[1])):
        excesses = [each[0] for each in violations]
        yield f"{len(violations)} x {name} (excess {min(excesses):.2g} to {max(excesses):.2g})"
        for excess, seed, _, text in violations[:listed]:
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
    options = parser.parse_args()
    if options.command == "random":
        start = time.perf_counter()
        tally = search(range(options.first, options.first + options.count))
        print(*report(tally, options.list, time.perf_counter() - start), sep="\n")
        raise SystemExit(bool(tally.violations))
    for seed in options.seeds:
        print(*replay(seed), sep="\n")


if __name__ == "__main__":
    main()
