"""Weights that a program makes of integers, checked number by number.

    (q' - z) scale' = factor (q - z) scale,    q' = z + sign(factor) (q - z),    scale' = |factor| scale

Where the factor is zero, q' is z, and the scale stays. Torch evaluates both operators in float32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from bnfold.algebra.affine import Affine
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import Kernel
from bnfold.proof.rounding import UNIT, Worst, Wrong, check_rounded
from bnfold.proof.torch.calls import DEQUANTIZERS
from bnfold.proof.torch.sides import AnyArray, Side


def is_dequantized(side: Side, weight: object) -> bool:
    """Whether a weight is made of integers."""
    return isinstance(weight, fx.Node) and weight in side.calls and side.calls[weight].name in DEQUANTIZERS


def check_scales(
    name: str, sides: tuple[Side, Side], weights: tuple[fx.Node, fx.Node], layout: Kernel, outer: Affine | None
) -> Worst:
    """Check that a weight is made of the same integers, or their negatives, with new scales that are rounded once.

    Args:
        name: the linear operator.
        sides: original and result.
        weights: what makes the weight of the operator in each.
        layout: the kernel of the original.
        outer: the map on the operator's output.
    """
    if not is_dequantized(sides[1], weights[1]):
        raise ProofError("weights", name, "its weight is not dequantised")
    calls = [side.calls[weight] for side, weight in zip(sides, weights, strict=True)]
    for option in ("quant_min", "quant_max", "dtype", "out_dtype"):
        if calls[0].get(option) != calls[1].get(option):
            raise ProofError("weights", name, f"it is dequantised with another {option}")
    if calls[0].get("out_dtype") not in (None, torch.float32):
        raise ProofError("weights", name, "it is not dequantised to float32")
    before, after = (_parts(name, side, weight) for side, weight in zip(sides, weights, strict=True))
    factor = np.ones(layout.values.shape)
    if outer is not None:
        factor = Kernel(factor, layout.groups, layout.is_by_output).solve(slice(None), None, outer.scale)
    factor = factor.reshape(before[0].shape)
    if before[0].shape != after[0].shape or not np.array_equal(before[2], after[2]):
        raise ProofError("weights", name, "its zero points differ")
    if not np.array_equal(after[0], before[2] + np.sign(factor) * (before[0] - before[2])):
        raise ProofError("weights", name, "its integers differ")
    limits = calls[0].get("quant_min"), calls[0].get("quant_max")
    if not np.array_equal(before[0], after[0]) and not ((after[0] >= limits[0]) & (after[0] <= limits[1])).all():
        raise ProofError("weights", name, "an integer leaves its range")
    exact = before[1].astype(np.float64) * np.where(factor == 0, 1.0, np.abs(factor))
    outcome = check_rounded(after[1], exact, 4 * UNIT * np.abs(exact))
    if isinstance(outcome, Wrong):
        raise ProofError("weights", name, f"a scale is {outcome.stored!r} and should be {outcome.exact!r}")
    return outcome


def _parts(name: str, side: Side, weight: fx.Node) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Integer, scale and zero point of each element; integers and zero points in float64."""
    call, is_by_channel = side.calls[weight], side.calls[weight].name == "dequantize_per_channel"
    integers = _numbers(name, side, call.get("input"))
    vectors = [
        _numbers(name, side, call.get(option))
        for option in (("scales", "zero_points") if is_by_channel else ("scale", "zero_point"))
    ]
    axis, shape = call.get("axis", 0), [1] * integers.ndim
    if is_by_channel:
        if type(axis) is not int or not 0 <= axis < integers.ndim:
            raise ProofError("weights", name, "its scales lie along no axis")
        shape[axis] = integers.shape[axis]
    if any(vector.size != np.prod(shape) for vector in vectors):
        raise ProofError("weights", name, "its scales do not fit it")
    scales, zeros = (np.broadcast_to(vector.reshape(shape), integers.shape) for vector in vectors)
    if (
        integers.dtype.kind not in "iu"
        or zeros.dtype.kind not in "iu"
        or (scales.dtype != np.float32 and is_by_channel)
    ):
        raise ProofError("weights", name, "its integers, scales or zero points are of other types")
    return integers.astype(np.float64), scales.astype(np.float32), zeros.astype(np.float64)


def _numbers(name: str, side: Side, argument: object) -> AnyArray:
    """A constant tensor, or a number."""
    if type(argument) in (int, float):
        return np.asarray(argument)
    tensor = side.constant(argument)
    if tensor is None or type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise ProofError("weights", name, "its quantised weight is not constant")
    array: AnyArray = tensor.detach().cpu().numpy()
    return array
