"""Finds weights that are stored in fewer bits than are computed with, and takes them in the type of the computation.

A weight in float16 behind a Cast to float32 is a number of float32. Where the candidate keeps all such numbers as they
are, nothing rounds to float16, and the noise of the reference must not either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from bnfold.frontends.onnx.nesting import nested_nodes
from bnfold.runtimes.tensors import NARROW, read

WIDE = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)

PARAMETERS = range(1, 5)
"""The inputs of a BatchNormalization that may have another type than its data."""


def digest_narrow(proto: onnx.ModelProto, folder: Path | None) -> frozenset[bytes]:
    """A digest of each initializer of a narrow type, by its type, shape and numbers."""
    narrow = [tensor for tensor in proto.graph.initializer if tensor.data_type in NARROW.values()]
    return frozenset(_digest(tensor, read(tensor, folder or Path())) for tensor in narrow)


def _digest(tensor: onnx.TensorProto, array: npt.NDArray[Any]) -> bytes:
    return hashlib.sha256(f"{tensor.data_type} {list(tensor.dims)} ".encode() + array.tobytes()).digest()


def unpack(proto: onnx.ModelProto, folder: Path | None, types: Mapping[str, int]) -> onnx.ModelProto:
    """A copy with narrow initializers in the wide type that operators take them in; itself if there are none.

    Args:
        proto: the model; constants are initializers already.
        folder: the folder of its external data.
        types: the element types of inner values, as far as they are known.
    """
    given = {info.name for info in proto.graph.input}
    narrow = {
        tensor.name: tensor
        for tensor in proto.graph.initializer
        if tensor.data_type in NARROW.values() and tensor.name not in given
    }
    outputs = {info.name for info in proto.graph.output}
    types = {**{info.name: info.type.tensor_type.elem_type for info in proto.graph.input}, **types}
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    wide: dict[str, tuple[str, int]] = {}
    del changed.graph.node[:]
    for node in proto.graph.node:
        if (kind := _cast_to(node)) in WIDE and node.input[0] in narrow and outputs.isdisjoint(node.output):
            wide[node.output[0]] = node.input[0], kind
            continue
        kept = changed.graph.node.add()
        kept.CopyFrom(node)
        for index, name, kind in _wide_parameters(node, narrow, types):
            kept.input[index] = f"{name}/{kind}"
            wide[kept.input[index]] = name, kind
    if not wide:
        return proto
    read_names = {name for node in nested_nodes(changed.graph) for name in node.input} | outputs
    kept_tensors = [tensor for tensor in proto.graph.initializer if tensor.name in read_names]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept_tensors)
    for name, (stored, kind) in wide.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        array = read(narrow[stored], folder or Path()).astype(dtype)
        changed.graph.initializer.append(numpy_helper.from_array(array, name))
    return changed


def _cast_to(node: onnx.NodeProto) -> int:
    """The type that a Cast gives; 0 for another operator."""
    return next((each.i for each in node.attribute if node.op_type == "Cast" and each.name == "to"), 0)


def _wide_parameters(
    node: onnx.NodeProto, narrow: Container[str], types: Mapping[str, int]
) -> list[tuple[int, str, int]]:
    """Position, name and wide type of those parameters of a BatchNormalization that are narrower than its data."""
    kind = types.get(node.input[0], 0) if node.op_type == "BatchNormalization" else 0
    if kind not in WIDE:
        return []
    names = [node.input[index] for index in PARAMETERS if index < len(node.input)]
    return [(index, name, kind) for index, name in zip(PARAMETERS, names, strict=False) if name in narrow]
