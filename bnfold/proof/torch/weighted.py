"""Additions by index to zeros: a scale goes through along an axis that is not added up, a shift does not.

add(0, i, c x) = c add(0, i, x),    for scales c along any axis but that of the indices
"""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from bnfold.proof.failure import ProofError
from bnfold.proof.torch.pair import Pair

ADDED = {"index_add": "source", "scatter_add": "src", "scatter_reduce": "src"}
"""Additions by index, and the argument that each adds."""

ZEROS = frozenset({"new_zeros", "zeros", "zeros_like"})


def check_added(pair: Pair, node: fx.Node) -> None:
    """Check that the output of an addition by index is scaled as what it adds, along the same axis."""
    name, call = node.name, pair.original.calls[node]
    source, start, dim = call.get(ADDED[call.name]), call.get("input"), call.get("dim")
    if call.name == "scatter_reduce" and call.get("reduce") != "sum":
        raise ProofError("carriers", name, "it does not add")
    if not _is_zero(pair, start):
        raise ProofError("carriers", name, "it does not add to zeros")
    if any(pair.relation(read) for read in node.all_input_nodes if read is not source):
        raise ProofError("carriers", name, "what it adds to, or its indices, changed")
    read, made = pair.relation(source), pair.relation(node)
    values = [value for value in (start, source) if isinstance(value, fx.Node)]
    shapes = [shape for both in pair.shapes.shapes(*values) for shape in both] if len(values) == 2 else []
    if read is None or made is None or not shapes:
        raise ProofError("carriers", name, "its input or output changed in a way that is not covered")
    rank = len(shapes[0])
    if any(len(shape) != rank for shape in shapes) or not isinstance(dim, int):
        raise ProofError("carriers", name, "the axes of what it adds are not known")
    for one, other in ((read.pulled, made.pulled), (read.pushed, made.pushed)):
        if one is None and other is None:
            continue
        if one is None or other is None or one.has_shift or other.has_shift or one.places != other.places:
            raise ProofError("carriers", name, "its output is not scaled as what it adds, or a shift went through")
        for axis, size in one.places:
            if axis == dim % rank or any(shape[axis] != size for shape in shapes):
                raise ProofError("carriers", name, "it was scaled along an axis along which it is added up")
        if not np.array_equal(one.scale, other.scale):
            raise ProofError("carriers", name, "the scale of its output is not that of what it adds")


def _is_zero(pair: Pair, start: object) -> bool:
    constant = pair.original.constant(start)
    if constant is not None:
        return not bool(torch.any(constant != 0))
    return isinstance(start, fx.Node) and start in pair.original.calls and pair.original.calls[start].name in ZEROS
