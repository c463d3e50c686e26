"""What a shift that is taken back costs in digits: float32 errors of pre-activation networks, after over before.

    python scripts/benchmarks/rounding_streams.py

Each network adds six blocks to a stream of 64 channels. The running statistics are those of its own data. With the
limit of the planner, and without one, its folds are compared with float64 at the end of the stream.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold.planning import shifts
from bnfold.planning.survey import GROWTH_LIMIT

BLOCKS, CHANNELS, SHAPE, SEEDS = 6, 64, (4, 3, 12, 12), range(4)

Constants = dict[str, np.ndarray]


def network(constants: Constants, end: str, dtype: type) -> onnx.ModelProto:
    """The network up to a value, with its constants in some type."""
    nodes = [helper.make_node("Conv", ["x", "stem"], ["s0"], pads=[1] * 4)]
    for k in range(BLOCKS):
        parameters = [f"{name}{k}" for name in ("gamma", "beta", "mean", "var")]
        nodes += [
            helper.make_node("BatchNormalization", [f"s{k}", *parameters], [f"n{k}"], name=f"norm{k}"),
            helper.make_node("Relu", [f"n{k}"], [f"r{k}"]),
            helper.make_node("Conv", [f"r{k}", f"w{k}"], [f"c{k}"], pads=[1] * 4),
            helper.make_node("Add", [f"s{k}", f"c{k}"], [f"s{k + 1}"]),
        ]
    kind = TensorProto.FLOAT if dtype is np.float32 else TensorProto.DOUBLE
    arrays = [
        numpy_helper.from_array(array.astype(np.float32).astype(dtype), name) for name, array in constants.items()
    ]
    shape = [SHAPE[0], CHANNELS, *SHAPE[2:]]
    ends = [helper.make_tensor_value_info(end, kind, shape)]
    graph = helper.make_graph(nodes, "graph", [helper.make_tensor_value_info("x", kind, SHAPE)], ends, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x.astype(np.float32)})[0], np.float64)


def exactly(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


def drawn(generator: np.random.Generator, smallest: float, x: np.ndarray) -> Constants:
    """Constants, with the statistics that the data has."""
    constants: Constants = {"stem": generator.standard_normal((CHANNELS, SHAPE[1], 3, 3)) / 5}
    for k in range(BLOCKS):
        constants[f"gamma{k}"] = generator.uniform(smallest, 1, CHANNELS)
        constants[f"beta{k}"] = generator.standard_normal(CHANNELS) / 10
        constants[f"mean{k}"], constants[f"var{k}"] = np.zeros(CHANNELS), np.ones(CHANNELS)
        constants[f"w{k}"] = generator.standard_normal((CHANNELS, CHANNELS, 3, 3)) / np.sqrt(9 * CHANNELS)
    for k in range(BLOCKS):
        value = run(network(constants, f"s{k}", np.float32), x)
        constants[f"mean{k}"], constants[f"var{k}"] = value.mean((0, 2, 3)), value.var((0, 2, 3))
    return constants


def main() -> None:
    print("| gamma | limit | BatchNorms left of 6 | whole | worst channel |\n|---|---|---:|---:|---:|")
    for smallest in (0.3, 0.0):
        rows: dict[float, list[tuple[int, float, float]]] = {GROWTH_LIMIT: [], np.inf: []}
        for seed in SEEDS:
            generator = np.random.default_rng(seed)
            x = generator.standard_normal(SHAPE).astype(np.float32).astype(np.float64)
            constants = drawn(generator, smallest, x)
            model = network(constants, f"s{BLOCKS}", np.float32)
            expected = exactly(network(constants, f"s{BLOCKS}", np.float64), x)
            for limit, found in rows.items():
                with mock.patch.object(shifts, "GROWTH_LIMIT", limit):
                    fused = bnfold.fuse(model)
                before, after = (((run(each, x) - expected) ** 2).mean((0, 2, 3)) for each in (model, fused))
                left = sum(node.op_type == "BatchNormalization" for node in fused.graph.node)
                found.append(
                    (left, float(np.sqrt(after.mean() / before.mean())), float(np.sqrt((after / before).max())))
                )
        for limit, found in rows.items():
            cells = [f"{min(each):.2g} to {max(each):.2g}" for each in zip(*found, strict=True)]
            print(f"| {smallest} to 1 | {'none' if np.isinf(limit) else limit} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
