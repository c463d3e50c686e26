"""What a fleet comes to: sums, and the few models that a reader wants to know by name."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bnfold.errors import one_line
from bnfold.fleet.task import Line

NAMED = 10
"""How many models are named at each end."""

FAILURES = 20
"""How many failures are named."""

WEIGHT = (1, 3, 2)
"""Exit codes that are not 0, the one that outweighs the others first: a clear no, then what has no answer."""


def message_of(line: Line) -> str:
    """Why a model did not end well, on one line; empty where it did."""
    record, code = line["record"], line["exit_code"]
    if "error" in record:
        return one_line(record["error"]["message"], 300)
    if not code:
        return ""
    return one_line(_refusal(record), 300)


def _refusal(record: dict[str, Any]) -> str:
    """Why the answer of a record is no."""
    if record["command"] == "inspect":
        return f"{record['batchnorms']['folded']} of its BatchNorms could fold"
    if record["command"] == "bench":
        return "a gate on its latency is not met"
    verification = record if record["command"] == "verify" else record.get("verification") or {}
    divergence = verification.get("first_divergence")
    if divergence:
        return f"not equivalent: {divergence['name']} {divergence['reason']}"
    return f"not equivalent: {next(iter(verification.get('findings', ())), 'see its report')}"


@dataclass
class Totals:
    """Sums over the lines of a run.

    Attributes:
        codes: how many models ended with each exit code.
        found, folded, kept: how many BatchNorms there are, fold, and stay.
        reasons: how many stay for each reason.
        before, after: bytes of the models, where there is an output.
        seconds: the time that all models took, each by itself.
        peak_bytes: the most memory that one of them took.
        slowest, largest: the models at these ends, with their seconds and bytes.
        failures: the first failures, with their line.
    """

    codes: Counter[int] = field(default_factory=Counter)
    found: int = 0
    folded: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    before: int = 0
    after: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    slowest: list[tuple[float, str]] = field(default_factory=list)
    largest: list[tuple[int, str]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """Add a model."""
        record: dict[str, Any] = line["record"]
        self.codes[line["exit_code"]] += 1
        self.seconds += line["seconds"]
        self.peak_bytes = max(self.peak_bytes, line["peak_bytes"] or 0)
        _keep(self.slowest, (line["seconds"], line["source"]))
        _keep(self.largest, (line["bytes"], line["source"]))
        if "batchnorms" in record:
            for name in ("found", "folded", "kept"):
                setattr(self, name, getattr(self, name) + record["batchnorms"][name])
            self.reasons.update(_reasons(record["outcomes"]))
        if record.get("bytes", {}).get("after") is not None:
            self.before += record["bytes"]["before"]
            self.after += record["bytes"]["after"]
        if line["exit_code"] and len(self.failures) < FAILURES:
            self.failures.append((line["source"], message_of(line)))

    @property
    def models(self) -> int:
        """How many models there are."""
        return self.codes.total()

    @property
    def exit_code(self) -> int:
        """The exit code of the whole."""
        return next((code for code in WEIGHT if self.codes[code]), 3 if self.models - self.codes[0] else 0)


def _reasons(outcomes: Iterable[dict[str, Any]]) -> Iterable[str]:
    return (outcome["reason"] for outcome in outcomes if outcome["status"] == "kept")


def _keep(heap: list[Any], entry: tuple[float, str]) -> None:
    """Keep the largest entries."""
    (heapq.heappush if len(heap) < NAMED else heapq.heappushpop)(heap, entry)
