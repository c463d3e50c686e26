"""Sums whose addends the data itself weights or picks: products of two computed matrices, and additions by index.

A scale goes through along an axis that is not summed over; a shift does not, since nobody knows how much is added up.

    (r A) (B c) = r (A B) c,    for scales r of the rows of A, and c of the columns of B
"""

from __future__ import annotations

import numpy as np
import onnx

from bnfold.algebra.affine import Affine, align
from bnfold.proof.certificate import Relation
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import attribute
from bnfold.proof.models import Scope, first_output
from bnfold.proof.pair import Pair
from bnfold.proof.rounding import UNIT

SCATTERS = frozenset({"ScatterElements", "ScatterND"})

WEIGHTED = SCATTERS | {"MatMul"}

EXPANDING = frozenset({"Expand", "Identity", "Reshape", "Unsqueeze"})
"""Operators that make nothing but what they read."""


def check_weighted(pair: Pair, scope: Scope, node: onnx.NodeProto) -> None:
    """Check that the scales of a sum's output are those of its inputs, along the same axes."""
    name = first_output(node)
    relation = pair.relation(scope, node.output[0])
    for side in ("pulled", "pushed"):
        read = [_along_output(pair, scope, node, index, side) for index in _data(pair, scope, node)]
        made = _scales(name, relation, side)
        maps = align(*(affine for affine in (*read, made) if affine is not None)) if any((*read, made)) else ()
        wanted = np.ones(maps[0].size if maps else 1)
        for affine in maps[: len(maps) - (made is not None)]:
            wanted = wanted * affine.scale
        actual = maps[-1].scale if made is not None else np.ones(wanted.shape)
        if not (np.abs(actual - wanted) <= 4 * UNIT * np.abs(wanted)).all():
            raise ProofError("carriers", name, "the scale of its output is not that of what it adds up")


def _data(pair: Pair, scope: Scope, node: onnx.NodeProto) -> tuple[int, ...]:
    """The inputs whose scales the output has, once it is known that no other one counts."""
    if node.op_type == "MatMul":
        return (0, 1)
    name = first_output(node)
    if attribute(node, "reduction", "none") != "add" or not _is_zero(scope, node.input[0]):
        raise ProofError("carriers", name, "it does not add to zeros")
    if pair.relation(scope, node.input[0]) or pair.relation(scope, node.input[1]):
        raise ProofError("carriers", name, "what it adds to, or its indices, changed")
    return (2,)


def _is_zero(scope: Scope, value: str) -> bool:
    """Whether a value is zero everywhere, whatever its shape."""
    while True:
        constant = scope.constant(value)
        if constant is not None:
            return not np.any(constant)
        owner = scope.owner(value)
        maker = owner.makers.get(value) if owner is not None else None
        if maker is None or maker.domain not in ("", "ai.onnx"):
            return False
        if maker.op_type == "ConstantOfShape":
            content = attribute(maker, "value", None)
            return content is None or not np.any(onnx.numpy_helper.to_array(content))
        if maker.op_type not in EXPANDING:
            return False
        value = maker.input[0]


def _scales(name: str, relation: Relation | None, side: str) -> Affine | None:
    """One of the maps of a relation, which must be a scale alone."""
    affine: Affine | None = getattr(relation, side) if relation else None
    if affine is not None and affine.has_shift:
        raise ProofError("carriers", name, "a shift does not go through it")
    return affine


def _along_output(pair: Pair, scope: Scope, node: onnx.NodeProto, index: int, side: str) -> Affine | None:
    """How an input is scaled, along the axis of the output on which that lies."""
    name, value = first_output(node), node.input[index]
    affine = _scales(name, pair.relation(scope, value), side)
    if affine is None:
        return None
    if node.op_type in SCATTERS:
        if not _is_kept(pair, scope, node, affine.axis):
            raise ProofError("carriers", name, "it was scaled along an axis along which it is added up")
        return affine
    ranks = [pair.rank(scope, read) for read in node.input]
    if None in ranks or min(rank or 0 for rank in ranks) < 2:
        raise ProofError("carriers", name, "the ranks of its inputs do not follow from the model's inputs")
    known = [rank or 0 for rank in ranks]
    if affine.axis != known[index] - 2 + index:  # a row of the first, a column of the second
        raise ProofError("carriers", name, f"its input {index} was scaled along axis {affine.axis}")
    return affine.along(max(known) - 2 + index)


def _is_kept(pair: Pair, scope: Scope, node: onnx.NodeProto, axis: int) -> bool:
    """Whether an addition by index leaves the places along an axis where they are."""
    if node.op_type == "ScatterND":
        indices = pair.shape(scope, node.input[1])
        count = None if not indices else indices[-1]
        return count is not None and indices is not None and len(indices) == count + 1 and axis >= count
    along, rank = int(attribute(node, "axis", 0)), pair.rank(scope, node.input[1])
    return axis < (rank or 0) and axis != (along + rank if along < 0 and rank else along)
