"""The sections on the outcomes of BatchNorms, for `fuse` and `inspect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bnfold.errors import plural
from bnfold.report.documents import Record
from bnfold.report.html import drawings
from bnfold.report.html.parts import Cell, Column, Section, name_cell, number_cell, number_of, tabulate, text_of
from bnfold.report.html.text import MISSING, count, scientific, shown

DRAWN_OPEN, DRAWN = 40, 400
"""How many BatchNorms have an open picture, and how many have one at all, so that pages do not grow too large."""


def outcome_name(outcome: Mapping[str, Any], key: str = "batchnorm") -> str:
    """The node's name, after its scope where that is not the main graph."""
    scope, name = outcome.get("scope", "main"), str(outcome.get(key, ""))
    return name if scope == "main" else f"{scope}/{name}"


def batchnorms(outcomes: Sequence[Record] | None, *, is_done: bool) -> Section | None:
    """The outcome of each BatchNorm, with a picture: first those that stay, and of these the most costly."""
    if outcomes is None:
        return None
    ordered = sorted(outcomes, key=lambda outcome: (outcome.get("status") != "kept", -_elements([outcome])))
    rows = [Numbered(number, outcome, is_done) for number, outcome in enumerate(ordered)]
    sentences = [
        "A BatchNorm in evaluation mode is a scale and a shift for each channel. Operators absorb it into their "
        "weights; others on the way carry it. Rounding is the largest relative error of the weights written. A picture "
        "has the operators that carry it in one column, whether they follow each other or stand side by side."
    ]
    has_costs = any(_elements([outcome]) for outcome in outcomes)
    if has_costs:
        sentences.append("Elements are those that one sample of its output has: what it costs where it stays.")
    if len(outcomes) > DRAWN:
        sentences.append(f"The first {DRAWN} are drawn.")
    columns = (*_OUTCOME, *_COST) if has_costs else _OUTCOME
    table = tabulate("What became of each BatchNorm", columns, rows, hides_figures=len(rows) > DRAWN_OPEN)
    return Section(
        "batchnorms", "BatchNorms", sentences if rows else ["The model has none."], tables=[table] if rows else []
    )


class Numbered(NamedTuple):
    """A row: an outcome, its number, and whether the result is written."""

    number: int
    outcome: Record
    is_done: bool


def _status(row: Numbered) -> Cell:
    status = row.outcome.get("status", MISSING)
    word = "would fold" if status == "folded" and not row.is_done else shown(status)
    return Cell(word, mood="good" if status == "folded" else "unsure")


def _picture(row: Numbered) -> Cell:
    if row.number >= DRAWN:
        return Cell(MISSING)
    return Cell("", figure=drawings.picture(row.outcome, f"p{row.number}"))


_OUTCOME: tuple[Column[Numbered], ...] = (
    Column("BatchNorm", lambda row: name_cell(outcome_name(row.outcome))),
    Column("outcome", lambda row: _status(row)),
    Column("the graph around it", _picture, is_sortable=False),
    Column("where, or why not", lambda row: Cell(_where(row.outcome)), is_wide=True),
    Column("rounding", lambda row: number_of("rounding", scientific)(row.outcome), is_number=True),
)


def _elements(outcomes: Sequence[Record]) -> int:
    """How many elements the outputs of some BatchNorms have, as far as that is known."""
    return sum((outcome.get("cost") or {}).get("elements") or 0 for outcome in outcomes)


def _cost(outcomes: Sequence[Record]) -> Cell:
    elements = _elements(outcomes)
    return number_cell(count(elements), elements) if elements else Cell(MISSING)


_COST: tuple[Column[Numbered], ...] = (Column("elements", lambda row: _cost([row.outcome]), is_number=True),)


def _where(outcome: Record) -> str:
    if outcome.get("status") == "folded":
        if outcome.get("direction") == "computed":
            return f"computed once, for {_listed(outcome.get('into') or [])}"
        through = outcome.get("through") or []
        carried = f" through {_listed(through)}" if through else ""
        return f"{shown(outcome.get('direction', ''))} into {_listed(outcome.get('into') or [])}{carried}"
    return f"{shown(outcome.get('reason', ''))}: {shown(outcome.get('detail', ''), 300)}"


def _listed(names: Sequence[object]) -> str:
    """The first few names."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name, 60) for name in names[:3]) + rest


def stayed(outcomes: Sequence[Record] | None) -> Section | None:
    """The reasons of BatchNorms that stayed, with advice."""
    kept = [entry for entry in outcomes or [] if entry.get("status") == "kept"]
    if not kept:
        return None
    reasons: dict[str, list[Record]] = {}
    for outcome in kept:
        reasons.setdefault(str(outcome.get("reason", "")), []).append(outcome)
    costly_first = sorted(reasons.items(), key=lambda item: (-_elements(item[1]), -len(item[1])))
    rows = [Stopped(reason, group) for reason, group in costly_first]
    sentences = ["What stays is computed as before, so the results stay right."]
    columns = (*_REASON, *_REASON_COST) if _elements(kept) else _REASON
    return Section("stayed", "What stayed, and why", sentences, tables=[tabulate("Reasons", columns, rows)])


class Stopped(NamedTuple):
    """A row: a reason, and the outcomes that have it."""

    reason: str
    outcomes: list[Record]


_REASON: tuple[Column[Stopped], ...] = (
    Column("reason", lambda row: Cell(shown(row.reason))),
    Column("BatchNorms", lambda row: _count(row.outcomes), is_number=True),
    Column("what stops it", lambda row: Cell(_details(row.outcomes)), is_wide=True),
    Column("what would help", lambda row: Cell(_advice(row.outcomes)), is_wide=True),
)


_REASON_COST: tuple[Column[Stopped], ...] = (Column("elements", lambda row: _cost(row.outcomes), is_number=True),)


def _count(things: Sequence[Any]) -> Cell:
    return number_cell(count(len(things)), len(things))


def _details(outcomes: Sequence[Record]) -> str:
    details = list(dict.fromkeys(shown(outcome.get("detail", ""), 200) for outcome in outcomes))
    more = f"; and {plural(len(details) - 2, 'further detail')}" if len(details) > 2 else ""
    return "; ".join(details[:2]) + more


def _advice(outcomes: Sequence[Record]) -> str:
    advice = outcomes[0].get("advice")
    return shown(advice, 300) if advice else "no change that bnfold knows of"


def affines(outcomes: Sequence[Record] | None) -> Section | None:
    """The other per-channel affines that folded."""
    if not outcomes:
        return None
    table = tabulate(plural(len(outcomes), "per-channel affine"), _AFFINE, outcomes, is_collapsed=True)
    sentences = ["Scales and shifts that are no BatchNorm, and folded in their own right or together with one."]
    return Section("affines", "Other per-channel affines", sentences, tables=[table])


def _names_of(key: str) -> Callable[[Record], Cell]:
    return lambda record: Cell(_listed(record.get(key) or []) or MISSING)


_AFFINE: tuple[Column[Record], ...] = (
    Column("operator", lambda outcome: name_cell(outcome_name(outcome))),
    Column("direction", text_of("direction")),
    Column("absorbed by", _names_of("into")),
    Column("carried through", _names_of("through")),
)


def merges(merged: Sequence[Record] | None) -> Section | None:
    """Linear operators that became one."""
    if not merged:
        return None
    sentences = [
        "Parallel branches that are added up, and linear operators in a row, are one operator where that is cheaper."
    ]
    return Section("merges", "Merged operators", sentences, tables=[tabulate("Merges", _MERGE, merged)])


_MERGE: tuple[Column[Record], ...] = (
    Column("operator", lambda merge: name_cell(outcome_name(merge, "into"))),
    Column("takes the place of", _names_of("branches"), is_wide=True),
    Column("and of the additions", _names_of("through")),
    Column("rounding", number_of("rounding", scientific), is_number=True),
)


def cautions(warnings: Sequence[Any] | None) -> Section | None:
    """The warnings, which stop nothing."""
    if not warnings:
        return None
    rows = [warning if isinstance(warning, dict) else {"detail": warning} for warning in warnings]
    return Section("warnings", "Warnings", tables=[tabulate("Warnings", _CAUTION, rows)])


def _subject(warning: Record) -> str:
    return outcome_name(warning, "batchnorm" if warning.get("batchnorm") else "value")


_CAUTION: tuple[Column[Record], ...] = (
    Column("BatchNorm or value", lambda warning: name_cell(_subject(warning))),
    Column("kind", text_of("kind")),
    Column("channels", lambda warning: _count(warning.get("channels") or []), is_number=True),
    Column("detail", lambda warning: Cell(shown(warning.get("detail", ""), 400)), is_wide=True),
)
