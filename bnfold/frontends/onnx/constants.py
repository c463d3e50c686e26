"""Values of an ONNX graph that do not depend on its inputs, evaluated on demand."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from bnfold.blocks import Rows
from bnfold.errors import InvalidModelError
from bnfold.frontends.onnx.pieces import array_rows, read, tensor_rows
from bnfold.frontends.onnx.scopes import Scopes

AnyArray = npt.NDArray[Any]

FOLDABLE = frozenset(
    [
        "Abs",
        "Add",
        "Cast",
        "CastLike",
        "Ceil",
        "Clip",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pad",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceProd",
        "ReduceSum",
        "Reshape",
        "Shape",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
"""Deterministic operators worth evaluating; not DequantizeLinear, since that would undo the quantisation."""

ELEMENT_LIMIT = 1 << 29
"""Elements that a constant may have; a few bytes of model can ask for a terabyte."""

MEMO_LIMIT = 4096
"""Elements up to which an evaluated constant is remembered."""


class Constants:
    """Which values are constant, and what they hold."""

    def __init__(
        self,
        model: ir.Model,
        scopes: Scopes,
        shapes: dict[ir.Value, tuple[int | str | None, ...]],
        types: dict[ir.Value, ir.DataType],
    ) -> None:
        self._overridable = model.ir_version >= 4
        self._scopes = scopes
        self._shapes = shapes
        self._types = types
        self._known: dict[ir.Value, bool] = {}
        self._memo: dict[ir.Value, AnyArray] = {}

    def is_overridable(self, value: ir.Value) -> bool:
        """Whether it is an initializer that the caller may replace, being a graph input too."""
        return self._overridable and value.is_initializer() and value.is_graph_input()

    def holds(self, value: ir.Value | None) -> bool:
        """Whether the value is constant; evaluates nothing."""
        if value is None:
            return False
        stack = [value]
        while stack:
            top = stack[-1]
            if top in self._known:
                stack.pop()
                continue
            node = top.producer()
            if node is None:
                self._known[top] = top.const_value is not None and not self.is_overridable(top)
            elif node.op_type == "Constant" and node.domain == "":
                self._known[top] = True
            elif node.op_type not in FOLDABLE or node.domain != "" or any(a.is_ref() for a in node.attributes.values()):
                self._known[top] = False
            elif node.op_type == "Shape" and self._static_shape(node.inputs[0]) is not None:
                self._known[top] = True
            else:
                inputs = self._operands(node)
                unknown = [each for each in inputs if each not in self._known]
                if unknown:
                    stack.extend(unknown)
                    continue
                self._known[top] = all(self._known[each] for each in inputs)
            stack.pop()
        return self._known[value]

    def get(self, value: ir.Value) -> AnyArray:
        """What a constant value holds, in its own type.

        Raises:
            InvalidModelError: the tensor cannot be read, or evaluating it would take unreasonable memory.
        """
        stack = [value]
        results: dict[ir.Value, AnyArray] = {}
        while value not in results:
            top = stack[-1]
            if top in self._memo:
                results[top] = self._memo[top]
            elif (tensor := _stored(top)) is not None:
                results[top] = read(tensor, top.name)
            else:
                node = top.producer()
                assert node is not None
                inputs = [] if self._is_shape(node) else self._operands(node)
                missing = [each for each in inputs if each not in results]
                if missing:
                    stack.extend(missing)
                    continue
                for output, array in zip(node.outputs, self._evaluate(node, results), strict=False):
                    results[output] = array
            if results[top].size <= MEMO_LIMIT:
                self._memo[top] = results[top]
            stack.pop()
        return results[value]

    def capture(self, value: ir.Value, rows: int) -> Callable[[], Rows]:
        """A way to read what `value` holds later on, row by row, whatever happens to the graph.

        A stored tensor stays where it is; a computed one is computed now.
        """
        tensor = _stored(value)
        if tensor is not None:
            return lambda: tensor_rows(tensor, value.name, rows)
        array = self.get(value)
        return lambda: array_rows(array, rows)

    def _static_shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        dims = self._shapes.get(value) if value is not None else None
        if dims is None:
            return None
        sizes = tuple(dim for dim in dims if isinstance(dim, int))
        return sizes if len(sizes) == len(dims) else None

    def _operands(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that decide the result; CastLike reads only the type of its second."""
        inputs = [each for each in node.inputs if each is not None]
        return inputs[:1] if self._is_cast_like(node) else inputs

    def _is_cast_like(self, node: ir.Node) -> bool:
        return node.op_type == "CastLike" and node.inputs[1] in self._types

    def _is_shape(self, node: ir.Node) -> bool:
        return node.op_type == "Shape" and self._static_shape(node.inputs[0]) is not None

    def _evaluate(self, node: ir.Node, values: dict[ir.Value, AnyArray]) -> list[AnyArray]:
        if self._is_shape(node):
            dims = self._static_shape(node.inputs[0])
            start = node.attributes.get_int("start", 0)
            end = node.attributes.get_int("end", None)
            return [np.asarray(dims, np.int64)[start:end]]
        if self._is_cast_like(node):
            source, like = node.inputs
            assert source is not None
            assert like is not None
            return [values[source].astype(self._types[like].numpy())]
        _bound(node, values)
        proto = ir.serde.serialize_node(node)
        feeds = {each.name or "": values[each] for each in node.inputs if each is not None}
        evaluator = ReferenceEvaluator(_model_of(proto, self._scopes.version(node)))
        try:
            with np.errstate(all="ignore"):
                return [np.asarray(array) for array in evaluator.run(None, feeds)]
        except (ValueError, TypeError, IndexError, RuntimeError, AttributeError) as error:
            raise InvalidModelError(f"node {node.name!r} ({node.op_type}) cannot be evaluated: {error}") from error


def _model_of(node: onnx.NodeProto, version: int) -> onnx.ModelProto:
    def infos(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name]

    graph = onnx.helper.make_graph([node], "constant", infos(list(node.input)), infos(list(node.output)))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node."""
    node = value.producer()
    if node is None:
        return value.const_value
    if node.op_type != "Constant":
        return None
    for name, attribute in node.attributes.items():
        match name:
            case "value":
                return attribute.as_tensor()
            case "value_float" | "value_floats":
                return ir.tensor(np.asarray(attribute.value, np.float32))
            case "value_int" | "value_ints":
                return ir.tensor(np.asarray(attribute.value, np.int64))
    raise InvalidModelError(f"Constant node {node.name!r} holds no tensor")


def _bound(node: ir.Node, values: dict[ir.Value, AnyArray]) -> None:
    """Refuse to evaluate what would expand beyond all bounds."""
    inputs = [values[each] for each in node.inputs if each is not None]
    size = 0
    match node.op_type:
        case "ConstantOfShape" | "Expand":
            size = prod(int(dim) for dim in inputs[-1].reshape(-1))
        case "Tile":
            size = inputs[0].size * prod(int(times) for times in inputs[-1].reshape(-1))
        case "Range":
            start, limit, delta = (float(each.reshape(-1)[0]) for each in inputs)
            size = int(abs(limit - start) / abs(delta)) if delta else ELEMENT_LIMIT + 1
        case "Pad":
            pads = inputs[1].reshape(-1).tolist() if len(inputs) > 1 else node.attributes["pads"].as_ints()
            rank = inputs[0].ndim
            size = prod(dim + abs(pads[k % len(pads)]) * 2 for k, dim in enumerate(inputs[0].shape)) if rank else 0
        case _:
            shape = [max(dims) for dims in zip(*(each.shape[::-1] for each in inputs), strict=False)]
            size = prod(shape)
    if not 0 <= size <= ELEMENT_LIMIT:
        raise InvalidModelError(f"constant node {node.name!r} ({node.op_type}) asks for {size} elements")
