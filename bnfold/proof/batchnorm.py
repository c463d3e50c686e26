"""BatchNormalization, by the formula: one that vanishes, and one that stays and takes over maps around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine
from bnfold.proof.certificate import Relation
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
    found = [scope.constant(each) for each in node.input[1:5]]
    if len(found) != 4 or any(each is None or each.ndim != 1 for each in found):
        raise ProofError("weights", name, "its parameters are not constant vectors")
    given = [each for each in found if each is not None]
    if len({each.shape for each in given}) != 1:
        raise ProofError("weights", name, "its parameters differ in length")
    return given, float(attribute(node, "epsilon", float(np.float32(1e-5))))


def as_affine(scope: Scope, node: onnx.NodeProto) -> tuple[Affine, Array]:
    """The map of a BatchNormalization, and the size of what its shift is the difference of.

    Shifts of what it reads may add up to little, each rounded at its own size: that of the data, which becomes gamma.
    """
    stored, epsilon = parameters(scope, node)
    gamma, beta, mean, var = (each.astype(np.float64) for each in stored)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + epsilon)
        affine = Affine(scale, beta - mean * scale, 1)
    if not affine.is_finite:
        raise ProofError("weights", first_output(node), "its map is not finite")
    return affine, np.abs(beta) + np.abs(mean * scale) + np.abs(gamma)


def check_batchnorm(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> Worst:
    """That a BatchNormalization which stays is the map that it should be.

    Whatever mean and var are stored now, gamma is the rounded ``scale * sqrt(var + eps)``, and beta the rounded
    ``shift + mean * scale`` of the map.
    """
    name = first_output(node)
    twin = same_node(pair, scope, other, node, ())
    same_input(pair, scope, other, node, 0, twin.input[0])
    relations = pair.relation(scope, node.input[0]), pair.relation(scope, node.output[0])
    stored, epsilon = parameters(other, twin)
    return check_parameters(name, *as_affine(scope, node), relations, stored, epsilon)


def check_parameters(
    name: str,
    affine: Affine,
    size: Array,
    relations: tuple[Relation | None, Relation | None],
    stored: Sequence[npt.NDArray[Any]],
    epsilon: float,
) -> Worst:
    """That parameters are the map of a BatchNorm, with the relations of what it reads and makes.

    Args:
        name: of the node.
        affine: its map in the original.
        size: of what that map's shift is the difference of.
        relations: of what it reads, and of what it makes.
        stored: gamma, beta, mean and var in the result.
        epsilon: in the result.
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
        found = check_rounded(numbers, wanted, slack)
        if isinstance(found, Wrong):
            detail = f"channel {found.index} of its {what} is {found.stored!r} and should be {found.exact!r}"
            raise ProofError("weights", name, detail)
        worst = worst.joined(found)
    return worst


def changed_map(
    name: str, affine: Affine, size: Array, relations: tuple[Relation | None, Relation | None]
) -> tuple[Affine, Array]:
    """The map of a BatchNorm that stays, between what it reads and makes now; and sizes as of `as_affine`."""
    inner, outer = relations
    back = inner.back if inner else None
    forth = outer.forth if outer else None
    if (inner and back is None) or (outer and forth is None):
        raise ProofError("weights", name, "what it reads or makes changed in a way that is not covered")
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
