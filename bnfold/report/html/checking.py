"""Whether two models are equivalent: the section of `verify`, and of the verification inside `fuse`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnfold.report.html import figures
from bnfold.report.html.parts import Cell, Column, Section, Table, name_cell, number_cell, terms
from bnfold.report.html.text import MISSING, plain, plural, scientific, shown
from bnfold.report.record import Record

LISTED = 200
"""Inner values in the table: the worst."""


def verification_of(record: Record) -> Record | None:
    """The verification inside the record of `fuse`, or the record of `verify` itself."""
    if "equivalent" in record:
        return record
    inner = record.get("verification")
    return inner if isinstance(inner, dict) else None


def verification_section(verification: Record) -> Section:
    """The outputs, the inner values in graph order, and the first that differs."""
    outputs, values = verification.get("outputs") or [], verification.get("values") or []
    sentences = [shown(each, 600) for each in verification.get("findings") or []]
    inputs = verification.get("inputs")
    ran = inputs if isinstance(inputs, int) else len(inputs) if isinstance(inputs, list) else None
    if ran is not None:
        sentences.append(f"Both models ran on {plural(ran, 'set')} of inputs.")
    tables = [_errors_table("Outputs", outputs)] if outputs else []
    drawn = [figures.read_value(each, index) for index, each in enumerate(values)]
    if values:
        worst = sorted(zip(drawn, values, strict=True), key=lambda pair: figures.badness(pair[0]), reverse=True)
        caption = "Inner values" if len(values) <= LISTED else f"The worst {LISTED} of {len(values):,} inner values"
        tables.append(_errors_table(caption, [each for _, each in worst[:LISTED]], is_collapsed=True))
    divergence = verification.get("first_divergence")
    return Section(
        "verification",
        "Verification",
        sentences,
        figures=[figures.errors(drawn, "errors")] if drawn else [],
        tables=tables,
        terms=[terms("First divergence", divergence)] if isinstance(divergence, dict) else [],
    )


def _errors_table(caption: str, rows: Sequence[Record], is_collapsed: bool = False) -> Table:
    extra = [name for name in ("provider", "snr_db", "argmax_agreement") if any(name in row for row in rows)]
    titles = {"provider": "provider", "snr_db": "signal to noise, dB", "argmax_agreement": "same argmax"}
    columns = [Column("value"), Column("verdict"), Column("error", is_number=True), Column("budget", is_number=True)]
    columns += [Column(titles[name], is_number=name != "provider") for name in extra]
    cells = []
    for row in rows:
        passes = figures.read_value(row, 0).passes
        cells.append(
            [
                name_cell(row.get("name", "")),
                Cell("equivalent" if passes else "differs", mood="good" if passes else "bad"),
                number_cell(scientific(row.get("error")), row.get("error")),
                number_cell(scientific(row.get("budget")), row.get("budget")),
                *(_extra(name, row.get(name)) for name in extra),
            ]
        )
    return Table(caption, columns, cells, is_collapsed)


def _extra(name: str, value: Any) -> Cell:
    if name == "provider":
        return Cell(shown(MISSING if value is None else value))
    return number_cell(plain(value, 4), value)
