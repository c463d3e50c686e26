"""Instances of a model's shapes: the sizes of all values for inputs of some sizes, computed node by node.

Where the target of a Reshape is computed from dynamic sizes, the law of the Reshape is tried on such instances. The
sizes are drawn at random, so that no model can hold for the drawn ones alone. Only arithmetic that treats all sizes
alike is followed.
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
"""The sizes of an instance are multiples of this: a model may halve them, or cut them into windows."""

FACTORS = 7
"""How many multiples of that number sizes are drawn from."""

ARITHMETIC = frozenset(
    {
        "Add", "Cast", "Concat", "Constant", "Div", "Floor", "Gather", "Identity", "Mul", "Reshape", "Shape", "Size",
        "Slice", "Squeeze", "Sub", "Unsqueeze",
    }
)  # fmt: skip
"""Operators by which the target of a Reshape may be computed."""


@dataclass(frozen=True, eq=False)
class Instance:
    """Shapes of values of the main graph, and the content of those from which shapes are computed."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: dict[str, AnyArray] = field(default_factory=dict)


def draw_instances(scope: Scope) -> Iterator[Instance]:
    """Instances of a main graph, of larger and larger sizes."""
    generator = np.random.default_rng()
    for unit in UNITS:
        yield _follow(scope, unit, generator.permutation(np.arange(1, FACTORS + 1)))


def _follow(scope: Scope, unit: int, factors: AnyArray) -> Instance:
    """The instance in which each dynamic size is a multiple of `unit`, and sizes of one name are equal."""
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
    """Take note of a node's outputs, as far as they follow from its inputs."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    numbers = instance.numbers
    if not domain and node.op_type in ARITHMETIC and (content := _compute(scope, node, instance)) is not None:
        numbers[node.output[0]] = content
        kind = helper.np_dtype_to_tensor_dtype(content.dtype)
        types[node.output[0]] = helper.make_tensor_type_proto(kind, content.shape)
        return
    version = next((opset.version for opset in scope.opsets if opset.domain in (node.domain, domain)), None)
    if version is None or any(value and value not in types for value in node.input):
        return
    data = {value: numpy_helper.from_array(numbers[value], value) for value in node.input if value in numbers}
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        known = {value: types[value] for value in node.input if value}
        types.update(infer_node_outputs(schema, node, known, data, opset_imports=scope.opsets))
    except Exception:  # inference may raise anything on a node that it does not know: then less is known
        return


def _compute(scope: Scope, node: onnx.NodeProto, instance: Instance) -> AnyArray | None:
    """The content of a small value that is computed from sizes and constants."""
    if node.op_type in ("Shape", "Size"):
        shape = instance.shapes.get(node.input[0])
        if shape is None:
            return None
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Size":
            return np.asarray(np.prod(shape, dtype=np.int64))
        return np.asarray(shape[ends.get("start", 0) : ends.get("end")], np.int64)
    constants = {value: instance.numbers[value] for value in node.input if value in instance.numbers}
    if (
        len(constants) < len({value for value in node.input if value})
        or sum(array.size for array in constants.values()) > SMALL
    ):
        return None
    try:
        return evaluate([node], constants, [node.output[0]], scope.opsets, widen=False)[0]
    except UnevaluatedError:
        return None
