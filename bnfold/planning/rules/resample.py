"""Operators that combine positions of one channel: pooling, resizing, padding, broadcasting."""

from __future__ import annotations

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.graph.ops import Average, Broadcast, Maximum, Pad, Product
from bnfold.graph.outcome import Reason, Stop
from bnfold.planning.rules.registry import AXIS, CONFLICT, Carried, pull, push, reversed_scale

COUNTS_ZEROS = Stop(Reason.SHIFT, "its weights do not sum to one everywhere, so a shift does not commute with it")
WEIGHTED = Stop(Reason.SHIFT, "its weights are data and need not sum to one, so a shift does not commute with it")
PADDING = Stop(Reason.BORDER, "its padding constant is not one that the affine leaves alone")


@pull.register
def _(op: Average, affine: Affine) -> Carried:
    axis = _undrop(affine.axis, op.dropped)
    return _stop_average(op, affine, axis) or (affine.along(axis),)


@push.register
def _(op: Average, affine: Affine) -> Carried:
    return _stop_average(op, affine, affine.axis) or (affine.along(_drop(affine.axis, op.dropped)),)


def _stop_average(op: Average, affine: Affine, axis: int) -> Stop | None:
    if axis in op.axes:
        return AXIS
    return None if op.sums_to_one or not affine.has_shift else COUNTS_ZEROS


@pull.register
def _(op: Product, affine: Affine) -> Carried:
    place = affine.axis - max(op.ranks) + 2
    if place not in (0, 1):
        return AXIS
    if affine.has_shift:
        return WEIGHTED
    pulled = affine.along(op.ranks[place] - 2 + place)
    return (None, pulled) if place else (pulled, None)


@push.register
def _(op: Product, *affines: Affine | None) -> Carried:
    known = [(place, affine) for place, affine in enumerate(affines) if affine]
    if any(affine.axis != op.ranks[place] - 2 + place for place, affine in known):
        return AXIS
    if any(affine.has_shift for _, affine in known):
        return WEIGHTED
    if len(known) > 1:
        return CONFLICT
    ((place, affine),) = known
    return (affine.along(max(op.ranks) - 2 + place),)


@pull.register
def _(op: Maximum, affine: Affine) -> Carried:
    axis = _undrop(affine.axis, op.dropped)
    return _stop_maximum(op, affine, axis) or (affine.along(axis),)


@push.register
def _(op: Maximum, affine: Affine) -> Carried:
    return _stop_maximum(op, affine, affine.axis) or (affine.along(_drop(affine.axis, op.dropped)),)


def _stop_maximum(op: Maximum, affine: Affine, axis: int) -> Stop | None:
    if axis in op.axes:
        return AXIS
    return None if affine.is_increasing else reversed_scale(affine)


def _undrop(axis: int, dropped: frozenset[int]) -> int:
    """The input axis that output axis `axis` was before the `dropped` ones vanished."""
    for gone in sorted(dropped):
        axis += gone <= axis
    return axis


def _drop(axis: int, dropped: frozenset[int]) -> int:
    """The output axis that input axis `axis` becomes."""
    return axis - sum(gone < axis for gone in dropped)


@pull.register
@push.register
def _(op: Pad, affine: Affine) -> Carried:
    if affine.axis in op.axes:
        return AXIS
    if op.value is None or np.all(affine.scale * op.value + affine.shift == op.value):
        return (affine,)
    return PADDING


@pull.register
def _(op: Broadcast, affine: Affine) -> Carried:
    axis = affine.axis - op.added
    return AXIS if axis < 0 or axis in op.axes else (affine.along(axis),)


@push.register
def _(op: Broadcast, affine: Affine) -> Carried:
    return AXIS if affine.axis in op.axes else (affine.along(affine.axis + op.added),)
