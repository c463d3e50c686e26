"""Weights of an ONNX model moved by units in their last place: how the noise of the model is measured."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from bnfold.verification.metrics import MANTISSA, ORDERED

ANY, FIRST = frozenset(range(64)), frozenset({0})

OPERANDS: dict[str, frozenset[int]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "PRelu"), ANY),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"), ANY),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), frozenset({1, 2, 3, 5, 6, 7})),
    **dict.fromkeys(("Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Cast", "CastLike"), FIRST),
    **dict.fromkeys(("Concat", "Sum", "Where"), ANY),
    "Gather": FIRST,
    "DequantizeLinear": frozenset({1}),
}
"""Operands whose rounding is noise, by operator. Others (the scales of a Resize) decide about shapes."""

WIDE_STEPS = {"float16": 3 << 10, "bfloat16": 3 << 13}
"""Three eighths of a unit in the last place, in units of float32: with the moves of channels, what rounding may do."""

FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)


@dataclass(frozen=True)
class Disturbance:
    """Each weight moved by up to `steps` units in the last place, at random; channels and tensors by half as much more.

    Folding multiplies all weights of a channel by one factor, so where they are alike (averages, initial values) they
    round alike, and their errors add up instead of cancelling.

    Attributes:
        seed: of the draw.
        steps: the largest move of a weight by itself.
    """

    seed: int
    steps: int = 2

    def __call__(self, array: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """A moved copy of the `index`-th weight; zeros, subnormal numbers and those near the type's limits stay."""
        generator = np.random.default_rng([self.seed, index])
        moved = np.array(array, order="C")
        bits = moved.reshape(-1).view(ORDERED[array.dtype.itemsize])
        kind = np.int8 if self.steps < 50 else np.int32  # three halves of it are added
        drawn = generator.integers(0, 2 * self.steps, moved.shape, kind)
        moves = drawn - np.where(drawn < self.steps, self.steps, self.steps - 1).astype(kind)  # never zero
        for axis in range(-1, min(2, moved.ndim)):
            shape = [size if index == axis else 1 for index, size in enumerate(moved.shape)]
            moves += self.steps // 2 * (2 * generator.integers(0, 2, shape, kind) - 1)
        mantissa = MANTISSA[array.dtype.name]
        exponents = (bits >> mantissa) & ((1 << (array.dtype.itemsize * 8 - 1 - mantissa)) - 1)
        is_safe = (exponents > 1) & (
            exponents < exponents.dtype.type((1 << (array.dtype.itemsize * 8 - 1 - mantissa)) - 3)
        )
        bits += np.where(is_safe, moves.reshape(-1), 0).astype(bits.dtype)
        return moved


def with_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float constants that nodes of the main graph make as initializers; itself if there are none."""
    shapes = {each.name: each for each in proto.graph.initializer if each.data_type == onnx.TensorProto.INT64}
    outputs = {each.name for each in proto.graph.output}
    made: dict[str, onnx.TensorProto] = {}
    for node in proto.graph.node:
        tensor = _constant(node, shapes)
        if tensor is not None and tensor.data_type in FLOATS and not outputs.intersection(node.output):
            made[node.output[0]] = tensor
    if not made:
        return proto
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.ir_version = max(proto.ir_version, 4)  # before, each initializer had to be an input
    del changed.graph.node[:]
    changed.graph.node.extend(node for node in proto.graph.node if not made.keys() & set(node.output))
    for name, tensor in made.items():
        changed.graph.initializer.add().CopyFrom(tensor)
        changed.graph.initializer[-1].name = name
    return changed


def _constant(node: onnx.NodeProto, shapes: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    """The tensor that a node holds, where it holds one."""
    value: onnx.TensorProto | None = next((each.t for each in node.attribute if each.name == "value"), None)
    if node.op_type == "Constant" and value is not None:
        return value
    if node.op_type == "ConstantOfShape" and node.input[0] in shapes and value is not None:
        shape = numpy_helper.to_array(shapes[node.input[0]])
        return numpy_helper.from_array(np.full(shape, numpy_helper.to_array(value).reshape(-1)[0]))
    return None


def weights(graph: onnx.GraphProto) -> list[str]:
    """Names of the float initializers of the main graph that only operators of `OPERANDS` read.

    What is computed from constants alone (the scales of a Resize, put together from two) must be read so as well.
    """
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in _nodes(graph):
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, index))
    fixed = {each.name for each in graph.initializer}
    is_noise: dict[str, bool] = {}
    for node in graph.node:
        if node.input and fixed.issuperset(node.input):
            fixed.update(node.output)
    for name in [*(name for node in reversed(graph.node) for name in node.output), *fixed]:
        is_noise.setdefault(name, name not in fixed or _is_noise(readers.get(name, []), fixed, is_noise))
    return [
        each.name
        for each in graph.initializer
        if each.data_type in FLOATS
        and is_noise[each.name]
        and _is_weight(readers.get(each.name, []), int(np.prod(each.dims, dtype=object)))
    ]


def _is_noise(readers: Sequence[tuple[onnx.NodeProto, int]], fixed: Container[str], known: Mapping[str, bool]) -> bool:
    """Whether all that read a constant only round differently where it moves a little."""
    return all(
        index in OPERANDS.get(node.op_type, ()) and all(known[name] for name in node.output if name in fixed)
        for node, index in readers
    )


def _is_weight(readers: Sequence[tuple[onnx.NodeProto, int]], size: int) -> bool:
    """Whether it is worth it; a single number is a scale or a size."""
    return size > 1 or ("DequantizeLinear", 1) in [(node.op_type, index) for node, index in readers]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _nodes(body)


def read(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[Any]:
    """The values of an initializer, read from its file where they are external."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    path, offset = folder / where["location"], int(where.get("offset", 0))
    count = int(np.prod(tensor.dims, dtype=object))
    return np.fromfile(path, dtype, count, offset=offset).reshape(tuple(tensor.dims))
