"""What became of the BatchNorms: the sections of `fuse` and `inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnfold.report.documents import Record
from bnfold.report.html import drawings
from bnfold.report.html.parts import Cell, Column, Section, Table, name_cell, number_cell
from bnfold.report.html.text import MISSING, count, plural, scientific, shown

DRAWN_OPEN, DRAWN = 40, 400
"""So many BatchNorms have an open picture, and so many one at all, lest the page grow without bound."""


def outcome_name(outcome: Mapping[str, Any], key: str = "batchnorm") -> str:
    """The node's name, after its scope where that is not the main graph."""
    scope, name = outcome.get("scope", "main"), str(outcome.get(key, ""))
    return name if scope == "main" else f"{scope}/{name}"


def batchnorms(outcomes: Sequence[Record] | None) -> Section | None:
    """What became of each BatchNorm, with a picture."""
    if outcomes is None:
        return None
    columns = (
        Column("BatchNorm"),
        Column("outcome"),
        Column("the graph around it", is_sortable=False),
        Column("where, or why not", is_wide=True),
        Column("rounding", is_number=True),
    )
    rows = [_outcome_row(each, f"p{index}", index < DRAWN) for index, each in enumerate(outcomes)]
    sentences = [
        "A BatchNorm in evaluation mode is a scale and a shift for each channel. Operators absorb it into their "
        "weights; others on the way carry it. Rounding is the largest relative error of the weights written. A picture "
        "has the operators that carry it in one column, whether they follow each other or stand side by side."
    ]
    if len(outcomes) > DRAWN:
        sentences.append(f"The first {DRAWN} are drawn.")
    table = Table("What became of each BatchNorm", columns, rows, hides_figures=len(rows) > DRAWN_OPEN)
    return Section(
        "batchnorms", "BatchNorms", sentences if rows else ["The model has none."], tables=[table] if rows else []
    )


def _outcome_row(outcome: Record, key: str, is_drawn: bool) -> list[Cell]:
    is_folded = outcome.get("status") == "folded"
    return [
        name_cell(outcome_name(outcome)),
        Cell(shown(outcome.get("status", MISSING)), mood="good" if is_folded else "unsure"),
        Cell("", figure=drawings.picture(outcome, key)) if is_drawn else Cell(MISSING),
        Cell(_where(outcome)),
        number_cell(scientific(outcome.get("rounding")), outcome.get("rounding")),
    ]


def _where(outcome: Record) -> str:
    if outcome.get("status") == "folded":
        through = outcome.get("through") or []
        carried = f" through {_listed(through)}" if through else ""
        return f"{shown(outcome.get('direction', ''))} into {_listed(outcome.get('into') or [])}{carried}"
    return f"{shown(outcome.get('reason', ''))}: {shown(outcome.get('detail', ''), 300)}"


def _listed(names: Sequence[object]) -> str:
    """The first few names."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name, 60) for name in names[:3]) + rest


def stayed(outcomes: Sequence[Record] | None) -> Section | None:
    """The reasons of those that stayed, with what would help."""
    kept = [each for each in outcomes or [] if each.get("status") == "kept"]
    if not kept:
        return None
    reasons: dict[str, list[Record]] = {}
    for each in kept:
        reasons.setdefault(str(each.get("reason", "")), []).append(each)
    rows = []
    for reason, group in sorted(reasons.items(), key=lambda item: -len(item[1])):
        details = list(dict.fromkeys(shown(each.get("detail", ""), 200) for each in group))
        more = f"; and {plural(len(details) - 2, 'further detail')}" if len(details) > 2 else ""
        advice = group[0].get("advice")
        rows.append(
            [
                Cell(shown(reason)),
                number_cell(count(len(group)), len(group)),
                Cell("; ".join(details[:2]) + more),
                Cell(shown(advice, 300) if advice else "no change that bnfold knows of"),
            ]
        )
    columns = (
        Column("reason"),
        Column("BatchNorms", is_number=True),
        Column("what stops it", is_wide=True),
        Column("what would help", is_wide=True),
    )
    sentences = ["What stays is computed as before, so the results stay right."]
    return Section("stayed", "What stayed, and why", sentences, tables=[Table("Reasons", columns, rows)])


def affines(outcomes: Sequence[Record] | None) -> Section | None:
    """What folded and is no BatchNorm."""
    if not outcomes:
        return None
    rows = [
        [
            name_cell(outcome_name(each)),
            Cell(shown(each.get("direction", MISSING))),
            Cell(_listed(each.get("into") or []) or MISSING),
            Cell(_listed(each.get("through") or []) or MISSING),
        ]
        for each in outcomes
    ]
    columns = (Column("operator"), Column("direction"), Column("absorbed by"), Column("carried through"))
    table = Table(plural(len(rows), "per-channel affine"), columns, rows, is_collapsed=True)
    sentences = ["Scales and shifts that are no BatchNorm, and folded in their own right or together with one."]
    return Section("affines", "Other per-channel affines", sentences, tables=[table])


def merges(merged: Sequence[Record] | None) -> Section | None:
    """Linear operators that became one."""
    if not merged:
        return None
    rows = [
        [
            name_cell(outcome_name(each, "into")),
            Cell(_listed(each.get("branches") or []) or MISSING),
            Cell(_listed(each.get("through") or []) or MISSING),
            number_cell(scientific(each.get("rounding")), each.get("rounding")),
        ]
        for each in merged
    ]
    columns = (
        Column("operator"),
        Column("takes the place of", is_wide=True),
        Column("and of the additions"),
        Column("rounding", is_number=True),
    )
    sentences = [
        "Parallel branches that are added up, and linear operators in a row, are one operator where that is cheaper."
    ]
    return Section("merges", "Merged operators", sentences, tables=[Table("Merges", columns, rows)])


def cautions(warnings: Sequence[Any] | None) -> Section | None:
    """What looks wrong, though nothing stops on it."""
    if not warnings:
        return None
    rows = [
        [
            name_cell(outcome_name(each, "batchnorm" if each.get("batchnorm") else "value")),
            Cell(shown(each.get("kind", MISSING))),
            number_cell(count(len(each.get("channels") or [])), len(each.get("channels") or [])),
            Cell(shown(each.get("detail", ""), 400)),
        ]
        for each in (each if isinstance(each, dict) else {"detail": each} for each in warnings)
    ]
    columns = (
        Column("BatchNorm or value"),
        Column("kind"),
        Column("channels", is_number=True),
        Column("detail", is_wide=True),
    )
    return Section("warnings", "Warnings", tables=[Table("Warnings", columns, rows)])
