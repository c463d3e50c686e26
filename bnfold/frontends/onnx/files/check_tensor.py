"""Checks of a tensor before it is read: it has as much data as its shape needs, in a file of the model's folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from math import prod
from pathlib import Path, PurePosixPath

import onnx
import onnx_ir as ir
from onnx import TensorProto

from bnfold.frontends.limits import Limits

_TYPED: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
"""The field of values that are not raw bytes; `int32_data` for every other type."""

BITS: dict[int, tuple[ir.DataType, int]] = {
    int(kind): (kind, 0 if kind is ir.DataType.STRING else kind.bitwidth)
    for kind in ir.DataType
    if kind is not ir.DataType.UNDEFINED
}
"""The types of tensors, by their numbers, each with the bits of an element; 0 where these are not alike."""

SHAPE_LIMIT = 1 << 56
"""Product of the dimensions beside a zero, above which no library has an array, though there is nothing in it."""


class TensorCheck:
    """Checks each tensor of one model; what is wrong with it is a `ValueError`.

    Args:
        folder: where external data must be; None where it is not read, so that nothing about it is checked.
        limits: how much all tensors together may declare.
    """

    def __init__(self, folder: Path | None, limits: Limits) -> None:
        self._folder = None if folder is None else Path(os.path.realpath(folder))
        self._limits = limits
        self._declared = 0
        self._sizes: dict[str, int] = {}

    def dense(self, tensor: TensorProto, where: str) -> None:
        """Check the type, the shape and the data of a tensor."""
        elements = self._elements(tensor.dims, where)
        if tensor.data_type not in BITS:
            unknown = "no type" if tensor.data_type == TensorProto.UNDEFINED else f"the unknown type {tensor.data_type}"
            raise ValueError(f"{where} has {unknown}")
        kind, bits = BITS[tensor.data_type]
        if tensor.HasField("segment"):
            raise ValueError(f"{where} is a segment of a larger tensor, which nobody puts together")
        size = -(-elements * bits // 8)
        self._declare(size, where)
        if tensor.data_location == TensorProto.EXTERNAL:
            if kind == ir.DataType.STRING:
                raise ValueError(f"{where} holds strings, which cannot be external data")
            self._external(tensor, size, where)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != size or kind == ir.DataType.STRING:
                shape = list(tensor.dims)
                raise ValueError(f"{where} has {len(tensor.raw_data)} bytes, its shape {shape} of {kind} takes {size}")
        else:
            self._typed(tensor, kind, elements, where)

    def _typed(self, tensor: TensorProto, kind: ir.DataType, elements: int, where: str) -> None:
        held = len(getattr(tensor, _TYPED.get(tensor.data_type, "int32_data")))
        if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            held //= 2
        bits = 8 if kind == ir.DataType.STRING else kind.bitwidth
        wanted = elements if bits >= 8 else -(-elements * bits // 8)
        if held != wanted:
            raise ValueError(f"{where} has {held} values, its shape {list(tensor.dims)} of {kind} takes {wanted}")

    def sparse(self, tensor: onnx.SparseTensorProto, where: str) -> None:
        """Check a sparse tensor; reads its indices, which are as large as its data."""
        self._declare(8 * self._elements(tensor.dims, where), where)
        for part in (tensor.values, tensor.indices):
            if part.data_location == TensorProto.EXTERNAL:
                raise ValueError(f"{where} holds external data")
            self.dense(part, where)
        if tensor.indices.data_type != TensorProto.INT64 or len(tensor.values.dims) != 1:
            raise ValueError(f"{where} is not values with int64 indices")
        indices = onnx.numpy_helper.to_array(tensor.indices)
        bounds = [prod(tensor.dims)] if indices.ndim == 1 else list(tensor.dims)
        count = tensor.values.dims[0]
        if indices.shape not in ((count,), (count, len(tensor.dims))):
            raise ValueError(f"{where} has indices of shape {indices.shape} for {count} values")
        if indices.size and ((indices < 0).any() or (indices.reshape(count, -1).max(axis=0) >= bounds).any()):
            raise ValueError(f"{where} has an index outside its shape {list(tensor.dims)}")

    def _elements(self, dims: Iterable[int], where: str) -> int:
        shape = list(dims)
        if len(shape) > 64:
            raise ValueError(f"{where} has {len(shape)} axes")
        if shape and min(shape) < 0:
            raise ValueError(f"{where} has the negative dimension {min(shape)}")
        if 0 in shape and prod(max(1, dim) for dim in shape) > SHAPE_LIMIT:
            raise ValueError(f"{where} has dimensions {shape}, whose product overflows")
        return prod(shape)

    def _declare(self, size: int, where: str) -> None:
        self._declared += size
        if self._declared > self._limits.bytes:
            raise ValueError(
                f"with {where} its tensors declare more than {self._limits.bytes} bytes; --max-bytes allows more"
            )

    def _external(self, tensor: TensorProto, size: int, where: str) -> None:
        if self._folder is None:
            return
        entries = {each.key: each.value for each in tensor.external_data}
        if len(entries) < len(tensor.external_data):
            raise ValueError(f"{where} says twice where its external data is")
        location = entries.get("location", "")
        if location not in self._sizes:
            self._sizes[location] = self._file(location, where)
        offset = _number(entries.get("offset", "0"), f"offset of {where}")
        length = _number(entries.get("length", str(size)), f"length of {where}")
        if length != size:
            raise ValueError(f"{where} has {length} bytes of external data, its shape takes {size}")
        if offset + length > self._sizes[location]:
            raise ValueError(
                f"{where} lies at bytes {offset} to {offset + length} of {location!r}, "
                f"which has {self._sizes[location]}"
            )

    def _file(self, location: str, where: str) -> int:
        """The size of a file of external data, which must be a plain file in the model's folder or below."""
        assert self._folder is not None
        what = f"the external data of {where} in {location!r}"
        path = PurePosixPath(location)
        if not location or "\0" in location or path.is_absolute() or ".." in path.parts or "\\" in location:
            raise ValueError(f"{what} is not a plain relative path")
        try:
            real = Path(os.path.realpath(self._folder / location, strict=True))
            found = real.stat()
        except OSError as error:
            raise ValueError(f"{what} cannot be read: {error.strerror}") from None
        if not real.is_relative_to(self._folder):
            raise ValueError(f"{what} is a link out of the model's folder")
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{what} is not a plain file")
        if found.st_nlink > 1:
            raise ValueError(f"{what} has another name as well (a hard link), so it may be a file of somewhere else")
        return found.st_size


def _number(text: str, what: str) -> int:
    """A count in decimal digits; nothing else is one."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"the {what} is {text[:40]!r}, not a number of bytes")
    return int(text)
