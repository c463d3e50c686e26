"""Per-channel affines with constant parameters: BatchNormalization, and Mul, Add, Sub, Div by a constant."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnfold.algebra.affine import Affine, per_channel_axis
from bnfold.frontends.onnx.operators.constants import AnyArray
from bnfold.frontends.onnx.operators.read_linear import operand_shape
from bnfold.frontends.onnx.operators.reader import FLOATS, Reader
from bnfold.frontends.reading import Unreadable
from bnfold.graph.ops import CHANNEL_LIMIT, ChannelAffine, Shape
from bnfold.graph.outcome import Reason

EPSILON = float(np.float32(1e-5))
"""The default; attributes are float32."""

STATISTICS = ("scale", "bias", "mean", "variance")


def read_batchnorm(reader: Reader) -> ChannelAffine:
    """BatchNormalization of any opset, in inference form.

    Raises:
        Unreadable: training mode, per-activation statistics, or parameters that are not constant or not valid.
    """
    _insist_on_inference(reader)
    gamma, beta, mean, var, epsilon = batchnorm_constants(reader)
    with np.errstate(all="ignore"):
        affine = Affine.from_batchnorm(gamma, beta, mean, var, epsilon)
    if not affine.is_finite:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its scale or shift is not finite in any precision")
    return ChannelAffine(affine, is_batchnorm=True, stored=(gamma.size,) * len(STATISTICS))


def _insist_on_inference(reader: Reader) -> None:
    if reader.version < 9 and not reader.attribute("spatial", 1):
        raise Unreadable(Reason.PER_ACTIVATION, "it has spatial=0: statistics per activation, not per channel")
    if reader.version < 7 and not reader.attribute("is_test", 0):
        raise Unreadable(Reason.TRAINING_MODE, "BatchNormalization has is_test=0")
    if reader.attribute("training_mode", 0):
        raise Unreadable(Reason.TRAINING_MODE, "BatchNormalization has training_mode=1")
    if any(output.name for output in reader.node.outputs[1:]):
        raise Unreadable(Reason.TRAINING_MODE, "it has the outputs of the training form")


def batchnorm_constants(reader: Reader) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray, float]:
    """gamma, beta, mean, variance and epsilon of a BatchNormalization."""
    arrays = [reader.numbers(index, what) for index, what in enumerate(STATISTICS, start=1)]
    channels = arrays[0].size
    for what, array in zip(STATISTICS, arrays, strict=True):
        if ir.DataType.from_numpy(array.dtype) not in FLOATS:
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} is of type {array.dtype}")
        if array.ndim != 1 or array.size != channels:
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} has shape {array.shape} for {channels} channels")
        if not np.isfinite(array.astype(np.float64)).all():
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} is not finite in every channel")
    epsilon = float(reader.attribute("epsilon", EPSILON))
    if not np.all(arrays[3].astype(np.float64) + epsilon > 0) or np.any(arrays[3].astype(np.float64) < 0):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its variance is negative, or zero with epsilon zero")
    return arrays[0], arrays[1], arrays[2], arrays[3], epsilon


def read_arithmetic(reader: Reader) -> ChannelAffine | None:
    """Add, Sub, Mul, Div of a computed value and a constant that varies along one axis, Neg; None for anything else."""
    if reader.node.op_type == "Neg":
        return _negation(reader)
    held = [reader.facts.constants.holds(value) for value in reader.node.inputs]
    if sorted(held) != [False, True]:
        return None
    constant_index = held.index(True)
    shape = reader.shape(1 - constant_index)
    if shape is None or reader.dtype(1 - constant_index) not in FLOATS:
        return None
    constant = reader.numbers(constant_index, "operand")
    aligned = operand_shape(reader, constant_index, constant.shape, len(shape))
    if aligned is None:
        return None
    axis = per_channel_axis(aligned, len(shape))
    axis = _channel_axis(shape) if axis is None else axis
    if (
        axis < 0
        or not (isinstance(size := shape[axis], int) and size <= CHANNEL_LIMIT)
        or constant.size not in (1, size)
    ):
        return None
    values = np.broadcast_to(constant.astype(np.float64).reshape(-1), (size,))
    affine = _arithmetic(reader.node.op_type, values, axis, constant_first=constant_index == 0)
    if affine is None or not affine.is_finite:
        return None
    return ChannelAffine(affine, is_batchnorm=False, stored=(constant.size,))


def _channel_axis(shape: Shape) -> int:
    """Where the channels are likely to be, for an affine that is the same everywhere."""
    return len(shape) - 1 if len(shape) < 4 else 1


def _negation(reader: Reader) -> ChannelAffine | None:
    shape = reader.shape()
    if not shape or reader.dtype() not in FLOATS or reader.facts.constants.holds(reader.value(0)):
        return None
    axis = _channel_axis(shape)
    size = shape[axis]
    if not isinstance(size, int) or size > CHANNEL_LIMIT:
        return None
    return ChannelAffine(Affine.of(-np.ones(size), 0.0, axis), is_batchnorm=False, stored=())


def _arithmetic(op_type: str, constant: AnyArray, axis: int, *, constant_first: bool) -> Affine | None:
    with np.errstate(all="ignore"):
        match op_type:
            case "Add":
                return Affine.of(1.0, constant, axis)
            case "Sub":
                return Affine.of(-1.0, constant, axis) if constant_first else Affine.of(1.0, -constant, axis)
            case "Mul":
                return Affine.of(constant, 0.0, axis)
            case "Div" if not constant_first:
                return Affine.of(1.0 / constant, 0.0, axis)
    return None
