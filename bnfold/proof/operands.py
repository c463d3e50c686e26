"""Constants that a node reads as data and that took in an affine, checked against the law of the node.

Add, Sub, Sum:  s * (x + c) + t  =  (s * x + t_x)  +  c',    c' = s * c + (t - t_x)
Where:          s * Where(m, x, c) + t  =  Where(m, s * x + t, c'),    c' = s * c + t
Gather:         s * Gather(c, i) + t  =  Gather(c', i),    c' = s * c + t along the same axis of the table
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import attribute
from bnfold.proof.models import Scope, first_output
from bnfold.proof.pair import Pair
from bnfold.proof.rounding import UNIT, Array, Worst, Wrong, check_rounded
from bnfold.proof.wiring import counterpart, same_input, same_node

AnyArray = npt.NDArray[Any]

SUMS = frozenset({"Add", "Sub", "Sum"})


def find_operand(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> int | None:
    """The index of a node's input that is another constant in the result; None where all are the same."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in (*SUMS, "Where", "Gather") or scope.version < 7:
        return None
    twin = counterpart(pair, scope, other, node)
    places = {"Where": (1, 2), "Gather": (0,)}.get(node.op_type, range(len(node.input)))
    for index in places:
        if len(twin.input) == len(node.input) and twin.input[index] != pair.name(scope, node.input[index]):
            return index if scope.constant(node.input[index]) is not None else None
    return None


def check_operand(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, index: int) -> Worst:
    """Check a node whose constant input `index` changed."""
    name = first_output(node)
    twin = same_node(pair, scope, other, node, ())
    if len(twin.input) != len(node.input):
        raise ProofError("wiring", name, f"it reads {len(twin.input)} values, not {len(node.input)}")
    for place in range(len(node.input)):
        if place != index:
            same_input(pair, scope, other, node, place, twin.input[place])
    relation = pair.relation(scope, node.output[0])
    old, new = scope.constant(node.input[index]), other.constant(twin.input[index])
    if relation is None or relation.pulled is None or relation.pushed is not None:
        raise ProofError(
            "weights", name, "a constant that it reads differs, and its output does not change accordingly"
        )
    if old is None or new is None or old.dtype != new.dtype or old.dtype.kind in "iubOSUc":
        raise ProofError("weights", name, "a constant that it reads is of another type")
    if node.op_type == "Gather":
        affine, rank = _along_table(pair, scope, node, relation.pulled, old.ndim), old.ndim
    else:
        affine, rank = _of_operands(pair, scope, node, index, relation.pulled)
    _insist_on_shape(name, old, new, affine, rank)
    wide = old.astype(np.float64).reshape((1,) * (rank - old.ndim) + old.shape)
    exact: Array = affine(wide)
    error = 8 * UNIT * Affine(np.abs(affine.scale), np.abs(affine.shift), affine.axis)(np.abs(wide))
    outcome = check_rounded(new.reshape(exact.shape), exact, error)
    if isinstance(outcome, Wrong):
        detail = (
            f"element {outcome.index} of a constant that it reads is {outcome.stored!r} and should be {outcome.exact!r}"
        )
        raise ProofError("weights", name, detail)
    return outcome


def _insist_on_shape(name: str, old: AnyArray, new: AnyArray, affine: Affine, rank: int) -> None:
    """Check that a constant kept its shape, or that one number became one entry for each channel."""
    sizes = [1] * (rank - old.ndim) + list(old.shape)
    is_number = set(sizes) <= {1}
    if affine.axis >= rank or (sizes[affine.axis] != affine.size and not is_number):
        raise ProofError("weights", name, "a constant that it reads has no such channels")
    sizes[affine.axis] = affine.size
    if new.ndim > rank or [1] * (rank - new.ndim) + list(new.shape) != sizes:
        raise ProofError("weights", name, f"a constant that it reads has shape {new.shape}")


def _along_table(pair: Pair, scope: Scope, node: onnx.NodeProto, outer: Affine, rank: int) -> Affine:
    """The map on the output of a Gather, along the axis of its table."""
    name, indices = first_output(node), pair.rank(scope, node.input[1])
    axis = int(attribute(node, "axis", 0)) % rank
    if indices is None or pair.relation(scope, node.input[1]):
        raise ProofError("weights", name, "the rank of its indices does not follow from the model's inputs")
    if axis <= outer.axis < axis + indices:
        raise ProofError("weights", name, "its output changed along an axis that is looked up")
    return outer if outer.axis < axis else outer.along(outer.axis - indices + 1)


def _of_operands(pair: Pair, scope: Scope, node: onnx.NodeProto, index: int, outer: Affine) -> tuple[Affine, int]:
    """The map that the constant of a sum or a selection should take in, and the rank of the node's output."""
    name, shape = first_output(node), pair.shape(scope, node.output[0])
    if shape is None or outer.axis >= len(shape) or shape[outer.axis] != outer.size:
        raise ProofError("weights", name, "the shape of its output does not follow from the model's inputs")
    if node.op_type == "Where" and pair.relation(scope, node.input[0]):
        raise ProofError("weights", name, "its condition changed")
    rest = outer.shift
    signs = {place: -1 if node.op_type == "Sub" and place == 1 else 1 for place in range(len(node.input))}
    for place, value in enumerate(node.input):
        if place == index or (node.op_type == "Where" and place == 0):
            continue
        inner = _aligned(pair, scope, name, value, outer, len(shape))
        if not np.array_equal(inner.scale, outer.scale):
            raise ProofError("weights", name, f"its input {place} has another scale than its output")
        if node.op_type != "Where":
            rest = rest - signs[place] * inner.shift
        elif not np.array_equal(inner.shift, outer.shift):
            raise ProofError("weights", name, f"its input {place} has another shift than its output")
    return Affine(outer.scale, signs[index] * rest if node.op_type != "Where" else rest, outer.axis), len(shape)


def _aligned(pair: Pair, scope: Scope, name: str, value: str, outer: Affine, rank: int) -> Affine:
    """How an input changed, along the axis of the output. The input has all channels."""
    relation = pair.relation(scope, value)
    if relation is None:
        return Affine.identity(outer.size, outer.axis)
    known = pair.rank(scope, value)
    if relation.pulled is None or relation.pushed is not None or known is None:
        raise ProofError("weights", name, f"{value!r} changed in a way that is not covered")
    inner = relation.pulled.along(relation.pulled.axis + rank - known)
    if (inner.axis, inner.size) != (outer.axis, outer.size):
        raise ProofError("weights", name, f"{value!r} changed along another axis")
    return inner
