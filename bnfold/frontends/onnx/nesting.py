"""Graphs of a protobuf and the graphs inside them: the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import onnx
import onnx_ir as ir

Root = TypeVar("Root", bound=onnx.GraphProto | onnx.FunctionProto)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nested(*roots: Root) -> Iterator[Root | onnx.GraphProto]:
    """Graphs and all bodies inside them, each before its own bodies; the last root comes first."""
    stack: list[Root | onnx.GraphProto] = [*roots]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(body for node in graph.node for body in bodies(node))


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
