"""Tensors in pieces: read, solved and copied a megabyte at a time, so that none is ever in memory as a whole.

External data is read with plain reads, not by mapping it: a page that was looked at would stay resident, and a file
that shrinks meanwhile would end the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from bnfold.algebra.kernels import Block, Kernel, Rows
from bnfold.algebra.linear import Linear
from bnfold.errors import UnreadableTensorError
from bnfold.frontends.onnx.files.stored import PLAIN, StoredTensor
from bnfold.frontends.onnx.files.wire import Piece
from bnfold.frontends.parameters import array_rows
from bnfold.frontends.reading import AnyArray

TYPES: dict[int, ir.DataType] = {int(kind): kind for kind in ir.DataType}
"""Element types by their numbers, looked up faster than an enumeration is asked."""

PIECE = 1 << 22
"""Bytes that are copied at a time."""


def read(tensor: ir.TensorProtocol, name: str | None) -> AnyArray:
    """A whole tensor.

    Raises:
        UnreadableTensorError: it cannot be read.
    """
    try:
        if isinstance(tensor, StoredTensor):
            return tensor.numpy()
        if is_plain(tensor):  # as onnx-ir does, which asks more about it
            raw = tensor.raw
            shape, flat = tuple(raw.dims), np.frombuffer(raw.raw_data, PLAIN[raw.data_type])
            return flat if shape == flat.shape else flat.reshape(shape)
        return tensor.numpy()
    except (ValueError, TypeError, OSError, RuntimeError, OverflowError) as error:
        raise UnreadableTensorError(f"tensor {name!r} cannot be read: {error}") from error


def is_plain(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is bytes of its model that numpy takes as they are, so that reading it again is no work."""
    if isinstance(tensor, StoredTensor):
        return True
    if type(tensor) is not ir.serde.TensorProtoTensor:
        return False
    return tensor.raw.data_type in PLAIN and tensor.raw.HasField("raw_data")


def form(tensor: ir.TensorProtocol) -> tuple[ir.DataType, tuple[int, ...]]:
    """The type and shape of a stored tensor.

    Asking one in a protobuf for them makes many objects, and asking whether it is one by its class takes as long.
    """
    if isinstance(tensor, StoredTensor):
        return tensor.form.dtype, tensor.form.dims
    if type(tensor) is ir.serde.TensorProtoTensor:
        raw = tensor.raw
        return TYPES[raw.data_type], tuple(raw.dims)
    return tensor.dtype, tuple(tensor.shape.numpy())


def read_bytes(tensor: ir.ExternalTensor, start: int, count: int) -> bytes:
    """Some bytes of a tensor in a file.

    Raises:
        UnreadableTensorError: the file ends before.
    """
    try:
        descriptor = os.open(tensor.path, os.O_RDONLY)
        try:
            found = os.pread(descriptor, count, (tensor.offset or 0) + start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnreadableTensorError(
            f"tensor {tensor.name!r} cannot be read: {tensor.path}: {error.strerror}"
        ) from error
    if len(found) < count:
        raise UnreadableTensorError(f"tensor {tensor.name!r} cannot be read: {tensor.path} ends too early")
    return found


def tensor_rows(tensor: ir.TensorProtocol, name: str | None, rows: int) -> Rows:
    """Reads rows of a tensor; those of an external one from its file, each time."""
    if is_plain(tensor) or not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8:  # a slow question
        return array_rows(read(tensor, name), rows)
    dtype = tensor.dtype.numpy().newbyteorder("<")
    size = tensor.nbytes // rows

    def read_rows(start: int, stop: int) -> AnyArray:
        return np.frombuffer(read_bytes(tensor, start * size, (stop - start) * size), dtype).reshape(stop - start, -1)

    return read_rows


class SolvedTensor(ir.LazyTensor):
    """A kernel with everything that its operator absorbed, computed whenever it is read and rounded once."""

    def __init__(self, kernel: Kernel, linear: Linear, dtype: np.dtype[np.generic]) -> None:
        super().__init__(self._solve, ir.DataType.from_numpy(dtype), ir.Shape(kernel.shape))
        self._kernel, self._linear, self._stored = kernel, linear, dtype

    def _make(self, block: Block) -> memoryview:
        return self._round(block).view(np.uint8).data.cast("B")

    def _round(self, block: Block) -> AnyArray:
        return block.round(self._linear, self._stored)

    def _solve(self) -> ir.TensorProtocol:
        solved = np.empty(self._kernel.shape, self._stored)
        rows = solved.reshape(self._kernel.rows, -1)
        for block in self._kernel.blocks():
            rows[block.start : block.stop] = self._round(block)
        return ir.tensor(solved)

    def pieces(self) -> Iterator[Piece]:
        """The bytes of the tensor, in order."""
        row = self.nbytes // self._kernel.rows if self._kernel.rows else 0
        for block in self._kernel.blocks():
            yield (block.stop - block.start) * row, partial(self._make, block)


def pieces(tensor: ir.TensorProtocol) -> Iterator[Piece]:
    """The bytes of a tensor in order, made when they are asked for."""
    if isinstance(tensor, SolvedTensor):
        yield from tensor.pieces()
    elif isinstance(tensor, ir.ExternalTensor):
        for start in range(0, tensor.nbytes, PIECE):
            count = min(PIECE, tensor.nbytes - start)
            yield count, partial(read_bytes, tensor, start, count)
    else:
        yield tensor.nbytes, tensor.tobytes
