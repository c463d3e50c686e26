"""Writes down what a plan does to an ONNX model, by the names that it had before: what a certificate is made of.

Nothing here is believed: the checker shares no code with it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bnfold.proof.certificate import Certificate, Name, Relation


class Change(Protocol):
    """How a value changes."""

    @property
    def pulled(self) -> Any:
        """Of the value of the original."""

    @property
    def pushed(self) -> Any:
        """Of the value of the result."""

    @property
    def is_known(self) -> bool:
        """Whether both are told."""


class Changes(Protocol):
    """What a plan does, in the graph's own nodes and values; `bnfold.planning.changes.Changes` is that."""

    @property
    def values(self) -> Mapping[Any, Change]:
        """How each value changes."""

    @property
    def stands(self) -> Mapping[Any, Any]:
        """What stands for each value that is no more."""

    @property
    def vanished(self) -> Collection[Any]:
        """Nodes that an operand stands for."""

    @property
    def merged(self) -> Mapping[Any, Any]:
        """Nodes that merge, with the operator that stays."""


@dataclass(frozen=True)
class Deeds:
    """What a plan does, in the graph's own nodes and values.

    Attributes:
        relations: of values that change.
        stands: what stands for each value that is no more.
        vanished: nodes that an operand stands for.
        merged: nodes that merge, with the operator that stays.
    """

    relations: Mapping[Hashable, Relation]
    stands: Mapping[Hashable, Hashable]
    vanished: frozenset[Hashable]
    merged: Mapping[Hashable, Hashable]

    @property
    def are_none(self) -> bool:
        """Whether it does nothing."""
        return not (self.relations or self.stands or self.vanished or self.merged)


@dataclass(eq=False)
class Ledger:
    """The names that values and nodes of an `onnx_ir.Model` have now."""

    values: dict[Any, Name] = field(default_factory=dict)
    nodes: dict[Any, Name] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Ledger:
        """The names in a model, before anything is changed."""
        ledger = cls()
        ledger._note("main", model.graph)
        for function in model.functions.values():
            scope = f"function:{function.domain}:{function.name}:{function.overload}"
            ledger._note(scope, function.graph)
        return ledger

    def _note(self, scope: str, graph: Any) -> None:
        stack = [(scope, graph)]
        while stack:
            scope, graph = stack.pop()
            for value in (*graph.inputs, *graph.initializers.values()):
                self.values[value] = scope, value.name or ""
            for node in graph:
                first = next((each.name for each in node.outputs if each.name), "")
                self.nodes[node] = scope, first
                for value in node.outputs:
                    self.values[value] = scope, value.name or ""
                stack.extend((f"{scope}/{first}.{name}", body) for name, body in _bodies(node))

    def certificate(self, deeds: Deeds, original: str = "", result: str = "") -> Certificate:
        """What was done, now that the model has its new names; digests are for those who did not make it."""
        names = {name: fresh for name, fresh in self._renamed(deeds) if fresh != name[1]}
        relations = {self.values[value]: each for value, each in deeds.relations.items()}
        vanished = frozenset(self.nodes[node] for node in deeds.vanished if node not in deeds.merged)
        merged = {self.nodes[node]: self.nodes[host][1] for node, host in deeds.merged.items()}
        return Certificate(original, result, names, relations, vanished, merged)

    def _renamed(self, deeds: Deeds) -> Iterator[tuple[Name, str]]:
        for value, name in self.values.items():
            kept = deeds.stands.get(value, value)
            for reader in _readers(kept):
                if reader not in self.nodes and reader.op_type == "Add":  # a bias that it got
                    kept = reader.outputs[0]
            if name[1] and getattr(kept, "name", None):
                yield name, kept.name


def _readers(value: Any) -> list[Any]:
    return [use.node for use in value.uses()]


def _bodies(node: Any) -> Iterator[tuple[str, Any]]:
    for attribute in node.attributes.values():
        found = attribute.value
        for index, body in enumerate(found if isinstance(found, list | tuple) else [found]):
            if hasattr(body, "initializers"):
                yield f"{attribute.name}.{index}", body
