"""Moves the weights of an ONNX model by units in their last place, to measure the noise of the model."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from bnfold.frontends.onnx.nesting import nested_nodes
from bnfold.runtimes.tensors import FLOATS
from bnfold.verification.metrics import ORDERED, mantissa_bits

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
"""The operands whose rounding is noise, by operator. Others (the scales of a Resize) decide about shapes."""

WIDE_STEPS = {"float16": 3 << 10, "bfloat16": 3 << 13}
"""Three eighths of a unit in the last place, in units of float32. With those of channels, rounding moves as much."""

ALIGNED = 64
"""Bytes that the places of arrays are a multiple of."""

POOL = 1 << 20
"""How many random moves there are in one draw. Weights get parts of them that begin anywhere."""

BLOCK = 1 << 16
"""How many weights are moved at a time: as many as fit a cache."""


@dataclass(frozen=True)
class Disturbance:
    """Moves each weight by up to `steps` units in the last place, at random; channels and tensors by half as much more.

    Folding multiplies all weights of a channel by one factor, so where they are alike (averages, initial values) they
    round alike, and their errors add up instead of cancelling.

    Attributes:
        seed: the seed of the draw.
        steps: the largest move of a weight by itself.
    """

    seed: int
    steps: int = 2

    def __call__(
        self, array: npt.NDArray[Any], index: int, out: npt.NDArray[Any] | None = None, *, is_whole: bool = False
    ) -> npt.NDArray[Any]:
        """A moved copy of the `index`-th weight; zeros, subnormal numbers and those near the type's limits stay.

        Args:
            array: the weight.
            index: its number, for the draw.
            out: a contiguous array like it, for the copy.
            is_whole: whether it is known that every element may move (`may_all_move`).
        """
        generator = np.random.default_rng([self.seed, index])
        array = np.asarray(array, order="C")
        moved = np.empty_like(array) if out is None else out
        kind = np.dtype(np.int8 if self.steps < 50 else np.int32)  # up to three halves of `steps` are added
        height, channels = (*array.shape, 1, 1)[:2]
        width = array.size // max(1, height)
        rows = np.broadcast_to(self._together(generator, 1, kind)[:, None], (height, 1))
        columns = np.zeros(width, kind)
        if array.ndim > 0:
            rows = rows + self._together(generator, height, kind)[:, None]
        if array.ndim > 1:
            columns = np.repeat(self._together(generator, channels, kind), width // max(1, channels))
        bits, moved_bits = (each.view(ORDERED[array.dtype.itemsize]).reshape(height, width) for each in (array, moved))
        for part in _blocks(height, width):
            moves = self._draw(generator, bits[part].shape, kind) + rows[part]
            moves += columns
            if not is_whole:
                moves *= _may_move(bits[part], array.dtype)
            np.add(bits[part], moves, out=moved_bits[part], casting="unsafe")
        return moved

    def _together(self, generator: np.random.Generator, size: int, kind: np.dtype[Any]) -> npt.NDArray[Any]:
        """Moves of channels, up or down."""
        signs: npt.NDArray[Any] = 2 * generator.integers(0, 2, size, kind) - kind.type(1)
        signs *= kind.type(self.steps // 2)
        return signs

    def _draw(self, generator: np.random.Generator, shape: tuple[int, ...], kind: np.dtype[Any]) -> npt.NDArray[Any]:
        """Moves of single weights, none of them zero: a part of the pool, since random numbers take the most time."""
        pool, size = _pool(self.seed, self.steps, kind), prod(shape)
        start = int(generator.integers(0, len(pool) - size)) if size < len(pool) else 0
        return np.resize(pool[start:], shape) if size > len(pool) else pool[start : start + size].reshape(shape)


@lru_cache(2)
def _pool(seed: int, steps: int, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """Random moves by up to so many steps, none of them zero."""
    moves: npt.NDArray[Any] = np.random.default_rng(seed).integers(-steps, steps, POOL, kind)
    moves += moves >= 0
    return moves


def room_for(arrays: Iterable[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Arrays like these in one block of memory, which the system may give in large pages."""
    arrays = list(arrays)
    sizes = [-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays]
    block = np.empty(sum(sizes), np.uint8)
    starts = np.cumsum([0, *sizes[:-1]])
    return [
        block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        for start, array in zip(starts, arrays, strict=False)
    ]


def _blocks(height: int, width: int) -> Iterator[slice]:
    """Rows of an array, as many as fit a cache."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, height, step):
        yield slice(start, start + step)


def may_all_move(array: npt.NDArray[Any]) -> bool:
    """Whether every element may be moved. To know it spares the draws to look."""
    bits = np.asarray(array, order="C").view(ORDERED[array.dtype.itemsize]).reshape(-1)
    return all(_may_move(bits[part], array.dtype).all() for part in _blocks(bits.size, 1))


def _may_move(bits: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[np.bool_]:
    """Which elements are normal numbers away from the limits of their type."""
    mantissa = mantissa_bits(dtype)
    exponent = ((1 << (dtype.itemsize * 8 - 1 - mantissa)) - 1) << mantissa
    lowest, highest = (2 << mantissa), exponent - (2 << mantissa)
    power = bits & bits.dtype.type(exponent)
    may: npt.NDArray[np.bool_] = (power >= lowest) & (power < highest)
    return may


def with_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float Constant nodes of the main graph turned into initializers; itself if there are none."""
    shapes = {
        initializer.name: initializer
        for initializer in proto.graph.initializer
        if initializer.data_type == onnx.TensorProto.INT64
    }
    outputs = {info.name for info in proto.graph.output}
    constants: dict[str, onnx.TensorProto] = {}
    for node in proto.graph.node:
        tensor = _constant(node, shapes)
        if tensor is not None and tensor.data_type in FLOATS and not outputs.intersection(node.output):
            constants[node.output[0]] = tensor
    if not constants:
        return proto
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.ir_version = max(proto.ir_version, 4)  # before, each initializer had to be an input
    del changed.graph.node[:]
    changed.graph.node.extend(node for node in proto.graph.node if not constants.keys() & set(node.output))
    for name, tensor in constants.items():
        changed.graph.initializer.add().CopyFrom(tensor)
        changed.graph.initializer[-1].name = name
    return changed


def with_weights_as_inputs(
    proto: onnx.ModelProto, chosen: Iterable[str], more_outputs: Sequence[str]
) -> onnx.ModelProto:
    """The model with its `weights`, the chosen ones, as inputs instead of initializers, and with further outputs.

    One session of it then runs with any weights, and holds no copy of them.
    """
    bare = onnx.ModelProto(ir_version=proto.ir_version)
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    graph, names = bare.graph, frozenset(chosen)
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.input.extend(info for info in proto.graph.input if info.name not in names)
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            graph.initializer.append(tensor)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    graph.value_info.extend(proto.graph.value_info)
    graph.output.extend(proto.graph.output)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in more_outputs)
    return bare


def _constant(node: onnx.NodeProto, shapes: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    """The tensor that a node holds, where it holds one."""
    value: onnx.TensorProto | None = next(
        (attribute.t for attribute in node.attribute if attribute.name == "value"), None
    )
    if node.op_type == "Constant" and value is not None:
        return value
    if node.op_type == "ConstantOfShape" and node.input[0] in shapes and value is not None:
        shape = numpy_helper.to_array(shapes[node.input[0]])
        return numpy_helper.from_array(np.full(shape, numpy_helper.to_array(value).reshape(-1)[0]))
    return None


def weights(graph: onnx.GraphProto) -> list[str]:
    """The names of the float initializers of the main graph that only operators of `OPERANDS` read.

    A constant computed from such initializers (the scales of a Resize, concatenated from two) must be read so as well.
    """
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in nested_nodes(graph):
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, index))
    fixed = {tensor.name for tensor in graph.initializer}
    is_noise: dict[str, bool] = {}
    nodes = list(nested_nodes(graph))
    for node in nodes:
        if node.input and fixed.issuperset(node.input):
            fixed.update(node.output)
    for name in [*(name for node in reversed(nodes) for name in node.output), *fixed]:
        is_noise.setdefault(name, name not in fixed or _is_noise(readers.get(name, []), fixed, is_noise))
    return [
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type in FLOATS
        and is_noise[tensor.name]
        and _is_weight(readers.get(tensor.name, []), int(np.prod(tensor.dims, dtype=object)))
    ]


def _is_noise(readers: Sequence[tuple[onnx.NodeProto, int]], fixed: Container[str], known: Mapping[str, bool]) -> bool:
    """Whether all readers of a constant only round differently where it moves a little."""
    return all(
        node.domain in ("", "ai.onnx")
        and index in OPERANDS.get(node.op_type, ())
        and all(known[name] for name in node.output if name in fixed)
        for node, index in readers
    )


def _is_weight(readers: Sequence[tuple[onnx.NodeProto, int]], size: int) -> bool:
    """Whether an initializer is worth moving. A single number is a scale or a size."""
    return size > 1 or ("DequantizeLinear", 1) in [(node.op_type, index) for node, index in readers]
