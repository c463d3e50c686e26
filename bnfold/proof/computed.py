"""BatchNormalization of constants alone: what it makes is a constant, too, computed here in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

AnyArray = npt.NDArray[Any]
Array = npt.NDArray[np.float64]


def compute(
    node: onnx.NodeProto, version: int, constant: Callable[[str], AnyArray | None]
) -> tuple[Array, Array, np.dtype[Any]] | None:
    """The first output of a BatchNormalization, the magnitude of what it is summed up from, and its type.

    None where it is no constant. Further outputs, if there are any, are not looked at.
    """
    options = {
        attribute.name: attribute.f if attribute.name == "epsilon" else attribute.i for attribute in node.attribute
    }
    is_training = version >= 14 and bool(options.get("training_mode", 0))
    if version < 14 and (any(node.output[1:]) or options.get("spatial", 1) != 1):
        return None
    if version < 7 and not options.get("is_test", 0):
        return None
    stored = [constant(value) for value in node.input[: 3 if is_training else 5]]
    arrays = [array for array in stored if array is not None]
    if len(arrays) != (3 if is_training else 5) or arrays[0].ndim < 2:
        return None
    x, *vectors = (array.astype(np.float64) for array in arrays)
    if any(vector.shape != x.shape[1:2] for vector in vectors):
        return None
    shape = (1, -1, *(1,) * (x.ndim - 2))
    axes = (0, *range(2, x.ndim))
    gamma, beta = (vector.reshape(shape) for vector in vectors[:2])
    with np.errstate(all="ignore"):
        mean, var = (vector.reshape(shape) for vector in (vectors[2:] or (x.mean(axis=axes), x.var(axis=axes))))
        if is_training and not np.isfinite(var).all():  # the squares overflow, which says nothing about the variance
            return None
        scale = np.sqrt(var + options.get("epsilon", float(np.float32(1e-5))))
        result = (x - mean) / scale * gamma + beta
        size = (np.abs(x).max(axis=axes, keepdims=True, initial=0.0) + np.abs(mean)) / scale * np.abs(gamma)
    return result, np.broadcast_to(size + np.abs(beta), result.shape), arrays[0].dtype
