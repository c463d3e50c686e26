"""The cost policy: a fold or a merge never makes a model cost more than it did.

- A BatchNorm folds wherever that is exact, since its own work ends.
- A plain per-channel operator (Add, Mul, ...) does not fold where it would leave another operator of its own behind: an
  Add for a bias that is missing, or a Pad for a shift in front of a border. An addition right behind a matrix product
  that takes no bias is its bias: it folds where something else folds into that product too, and stays where it would
  only be replaced by another.
- A merge that makes a bias takes at least as many parameters away: a kernel, or per-channel constants.
- A branch does not merge into a kernel that something else reads too, unless that frees as much as a second one takes.
- A chain becomes one operator where the product needs no more multiplications, at any size, and no more parameters.
- A stack costs what its operators did, unless zeros would have to fill up a bias. Zeros that are stored already do not.

Parameters count only where nothing else reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from bnfold.algebra.linear import Factor, Linear
from bnfold.graph.outcome import Reason, Stop

NO_BIAS = Stop(Reason.NO_BIAS, "it has no bias, and one would cost as much as is saved")
PADDING = Stop(Reason.BORDER, "its padding would need an operator of its own, which costs as much as is saved")
SHARED = Stop(Reason.SECOND_USE, "its weight is read elsewhere as well, and a second one would take more memory")
COST = Stop(Reason.NOT_LINEAR, "the product would cost more than its factors")


def stop_fold(op: Linear, absorbed: Linear) -> Stop | None:
    """The reason why `op` should not become `absorbed` for a plain per-channel operator, if there is one."""
    if absorbed.makes_bias and not (op.makes_bias or op.has_bias_slot):
        return NO_BIAS
    if absorbed.fill and not op.fill:
        return PADDING
    return None


def pays_for_bias(host: Linear, merged: Linear, gone: Iterable[Linear], stored: Iterable[int | None]) -> bool:
    """Whether a bias that a merge makes is no larger than the parameters that vanish.

    Args:
        host: the operator that stays.
        merged: what it becomes.
        gone: the linear operators that vanish.
        stored: the elements of the per-channel constants that vanish; None for at least one for each channel.
    """
    if host.has_bias or host.makes_bias or not merged.makes_bias or not all(map(stays, gone)):
        return True
    sizes = list(stored)
    return None in sizes or sum(size or 0 for size in sizes) >= merged.out_channels


def stop_sharing(host: Factor, others: Sequence[Factor]) -> Stop | None:
    """The reason why others cannot merge into a host whose stored kernel stays for another reader, if there is one."""
    freed = sum(size(factor.linear) for factor in others if factor.node is not None and not factor.stays)
    copied = size(host.linear) + (host.linear.out_channels if host.makes_bias else 0)
    return SHARED if host.stays and freed < copied else None


def stop_chain(first: Factor, last: Factor, merged: Linear) -> Stop | None:
    """The reason why a product of operators costs more than its factors, if it does."""
    one, two = first.linear, last.linear
    biases = sum(factor.linear.out_channels for factor in (first, last) if factor.linear.stores_bias)
    bias = merged.out_channels if first.makes_bias or last.makes_bias else 0
    window = two.window
    assert window is not None
    is_shrinking = all(growth <= 0 for growth in window.growth)  # each output of the second costs one of the first
    before = size(two) + (size(one) if is_shrinking else 0)
    is_cheaper = size(merged) <= before and size(merged) + bias <= size(one) + size(two) + biases
    return None if is_cheaper else COST


def size(linear: Linear) -> int:
    """The number of a kernel's elements, which is that of multiplications for each output position."""
    assert linear.window is not None
    return linear.out_channels * (linear.in_channels // linear.groups) * prod(linear.window.taps)


def stays(linear: Linear) -> bool:
    """Whether the stored kernel stays whatever becomes of the operator, and no fold has given it a new one anyway."""
    return linear.is_shared and linear.before is None and linear.after is None
