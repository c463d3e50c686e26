"""Checks that everything without an obligation of its own is the same, bit for bit."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx

from bnfold.proof.failure import ProofError
from bnfold.proof.models import PIECE, Scope, array_of, first_output, location
from bnfold.proof.pair import Pair


def check_models(pair: Pair) -> None:
    """Check that both models have the same metadata and the same functions."""
    shells = []
    for side in (pair.original, pair.result):
        shell = onnx.ModelProto()
        for descriptor, content in side.files.proto.ListFields():
            if descriptor.name in ("graph", "functions"):
                continue
            if isinstance(content, str | int):
                setattr(shell, descriptor.name, content)
            else:
                getattr(shell, descriptor.name).extend(content)
        shells.append(shell.SerializeToString(deterministic=True))
    if shells[0] != shells[1]:
        raise ProofError("wiring", "", "version, opset, metadata or producer differ")
    if list(pair.original.functions) != list(pair.result.functions):
        raise ProofError("wiring", "", "the functions differ")


def check_interface(pair: Pair, scope: Scope, other: Scope) -> None:
    """Check that a graph has the same inputs and outputs, and that these are unchanged."""
    if _shell(scope) != _shell(other):
        raise ProofError("wiring", scope.path, "inputs, outputs, name or metadata of the graph differ")
    for name in scope.outputs:
        if pair.name(scope, name) != name or pair.relation(scope, name):
            raise ProofError("wiring", name, "an output of the graph is not what it was")
    for name in scope.inputs:
        if pair.name(scope, name) != name:
            raise ProofError("wiring", name, "an input of the graph is not what it was")
    known: dict[str, list[onnx.ValueInfoProto]] = {}
    for info in scope.message.value_info:
        known.setdefault(info.name, []).append(info)
    for info in other.message.value_info:
        if info not in known.get(info.name, [info]):
            raise ProofError("wiring", info.name, "it is declared in another way")


def _shell(scope: Scope) -> list[bytes]:
    """All fields of a graph but its nodes, its weights and its notes on inner values."""
    message = scope.message
    shell = type(message)()
    for descriptor, content in message.ListFields():
        if descriptor.name in ("node", "initializer", "sparse_initializer", "value_info", "quantization_annotation"):
            continue
        if descriptor.name == "input" and not scope.is_function:
            shell.input.extend(info for info in content if info.name not in scope.initializers)
        elif isinstance(content, str | int):
            setattr(shell, descriptor.name, content)
        else:
            getattr(shell, descriptor.name).extend(content)
    return [shell.SerializeToString(deterministic=True)]


def check_node(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> None:
    """Check that a node and its inputs are the same."""
    same_node(pair, scope, other, node, ())
    same_inputs(pair, scope, other, node, range(len(node.input)))


def counterpart(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> onnx.NodeProto:
    """The node of the result that makes the same values as this one."""
    name = first_output(node)
    twin = other.makers.get(pair.name(scope, name))
    if twin is None:
        raise ProofError("wiring", name, "the result has no such node")
    return twin


def same_node(
    pair: Pair,
    scope: Scope,
    other: Scope,
    node: onnx.NodeProto,
    but: Collection[str],
    twin: onnx.NodeProto | None = None,
) -> onnx.NodeProto:
    """The counterpart of a node, checked to be the same but for the named attributes and its inputs.

    If given, `twin` is the counterpart, whatever its outputs are called.
    """
    name = first_output(node)
    partner = twin or counterpart(pair, scope, other, node)
    if id(partner) in pair.accounted:
        raise ProofError("wiring", name, "two nodes became one, and nothing says so")
    pair.accounted.add(id(partner))
    for what in ("op_type", "domain", "name", "doc_string", "overload"):
        if getattr(node, what) != getattr(partner, what):
            raise ProofError("wiring", name, f"its {what} is {getattr(partner, what)!r}, not {getattr(node, what)!r}")
    if _attributes(node, but) != _attributes(partner, but):
        raise ProofError("wiring", name, "its attributes differ")
    if [entry.SerializeToString() for entry in node.metadata_props] != [
        entry.SerializeToString() for entry in partner.metadata_props
    ]:
        raise ProofError("wiring", name, "its metadata differ")
    if twin is None and [pair.name(scope, value) for value in node.output] != list(partner.output):
        raise ProofError("wiring", name, "its outputs differ")
    return partner


def _attributes(node: onnx.NodeProto, but: Collection[str]) -> list[bytes]:
    """The attributes of a node. Bodies are only counted, since they have obligations of their own."""
    texts = []
    for entry in node.attribute:
        if entry.name in but:
            continue
        if entry.HasField("g") or entry.graphs:
            texts.append(f"{entry.name}: {entry.HasField('g')} {len(entry.graphs)}".encode())
        else:
            texts.append(entry.SerializeToString(deterministic=True))
    return texts


def same_inputs(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, indices: Collection[int]) -> None:
    """Check that the counterpart of a node has as many inputs, and that these stand for the node's."""
    twin = counterpart(pair, scope, other, node)
    if len(twin.input) != len(node.input):
        raise ProofError("wiring", first_output(node), f"it reads {len(twin.input)} values, not {len(node.input)}")
    for index in indices:
        same_input(pair, scope, other, node, index, twin.input[index])


def same_input(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, index: int, read: str) -> None:
    """Check that a value of the result is what stands for an input of a node."""
    wanted = pair.name(scope, node.input[index])
    if read != wanted:
        raise ProofError("wiring", first_output(node), f"it reads {read!r} as input {index}, not {wanted!r}")
    if read and pair.home(scope, node.input[index]) is not other.owner(read):
        raise ProofError("wiring", first_output(node), f"it reads {read!r} of another graph")


def check_rest(pair: Pair, scope: Scope, other: Scope) -> None:
    """Check that the result has nothing more: no other node, and no weight that is new or that nothing reads."""
    for node in other.nodes:
        if id(node) not in pair.accounted and not other.is_constant_node(node):
            raise ProofError("wiring", first_output(node), "the original has no such node")
    for name, tensor in other.initializers.items():
        before = scope.initializers.get(name)
        if before is not None:
            _same_tensor(pair, before, tensor)
        elif (name in scope.makers and (other.path, name) not in pair.computed) or name in scope.inputs:
            raise ProofError("wiring", name, "it is constant, and was not")
        is_new = before is None or scope.readers.get(name, 0) > 0
        if before is not None and name in pair.read_elsewhere:
            continue
        if is_new and not other.readers.get(name, 0) and name not in other.outputs:
            raise ProofError("wiring", name, "nothing reads it any more")
    for name, sparse in other.sparse.items():
        if name not in scope.sparse or scope.sparse[name] != sparse:
            raise ProofError("wiring", name, "it is another sparse constant")
    if not scope.is_function:
        known = [annotation.SerializeToString() for annotation in scope.message.quantization_annotation]
        if any(annotation.SerializeToString() not in known for annotation in other.message.quantization_annotation):
            raise ProofError("wiring", scope.path, "the annotations of quantised tensors differ")


def _same_tensor(pair: Pair, before: onnx.TensorProto, after: onnx.TensorProto) -> None:
    if before.data_type != after.data_type or list(before.dims) != list(after.dims):
        raise ProofError("wiring", after.name, "it has another type or shape")
    if before.data_type == onnx.TensorProto.STRING or (before == after and not before.external_data):
        if before != after:
            raise ProofError("wiring", after.name, "it is another constant")
        return
    files = pair.original.files, pair.result.files
    memory = [side.held.get(location(tensor)) for side, tensor in zip(files, (before, after), strict=True)]
    if memory[0] is not None and memory[0] is memory[1]:
        return
    old, new = array_of(before, files[0]).reshape(-1), array_of(after, files[1]).reshape(-1)
    step = max(1, PIECE // max(1, old.itemsize))
    for start in range(0, old.size, step):
        mine, its = (np.ascontiguousarray(array[start : start + step]).view(np.uint8) for array in (old, new))
        if not np.array_equal(mine, its):
            raise ProofError("wiring", after.name, "it is another constant, and nothing says so")
