"""A BatchNorm that an addition takes the place of, since its scale is in front of it.

s (A x) + t  =  A (s x) + t
"""

from __future__ import annotations

from torch import fx

from bnfold.proof.failure import ProofError
from bnfold.proof.lowered import map_of_addition
from bnfold.proof.rounding import UNIT, Worst, Wrong, check_rounded
from bnfold.proof.torch.carriers import insist_on_dtype
from bnfold.proof.torch.linear import BatchNorm
from bnfold.proof.torch.pair import Pair
from bnfold.proof.torch.sides import to_numpy


def find_addition(pair: Pair, node: fx.Node) -> fx.Node | None:
    """The addition that makes the value of a BatchNorm in the result."""
    maker = pair.result.nodes.get(pair.name_of(pair.original.first(node)))
    is_addition = maker is not None and maker.op == "call_function" and pair.result.calls[maker].name == "add"
    return maker if is_addition else None


def check_addition(pair: Pair, node: fx.Node, norm: BatchNorm, addition: fx.Node) -> Worst:
    """Check that an addition of a constant is the map of a BatchNorm, from its new input to its new output."""
    name, key = node.name, pair.original.first(node)
    if pair.result.calls[addition].writes or len(addition.args) != 2 or addition.kwargs:
        raise ProofError("wiring", name, "what stands for it does not only add")
    data, shift = addition.args
    if not pair.same(norm.data, data):
        raise ProofError("wiring", name, "the addition that stands for it reads something else")
    if any(other != key for other in pair.original.keys(node)):
        raise ProofError("wiring", name, "a further output of it is read")
    constant, rank = pair.result.constant(shift), pair.shapes.rank(norm.data)
    if constant is None or rank is None:
        raise ProofError("weights", name, "the addition that stands for it adds no constant, or the rank is not known")
    insist_on_dtype(pair, norm.data, constant.dtype)
    affine, size = map_of_addition(name, *norm.affine, (pair.relation(norm.data), pair.relation_of(key)))
    stored = to_numpy(name, constant)
    if stored.shape != (affine.size, *(1,) * (rank - 1 - affine.axis)):
        raise ProofError("weights", name, f"the constant of its addition has shape {stored.shape}")
    pair.account(node, addition)
    pair.account_weights(shift)
    found = check_rounded(stored.reshape(-1), affine.shift, 16 * UNIT * size)
    if isinstance(found, Wrong):
        raise ProofError("weights", name, f"channel {found.index} is {found.stored!r} and should be {found.exact!r}")
    return found
