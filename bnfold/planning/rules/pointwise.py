"""Operators that work on each position for itself: identity, sums of computed values, rectifiers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.graph.ops import Dim, Identity, Lookup, Rectifier, Select, Shape, Sum
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.rules.registry import AXIS, CONFLICT, Carried, pull, push, reversed_scale, variants

SHIFTED = Stop(Reason.NONLINEAR, "it carries a positive scale, but no shift")
SHAPES = Stop(Reason.UNKNOWN_SHAPE, "the shapes of its operands are not known")
NARROW = Stop(Reason.OVERFLOW, "what fits the wider type behind the cast may overflow the narrower one in front of it")
BROADCAST = Stop(Reason.MIXED_CHANNELS, "an operand is broadcast along the channel axis")


@pull.register
def _(op: Identity, affine: Affine) -> Carried:
    return NARROW if op.is_widening else (affine,)


@push.register
def _(op: Identity, affine: Affine) -> Carried:
    return (affine,)


@pull.register
@push.register
def _(op: Rectifier, affine: Affine) -> Carried:
    if affine.has_shift:
        return SHIFTED
    return (affine,) if affine.is_increasing else reversed_scale(affine)


@variants.register
def _(op: Sum) -> tuple[object, ...]:
    """Pull a shift into one operand, whichever can take it, or in equal parts (if one value is read twice).

    A constant takes it for nothing.
    """
    count = len(op.signs)
    unit = np.eye(count)
    constants_first = sorted(range(count), key=lambda index: index not in op.constants)
    shares = [*unit[constants_first], np.full(count, 1 / count)]
    return tuple(replace(op, shares=tuple(float(part) for part in share)) for share in shares)


@pull.register
def _(op: Sum, affine: Affine) -> Carried:
    pulled: list[Affine] = []
    for index, (sign, share) in enumerate(zip(op.signs, op.shares, strict=True)):
        operand = pull_operand(op, index, affine)
        if isinstance(operand, Stop):
            return operand
        pulled.append(operand.with_shift(sign * share * affine.shift))
    return tuple(pulled)


def pull_operand(op: Sum, index: int, affine: Affine) -> Affine | Stop:
    """An affine on the output of a sum, as an affine on an operand that has all channels."""
    if any(shape is None for shape in op.shapes):
        return SHAPES
    shapes = [shape for shape in op.shapes if shape is not None]
    rank, shape = max(len(shape) for shape in shapes), shapes[index]
    if affine.axis >= rank:
        return SHAPES
    axis = affine.axis - (rank - len(shape))
    stop = _stop_operand(shape, axis, affine.size, is_constant=index in op.constants)
    return stop or Affine(affine.scale, affine.shift, axis)


def _stop_operand(shape: Shape, axis: int, channels: int, *, is_constant: bool) -> Stop | None:
    """The reason why an operand cannot take in an affine. A constant of one number may get channels."""
    size = _size(shape, axis)
    if is_constant and set(shape) <= {1}:
        return None
    if axis < 0 or size != channels:
        return SHAPES if not isinstance(size, int) else BROADCAST
    return None


@pull.register
def _(op: Select, affine: Affine) -> Carried:
    pulled: list[Affine] = []
    for index, shape in enumerate(op.shapes):
        if shape is None or affine.axis >= op.rank:
            return SHAPES
        axis = affine.axis - (op.rank - len(shape))
        if stop := _stop_operand(shape, axis, affine.size, is_constant=index in op.constants):
            return stop
        pulled.append(affine.along(axis))
    return tuple(pulled)


@push.register
def _(op: Select, *affines: Affine | None) -> Carried:
    arrived: list[Affine] = []
    for affine, shape in zip(affines, op.shapes, strict=True):
        if shape is None:
            return SHAPES
        if affine is None:
            return CONFLICT
        if (size := _size(shape, affine.axis)) != affine.size:
            return SHAPES if not isinstance(size, int) else BROADCAST
        arrived.append(affine.along(affine.axis + op.rank - len(shape)))
    return (arrived[0],) if all(arrived[0].equals(other) for other in arrived) else CONFLICT


@pull.register
def _(op: Lookup, affine: Affine) -> Carried:
    behind = affine.axis - op.rank + 1
    if affine.axis < op.axis:
        return (affine,)
    return (affine.along(behind),) if behind > op.axis else AXIS


@push.register
def _(op: Lookup, affine: Affine) -> Carried:
    if affine.axis == op.axis:
        return AXIS
    return (affine if affine.axis < op.axis else affine.along(affine.axis + op.rank - 1),)


@push.register
def _(op: Sum, *affines: Affine | None) -> Carried:
    if any(shape is None for shape in op.shapes):
        return SHAPES
    shapes = [shape for shape in op.shapes if shape is not None]
    rank = max(len(shape) for shape in shapes)
    total: Affine | None = None
    for affine, shape, sign in zip(affines, shapes, op.signs, strict=True):
        if affine is None:
            continue
        part = (affine if sign > 0 else affine.negated()).along(affine.axis + rank - len(shape))
        if total is None:
            total = part
        elif (total.axis, total.size) != (part.axis, part.size) or not np.array_equal(total.scale, part.scale):
            return CONFLICT
        else:
            total = total.plus(part)
    assert total is not None
    if total.axis >= rank:
        return SHAPES
    if None in affines and not np.all(total.scale == 1):
        return CONFLICT
    for shape in shapes:
        if (size := _size(shape, total.axis - (rank - len(shape)))) not in (1, total.size):
            return SHAPES if not isinstance(size, int) else BROADCAST
    return (total,)


def _size(shape: Shape, axis: int) -> Dim:
    """The size of an operand along `axis`, with numpy's leading ones."""
    return shape[axis] if axis >= 0 else 1
