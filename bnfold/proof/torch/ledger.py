"""Writes the certificate of a plan for an fx graph, with the names that the graph has before it is changed.

The checker believes nothing of this, and shares no code with it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from bnfold.proof.certificate import Certificate, Name, Relation
from bnfold.proof.ledger import Changes
from bnfold.proof.torch.pair import SCOPE


@dataclass(frozen=True, eq=False)
class Ledger:
    """The names of a graph's nodes, before anything is changed.

    Attributes:
        nodes: those of all nodes.
        values: those of values; an entry of a tuple that changes is a value of its own.
        entries: the nodes that pick entries from tuples, by the names of these.
        stand: tells the node that stands now for the value of one that was there.
    """

    nodes: Mapping[fx.Node, str]
    values: Mapping[Hashable, str]
    entries: Mapping[str, fx.Node]
    stand: Callable[[fx.Node], fx.Node]

    @classmethod
    def of(cls, graph: fx.Graph, changes: Changes, stand: Callable[[fx.Node], fx.Node]) -> Ledger:
        """Note the names in a graph, and those of the values that a plan changes."""
        nodes = {node: node.name for node in graph.nodes}
        about = (*changes.values, *changes.stands, *changes.stands.values())
        parts = {value for value in about if not isinstance(value, fx.Node)}
        sources = {part.node for part in parts}
        values: dict[Hashable, str] = {part: f"{part.node.name}[{part.index}]" for part in parts}
        picks = {node for node in nodes if node.target is operator.getitem}
        for node, name in nodes.items():
            if not (node in picks and node.args[0] in sources):
                values[node] = name
        return cls(nodes, values, {f"{node.args[0]}[{node.args[1]}]": node for node in picks}, stand)

    def certificate(self, changes: Changes, original: str, result: str) -> Certificate:
        """The certificate, once the graph has its new names; with the digests of both models."""
        relations = {
            (SCOPE, self.values[value]): Relation(change.pulled, change.pushed)
            for value, change in changes.values.items()
            if change.is_known  # where it is not, the proof fails
        }
        vanished = frozenset((SCOPE, self.nodes[node]) for node in changes.vanished if node not in changes.merged)
        merged = {(SCOPE, self.nodes[node]): self.nodes[host] for node, host in changes.merged.items()}
        names = {key: fresh for key, fresh in self._renamed(changes) if fresh != key[1]}
        return Certificate(original, result, names, relations, vanished, merged)

    def _renamed(self, changes: Changes) -> Iterator[tuple[Name, str]]:
        added = {name: now for name, node in self.entries.items() if (now := self.stand(node)) not in self.nodes}
        yield from (((SCOPE, name), now.name) for name, now in added.items())
        replaced = {self.entries[name] for name in added}
        for value, name in self.values.items():
            kept: Any = changes.stands.get(value, value)
            if isinstance(kept, fx.Node):
                now = self.stand(kept)
                is_given = now is value and now.op in ("placeholder", "get_attr", "output")
                if not now._erased and not is_given and value not in replaced:
                    yield (SCOPE, name), now.name
            elif kept is not value:
                addition = added.get(self.values[kept])
                yield (SCOPE, name), addition.name if addition else f"{kept.node.name}[{kept.index}]"
