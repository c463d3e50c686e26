"""The result of a fleet as a document, and its models as rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bnfold.fleet.engine import FleetResult
from bnfold.fleet.task import Line
from bnfold.fleet.totals import message_of
from bnfold.report import documents
from bnfold.report.documents import SCHEMA

ROWS = 10_000
"""How many models a report lists. A browser still sorts and filters them at once."""


@dataclass
class Rows:
    """The models that a report lists, as they come. Those that did not end well are listed first of all.

    Attributes:
        page: makes the page of a model; gives where it is, relative to the report, or None.
        limit: how many models are listed.
    """

    page: Callable[[Line], str | None] = lambda line: None
    limit: int = ROWS
    _bad: list[documents.FleetRow] = field(default_factory=list)
    _good: list[documents.FleetRow] = field(default_factory=list)
    _omitted: int = 0

    def add(self, line: Line) -> None:
        """Add a model."""
        kind = self._bad if line["exit_code"] else self._good
        if len(kind) >= self.limit or (kind is self._good and len(self._bad) + len(self._good) >= self.limit):
            self._omitted += 1
            return
        kind.append(_row(line, self.page(line)))

    def complete(self, document: documents.FleetDocument) -> documents.FleetDocument:
        """The document with these rows."""
        rows = [*self._bad, *self._good]
        return {**document, "rows": rows[: self.limit], "omitted": self._omitted + max(0, len(rows) - self.limit)}


def _row(line: Line, page: str | None) -> documents.FleetRow:
    counts: dict[str, int] = line["record"].get("batchnorms", {})
    return {
        "source": line["source"],
        "output": line["output"] if not line["exit_code"] else None,
        "exit_code": line["exit_code"],
        "message": message_of(line) or None,
        "found": counts.get("found"),
        "folded": counts.get("folded"),
        "kept": counts.get("kept"),
        "bytes": line["bytes"],
        "seconds": line["seconds"],
        "peak_bytes": line["peak_bytes"],
        "worker": line["worker"],
        "report": page,
    }


def record_fleet(result: FleetResult) -> documents.FleetDocument:
    """The record of `fleet`."""
    totals = result.totals
    codes: Any = totals.codes
    bad = {code: codes[code] for code in (0, 1, 2)}
    has_outputs = result.command == "fuse"
    return {
        "schema": SCHEMA,
        "command": "fleet",
        "task": result.command,
        "out": result.out,
        "ledger": None if result.ledger is None else str(result.ledger),
        "exit_code": result.exit_code,
        "counts": {
            "found": totals.models + result.left_out,
            "well": bad[0],
            "no": bad[1],
            "refused": bad[2],
            "failed": totals.models - sum(bad.values()),
            "unchanged": result.unchanged,
            "left_out": result.left_out,
        },
        "batchnorms": {"found": totals.found, "folded": totals.folded, "kept": totals.kept},
        "reasons": dict(totals.reasons.most_common()),
        "bytes": {"before": totals.before, "after": totals.after if has_outputs else None},
        "seconds": round(result.seconds, 3),
        "model_seconds": round(totals.seconds, 3),
        "peak_bytes": totals.peak_bytes,
        "workers": result.workers,
        "slowest": [{"source": name, "seconds": seconds} for seconds, name in sorted(totals.slowest, reverse=True)],
        "largest": [{"source": name, "bytes": size} for size, name in sorted(totals.largest, reverse=True)],
        "failures": [{"source": source, "message": message} for source, message in totals.failures],
    }
