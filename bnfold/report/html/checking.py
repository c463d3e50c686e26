"""Whether two models are equivalent: the section of `verify`, and of the verification inside `fuse`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bnfold.report.documents import Record
from bnfold.report.html import figures
from bnfold.report.html.parts import Cell, Column, Mood, Section, Table, Terms, name_cell, number_cell, terms
from bnfold.report.html.text import MISSING, count, percent, plain, plural, scientific, shown

LISTED = 200
"""Inner values in the table: the worst."""


def verification_of(record: Record) -> Record | None:
    """The verification inside the record of `fuse`, or the record of `verify` itself."""
    if "equivalent" in record:
        return record
    inner = record.get("verification")
    return inner if isinstance(inner, dict) else None


def is_overruled(row: Mapping[str, Any], verification: Record) -> bool:
    """Whether an output differs and the models are equivalent all the same.

    That is one that the runtime changes by itself at its default level, on a provider that nobody asked for.
    """
    return bool(verification.get("equivalent")) and not figures.read_value(row, 0).passes


def verification_section(verification: Record) -> Section:
    """The outputs, the inner values in graph order, the first that differs, and the inputs."""
    outputs, values = verification.get("outputs") or [], verification.get("values") or []
    drawn = [figures.read_value(each, index) for index, each in enumerate(values)]
    tables = [_verdict_table("Outputs", outputs, verification)] if outputs else []
    if values:
        worst = sorted(zip(drawn, values, strict=True), key=lambda pair: figures.badness(pair[0]), reverse=True)
        listed = [each for _, each in worst[:LISTED]]
        caption = "Inner values" if len(values) <= LISTED else f"The worst {LISTED} of {len(values):,} inner values"
        tables.append(_verdict_table(caption, listed, verification, is_collapsed=True))
    samples = [each for each in verification.get("samples") or [] if isinstance(each, dict)]
    if samples:
        tables.append(_sample_table(samples))
    divergence = verification.get("first_divergence")
    is_identical = all(not each.error and each.passes for each in drawn)
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
    if ran is not None:
        labels = Counter(shown(each.get("label", MISSING), 60) for each in samples)
        kinds = ", ".join(
            label if times == 1 else f"{label} (\N{MULTIPLICATION SIGN} {times})" for label, times in labels.items()
        )
        yield f"Both models ran on {plural(ran, 'set')} of inputs{f': {kinds}' if kinds else ''}."
    if any("excess" in each for each in [*(verification.get("outputs") or []), *(verification.get("values") or [])]):
        yield (
            "An error is the largest difference over the largest value of the reference, and its budget what rounding "
            "alone explains, as measured on the reference. The verdict also looks at the mean square, and at each "
            "channel by itself; what is used of the budget is that of the worst of these. SNR is the "
            "signal-to-noise ratio, ULP the largest difference in units in the last place, argmax the share of largest "
            "elements that stay in their place."
        )
    if identical:
        yield f"All {plural(identical, 'inner value')} are identical."
    for finding in verification.get("findings") or []:
        yield f"Note: {shown(finding, 600)}"


def _divergence(divergence: Record) -> Terms:
    """Where the models part; errors as they are written elsewhere on the page."""
    written: dict[str, Any] = {name: scientific(divergence[name]) for name in ("error", "budget") if name in divergence}
    named = {"name": "value", "node": "made by", "expected": "reference", "actual": "candidate", "reason": "why"}
    return terms(
        "First divergence", {named.get(name, name): written.get(name, value) for name, value in divergence.items()}
    )


_OPTIONAL = {
    "provider": Column("ran on", is_short=True),
    "excess": Column("of budget", is_number=True),
    "reason": Column("why", is_wide=True),
    "snr_db": Column("SNR, dB", is_number=True),
    "ulp": Column("ULP", is_number=True),
    "argmax_agreement": Column("argmax", is_number=True),
    "input": Column("worst input", is_short=True),
}
"""What a record may say of a value besides its name, verdict, error and budget, in the order of the columns."""


def _verdict_table(caption: str, rows: Sequence[Record], verification: Record, *, is_collapsed: bool = False) -> Table:
    told = [name for name in _OPTIONAL if any(row.get(name) is not None for row in rows)]
    before = [name for name in told if name == "provider"]
    after = [name for name in told if name != "provider"]
    columns = [
        Column("value"),
        *(_OPTIONAL[name] for name in before),
        Column("verdict"),
        Column("error", is_number=True),
        Column("budget", is_number=True),
        *(_OPTIONAL[name] for name in after),
    ]
    cells = [
        [
            name_cell(row.get("name", "")),
            *(_told(name, row) for name in before),
            _verdict(row, verification),
            number_cell(scientific(row.get("error")), row.get("error")),
            number_cell(scientific(row.get("budget")), row.get("budget")),
            *(_told(name, row) for name in after),
        ]
        for row in rows
    ]
    return Table(caption, columns, cells, is_collapsed)


def _verdict(row: Record, verification: Record) -> Cell:
    if figures.read_value(row, 0).passes:
        return Cell("equivalent", mood="good")
    mood: Mood = "unsure" if is_overruled(row, verification) else "bad"
    return Cell("differs", mood=mood)


def _told(name: str, row: Record) -> Cell:
    value = row.get(name)
    if name == "provider":
        place = shown(MISSING if value is None else value, 40)
        return Cell(f"{place}, as deployed" if row.get("level") == "default" else place)
    if name in ("input", "reason"):
        return Cell(shown(MISSING if value is None else value, 40 if name == "input" else 300))
    written = {"excess": percent, "ulp": count}.get(name)
    return number_cell(written(value) if written else plain(value, 4), value)


def _sample_table(samples: Sequence[Record]) -> Table:
    rows = []
    for index, each in enumerate(samples):
        shapes = each.get("shapes") if isinstance(each.get("shapes"), dict) else {}
        written = (f"{shown(name, 60)} {shape}" for name, shape in (shapes or {}).items())
        rows.append([Cell(f"{index + 1}"), Cell(shown(each.get("label", MISSING), 120)), Cell(", ".join(written))])
    columns = (Column("set"), Column("kind"), Column("shapes", is_wide=True))
    return Table("Inputs", columns, rows, is_collapsed=True)
