"""Where each BatchNorm of a model went in another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.algebra.linear import Linear
from bnfold.difference import kernels
from bnfold.difference.chains import Link, agree
from bnfold.difference.outline import Item, Kernel, Outline
from bnfold.difference.pairs import Pairs
from bnfold.difference.trace import Claim, Merger, Trace, Way
from bnfold.graph.outcome import Fold, Outcome, Refusal
from bnfold.planning.plan import Join, Plan


@dataclass(frozen=True, eq=False)
class Fate:
    """What became of one BatchNorm of A.

    Attributes:
        batchnorm: the node of A.
        way: how it is done without.
        into: the nodes of B in its place.
        direction: of a fold into a linear operator.
        others: nodes of B that its numbers would fit as well, since they are the same.
        detail: a sentence for people.
    """

    batchnorm: Item
    way: Way
    into: tuple[Item, ...] = ()
    direction: str | None = None
    others: tuple[Item, ...] = ()
    detail: str = ""


ORDER = (Way.KEPT, Way.MERGED, Way.FOLDED, Way.DECOMPOSED, Way.DEPTHWISE, Way.IDENTITY)


def find_fates(trace: Trace) -> list[Fate]:
    """What became of each BatchNorm of A, as far as a trace tells."""
    return [_fate(trace, item) for item in trace.one.items if item.is_batchnorm]


def _fate(trace: Trace, item: Item) -> Fate:
    claims = trace.claims.get(item.index, [])
    twin = trace.pairs.of(item)
    if not claims and twin is None and item.index in trace.weak:
        twin = trace.weak[item.index].into[0]
    if not claims and twin is not None:
        return _kept(trace, item, twin)
    if not claims:
        return _without_trace(trace, item)
    ways = sorted({claim.way for claim in claims}, key=ORDER.index)
    if len(claims) == 1 or len(ways) == 1:
        fate = _joined(item, claims)
        return replace(fate, detail=_describe(fate, trace))
    into = tuple(dict.fromkeys(each for claim in claims for each in claim.into))
    detail = f"its readers tell different things: {', '.join(ways)}"
    return Fate(item, Way.UNKNOWN if Way.IDENTITY in ways else ways[0], into, None, (), detail)


def _joined(item: Item, claims: Sequence[Claim]) -> Fate:
    into = tuple(dict.fromkeys(each for claim in claims for each in claim.into))
    others = tuple(dict.fromkeys(each for claim in claims for each in claim.others if each not in into))
    directions = {claim.direction for claim in claims}
    return Fate(item, claims[0].way, into, directions.pop() if len(directions) == 1 else "both", others)


def _describe(fate: Fate, trace: Trace) -> str:
    if fate.way is Way.IDENTITY:
        return "to the rounding of its type it changes nothing, and it is gone"
    if fate.way is Way.KEPT:
        return _changed(trace, fate.batchnorm, fate.into[0])
    if fate.others:
        names = ", ".join(other.name for other in fate.others)
        return f"its numbers would fit {names} as well: nothing tells them apart"
    return ""


def _kept(trace: Trace, item: Item, twin: Item) -> Fate:
    return Fate(item, Way.KEPT, (twin,), detail=_changed(trace, item, twin))


def _changed(trace: Trace, item: Item, twin: Item) -> str:
    if item.affine is None or twin.affine is None:
        return ""
    return "" if agree(Link.of(item), Link.of(twin), trace.unit) else "with other parameters"


def _without_trace(trace: Trace, item: Item) -> Fate:
    one = trace.one
    if item.index in one.unread:
        return Fate(item, Way.UNREAD, detail="no output of the model depends on it, and it is gone")
    if not any(output in one.varying for output in item.outputs):
        found = _constant(trace, item)
        if found is not None:
            return found
    return Fate(item, Way.UNKNOWN, detail=_why_unknown(trace, item))


def _why_unknown(trace: Trace, item: Item) -> str:
    readers = [reader for output in item.outputs for reader, _ in trace.one.ends.get(trace.one.base(output), ())]
    paired = [trace.pairs.of(reader) for reader in readers]
    if not any(paired):
        return "no node that reads it is found in the other model"
    return "neither the weights nor the nodes around it in the other model have its numbers"


def _constant(trace: Trace, item: Item) -> Fate | None:
    """The fate of a BatchNorm of constants, if the other model stores what it makes, or what is made of that."""
    one, other = trace.one, trace.other
    front, seen = list(item.outputs), set[int]()
    while front:
        value = front.pop()
        for reader, _ in one.readers.get(value, ()):
            if not any(output in one.varying for output in reader.outputs):
                if reader.index not in seen:
                    seen.add(reader.index)
                    front.extend(reader.outputs)
                continue
            twin = trace.pairs.of(reader)
            if twin is None:
                continue
            stored = _stored_inputs(other, twin)
            if stored or len(twin.inputs) < len(reader.inputs):
                exact = _value(one, item)
                is_direct = value in item.outputs and exact is not None
                matches = is_direct and any(_is_same(exact, array, trace.unit) for array in stored)
                if matches or not is_direct:
                    detail = f"{twin.name} reads a constant there" + ("" if matches else ", whose value is not checked")
                    return Fate(item, Way.CONSTANT, (twin,), detail=detail)
    return None


def _stored_inputs(outline: Outline, item: Item) -> list[Any]:
    """The constants that a node reads, as data or otherwise."""
    found = [outline.constant(value) for value in item.inputs if value not in outline.varying]
    return [*(array for array in found if array is not None), *outline.graph.held(item.native)]


def _value(outline: Outline, item: Item) -> Any:
    """What a BatchNorm of a constant makes."""
    array = outline.constant(item.inputs[0]) if item.inputs else None
    if array is None or item.affine is None:
        return None
    return item.affine(np.asarray(array, np.float64))


def _is_same(exact: Any, array: Any, unit: float) -> bool:
    if array.size != exact.size or array.dtype.kind not in "fV":
        return False
    wide = np.asarray(array, np.float64).reshape(exact.shape)
    return bool(np.all(np.abs(wide - exact) <= 16 * unit * max(float(np.abs(exact).max(initial=0.0)), 1e-30)))


def find_mergers(trace: Trace, plan: Plan[Any, Any]) -> Iterator[Merger]:
    """Operators of A that a plan makes one of, where B has that one.

    The weights of the one operator are computed from those of A, so that a claim rests on numbers alone.
    """
    one = trace.one
    items = {item.native: item for item in one.items}
    folds = [outcome for outcome in plan.outcomes if isinstance(outcome, Fold)]
    joins = [step for step in plan.steps if isinstance(step, Join)]
    hosts = {node for join in joins for node in join.gone}
    for join in joins:
        if join.host in hosts:
            continue
        absorbed = plan.absorbed.get(join.host)
        if not isinstance(absorbed, Linear):
            continue
        weights, bias = one.graph.solved(join.host, replace(absorbed, after=None))
        found = _find_merged(trace, items[join.source], absorbed, weights, bias)
        if found is None:
            continue
        group = _group(join, joins, items)
        root = one.graph.outputs(join.root)[0]
        place = max(item.index for item in group)
        names = {one.graph.name(join.host)}
        steps = tuple(
            item
            for item in one.items
            if item.affine is not None
            and item.index < place
            and any(fold.batchnorm == item.name and fold.scope == item.scope and names & {*fold.into} for fold in folds)
        )
        yield Merger(one.number(root), group, *found, steps)


def _group(join: Join[Any, Any], joins: Sequence[Join[Any, Any]], items: Mapping[Any, Item]) -> tuple[Item, ...]:
    """All operators that end up in the host of a merge."""
    members = {join.host, *join.gone}
    for earlier in joins:
        if earlier.host in members:
            members.update(earlier.gone)
    return tuple(items[node] for node in members if node in items and not items[node].is_step)


def _find_merged(trace: Trace, source: Item, absorbed: Linear, weights: Any, bias: Any) -> tuple[Item, Link] | None:
    """The operator of B that reads what a merge reads, and has its weights, with factors."""
    one, other = trace.one, trace.other
    known = trace.same.get(one.base(source.inputs[0]))
    shaped = np.asarray(weights, np.float64).reshape(*weights.shape[:3], -1)
    vector = np.zeros(shaped.shape[0] * shaped.shape[1]) if bias is None else np.asarray(bias, np.float64)
    mine = Kernel(shaped, vector, trace.unit, 0.0)
    candidates: Iterable[Item] = other.items
    if known is not None:
        candidates = [item for item, _ in other.ends.get(known.value, ())]
    for item in candidates:
        if not isinstance(item.op, Linear) or item.is_step:
            continue
        theirs = other.kernel(item)
        if theirs is None or theirs.weights.shape != mine.weights.shape:
            continue
        link = kernels.behind(mine, theirs, item, item.op.axis_out or 0)
        if link is not None:
            return item, link
    return None


def explain_kept(fates: Sequence[Fate], outcomes: Sequence[Outcome]) -> Mapping[Item, Outcome]:
    """What a plan for B says of the BatchNorms that are still there."""
    said = {(outcome.batchnorm, outcome.scope): outcome for outcome in outcomes if isinstance(outcome, Fold | Refusal)}
    kept = {fate.batchnorm: said.get((fate.into[0].name, fate.into[0].scope)) for fate in fates if fate.way is Way.KEPT}
    return {item: outcome for item, outcome in kept.items() if outcome is not None}


def find_fates_with(
    pairs: Pairs, unit: float, plan: Callable[[], Plan[Any, Any]], is_unknown: Callable[[Fate], bool]
) -> tuple[Trace, list[Fate]]:
    """The fates by traces alone; and with the merges that a plan proposes, where that leaves some unknown."""
    trace = trace_all(pairs, unit)
    fates = find_fates(trace)
    if not any(map(is_unknown, fates)):
        return trace, fates
    mergers = list(find_mergers(trace, plan()))
    if not mergers:
        return trace, fates
    for merger in mergers:
        for item in merger.gone:
            if pairs.of(item) is not None and pairs.of(item) is not merger.into:
                pairs.drop(item)
    trace = trace_all(pairs, unit, mergers)
    return trace, find_fates(trace)


ROUNDS = 4
"""The most passes over both models, each of which may pair more nodes than the one before."""


def trace_all(pairs: Pairs, unit: float, mergers: Sequence[Merger] = ()) -> Trace:
    """A trace of everything that can be paired."""
    trace = Trace(pairs, unit, mergers)
    for _ in range(ROUNDS):
        if not pairs.spread():
            break
        trace = Trace(pairs, unit, mergers)
    return trace
