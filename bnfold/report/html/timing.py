"""Which model is faster: the sections of `bench`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bnfold.report.documents import Record
from bnfold.report.html import figures
from bnfold.report.html.parts import Cell, Column, Figure, Section, Table, name_cell, number_cell
from bnfold.report.html.text import MISSING, count, file_names, finite, plain, plural, shown, size


def latency(entries: Sequence[Record] | None, noise: Any) -> Section | None:
    """The steady state: ratios, distributions, percentiles, and the noise."""
    if not entries:
        return None
    groups: dict[str, list[tuple[str, Record]]] = {}
    for name, each in zip(model_names(entries), entries, strict=True):
        groups.setdefault(setting(each), []).append((name, each))
    sentences = [
        "The first model is the baseline. The models took turns, so each ratio compares runs under the same load.",
        *_handed_back(model_names(entries), entries),
    ]
    rows = [_steady_row(*row) for row in _with_baselines(entries)]
    tables = [Table("Steady state", _STEADY_COLUMNS, rows), *_noise(noise)]
    return Section("latency", "Latency", sentences, figures=list(_drawn(groups)), tables=tables)


def start(entries: Sequence[Record] | None) -> Section | None:
    """What happens before the steady state, and the memory."""
    if not entries:
        return None
    sentences = [
        "Session creation, first run and memory are those of cold starts, each in a process of its own. The ratio of "
        "sessions is of those made in turns in one process."
    ]
    rows = [_start_row(*row) for row in _with_baselines(entries)]
    return Section("start", "Start and memory", sentences, tables=[Table("Cold starts", _START_COLUMNS, rows)])


def _with_baselines(entries: Sequence[Record]) -> Iterator[tuple[str, Record, bool]]:
    """The name of each entry's model, the entry, and whether it is the first of its setting."""
    begun: set[str] = set()
    for name, each in zip(model_names(entries), entries, strict=True):
        yield name, each, setting(each) not in begun
        begun.add(setting(each))


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


_STEADY_COLUMNS = (
    Column("model"),
    Column("ran on", is_short=True),
    Column("verdict"),
    Column("ratio, 95 % interval", is_number=True),
    Column("median, ms", is_number=True),
    Column("p90, ms", is_number=True),
    Column("p99, ms", is_number=True),
)


def _steady_row(name: str, entry: Record, is_baseline: bool) -> list[Cell]:
    ratio = figures.read_ratio(entry, "")
    verdict = "baseline" if is_baseline else entry.get("verdict")
    mood = ratio.mood if ratio and not is_baseline else None
    times = [entry.get(f"{name}_ms") for name in ("median", "p90", "p99")]
    return [
        name_cell(name),
        _place(entry),
        Cell(shown(verdict) if verdict else MISSING, mood=mood),
        number_cell(MISSING if is_baseline else _interval(entry), None if is_baseline else entry.get("ratio")),
        *(number_cell(plain(time), time) for time in times),
    ]


def _place(entry: Record) -> Cell:
    return Cell(", ".join(shown(each, 40) for each in (entry.get("provider"), entry.get("level")) if each) or MISSING)


_START_COLUMNS = (
    Column("model"),
    Column("ran on", is_short=True),
    Column("session, ms", is_number=True),
    Column("its ratio, 95 % interval", is_number=True),
    Column("first run, ms", is_number=True),
    Column("peak memory", is_number=True),
    Column("before the model", is_number=True),
)


def _start_row(name: str, entry: Record, is_baseline: bool) -> list[Cell]:
    ratio = None if is_baseline else entry.get("session_ratio")
    sizes = (entry.get("peak_bytes"), entry.get("memory_before_bytes"))
    return [
        name_cell(name),
        _place(entry),
        number_cell(plain(entry.get("session_ms")), entry.get("session_ms")),
        number_cell(MISSING if ratio is None else _session_interval(entry), ratio),
        number_cell(plain(entry.get("first_run_ms")), entry.get("first_run_ms")),
        *(number_cell(size(each), each) for each in sizes),
    ]


def _session_interval(entry: Record) -> str:
    middle, low, high = (finite(entry.get(f"session_ratio{end}")) for end in ("", "_low", "_high"))
    return MISSING if middle is None or low is None or high is None else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def models(described: Any) -> Section | None:
    """What was measured: sizes, and what tells the files from any others."""
    listed = [each for each in described if isinstance(each, dict)] if isinstance(described, list) else []
    if not listed:
        return None
    columns = (
        Column("model"),
        Column("engine"),
        Column("file", is_number=True),
        Column("nodes", is_number=True),
        Column("BatchNorms", is_number=True),
        Column("SHA-256", is_wide=True),
    )
    rows = [
        [
            name_cell(each.get("model", MISSING)),
            Cell(shown(each.get("engine") or MISSING, 40)),
            number_cell(size(each.get("file_bytes")), each.get("file_bytes")),
            number_cell(count(each.get("nodes")), each.get("nodes")),
            number_cell(count(each.get("batchnorms")), each.get("batchnorms")),
            Cell(shown(each.get("sha256") or MISSING, 80)),
        ]
        for each in listed
    ]
    return Section("models", "Models", tables=[Table("Sizes and identity", columns, rows)])
