"""A model with the bodies of some functions in place of their calls, which the claims of a certificate are about.

What happens to one call: an input of the function stands for the operand that the call gives for it, an output for what
the call makes, an attribute that refers to one of the function's for the call's, else for its default, else for
nothing. All other values of the body get names that are new in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import onnx

from bnfold.proof.certificate import Key

DEPTH = 32
"""How deep graphs may be in graphs."""

BYTES = 1 << 30
"""The most bytes that are written for calls, of which a node takes `NODE_BYTES` and those of its attributes."""

NODE_BYTES = 1 << 12

GRAPHS = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})


@dataclass(frozen=True)
class Inlined:
    """A model whose calls of some functions are written out.

    Attributes:
        proto: the model.
        origins: where each node comes from that was put in place of a call: the function, and the node's first output
            there. The key is the function that it is in now, or None for the main graph, and its first output.
        calls: for each call that was written out, the function, and the names that its values have now. Those of its
            bodies are left out.
    """

    proto: onnx.ModelProto
    origins: Mapping[tuple[Key | None, str], tuple[Key, str]]
    calls: Sequence[tuple[Key, Mapping[str, str]]]


def inline(
    proto: onnx.ModelProto,
    functions: Collection[Key],
    stored: Callable[[onnx.TensorProto], onnx.TensorProto] = lambda tensor: tensor,
) -> Inlined:
    """Write out all calls of some functions, wherever they are.

    The model's own tensors are copied once, those of a function for each of its calls. Functions must not call
    themselves, as the checks of a file insist.

    Args:
        proto: the model; not changed.
        functions: whose calls are written out.
        stored: what is copied in place of an initializer of the main graph, under its name.

    Raises:
        ValueError: a function is not in the model or not one that `can_inline`, or what is written would be too deep or
            too much.
    """
    bodies = {key_of(function): function for function in proto.functions}
    for key in functions:
        if key not in bodies or not can_inline(proto, bodies[key]):
            raise ValueError(f"the calls of function {key[1]!r} cannot be written out")
    chosen = {key: bodies[key] for key in bodies if key in functions}
    writer = _Writer(chosen, *_names(proto))
    result = _shell(proto, ("graph", "functions"))
    graph = _shell(proto.graph, ("initializer",))
    graph.initializer.extend(map(stored, proto.graph.initializer))
    writer.write(graph, PLAIN, 0)
    result.graph.CopyFrom(graph)
    _complete(result, chosen.values())
    for function in proto.functions:
        if key_of(function) in chosen:
            continue
        kept = result.functions.add()
        kept.CopyFrom(function)
        if any(called(node) in chosen for node in _nested(function.node)):
            writer.root = key_of(function)
            writer.write(kept, PLAIN, 0)
            _complete(kept, chosen.values())
    return Inlined(result, writer.origins, writer.calls)


M = TypeVar("M", onnx.ModelProto, onnx.GraphProto)


def _shell(message: M, but: Collection[str]) -> M:
    """A copy of a message without some of its fields."""
    shell = type(message)()
    for descriptor, content in message.ListFields():
        if descriptor.name in but:
            continue
        if isinstance(content, str | int):
            setattr(shell, descriptor.name, content)
        else:
            getattr(shell, descriptor.name).extend(content)
    return shell


def _complete(holder: onnx.ModelProto | onnx.FunctionProto, functions: Iterable[onnx.FunctionProto]) -> None:
    """Import the opsets of functions whose nodes are in a model, or in another function, now."""
    known = {_domain(opset.domain) for opset in holder.opset_import}
    for opset in (opset for function in functions for opset in function.opset_import):
        if _domain(opset.domain) not in known:
            known.add(_domain(opset.domain))
            holder.opset_import.append(opset)


def can_inline(proto: onnx.ModelProto, function: onnx.FunctionProto) -> bool:
    """Whether the calls of a function can be written out.

    Each of its outputs has to be made by a node of its own, its operators need one meaning in all opsets of the model,
    and no graph may be given by the call.
    """
    made = {value for node in function.node for value in node.output}
    nodes = list(_nested(function.node))
    is_plain = len({*function.output}) == len(function.output) and made.issuperset(function.output)
    takes_graph = any(entry.ref_attr_name and entry.type in GRAPHS for node in nodes for entry in node.attribute)
    versions: dict[str, set[int]] = {}
    for opset in (*proto.opset_import, *(each for other in proto.functions for each in other.opset_import)):
        versions.setdefault(_domain(opset.domain), set()).add(opset.version)
    is_versioned = all(_means_one(node, versions.get(_domain(node.domain), set())) for node in nodes)
    return is_plain and is_versioned and not takes_graph and not proto.training_info


def _means_one(node: onnx.NodeProto, versions: set[int]) -> bool:
    """Whether a node is the same operator in all these versions of its domain: none of them has changed it."""
    if len(versions) == 1:
        return True
    if not versions or _domain(node.domain) or max(versions) > onnx.defs.onnx_opset_version():
        return False
    try:
        return len({onnx.defs.get_schema(node.op_type, version, "").since_version for version in versions}) == 1
    except onnx.defs.SchemaError:
        return False


def key_of(function: onnx.FunctionProto) -> Key:
    """What calls name a function by."""
    return _domain(function.domain), function.name, function.overload


def called(node: onnx.NodeProto) -> Key:
    """The function that a node calls, if there is one."""
    return _domain(node.domain), node.op_type, node.overload


@dataclass(frozen=True)
class _Place:
    """Where nodes are written.

    Attributes:
        prefix: what new names begin with; None where names stay.
        values: the new name of each value that has one.
        fixed: values that nodes here make under the names that the call gives.
        given: the attributes that the call gives.
        origin: the function that the nodes come from.
    """

    prefix: str | None = None
    values: dict[str, str] = field(default_factory=dict)
    fixed: Collection[str] = ()
    given: Mapping[str, onnx.AttributeProto] = field(default_factory=dict)
    origin: Key | None = None

    def inside(self) -> _Place:
        """The place of a body: its values are not known outside."""
        return _Place(self.prefix, dict(self.values), (), self.given, self.origin)


PLAIN = _Place()


class _Writer:
    def __init__(self, functions: Mapping[Key, onnx.FunctionProto], values: set[str], nodes: set[str]) -> None:
        self._functions, self._values, self._nodes = functions, values, nodes
        self.calls: list[tuple[Key, Mapping[str, str]]] = []
        self._bytes = 0
        self.origins: dict[tuple[Key | None, str], tuple[Key, str]] = {}
        self.root: Key | None = None

    def write(self, graph: onnx.GraphProto | onnx.FunctionProto, place: _Place, depth: int) -> None:
        """Write the nodes of a graph again, in place, with bodies for calls."""
        if depth > DEPTH:
            raise ValueError("graphs are nested too deep where the calls of functions are written out")
        nodes: list[onnx.NodeProto] = []
        stack = [(iter(list(graph.node)), place)]
        while stack:
            rest, here = stack[-1]
            node = next(rest, None)
            if node is None:
                stack.pop()
                continue
            fresh = self._node(node, here)
            function = self._functions.get(called(fresh))
            if function is not None:
                stack.append((iter(function.node), self._enter(fresh, function)))
                continue
            for entry in fresh.attribute:
                for body in (*((entry.g,) if entry.HasField("g") else ()), *entry.graphs):
                    self._write_body(body, here.inside(), depth + 1)
            if here.origin is not None:
                self._bytes += NODE_BYTES + fresh.ByteSize()
                if self._bytes > BYTES:
                    raise ValueError("the calls of functions would be too much to write out")
                self.origins[self.root, _first(fresh)] = here.origin, _first(node)
            nodes.append(fresh)
        del graph.node[:]
        graph.node.extend(nodes)

    def _enter(self, call: onnx.NodeProto, function: onnx.FunctionProto) -> _Place:
        """The place of a function's nodes for one call."""
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise ValueError(f"a call of {function.name!r} has too many operands")
        defaults = {entry.name: entry for entry in function.attribute_proto}
        if any(entry.ref_attr_name and entry.name in defaults for entry in call.attribute):
            raise ValueError(f"whether a call of {function.name!r} sets an attribute depends on another call")
        prefix = call.name or _first(call) or function.name
        made = {formal: name for formal, name in zip(function.output, call.output, strict=False) if name}
        values = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False)) | made
        given = defaults | {entry.name: entry for entry in call.attribute}
        self.calls.append((key_of(function), values))
        return _Place(prefix, values, tuple(made), given, key_of(function))

    def _node(self, node: onnx.NodeProto, place: _Place) -> onnx.NodeProto:
        """A node as it is in a place, with its bodies as they were."""
        fresh = onnx.NodeProto()
        fresh.CopyFrom(node)
        if place.prefix is None:
            return fresh
        fresh.input[:] = [place.values.get(name, name) for name in node.input]
        fresh.output[:] = [name if not name else self._name(name, place) for name in node.output]
        if node.name:
            fresh.name = _free(f"{place.prefix}/{node.name}", self._nodes)
        del fresh.attribute[:]
        for entry in node.attribute:
            if not entry.ref_attr_name:
                fresh.attribute.append(entry)
            elif (value := place.given.get(entry.ref_attr_name)) is not None:
                if entry.type not in (value.type, onnx.AttributeProto.UNDEFINED):
                    raise ValueError(f"attribute {entry.ref_attr_name!r} of a call has another type")
                fresh.attribute.append(value)
                fresh.attribute[-1].name = entry.name
        return fresh

    def _write_body(self, body: onnx.GraphProto, place: _Place, depth: int) -> None:
        if place.prefix is not None:
            held = [*body.input, *body.initializer, *(each.values for each in body.sparse_initializer)]
            for name in dict.fromkeys(value.name for value in held):
                self._name(name, place)
            for value in held:
                value.name = place.values[value.name]
            del body.value_info[:]
            del body.quantization_annotation[:]
        self.write(body, place, depth)
        if place.prefix is not None:
            for value in body.output:
                value.name = place.values.get(value.name, value.name)

    def _name(self, name: str, place: _Place) -> str:
        """The new name of a value that is made in a place."""
        if name not in place.fixed:
            place.values[name] = _free(f"{place.prefix}/{name}", self._values)
        return place.values[name]


def _free(wish: str, taken: set[str]) -> str:
    """A name like `wish` that was free."""
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}_{count}"
    taken.add(name)
    return name


def _first(node: onnx.NodeProto) -> str:
    return next(filter(None, node.output), "")


def _nested(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their bodies."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        for entry in node.attribute:
            stack.extend(entry.g.node)
            stack.extend(inner for body in entry.graphs for inner in body.node)


def _names(proto: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """Every name of a value in a model, and every name of a node."""
    nodes = list(_nested([*proto.graph.node, *(node for function in proto.functions for node in function.node)]))
    values = {value for node in nodes for value in (*node.input, *node.output)}
    values.update(value for function in proto.functions for value in function.input)
    inner = (body for node in nodes for entry in node.attribute for body in (entry.g, *entry.graphs))
    for graph in (proto.graph, *inner):
        values.update(each.name for each in (*graph.input, *graph.output, *graph.value_info, *graph.initializer))
        values.update(each.values.name for each in graph.sparse_initializer)
        for annotation in graph.quantization_annotation:
            values.add(annotation.tensor_name)
            values.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return values, {node.name for node in nodes}


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
