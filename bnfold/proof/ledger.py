"""Writes the certificate of a plan for an ONNX model, with the names that the model has before it is changed.

The checker believes nothing of this, and shares no code with it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bnfold.proof.certificate import Certificate, Key, Name, Relation


class Change(Protocol):
    """How a value changes."""

    @property
    def pulled(self) -> Any:
        """The map of the original's value."""

    @property
    def pushed(self) -> Any:
        """The map of the result's value."""

    @property
    def is_known(self) -> bool:
        """Whether both maps are known."""


class Changes(Protocol):
    """What a plan does, in the graph's own nodes and values, such as a `bnfold.planning.changes.Changes`."""

    @property
    def values(self) -> Mapping[Any, Change]:
        """How each value changes."""

    @property
    def stands(self) -> Mapping[Any, Any]:
        """For each value that goes, the value that takes its place."""

    @property
    def vanished(self) -> Collection[Any]:
        """Nodes that go; one of their operands takes the place of their output."""

    @property
    def merged(self) -> Mapping[Any, Any]:
        """Nodes that merge, each with the operator that stays."""


@dataclass(frozen=True)
class Deeds:
    """What a plan does, in the graph's own nodes and values.

    Attributes:
        relations: the values that change, and how.
        stands: for each value that goes, the value that takes its place.
        vanished: nodes that go; one of their operands takes the place of their output.
        merged: nodes that merge, each with the operator that stays.
    """

    relations: Mapping[Hashable, Relation]
    stands: Mapping[Hashable, Hashable]
    vanished: frozenset[Hashable]
    merged: Mapping[Hashable, Hashable]

    @property
    def are_none(self) -> bool:
        """Whether the plan does nothing."""
        return not (self.relations or self.stands or self.vanished or self.merged)


@dataclass(eq=False)
class Ledger:
    """The names of the values and nodes of an `onnx_ir.Model`, before anything is changed.

    Attributes:
        values, nodes: the names.
        inlined: functions whose calls are written out in the model, and were not in the original.
    """

    inlined: tuple[Key, ...] = ()
    values: dict[Any, Name] = field(default_factory=dict)
    nodes: dict[Any, Name] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, inlined: tuple[Key, ...] = ()) -> Ledger:
        """Note the names in a model, before anything is changed."""
        ledger = cls(inlined)
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
                first = next((entry.name for entry in node.outputs if entry.name), "")
                self.nodes[node] = scope, first
                for value in node.outputs:
                    self.values[value] = scope, value.name or ""
                stack.extend((f"{scope}/{first}.{name}", body) for name, body in _bodies(node))

    def certificate(self, deeds: Deeds, original: str = "", result: str = "") -> Certificate:
        """The certificate, once the model has its new names. Only readers who did not make it need digests."""
        names = {name: fresh for name, fresh in self._renamed(deeds) if fresh != name[1]}
        relations = {self.values[value]: relation for value, relation in deeds.relations.items()}
        vanished = frozenset(self.nodes[node] for node in deeds.vanished if node not in deeds.merged)
        merged = {self.nodes[node]: self.nodes[host][1] for node, host in deeds.merged.items()}
        return Certificate(original, result, names, relations, vanished, merged, inlined=self.inlined)

    def _renamed(self, deeds: Deeds) -> Iterator[tuple[Name, str]]:
        for value, name in self.values.items():
            kept = deeds.stands.get(value, value)
            for reader in _readers(kept):
                if reader not in self.nodes and reader.op_type == "Add":  # a new bias
                    kept = reader.outputs[0]
            if name[1] and getattr(kept, "name", None):
                yield name, kept.name


def _readers(value: Any) -> list[Any]:
    return [use.node for use in value.uses()]


def _bodies(node: Any) -> Iterator[tuple[str, Any]]:
    for attribute in node.attributes.values():
        content = attribute.value
        for index, body in enumerate(content if isinstance(content, list | tuple) else [content]):
            if hasattr(body, "initializers"):
                yield f"{attribute.name}.{index}", body
