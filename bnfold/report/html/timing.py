"""Which model is faster: the sections of `bench`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bnfold.report.html import figures
from bnfold.report.html.parts import Cell, Column, Figure, Section, Table, name_cell, number_cell
from bnfold.report.html.text import MISSING, count, file_names, finite, plain, plural, shown, size
from bnfold.report.record import Record


def latency(entries: Sequence[Record] | None, noise: Any) -> Section | None:
    """Ratios, distributions and every number."""
    if not entries:
        return None
    names = model_names(entries)
    groups: dict[str, list[tuple[str, Record]]] = {}
    for name, each in zip(names, entries, strict=True):
        groups.setdefault(setting(each), []).append((name, each))
    baselines = {id(group[0][1]) for group in groups.values()}
    rows = [_measured_row(name, each, id(each) in baselines) for name, each in zip(names, entries, strict=True)]
    sentences = [
        "The first model is the baseline. The models took turns, so each ratio compares runs under the same load.",
        *_handed_back(names, entries),
    ]
    tables = [Table("Measurements", list(_MEASURED_COLUMNS), rows), *_noise(noise)]
    return Section("latency", "Latency", sentences, figures=list(_drawn(groups)), tables=tables)


def _drawn(groups: dict[str, list[tuple[str, Record]]]) -> Iterator[Figure]:
    ratios = [
        figures.read_ratio(each, f"{name} ({where})") for where, group in groups.items() for name, each in group[1:]
    ]
    known = [each for each in ratios if each is not None]
    if known:
        yield figures.forest(known, "ratios")
    for index, (where, group) in enumerate(groups.items()):
        if samples := _samples(group):
            yield figures.distributions(samples, where, f"latency{index}")


def setting(entry: Record) -> str:
    """Where an entry was measured: its provider and level."""
    provider, level = entry.get("provider"), entry.get("level")
    return ", level ".join(shown(each) for each in (provider, level) if each is not None) or "all runs"


def model_names(entries: Sequence[Record]) -> list[str]:
    """What to call the model of each entry."""
    paths = [str(each.get("model", MISSING)) for each in entries]
    names = file_names(paths)
    return [names[path] for path in paths]


def _handed_back(names: Sequence[str], entries: Sequence[Record]) -> Iterator[str]:
    """What a provider left to the CPU, which makes its latency that of both."""
    for name, each in zip(names, entries, strict=True):
        if nodes := each.get("handed_back"):
            yield f"{shown(name)} on {setting(each)}: the CPU ran {plural(len(nodes), 'node')} for the provider."


def _samples(group: Sequence[tuple[str, Record]]) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {}
    for index, (name, each) in enumerate(group):
        times = [time for time in map(finite, _leaves(each.get("samples_ms"))) if time is not None]
        if times:
            samples[f"{name} (run {index + 1})" if name in samples else name] = times
    return samples


def _leaves(nested: Any) -> Iterator[Any]:
    """What lists hold, however deep."""
    if isinstance(nested, list):
        for each in nested:
            yield from _leaves(each)
    else:
        yield nested


def _noise(noise: Any) -> Iterator[Table]:
    """The baseline beside itself, wherever it was measured."""
    rows = [each for each in (noise if isinstance(noise, list) else [noise]) if isinstance(each, dict) and each]
    if rows:
        columns = (Column("provider"), Column("level"), Column("ratio, 95 % interval", is_number=True))
        cells = [
            [
                *(Cell(shown(each.get(key) or MISSING, 40)) for key in ("provider", "level")),
                number_cell(_interval(each), each.get("ratio")),
            ]
            for each in rows
        ]
        yield Table("Noise floor: the baseline beside itself", columns, cells)


def _interval(entry: Record) -> str:
    ratio = figures.read_ratio(entry, "")
    return f"{ratio.middle:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else plain(entry.get("ratio"))


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


def _measured_row(name: str, entry: Record, is_baseline: bool) -> list[Cell]:
    ratio = figures.read_ratio(entry, "")
    verdict = "baseline" if is_baseline else entry.get("verdict")
    mood = ratio.mood if ratio and not is_baseline else None
    times = [entry.get(f"{name}_ms") for name in ("median", "p90", "p99", "first_run", "session")]
    return [
        name_cell(name),
        *(Cell(shown(entry.get(key) or MISSING, 40)) for key in ("provider", "level")),
        Cell(shown(verdict) if verdict else MISSING, mood=mood),
        number_cell(MISSING if is_baseline else _interval(entry), None if is_baseline else entry.get("ratio")),
        *(number_cell(plain(time), time) for time in times),
        number_cell(size(entry.get("peak_bytes")), entry.get("peak_bytes")),
        number_cell(size(entry.get("file_bytes")), entry.get("file_bytes")),
        number_cell(count(entry.get("nodes")), entry.get("nodes")),
        number_cell(count(entry.get("batchnorms")), entry.get("batchnorms")),
    ]
