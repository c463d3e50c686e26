"""Values of an ONNX graph that do not depend on its inputs, evaluated on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.algebra.kernels import Rows
from bnfold.frontends.onnx.files.pieces import form, is_plain, read, tensor_rows
from bnfold.frontends.onnx.files.slots import slots
from bnfold.frontends.onnx.files.stored import StoredTensor
from bnfold.frontends.onnx.operators import batchnorms, quantizers
from bnfold.frontends.onnx.operators.bounds import Budget
from bnfold.frontends.onnx.operators.modern import MODERN, Attributes, modern
from bnfold.frontends.onnx.scopes import Scopes
from bnfold.frontends.parameters import array_rows
from bnfold.frontends.reading import AnyArray, Unreadable
from bnfold.frontends.traversal import in_order
from bnfold.graph.outcome import Reason

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

FOLDABLE = frozenset((
    "Abs", "Add", "BatchNormalization", "Cast", "CastLike", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div",
    "Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "Identity", "Max", "Min", "Mul", "Neg", "Pad", "Pow",
    "QuantizeLinear", "Range", "Reciprocal", "ReduceMean", "ReduceProd", "ReduceSum", "Reshape", "Shape", "Slice",
    "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
))  # fmt: skip
"""Deterministic operators worth evaluating. DequantizeLinear is not among them: a folded weight stays quantised."""

OVERRIDABLE = 4
"""The IR version from which on an initializer that is a graph input too is a default, which a caller may replace."""

MEMO_LIMIT = 4096
"""Elements up to which a constant is remembered."""

MEMO_ROOM = 1 << 24
"""Elements of all constants that are remembered."""

EVALUATOR_LIMIT = 1024
"""Evaluators of single nodes that are kept."""


class Constants:
    """Which values are constant, and what they hold."""

    def __init__(
        self,
        model: ir.Model,
        scopes: Scopes,
        shapes: Mapping[ir.Value, tuple[int | str | None, ...]],
        types: Mapping[ir.Value, ir.DataType],
    ) -> None:
        self._overridable = model.ir_version >= OVERRIDABLE
        self._scopes = scopes
        self._shapes = shapes
        self._types = types
        self._known: dict[ir.Value, bool] = {}
        self._memo: dict[ir.Value, AnyArray] = {}
        self._memo_room = MEMO_ROOM
        self._latest: tuple[ir.Value, AnyArray] | None = None  # a large one, which is mostly asked for several times
        self._forms: dict[ir.Value, tuple[ir.DataType, tuple[int, ...]]] = {}
        self._failures: dict[ir.Node, str] = {}
        self._evaluators: dict[tuple[int, bytes], ReferenceEvaluator] = {}
        self._budget = Budget(lambda: sum(slot.tensor.size for slot in slots(model)))

    def renew(
        self,
        shapes: Mapping[ir.Value, tuple[int | str | None, ...]],
        types: Mapping[ir.Value, ir.DataType],
    ) -> None:
        """Use new shapes and types, by which more values may be constant."""
        self._shapes, self._types = shapes, types
        self._known = {value: True for value, is_known in self._known.items() if is_known}

    def is_overridable(self, value: ir.Value) -> bool:
        """Whether it is an initializer that the caller may replace, being a graph input too."""
        return self._overridable and value.is_initializer() and value.is_graph_input()

    def holds(self, value: ir.Value | None) -> bool:
        """Whether the value depends on constants alone; evaluates nothing, so `get` may yet fail."""
        if value is None:
            return False
        if value.producer() is None:
            return value.const_value is not None and not self.is_overridable(value)
        if (known := self._known.get(value)) is not None:
            return known
        stack = [value]
        while stack:
            top = stack[-1]
            if top in self._known:
                stack.pop()
                continue
            node = top.producer()
            if node is None:
                self._known[top] = top.const_value is not None and not self.is_overridable(top)
            elif node.domain != "" or not (node.op_type == "Constant" or node.op_type in FOLDABLE) or _is_open(node):
                self._known[top] = False
            elif node.op_type == "Constant":
                self._known[top] = _stored(top) is not None
            elif node.op_type == "Shape" and self._static_shape(node.inputs[0]) is not None:
                self._known[top] = True
            elif (data := node.inputs[0] if node.inputs else None) is not None and not self._known.get(data, False):
                if data not in self._known:  # which decides most often: no other operand is asked then
                    stack.append(data)
                    continue
                self._known[top] = False
            elif node.op_type == "BatchNormalization" and not self._is_settled(top):
                self._known[top] = False
            else:
                inputs = self._operands(node)
                unknown = [source for source in inputs if source not in self._known]
                if unknown:
                    stack.extend(unknown)
                    continue
                self._known[top] = all(self._known[source] for source in inputs)
            stack.pop()
        return self._known[value]

    def get(self, value: ir.Value) -> AnyArray:
        """The content of a constant value, in its own type.

        Raises:
            Unreadable: it cannot be evaluated, or would take unreasonable memory.
            UnreadableTensorError: a stored tensor cannot be read, or the constants of the model take too much work.
        """
        if value in self._memo:
            return self._memo[value]
        if self._latest is not None and self._latest[0] is value:
            return self._latest[1]
        if value.producer() is None and value.const_value is not None:
            array = read(value.const_value, value.name)
            if not is_plain(value.const_value):
                self._remember(value, array)
            return array
        order = in_order(value, self._needed)
        waiting = Counter(source for top in order for source in self._needed(top))
        results: dict[ir.Value, AnyArray] = {}
        for top in order:
            if top in self._memo:
                results[top] = self._memo[top]
            elif (tensor := _stored(top)) is not None:
                results[top] = read(tensor, top.name)
            elif top not in results:  # else its node was evaluated for another output
                node = top.producer()
                assert node is not None
                results_of_node = self._evaluate(node, results)
                pairs = zip(node.outputs, results_of_node, strict=False)
                results.update((output, array) for output, array in pairs if output in waiting)
                results[top] = results_of_node[top.index() or 0]
            for source in self._needed(top):
                waiting[source] -= 1
                if not waiting[source]:
                    results.pop(source, None)
            self._remember(top, results[top])
        if value not in self._memo and _stored(value) is None:
            self._latest = value, results[value]
        return results[value]

    def form(self, value: ir.Value) -> tuple[ir.DataType, tuple[int, ...]]:
        """The type and shape of a constant value. The data of a stored tensor is not read.

        Raises:
            Unreadable, UnreadableTensorError: as `get`.
        """
        if value not in self._forms:
            tensor = _stored(value)
            if tensor is None:
                array = self.get(value)
                self._forms[value] = ir.DataType.from_numpy(array.dtype), array.shape
            elif isinstance(tensor, StoredTensor):  # which knows it already
                return form(tensor)
            else:
                self._forms[value] = form(tensor)
        return self._forms[value]

    def _remember(self, value: ir.Value, array: AnyArray) -> None:
        if value not in self._memo and array.size <= MEMO_LIMIT and self._memo_room > 0:
            self._memo[value] = array
            self._memo_room -= array.size

    def _needed(self, value: ir.Value) -> list[ir.Value]:
        """The constants that the computation of another reads."""
        node = value.producer()
        if value in self._memo or node is None or node.op_type == "Constant" or self._is_shape(node):
            return []
        return self._operands(node)

    def capture(self, value: ir.Value, rows: int) -> Callable[[], Rows]:
        """A way to read a constant later, row by row, whatever happens to the graph.

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
        if node.op_type == "BatchNormalization":
            return batchnorms.operands(node, self._scopes.version(node)) or []
        inputs = [value for value in node.inputs if value is not None]
        return inputs[:1] if self._is_cast_like(node) else inputs

    def _is_settled(self, value: ir.Value) -> bool:
        """Whether an output of a BatchNormalization is one that may be constant."""
        node = value.producer()
        return node is not None and not value.index() and bool(batchnorms.operands(node, self._scopes.version(node)))

    def _is_cast_like(self, node: ir.Node) -> bool:
        return node.op_type == "CastLike" and node.inputs[1] in self._types

    def _is_shape(self, node: ir.Node) -> bool:
        return node.op_type == "Shape" and self._static_shape(node.inputs[0]) is not None

    def _evaluate(self, node: ir.Node, values: dict[ir.Value, AnyArray]) -> list[AnyArray]:
        if node not in self._failures:
            try:
                return self._evaluate_node(node, values)
            except (
                ValueError,
                TypeError,
                LookupError,
                RuntimeError,
                AttributeError,
                ArithmeticError,
                MemoryError,
            ) as error:
                self._failures[node] = str(error)
        message = f"constant node {node.name!r} ({node.op_type}) cannot be evaluated: {self._failures[node]}"
        raise Unreadable(Reason.NOT_CONSTANT, message)

    def _evaluate_node(self, node: ir.Node, values: dict[ir.Value, AnyArray]) -> list[AnyArray]:
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
        version = self._scopes.version(node)
        if node.op_type == "BatchNormalization":
            numbers = [values[value] for value in self._operands(node)]
            self._budget.spend("Identity", {}, numbers[:1])
            return [batchnorms.evaluate(node, version, numbers)]
        operands = [None if value is None else values[value] for value in node.inputs]
        if node.op_type == "QuantizeLinear":  # of which the evaluator wraps large numbers around
            quantize = quantizers.read(node, operands)
            assert operands[0] is not None
            self._budget.spend("Identity", {}, [operands[0]])
            return [quantize(operands[0])]
        attributes, inputs = modern(node, version, operands)
        arrays = {f"x{index}": array for index, array in enumerate(inputs) if array is not None}
        self._budget.spend(node.op_type, attributes, list(arrays.values()))
        proto = _alone(node, attributes, inputs)
        with np.errstate(all="ignore"):
            return [np.asarray(array) for array in self._evaluator(proto, max(version, MODERN)).run(None, arrays)]

    def _evaluator(self, node: onnx.NodeProto, version: int) -> ReferenceEvaluator:
        """An evaluator of one node. Nodes that differ in names alone share it."""
        from onnx.reference import ReferenceEvaluator  # which takes as long to import as a model to read

        key = version, node.SerializeToString(deterministic=True)
        if key not in self._evaluators:
            if len(self._evaluators) >= EVALUATOR_LIMIT:
                self._evaluators.clear()
            self._evaluators[key] = ReferenceEvaluator(_model_of(node, version))
        return self._evaluators[key]


def _is_open(node: ir.Node) -> bool:
    """Whether the caller of a function sets an attribute of a node."""
    return any(attribute.is_ref() for attribute in node.attributes.data.values())


def _alone(node: ir.Node, attributes: Attributes, inputs: Sequence[AnyArray | None]) -> onnx.NodeProto:
    """A copy of a node with other attributes and inputs, and with names that do not depend on the model."""
    names = ["" if array is None else f"x{index}" for index, array in enumerate(inputs)]
    outputs = [f"y{index}" for index in range(len(node.outputs))]
    return onnx.helper.make_node(node.op_type, names, outputs, **attributes)


def _model_of(node: onnx.NodeProto, version: int) -> onnx.ModelProto:
    def infos(names: Iterable[str]) -> list[onnx.ValueInfoProto]:
        return [onnx.ValueInfoProto(name=name) for name in names if name]

    graph = onnx.helper.make_graph([node], "constant", infos(node.input), infos(node.output))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node; None for a computed value and for strings."""
    node = value.producer()
    if node is None:
        return value.const_value
    if node.op_type != "Constant":
        return None
    for name, attribute in node.attributes.items():
        match name, attribute.type:
            case "value", ir.AttributeType.TENSOR:
                return cast("ir.TensorProtocol", attribute.value)  # `as_tensor` checks a protocol, which takes long
            case "value_float" | "value_floats", ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
                return ir.tensor(np.asarray(attribute.value, np.float32))
            case "value_int" | "value_ints", ir.AttributeType.INT | ir.AttributeType.INTS:
                return ir.tensor(np.asarray(attribute.value, np.int64))
    return None
