"""Sorts the nodes of a model. The format wants each node behind those that it reads, and not every tool keeps to it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from bnfold.frontends.onnx.nesting import bodies, nested


def is_sorted(proto: onnx.ModelProto) -> bool:
    """Whether each node stands behind those that make what it reads."""
    return all(_order(graph.node) == list(range(len(graph.node))) for graph in nested(proto.graph, *proto.functions))


def sort_nodes(proto: onnx.ModelProto) -> None:
    """Sort the nodes of each graph and function. In a cycle, some node stays before what it reads."""
    for graph in nested(proto.graph, *proto.functions):
        order = _order(graph.node)
        if order != list(range(len(order))):
            nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
            del graph.node[:]
            graph.node.extend(nodes)


def _order(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """The indices of nodes, each behind those that make what it reads, and otherwise in their order."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    order: list[int] = []
    begun: set[int] = set()
    for first in range(len(nodes)):
        stack = [(first, iter(_read_by(nodes[first])))] if first not in begun else []
        begun.add(first)
        while stack:
            index, left = stack[-1]
            maker = next((makers[name] for name in left if name in makers and makers[name] not in begun), None)
            if maker is None:
                order.append(index)
                stack.pop()
            else:
                begun.add(maker)
                stack.append((maker, iter(_read_by(nodes[maker]))))
    return order


def _read_by(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, in its bodies too."""
    names = list(node.input)
    for body in nested(*bodies(node)):
        names += [output.name for output in body.output]
        names += [name for inner in body.node for name in inner.input]
    return names
