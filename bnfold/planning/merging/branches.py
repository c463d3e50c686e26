"""Merges the branches of a sum: each as operators in a row, with the per-channel affines around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import Factor, Linear, Window
from bnfold.algebra.masks import has_all
from bnfold.graph.outcome import Stop
from bnfold.graph.protocol import N, V
from bnfold.planning.cost import stays
from bnfold.planning.draft import Draft
from bnfold.planning.merging.rule import Branch, merge, per_channel
from bnfold.planning.merging.tree import Leaf, Step


def merge_leaves(
    draft: Draft[N, V],
    leaves: Sequence[Leaf[N, V]],
    host: Leaf[N, V],
    constants: Sequence[tuple[Step, ...]] = (),
    sign: float = 1.0,
) -> Linear | Stop | None:
    """The host, times a sign, with other leaves merged into it, and with the shifts of maps behind inner sums."""
    linear = host.stages[0].op
    assert isinstance(linear, Linear)
    own = _factors(draft, host, linear, sign)
    branches = [_factors(draft, leaf, linear, sign) for leaf in leaves if leaf is not host]
    constant = _constant(constants, linear)
    if own is None or constant is None:
        return None
    fitting = [Branch(tuple(factors)) for factors in branches if factors is not None]
    return merge(own[0], fitting, constant) if len(fitting) == len(branches) else None


def _factors(draft: Draft[N, V], leaf: Leaf[N, V], host: Linear, sign: float) -> list[Factor] | None:
    """A branch times a sign, as operators in the order of the data with its affines; None where one does not fit."""
    assert host.axis_out is not None
    assert host.window is not None
    axis, size = host.axis_out, host.out_channels
    stages: list[tuple[N | None, Linear | Window, list[Step]]]
    stages = [(stage.node, stage.op, stage.behind) for stage in leaf.stages]
    front: list[Step] = leaf.front
    if not stages:
        stages, front = [(None, Window.point(len(host.window.taps)), leaf.front)], []
    factors: list[Factor] = []
    stages[0] = (*stages[0][:2], [sign, *stages[0][2]])
    for index, (node, op, behind) in enumerate(stages, start=1):
        maps = behind + front if index == len(stages) else behind
        has_maps = any(isinstance(step, Affine) for step in maps)
        factor = _factor(draft, node, op, size, axis, has_maps=has_maps)
        if factor.linear.axis_out is None or factor.linear.axis_in is None:
            return None
        after = _compose(behind, factor.linear.out_channels, factor.linear.axis_out)
        if after is None:
            return None
        factors.append(_absorb(factor, after))
        size, axis = factor.linear.in_channels, factor.linear.axis_in
    if front:
        before = _compose(front, size, axis)
        if before is None:
            return None
        factors[-1] = factors[-1].absorb_input(before)
    return factors[::-1]


def _factor(draft: Draft[N, V], node: N | None, op: Linear | Window, size: int, axis: int, *, has_maps: bool) -> Factor:
    """A stage as a factor. With maps around it, it would get a new kernel without a merge, too."""
    if isinstance(op, Linear):
        assert node is not None
        return replace(draft.factor(node), stays=stays(op) and not has_maps)
    return Factor(per_channel(op, size, axis), None, 1.0 / max(1, prod(op.taps)))


def _absorb(factor: Factor, after: Affine) -> Factor:
    """A factor with a map behind it, unless the map changes nothing."""
    if not after.has_shift and has_all(after.scale == 1):
        return factor
    return factor.absorb_output(after)


def _constant(constants: Sequence[tuple[Step, ...]], host: Linear) -> Array | None:
    assert host.axis_out is not None
    total = np.zeros(host.out_channels)
    for steps in constants:
        affine = _compose(steps, host.out_channels, host.axis_out)
        if affine is None:
            return None
        total = total + affine.shift
    return total


def _compose(steps: list[Step] | tuple[Step, ...], size: int, axis: int) -> Affine | None:
    """The steps, the last one first, as one map; None where one does not fit."""
    total = Affine.identity(size, axis)
    for step in steps:
        if isinstance(step, float) and step == 1.0:
            continue
        fitted = _fit(step, size, axis)
        if fitted is None:
            return None
        total = total.after(fitted)
    return total if total.is_finite else None


def _fit(step: Step, size: int, axis: int) -> Affine | None:
    """Fit a step to `size` channels of `axis`. A step that is the same everywhere fits any axis."""
    if isinstance(step, float):
        return Affine.of(np.full(size, step), 0.0, axis)
    if (step.size, step.axis) == (size, axis):
        return step
    if step.size and np.all(step.scale == step.scale[0]) and np.all(step.shift == step.shift[0]):
        return step.take(np.zeros(size, np.intp)).along(axis)
    return None
