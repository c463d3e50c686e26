"""How a folded model is related to its original, as plain data with a JSON form (`certificate.schema.json`).

Values and nodes have their names of the original; a node is named by its first output. A scope is a path: ``main`` or
``function:domain:name:overload``, then ``/output.attribute.index`` for each body on the way.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from bnfold.algebra.affine import SEVERAL, Affine, Array, Grid
from bnfold.errors import InvalidModelError

SCHEMA = "bnfold-proof/1"

CHANNEL_LIMIT = 1 << 22
"""The most channels of one affine. No model has more."""

AXES = 64
"""The most axes of one value. No model has more."""

FUNCTION = ("domain", "name", "overload")

T = TypeVar("T")

Key = tuple[str, str, str]
"""A function: domain, name and overload."""

Name = tuple[str, str]
"""A value: its scope, and its name there."""

Shape = tuple[int | None, ...]
"""The sizes of a value; None for a size that is not known."""


@dataclass(frozen=True, eq=False)
class Relation:
    """How a value `v` of the original became `w` of the result: ``pulled(v) == pushed(w)``; None is the identity."""

    pulled: Affine | None = None
    pushed: Affine | None = None

    @property
    def forth(self) -> Affine | None:
        """`w` as a map of `v`; None where `pushed` is more than a shift."""
        if self.pushed is None:
            return self.pulled
        back = _unshift(self.pushed)
        return back if back is None or self.pulled is None else back.after(self.pulled)

    @property
    def back(self) -> Affine | None:
        """`v` as a map of `w`; None where `pulled` is more than a shift."""
        if self.pulled is None:
            return self.pushed
        back = _unshift(self.pulled)
        return back if back is None or self.pushed is None else back.after(self.pushed)


def _unshift(affine: Affine) -> Affine | None:
    """The inverse of a shift, which is a subtraction and thus exact; None for any other map."""
    return affine.with_shift(-affine.shift) if np.all(affine.scale == 1) else None


@dataclass(frozen=True, eq=False)
class Certificate:
    """The claim that a result is its original.

    Attributes:
        original, result: digests, as `bnfold.proof.models.digest` makes them.
        names: for each value of the original that has another name in the result, that name.
        relations: for each value that changed, how.
        vanished: nodes of the original that are gone; one of their inputs takes the place of their output.
        merged: nodes of the original that became one operator, each with the first output of the node that stayed.
        shapes: shapes and element types of values where they do not follow from the inputs. A run of the original
            showed them. They are not proved but assumed, and a proof that rests on one says so.
        inlined: functions of the original whose calls `bnfold.proof.inlining` writes out before anything else. All
            other claims are about what that makes of the original.
    """

    original: str
    result: str
    names: dict[Name, str]
    relations: dict[Name, Relation]
    vanished: frozenset[Name]
    merged: dict[Name, str]
    shapes: dict[Name, tuple[Shape, int]] = field(default_factory=dict)
    inlined: tuple[Key, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it claims that nothing changed."""
        return not (self.names or self.relations or self.vanished or self.merged or self.inlined)

    def to_json(self) -> str:
        """One JSON document."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "original": self.original,
            "result": self.result,
            "names": [{"scope": scope, "value": value, "result": name} for (scope, value), name in self.names.items()],
            "relations": [
                {
                    "scope": scope,
                    "value": value,
                    "pulled": _plain(relation.pulled),
                    "pushed": _plain(relation.pushed),
                }
                for (scope, value), relation in self.relations.items()
            ],
            "vanished": [{"scope": scope, "node": node} for scope, node in sorted(self.vanished)],
            "merged": [{"scope": scope, "node": node, "into": into} for (scope, node), into in self.merged.items()],
            "shapes": [
                {"scope": scope, "value": value, "shape": list(shape), "type": kind}
                for (scope, value), (shape, kind) in self.shapes.items()
            ],
        }
        if self.inlined:
            document["inlined"] = [dict(zip(FUNCTION, function, strict=True)) for function in self.inlined]
        return json.dumps(document, indent=1, ensure_ascii=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "certificate") -> Certificate:
        """Read a certificate from a document that nobody vouches for.

        Raises:
            InvalidModelError: the document is no certificate.
        """
        try:
            return _read(json.loads(text, parse_constant=_refuse))
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
            raise InvalidModelError(f"{name}: not a certificate of bnfold ({error})") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _plain(affine: Affine | None) -> dict[str, Any] | None:
    if affine is None:
        return None
    vectors = {"scale": _encode(affine.scale), "shift": _encode(affine.shift)}
    if isinstance(affine, Grid):
        return {"axes": [*affine.axes], "lengths": [*affine.lengths], **vectors}
    return {"axis": affine.axis, **vectors}


def _encode(vector: Array) -> str:
    return base64.b64encode(vector.astype("<f8").tobytes()).decode("ascii")


def _read(parsed: Any) -> Certificate:
    keys = ("schema", "original", "result", "names", "relations", "vanished", "merged", "shapes")
    has_inlined = isinstance(parsed, dict) and "inlined" in parsed
    document = _keys(parsed, (*keys, "inlined") if has_inlined else keys)
    if document["schema"] != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    for key in ("original", "result"):
        if not (isinstance(document[key], str) and len(document[key]) == 64 and document[key].isascii()):
            raise ValueError(f"{key!r} is no SHA-256")
    vanished = _table(document["vanished"], ("scope", "node"), lambda entry: None)
    return Certificate(
        document["original"],
        document["result"],
        _table(document["names"], ("scope", "value", "result"), lambda entry: _text(entry["result"])),
        _table(document["relations"], ("scope", "value", "pulled", "pushed"), _relation),
        frozenset(vanished),
        _table(document["merged"], ("scope", "node", "into"), lambda entry: _text(entry["into"])),
        _table(document["shapes"], ("scope", "value", "shape", "type"), _shape),
        _functions(document["inlined"]) if has_inlined else (),
    )


def _functions(parsed: Any) -> tuple[Key, ...]:
    if not isinstance(parsed, list) or not parsed:
        raise ValueError("the list of functions is empty")
    functions: list[Key] = []
    for row in parsed:
        entry = _keys(row, FUNCTION)
        if not all(isinstance(entry[key], str) for key in FUNCTION):
            raise ValueError("a name is no text")
        functions.append((entry["domain"], _text(entry["name"]), entry["overload"]))
    if len({*functions}) != len(functions):
        raise ValueError("a function is there twice")
    return tuple(functions)


def _keys(parsed: Any, keys: Iterable[str]) -> dict[str, Any]:
    """Check that a JSON value is an object with exactly these keys."""
    if not isinstance(parsed, dict) or parsed.keys() != set(keys):
        raise ValueError(f"an object has not exactly the keys {', '.join(keys)}")
    return parsed


def _text(parsed: Any) -> str:
    if not isinstance(parsed, str) or not parsed:
        raise ValueError("a name is no text")
    return parsed


def _table(parsed: Any, keys: tuple[str, ...], read: Callable[[dict[str, Any]], T]) -> dict[Name, T]:
    if not isinstance(parsed, list):
        raise ValueError("a list is missing")
    table: dict[Name, T] = {}
    for row in parsed:
        entry = _keys(row, keys)
        key = _text(entry["scope"]), _text(entry[keys[1]])
        if key in table:
            raise ValueError(f"{key[1]!r} is there twice")
        table[key] = read(entry)
    return table


def _relation(entry: dict[str, Any]) -> Relation:
    relation = Relation(_affine(entry["pulled"]), _affine(entry["pushed"]))
    if relation.pulled is None and relation.pushed is None:
        raise ValueError(f"{entry['value']!r} does not change")
    if relation.pulled and relation.pushed and relation.pulled.places != relation.pushed.places:
        raise ValueError(f"the two maps of {entry['value']!r} do not fit each other")
    return relation


def _shape(entry: dict[str, Any]) -> tuple[Shape, int]:
    sizes, kind = entry["shape"], entry["type"]
    if not isinstance(sizes, list) or len(sizes) > AXES or type(kind) is not int or not 0 < kind < 64:
        raise ValueError(f"the shape of {entry['value']!r} is none")
    if any(size is not None and (type(size) is not int or not 0 <= size < 1 << 48) for size in sizes):
        raise ValueError(f"the shape of {entry['value']!r} is none")
    return tuple(sizes), kind


def _affine(parsed: Any) -> Affine | None:
    if parsed is None:
        return None
    is_grid = isinstance(parsed, dict) and "axes" in parsed
    entry = _keys(parsed, ("axes", "lengths", "scale", "shift") if is_grid else ("axis", "scale", "shift"))
    axes = entry["axes"] if is_grid else [entry["axis"]]
    if not isinstance(axes, list) or any(type(axis) is not int or not 0 <= axis < AXES for axis in axes):
        raise ValueError("an axis is no small number")
    scale, shift = _decode(entry["scale"]), _decode(entry["shift"])
    if scale.shape != shift.shape:
        raise ValueError("scale and shift have different lengths")
    if not is_grid:
        return Affine(scale, shift, axes[0])
    lengths = entry["lengths"]
    if len(axes) < 2 or axes != sorted(set(axes)) or not isinstance(lengths, list) or len(lengths) != len(axes):
        raise ValueError("a map along several axes has no such axes")
    if any(type(length) is not int or length < 1 for length in lengths) or math.prod(lengths) != scale.size:
        raise ValueError("a map along several axes has no such lengths")
    return Grid(scale, shift, SEVERAL, axes=tuple(axes), lengths=tuple(lengths))


def _decode(parsed: Any) -> Array:
    content = base64.b64decode(_text(parsed), validate=True)
    if len(content) % 8 or not 0 < len(content) <= 8 * CHANNEL_LIMIT:
        raise ValueError("a vector is cut off, or too long")
    vector = np.frombuffer(content, "<f8").astype(np.float64)
    if not np.isfinite(vector).all():
        raise ValueError("a vector holds a number that is not finite")
    return vector
