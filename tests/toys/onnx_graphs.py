"""Small ONNX models in a few words, and what must hold of every fused one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import bnfold
from bnfold import Outcome, Refusal
from bnfold.api import certify
from bnfold.proof.checker import check_proof
from bnfold.proof.models import Files

Array = np.ndarray


class BatchNormalization(OpRun):
    """Inference form where no attribute says otherwise; onnx.reference trains in opsets 9 to 13."""

    def _run(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, **attributes: Any
    ) -> tuple[Array, ...]:
        shape = [1, -1] + [1] * (x.ndim - 2)
        if attributes.get("training_mode"):
            axes = (0, *range(2, x.ndim))
            mean, var = x.mean(axis=axes), x.var(axis=axes)
        gamma, beta, mean, var = (each.reshape(shape) for each in (gamma, beta, mean, var))
        epsilon = attributes.get("epsilon")
        epsilon = np.float32(1e-5) if epsilon is None else epsilon
        y = (gamma * (x - mean) / np.sqrt(var + float(epsilon)) + beta).astype(x.dtype)
        return (y, mean.reshape(-1), var.reshape(-1)) if attributes.get("training_mode") else (y,)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs and outputs are words; "_" is an empty name. It is named like its first output."""
    names = ["" if name == "_" else name for name in inputs.split()]
    made = outputs.split()
    return helper.make_node(op, names, made, name=f"{op}_{made[0]}", **attributes)


def random(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(hash(shape) % 2**16 + seed).standard_normal(shape).astype(dtype)


def statistics(channels: int, prefix: str = "", *, dtype: Any = np.float64, sign: float = 0.0) -> dict[str, Array]:
    """Parameters ``gamma beta mean var`` of a BatchNorm; with a sign, gamma has it everywhere."""
    generator = np.random.default_rng(channels + len(prefix))
    gamma = generator.standard_normal(channels)
    arrays = {
        "gamma": sign * np.abs(gamma) if sign else gamma,
        "beta": generator.standard_normal(channels),
        "mean": generator.standard_normal(channels),
        "var": generator.random(channels) + 0.5,
    }
    return {prefix + name: array.astype(dtype) for name, array in arrays.items()}


def norm(x: str, y: str, prefix: str = "", **attributes: Any) -> onnx.NodeProto:
    """A BatchNormalization with the parameters of `statistics`."""
    return node("BatchNormalization", f"{x} {prefix}gamma {prefix}beta {prefix}mean {prefix}var", y, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    shape: Sequence[int | str],
    *,
    outputs: str = "y",
    opset: int = 17,
    ir_version: int = 8,
    overridable: Sequence[str] = (),
    dtype: Any = np.float64,
) -> onnx.ModelProto:
    """A model with the input `x`; `outputs` get their shapes by inference."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    listed = list(constants) if ir_version < 4 else list(overridable)
    inputs += [
        helper.make_tensor_value_info(each.name, each.data_type, each.dims)
        for each in initializers
        if each.name in listed
    ]
    ends = [
        onnx.ValueInfoProto(name=name, type=onnx.TypeProto(tensor_type={"elem_type": kind})) for name in outputs.split()
    ]
    graph = helper.make_graph(nodes, "graph", inputs, ends, initializers, doc_string="about the graph")
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    made.doc_string = "about the model"
    helper.set_model_props(made, {"author": "somebody"})
    modern = onnx.ModelProto()
    modern.CopyFrom(made)
    if opset == 1:  # whose BatchNormalization has no shape inference
        modern.opset_import[0].version = 17
    inferred = onnx.shape_inference.infer_shapes(modern)
    shapes = {each.name: each for each in inferred.graph.output}
    del made.graph.output[:]
    made.graph.output.extend(shapes[name] for name in outputs.split())
    return made


def evaluate(proto: onnx.ModelProto, dims: dict[str, int] | None = None) -> dict[str, Array]:
    """Every value that a node makes, by the reference evaluator."""
    info = proto.graph.input[0].type.tensor_type
    sizes = [dim.dim_value or (dims or {}).get(dim.dim_param, 2) for dim in info.shape.dim]
    everything = onnx.ModelProto()
    everything.CopyFrom(proto)
    names = [name for each in proto.graph.node for name in each.output if name]
    del everything.graph.output[:]
    everything.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    x = np.random.default_rng(7).standard_normal(sizes).astype(helper.tensor_dtype_to_np_dtype(info.elem_type))
    with np.errstate(over="ignore", invalid="ignore"):  # its sigmoid overflows on the way to a right result
        found = ReferenceEvaluator(everything, new_ops=[BatchNormalization]).run(None, {"x": x})
    return dict(zip(names, found, strict=True))


def fuse(proto: onnx.ModelProto, tolerance: float = 1e-10) -> tuple[onnx.ModelProto, tuple[Outcome, ...]]:
    """Fuse, and assert what must hold of any model: same interface and surroundings, valid, proved, the same values."""
    before = proto.SerializeToString()
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert proto.SerializeToString() == before
    again, certificate = certify(proto)
    assert again.SerializeToString() == fused.SerializeToString()
    assert check_proof(Files(proto), Files(fused), certificate).failures == ()
    assert_settled(fused)
    onnx.checker.check_model(fused)
    for name in ("ir_version", "opset_import", "metadata_props", "doc_string"):
        assert getattr(fused, name) == getattr(proto, name)
    assert fused.graph.doc_string == proto.graph.doc_string
    assert list(fused.graph.output) == list(proto.graph.output)
    assert fused.graph.input[0] == proto.graph.input[0]
    order = [each.name for each in proto.graph.node]
    kept = [each.name for each in fused.graph.node if each.name in order]
    assert kept == [name for name in order if name in kept]
    expected, actual = evaluate(proto), evaluate(fused)
    for name in expected.keys() & actual.keys():
        size = max(1.0, float(np.abs(expected[name]).max(initial=0.0)))
        error = float(np.abs(expected[name].astype(np.float64) - actual[name].astype(np.float64)).max(initial=0.0))
        assert error <= tolerance * size, f"{name} is off by {error:.1e}"
    return fused, outcomes


def assert_settled(fused: onnx.ModelProto, **options: Any) -> None:
    """A second fold finds nothing, and gives the same bytes."""
    again, outcomes = bnfold.fuse(fused, return_outcomes=True, **options)
    found = [each for each in outcomes if not isinstance(each, Refusal)]
    assert not found, f"a second fold finds {found}"
    assert again.SerializeToString() == fused.SerializeToString()


def every_value(proto: onnx.ModelProto, shape: Sequence[int] = ()) -> dict[str, Array]:
    """What each node of the main graph makes of a normal input, whose shape is told where the model does not."""
    shape = shape or [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    everything = onnx.ModelProto()
    everything.CopyFrom(proto)
    names = [name for each in proto.graph.node for name in each.output]
    del everything.graph.output[:]
    everything.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = {"x": np.random.default_rng(0).standard_normal(shape)}
    with np.errstate(all="ignore"):  # a constant that divides may be zero, and a sigmoid overflows on its way
        return dict(zip(names, ReferenceEvaluator(everything).run(None, feeds), strict=True))


def operators(proto: onnx.ModelProto) -> list[str]:
    return [each.op_type for each in proto.graph.node]


DOUBLE = TensorProto.DOUBLE
