"""Weights of an ONNX model moved by units in their last place: how the noise of the model is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)


@dataclass(frozen=True)
class Disturbance:
    """Each weight moved by up to `steps` units in the last place, at random.

    Attributes:
        seed: of the draw.
        steps: the largest move.
    """

    seed: int
    steps: int = 2

    def __call__(self, array: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """A moved copy of the `index`-th weight; zeros, subnormal numbers and those near the type's limits stay."""
        generator = np.random.default_rng([self.seed, index])
        moved = np.array(array, order="C")
        bits = moved.reshape(-1).view(ORDERED[array.dtype.itemsize])
        moves = generator.integers(1, self.steps, bits.shape, np.int8, endpoint=True)
        np.negative(moves, out=moves, where=generator.integers(0, 2, bits.shape, np.int8).view(np.bool_))
        mantissa = MANTISSA[array.dtype.name]
        exponents = (bits >> mantissa) & ((1 << (array.dtype.itemsize * 8 - 1 - mantissa)) - 1)
        is_safe = (exponents > 1) & (
            exponents < exponents.dtype.type((1 << (array.dtype.itemsize * 8 - 1 - mantissa)) - 3)
        )
        bits += np.where(is_safe, moves, 0).astype(bits.dtype)
        return moved


def weights(graph: onnx.GraphProto) -> list[str]:
    """Names of the float initializers of the main graph that only operators of `OPERANDS` read."""
    readers: dict[str, list[tuple[str, int]]] = {}
    for node in _nodes(graph):
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node.op_type, index))
    return [
        each.name
        for each in graph.initializer
        if each.data_type in FLOATS and _is_weight(readers.get(each.name, []), int(np.prod(each.dims, dtype=object)))
    ]


def _is_weight(readers: Sequence[tuple[str, int]], size: int) -> bool:
    if not all(index in OPERANDS.get(op, ()) for op, index in readers):
        return False
    return size > 1 or ("DequantizeLinear", 1) in readers


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
