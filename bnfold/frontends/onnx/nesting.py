"""Graphs of a protobuf and the graphs inside them: the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import onnx

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


def nested_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes in the order in which they run: each before those of its bodies."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from nested_nodes(body)
