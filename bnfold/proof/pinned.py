"""Sizes of a model's inputs that the model itself fixes. Whenever it runs, they are these.

An exporter may declare a batch of any size and write the size of the example into a Reshape all the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx

from bnfold.proof.linear import attribute
from bnfold.proof.models import Scope

Size = int | str | None
"""A number, the name of a size of the inputs, or None for a size that is not known."""

ALIKE = frozenset(
    {
        "Abs", "BatchNormalization", "Cast", "Clip", "Dropout", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Identity",
        "LeakyRelu", "Neg", "Relu", "Sigmoid", "Softplus", "Tanh",
    }
)  # fmt: skip
"""Operators of which the output has the shape of the first input."""

ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})

REARRANGING = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators of which the output has as many elements as the first input."""


def find_pinned(scope: Scope, graph: onnx.GraphProto) -> dict[str, int]:
    """The named sizes of a main graph's inputs that can only be one number.

    Args:
        scope: the graph.
        graph: the same graph, with the inferred shapes of its values.
    """
    names = {size.dim_param for info in graph.input for size in info.type.tensor_type.shape.dim if size.dim_param}
    return _Solver(scope, graph, names).solve() if names else {}


@dataclass(eq=False)
class _Solver:
    scope: Scope
    graph: onnx.GraphProto
    names: set[str]
    shapes: dict[str, list[Size]] = field(default_factory=dict)
    pinned: dict[str, int] = field(default_factory=dict)

    def solve(self) -> dict[str, int]:
        for info in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            if info.type.tensor_type.HasField("shape"):
                self.shapes[info.name] = [self._size(size) for size in info.type.tensor_type.shape.dim]
        for tensor in self.graph.initializer:
            self.shapes[tensor.name] = list(tensor.dims)
        nodes = self._live()
        for node in nodes:
            self._insist_on_channels(node)
        for node in nodes:
            if (twin := self._twin(node)) is not None:
                self._insist(twin, dict(enumerate(self.shapes.get(node.output[0], []))))
            elif node.op_type == "Squeeze":
                axes = attribute(node, "axes", None) if len(node.input) < 2 else self.scope.constant(node.input[1])
                self._insist(node.input[0], {int(axis): 1 for axis in ([] if axes is None else axes)})
            elif node.op_type == "Reshape":
                self._insist_on_copies(node)
            if node.op_type in REARRANGING:
                self._insist_on_count(node)
        return self.pinned

    def _size(self, size: onnx.TensorShapeProto.Dimension) -> Size:
        if size.HasField("dim_value"):
            return int(size.dim_value)
        return size.dim_param if size.dim_param in self.names else None

    def _live(self) -> list[onnx.NodeProto]:
        """Nodes that run whenever the model runs, the last one first. A runtime may leave out what no output needs."""
        needed = set(self.scope.outputs)
        nodes: list[onnx.NodeProto] = []
        for node in reversed(self.scope.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        return [node for node in nodes if node.domain in ("", "ai.onnx")]

    def _twin(self, node: onnx.NodeProto) -> str | None:
        """The input that has the shape of a node's first output, if there is one."""
        if node.op_type in ALIKE:
            return str(node.input[0])
        data = {value for value in node.input if not self.scope.is_constant(value)}
        if node.op_type not in ARITHMETIC or len(data) != 1 or self.scope.version < 7:
            return None
        (twin,) = data
        shape = self.shapes.get(twin, [])
        for value in node.input:
            sizes = [] if value == twin else self.shapes.get(value)
            if sizes is None or len(sizes) > len(shape):
                return None
            if any(size not in (1, known) for size, known in zip(reversed(sizes), reversed(shape), strict=False)):
                return None
        return str(twin)

    def _insist_on_channels(self, node: onnx.NodeProto) -> None:
        """Note how many channels the parameters of an operator ask for."""
        operand = self.shapes.get(node.input[1]) if len(node.input) > 1 else None
        if not operand or not self.scope.is_constant(node.input[1]):
            return
        if node.op_type == "BatchNormalization":
            self._insist(node.input[0], {1: operand[0]})
        elif node.op_type == "Conv" and isinstance(operand[1], int):
            self._insist(node.input[0], {1: operand[1] * int(attribute(node, "group", 1))})
        elif node.op_type == "MatMul" and len(operand) > 1:
            self._insist(node.input[0], {-1: operand[-2]})

    def _insist(self, value: str, sizes: dict[int, Size]) -> None:
        """Note sizes that a value must have."""
        shape = self.shapes.get(value, [])
        for axis, size in sizes.items():
            if not -len(shape) <= axis < len(shape) or not isinstance(size, int):
                continue
            if isinstance(name := shape[axis], str):
                self.pinned.setdefault(name, size)
            if not isinstance(shape[axis], int):
                shape[axis] = size

    def _insist_on_copies(self, node: onnx.NodeProto) -> None:
        """Note the sizes that a Reshape copies: those in place of which its target has zeros."""
        target = self.scope.constant(node.input[1]) if len(node.input) == 2 else None
        if target is not None and not attribute(node, "allowzero", 0):
            made = dict(enumerate(self.shapes.get(node.output[0], [])))
            self._insist(node.input[0], {axis: made.get(axis) for axis, size in enumerate(target) if size == 0})

    def _insist_on_count(self, node: onnx.NodeProto) -> None:
        """Solve for the only open size of what a node reads, where its output is known in full."""
        made, read = self._count(node.output[0]), self._count(node.input[0])
        if made is None or read is None or made[1] or read[1].total() != 1 or not read[0]:
            return
        size, remainder = divmod(made[0], read[0])
        if not remainder:
            self.pinned.setdefault(next(iter(read[1])), size)

    def _count(self, value: str) -> tuple[int, Counter[str]] | None:
        """How many elements a value has: a number times sizes of the inputs; None where that is not known."""
        shape = self.shapes.get(value)
        while shape is None or None in shape:
            maker = self.scope.makers.get(value)
            if maker is None or maker.domain not in ("", "ai.onnx") or value != maker.output[0]:
                return None
            source = maker.input[0] if maker.op_type in REARRANGING else self._twin(maker)
            if source is None:
                return None
            value, shape = source, self.shapes.get(source)
        number = 1
        for size in shape:
            number *= size if isinstance(size, int) else 1
        return number, Counter(size for size in shape if isinstance(size, str))
