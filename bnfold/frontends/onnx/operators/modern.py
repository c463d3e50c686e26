"""Constant operators of old opsets, in the form that opset 18 gives them.

Attributes became inputs, and broadcasting became numpy's. `onnx.reference` ignores the former rules, or does not run
the former operators at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.frontends.onnx.schema import find_schema
from bnfold.frontends.reading import AnyArray

Inputs = list[AnyArray | None]
Attributes = dict[str, Any]

MODERN = 18
"""The first opset in which every operator that is evaluated takes its operands as inputs."""


def modern(node: ir.Node, version: int, operands: Sequence[AnyArray | None]) -> tuple[Attributes, Inputs]:
    """The attributes and inputs that give a node its meaning at opset `MODERN`, or at a later `version`.

    Raises:
        ValueError: its opset has no such operator, or gives no such node a meaning.
    """
    proto = ir.serde.serialize_node(node)
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in proto.attribute}
    inputs = list(operands)
    _insist_on_schema(node.op_type, version, attributes, inputs)
    attributes.pop("consumed_inputs", None)
    before, upgrade = UPGRADES.get(node.op_type, (0, None))
    if upgrade is not None and version < before:
        inputs = upgrade(version, attributes, inputs)
    return attributes, inputs


def _insist_on_schema(operator: str, version: int, attributes: Attributes, inputs: Inputs) -> None:
    schema = find_schema(operator, version)
    if schema is None:
        raise ValueError(f"opset {version} has no {operator}")
    unknown = attributes.keys() - schema.attributes.keys()
    if unknown:
        raise ValueError(f"opset {version} gives it no attribute {min(unknown)}")
    present = {index for index, operand in enumerate(inputs) if operand is not None}
    if len(inputs) > schema.most_inputs or not schema.required <= present:
        raise ValueError(f"opset {version} gives it other inputs")


def align(shape: tuple[int, ...], rank: int, axis: int | None) -> tuple[int, ...] | None:
    """The shape with which numpy broadcasts a second operand as opsets below 7 do, to `rank` axes.

    Its axes match those of the first operand from `axis` on, or the last ones. None where they do not fit in.
    """
    start = rank - len(shape) if axis is None else axis
    behind = rank - start - len(shape)
    return shape + (1,) * behind if start >= 0 and behind >= 0 else None


def _elementwise(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
    first, second = inputs
    assert first is not None
    assert second is not None
    axis, broadcasts = attributes.pop("axis", None), attributes.pop("broadcast", 0)
    if not broadcasts:
        return _of_one_shape(version, attributes, inputs)
    shape = () if second.size == 1 and second.ndim <= first.ndim else align(second.shape, first.ndim, axis)
    if shape is None or np.broadcast_shapes(first.shape, shape) != first.shape:
        raise ValueError(f"it broadcasts {second.shape} to {first.shape}")
    return [first, second.reshape(shape)]


def _of_one_shape(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
    if len({operand.shape for operand in inputs if operand is not None}) > 1:
        raise ValueError("its operands differ in shape, and it does not broadcast")
    return inputs


def _cast(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
    attributes["to"] = onnx.TensorProto.DataType.Value(attributes["to"].decode())
    return inputs


def _clip(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
    data = inputs[0]
    assert data is not None
    ends = [attributes.pop(name, None) for name in ("min", "max")]
    return [data, *(None if end is None else np.asarray(end, data.dtype) for end in ends)]


def _concat(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
    attributes.setdefault("axis", 1)
    return inputs


def _pad(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
    data = inputs[0]
    assert data is not None
    pads = attributes.pop("paddings" if version < 2 else "pads")
    return [data, np.asarray(pads, np.int64), np.asarray(attributes.pop("value", 0.0), data.dtype)]


def _take_in(*names: str) -> Callable[[int, Attributes, Inputs], Inputs]:
    """An upgrade that turns attributes into inputs."""

    def upgrade(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
        taken = [attributes.pop(name, None) or None for name in names]  # an empty list says as much as none
        return [*inputs, *(None if numbers is None else np.asarray(numbers, np.int64) for numbers in taken)]

    return upgrade


def _split(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
    if version < 2 and "axis" not in attributes:
        raise ValueError("it does not say along which axis it splits")
    return inputs if len(inputs) > 1 else _take_in("split")(version, attributes, inputs)


def _tile(version: int, attributes: Attributes, inputs: Inputs) -> Inputs:
    data, tiles, axis = inputs
    assert data is not None
    assert tiles is not None
    assert axis is not None
    repeats = np.ones(data.ndim, np.int64)
    repeats[int(axis.reshape(()))] = int(tiles.reshape(()))
    return [data, repeats]


UPGRADES: dict[str, tuple[int, Callable[[int, Attributes, Inputs], Inputs]]] = {
    **dict.fromkeys(("Add", "Div", "Equal", "Mul", "Pow", "Sub"), (7, _elementwise)),
    **dict.fromkeys(("Max", "Min"), (8, _of_one_shape)),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), (13, _take_in("axes"))),
    "Cast": (6, _cast),
    "Clip": (11, _clip),
    "Concat": (4, _concat),
    "Pad": (11, _pad),
    "ReduceMean": (18, _take_in("axes")),
    "ReduceProd": (18, _take_in("axes")),
    "ReduceSum": (13, _take_in("axes")),
    "Reshape": (5, _take_in("shape")),
    "Slice": (10, _take_in("starts", "ends", "axes")),
    "Split": (13, _split),
    "Tile": (6, _tile),
}
"""For each operator, the opset that changed its form, and a function that upgrades a node of an older opset."""
