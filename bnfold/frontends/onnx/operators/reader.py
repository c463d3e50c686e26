"""Questions that the readers of ONNX operators ask about a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.frontends.onnx.operators.constants import Constants
from bnfold.frontends.onnx.operators.hints import Lookup
from bnfold.frontends.onnx.schema import find_schema
from bnfold.frontends.onnx.scopes import Scopes
from bnfold.frontends.reading import AnyArray, Unreadable, count_axis, known_rank, missing, not_constant, read_elsewhere
from bnfold.graph.ops import Shape
from bnfold.graph.outcome import Reason

FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})

SAME = frozenset({"Cast", "CastLike", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that make the same numbers as they read."""


def as_stored(attribute: ir.Attr) -> Any:
    """The value of an attribute as a file stores it. A model in memory may have a double, and a float is what runs."""
    if attribute.type is ir.AttributeType.FLOAT:
        return float(np.float32(attribute.value))
    if attribute.type is ir.AttributeType.FLOATS:
        return tuple(float(np.float32(number)) for number in attribute.value)
    return attribute.value


def reads_of(value: ir.Value) -> int:
    """How often a value is read; by the graph too, if it is an output."""
    return len(value.uses()) + value.is_graph_output()


@dataclass(frozen=True)
class Facts:
    """Constants, shapes and types of a model's values."""

    constants: Constants
    scopes: Scopes
    shapes: Lookup[Shape]
    types: Lookup[ir.DataType]


@dataclass(frozen=True)
class Reader:
    """One node, with its attributes, constants and shapes."""

    node: ir.Node
    facts: Facts

    @property
    def version(self) -> int:
        """The opset that gives the operator its meaning."""
        return self.facts.scopes.version(self.node)

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value, as a file would store it; strings are decoded."""
        attribute = self.node.attributes.data.get(name)  # a plain dict, which is asked more often than any other
        if attribute is None:
            return default
        schema = find_schema(self.node.op_type, self.version)
        if schema is None or name not in schema.attributes:  # else its type is the schema's
            raise Unreadable(Reason.INVALID_PARAMETERS, f"opset {self.version} gives it no attribute {name}")
        if attribute.is_ref():
            raise Unreadable(Reason.FUNCTION_INPUT, f"its attribute {name} is set by the function's caller")
        return as_stored(attribute)

    def value(self, index: int) -> ir.Value | None:
        """An input; None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def reads_alone(self, index: int) -> bool:
        """Whether an input is a stored value that nothing else reads."""
        value = self.value(index)
        return value is not None and value.producer() is None and reads_of(value) == 1

    def constant(self, index: int, what: str) -> AnyArray:
        """A constant input, in its own type."""
        value = self.value(index)
        if value is None:
            raise missing(what)
        self.insist_on_constant(value, what)
        return self.facts.constants.get(value)

    def insist_on_constant(self, value: ir.Value, what: str) -> None:
        """Refuse a value that a caller of the model can change."""
        if self.facts.constants.holds(value):
            return
        if self.facts.constants.is_overridable(value):
            detail = f"its {what} {value.name!r} is a graph input too, so a caller may replace it"
            raise Unreadable(Reason.OVERRIDABLE, detail)
        if self._is_given(value):
            raise Unreadable(Reason.FUNCTION_INPUT, f"its {what} {value.name!r} is given by the function's caller")
        raise not_constant(what, value.name)

    def _is_given(self, value: ir.Value) -> bool:
        """Whether an input or an attribute of a function stands for a value, be it in another type or shape."""
        while (maker := value.producer()) is not None:
            if maker.op_type == "Constant" and any(attribute.is_ref() for attribute in maker.attributes.values()):
                return True
            source = maker.inputs[0] if maker.op_type in SAME and not maker.domain and maker.inputs else None
            if source is None:
                return False
            value = source
        return isinstance(value.graph, ir.Graph) and self.facts.scopes.is_in_function(value.graph)

    def numbers(self, index: int, what: str) -> AnyArray:
        """A constant input that holds real numbers or truth values."""
        array = self.constant(index, what)
        if array.dtype.kind in "OSUc":
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} holds no numbers")
        return array

    def number(self, index: int, what: str) -> float:
        """A constant input of one element."""
        array = self.numbers(index, what)
        if array.size != 1:
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} is not one number")
        return float(array.reshape(-1)[0])

    def integers(self, attribute: str, index: int, what: str) -> tuple[int, ...] | None:
        """Integers given by an attribute (older opsets) or by a constant input; None where left out."""
        if attribute in self.node.attributes:
            return tuple(int(number) for number in np.atleast_1d(self.attribute(attribute, ())))
        if self.value(index) is None:
            return None
        array = self.constant(index, what)
        if array.dtype.kind not in "iu":
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} holds no integers")
        return tuple(int(number) for number in array.reshape(-1))

    def shape(self, index: int = 0) -> Shape | None:
        """The shape of an input, as far as it is known."""
        value = self.value(index)
        return None if value is None else self.facts.shapes.get(value)

    def output_shape(self, index: int = 0) -> Shape | None:
        """The shape of an output, as far as it is known."""
        return self.facts.shapes.get(self.node.outputs[index])

    def _rank(self, index: int) -> int | None:
        value = self.value(index)
        shape = None if value is None else self.facts.shapes.known.get(value) or self.shape(index)
        return None if shape is None else len(shape)

    def rank(self, index: int = 0) -> int:
        """The number of axes of an input."""
        return known_rank(self._rank(index))

    def axis(self, axis: int, index: int = 0) -> int:
        """An axis, counted from the front."""
        return count_axis(axis, self._rank(index))

    def dtype(self, index: int = 0) -> ir.DataType | None:
        """The element type of an input."""
        value = self.value(index)
        return None if value is None else self.facts.types.get(value)

    def single_output(self) -> None:
        """Insist that nothing but the first output is read."""
        if any(output.uses() or output.is_graph_output() for output in self.node.outputs[1:]):
            raise read_elsewhere()
