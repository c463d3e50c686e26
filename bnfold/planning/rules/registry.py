"""The two tables of rules, keyed by the type of the operator."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch

import numpy as np

from bnfold.algebra.affine import Affine, Grid
from bnfold.graph.ops import Identity, Opaque, Rectifier, Reshape, Transpose
from bnfold.graph.outcome import Reason, Stop

Carried = tuple[Affine | None, ...] | Stop
"""One affine for each value on the other side (None: it stays as it is), or what stops it."""

NO_RULE = Stop(Reason.NOT_LINEAR, "it neither absorbs nor carries a per-channel affine")
AXIS = Stop(Reason.AXIS_MISMATCH, "it mixes values along the channel axis")
MIXED = Stop(Reason.MIXED_CHANNELS, "it merges channels that need different affines")
SEVERAL_AXES = Stop(Reason.AXIS_MISMATCH, "the channels lie on several axes of what it reads and makes")
CONFLICT = Stop(Reason.CONFLICT, "its readers need it to change in different ways")


def reversed_scale(affine: Affine) -> Stop:
    """The stop of a negative scale at an operator that carries only positive ones."""
    channel = int(np.argmax(affine.scale < 0))
    return Stop(Reason.NEGATIVE_SCALE, f"it carries positive scales alone, and that of channel {channel} is negative")


CARRY_SEVERAL = (Identity, Rectifier, Reshape, Transpose)
"""Operators whose rules handle maps along several axes. No other carries one."""


def stop_several(op: object, affines: Iterable[Affine | None]) -> Stop | None:
    """The stop of a map along several axes at an operator that does not carry such, if one of these is one."""
    if isinstance(op, Opaque):
        return op.stop
    is_grid = any(isinstance(affine, Grid) for affine in affines)
    return SEVERAL_AXES if is_grid and not isinstance(op, CARRY_SEVERAL) else None


@singledispatch
def pull(op: object, *affines: Affine | None) -> Carried:
    """Carry affines from an operator's outputs to its inputs."""
    return NO_RULE


@singledispatch
def push(op: object, *affines: Affine | None) -> Carried:
    """Carry affines from an operator's inputs to its outputs."""
    return NO_RULE


@singledispatch
def variants(op: object) -> tuple[object, ...]:
    """The equivalent descriptions of one operator that pull differently, best first."""
    return (op,)


@pull.register
@push.register
def _(op: Opaque, *affines: Affine | None) -> Carried:
    return op.stop
