"""Follows the values of two models side by side, and tells what became of each chain of steps on the way.

For a value of A and the value of B that stands for it, there is one value `z` behind both, from which each comes by a
chain: ``a = before(z)`` and ``b = after(z)``. Where both chains are one map, the values are one, and nodes of one chain
took the place of nodes of the other. A linear operator of B has as a link of its chain what its weights have beyond
those of A's. A chain that does not agree is carried on, until it does or nothing carries it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bnfold.algebra.linear import Linear
from bnfold.difference import kernels
from bnfold.difference.chains import Chain, Cut, Link, agree, along, compose, cut
from bnfold.difference.outline import Item, Kernel, Outline
from bnfold.difference.pairs import Pairs
from bnfold.graph.ops import Opaque, Split, Sum
from bnfold.graph.outcome import Stop
from bnfold.planning.rules import push
from bnfold.planning.rules.registry import stop_several


class Way(StrEnum):
    """How a node of A is done without. The value is the public name in JSON."""

    KEPT = "kept"
    FOLDED = "folded"
    MERGED = "merged"
    DECOMPOSED = "decomposed"
    DEPTHWISE = "depthwise"
    CONSTANT = "constant"
    IDENTITY = "identity"
    UNREAD = "unread"
    UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Claim:
    """What took the place of a step of A.

    Attributes:
        way: how.
        into: the nodes of B that do it now.
        direction: "upstream" or "downstream", for a fold into a linear operator.
        others: nodes of B that would explain it as well.
    """

    way: Way
    into: tuple[Item, ...] = ()
    direction: str | None = None
    others: tuple[Item, ...] = ()


@dataclass(frozen=True, eq=False)
class Same:
    """The value of B that stands for one of A, with the chains from the value behind both."""

    value: int
    before: Chain = ()
    after: Chain = ()


@dataclass(frozen=True, eq=False)
class Met:
    """The chains in front of one input of two nodes that are one."""

    before: Chain
    after: Chain
    cuts: tuple[Cut, ...] | None

    @property
    def agrees(self) -> bool:
        """Whether both chains are one map, so that the nodes read one value."""
        return self.cuts is not None


@dataclass(frozen=True, eq=False)
class Merger:
    """Operators of A that are one of B.

    Attributes:
        root: the value of A that they make together.
        gone: the operators.
        into: the one of B.
        link: what its weights have beyond theirs.
        steps: steps of A among them.
    """

    root: int
    gone: tuple[Item, ...]
    into: Item
    link: Link
    steps: tuple[Item, ...]


class Trace:
    """One pass over both models; what it finds out of the pairs is kept in them.

    Args:
        pairs: the nodes that are one.
        unit: the spacing at 1 of the type in which both models hold their weights.
        mergers: operators that became one.
    """

    def __init__(self, pairs: Pairs, unit: float, mergers: Sequence[Merger] = ()) -> None:
        self.pairs, self.one, self.other, self.unit = pairs, pairs.one, pairs.other, unit
        self.same: dict[int, Same] = {}
        self.claims: dict[int, list[Claim]] = {}
        self._conditional: dict[int, list[tuple[Item, Claim]]] = {}
        self._links: dict[int, tuple[Item, Link]] = {}
        self._explained: set[int] = set()
        self._merged = {item.index for merger in mergers for item in merger.gone}
        self._left: dict[int, dict[str, list[Item]]] = {}
        self._mergers = {merger.root: merger for merger in mergers}
        self.weak: dict[int, Claim] = {}
        """What stands in the place of a step with other numbers, where both chains are of the same operators."""
        self.unlike: set[int] = set()
        """Linear operators of A, by place, whose weights are not those of B with factors."""
        self._run()

    def _run(self) -> None:
        for value, same in self.interface(self.one.sources, self.other.sources):
            self.same[value] = Same(same)
        for merger in self._mergers.values():
            changes = not kernels.is_identity(merger.link, self.unit)
            self._note_link(merger.into, merger.gone[0], merger.link, changes=changes)
            after = (merger.link,) if changes else ()
            self.same[self.one.base(merger.root)] = Same(merger.into.outputs[0], (), after)
            for item in merger.steps:
                self._claim(item, Claim(Way.MERGED, (merger.into,)))
        for item in self.one.items:
            if not item.is_step and item.index not in self._merged:
                self._visit(item)
        for value, same in self.interface(self.one.results, self.other.results):
            met = self._meet(value, same)
            if met is not None:
                self._settle(met)
        self._explain_rest()

    def interface(self, mine: Sequence[int], theirs: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Inputs or outputs that are one: by name, or else by position."""
        named = {self.other.title(value): value for value in theirs}
        if {self.one.title(value) for value in mine} <= named.keys():
            yield from ((value, named[self.one.title(value)]) for value in mine)
        elif len(mine) == len(theirs):
            yield from zip(mine, theirs, strict=True)

    def _visit(self, item: Item) -> None:
        twin = self.pairs.of(item)
        if twin is None and (twin := self._find(item)) is not None:
            self.pairs.add(item, twin)
        if twin is None:
            self._alias(item)
            return
        if twin.is_step or len(item.outputs) > len(twin.outputs):
            return
        met = self._inputs(item, twin)
        for each in met:
            if each is not None:
                self._settle(each)
        if isinstance(item.op, Linear) and isinstance(twin.op, Linear):
            self._linear(item, twin, met[0] if met else None)
        else:
            self._carry(item, twin, met)

    def _inputs(self, item: Item, twin: Item) -> list[Met | None]:
        if len(item.inputs) != len(twin.inputs):
            return [None] * len(item.inputs)
        met = [self._meet(value, same) for value, same in zip(item.inputs, twin.inputs, strict=True)]
        if None in met and len(met) == 2 and is_commutative(item):
            turned = [self._meet(value, same) for value, same in zip(item.inputs, reversed(twin.inputs), strict=True)]
            if turned.count(None) < met.count(None):
                return turned
        return met

    def _meet(self, value: int, same: int) -> Met | None:
        """The chains in front of two values; None where they do not come from one value."""
        known = self.same.get(self.one.base(value))
        if known is None or known.value != self.other.base(same):
            return None
        steps = self.one.steps(value), self.other.steps(same)
        before, after = along(known.before, steps[0]), along(known.after, steps[1])
        if before is None or after is None:
            return None if known.before or known.after else self._meet_alike(*steps)
        cuts = cut(before, after, self.unit)
        return Met(before, after, None if cuts is None else tuple(cuts))

    def _meet_alike(self, mine: Sequence[Item], theirs: Sequence[Item]) -> Met | None:
        """Chains of the same steps, whose maps nothing carries to their ends; None where a step differs."""
        if [step.key for step in mine] != [step.key for step in theirs]:
            return None
        links = [
            ((Link.of(step),), (Link.of(other),))
            for step, other in zip(mine, theirs, strict=True)
            if step.affine is not None and other.affine is not None
        ]
        are_same = all(agree(before[0], after[0], self.unit) for before, after in links)
        return Met((), (), tuple(Cut(*pair) for pair in links) if are_same else None)

    def _linear(self, item: Item, twin: Item, met: Met | None) -> None:
        mine, theirs = self.one.kernel(item), self.other.kernel(twin)
        output, axis = item.outputs[0], twin.op.axis_out if isinstance(twin.op, Linear) else None
        self.same[output] = Same(twin.outputs[0])
        if mine is None or theirs is None:
            return
        link, taken = self._factors(item, twin, mine, theirs, met)
        if link is None:
            self.unlike.add(item.index)
            return
        changes = not kernels.is_identity(link, max(mine.unit, theirs.unit))
        self._note_link(twin, item, link, changes=changes)
        if changes and axis is not None:
            self.same[output] = Same(twin.outputs[0], (), (link,))
        if taken is not None:
            claims = [(step, Claim(Way.FOLDED, into, "downstream")) for step, into in _downstream(taken, twin)]
            if changes:
                self._conditional.setdefault(twin.index, []).extend(claims)
            else:
                for step, claim in claims:
                    self._claim(step, claim)

    def _factors(
        self, item: Item, twin: Item, mine: Kernel, theirs: Kernel, met: Met | None
    ) -> tuple[Link | None, Met | None]:
        """What the operator of B does beyond that of A, and the chains in front that its weights took in, if any."""
        axis = twin.op.axis_out if isinstance(twin.op, Linear) and twin.op.axis_out is not None else 0
        tries: list[Met | None] = [None]
        if met is not None and not met.agrees:
            tries = [met, None]
        elif met is None and item.inputs and twin.inputs:
            before = along((), self.one.steps(item.inputs[0]))
            after = along((), self.other.steps(twin.inputs[0]))
            if before and after is not None:
                tries = [None, Met(before, after, None)]
        for chains in tries:
            first, second = (
                (mine, theirs)
                if chains is None
                else (kernels.reading(mine, chains.before), kernels.reading(theirs, chains.after))
            )
            if first is None or second is None:
                continue
            link = kernels.behind(first, second, twin, axis)
            if link is not None:
                return link, chains
        return None, None

    def _note_link(self, twin: Item, item: Item, link: Link, *, changes: bool) -> None:
        if changes:
            self._links[twin.index] = item, link
        else:
            self._explained.add(twin.index)

    def _carry(self, item: Item, twin: Item, met: Sequence[Met | None]) -> None:
        """Carry chains that do not agree through an operator of both models, if it can."""
        pairs = list(zip(item.outputs, twin.outputs, strict=False))
        for output, same in pairs:
            self.same[output] = Same(same)
        pending = [each for each in met if each is not None and not each.agrees]
        if not pending or isinstance(item.op, Opaque) or isinstance(twin.op, Opaque):
            return
        sides = []
        for op, chains in (
            (item.op, [None if each is None or each.agrees else each.before for each in met]),
            (twin.op, [None if each is None or each.agrees else each.after for each in met]),
        ):
            carried = _join(op, chains)
            if carried is None:
                return
            sides.append(carried)
        for index, (output, same) in enumerate(pairs):
            before, after = (side[index] if index < len(side) else () for side in sides)
            self.same[output] = Same(same, before, after)

    def _alias(self, item: Item) -> None:
        """Let a node that B has only once be that one, where A computes the same twice."""
        known = self.same.get(self.one.base(item.inputs[0])) if item.inputs else None
        if known is None or isinstance(item.op, Linear) or len(item.outputs) != 1:
            return
        for twin, _ in self.other.ends.get(known.value, ()):
            first = self.pairs.back(twin)
            if first is None or first.key != item.key or _texts(self.one, first) != _texts(self.one, item):
                continue
            met = self._inputs(item, twin)
            if met and all(each is not None and each.agrees for each in met):
                for each in met:
                    assert each is not None
                    self._settle(each)
                self.same[item.outputs[0]] = Same(twin.outputs[0])
                return

    def _find(self, item: Item) -> Item | None:
        """The node of B that reads what a node of A reads, and does the same with it."""
        candidates = list(dict.fromkeys(self._candidates(item)))
        if isinstance(item.op, Linear):
            return self._choose_linear(item, candidates)
        candidates = [twin for twin in candidates if not twin.is_step]
        ranked: list[list[Item]] = [[], [], []]
        for twin in candidates:
            met = self._inputs(item, twin)
            is_alike = _texts(self.one, item) == _texts(self.other, twin)
            agrees = all(each is not None and each.agrees for each in met)
            ranked[0 if is_alike and agrees else 1 if agrees else 2].append(twin)
        best = next((group for group in ranked if group), [])
        self.pairs.note_rivals(best)
        return best[0] if best and (ranked[2] is not best or len(best) == 1) else None

    def _candidates(self, item: Item) -> Iterator[Item]:
        for value in item.inputs:
            known = self.same.get(self.one.base(value))
            if known is None:
                continue
            for twin in self._free(known.value, item.key):
                if len(twin.inputs) == len(item.inputs) and None not in self._inputs_or_fixed(item, twin):
                    yield twin

    def _free(self, value: int, key: str) -> list[Item]:
        """The first readers of a value of B that do the same thing, and are no node of A yet."""
        if value not in self._left:
            self._left[value] = {}
            for twin, _ in self.other.ends.get(value, ()):
                self._left[value].setdefault(twin.key, []).append(twin)
        left = [twin for twin in self._left[value].get(key, ()) if self.pairs.back(twin) is None]
        self._left[value][key] = left
        return left[:CANDIDATES]

    def _inputs_or_fixed(self, item: Item, twin: Item) -> list[Met | None]:
        """As `_inputs`, where an input that varies in neither model counts as met."""
        fixed = Met((), (), ())
        return [
            fixed if each is None and value not in self.one.varying else each
            for each, value in zip(self._inputs(item, twin), item.inputs, strict=True)
        ]

    def _choose_linear(self, item: Item, candidates: Sequence[Item]) -> Item | None:
        """The candidate whose weights are those of A with factors; one whose factors A explains comes first."""
        mine = self.one.kernel(item)
        if mine is None:
            return None
        fitting: list[tuple[Item, bool]] = []
        for twin in candidates:
            theirs = self.other.kernel(twin)
            if theirs is None:
                continue
            met = self._meet(item.inputs[0], twin.inputs[0])
            link, _ = self._factors(item, twin, mine, theirs, met)
            if link is not None:
                fitting.append((twin, self._is_explained(item, link)))
        best = [twin for twin, is_explained in fitting if is_explained] or [twin for twin, _ in fitting]
        self.pairs.note_rivals(best)
        return best[0] if best else None

    def _is_explained(self, item: Item, link: Link) -> bool:
        is_still = kernels.is_identity(link, self.unit)
        return is_still or any(True for _ in self._prefixes(item, link))

    def _prefixes(self, item: Item, link: Link) -> Iterator[tuple[Item, ...]]:
        """The steps behind an operator of A whose map is that of a link."""
        seen: set[tuple[int, ...]] = set()
        for reader, slot in self.one.ends.get(item.outputs[0], ()):
            yield from self._prefixes_of(self.one.steps(reader.inputs[slot]), link, seen)
        for value in self.one.results:
            if self.one.base(value) == item.outputs[0]:
                yield from self._prefixes_of(self.one.steps(value), link, seen)

    def _prefixes_of(
        self, steps: tuple[Item, ...], link: Link, seen: set[tuple[int, ...]]
    ) -> Iterator[tuple[Item, ...]]:
        for count in range(1, len(steps) + 1):
            prefix = steps[:count]
            key = tuple(step.index for step in prefix)
            if prefix[-1].affine is None or key in seen:
                continue
            seen.add(key)
            chain = along((), prefix)
            moved = along((link,), [step for step in prefix if step.affine is None])
            if chain is None or moved is None:
                continue
            try:
                if agree(compose(chain), compose(moved), self.unit):
                    yield prefix
            except ValueError:
                continue

    def _explain_rest(self) -> None:
        """Explain factors of weights that no reader confirmed, by what follows the operator in A."""
        for index, (item, link) in self._links.items():
            if index in self._explained:
                continue
            found = list(self._prefixes(item, link))
            if len(found) == 1:
                self._explained.add(index)
                for step in found[0]:
                    if step.affine is not None and not self.claims.get(step.index):
                        self._claim(step, Claim(Way.FOLDED, link.items, "upstream", self._others(link.items)))
        for index in self._explained:
            for step, claim in self._conditional.get(index, ()):
                self._claim(step, claim)

    def _settle(self, met: Met) -> None:
        """Note what took the place of what, where two chains agree."""
        if met.cuts is None:
            self._settle_weakly(met)
        for part in met.cuts or ():
            if not part.after and not agree(compose(part.before), None, self.unit / STRICTER):
                continue  # nothing took its place, and more than the last digit would show that
            mine = [item for link in part.before for item in link.items]
            theirs = tuple(item for link in part.after for item in link.items)
            self._explained.update(item.index for item in theirs if item.index in self._links)
            for item in mine:
                self._claim(item, self._judge(item, mine, theirs))

    def _settle_weakly(self, met: Met) -> None:
        mine, theirs = ([item for link in chain for item in link.items] for chain in (met.before, met.after))
        if [item.key for item in mine] == [item.key for item in theirs]:
            for item, twin in zip(mine, theirs, strict=True):
                self.weak[item.index] = Claim(Way.KEPT, (twin,))

    def _judge(self, item: Item, mine: Sequence[Item], theirs: tuple[Item, ...]) -> Claim:
        """What became of one of some steps of A, given the nodes of B in their place."""
        if not theirs:
            return Claim(Way.IDENTITY)
        linear = tuple(each for each in theirs if isinstance(each.op, Linear) and not each.is_depthwise)
        norms = [each for each in theirs if each.is_batchnorm]
        is_only = len(theirs) == 1 and sum(each.key == item.key for each in mine) == 1
        twin = self.pairs.of(item)
        if twin is not None and twin in theirs:
            return Claim(Way.KEPT, (twin,))
        if is_only and theirs[0].key == item.key and self.pairs.back(theirs[0]) is None:
            return Claim(Way.KEPT, theirs)
        others = self._others(theirs)
        if linear:
            return Claim(Way.FOLDED, theirs, "upstream", others)
        depthwise = [each for each in theirs if each.is_depthwise]
        is_taken = any(self.pairs.back(each) is not None for each in theirs) or norms
        if is_taken or any(each.is_depthwise for each in mine):
            return Claim(Way.FOLDED, theirs, None, others)
        return Claim(Way.DEPTHWISE if depthwise else Way.DECOMPOSED, theirs, None, others)

    def _others(self, theirs: Sequence[Item]) -> tuple[Item, ...]:
        """Nodes of B that could stand as well where these do."""
        return tuple(other for each in theirs for other in self.pairs.rivals.get(each.index, ()))

    def _claim(self, item: Item, claim: Claim) -> None:
        known = self.claims.setdefault(item.index, [])
        if not any(other.way is claim.way and set(other.into) == set(claim.into) for other in known):
            known.append(claim)


STRICTER = 8
"""How much nearer to the identity than to another map a step has to be, for its absence to be no change."""

CANDIDATES = 64
"""The most nodes of B that are looked at for one of A."""

COMMUTATIVE = frozenset({"mul", "max", "min"})
"""Operators whose inputs may change places, besides sums."""


def is_commutative(item: Item) -> bool:
    """Whether the inputs of a node may change places."""
    return len({*item.op.signs}) == 1 if isinstance(item.op, Sum) else item.key in COMMUTATIVE


def _texts(outline: Outline, item: Item) -> tuple[object, ...]:
    return item.operator, *sorted(outline.graph.attributes(item.native).items())


def _downstream(met: Met, twin: Item) -> Iterator[tuple[Item, tuple[Item, ...]]]:
    """The steps in front that an operator took in, each with the nodes that stand for it now."""
    theirs = tuple(item for link in met.after for item in link.items)
    for link in met.before:
        for item in link.items:
            yield item, (*theirs, twin)


def _join(op: object, chains: Sequence[Chain | None]) -> list[Chain] | None:
    """The chains behind an operator whose inputs have these in front; None where it does not carry them."""
    try:
        totals = [compose(chain) if chain else None for chain in chains]
    except ValueError:
        return None
    items = tuple(dict.fromkeys(item for total in totals if total is not None for item in total.items))
    size = max((total.size for total in totals if total is not None), default=0.0)
    if not items:
        return [()] * (len(op.sizes) if isinstance(op, Split) else 1)
    affines = [None if total is None else total.affine for total in totals]
    pushed = stop_several(op, affines) or push(op, *affines)
    if isinstance(pushed, Stop):
        return None
    return [() if affine is None else (Link(items, affine, size),) for affine in pushed]
