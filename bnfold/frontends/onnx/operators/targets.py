"""Targets of Reshapes that are computed from sizes, one element after the other.

Exporters write ``x.reshape(n, c // 4, 2 * h, 2 * w)`` as a Concat of what is computed from the Shape of a value. Where
some of the sizes are open, onnx infers nothing of it, not even how many axes there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.errors import UnreadableTensorError
from bnfold.frontends.onnx.operators.constants import Constants
from bnfold.frontends.reading import Unreadable
from bnfold.graph.ops import Dim, Shape

DEPTH_LIMIT = 64
"""The most operators in a row by which one size is computed."""

AXES_LIMIT = 64
"""The most axes that a value has."""

SAME = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that make the same integers as they read; of one, or of a vector."""


@dataclass(frozen=True)
class Targets:
    """Integers of a graph that are computed from sizes."""

    constants: Constants
    shapes: Mapping[ir.Value, Shape]

    def result(self, node: ir.Node) -> Shape | None:
        """The shape that a Reshape makes, as far as it is known; None where the number of its axes is not known."""
        if len(node.inputs) != 2 or node.attributes.get_int("allowzero", False):
            return None
        elements = self._elements(node.inputs[1])
        return None if elements is None else tuple(self._size(node, *each) for each in enumerate(elements))

    def _size(self, node: ir.Node, axis: int, element: Dim) -> Dim:
        """A size that a Reshape makes: zero is that of its input, and -1 is what is left."""
        if element == 0:
            before = self.shapes.get(node.inputs[0]) if node.inputs[0] is not None else None
            return before[axis] if before is not None and axis < len(before) else None
        return None if isinstance(element, int) and element < 0 else element

    def _elements(self, value: ir.Value | None, depth: int = 0) -> Sequence[Dim] | None:
        """The integers of a vector or of a single number; None for one that is not known, or if all are not."""
        if value is None or depth > DEPTH_LIMIT:
            return None
        node = value.producer()
        if self.constants.holds(value):
            return self._stored(value)
        if node is None or node.domain != "" or any(each.is_ref() for each in node.attributes.values()):
            return None
        read = node.inputs[0] if node.inputs else None
        if node.op_type == "Shape" and read is not None:
            shape = self.shapes.get(read)
            ends = (node.attributes.get_int(name, default) for name, default in (("start", 0), ("end", None)))
            return None if shape is None else shape[slice(*ends)]
        if node.op_type == "Concat":
            parts = [self._elements(each, depth + 1) for each in node.inputs]
            known = [part for part in parts if part is not None]
            together = [element for part in known for element in part]
            return together if len(known) == len(parts) and len(together) <= AXES_LIMIT else None
        if node.op_type in SAME:
            return self._elements(read, depth + 1)
        if node.op_type == "Gather":
            elements, places = self._elements(read, depth + 1), self._elements(node.inputs[1], depth + 1)
            return None if elements is None or places is None else _pick(elements, places)
        if node.op_type in ("Add", "Div", "Mul", "Sub"):
            sides = [self._elements(each, depth + 1) for each in node.inputs]
            return _compute(node.op_type, sides)
        return None

    def _stored(self, value: ir.Value) -> Sequence[Dim] | None:
        try:
            array = self.constants.get(value)
        except (Unreadable, UnreadableTensorError):
            return None
        is_short = array.dtype.kind in "iu" and array.ndim <= 1 and array.size <= AXES_LIMIT
        return [int(number) for number in array.reshape(-1)] if is_short else None


def _pick(elements: Sequence[Dim], places: Sequence[Dim]) -> Sequence[Dim] | None:
    """The elements at some places."""
    known = [place for place in places if isinstance(place, int) and -len(elements) <= place < len(elements)]
    return [elements[place] for place in known] if len(known) == len(places) else None


def _compute(operator: str, sides: Sequence[Sequence[Dim] | None]) -> Sequence[Dim] | None:
    """A number computed of two; not known where one of them is not. Vectors are not computed with."""
    first, second = sides if len(sides) == 2 else (None, None)
    if first is None or second is None or len(first) != 1 or len(second) != 1:
        return None
    one, other = first[0], second[0]
    if (
        not isinstance(one, int)
        or not isinstance(other, int)
        or min(one, other) < 0
        or (operator == "Div" and not other)
    ):
        return [None]
    return [{"Add": one + other, "Sub": one - other, "Mul": one * other, "Div": one // (other or 1)}[operator]]
