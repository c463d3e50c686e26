"""The result of `diff`, as a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isfinite

from bnfold.api import DiffResult
from bnfold.difference.changes import WeightChange
from bnfold.difference.fates import Fate
from bnfold.difference.outline import Item, Outline
from bnfold.graph.outcome import Fold
from bnfold.report import documents
from bnfold.report.documents import SCHEMA
from bnfold.report.record import record_fold, record_refusal

NEIGHBOURS = 4
"""The most neighbours of a BatchNorm that are told, on either side of it."""


def record_diff(result: DiffResult) -> documents.DiffDocument:
    """The record of `diff`."""
    difference = result.difference
    fates = [_fate(result, fate) for fate in difference.fates]
    return {
        "schema": SCHEMA,
        "command": "diff",
        "reference": str(result.one),
        "candidate": str(result.other),
        "identical": result.is_identical,
        "related": difference.is_related,
        "statuses": dict(Counter(fate["status"] for fate in fates)),
        "fates": fates,
        "nodes": {
            "before": len(difference.trace.one.items),
            "after": len(difference.trace.other.items),
            "gone": list(map(_node, difference.gone)),
            "new": list(map(_node, difference.new)),
            "changed": [
                {
                    "name": change.item.name,
                    "scope": change.item.scope,
                    "other": change.twin.name,
                    "changes": list(change.sentences),
                }
                for change in difference.changed
            ],
        },
        "weights": {
            "changed": list(map(_weight, difference.weights)),
            "gone": list(difference.lost),
            "new": list(difference.gained),
        },
        "interface": [*result.interface, *difference.outputs],
        "seconds": round(result.seconds, 3),
    }


def _node(item: Item) -> documents.NodeOf:
    return {"name": item.name, "scope": item.scope, "operator": item.operator}


def _weight(change: WeightChange) -> documents.ChangedWeight:
    largest, detail = change.largest, change.detail
    if largest is not None and not isfinite(largest):
        largest, detail = None, ", ".join(filter(None, [detail, "its values do not compare"]))
    return {"name": change.name, "largest": largest, "detail": detail}


def _fate(result: DiffResult, fate: Fate) -> documents.FateOf:
    difference, item = result.difference, fate.batchnorm
    outcome = difference.said.get(item)
    said: documents.Folded | documents.Kept | None = None
    if outcome is not None:
        said = record_fold(outcome) if isinstance(outcome, Fold) else record_refusal(outcome)  # type: ignore[arg-type]
    return {
        "batchnorm": item.name,
        "scope": item.scope,
        "status": fate.way.value,
        "into": [each.name for each in fate.into],
        "operators": [each.operator for each in fate.into],
        "direction": fate.direction,
        "others": [each.name for each in fate.others],
        "detail": fate.detail,
        "bnfold": said,
        "before": _around(difference.trace.one, [item], "batchnorm"),
        "after": _around(difference.trace.other, fate.into, "into"),
    }


def _around(outline: Outline, items: Sequence[Item], role: str) -> list[documents.Around]:
    """Some nodes with those next to them, in the order of the data."""
    makers = [maker for item in items for value in item.inputs if (maker := outline.makers.get(value)) is not None]
    readers = [reader for item in items for value in item.outputs for reader, _ in outline.readers.get(value, ())]
    shown = {*items, *makers[:NEIGHBOURS], *readers[:NEIGHBOURS]}
    return [
        {
            "name": item.name,
            "operator": item.operator,
            "role": role if item in items else "beside",  # type: ignore[typeddict-item]
        }
        for item in sorted(shown, key=lambda item: item.index)
    ]
