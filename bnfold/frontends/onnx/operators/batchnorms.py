"""BatchNormalization of constants alone, such as a weight that is standardised: what it makes is a constant, too.

y = (x - mean) / sqrt(var + epsilon) * gamma + beta

In training mode, mean and var are those of `x` itself, channel by channel; var is that of the population.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnfold.algebra.rounding import round_once
from bnfold.frontends import reading
from bnfold.frontends.reading import AnyArray

EPSILON = float(np.float32(1e-5))
"""The default; attributes are float32."""

KINDS = {
    "consumed_inputs": ir.AttributeType.INTS,
    **dict.fromkeys(("epsilon", "momentum"), ir.AttributeType.FLOAT),
    **dict.fromkeys(("is_test", "spatial", "training_mode"), ir.AttributeType.INT),
}
"""The attributes of all opsets."""

BY_ATTRIBUTE = 14
"""The opset from which on an attribute says whether the mode is that of training, and not the number of outputs."""


def operands(node: ir.Node, version: int) -> list[ir.Value] | None:
    """The inputs that the first output depends on; None where that is not known, or a further output is read."""
    if any(KINDS.get(name) != attribute.type or attribute.is_ref() for name, attribute in node.attributes.items()):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    if version < BY_ATTRIBUTE:
        is_plain = not any(output.name for output in node.outputs[1:]) and node.attributes.get_int("spatial", 1) == 1
        if not is_plain or (version < 7 and not node.attributes.get_int("is_test", 0)):
            return None
    is_training = version >= BY_ATTRIBUTE and bool(node.attributes.get_int("training_mode", 0))
    read = [value for value in node.inputs[: 3 if is_training else 5] if value is not None]
    return read if len(read) == (3 if is_training else 5) else None


def evaluate(node: ir.Node, version: int, inputs: Sequence[AnyArray]) -> AnyArray:
    """The first output, given the content of `operands`: computed in float64 and rounded once.

    Raises:
        Unreadable: the parameters are not valid, or the type is none of floating-point numbers.
        ValueError: the data has no channels, or the result is not finite.
    """
    data, gamma, beta = inputs[:3]
    if data.ndim < 2 or data.dtype not in reading.FLOATS:
        raise ValueError(f"its data has shape {data.shape} and type {data.dtype}")
    wide = data.astype(np.float64)
    mean, var = inputs[3:] if len(inputs) > 3 else _statistics(wide)
    constants = reading.normalization(gamma, beta, mean, var, float(node.attributes.get_float("epsilon", EPSILON)))
    if constants.channels != data.shape[1]:
        raise ValueError(f"its data has {data.shape[1]} channels, not {constants.channels}")
    gamma, beta, mean, var = constants.wide.reshape(4, -1, *(1,) * (data.ndim - 2))
    # in the order of the definition, so that whoever computes it again gets the same digits
    with np.errstate(all="ignore"):
        rounded = round_once((wide - mean) / np.sqrt(var + constants.epsilon) * gamma + beta, data.dtype)
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise ValueError("its result is not finite")
    return rounded


def _statistics(data: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Mean and variance of each channel."""
    axes = (0, *range(2, data.ndim))
    with np.errstate(all="ignore"):
        mean, var = data.mean(axis=axes), data.var(axis=axes)
    if not np.isfinite(var).all():
        raise ValueError("its variance is not finite")
    return mean, var
