"""Quantised weights of torch: what `quantized_decomposed` makes floats of, as `convert_pt2e` writes it.

Both operators compute in float32: the difference of integer and zero point, times the scale.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from bnfold.frontends.quantized import AnyArray, Quantized
from bnfold.frontends.reading import Unreadable
from bnfold.frontends.torch.operators.calls import Call
from bnfold.frontends.torch.operators.reader import Reader
from bnfold.graph.outcome import Reason

PER_CHANNEL = "quantized_decomposed.dequantize_per_channel.default"
PER_TENSOR = ("quantized_decomposed.dequantize_per_tensor.default", "quantized_decomposed.dequantize_per_tensor.tensor")

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32)


def find(reader: Reader, handle: object) -> Quantized | None:
    """The constant integers that a dequantised weight is made of; None for any other value.

    Raises:
        Unreadable: they are dequantised in a form that is not read.
    """
    if not isinstance(handle, fx.Node) or handle not in reader.facts.calls:
        return None
    call, kind = reader.facts.calls[handle], str(handle.target)
    if kind not in (PER_CHANNEL, *PER_TENSOR) or not all(map(reader.facts.constants.holds, handle.all_input_nodes)):
        return None
    integers = _numbers(reader, call, "input")
    scales = _numbers(reader, call, "scales" if kind == PER_CHANNEL else "scale").astype(np.float32)
    points = _numbers(reader, call, "zero_points" if kind == PER_CHANNEL else "zero_point")
    axis = call.get("axis", 0)
    is_known = type(axis) is int and integers.dtype.kind in "iu" and points.dtype.kind in "iu"
    if not is_known or call.get("out_dtype") not in (None, torch.float32):
        raise Unreadable(Reason.QUANTIZED, "its weight is dequantised in a form that is not read")
    if scales.shape != points.shape or (scales.size > 1 and scales.shape != integers.shape[axis : axis + 1]):
        raise Unreadable(Reason.INVALID_PARAMETERS, "the scales of its quantised weight do not fit it")
    limits = int(call.get("quant_min", 0)), int(call.get("quant_max", 0))
    return Quantized(integers, scales.reshape(-1), points.reshape(-1), axis, limits=limits)


def _numbers(reader: Reader, call: Call, name: str) -> AnyArray:
    """An argument that is a constant tensor or a number."""
    argument = call.get(name)
    if isinstance(argument, fx.Node):
        tensor = reader.facts.constants.get(argument)
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) or tensor.device.type == "meta":
            raise Unreadable(Reason.QUANTIZED, "its weight is dequantised from no plain tensor")
        array: AnyArray = tensor.detach().cpu().numpy()
        return array
    if type(argument) not in (int, float):
        raise Unreadable(Reason.QUANTIZED, "its weight is dequantised in a form that is not read")
    return np.asarray(argument)
