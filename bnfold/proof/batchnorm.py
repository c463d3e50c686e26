"""BatchNormalization, by its formula: one that vanishes, or one that stays and takes over the maps around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine
from bnfold.proof.certificate import Relation
from bnfold.proof.computed import compute
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import attribute
from bnfold.proof.models import Scope, first_output
from bnfold.proof.pair import Pair
from bnfold.proof.rounding import UNIT, Worst, Wrong, check_rounded
from bnfold.proof.wiring import same_input, same_node

Array = npt.NDArray[np.float64]


def parameters(scope: Scope, node: onnx.NodeProto) -> tuple[list[npt.NDArray[Any]], float]:
    """gamma, beta, mean and var as they are stored, and epsilon."""
    name = first_output(node)
    if attribute(node, "training_mode", 0) or attribute(node, "spatial", 1) == 0:
        raise ProofError("weights", name, "it normalises by its data, or each position for itself")
    if scope.version < 7 and not attribute(node, "is_test", 0):
        raise ProofError("weights", name, "it normalises by its data")
    if any(node.output[1:]):
        raise ProofError("weights", name, "it makes statistics of its data")
    constants = [scope.constant(value) for value in node.input[1:5]]
    if len(constants) != 4 or any(constant is None or constant.ndim != 1 for constant in constants):
        raise ProofError("weights", name, "its parameters are not constant vectors")
    stored = [constant for constant in constants if constant is not None]
    if len({array.shape for array in stored}) != 1:
        raise ProofError("weights", name, "its parameters differ in length")
    return stored, float(attribute(node, "epsilon", float(np.float32(1e-5))))


def as_affine(scope: Scope, node: onnx.NodeProto) -> tuple[Affine, Array]:
    """The map of a BatchNormalization, and the magnitude of the terms that its shift is computed from.

    A shift of the input may nearly cancel, but it was rounded at the magnitude of the data, which becomes gamma.
    """
    stored, epsilon = parameters(scope, node)
    gamma, beta, mean, var = (parameter.astype(np.float64) for parameter in stored)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + epsilon)
        affine = Affine(scale, beta - mean * scale, 1)
    if not affine.is_finite:
        raise ProofError("weights", first_output(node), "its map is not finite")
    return affine, np.abs(beta) + np.abs(mean * scale) + np.abs(gamma)


def check_batchnorm(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> Worst:
    """Check that a BatchNormalization which stays is the map that it should be.

    Whatever mean and var are stored now, gamma is the rounded ``scale * sqrt(var + eps)``, and beta the rounded
    ``shift + mean * scale`` of the map.
    """
    name = first_output(node)
    twin = same_node(pair, scope, other, node, ())
    same_input(pair, scope, other, node, 0, twin.input[0])
    relations = pair.relation(scope, node.input[0]), pair.relation(scope, node.output[0])
    stored, epsilon = parameters(other, twin)
    return check_parameters(name, *as_affine(scope, node), relations, stored, epsilon)


def check_computed(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> Worst:
    """Check that a constant stands for what a BatchNormalization makes of constants alone, rounded once."""
    name = first_output(node)
    if any(scope.readers.get(value, 0) for value in node.output[1:] if value) or pair.relation(scope, name):
        raise ProofError("weights", name, "something else than its result is read, or its result changed")
    computed = compute(node, scope.version, scope.constant)
    stored = other.constant(pair.name(scope, name))
    if computed is None or stored is None:
        raise ProofError("weights", name, "it is gone, and what it reads or what stands for it is not constant")
    exact, size, kind = computed
    if stored.shape != exact.shape or stored.dtype != kind:
        raise ProofError("weights", name, f"what stands for it has shape {stored.shape} and type {stored.dtype}")
    outcome = check_rounded(stored, exact, 16 * UNIT * size)
    if isinstance(outcome, Wrong):
        detail = f"number {outcome.index} of its result is {outcome.stored!r} and should be {outcome.exact!r}"
        raise ProofError("weights", name, detail)
    return outcome


def check_parameters(
    name: str,
    affine: Affine,
    size: Array,
    relations: tuple[Relation | None, Relation | None],
    stored: Sequence[npt.NDArray[Any]],
    epsilon: float,
) -> Worst:
    """Check that parameters are the map of a BatchNorm, given the relations of its input and output.

    Args:
        name: the name of the node.
        affine: its map in the original.
        size: the magnitude of the terms that the map's shift is computed from.
        relations: the relations of its input and of its output.
        stored: gamma, beta, mean and var in the result.
        epsilon: epsilon in the result.
    """
    affine, size = changed_map(name, affine, size, relations)
    gamma, beta, mean, var = stored
    if gamma.size != affine.size:
        raise ProofError("weights", name, f"it has {gamma.size} channels, not {affine.size}")
    wide_mean, wide_var = mean.astype(np.float64), var.astype(np.float64)
    with np.errstate(all="ignore"):
        deviation = np.sqrt(wide_var + epsilon)
        exact = affine.scale * deviation, affine.shift + wide_mean * affine.scale
        error = 16 * UNIT * np.abs(exact[0]), 16 * UNIT * (size + np.abs(wide_mean * affine.scale))
    if not (np.isfinite(deviation) & (deviation > 0)).all() or not np.isfinite(wide_mean).all():
        raise ProofError("weights", name, "its statistics are not finite")
    worst = Worst()
    for what, numbers, wanted, slack in zip(("gamma", "beta"), (gamma, beta), exact, error, strict=True):
        outcome = check_rounded(numbers, wanted, slack)
        if isinstance(outcome, Wrong):
            detail = f"channel {outcome.index} of its {what} is {outcome.stored!r} and should be {outcome.exact!r}"
            raise ProofError("weights", name, detail)
        worst = worst.joined(outcome)
    return worst


def changed_map(
    name: str, affine: Affine, size: Array, relations: tuple[Relation | None, Relation | None]
) -> tuple[Affine, Array]:
    """The map of a BatchNorm that stays, from its new input to its new output; and its size, as in `as_affine`."""
    inner, outer = relations
    back = inner.back if inner else None
    forth = outer.forth if outer else None
    if (inner and back is None) or (outer and forth is None):
        raise ProofError("weights", name, "its input or output changed in a way that is not covered")
    if back is not None:
        size = np.abs(affine.scale * _fits(name, back, affine).shift) + size
        affine = affine.after(back)
    if forth is not None:
        size = np.abs(_fits(name, forth, affine).scale) * size + np.abs(forth.shift)
        affine = forth.after(affine)
    return affine, size


def _fits(name: str, affine: Affine, other: Affine) -> Affine:
    if (affine.axis, affine.size) != (other.axis, other.size):
        raise ProofError("weights", name, "the map that it takes over lies along another axis, or has other channels")
    return affine
