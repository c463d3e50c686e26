"""Which node of one model is which of another: by names, then by weights, then by the places in the graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial

from bnfold.algebra.linear import Linear
from bnfold.difference import kernels
from bnfold.difference.outline import Item, Outline


class Pairs:
    """The nodes of A and B that stand for each other, one for one.

    Args:
        one, other: the outlines of A and B.
    """

    def __init__(self, one: Outline, other: Outline) -> None:
        self.one, self.other = one, other
        self._forward: dict[int, Item] = {}
        self._backward: dict[int, Item] = {}
        self._signatures: dict[tuple[bool, int, int], bytes | None] = {}
        self.rivals: dict[int, tuple[Item, ...]] = {}
        """Nodes of B that nothing tells from each other, by the place of each of them."""

    def of(self, item: Item) -> Item | None:
        """The node of B that a node of A is."""
        return self._forward.get(item.index)

    def back(self, item: Item) -> Item | None:
        """The node of A that a node of B is."""
        return self._backward.get(item.index)

    def add(self, item: Item, twin: Item) -> None:
        """Note that two nodes are one."""
        self._forward[item.index], self._backward[twin.index] = twin, item

    def note_rivals(self, twins: Sequence[Item]) -> None:
        """Note that nothing tells these nodes of B from each other."""
        for twin in twins if len(twins) > 1 else ():
            self.rivals[twin.index] = tuple(other for other in twins if other is not twin)

    def drop(self, item: Item) -> None:
        """Forget what a node of A was."""
        twin = self._forward.pop(item.index, None)
        if twin is not None:
            del self._backward[twin.index]

    def seek(self) -> None:
        """Pair nodes by names and weights."""
        late = list(self._by_names(lambda outline, item: (item.scope, item.name)))
        late += self._by_names(_title)
        self._by_weights()
        self._drop_misled()
        for item, twin in late:
            if self.of(item) is None and self.back(twin) is None:
                self.add(item, twin)

    def _by_names(self, name: Callable[[Outline, Item], Hashable]) -> Iterator[tuple[Item, Item]]:
        """Pair nodes of one name; gives back those whose weights do not tell the same."""
        one, other = self.one, self.other
        theirs = _by(partial(name, other), (item for item in other.items if self.back(item) is None))
        mine = _by(partial(name, one), (item for item in one.items if self.of(item) is None))
        for key, items in mine.items():
            twins = theirs.get(key, [])
            if len(items) != 1 or len(twins) != 1 or items[0].key != twins[0].key:
                continue
            item, twin = items[0], twins[0]
            if not isinstance(item.op, Linear) or self._is_like(item, twin):
                self.add(item, twin)
            elif self._shape(item) == self._shape(twin):
                yield item, twin

    def _is_like(self, item: Item, twin: Item) -> bool:
        for side in (0, 1):
            mine, theirs = self._signature(self.one, item, side), self._signature(self.other, twin, side)
            if mine is None or theirs is None or mine == theirs:
                return mine == theirs
        one, other = self.one.kernel(item), self.other.kernel(twin)
        return one is not None and other is not None and kernels.behind(one, other, twin, 0) is not None

    def _shape(self, item: Item) -> tuple[int, int, int] | None:
        op = item.op
        return (op.groups, op.out_channels, op.in_channels) if isinstance(op, Linear) else None

    def _signature(self, outline: Outline, item: Item, side: int) -> bytes | None:
        """What stays of a kernel whatever factors one side of it gets; None where it cannot be read."""
        key = outline is self.one, item.index, side
        if key not in self._signatures:
            kernel = outline.kernel(item)
            self._signatures[key] = None if kernel is None else kernels.signature(kernel, side)
        return self._signatures[key]

    def _by_weights(self) -> None:
        """Pair operators whose kernels are alike but for factors of their outputs, or of their inputs."""
        for side in (0, 1):
            mine = self._unpaired(0, side)
            theirs = self._unpaired(1, side)
            for key, items in mine.items():
                twins = theirs.get(key, [])
                if len(items) == len(twins) == 1:
                    self.add(items[0], twins[0])

    def _unpaired(self, model: int, side: int) -> dict[Hashable, list[Item]]:
        """The operators of A or B without a pair, by what stays of their kernels on one side."""
        outline, paired = ((self.one, self._forward), (self.other, self._backward))[model]
        left = [item for item in outline.items if isinstance(item.op, Linear) and item.index not in paired]
        table = _by(lambda item: self._signature(outline, item, side), left)
        table.pop(None, None)
        return table

    def _drop_misled(self) -> None:
        """Drop pairs of one name that read other values: names that were given anew may mislead."""
        misled: list[Item] = []
        for item in self.one.items:
            twin = self.of(item)
            if twin is None or isinstance(item.op, Linear) or not item.inputs or len(item.inputs) != len(twin.inputs):
                continue
            if item.affine is not None and twin.affine is not None and item.affine.equals(twin.affine):
                continue
            if all(self._contradict(*values) for values in zip(item.inputs, twin.inputs, strict=True)):
                misled.append(item)
        for item in misled:
            self.drop(item)

    def _contradict(self, value: int, same: int) -> bool:
        """Whether two values are known to be different: one is made by a node whose pair makes something else."""
        mine, theirs = (
            outline.makers.get(outline.base(read)) for outline, read in ((self.one, value), (self.other, same))
        )
        if mine is None or theirs is None:
            paired = mine is not None and self.of(mine) is not None
            return (paired and self.other.base(same) in self.other.sources) or (
                theirs is not None and self.back(theirs) is not None and self.one.base(value) in self.one.sources
            )
        return self.of(mine) not in (None, theirs) or self.back(theirs) not in (None, mine)

    def spread(self) -> bool:
        """Pair the only neighbours of one kind that are left beside each pair; whether there were any."""
        has_found = False
        queue = [(self.one.items[index], twin) for index, twin in self._forward.items()]
        queue_values = list(zip(self.one.sources, self.other.sources, strict=False))
        while queue or queue_values:
            if queue:
                item, twin = queue.pop()
                found = list(self._beside(item, twin))
            else:
                value, same = queue_values.pop()
                found = list(self._readers(value, same))
            for pair in found:
                if self.of(pair[0]) is None and self.back(pair[1]) is None:
                    self.add(*pair)
                    queue.append(pair)
                    has_found = True
        return has_found

    def _beside(self, item: Item, twin: Item) -> Iterator[tuple[Item, Item]]:
        if len(item.inputs) == len(twin.inputs):
            for value, same in zip(item.inputs, twin.inputs, strict=True):
                makers = (
                    outline.makers.get(outline.base(read)) for outline, read in ((self.one, value), (self.other, same))
                )
                yield from self._only(*([maker] if maker else [] for maker in makers))
        for value, same in zip(item.outputs, twin.outputs, strict=False):
            yield from self._readers(value, same)

    def _readers(self, value: int, same: int) -> Iterator[tuple[Item, Item]]:
        mine = [reader for reader, _ in self.one.ends.get(self.one.base(value), ())]
        theirs = [reader for reader, _ in self.other.ends.get(self.other.base(same), ())]
        yield from self._only(mine, theirs)

    def _only(self, mine: list[Item], theirs: list[Item]) -> Iterator[tuple[Item, Item]]:
        """The nodes that are the only ones of their kind on either side."""
        left = _by(_kind, (item for item in mine if self.of(item) is None))
        if not left:
            return
        right = _by(_kind, (item for item in theirs if self.back(item) is None))
        for key, items in left.items():
            twins = right.get(key, [])
            if len(set(items)) == len(set(twins)) == 1:
                yield items[0], twins[0]


def _title(outline: Outline, item: Item) -> Hashable:
    return item.scope, outline.title(item.outputs[0]) if item.outputs else ""


def _kind(item: Item) -> Hashable:
    op = item.op
    return (item.key, op.groups, op.out_channels, op.in_channels) if isinstance(op, Linear) else item.key


def _by(name: Callable[[Item], Hashable], items: Iterable[Item]) -> dict[Hashable, list[Item]]:
    table: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        table[name(item)].append(item)
    return table
