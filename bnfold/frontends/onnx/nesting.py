"""The graphs of a model, as onnx-ir or a protobuf has it, and the graphs inside them: bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import onnx
import onnx_ir as ir

Root = TypeVar("Root", bound=onnx.GraphProto | onnx.FunctionProto)


def bodies_of(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs that a node holds, each with its name there."""
    for name, attribute in node.attributes.data.items():  # a plain dict, which most nodes are asked for
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((f"{name}[{index}]", body) for index, body in enumerate(attribute.as_graphs()))


def nested_graphs(root: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and all bodies inside it, each before its own bodies."""
    stack = [root]
    while stack:
        graph = stack.pop()
        inside = [body for node in graph if node.attributes.data for _, body in bodies_of(node)]
        stack.extend(reversed(inside))
        yield graph


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of a model, each before its own bodies, those of functions last."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        yield from nested_graphs(root)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds."""
    for attribute in node.attribute:
        yield from _held(attribute)


def _held(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def nested(*roots: Root) -> Iterator[Root | onnx.GraphProto]:
    """Graphs and all bodies inside them, each before its own bodies; the last root comes first."""
    stack: list[Root | onnx.GraphProto] = [*roots]
    while stack:
        graph = stack.pop()
        yield graph
        holders = [each for node in graph.node for each in node.attribute if each.HasField("g") or each.graphs]
        stack.extend(body for each in holders for body in _held(each))


Pair = tuple[ir.Graph, onnx.GraphProto | onnx.FunctionProto]
"""A graph, and the protobuf that it was read from or written to."""


def pairs(*roots: Pair) -> Iterator[Pair]:
    """Graphs and all bodies inside them, in the order of `nested`."""
    stack = [*roots]
    while stack:
        graph, proto = stack.pop()
        yield graph, proto
        for node, described in zip(graph, proto.node, strict=True):
            for attribute in described.attribute:
                if attribute.HasField("g"):
                    stack.append((node.attributes[attribute.name].as_graph(), attribute.g))
                elif attribute.graphs:
                    inner = node.attributes[attribute.name].as_graphs()
                    stack.extend(zip(inner, attribute.graphs, strict=True))


def nested_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes in the order in which they run: each before those of its bodies."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from nested_nodes(body)
