"""Shape inference of large models, some thousand nodes at a time.

onnx takes a copy of the whole model, makes its own objects of it, and gives back another copy: five times the memory
of the model at once. It looks at one node after the other, and all that a node adds is the types of its outputs. So a
piece of the nodes, with the types of what it reads, tells the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from bnfold.frontends.onnx.nesting import bodies
from bnfold.frontends.onnx.shape_inference import computes_numbers, infer_shapes, run

PIECE = 4096
"""Nodes of a piece."""

UNKNOWN = "unk__"
"""How the names begin that onnx gives to sizes which nothing tells."""


def infer_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Graphs with inferred shapes and types of all values of a model, of its bodies too; none where onnx fails.

    As `infer_shapes`, which takes a model as a whole: one that is small, that calls functions, that has bodies, or in
    which shapes are computed.
    """
    pieces = _infer_pieces(proto) if _is_divisible(proto) else None
    if pieces is not None:
        yield from map(onnx.GraphProto.FromString, pieces)
    elif (inferred := infer_shapes(proto)) is not None:
        yield inferred.graph


def _is_divisible(proto: onnx.ModelProto) -> bool:
    nodes = proto.graph.node
    return len(nodes) > PIECE and not proto.functions and not any(next(bodies(node), None) for node in nodes)


def _infer_pieces(proto: onnx.ModelProto) -> list[bytes] | None:
    """The graphs of all pieces, serialized, without nodes and initializers; None where the whole may tell more."""
    graph, symbols = proto.graph, _Symbols(proto.graph)
    facts = {info.name: info for info in (*graph.value_info, *graph.output) if info.HasField("type")}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant" and node.output}
    known = {info.name: info for info in graph.input}
    ranges = [range(start, min(start + PIECE, len(graph.node))) for start in range(0, len(graph.node), PIECE)]
    read_in = [_read_outside(graph, indices) for indices in ranges]
    crossing = frozenset[str]().union(*read_in)
    found: list[bytes] = []
    for indices, read in zip(ranges, read_in, strict=True):
        nodes = [graph.node[index] for index in indices]
        piece = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
        piece.graph.name = graph.name
        piece.graph.node.extend(constants[name] for name in read if name in constants)
        piece.graph.node.extend(nodes)
        piece.graph.initializer.extend(stored[name] for name in read if name in stored)
        piece.graph.input.extend(known[name] for name in read if name in known and name not in constants)
        made = (name for node in nodes for name in node.output)
        piece.graph.value_info.extend(facts[name] for name in (*read, *made) if name in facts and name not in known)
        inferred = run(piece, data_prop=False)
        if inferred is None or computes_numbers(piece, inferred):
            return None
        del inferred.graph.node[:], inferred.graph.initializer[:]
        symbols.rename(inferred.graph, piece.graph)
        known.update((info.name, info) for info in _copied(inferred.graph, crossing))
        found.append(inferred.graph.SerializeToString())
    return found


def _read_outside(graph: onnx.GraphProto, indices: range) -> dict[str, None]:
    """The names that nodes read and that none of them makes, in order."""
    nodes = [graph.node[index] for index in indices]
    made = {name for node in nodes for name in node.output}
    return dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)


def _copied(graph: onnx.GraphProto, names: frozenset[str]) -> Iterator[onnx.ValueInfoProto]:
    """What is inferred of some values, apart from the graph, which is freed as a whole."""
    for info in graph.value_info:
        if info.name in names:
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(info)
            yield copy


class _Symbols:
    """The names of sizes that nothing tells, which are to differ from piece to piece as they do in the whole."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        infos = (*graph.input, *graph.value_info, *graph.output)
        self._taken = {dim.dim_param for info in infos for dim in info.type.tensor_type.shape.dim}
        self._count = 0

    def rename(self, inferred: onnx.GraphProto, piece: onnx.GraphProto) -> None:
        """Rename those that came up in a piece."""
        if UNKNOWN.encode() not in inferred.SerializeToString():
            return
        old = {dim.dim_param for info in (*piece.input, *piece.value_info) for dim in _dims(info.type)}
        names: dict[str, str] = {}
        for info in inferred.value_info:
            for dim in _dims(info.type):
                if dim.dim_param.startswith(UNKNOWN) and dim.dim_param not in old:
                    if dim.dim_param not in names:
                        names[dim.dim_param] = self._next()
                    dim.dim_param = names[dim.dim_param]

    def _next(self) -> str:
        while (name := f"{UNKNOWN}{self._count}") in self._taken:
            self._count += 1
        self._taken.add(name)
        return name


def _dims(kind: onnx.TypeProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    """All sizes in a type."""
    stack = [kind]
    while stack:
        inner = stack.pop()
        for name in ("tensor_type", "sparse_tensor_type"):
            if inner.HasField(name):
                yield from getattr(inner, name).shape.dim
        for name in ("sequence_type", "optional_type"):
            if inner.HasField(name):
                stack.append(getattr(inner, name).elem_type)
        if inner.HasField("map_type"):
            stack.append(inner.map_type.value_type)
