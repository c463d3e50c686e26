"""Renders the record as Markdown, for the summary of a CI job or a comment on a change: the answer, then tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from math import inf
from typing import Any, cast

from bnfold.errors import one_line
from bnfold.report import bench_terminal, diff_terminal, fleet_terminal, terminal
from bnfold.report.documents import (
    AnyDocument,
    BenchDocument,
    DiffDocument,
    DriftDocument,
    ErrorDocument,
    FileDocument,
    FleetDocument,
    Kept,
    Output,
    Provenance,
    Verification,
    VerifyDocument,
)

ROWS = 200
"""The most rows of a table: the summaries of CI systems are bounded, at a megabyte on GitHub."""

SPECIAL = "\\`*_[]<>#!|~"

Cells = Sequence[str]


def render(record: AnyDocument) -> str:
    """The record as one Markdown text."""
    if "error" in record:
        lines = _error(cast(ErrorDocument, record))
    elif record["command"] == "bench":
        lines = _bench(record)
    elif record["command"] == "verify":
        lines = _verify(record)
    elif record["command"] == "diff":
        lines = _diff(record)
    elif record["command"] == "fleet":
        lines = _fleet(record)
    else:
        lines = _file(record)
    return "\n".join([*lines, *_origin(record.get("provenance"))]) + "\n"


def text(value: object) -> str:
    """Any text, which may come from a model, as plain words within a line of Markdown."""
    return "".join(f"\\{char}" if char in SPECIAL else char for char in one_line(str(value)))


def _title(command: str, name: str, mark: str) -> list[str]:
    return [f"### {mark} bnfold {command}: {text(name)}", ""]


def _mark(is_good: bool) -> str:
    return "✅" if is_good else "❌"


def _table(head: Cells, rows: Sequence[Cells]) -> list[str]:
    """A table, whose cells are plain text; empty without rows."""
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *([text(cell) for cell in row] for row in rows[:ROWS])]
    rest = [f"... and {len(rows) - ROWS} more", ""] if len(rows) > ROWS else []
    return [*(f"| {' | '.join(cells)} |" for cells in lines), "", *rest]


def _folded_away(summary: str, lines: Sequence[str]) -> list[str]:
    """A part that opens on a click."""
    return [f"<details><summary>{escape(summary)}</summary>", "", *lines, "</details>", ""] if lines else []


def _error(record: ErrorDocument) -> list[str]:
    return [*_title(record["command"], "no answer", "⚠️"), text(record["error"]["message"]), ""]


def _file(record: FileDocument) -> list[str]:
    counts, verification = record["batchnorms"], record["verification"]
    is_red = bool(record.get("fail_on_foldable") and counts["folded"])
    is_red |= verification is not None and not verification["equivalent"]
    is_red |= "drift" in record and record["drift"]["largest"] > (record["drift"]["limit"] or inf)
    kept = [row for row in record["outcomes"] if row["status"] == "kept"]
    lines = _title(record["command"], record["model"], _mark(not is_red))
    lines += [f"- {text(line)}" for line in terminal.summary(record)] + [""]
    lines += _reasons(kept)
    lines += _folded_away(
        f"What stayed, and why ({len(kept)})",
        _table(
            ("BatchNorm", "reason", "at", "detail"),
            [(_name(row), row["reason"], row["at"], row["detail"]) for row in kept],
        ),
    )
    folds = [row for row in record["outcomes"] if row["status"] == "folded"]
    word = "would fold" if record["output"] is None else "folded"
    lines += _folded_away(
        f"What {word} ({len(folds)})",
        _table(
            ("BatchNorm", "direction", "into", "through"),
            [(_name(row), row["direction"], ", ".join(row["into"]), ", ".join(row["through"])) for row in folds],
        ),
    )
    lines += [f"- warning: {text(warning['batchnorm'] or warning['value'])}: {text(warning['detail'])}"
              for warning in record["warnings"][:ROWS]]  # fmt: skip
    lines += _drift(record["drift"]) if "drift" in record else []
    lines += _judgement(verification) if verification is not None else []
    return lines + (_timings(timed) if (timed := record.get("bench")) else [])


def _name(row: Any) -> str:
    return str(row["batchnorm"] if row["scope"] == "main" else f"{row['scope']}/{row['batchnorm']}")


def _reasons(kept: Sequence[Kept]) -> list[str]:
    """How many BatchNorms stay for which reason, with what would help."""
    counts = Counter(row["reason"] for row in kept)
    advice = {row["reason"]: row["advice"] or "" for row in kept}
    return _table(
        ("stays because", "BatchNorms", "what would help"),
        [(reason, f"{count:,}", advice[reason]) for reason, count in counts.most_common()],
    )


def _drift(drift: DriftDocument) -> list[str]:
    ordered = sorted(drift["batchnorms"], key=lambda row: -abs(row["shift"]))
    rows = [(_name(row), f"{row['shift']:.2g}", str(row["channel"]), f"{row['ratio']:.2g}") for row in ordered]
    head = ("BatchNorm", "mean off by (running deviations)", "in channel", "variance over running variance")
    said = f"{drift['samples']} samples: at most {drift['largest']:.2g} running deviations off, beside chance"
    return _folded_away(said, _table(head, rows))


def _verify(record: VerifyDocument) -> list[str]:
    lines = _title("verify", f"{record['reference']} and {record['candidate']}", _mark(record["equivalent"]))
    said = terminal.proof_line(record["proof"]) if "proof" in record else terminal.judgement_line(record)
    return [*lines, f"**{text(said)}**", "", *_judgement(record)]


def _judgement(verification: Verification) -> list[str]:
    """What was compared, and what was found."""
    outputs = verification["outputs"]
    lines = _table(
        ("output", "run by", "answer", "error", "budget"),
        [(row["name"], _place(row), row["reason"] or "same", _e(row["error"]), _e(row["budget"])) for row in outputs],
    )
    differing = [row for row in verification["values"] if row["reason"]]
    lines += _table(
        ("inner value", "difference", "on the input"),
        [(row["name"], row["reason"] or "", row["input"]) for row in differing],
    )
    lines += [f"- differs: {text(change)}" for change in verification.get("interface", ())]
    return [*lines, *(f"- {text(finding)}" for finding in verification["findings"]), ""]


def _place(output: Output) -> str:
    return output["provider"] if output["level"] == "disabled" else f"{output['provider']}, as deployed"


def _e(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _diff(record: DiffDocument) -> list[str]:
    mark = _mark(not (record.get("fail_on_difference") and not record["identical"]))
    lines = _title("diff", f"{record['reference']} and {record['candidate']}", mark)
    found = list(diff_terminal.lines(record, verbose=False))
    listed = [f"{'  ' if line.startswith(' ') else ''}- {text(line.strip())}" for line in found]
    return [*lines, f"**{text(diff_terminal.summary(record))}**", "", *listed, ""]


def _fleet(record: FleetDocument) -> list[str]:
    lines = _title(f"fleet {record['task']}", str(record["out"] or ""), _mark(not record["exit_code"]))
    lines += [f"- {text(line)}" for line in fleet_terminal.summary(record)] + [""]
    lines += _table(
        ("stays because", "BatchNorms"), [(reason, f"{count:,}") for reason, count in record["reasons"].items()]
    )
    failures = [(failure["source"], failure["message"]) for failure in record["failures"]]
    return [*lines, *_table(("model", "why it did not end well"), failures)]


def _bench(record: BenchDocument) -> list[str]:
    gates = [entry["gate"] for entry in record["entries"] if entry["gate"] is not None]
    is_red = "not met" in gates or ("cannot tell" in gates and record["method"]["require"] is not None)
    names = " and ".join(model["model"] for model in record["models"])
    return [*_title("bench", names, _mark(not is_red)), *_timings(record)]


def _timings(record: BenchDocument) -> list[str]:
    names = bench_terminal.short_names([model["model"] for model in record["models"]])
    columns = bench_terminal.COLUMNS
    lines: list[str] = []
    for entry_columns, rows in _groups(record, names):
        lines += [f"{text(entry_columns)} (milliseconds)", ""]
        lines += _table([column.label for column in columns], [[str(c.cell(row)) for c in columns] for row in rows])
    return [*lines, *(f"- {text(line)}" for line in bench_terminal.conclusions(record)), ""]


def _groups(record: BenchDocument, names: Sequence[str]) -> Iterator[tuple[str, list[bench_terminal.Timed]]]:
    """The timings of each provider and level, with their title."""
    places = [" at level ".join(filter(None, [entry["provider"], entry["level"]])) for entry in record["entries"]]
    for where in dict.fromkeys(places):
        chosen = [entry for entry, place in zip(record["entries"], places, strict=True) if place == where]
        yield where, [bench_terminal.Timed(names[entry["index"]], entry) for entry in chosen]


def _origin(provenance: Provenance | None) -> list[str]:
    """Where the record comes from, in small print."""
    if provenance is None:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in provenance["libraries"].items())
    return [f"<sub>{text(provenance['date'])}, {text(versions)}</sub>"]
