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
        picks: those of the entries that nodes pick from tuples.
        stand: tells the node that stands now for the value of one that was there.
    """

    nodes: Mapping[fx.Node, str]
    values: Mapping[Hashable, str]
    picks: Mapping[fx.Node, str]
    stand: Callable[[fx.Node], fx.Node]

    @classmethod
    def of(cls, graph: fx.Graph, changes: Changes, stand: Callable[[fx.Node], fx.Node]) -> Ledger:
        """Note the names in a graph, and those of the values that a plan changes."""
        nodes = {node: node.name for node in graph.nodes}
        about = (*changes.values, *changes.stands, *changes.stands.values())
        parts = {value for value in about if not isinstance(value, fx.Node)}
        sources = {part.node for part in parts}
        values: dict[Hashable, str] = {part: f"{part.node.name}[{part.index}]" for part in parts}
        picks = {node: f"{node.args[0]}[{node.args[1]}]" for node in nodes if node.target is operator.getitem}
        for node, name in nodes.items():
            if not (node in picks and node.args[0] in sources):
                values[node] = name
        return cls(nodes, values, picks, stand)

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
        for value, name in self.values.items():
            kept: Any = changes.stands.get(value, value)
            if isinstance(kept, fx.Node):
                now = self.stand(kept)
                if now._erased or (now is value and now.op in ("placeholder", "get_attr", "output")):
                    continue
                is_added = kept is value and now not in self.nodes
                yield (SCOPE, self.picks.get(kept, name) if is_added else name), now.name
            elif kept is not value:
                yield (SCOPE, name), f"{kept.node.name}[{kept.index}]"
