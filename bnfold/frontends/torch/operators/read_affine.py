"""Per-channel affines with constant parameters: BatchNorm in every spelling, and arithmetic with constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bnfold.algebra.affine import Affine, per_channel_axis
from bnfold.frontends.reading import Unreadable
from bnfold.frontends.torch.operators.reader import Reader
from bnfold.frontends.torch.tensors import DTYPES, AnyArray, to_numpy
from bnfold.graph.ops import ChannelAffine, Shape
from bnfold.graph.outcome import Reason

STATISTICS = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def is_batchnorm(reader: Reader) -> bool:
    """Whether the operator normalises with statistics of training: an InstanceNorm without such does not."""
    call = reader.call
    if call.op != "instance_norm":
        return call.operator.is_batchnorm
    return not call.get("use_input_stats", True) and call.get("running_mean") is not None


def read_batchnorm(reader: Reader) -> ChannelAffine:
    """BatchNorm, or InstanceNorm with running statistics, in inference form.

    Raises:
        Unreadable: training mode, or parameters that are not constant or not valid.
    """
    gamma, beta, mean, var, epsilon = batchnorm_constants(reader)
    with np.errstate(all="ignore"):
        affine = Affine.from_batchnorm(gamma, beta, mean, var, epsilon, _batchnorm_axis(reader))
    if not affine.is_finite:
        raise Unreadable(Reason.INVALID_PARAMETERS, "its scale or shift is not finite in any precision")
    return ChannelAffine(affine, is_batchnorm=True)


def _batchnorm_axis(reader: Reader) -> int:
    """1, but for an InstanceNorm module, which takes data without a batch axis."""
    call = reader.call
    if call.op == "instance_norm" and call.module is not None:
        return reader.rank() - (call.dims or 0) - 1
    return 1


def batchnorm_constants(reader: Reader) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray, float]:
    """gamma, beta, mean, variance and epsilon."""
    call = reader.call
    training = call.get("training", False)
    if call.get("running_mean") is None or call.get("running_var") is None:
        raise Unreadable(Reason.TRAINING_MODE, "it has no running statistics: it normalises with those of each batch")
    if training or (call.op == "_native_batch_norm_legit" and "training" not in call.arguments):
        raise Unreadable(Reason.TRAINING_MODE, "it is in training mode")
    arrays: dict[str, AnyArray] = {}
    for name, what in STATISTICS.items():
        if call.get(name) is not None:
            arrays[name] = reader.constant(name, what)
    channels = arrays["running_mean"].size
    for name, array in arrays.items():
        what = STATISTICS[name]
        if array.ndim != 1 or array.size != channels:
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} has shape {array.shape} for {channels} channels")
        if not np.isfinite(array.astype(np.float64)).all():
            raise Unreadable(Reason.INVALID_PARAMETERS, f"its {what} is not finite in every channel")
    epsilon = float(reader.get("eps", 1e-5))
    var = arrays["running_var"].astype(np.float64)
    if not np.all(var + epsilon > 0) or np.any(var < 0):
        raise Unreadable(Reason.INVALID_PARAMETERS, "its variance is negative, or zero with epsilon zero")
    gamma = arrays.get("weight", np.ones(channels))
    beta = arrays.get("bias", np.zeros(channels))
    return gamma, beta, arrays["running_mean"], arrays["running_var"], epsilon


def read_arithmetic(reader: Reader) -> ChannelAffine | None:
    """add, sub, mul, div of a computed value and a constant that varies along one axis, neg; None for anything else."""
    sides = ("input",) if reader.call.op == "neg" else ("input", "other")
    computed = [name for name in sides if _is_computed(reader, name)]
    if len(computed) != 1 or reader.get("rounding_mode") is not None:
        return None
    name = computed[0]
    node = reader.call.get(name)
    shape, dtype = reader.shape(node), reader.dtype(node)
    if not shape or dtype not in DTYPES:
        return None
    constant = np.asarray(1.0)
    if reader.call.op != "neg":
        found = _operand(reader, "other" if name == "input" else "input", dtype)
        if found is None:
            return None
        constant = found
    axis = per_channel_axis(constant.shape, len(shape))
    axis = _channel_axis(shape) if axis is None else axis
    if axis < 0 or not isinstance(size := shape[axis], int) or constant.size not in (1, size):
        return None
    values = np.broadcast_to(constant.astype(np.float64).reshape(-1), (size,))
    alpha = float(reader.get("alpha", 1))
    affine = _arithmetic(reader.call.op, values, axis, alpha, constant_first=name == "other")
    return ChannelAffine(affine, is_batchnorm=False) if affine is not None and affine.is_finite else None


def _is_computed(reader: Reader, name: str) -> bool:
    found = reader.call.get(name)
    return isinstance(found, torch.fx.Node) and not reader.facts.constants.holds(found)


def _operand(reader: Reader, name: str, dtype: torch.dtype) -> AnyArray | None:
    """A constant operand that leaves the type of the data as it is."""
    found: Any = reader.call.get(name)
    if isinstance(found, bool) or found is None:
        return None
    if isinstance(found, int | float):
        return np.asarray(float(found))
    if not reader.holds(name):
        return None
    tensor = reader.facts.constants.get(found)
    if tensor.dtype not in DTYPES or type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return None
    if tensor.dim() and torch.promote_types(tensor.dtype, dtype) != dtype:
        return None
    return to_numpy(tensor)


def _channel_axis(shape: Shape) -> int:
    """Where the channels are likely to be, for an affine that is the same everywhere."""
    return len(shape) - 1 if len(shape) < 4 else 1


def _arithmetic(op: str, constant: AnyArray, axis: int, alpha: float, *, constant_first: bool) -> Affine | None:
    with np.errstate(all="ignore"):
        match op:
            case "add":  # input + alpha * other
                return Affine.of(alpha, constant, axis) if constant_first else Affine.of(1.0, alpha * constant, axis)
            case "sub":
                if constant_first:
                    return Affine.of(np.full(len(constant), -alpha), constant, axis)
                return Affine.of(1.0, -alpha * constant, axis)
            case "rsub":  # other - alpha * input
                if constant_first:
                    return Affine.of(1.0, -alpha * constant, axis)
                return Affine.of(np.full(len(constant), -alpha), constant, axis)
            case "mul":
                return Affine.of(constant, 0.0, axis)
            case "neg":
                return Affine.of(-constant, 0.0, axis)
            case "div" if not constant_first:
                return Affine.of(1.0 / constant, 0.0, axis)
    return None
