"""The graphs of a model: the main one, the bodies of If, Loop and Scan, and those of functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from bnfold.frontends.onnx.nesting import bodies_of


class Scopes:
    """Every node of a model with the graph that holds it.

    Attributes:
        nodes: all nodes; a node comes before those of its bodies, and after what it reads.
    """

    def __init__(self, model: ir.Model) -> None:
        self._names: dict[object, str] = {}
        self._versions: dict[object, int] = {}
        self._roots: dict[ir.Graph, ir.Graph] = {}
        self._functions: set[ir.Graph] = set()
        self.nodes: list[ir.Node] = []
        self._walk(model.graph, "main", _opset(model.opset_imports))
        for function in model.functions.values():
            self._functions.add(function.graph)
            name = f"{function.domain}.{function.name}" + (f":{function.overload}" if function.overload else "")
            self._walk(function.graph, name, _opset(function.opset_imports))

    def _walk(self, graph: ir.Graph, scope: str, version: int) -> None:
        stack: list[Iterator[ir.Node]] = [self._enter(graph, scope, version, graph)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            self.nodes.append(node)
            assert isinstance(node.graph, ir.Graph)
            inside = f"{self._names[node.graph]}/{label(node)}"
            entered = [self._enter(body, f"{inside}/{name}", version, graph) for name, body in bodies_of(node)]
            stack.extend(reversed(entered))

    def _enter(self, graph: ir.Graph, scope: str, version: int, root: ir.Graph) -> Iterator[ir.Node]:
        self._names[graph] = scope
        self._versions[graph] = version
        self._roots[graph] = root
        return iter(graph)

    def name(self, node: ir.Node) -> str:
        """The graph that holds the node: "main", a function, or a path of nodes and bodies below one of them."""
        return self._names[node.graph]

    def graph_name(self, graph: ir.Graph) -> str:
        """The name of a graph, as `name` gives it for a node in it."""
        return self._names[graph]

    def version(self, node: ir.Node) -> int:
        """The opset that gives a node of the standard domain its meaning."""
        return node.version or self._versions.get(node.graph, 1)

    def is_in_function(self, graph: ir.Graph) -> bool:
        """Whether the graph belongs to a function, which cannot hold initializers."""
        return self._roots[graph] in self._functions


def find_unread(nodes: Sequence[ir.Node]) -> frozenset[ir.Node]:
    """Nodes of the standard domain that no output of their graph depends on, and no other graph reads.

    Args:
        nodes: all nodes, in the order of the data.
    """
    unread: set[ir.Node] = set()
    for node in reversed(nodes):
        has_effects = node.domain != "" or (node.attributes.data and next(bodies_of(node), None) is not None)
        leads = any(
            out.is_graph_output()
            or any(reader not in unread or reader.graph is not node.graph for reader, _ in out.uses())
            for out in node.outputs
        )
        if not has_effects and not leads:
            unread.add(node)
    return frozenset(unread)


def _opset(imports: Mapping[str, int]) -> int:
    """The version of the standard domain, which has two names; 1 where it is not imported."""
    return imports.get("", imports.get("ai.onnx", 1))


def label(node: ir.Node) -> str:
    """A node's name, or its operator and output where it has none."""
    return node.name or f"{node.op_type}:{node.outputs[0].name if node.outputs else ''}"
