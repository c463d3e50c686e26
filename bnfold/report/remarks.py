"""What became of each BatchNorm and merge, a line of JSON each, in the manner of LLVM's optimisation remarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from bnfold.report.documents import SCHEMA, FileDocument, Folded, Kept, Merged, Remark, Warned

Name = Literal["statistics", "declaration"]


def find_remarks(record: FileDocument) -> Iterator[Remark]:
    """The remarks on a model: BatchNorms in graph order, then other affines that fold, merges, and warnings."""
    done = record["output"] is not None
    for row in record["outcomes"]:
        yield _missed(record, row) if row["status"] == "kept" else _folded(record, row, is_batchnorm=True, is_done=done)
    for fold in record["affine_outcomes"]:
        yield _folded(record, fold, is_batchnorm=False, is_done=done)
    for merge in record["merges"]:
        yield _merged(record, merge, is_done=done)
    for warning in record["warnings"]:
        yield _warned(record, warning)


def render(record: FileDocument) -> str:
    """The remarks as text, a line each."""
    return "".join(json.dumps(remark, ensure_ascii=False) + "\n" for remark in find_remarks(record))


def _folded(record: FileDocument, row: Folded, *, is_batchnorm: bool, is_done: bool) -> Remark:
    return {
        **_blank(record, row["batchnorm"], row["scope"]),
        "is_batchnorm": is_batchnorm,
        "direction": row["direction"],
        "into": row["into"],
        "through": row["through"],
        "message": f"{'folded' if is_done else 'would fold'} {row['direction']} into {', '.join(row['into'])}",
        "cost": row.get("cost"),
    }


def _missed(record: FileDocument, row: Kept) -> Remark:
    return {
        **_blank(record, row["batchnorm"], row["scope"]),
        "kind": "missed",
        "is_batchnorm": True,
        "reason": row["reason"],
        "at": row["at"],
        "message": f"{row['reason']} at {row['at']}: {row['detail']}",
        "advice": row["advice"],
        "cost": row.get("cost"),
    }


def _merged(record: FileDocument, merge: Merged, *, is_done: bool) -> Remark:
    return {
        **_blank(record, merge["into"], merge["scope"]),
        "name": "merge",
        "into": [merge["into"]],
        "through": merge["through"],
        "message": f"{'takes' if is_done else 'would take'} {', '.join(merge['branches'])}",
    }


def _warned(record: FileDocument, warning: Warned) -> Remark:
    name: Name = "declaration" if warning["batchnorm"] is None else "statistics"
    return {
        **_blank(record, str(warning["batchnorm"] or warning["value"]), warning["scope"]),
        "kind": "analysis",
        "name": name,
        "is_batchnorm": warning["batchnorm"] is not None,
        "reason": warning["kind"],
        "message": warning["detail"],
    }


def _blank(record: FileDocument, node: str, scope: str) -> Remark:
    """A remark on a node of which nothing else is known yet: a fold that was done."""
    return {
        "schema": SCHEMA,
        "kind": "passed",
        "name": "fold",
        "model": record["model"],
        "node": node,
        "scope": scope,
        "is_batchnorm": False,
        "direction": None,
        "into": [],
        "through": [],
        "reason": None,
        "at": None,
        "message": "",
        "advice": None,
        "cost": None,
    }
