"""That everything is the same which no other obligation is about, bit for bit."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx

from bnfold.proof.failure import ProofError
from bnfold.proof.models import PIECE, Scope, array_of, first_output, location
from bnfold.proof.pair import Pair


def check_models(pair: Pair) -> None:
    """That both models say the same of themselves, and have the same functions."""
    shells = []
    for side in (pair.original, pair.result):
        shell = onnx.ModelProto()
        for descriptor, found in side.files.proto.ListFields():
            if descriptor.name in ("graph", "functions"):
                continue
            if isinstance(found, str | int):
                setattr(shell, descriptor.name, found)
            else:
                getattr(shell, descriptor.name).extend(found)
        shells.append(shell.SerializeToString(deterministic=True))
    if shells[0] != shells[1]:
        raise ProofError("wiring", "", "version, opset, metadata or producer differ")
    if list(pair.original.functions) != list(pair.result.functions):
        raise ProofError("wiring", "", "the functions differ")


def check_interface(pair: Pair, scope: Scope, other: Scope) -> None:
    """That a graph has the same inputs and outputs, which are what they were."""
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
    """All of a graph but what is in it."""
    message = scope.message
    shell = type(message)()
    for descriptor, found in message.ListFields():
        if descriptor.name in ("node", "initializer", "sparse_initializer", "value_info", "quantization_annotation"):
            continue
        if descriptor.name == "input" and not scope.is_function:
            shell.input.extend(each for each in found if each.name not in scope.initializers)
        elif isinstance(found, str | int):
            setattr(shell, descriptor.name, found)
        else:
            getattr(shell, descriptor.name).extend(found)
    return [shell.SerializeToString(deterministic=True)]


def check_node(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> None:
    """That a node is the same, and reads the same."""
    same_node(pair, scope, other, node, ())
    same_inputs(pair, scope, other, node, range(len(node.input)))


def counterpart(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> onnx.NodeProto:
    """The node of the result that makes what this one makes."""
    name = first_output(node)
    found = other.makers.get(pair.name(scope, name))
    if found is None:
        raise ProofError("wiring", name, "the result has no such node")
    return found


def same_node(
    pair: Pair,
    scope: Scope,
    other: Scope,
    node: onnx.NodeProto,
    but: Collection[str],
    twin: onnx.NodeProto | None = None,
) -> onnx.NodeProto:
    """The counterpart of a node, which is the same but for the named attributes and what it reads.

    With `twin`, that is the counterpart, whatever its outputs are called.
    """
    name = first_output(node)
    found = twin or counterpart(pair, scope, other, node)
    if id(found) in pair.accounted:
        raise ProofError("wiring", name, "two nodes became one, and nothing says so")
    pair.accounted.add(id(found))
    for what in ("op_type", "domain", "name", "doc_string", "overload"):
        if getattr(node, what) != getattr(found, what):
            raise ProofError("wiring", name, f"its {what} is {getattr(found, what)!r}, not {getattr(node, what)!r}")
    if _attributes(node, but) != _attributes(found, but):
        raise ProofError("wiring", name, "its attributes differ")
    if [each.SerializeToString() for each in node.metadata_props] != [
        each.SerializeToString() for each in found.metadata_props
    ]:
        raise ProofError("wiring", name, "its metadata differ")
    if twin is None and [pair.name(scope, each) for each in node.output] != list(found.output):
        raise ProofError("wiring", name, "its outputs differ")
    return found


def _attributes(node: onnx.NodeProto, but: Collection[str]) -> list[bytes]:
    """The attributes, with bodies for which only their number counts here: they have obligations of their own."""
    found = []
    for each in node.attribute:
        if each.name in but:
            continue
        if each.HasField("g") or each.graphs:
            found.append(f"{each.name}: {each.HasField('g')} {len(each.graphs)}".encode())
        else:
            found.append(each.SerializeToString(deterministic=True))
    return found


def same_inputs(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, indices: Collection[int]) -> None:
    """That the counterpart of a node reads what stands for the named inputs, and has as many."""
    found = counterpart(pair, scope, other, node)
    if len(found.input) != len(node.input):
        raise ProofError("wiring", first_output(node), f"it reads {len(found.input)} values, not {len(node.input)}")
    for index in indices:
        same_input(pair, scope, other, node, index, found.input[index])


def same_input(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, index: int, read: str) -> None:
    """That a value of the result is what stands for an input of a node."""
    wanted = pair.name(scope, node.input[index])
    if read != wanted:
        raise ProofError("wiring", first_output(node), f"it reads {read!r} as input {index}, not {wanted!r}")
    if read and pair.home(scope, node.input[index]) is not other.owner(read):
        raise ProofError("wiring", first_output(node), f"it reads {read!r} of another graph")


def check_rest(pair: Pair, scope: Scope, other: Scope) -> None:
    """That nothing else is in the result: no node, and no weight that is another one or that nothing reads."""
    for node in other.nodes:
        if id(node) not in pair.accounted and not other.is_constant_node(node):
            raise ProofError("wiring", first_output(node), "the original has no such node")
    for name, tensor in other.initializers.items():
        before = scope.initializers.get(name)
        if before is not None:
            _same_tensor(pair, before, tensor)
        elif name in scope.makers or name in scope.inputs:
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
        known = [each.SerializeToString() for each in scope.message.quantization_annotation]
        if any(each.SerializeToString() not in known for each in other.message.quantization_annotation):
            raise ProofError("wiring", scope.path, "the annotations of quantised tensors differ")


def _same_tensor(pair: Pair, before: onnx.TensorProto, after: onnx.TensorProto) -> None:
    if before.data_type != after.data_type or list(before.dims) != list(after.dims):
        raise ProofError("wiring", after.name, "it has another type or shape")
    if before.data_type == onnx.TensorProto.STRING or (before == after and not before.external_data):
        if before != after:
            raise ProofError("wiring", after.name, "it is another constant")
        return
    files = pair.original.files, pair.result.files
    held = [each.held.get(location(tensor)) for each, tensor in zip(files, (before, after), strict=True)]
    if held[0] is not None and held[0] is held[1]:
        return
    old, new = array_of(before, files[0]).reshape(-1), array_of(after, files[1]).reshape(-1)
    step = max(1, PIECE // max(1, old.itemsize))
    for start in range(0, old.size, step):
        mine, its = (np.ascontiguousarray(each[start : start + step]).view(np.uint8) for each in (old, new))
        if not np.array_equal(mine, its):
            raise ProofError("wiring", after.name, "it is another constant, and nothing says so")
