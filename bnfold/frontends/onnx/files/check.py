"""Checks of a protobuf before anything is computed from it: structure, sizes and limits.

Everything here is iterative and reads no tensor's values, so that a hostile file costs no more than its own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx

from bnfold.errors import InvalidModelError
from bnfold.frontends.limits import Limits
from bnfold.frontends.onnx.files.check_tensor import TensorCheck
from bnfold.frontends.onnx.files.check_text import insist_on_text
from bnfold.frontends.onnx.nesting import nested
from bnfold.frontends.onnx.schema import find_schema

Key = tuple[str, str, str]
"""The key of a function: domain, name, overload."""

PARAMETERS = ("scale", "bias", "mean", "variance")


@dataclass
class _Frame:
    """A graph that is being walked.

    Attributes:
        where: what to call it in an error.
        nodes: those that are left.
        outputs: names that it must have made in the end.
        scopes: the names that are known: of the graphs around it, and last its own.
        opset: that gives the operators of the standard domain their meaning.
        made: names that the current node makes, unknown to its own bodies.
    """

    where: str
    nodes: Iterator[onnx.NodeProto]
    outputs: Sequence[str]
    scopes: tuple[set[str], ...]
    opset: int
    made: Sequence[str] = field(default=())

    def knows(self, name: str) -> bool:
        return name in self.scopes[-1] or any(name in scope for scope in self.scopes)

    def title(self, node: onnx.NodeProto) -> str:
        """What to call one of its nodes in an error."""
        return f"node {node.name!r} ({node.op_type})" if node.name else f"a {node.op_type} of {self.where}"


def check(proto: onnx.ModelProto, name: str, folder: Path | None, limits: Limits) -> None:
    """Insist that a model is well formed and within the limits.

    Args:
        proto: the message; only read.
        name: what to call it in an error.
        folder: where external data must be; None where the caller has set no place for it.
        limits: how much it may ask for.

    Raises:
        InvalidModelError: with the first thing that is wrong, and where it is.
    """
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise InvalidModelError(f"{name}: not an ONNX model (it holds no graph)")
    if not proto.opset_import:
        raise InvalidModelError(f"{name}: not a valid ONNX model (it names no opset)")
    try:
        insist_on_text(proto)
        _Check(TensorCheck(folder, limits), limits).model(proto)
    except ValueError as error:
        raise InvalidModelError(f"{name}: not a valid ONNX model ({error})") from error


class UnsortedError(ValueError):
    """A node reads what nothing before it makes: the cause of an `InvalidModelError`."""


class _Check:
    """One walk over a model; what it finds wrong is a `ValueError` without the model's name."""

    def __init__(self, tensors: TensorCheck, limits: Limits) -> None:
        self._tensors = tensors
        self._limits = limits
        self._types: dict[str, int] = {}

    def model(self, proto: onnx.ModelProto) -> None:
        opset = _opset(proto.opset_import, "it")
        self._types = {each.name: each.data_type for each in proto.graph.initializer}
        functions: dict[Key, onnx.FunctionProto] = {}
        for function in proto.functions:
            key = _key(function.domain, function.name, function.overload)
            if key in functions:
                raise ValueError(f"two functions are called {function.name!r}")
            if not key[0] and find_schema(function.name, opset) is not None:
                raise ValueError(f"a function redefines {function.name!r} of the standard domain")
            functions[key] = function
        calls: dict[Key, list[Key]] = {}
        sizes: dict[Key, int] = {}
        for key, function in functions.items():
            frame = self._function(function)
            sizes[key], calls[key] = self._walk(frame, functions)
        size, called = self._walk(self._graph(proto.graph, "the graph", (), opset), functions)
        self._count(size, called, sizes, calls)
        for training in proto.training_info:
            self._training(training)

    def _function(self, function: onnx.FunctionProto) -> _Frame:
        where = f"function {function.name!r}"
        _unique(function.input, lambda: f"input of {where}")
        opset = _opset(function.opset_import, where)
        return _Frame(where, iter(function.node), function.output, (set(function.input),), opset)

    def _graph(self, graph: onnx.GraphProto, where: str, outer: tuple[set[str], ...], opset: int) -> _Frame:
        inputs = [each.name for each in graph.input]
        _unique(inputs, lambda: f"input of {where}")
        sparse = [each.values for each in graph.sparse_initializer]
        constants = [each.name for each in [*graph.initializer, *sparse]]
        _unique(constants, lambda: f"initializer of {where}")
        for tensor in graph.initializer:
            self._tensors.dense(tensor, f"initializer {tensor.name!r}")
        for each in graph.sparse_initializer:
            self._tensors.sparse(each, f"sparse initializer {each.values.name!r}")
        outputs = [each.name for each in graph.output]
        if not all([*inputs, *constants, *outputs]):
            raise ValueError(f"an input, output or initializer of {where} has no name")
        return _Frame(where, iter(graph.node), outputs, (*outer, {*inputs, *constants}), opset)

    def _walk(self, start: _Frame, functions: dict[Key, onnx.FunctionProto]) -> tuple[int, list[Key]]:
        """The number of nodes in a graph and its bodies, and the functions that they call."""
        stack = [start]
        count, called = 0, []
        while stack:
            frame = stack[-1]
            frame.scopes[-1].update(frame.made)
            node = next(frame.nodes, None)
            if node is None:
                self._end(stack.pop())
                continue
            count += 1
            if count > self._limits.nodes:
                raise ValueError(f"it has more than {self._limits.nodes} nodes; --max-nodes allows more")
            self._node(node, frame)
            if functions and (key := _key(node.domain, node.op_type, node.overload)) in functions:
                called.append(key)
            for body in self._attributes(node, frame):
                where = frame.title(node)
                if len(stack) > self._limits.depth:
                    raise ValueError(f"graphs are nested more than {self._limits.depth} deep, at {where}")
                stack.append(self._graph(body, f"a body of {where}", frame.scopes, frame.opset))
        return count, called

    def _end(self, frame: _Frame) -> None:
        for name in frame.outputs:
            if name not in frame.scopes[-1]:  # an outer value has to pass through an Identity
                raise ValueError(f"output {name!r} of {frame.where} is made by nothing in it")

    def _node(self, node: onnx.NodeProto, frame: _Frame) -> None:
        for value in node.input:
            if value and not frame.knows(value):
                raise UnsortedError(f"{frame.title(node)} reads {value!r}, which nothing before it makes")
        made = frame.made = [value for value in node.output if value]
        if not frame.scopes[-1].isdisjoint(made) or (len(made) > 1 and len(set(made)) < len(made)):
            twice = next(each for each in made if each in frame.scopes[-1] or made.count(each) > 1)
            raise ValueError(f"{frame.title(node)} makes {twice!r}, which there is already")
        if node.domain in ("", "ai.onnx"):
            _operator(node, frame)
            if node.op_type == "BatchNormalization":
                self._batchnorm(node, frame)

    def _batchnorm(self, node: onnx.NodeProto, frame: _Frame) -> None:
        for value, what in zip(node.input[1:], PARAMETERS, strict=False):
            kind = self._types.get(value)
            if kind is not None and kind not in _FLOATS:
                named = onnx.TensorProto.DataType.Name(kind)
                raise ValueError(f"the {what} of {frame.title(node)} has the type {named}")

    def _attributes(self, node: onnx.NodeProto, frame: _Frame) -> Sequence[onnx.GraphProto]:
        """Check the tensors that a node carries, and give the graphs."""
        attributes = list(node.attribute)
        if len(attributes) > 1:
            _unique([each.name for each in attributes], lambda: f"attribute of {frame.title(node)}")
        bodies: list[onnx.GraphProto] = []
        for attribute in attributes:
            kind = attribute.type
            if kind in _PLAIN:
                continue
            what = partial(_attribute_title, attribute, node, frame)
            if kind == onnx.AttributeProto.UNDEFINED:
                raise ValueError(f"{what()} has no type")
            if attribute.ref_attr_name:
                continue
            if kind == onnx.AttributeProto.GRAPH:
                bodies.append(attribute.g)
            elif kind == onnx.AttributeProto.GRAPHS:
                bodies.extend(attribute.graphs)
            elif kind == onnx.AttributeProto.TENSOR:
                self._tensors.dense(attribute.t, what())
            elif kind == onnx.AttributeProto.TENSORS:
                for tensor in attribute.tensors:
                    self._tensors.dense(tensor, what())
            elif kind == onnx.AttributeProto.SPARSE_TENSOR:
                self._tensors.sparse(attribute.sparse_tensor, what())
            elif kind == onnx.AttributeProto.SPARSE_TENSORS:
                for sparse in attribute.sparse_tensors:
                    self._tensors.sparse(sparse, what())
        return bodies

    def _training(self, training: onnx.TrainingInfoProto) -> None:
        """Graphs for training are carried along unread, so they may not refer to other files."""
        for graph in nested(training.initialization, training.algorithm):
            held = [*graph.initializer, *(each.values for each in graph.sparse_initializer)]
            for node in graph.node:
                for attribute in node.attribute:
                    held += [attribute.t, *attribute.tensors]
            if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in held):
                raise ValueError("its training information holds external data")

    def _count(self, size: int, called: list[Key], sizes: dict[Key, int], calls: dict[Key, list[Key]]) -> None:
        """Bound the nodes that there are once each call is replaced by the function's body."""
        total: dict[Key, int] = {}
        for callee in _callees_first(calls):
            total[callee] = sizes[callee] + sum(total[each] for each in calls[callee])
            total[callee] = min(total[callee], self._limits.nodes + 1)
        if size + sum(total[each] for each in called) > self._limits.nodes or max(total.values(), default=0) > (
            self._limits.nodes
        ):
            raise ValueError(
                f"with its functions expanded it has more than {self._limits.nodes} nodes; --max-nodes allows more"
            )


_FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)


def _opset(imports: Sequence[onnx.OperatorSetIdProto], where: str) -> int:
    """The version of the standard domain; 1 where it is not imported."""
    versions: dict[str, int] = {}
    for each in imports:
        domain = "" if each.domain == "ai.onnx" else each.domain
        if each.version < 1:
            raise ValueError(f"{where} imports an opset below 1, {each.version} of {domain!r}")
        if versions.setdefault(domain, each.version) != each.version:
            raise ValueError(f"{where} imports two opsets of {domain!r}, {versions[domain]} and {each.version}")
    return versions.get("", 1)


_PLAIN = frozenset(
    {
        *(onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.STRING),
        *(onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS, onnx.AttributeProto.STRINGS),
    }
)
"""Types of attributes that hold neither tensors nor graphs."""


def _attribute_title(attribute: onnx.AttributeProto, node: onnx.NodeProto, frame: _Frame) -> str:
    return f"attribute {attribute.name!r} of {frame.title(node)}"


def _operator(node: onnx.NodeProto, frame: _Frame) -> None:
    """Insist that a node of the standard domain has what its operator requires."""
    schema = find_schema(node.op_type, frame.opset)
    if schema is None:
        if find_schema(node.op_type, onnx.defs.onnx_opset_version()) is not None:
            raise ValueError(f"{frame.title(node)}: opset {frame.opset} has no {node.op_type}")
        return
    inputs, outputs = list(node.input), list(node.output)
    if len(inputs) < schema.inputs or not all(inputs[index] for index in schema.required):
        raise ValueError(f"{frame.title(node)} lacks an input")
    if len(outputs) < schema.outputs or not all(outputs[: schema.outputs]):
        raise ValueError(f"{frame.title(node)} lacks an output")
    if len(inputs) > schema.most_inputs or len(outputs) > schema.most_outputs:
        raise ValueError(f"{frame.title(node)} has more inputs or outputs than its operator")
    for attribute in node.attribute:
        wanted = schema.attributes.get(attribute.name)
        if wanted is not None and attribute.type != wanted:
            kind, due = (onnx.AttributeProto.AttributeType.Name(each) for each in (attribute.type, wanted))
            raise ValueError(f"{_attribute_title(attribute, node, frame)} has the type {kind} instead of {due}")


def _callees_first(calls: dict[Key, list[Key]]) -> list[Key]:
    """All functions, each after those that it calls."""
    order: list[Key] = []
    state: dict[Key, bool] = {}  # False while its callees are visited, then True
    for root in calls:
        stack = [root]
        while stack:
            top = stack[-1]
            if state.get(top) is None:
                state[top] = False
                for callee in calls[top]:
                    if state.get(callee) is False:
                        raise ValueError(f"function {callee[1]!r} calls itself")
                    if callee not in state:
                        stack.append(callee)
                continue
            stack.pop()
            if not state[top]:
                state[top] = True
                order.append(top)
    return order


def _key(domain: str, name: str, overload: str) -> Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _unique(names: Sequence[str], what: Callable[[], str]) -> None:
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"there is more than one {what()} called {name!r}")
        seen.add(name)
