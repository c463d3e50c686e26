"""What changed between two models besides their BatchNorms: nodes, attributes, weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bnfold.algebra.linear import Linear
from bnfold.difference.outline import Item, Outline
from bnfold.difference.trace import Trace, Way, is_commutative
from bnfold.frontends.parameters import Tensor
from bnfold.frontends.reading import AnyArray


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
    """What it reads from another value than before, where that value is in both models."""
    one, other = trace.one, trace.other
    if len(item.inputs) != len(twin.inputs):
        return
    read = [other.base(value) for value in twin.inputs]
    for slot, value in enumerate(item.inputs):
        known = trace.same.get(one.base(value))
        if known is None or known.value == read[slot] or (is_commutative(item) and known.value in read):
            continue
        yield f"reads {_maker(other, read[slot])} instead of {_maker(other, known.value)}"


def _maker(outline: Outline, value: int) -> str:
    maker = outline.makers.get(value)
    return outline.title(value) if maker is None else maker.name


def find_constant_changes(trace: Trace, *, is_strict: bool) -> Iterator[NodeChange]:
    """The nodes of both models that read other constants.

    Args:
        trace: the models.
        is_strict: compare every bit, of linear operators and per-channel affines as well; else the weights of those
            count as changed only where neither factors nor a BatchNorm explain them.
    """
    for item in trace.one.items:
        twin = trace.pairs.of(item)
        if twin is None:
            continue
        has_weights = item.affine is not None or isinstance(item.op, Linear)
        if not is_strict and has_weights:
            if item.index in trace.unlike:
                yield NodeChange(item, twin, ("its weights are not the old ones, nor these with factors",))
            continue
        mine, theirs = trace.one.graph.held(item.native), trace.other.graph.held(twin.native)
        if len(mine) != len(theirs) or not all(map(_is_same, mine, theirs)):
            yield NodeChange(item, twin, ("it reads other constants",))


def _is_same(one: AnyArray, other: AnyArray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(one.tobytes() == other.tobytes())


def find_output_changes(trace: Trace) -> Iterator[str]:
    """A sentence for each output of the model that another node makes than before."""
    one, other = trace.one, trace.other
    for value, same in trace.interface(one.results, other.results):
        mine, theirs = one.makers.get(one.base(value)), other.makers.get(other.base(same))
        expected = None if mine is None else trace.pairs.of(mine)
        known = None if theirs is None else trace.pairs.back(theirs)
        is_other = mine is not None and theirs is not None and expected is not theirs
        if is_other and (expected is not None or known is not None):
            assert theirs is not None
            assert mine is not None
            was = mine.name if expected is None or expected.name == mine.name else f"{mine.name} ({expected.name} now)"
            yield f"output {one.title(value)!r} was made of what {was} makes, and is made of what {theirs.name} makes"
        elif (mine is None) != (theirs is None):
            yield f"output {one.title(value)!r} {'was' if mine is None else 'is'} an input of the model, or a constant"


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
