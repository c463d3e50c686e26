"""What the readers of ONNX operators ask of a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.frontends.onnx.operators.constants import AnyArray, Constants
from bnfold.frontends.onnx.operators.hints import Lookup
from bnfold.frontends.onnx.operators.unreadable import Unreadable
from bnfold.frontends.onnx.schema import find_schema
from bnfold.frontends.onnx.scopes import Scopes
from bnfold.graph.ops import Opaque, Shape
from bnfold.graph.outcome import Reason, Stop

FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Facts:
    """What is known of a model besides its structure."""

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
        """An attribute's value; strings are decoded."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        schema = find_schema(self.node.op_type, self.version)
        if schema is None or name not in schema.attributes:  # else its type is the schema's
            raise Unreadable(Reason.INVALID_PARAMETERS, f"opset {self.version} gives it no attribute {name}")
        if found.is_ref():
            raise Unreadable(Reason.NOT_CONSTANT, f"its attribute {name} is set by the function's caller")
        return found.value

    def value(self, index: int) -> ir.Value | None:
        """An input; None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def constant(self, index: int, what: str) -> AnyArray:
        """A constant input, in its own type."""
        value = self.value(index)
        if value is None:
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} is missing")
        if self.facts.constants.is_overridable(value):
            detail = f"its {what} {value.name!r} is a graph input too, so a caller may replace it"
            raise Unreadable(Reason.OVERRIDABLE, detail)
        if not self.facts.constants.holds(value):
            raise Unreadable(Reason.NOT_CONSTANT, f"its {what} {value.name!r} is not constant")
        return self.facts.constants.get(value)

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
            return tuple(int(each) for each in np.atleast_1d(self.attribute(attribute, ())))
        if self.value(index) is None:
            return None
        array = self.constant(index, what)
        if array.dtype.kind not in "iu":
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} holds no integers")
        return tuple(int(each) for each in array.reshape(-1))

    def shape(self, index: int = 0) -> Shape | None:
        """The shape of an input, as far as it is known."""
        value = self.value(index)
        return None if value is None else self.facts.shapes.get(value)

    def output_shape(self, index: int = 0) -> Shape | None:
        """The shape of an output, as far as it is known."""
        return self.facts.shapes.get(self.node.outputs[index])

    def rank(self, index: int = 0) -> int:
        """The number of axes of an input."""
        value = self.value(index)
        shape = None if value is None else self.facts.shapes.known.get(value) or self.shape(index)
        if shape is None:
            raise Unreadable(Reason.UNKNOWN_SHAPE, "the rank of its input is not known")
        return len(shape)

    def axis(self, axis: int, index: int = 0) -> int:
        """An axis, counted from the front."""
        value = self.value(index)
        if axis >= 0 and (value is None or (value not in self.facts.shapes.known and self.shape(index) is None)):
            return axis
        rank = self.rank(index)
        if not -rank <= axis < rank:
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its input has {rank} axes, and no axis {axis}")
        return axis % rank

    def dtype(self, index: int = 0) -> ir.DataType | None:
        """The element type of an input."""
        value = self.value(index)
        return None if value is None else self.facts.types.get(value)

    def single_output(self) -> None:
        """Insist that nothing but the first output is read."""
        if any(output.uses() or output.is_graph_output() for output in self.node.outputs[1:]):
            raise Unreadable(Reason.NOT_LINEAR, "a further output of it is read")


def opaque(reason: Reason, detail: str) -> Opaque:
    """An operator that stops every affine, with its reason."""
    return Opaque(Stop(reason, detail))


def known_sizes(dims: Sequence[int | str | None]) -> tuple[int, ...] | None:
    """The sizes, where all are numbers."""
    sizes = tuple(dim for dim in dims if isinstance(dim, int))
    return sizes if len(sizes) == len(dims) else None
