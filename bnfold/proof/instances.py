"""Sizes that the values of a model have for inputs of some sizes: an instance of its shapes, computed node by node.

Where the target of a Reshape is computed from sizes that are not fixed, its law is tried on such sizes. Numbers are
drawn, so that no arithmetic of sizes can count on them; only arithmetic that does the same to all sizes is followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.shape_inference import infer_node_outputs

from bnfold.proof.evaluate import UnevaluatedError, evaluate
from bnfold.proof.models import Scope, bodies
from bnfold.proof.shapes import SMALL

AnyArray = npt.NDArray[Any]

UNITS = (1, 2, 4, 8, 12, 16, 32, 28, 56, 64, 224, 840)
"""What the sizes of an instance are multiples of: a model may halve them, or cut them into windows."""

FACTORS = 7
"""How many multiples of one number there are to draw from."""

ARITHMETIC = frozenset(
    {
        "Add", "Cast", "Concat", "Constant", "Div", "Floor", "Gather", "Identity", "Mul", "Reshape", "Shape", "Size",
        "Slice", "Squeeze", "Sub", "Unsqueeze",
    }
)  # fmt: skip
"""Operators of which the target of a Reshape may be computed."""


@dataclass(frozen=True, eq=False)
class Instance:
    """Shapes of values of the main graph, and the content of those that shapes are computed of."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: dict[str, AnyArray] = field(default_factory=dict)


def draw_instances(scope: Scope) -> Iterator[Instance]:
    """Instances of a main graph, of larger and larger sizes."""
    generator = np.random.default_rng()
    for unit in UNITS:
        yield _follow(scope, unit, generator.permutation(np.arange(1, FACTORS + 1)))


def _follow(scope: Scope, unit: int, factors: AnyArray) -> Instance:
    """The instance in which each size that is open is a multiple of `unit`, and those of one name are the same."""
    instance, types, drawn = Instance(), dict[str, onnx.TypeProto](), dict[str, int]()
    for info in scope.message.input:
        kind = onnx.TypeProto()
        kind.CopyFrom(info.type)
        for axis, dim in enumerate(kind.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                name = dim.dim_param or f"{info.name} {axis}"
                dim.dim_value = drawn.setdefault(name, unit * int(factors[len(drawn) % FACTORS]))
        types[info.name] = kind
    for name, tensor in scope.initializers.items():
        types.setdefault(name, helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
        if np.prod(tensor.dims, dtype=object) <= SMALL and (constant := scope.constant(name)) is not None:
            instance.numbers[name] = constant
    for node in scope.nodes:
        _note(instance, types)
        if not any(True for _ in bodies(node)):
            _add(scope, node, instance, types)
    _note(instance, types)
    return instance


def _note(instance: Instance, types: dict[str, onnx.TypeProto]) -> None:
    """Take note of shapes that are known in full."""
    for name, kind in types.items():
        if name not in instance.shapes and kind.tensor_type.HasField("shape"):
            dims = kind.tensor_type.shape.dim
            if all(dim.HasField("dim_value") for dim in dims):
                instance.shapes[name] = tuple(dim.dim_value for dim in dims)


def _add(scope: Scope, node: onnx.NodeProto, instance: Instance, types: dict[str, onnx.TypeProto]) -> None:
    """Take note of what a node makes, as far as that follows."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    numbers = instance.numbers
    if not domain and node.op_type in ARITHMETIC and (made := _compute(scope, node, instance)) is not None:
        numbers[node.output[0]] = made
        kind = helper.np_dtype_to_tensor_dtype(made.dtype)
        types[node.output[0]] = helper.make_tensor_type_proto(kind, made.shape)
        return
    version = next((each.version for each in scope.opsets if each.domain in (node.domain, domain)), None)
    if version is None or any(each and each not in types for each in node.input):
        return
    data = {each: numpy_helper.from_array(numbers[each], each) for each in node.input if each in numbers}
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        given = {each: types[each] for each in node.input if each}
        types.update(infer_node_outputs(schema, node, given, data, opset_imports=scope.opsets))
    except Exception:  # it raises anything on a node that it does not understand: then less is known
        return


def _compute(scope: Scope, node: onnx.NodeProto, instance: Instance) -> AnyArray | None:
    """The content of a small value that is computed of sizes and constants."""
    if node.op_type in ("Shape", "Size"):
        shape = instance.shapes.get(node.input[0])
        if shape is None:
            return None
        ends = {each.name: each.i for each in node.attribute}
        if node.op_type == "Size":
            return np.asarray(np.prod(shape, dtype=np.int64))
        return np.asarray(shape[ends.get("start", 0) : ends.get("end")], np.int64)
    given = {each: instance.numbers[each] for each in node.input if each in instance.numbers}
    if len(given) < len({each for each in node.input if each}) or sum(each.size for each in given.values()) > SMALL:
        return None
    try:
        return evaluate([node], given, [node.output[0]], scope.opsets, widen=False)[0]
    except UnevaluatedError:
        return None
