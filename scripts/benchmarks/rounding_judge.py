"""Judges a result against its original: in finiteness, in exact arithmetic, and in the rounding of its own type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from scripts.benchmarks import node_evaluator
from scripts.benchmarks.rounding_graphs import Case

Array = np.ndarray
onnxruntime.set_default_logger_severity(4)

FACTOR = 2.0
"""How much larger than the original's the result's error may be, beside one rounding."""

CHANNEL = 2.0
"""How much more of that a single channel may have: the rounding of its few weights is drawn once, not averaged."""


STORED = 8
"""Times that the original's kernels are rounded at random."""


def run_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@dataclass(frozen=True)
class Channel:
    """One output channel, or an output as a whole (-1): root mean squares of the reference and of both errors."""

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
        is_like_storing: whether the result is as accurate as the original would be if its kernels were rounded to
            their type once more. A fold rounds a kernel anew, and nothing in front of it can tell what that does.
    """

    worst: Channel | None
    deployed: Channel | None
    wrong: str = ""
    is_like_storing: bool = False

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
    runs = [ours, theirs] if dtype == np.float32 else [ours]  # onnxruntime keeps float32 between nodes of float16
    worst = worst_channel(case, reference, bounds[0], runs)
    is_like_storing = False
    if worst.excess > 1:
        stored = kernels_stored_again(case, feeds, reference, seed)
        is_like_storing = worst_channel(case, reference, bounds[0], runs, stored).excess <= 1
    return Verdict(worst, worst_channel(case, reference, bounds[0], [theirs]), is_like_storing=is_like_storing)


def kernels_stored_again(case: Case, feeds: dict[str, Array], reference: list[Array], seed: int) -> list[Array]:
    """Errors of each output channel by half a unit at random where the original rounds, and in each of its kernels.

    The first is what a channel's error is on average: of one that is constant, it may be nothing by luck.
    """
    random = np.random.default_rng([18, seed])
    linear = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1)}
    kernels = {
        node.input[index]
        for node in case.model.graph.node
        for index in linear.get(node.op_type, ())
        if index < len(node.input)
    }
    known = {name: array for name, array in node_evaluator.constants(case.model).items() if name in kernels}
    rounds = node_evaluator.inexact(case.model, feeds, feeds["x"].dtype)

    def move(array: Array) -> Array:
        return array.astype(np.float64) * (1 + float(case.limit.eps) * random.uniform(-0.5, 0.5, array.shape))

    squares = [np.zeros(each.shape[axis]) for each, axis in zip(reference, case.axes, strict=True)]
    for _ in range(STORED):
        moved = {name: move(array) for name, array in known.items()}
        outputs = node_evaluator.evaluate(
            case.model,
            feeds | moved,
            node_evaluator.EXACT,
            lambda name, value: np.where(rounds[name], move(value), value),
        )
        for total, output, exact, axis in zip(squares, outputs, reference, case.axes, strict=True):
            total += rms(output - exact, axis) ** 2 / STORED
    return [np.sqrt(each) for each in squares]


def differs(case: Case, reference: list[Array], exact: list[Array], bounds: list[list[Array]]) -> str:
    """What is wrong with the result in exact arithmetic, beyond the rounding of its weights; empty for nothing."""
    steps = 4 * len(case.model.graph.node)
    outputs = zip(case.model.graph.output, case.axes, reference, exact, *bounds, strict=True)
    for name, axis, was, now, *sizes in outputs:
        if was.shape != now.shape:
            return f"{name.name} has the shape {now.shape}, not {was.shape}"
        size = np.maximum(*sizes)
        shape = [-1 if k == axis else 1 for k in range(size.ndim)]
        size = np.maximum(size, rms(size, axis).reshape(shape))  # an input of zero hides what its weight adds elsewhere
        explained = size * float(case.limit.eps) * steps + float(case.limit.smallest_subnormal)
        off = (np.abs(now - was) / explained).max()
        if not off <= 1:
            return f"{name.name} is off by {off:.1e} of what rounding explains"
    return ""


def worst_channel(
    case: Case,
    reference: list[Array],
    bounds: list[Array],
    runs: list[list[list[Array]]],
    beside: list[Array] | None = None,
) -> Channel:
    """The channel with the largest excess; of several ways to run a model the most accurate one counts.

    Where the original's magnitudes cancel to nothing, as for a constant input, it may have no error at all by luck:
    the square of one rounding of these magnitudes is allowed always. The original's errors count as at least `beside`.
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
        if beside is not None:
            original = np.maximum(original, beside[index])
        allowed = FACTOR * original + eps * size + luck + float(case.limit.smallest_subnormal)
        name = case.model.graph.output[index].name
        rows = zip(size, original, result, CHANNEL * allowed, strict=True)
        channels += [Channel(name, k, *map(float, row)) for k, row in enumerate(rows)]
        shares = np.where(size > 0, size, 1.0)  # each channel counts by its own size
        whole = (float(np.sqrt(np.mean((each / shares) ** 2))) for each in (size, original, result, allowed))
        channels.append(Channel(name, -1, *whole))
    return max(channels, key=lambda channel: channel.excess)
