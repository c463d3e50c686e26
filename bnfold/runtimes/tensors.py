"""Reads tensors of an ONNX protobuf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from bnfold.errors import InvalidModelError

FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)

NARROW = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}


def read(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[Any]:
    """The values of an initializer, read from its file where they are external.

    Raises:
        InvalidModelError: the values are not there.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    path, offset = folder / where["location"], int(where.get("offset", 0))
    count = int(np.prod(tensor.dims, dtype=object))
    try:
        return np.fromfile(path, dtype, count, offset=offset).reshape(tuple(tensor.dims))
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"the external data of {tensor.name!r} cannot be read from {path}: {error}") from error
