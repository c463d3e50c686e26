"""Running statistics beside data: the section of `inspect --inputs`."""

from __future__ import annotations

from typing import Any

from bnfold.errors import plural
from bnfold.report.documents import Record
from bnfold.report.html.folding import outcome_name
from bnfold.report.html.parts import Cell, Column, Section, name_cell, number_of, tabulate
from bnfold.report.html.text import MISSING, count, scientific


def drift_section(drift: Any) -> Section | None:
    """How far data are from the statistics that are folded."""
    if not isinstance(drift, dict):
        return None
    rows = sorted(drift.get("batchnorms") or [], key=lambda row: -abs(row.get("shift") or 0.0))
    sentences = [
        f"The model ran on {plural(int(drift.get('samples') or 0), 'sample')}. A mean is off by so many running "
        "deviations; chance is how large that may be by the spread of the samples alone. A variance is told beside "
        "the running one."
    ]
    if drift.get("left_out"):
        sentences.append(f"{plural(int(drift['left_out']), 'BatchNorm')} could not be compared with data.")
    if drift.get("untrained"):
        sentences.append("All running statistics are those of a new model, mean 0 and variance 1.")
    tables = [tabulate("Running statistics beside the data", _DRIFT, rows)] if rows else []
    return Section("data", "Data", sentences, tables=tables)


def _still(row: Record) -> Cell:
    channels = row.get("still") or []
    return Cell(", ".join(map(str, channels[:8])) + (" ..." if len(channels) > 8 else "") if channels else MISSING)


_DRIFT: tuple[Column[Record], ...] = (
    Column("BatchNorm", lambda row: name_cell(outcome_name(row))),
    Column("mean off by", number_of("shift", scientific), is_number=True),
    Column("chance", number_of("chance", scientific), is_number=True),
    Column("in channel", number_of("channel", count), is_number=True),
    Column("variance", number_of("ratio", scientific), is_number=True),
    Column("in channel", number_of("ratio_channel", count), is_number=True),
    Column("never vary", _still),
)
