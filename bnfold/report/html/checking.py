"""The section on the equivalence of two models, for `verify` and for the verification inside `fuse`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bnfold.errors import plural
from bnfold.report.documents import Record
from bnfold.report.html import figures
from bnfold.report.html.parts import (
    Cell,
    Column,
    Mood,
    Section,
    Table,
    Terms,
    name_cell,
    number_of,
    tabulate,
    terms,
    text_of,
)
from bnfold.report.html.text import MISSING, count, percent, plain, scientific, shown

LISTED = 200
"""How many inner values are in the table: the worst ones."""


def verification_of(record: Record) -> Record | None:
    """The verification inside the record of `fuse`, or the record of `verify` itself."""
    if "equivalent" in record:
        return record
    inner = record.get("verification")
    return inner if isinstance(inner, dict) else None


def is_overruled(row: Mapping[str, Any], verification: Record) -> bool:
    """Whether an output differs and the models are equivalent all the same.

    The runtime changes such an output by itself at its default level, on a provider that nobody asked for.
    """
    return bool(verification.get("equivalent")) and not figures.read_value(row, 0).passes


def verification_section(verification: Record) -> Section:
    """The outputs, the inner values in graph order, the first that differs, and the inputs."""
    outputs, values = verification.get("outputs") or [], verification.get("values") or []
    drawn = [figures.read_value(value, index) for index, value in enumerate(values)]
    tables = [_verdict_table("Outputs", outputs, verification)] if outputs else []
    if values:
        worst = sorted(zip(drawn, values, strict=True), key=lambda pair: figures.badness(pair[0]), reverse=True)
        listed = [value for _, value in worst[:LISTED]]
        caption = "Inner values" if len(values) <= LISTED else f"The worst {LISTED} of {len(values):,} inner values"
        tables.append(_verdict_table(caption, listed, verification, is_collapsed=True))
    samples = [sample for sample in verification.get("samples") or [] if isinstance(sample, dict)]
    if samples:
        rows = (Numbered(number, sample) for number, sample in enumerate(samples, 1))
        tables.append(tabulate("Inputs", _SAMPLE, rows, is_collapsed=True))
    divergence = verification.get("first_divergence")
    is_identical = all(not value.error and value.passes for value in drawn)
    return Section(
        "verification",
        "Verification",
        list(_sentences(verification, samples, len(drawn) if is_identical else 0)),
        figures=[figures.errors(drawn, "errors")] if drawn and not is_identical else [],
        tables=tables,
        terms=[_divergence(divergence)] if isinstance(divergence, dict) else [],
    )


def _sentences(verification: Record, samples: Sequence[Record], identical: int) -> Iterator[str]:
    inputs = verification.get("inputs")
    ran = inputs if isinstance(inputs, int) else len(inputs) if isinstance(inputs, list) else None
    if ran:
        labels = Counter(shown(sample.get("label", MISSING), 60) for sample in samples)
        kinds = ", ".join(
            label if times == 1 else f"{label} (\N{MULTIPLICATION SIGN} {times})" for label, times in labels.items()
        )
        yield f"Both models ran on {plural(ran, 'set')} of inputs{f': {kinds}' if kinds else ''}."
    gate = verification.get("gate")
    if isinstance(gate, dict):
        asked = ", ".join(f"{name} {value}" for name, value in gate.items() if value is not None)
        yield (
            f"The outputs were judged by {shown(asked, 200)}, over all inputs together, and not by what rounding "
            "explains. An error is the largest difference over the largest value of the reference, SNR the "
            "signal-to-noise ratio, argmax the share of largest elements that stay in their place."
        )
    elif any(
        "excess" in entry for entry in [*(verification.get("outputs") or []), *(verification.get("values") or [])]
    ):
        yield (
            "An error is the largest difference over the largest value of the reference, and its budget what rounding "
            "alone explains, as measured on the reference. The verdict also looks at the mean square, and at each "
            "channel by itself; what is used of the budget is that of the worst of these. SNR is the "
            "signal-to-noise ratio, ULP the largest difference in units in the last place, argmax the share of largest "
            "elements that stay in their place."
        )
    if identical:
        same = "The only inner value is" if identical == 1 else f"All {identical:,} inner values are"
        yield f"{same} identical."
    for change in verification.get("interface") or []:
        yield f"The interface is another one: {shown(change, 600)}."
    for finding in verification.get("findings") or []:
        yield f"Note: {shown(finding, 600)}"


def _divergence(divergence: Record) -> Terms:
    """The first value that differs. Its errors are written as elsewhere on the page."""
    written: dict[str, Any] = {name: scientific(divergence[name]) for name in ("error", "budget") if name in divergence}
    named = {"name": "value", "node": "made by", "expected": "reference", "actual": "candidate", "reason": "why"}
    return terms(
        "First divergence", {named.get(name, name): written.get(name, value) for name, value in divergence.items()}
    )


def _verdict_table(caption: str, rows: Sequence[Record], verification: Record, *, is_collapsed: bool = False) -> Table:
    """A table of verdicts on values. A column that is empty in every row is left out."""
    columns: dict[str, Column[Record]] = {
        "name": Column("value", lambda row: name_cell(row.get("name", ""))),
        "provider": Column("ran on", _place, is_short=True),
        "equivalent": Column("verdict", lambda row: _verdict(row, verification)),
        "error": Column("error", number_of("error", scientific), is_number=True),
        "budget": Column("budget", number_of("budget", scientific), is_number=True),
        "excess": Column("of budget", number_of("excess", percent), is_number=True),
        "reason": Column("why", text_of("reason", 300), is_wide=True),
        "snr_db": Column("SNR, dB", number_of("snr_db", _figure), is_number=True),
        "ulp": Column("ULP", number_of("ulp", count), is_number=True),
        "argmax_agreement": Column("argmax", number_of("argmax_agreement", _figure), is_number=True),
        "input": Column("worst input", text_of("input", 40), is_short=True),
    }
    header = [
        column
        for key, column in columns.items()
        if key in ("name", "equivalent", "error", "budget") or any(row.get(key) is not None for row in rows)
    ]
    return tabulate(caption, header, rows, is_collapsed=is_collapsed)


def _figure(value: Any) -> str:
    return plain(value, 4)


def _place(row: Record) -> Cell:
    provider = shown(row.get("provider") or MISSING, 40)
    return Cell(f"{provider}, as deployed" if row.get("level") == "default" else provider)


def _verdict(row: Record, verification: Record) -> Cell:
    if figures.read_value(row, 0).passes:
        return Cell("within" if "gate" in verification else "equivalent", mood="good")
    mood: Mood = "unsure" if is_overruled(row, verification) else "bad"
    return Cell("differs", mood=mood)


class Numbered(NamedTuple):
    """A row: a set of inputs, and its number."""

    number: int
    sample: Record


_SAMPLE: tuple[Column[Numbered], ...] = (
    Column("set", lambda row: Cell(str(row.number))),
    Column("kind", lambda row: text_of("label", 120)(row.sample)),
    Column("shapes", lambda row: Cell(_shapes(row.sample.get("shapes"))), is_wide=True),
)


def _shapes(shapes: Any) -> str:
    return ", ".join(f"{shown(name, 60)} {shape}" for name, shape in shapes.items()) if isinstance(shapes, dict) else ""
