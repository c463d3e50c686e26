"""The ONNX standard's rules for its operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import onnx


@dataclass(frozen=True)
class Schema:
    """The inputs, outputs and attributes that a node of one operator may have.

    Attributes:
        inputs, outputs: how many, at least.
        required: which inputs must be there, by index.
        most_inputs, most_outputs: how many, at most.
        attributes: the types of those that there are, as in `onnx.AttributeProto.AttributeType`.
    """

    inputs: int
    outputs: int
    required: frozenset[int]
    most_inputs: int
    most_outputs: int
    attributes: Mapping[str, int]


@lru_cache(maxsize=4096)
def find_schema(operator: str, opset: int) -> Schema | None:
    """The schema of an operator of the standard domain; None if there is none."""
    try:
        schema = onnx.defs.get_schema(operator, min(opset, onnx.defs.onnx_opset_version()), "")
    except onnx.defs.SchemaError:
        return None
    kinds = {name: int(attribute.type.value) for name, attribute in schema.attributes.items()}  # type: ignore[attr-defined]  # an enum of C++ that the stubs do not know
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    formal = enumerate(schema.inputs[: schema.min_input])
    required = frozenset(index for index, parameter in formal if parameter.option != optional)
    return Schema(schema.min_input, schema.min_output, required, schema.max_input, schema.max_output, kinds)


@lru_cache(maxsize=4096)
def find_defaults(operator: str, opset: int) -> Mapping[str, str]:
    """The attributes of a standard operator that have a default, each with that as text."""
    try:
        schema = onnx.defs.get_schema(operator, min(opset, onnx.defs.onnx_opset_version()), "")
    except onnx.defs.SchemaError:
        return {}
    given = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    return {name: _text(onnx.helper.get_attribute_value(each)) for name, each in given.items() if each.type}


def _text(value: object) -> str:
    """An attribute's value as onnx_ir would print it."""
    return value.decode() if isinstance(value, bytes) else str(tuple(value) if isinstance(value, list) else value)
