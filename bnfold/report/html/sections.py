"""From the record's keys to the sections of a page. A key that is missing gives no section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bnfold.report.html import drawings, figures
from bnfold.report.html.parts import Cell, Column, Section, Table, Terms, name_cell, number_cell
from bnfold.report.html.text import MISSING, count, file_names, finite, plain, plural, scientific, shown, size
from bnfold.report.record import Record

DRAWN_OPEN, DRAWN = 40, 400
"""So many BatchNorms have an open picture, and so many one at all, lest the page grow without bound."""

LISTED = 200
"""Inner values in the table: the worst."""


def sections(record: Record) -> Iterator[Section]:
    """The sections in the order in which a reader wants them."""
    verification = verification_of(record)
    for section in (
        _batchnorms(record.get("outcomes")),
        _stayed(record.get("outcomes")),
        _warnings(record.get("warnings")),
        _verification(verification) if verification else None,
        _latency(record.get("entries")),
        _affines(record.get("affine_outcomes")),
        _terms("noise", "Noise floor", record.get("noise")),
        _terms("fingerprint", "Fingerprint", record.get("fingerprint")),
    ):
        if section is not None:
            yield section


def verification_of(record: Record) -> Record | None:
    """The verification inside the record of `fuse`, or the record of `verify` itself."""
    if "equivalent" in record:
        return record
    inner = record.get("verification")
    return inner if isinstance(inner, dict) else None


def outcome_name(outcome: Mapping[str, Any]) -> str:
    """The node's name, after its scope where that is not the main graph."""
    scope = outcome.get("scope", "main")
    return str(outcome.get("batchnorm", "")) if scope == "main" else f"{scope}/{outcome.get('batchnorm', '')}"


def _batchnorms(outcomes: Sequence[Record] | None) -> Section | None:
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
        "weights; others on the way carry it. Rounding is the largest relative error of the weights written. A picture has "
        "the operators that carry it in one column, whether they follow each other or stand side by side."
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


def _stayed(outcomes: Sequence[Record] | None) -> Section | None:
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


def _affines(outcomes: Sequence[Record] | None) -> Section | None:
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


def _warnings(warnings: Sequence[Record] | None) -> Section | None:
    if not warnings:
        return None
    rows = [
        [
            name_cell(outcome_name(each)),
            Cell(shown(each.get("kind", MISSING))),
            number_cell(count(len(each.get("channels") or [])), len(each.get("channels") or [])),
            Cell(shown(each.get("detail", ""), 400)),
        ]
        for each in warnings
    ]
    columns = (Column("BatchNorm"), Column("kind"), Column("channels", is_number=True), Column("detail", is_wide=True))
    sentences = ["Running statistics that look wrong. The fold is exact all the same."]
    return Section("warnings", "Warnings", sentences, tables=[Table("Warnings", columns, rows)])


def _verification(verification: Record) -> Section:
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
        terms=[_list("First divergence", divergence)] if isinstance(divergence, dict) else [],
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


def _latency(entries: Sequence[Record] | None) -> Section | None:
    if not entries:
        return None
    names = model_names(entries)
    groups: dict[str, list[tuple[str, Record]]] = {}
    for name, each in zip(names, entries, strict=True):
        groups.setdefault(setting(each), []).append((name, each))
    drawn = []
    ratios = [
        figures.read_ratio(each, f"{name} ({where})") for where, group in groups.items() for name, each in group[1:]
    ]
    known = [each for each in ratios if each is not None]
    if known:
        drawn.append(figures.forest(known, "ratios"))
    for index, (where, group) in enumerate(groups.items()):
        samples = _samples(group)
        if samples:
            drawn.append(figures.distributions(samples, where, f"latency{index}"))
    sentences = [
        "The first model is the baseline. The models took turns, so each ratio compares runs under the same load."
    ]
    table = Table("Measurements", list(_MEASURED_COLUMNS), list(map(_measured_row, names, entries)))
    return Section("latency", "Latency", sentences, figures=drawn, tables=[table])


def setting(entry: Record) -> str:
    """Where an entry was measured: its provider and level."""
    provider, level = entry.get("provider"), entry.get("level")
    return ", level ".join(shown(each) for each in (provider, level) if each is not None) or "all runs"


def model_names(entries: Sequence[Record]) -> list[str]:
    """What to call the model of each entry."""
    paths = [str(each.get("model", MISSING)) for each in entries]
    names = file_names(paths)
    return [names[path] for path in paths]


def _samples(group: Sequence[tuple[str, Record]]) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {}
    for index, (name, each) in enumerate(group):
        times = [time for time in map(finite, each.get("samples_ms") or []) if time is not None]
        if times:
            samples[f"{name} (run {index + 1})" if name in samples else name] = times
    return samples


_MEASURED_COLUMNS = (
    Column("model"),
    Column("provider"),
    Column("level"),
    Column("verdict"),
    Column("ratio, 95 % interval", is_number=True),
    Column("median, ms", is_number=True),
    Column("p90, ms", is_number=True),
    Column("p99, ms", is_number=True),
    Column("first run, ms", is_number=True),
    Column("session, ms", is_number=True),
    Column("peak memory", is_number=True),
    Column("file", is_number=True),
    Column("nodes", is_number=True),
    Column("BatchNorms", is_number=True),
)


def _measured_row(name: str, entry: Record) -> list[Cell]:
    ratio = figures.read_ratio(entry, "")
    text = plain(entry.get("ratio"))
    if ratio:
        text = f"{ratio.middle:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    verdict = entry.get("verdict")
    times = [entry.get(f"{name}_ms") for name in ("median", "p90", "p99", "first_run", "session")]
    return [
        name_cell(name),
        *(Cell(shown(entry.get(key, MISSING), 40)) for key in ("provider", "level")),
        Cell(shown(verdict) if verdict else MISSING, mood=ratio.mood if ratio else None),
        number_cell(text, entry.get("ratio")),
        *(number_cell(plain(time), time) for time in times),
        number_cell(size(entry.get("peak_bytes")), entry.get("peak_bytes")),
        number_cell(size(entry.get("file_bytes")), entry.get("file_bytes")),
        number_cell(count(entry.get("nodes")), entry.get("nodes")),
        number_cell(count(entry.get("batchnorms")), entry.get("batchnorms")),
    ]


def _terms(key: str, title: str, value: Any) -> Section | None:
    if not isinstance(value, dict | list) or not value:
        return None
    return Section(key, title, terms=[_list("", value)])


def _list(title: str, value: Any) -> Terms:
    return Terms(title, [(shown(name, 120), text) for name, text in _flat(value, "")])


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Nested keys as one level: ``versions, numpy``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}, {key}" if name else str(key).replace("_", " "))
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name} {index + 1}".strip())
    elif isinstance(value, list):
        yield (
            name,
            ", ".join(shown(each, 80) for each in value[:24])
            + (", \N{HORIZONTAL ELLIPSIS}" if len(value) > 24 else ""),
        )
    elif isinstance(value, bool) or value is None:
        yield name, {True: "yes", False: "no", None: MISSING}[value]
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else shown(value, 300)
