"""Absorbs an affine on the output or input of an operator: the new operator, or the reason against it."""

from __future__ import annotations

import numpy as np

from bnfold.algebra.affine import Affine, Grid
from bnfold.algebra.linear import Linear
from bnfold.graph.ops import ChannelAffine
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.cost import stop_fold

ON_SEVERAL_AXES = Stop(
    Reason.MIXED_CHANNELS, "the scale and shift differ along several of its axes, not by channel alone"
)
NOT_FINITE = Stop(Reason.OVERFLOW, "the combined scale or shift is not finite")


def absorb_output(
    op: Linear | ChannelAffine, affine: Affine | None, *, is_batchnorm: bool, is_bias: bool = False
) -> Linear | Affine | Stop:
    """The operator with an affine behind it.

    Args:
        op: the operator.
        affine: the map on its output; None where the output is not read.
        is_batchnorm: whether the affine is a BatchNorm, not a plain per-channel operator.
        is_bias: whether the affine is an addition right behind the operator.
    """
    if affine is None:
        return Stop(Reason.NOT_LINEAR, "only a side output of it is read")
    if isinstance(op, ChannelAffine):
        return _stop_batchnorm(op, affine) or _finite(affine.after(op.affine))
    if op.axis_out is None:
        return Stop(Reason.NOT_LINEAR, "its output is not a linear function of one constant weight")
    if isinstance(affine, Grid):
        return ON_SEVERAL_AXES
    if affine.axis != op.axis_out:
        return Stop(Reason.AXIS_MISMATCH, "the channels lie on another axis than its output channels")
    if affine.size != op.out_channels:
        return Stop(Reason.MIXED_CHANNELS, f"it makes {op.out_channels} channels, not {affine.size}")
    if op.is_quantized and (stop := _stop_negation(op, affine)):
        return stop
    return _checked(op, op.absorb_output(affine), is_free=is_batchnorm or is_bias)


def _stop_negation(op: Linear, affine: Affine) -> Stop | None:
    """The reason why the integers of a quantised kernel cannot be negated, if there is one."""
    fixed = (affine.scale < 0) if op.mirrored is None else (affine.scale < 0) & ~op.mirrored
    if not fixed.any():
        return None
    detail = f"channel {int(np.argmax(fixed))} of its quantised weight holds a number without a negative, such as -128"
    return Stop(Reason.NEGATIVE_SCALE, detail)


def absorb_input(op: Linear | ChannelAffine, affine: Affine, *, is_batchnorm: bool) -> Linear | Affine | Stop:
    """The operator with an affine in front of it, of a BatchNorm or of a plain per-channel operator."""
    if isinstance(op, ChannelAffine):
        return _stop_batchnorm(op, affine) or _finite(op.affine.after(affine))
    if op.is_quantized:
        return Stop(Reason.QUANTIZED, "its quantised weight takes no scale per input channel")
    if isinstance(affine, Grid):
        return ON_SEVERAL_AXES
    if affine.axis != op.axis_in:
        return Stop(Reason.AXIS_MISMATCH, "the channels lie on another axis than its input channels")
    if affine.size != op.in_channels:
        return Stop(Reason.MIXED_CHANNELS, f"it reads {op.in_channels} channels, not {affine.size}")
    absorbed = op.absorb_input(affine)
    if not absorbed.is_exact:
        return Stop(Reason.BORDER, "its outputs near the border do not see the shift through every tap")
    if absorbed.fill and absorbed.window is not None and max(absorbed.window.taps) == 1:
        return Stop(Reason.BORDER, "its outputs near the border see nothing but padding")
    return _checked(op, absorbed, is_free=is_batchnorm)


def _stop_batchnorm(op: ChannelAffine, affine: Affine) -> Stop | None:
    """The reason why a per-channel operator cannot absorb another, if there is one."""
    if not op.is_batchnorm:
        return Stop(Reason.NOT_LINEAR, "it is a per-channel operator that could not fold itself")
    if (affine.axis, affine.size) != (op.affine.axis, op.affine.size):
        return Stop(Reason.AXIS_MISMATCH, "it works along another axis")
    return None


def _finite(affine: Affine) -> Affine | Stop:
    return affine if affine.is_finite else NOT_FINITE


def _checked(op: Linear, absorbed: Linear, *, is_free: bool) -> Linear | Stop:
    """The operator, if the fold is worth its cost, or free, and its pending affines are finite."""
    if not is_free and (stop := stop_fold(op, absorbed)):
        return stop
    pending = [affine for affine in (absorbed.before, absorbed.after) if affine is not None]
    return absorbed if all(affine.is_finite for affine in pending) else NOT_FINITE
