"""Nested values taken apart and put together again: what pytree knows, and dataclasses that it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree


@dataclass(frozen=True)
class Structure:
    """What a value was, but for its leaves.

    Attributes:
        spec: pytree's description.
        records: of its leaves that are dataclasses: the class, the names of the fields, and their structure.
    """

    spec: _pytree.TreeSpec
    records: Mapping[int, tuple[type, tuple[str, ...], Structure]]

    def build(self, leaves: Sequence[Any]) -> Any:
        """The value with other leaves."""
        return self._build(iter(leaves))

    def __reduce__(self) -> Any:
        """By a value of that structure: to unpickle a description as such warns."""
        return _structure_of, (_pytree.tree_unflatten(range(self.spec.num_leaves), self.spec), dict(self.records))

    def _build(self, leaves: Iterator[Any]) -> Any:
        flat = [
            _record(*self.records[index], leaves) if index in self.records else next(leaves)
            for index in range(self.spec.num_leaves)
        ]
        return _pytree.tree_unflatten(flat, self.spec)


def _structure_of(value: Any, records: Mapping[int, Any]) -> Structure:
    return Structure(_pytree.tree_structure(value), records)


def _record(kind: type, names: tuple[str, ...], structure: Structure, leaves: Iterator[Any]) -> Any:
    made: Any = object.__new__(kind)
    for name, value in zip(names, structure._build(leaves), strict=True):
        object.__setattr__(made, name, value)
    return made


def flatten(value: Any) -> tuple[list[Any], Structure]:
    """The leaves of a value, and what holds them."""
    leaves: list[Any] = []
    records: dict[int, tuple[type, tuple[str, ...], Structure]] = {}
    flat, spec = _pytree.tree_flatten(value)
    for index, leaf in enumerate(flat):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            names = tuple(field.name for field in dataclasses.fields(leaf))
            inner, structure = flatten([getattr(leaf, name) for name in names])
            records[index] = (type(leaf), names, structure)
            leaves.extend(inner)
        else:
            leaves.append(leaf)
    return leaves, Structure(spec, records)
