"""The difference between two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from bnfold.algebra.linear import Linear
from bnfold.difference.changes import (
    NodeChange,
    WeightChange,
    find_constant_changes,
    find_node_changes,
    find_output_changes,
    find_weight_changes,
    pair_steps,
)
from bnfold.difference.fates import Fate, explain_kept, find_fates_with
from bnfold.difference.outline import Item, Outline
from bnfold.difference.pairs import Pairs
from bnfold.difference.trace import Trace, Way
from bnfold.frontends.parameters import Tensor
from bnfold.frontends.protocol import OpenModel
from bnfold.graph.outcome import Outcome
from bnfold.planning.plan import Plan

FLOATS = {
    "FLOAT16": np.float16,
    "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
}
"""The types that weights may have, by the names that models give them."""


@dataclass(frozen=True, eq=False)
class Difference:
    """What changed from A to B.

    Attributes:
        fates: what became of each BatchNorm of A.
        said: what bnfold would do with those that are still there.
        gone, new: nodes of A alone and of B alone.
        changed: nodes of both that differ.
        weights: tensors of one name that differ.
        outputs: a sentence for each output that another node makes than before.
        lost, gained: names of tensors of A alone and of B alone.
        found: how many nodes of A are in B.
        is_related: whether the models have anything in common that tells one from the other.
        trace: both models, with the nodes that are one.
    """

    fates: tuple[Fate, ...]
    said: Mapping[Item, Outcome]
    gone: tuple[Item, ...]
    new: tuple[Item, ...]
    changed: tuple[NodeChange, ...]
    weights: tuple[WeightChange, ...]
    outputs: tuple[str, ...]
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    found: int
    is_related: bool
    trace: Trace = field(repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        is_same = not (self.changed or self.weights or self.outputs)
        return is_same and not (self.gone or self.new or self.lost or self.gained)


def compare(
    one: OpenModel,
    other: OpenModel,
    plan: Callable[[OpenModel], Plan[Any, Any]],
    explain: Callable[[OpenModel], Sequence[Outcome]],
    *,
    is_one_kind: bool,
) -> Difference:
    """What changed between two models.

    Args:
        one: A, which is only read, like the other.
        other: B.
        plan: plans folds and merges of A, asked for where BatchNorms are gone and nothing else explains it.
        explain: the outcomes of a plan for B, asked for where BatchNorms are still there.
        is_one_kind: whether both models name operators and attributes alike.
    """
    weights = one.weights(), other.weights()
    mine, theirs = Outline(one.graph), Outline(other.graph)
    pairs = Pairs(mine, theirs)
    pairs.seek()
    trace, fates = find_fates_with(
        pairs, max(map(_unit, weights)), lambda: plan(one), lambda fate: fate.way is Way.UNKNOWN
    )
    pair_steps(trace)
    is_kept = any(fate.way is Way.KEPT for fate in fates)
    said = explain_kept(fates, explain(other)) if is_kept else {}
    gone = tuple(item for item in mine.items if pairs.of(item) is None)
    new = tuple(item for item in theirs.items if pairs.back(item) is None)
    found = len(mine.items) - len(gone)
    changed = (
        *find_node_changes(trace, is_one_kind=is_one_kind),
        *(find_constant_changes(trace, is_strict=False) if is_one_kind else ()),
    )
    difference = Difference(
        tuple(fates),
        said,
        gone,
        new,
        changed,
        tuple(find_weight_changes(*weights)),
        tuple(find_output_changes(trace)),
        tuple(name for name in weights[0] if name not in weights[1]),
        tuple(name for name in weights[1] if name not in weights[0]),
        found,
        _is_related(trace),
        trace,
    )
    if not difference.is_empty:
        return difference
    return replace(difference, changed=tuple(find_constant_changes(trace, is_strict=True)))


def _unit(weights: Mapping[str, Tensor]) -> float:
    """The spacing at 1 of the type that most of the weights have."""
    counts: Counter[str] = Counter()
    for tensor in weights.values():
        name = NAMES.get(tensor.dtype.lower(), tensor.dtype)
        if name in FLOATS and len(tensor.shape) > 0:
            counts[name] += prod(tensor.shape)
    dtype = FLOATS[counts.most_common(1)[0][0]] if counts else np.float32
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


NAMES = {"float16": "FLOAT16", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}


def _is_related(trace: Trace) -> bool:
    """Whether a linear operator of both has the same weights, with factors; without such ones, most of their nodes."""
    linear = [item for item in trace.one.items if isinstance(item.op, Linear) and not item.is_step]
    found = [item for item in linear if trace.pairs.of(item) is not None]
    if linear and any(item.index not in trace.unlike for item in found):
        return True
    named = sum(
        twin is not None and twin.name == item.name for item in trace.one.items for twin in [trace.pairs.of(item)]
    )
    return 2 * named >= max(1, min(len(trace.one.items), len(trace.other.items)))
