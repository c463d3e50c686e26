"""Per-channel affines with constant parameters: BatchNorm in every spelling, and arithmetic with constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bnfold.frontends import reading
from bnfold.frontends.reading import Normalization, Unreadable
from bnfold.frontends.torch.operators.reader import Reader
from bnfold.frontends.torch.tensors import DTYPES, AnyArray, to_numpy
from bnfold.graph.ops import ChannelAffine
from bnfold.graph.outcome import Reason

STATISTICS = ("weight", "bias", "running_mean", "running_var")


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
    return normalization(reader).op(_batchnorm_axis(reader))


def _batchnorm_axis(reader: Reader) -> int:
    """The channel axis: 1, except for an InstanceNorm module, which also takes data without a batch axis."""
    call = reader.call
    if call.op == "instance_norm" and call.module is not None:
        return reader.rank() - (call.dims or 0) - 1
    return 1


def normalization(reader: Reader) -> Normalization:
    """The constants of a BatchNorm in inference form."""
    call = reader.call
    if call.get("running_mean") is None or call.get("running_var") is None:
        raise Unreadable(Reason.TRAINING_MODE, "it has no running statistics: it normalises with those of each batch")
    if call.get("training", False) or (call.op == "_native_batch_norm_legit" and "training" not in call.arguments):
        raise reading.in_training_mode()
    gamma = None if call.get("weight") is None else reader.constant("weight", "scale")
    beta = None if call.get("bias") is None else reader.constant("bias", "bias")
    mean, var = reader.constant("running_mean", "mean"), reader.constant("running_var", "variance")
    return reading.normalization(gamma, beta, mean, var, float(reader.get("eps", 1e-5)))


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
    if reader.call.op == "neg":
        return reading.arithmetic("mul", np.asarray(-1.0), shape)
    constant = _operand(reader, "other" if name == "input" else "input", dtype)
    if constant is None:
        return None
    alpha = float(reader.get("alpha", 1))
    return reading.arithmetic(reader.call.op, constant, shape, constant_first=name == "other", alpha=alpha)


def _is_computed(reader: Reader, name: str) -> bool:
    argument = reader.call.get(name)
    return isinstance(argument, torch.fx.Node) and not reader.facts.constants.holds(argument)


def _operand(reader: Reader, name: str, dtype: torch.dtype) -> AnyArray | None:
    """A constant operand that leaves the type of the data as it is."""
    argument: Any = reader.call.get(name)
    if isinstance(argument, bool) or argument is None:
        return None
    if isinstance(argument, int | float):
        return np.asarray(float(argument))
    if not reader.holds(name):
        return None
    tensor = reader.facts.constants.get(argument)
    if tensor.dtype not in DTYPES or type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return None
    if tensor.dim() and torch.promote_types(tensor.dtype, dtype) != dtype:
        return None
    return to_numpy(tensor)
