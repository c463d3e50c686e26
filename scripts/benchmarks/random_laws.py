"""Folds random graphs of five kinds, and compares each result with its original in float64.

    python scripts/benchmarks/random_laws.py [--first N] [--count N] [--docs PAGE]
    python scripts/benchmarks/random_laws.py --replay SEED

*operators* are graphs of everything that carries an affine; *streams* are residual and dense networks, whose shifts are
taken back by other readers; *axes* are mostly reshapes and transposes, so that channels come to lie on several axes;
*branches* are convolutions, averages and products that are added up, concatenated or chained, so that they merge;
*quantised* are graphs of the first three kinds in float32, in which weights are integers, or float numbers that are
quantised and dequantised, half of them on a tie. A result is wrong where a value of a name that both models have
differs; one that is right and not proved is a false alarm.

Float64 graphs may differ by 1e-10 of the value. In float32, where weights are rounded once and sums may cancel, it is
1e-4 of the largest value in the graph. Both models are evaluated in float64, by `onnx.reference`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from scripts.benchmarks.page import write_section
from tests.frontends.onnx import test_random_branches as branches
from tests.frontends.onnx import test_random_graphs as operators
from tests.frontends.onnx import test_random_streams as streams
from tests.toys.onnx_graphs import every_value

TOLERANCE = {TensorProto.DOUBLE: 1e-10, TensorProto.FLOAT: 1e-4}

KERNELS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""Operators whose weights are quantised, with the place of the weight."""

# -------------------------------------------------------------------------------------------------------------- graphs


def point(b: operators.Builder) -> None:
    """A convolution of one tap that makes channels which can be split."""
    if x := b.value(operators.images):
        (n, c, *space), out = b.shapes[x], (4, 6, 8)[b.draw(3)]
        b.add("Conv", [x, b.normal(out, c, 1, 1)], (n, out, *space))


def mixed(b: operators.Builder) -> None:
    """One axis is split, all are permuted, and two that are neighbours then become one: a channel shuffle, windows."""
    if x := b.value(operators.images):
        shape, axis = b.shapes[x], 1 + b.draw(3) * b.draw(2)
        factor = next((size for size in (2, 3) if shape[axis] % size == 0), 1)
        parts = (factor, shape[axis] // factor)[:: 1 if b.draw(2) else -1]
        split = (*shape[:axis], *parts, *shape[axis + 1 :])
        order = [0, *(int(place) + 1 for place in b.random.permutation(4))]
        moved = tuple(split[place] for place in order)
        first = 1 + b.draw(3)
        after = (*moved[:first], moved[first] * moved[first + 1], *moved[first + 2 :])
        y = b.add("Reshape", [x, b.integers(*split)], split)
        y = b.add("Transpose", [y], moved, perm=order)
        b.add("Reshape", [y, b.integers(*after)], after)


ARRANGING = [mixed] * 4 + [operators.reshape, operators.transpose, operators.add, operators.activation]
AXES = [point, point, operators.batchnorm, operators.batchnorm, operators.matmul, *ARRANGING]


def operator_graph(seed: int) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    return operators.build(lambda count: int(random.integers(count)), seed)


def axes_graph(seed: int) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    return operators.build(lambda count: int(random.integers(count)), seed, AXES)


def quantised_graph(seed: int) -> onnx.ModelProto:
    source = (operator_graph, streams.build, axes_graph)[seed % 3]
    return quantise(source(seed), np.random.default_rng(seed))


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "operators": operator_graph,
    "streams": streams.build,
    "axes": axes_graph,
    "branches": branches.build,
    "quantised": quantised_graph,
}


def graph(seed: int) -> tuple[str, onnx.ModelProto]:
    kind = list(KINDS)[seed % len(KINDS)]
    return kind, KINDS[kind](seed // len(KINDS))


def quantise(model: onnx.ModelProto, random: np.random.Generator) -> onnx.ModelProto:
    """The same graph in float32, with most of its stored kernels quantised."""
    model = retyped(model, TensorProto.DOUBLE, np.float32)
    model.opset_import[0].version = int(random.choice([18, 19, 21]))
    model.ir_version = 10
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        place = KERNELS.get(node.op_type)
        kernel = None if place is None else stored.get(node.input[place])
        if place is not None and kernel is not None and kernel.ndim > 1 and random.random() < 0.8:
            axis = _output_axis(node, kernel.ndim) if random.random() < 0.9 else int(random.integers(kernel.ndim))
            made = f"quantised{len(nodes)}"
            nodes += _chain(model, made, kernel, axis, random)
            node.input[place] = made
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "Gemm":
        return 0 if any(each.name == "transB" and each.i for each in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


def _chain(
    model: onnx.ModelProto, made: str, kernel: np.ndarray, axis: int, random: np.random.Generator
) -> Iterator[onnx.NodeProto]:
    """DequantizeLinear of integers, or QuantizeLinear and DequantizeLinear of a float kernel."""
    dtype = random.choice([np.int8, np.uint8])
    channels = kernel.shape[axis] if random.random() < 0.5 else 1
    scales = random.uniform(0.002, 0.05, channels) if random.random() < 0.5 else np.full(channels, 2.0**-5)
    points = np.zeros(channels) + (0 if dtype is np.int8 else 128)
    if random.random() < 0.2:
        points += random.integers(-3, 3, channels)
    vectors = scales.astype(np.float32), np.clip(points, *_limits(dtype)).astype(dtype)
    parameters = [vector.reshape(() if channels == 1 else -1) for vector in vectors]
    shape = [-1 if place == axis else 1 for place in range(kernel.ndim)]
    steps = np.clip(kernel / vectors[0].reshape(shape), -127, 127)
    names = [f"{made}_{what}" for what in ("weights", "scale", "zero_point")]
    attributes = {"axis": axis} if channels > 1 or random.random() < 0.5 else {}
    if random.random() < 0.5:
        if random.random() < 0.5:
            steps = np.rint(2 * steps) / 2
        source = (steps * vectors[0].reshape(shape)).astype(np.float32)
        yield helper.make_node("QuantizeLinear", names, [f"{made}_q"], name=f"{made}_quantise", **attributes)
    else:
        moved = np.rint(steps) + vectors[1].astype(np.float64).reshape(shape)
        source = np.clip(moved, *_limits(dtype)).astype(dtype)
    read = f"{made}_q" if source.dtype == np.float32 else names[0]
    for name, array in zip(names, (source, *parameters), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    yield helper.make_node("DequantizeLinear", [read, *names[1:]], [made], name=f"{made}_dequantise", **attributes)


def _limits(dtype: type) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


# ----------------------------------------------------------------------------------------------------------- reference


def retyped(model: onnx.ModelProto, old: int, new: type) -> onnx.ModelProto:
    """A copy in which all stored numbers, inputs and outputs of one type have another."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == old:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(new), tensor.name))
    for info in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if info.type.tensor_type.elem_type == old:
            info.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(new))
    return copy


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in float64. Quantised weights are computed as in float32, and are constants of it."""
    if model.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE:
        return model
    chain = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in chain:
        if node.op_type == "QuantizeLinear":
            feeds = {name: stored[name] for name in node.input}
            (stored[node.output[0]],) = ReferenceEvaluator(node, opsets={"": 21}).run(None, feeds)
            continue
        integers, scales, points = (stored[name].astype(np.float64) for name in node.input)
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        shape = [-1 if place == axis and scales.size > 1 else 1 for place in range(integers.ndim)]
        stored[node.output[0]] = (integers - points.reshape(shape)) * scales.reshape(shape)
    wide = retyped(model, TensorProto.FLOAT, np.float64)
    rest = [node for node in wide.graph.node if node not in chain]
    del wide.graph.node[:]
    wide.graph.node.extend(rest)
    dequantised = [node.output[0] for node in chain if node.op_type == "DequantizeLinear"]
    wide.graph.initializer.extend(numpy_helper.from_array(stored[name], name) for name in dequantised)
    return wide


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every value of a model that both of a pair may have, in float64."""
    return every_value(widened(model), branches.shape_of(model))


# -------------------------------------------------------------------------------------------------------------- search


@dataclass
class Tally:
    """What became of the graphs of one kind."""

    graphs: int = 0
    norms: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = [self.outcomes[what] for what in ("upstream", "downstream", "both", "merges")]
        return " | ".join(
            f"{number:,}" for number in (self.graphs, self.norms, *counts, len(self.wrong), len(self.alarms))
        )


def difference(original: onnx.ModelProto, result: onnx.ModelProto) -> str | None:
    """The value in which a result differs, in a few words."""
    expected, actual = values(original), values(result)
    tolerance = TOLERANCE[original.graph.input[0].type.tensor_type.elem_type]
    largest = max((float(np.abs(each[np.isfinite(each)]).max(initial=0.0)) for each in expected.values()), default=0.0)
    for name in expected.keys() & actual.keys():
        one, other = expected[name], actual[name]
        finite = np.isfinite(one)
        size = float(np.abs(one[finite]).max(initial=1.0)) if tolerance < 1e-8 else max(1.0, largest)
        if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
            return f"{name} has other values that are not finite"
        error = float(np.abs(one[finite] - other[finite]).max(initial=0.0)) / size
        if not error < tolerance:
            return f"{name} is off by {error:.1e}"
    missing = {info.name for info in original.graph.output} - actual.keys()
    return f"{min(missing)} is missing" if missing - {"x"} else None


def judge(seed: int, tallies: dict[str, Tally]) -> None:
    kind, model = graph(seed)
    tally = tallies[kind]
    tally.graphs += 1
    try:
        result, outcomes = bnfold.fuse(model, return_outcomes=True)
    except bnfold.NotEquivalentError as error:
        result, outcomes = bnfold.fuse(model, return_outcomes=True, prove=False)
        tally.alarms.append(f"seed {seed}: {error}")
    for outcome in outcomes:
        tally.norms += isinstance(outcome, bnfold.Refusal) or (
            isinstance(outcome, bnfold.Fold) and outcome.is_batchnorm
        )
        if isinstance(outcome, bnfold.Fold) and outcome.is_batchnorm:
            tally.outcomes[outcome.direction] += 1
        tally.outcomes["merges"] += isinstance(outcome, bnfold.Merge)
    if (wrong := difference(model, result)) is not None:
        tally.wrong.append(f"seed {seed}: {wrong}")


def replay(seed: int) -> None:
    """Print all about one graph."""
    _, model = graph(seed)
    result, outcomes = bnfold.fuse(model, return_outcomes=True, prove=False)
    print(onnx.printer.to_text(model), onnx.printer.to_text(result), *outcomes, difference(model, result), sep="\n")
    bnfold.fuse(model)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--replay", type=int, help="all about the graph of one seed")
    parser.add_argument("--docs", type=Path, help="write the table between its markers in this page")
    options = parser.parse_args()
    if options.replay is not None:
        replay(options.replay)
        return
    tallies, began = {kind: Tally() for kind in KINDS}, time.perf_counter()
    for done, seed in enumerate(range(options.first, options.first + options.count), start=1):
        judge(seed, tallies)
        if done % 1000 == 0:
            bad = sum(len(tally.wrong) + len(tally.alarms) for tally in tallies.values())
            print(f"{done} graphs, {bad} bad, {time.perf_counter() - began:.0f} s", flush=True)
    lines = [
        "| kind | graphs | BatchNorms | upstream | downstream | both | merges | wrong | not proved, though right |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(f"| {kind} | {tally} |" for kind, tally in tallies.items()),
    ]
    print(*lines, sep="\n")
    for kind, tally in tallies.items():
        for what, found in (("wrong", tally.wrong), ("not proved", tally.alarms)):
            print(*(f"{kind}, {what}: {each}" for each in found), sep="\n", end="\n" if found else "")
    if options.docs:
        write_section(options.docs, "random laws", "\n".join(lines))
    raise SystemExit(any(tally.wrong or tally.alarms for tally in tallies.values()))


if __name__ == "__main__":
    main()
