"""What changed between two models besides their BatchNorms: nodes, attributes, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bnfold.difference.outline import Item
from bnfold.difference.trace import Trace, Way
from bnfold.frontends.parameters import Tensor


@dataclass(frozen=True, eq=False)
class NodeChange:
    """A node of both models that is not the same in both.

    Attributes:
        item, twin: the node in A and in B.
        sentences: one for each thing that differs.
    """

    item: Item
    twin: Item
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class WeightChange:
    """A tensor that both models store under one name.

    Attributes:
        name: its name.
        largest: the largest difference over the largest value in A; None where the shapes differ.
        detail: a sentence about shape and type, where they differ.
    """

    name: str
    largest: float | None
    detail: str = ""


def pair_steps(trace: Trace) -> None:
    """Pair the steps that stay: those that are claimed to, and reshapes in the same place of a chain."""
    pairs = trace.pairs
    weak = [(index, [claim]) for index, claim in trace.weak.items() if index not in trace.claims]
    for index, claims in [*trace.claims.items(), *weak]:
        item = trace.one.items[index]
        for claim in claims:
            if claim.way is Way.KEPT and pairs.of(item) is None and pairs.back(claim.into[0]) is None:
                pairs.add(item, claim.into[0])
    for item in trace.one.items:
        twin = pairs.of(item)
        if twin is None or item.is_step or len(item.inputs) != len(twin.inputs):
            continue
        for value, same in zip(item.inputs, twin.inputs, strict=True):
            mine = [step for step in trace.one.steps(value) if step.affine is None and pairs.of(step) is None]
            theirs = [step for step in trace.other.steps(same) if step.affine is None and pairs.back(step) is None]
            if [step.key for step in mine] == [step.key for step in theirs]:
                for step, other in zip(mine, theirs, strict=True):
                    pairs.add(step, other)


def find_node_changes(trace: Trace, *, is_one_kind: bool) -> Iterator[NodeChange]:
    """The nodes of both models whose operator, attributes or sources differ."""
    for item in trace.one.items:
        twin = trace.pairs.of(item)
        if twin is not None and (sentences := tuple(_changes(trace, item, twin, is_one_kind=is_one_kind))):
            yield NodeChange(item, twin, sentences)


def _changes(trace: Trace, item: Item, twin: Item, *, is_one_kind: bool) -> Iterator[str]:
    if is_one_kind and item.operator != twin.operator:
        yield f"{item.operator} became {twin.operator}"
    elif is_one_kind:
        mine, theirs = trace.one.graph.attributes(item.native), trace.other.graph.attributes(twin.native)
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                yield f"{name}: {mine.get(name, 'not given')} became {theirs.get(name, 'not given')}"
    yield from _sources(trace, item, twin)


def _sources(trace: Trace, item: Item, twin: Item) -> Iterator[str]:
    """What it reads from another node than before, where both nodes are in both models."""
    if len(item.inputs) != len(twin.inputs):
        return
    makers = []
    for value, same in zip(item.inputs, twin.inputs, strict=True):
        mine = trace.one.makers.get(trace.one.base(value))
        theirs = trace.other.makers.get(trace.other.base(same))
        makers.append((mine, theirs))
    reads = {maker for _, maker in makers}
    for mine, theirs in makers:
        if mine is None or theirs is None:
            continue
        expected = trace.pairs.of(mine)
        if expected is not None and expected not in reads and trace.pairs.back(theirs) is not None:
            yield f"reads {theirs.name} instead of {expected.name}"


def find_weight_changes(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Iterator[WeightChange]:
    """The tensors under one name in both models that do not hold the same."""
    for name, one in mine.items():
        other = theirs.get(name)
        if other is None:
            continue
        detail = [] if one.shape == other.shape else [f"shape {_shape(one)} became {_shape(other)}"]
        detail += [] if one.dtype == other.dtype else [f"{one.dtype} became {other.dtype}"]
        largest = _difference(one, other) if one.shape == other.shape else None
        if detail or largest:
            yield WeightChange(name, largest, ", ".join(detail))


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest value; infinite where the values are no numbers that compare."""
    first, second = np.asarray(one.read()), np.asarray(other.read())
    if first.dtype == second.dtype and first.tobytes() == second.tobytes():
        return 0.0
    if first.dtype.kind in "OSU" or second.dtype.kind in "OSU":
        return float("inf")
    try:
        wide, narrow = first.astype(np.float64), second.astype(np.float64)
    except (TypeError, ValueError):
        return float("inf")
    with np.errstate(invalid="ignore", over="ignore"):
        difference = float(np.abs(wide - narrow).max(initial=0.0))
        size = float(np.abs(wide).max(initial=0.0))
    if not difference:
        return 0.0
    return difference / size if size and np.isfinite(difference) else float("inf")
