"""The sections on the speed of models, for `bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bnfold.errors import plural
from bnfold.report.documents import Record
from bnfold.report.html import figures
from bnfold.report.html.parts import (
    Cell,
    Column,
    Figure,
    Section,
    Table,
    name_cell,
    number_cell,
    number_of,
    tabulate,
    text_of,
)
from bnfold.report.html.text import MISSING, count, file_names, finite, plain, shown, size


def latency(entries: Sequence[Record] | None, noise: Any) -> Section | None:
    """The steady state: ratios, distributions, percentiles, and the noise."""
    if not entries:
        return None
    groups: dict[str, list[tuple[str, Record]]] = {}
    for name, entry in zip(model_names(entries), entries, strict=True):
        groups.setdefault(setting(entry), []).append((name, entry))
    sentences = [
        "The first model is the baseline. The models took turns, so each ratio compares runs under the same load.",
        *_handed_back(model_names(entries), entries),
    ]
    tables = [tabulate("Steady state", _STEADY, _with_baselines(entries)), *_noise(noise)]
    return Section("latency", "Latency", sentences, figures=list(_drawn(groups)), tables=tables)


def start(entries: Sequence[Record] | None) -> Section | None:
    """The section on cold starts and memory."""
    if not entries:
        return None
    sentences = [
        "Session creation, first run and memory are those of cold starts, each in a process of its own. The ratio of "
        "sessions is of those made in turns in one process."
    ]
    table = tabulate("Cold starts", _START, _with_baselines(entries))
    return Section("start", "Start and memory", sentences, tables=[table])


class Timed(NamedTuple):
    """A row: the name of a model, its entry, and whether it is the first of its setting."""

    name: str
    entry: Record
    is_baseline: bool


def _with_baselines(entries: Sequence[Record]) -> Iterator[Timed]:
    begun: set[str] = set()
    for name, entry in zip(model_names(entries), entries, strict=True):
        yield Timed(name, entry, setting(entry) not in begun)
        begun.add(setting(entry))


def _drawn(groups: dict[str, list[tuple[str, Record]]]) -> Iterator[Figure]:
    ratios = [
        figures.read_ratio(entry, f"{name} ({where})") for where, group in groups.items() for name, entry in group[1:]
    ]
    known = [ratio for ratio in ratios if ratio is not None]
    if known:
        yield figures.forest(known, "ratios")
    for index, (where, group) in enumerate(groups.items()):
        if samples := _samples(group):
            yield figures.distributions(samples, where, f"latency{index}")


def setting(entry: Record) -> str:
    """Where an entry was measured: its provider and level."""
    provider, level = entry.get("provider"), entry.get("level")
    return ", level ".join(shown(part) for part in (provider, level) if part is not None) or "all runs"


def model_names(entries: Sequence[Record]) -> list[str]:
    """The name of the model of each entry."""
    paths = [str(entry.get("model", MISSING)) for entry in entries]
    names = file_names(paths)
    return [names[path] for path in paths]


def _handed_back(names: Sequence[str], entries: Sequence[Record]) -> Iterator[str]:
    """Sentences on nodes that a provider left to the CPU. Its latency is then that of both."""
    for name, entry in zip(names, entries, strict=True):
        if nodes := entry.get("handed_back"):
            yield f"{shown(name)} on {setting(entry)}: the CPU ran {plural(len(nodes), 'node')} for the provider."


def _samples(group: Sequence[tuple[str, Record]]) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {}
    for index, (name, entry) in enumerate(group):
        times = [time for time in map(finite, _leaves(entry.get("samples_ms"))) if time is not None]
        if times:
            samples[f"{name} (run {index + 1})" if name in samples else name] = times
    return samples


def _leaves(nested: Any) -> Iterator[Any]:
    """The items of nested lists, however deep."""
    if isinstance(nested, list):
        for item in nested:
            yield from _leaves(item)
    else:
        yield nested


def _noise(noise: Any) -> Iterator[Table]:
    """The baseline beside itself, wherever it was measured."""
    rows = [row for row in (noise if isinstance(noise, list) else [noise]) if isinstance(row, dict) and row]
    if rows:
        yield tabulate("Noise floor: the baseline beside itself", _NOISE, rows)


_NOISE: tuple[Column[Record], ...] = (
    Column("provider", text_of("provider", 40)),
    Column("level", text_of("level", 40)),
    Column("ratio, 95 % interval", lambda noise: number_cell(_interval(noise), noise.get("ratio")), is_number=True),
)


def _interval(entry: Record) -> str:
    ratio = figures.read_ratio(entry, "")
    return f"{ratio.middle:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else plain(entry.get("ratio"))


def _figure(key: str, written: Callable[[Any], str]) -> Callable[[Timed], Cell]:
    return lambda row: number_of(key, written)(row.entry)


def _verdict(row: Timed) -> Cell:
    if row.is_baseline:
        return Cell("baseline")
    ratio = figures.read_ratio(row.entry, "")
    return Cell(shown(row.entry.get("verdict") or MISSING), mood=ratio.mood if ratio else None)


def _beside(row: Timed, key: str, written: Callable[[Record], str]) -> Cell:
    """The cell of a ratio to the baseline; empty for the baseline itself."""
    return Cell(MISSING) if row.is_baseline else number_cell(written(row.entry), row.entry.get(key))


_STEADY: tuple[Column[Timed], ...] = (
    Column("model", lambda row: name_cell(row.name)),
    Column("ran on", lambda row: _place(row.entry), is_short=True),
    Column("verdict", _verdict),
    Column("ratio, 95 % interval", lambda row: _beside(row, "ratio", _interval), is_number=True),
    Column("median, ms", _figure("median_ms", plain), is_number=True),
    Column("p90, ms", _figure("p90_ms", plain), is_number=True),
    Column("p99, ms", _figure("p99_ms", plain), is_number=True),
)


def _place(entry: Record) -> Cell:
    return Cell(", ".join(shown(part, 40) for part in (entry.get("provider"), entry.get("level")) if part) or MISSING)


_START: tuple[Column[Timed], ...] = (
    Column("model", lambda row: name_cell(row.name)),
    Column("ran on", lambda row: _place(row.entry), is_short=True),
    Column("session, ms", _figure("session_ms", plain), is_number=True),
    Column("its ratio, 95 % interval", lambda row: _beside(row, "session_ratio", _session_interval), is_number=True),
    Column("first run, ms", _figure("first_run_ms", plain), is_number=True),
    Column("peak memory", _figure("peak_bytes", size), is_number=True),
    Column("before the model", _figure("memory_before_bytes", size), is_number=True),
)


def _session_interval(entry: Record) -> str:
    middle, low, high = (finite(entry.get(f"session_ratio{end}")) for end in ("", "_low", "_high"))
    return MISSING if middle is None or low is None or high is None else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def models(described: Any) -> Section | None:
    """The section on the models: their sizes, and the hashes that identify their files."""
    listed = [model for model in described if isinstance(model, dict)] if isinstance(described, list) else []
    if not listed:
        return None
    return Section("models", "Models", tables=[tabulate("Sizes and identity", _MODEL, listed)])


_MODEL: tuple[Column[Record], ...] = (
    Column("model", lambda model: name_cell(model.get("model", MISSING))),
    Column("engine", text_of("engine", 40)),
    Column("file", number_of("file_bytes", size), is_number=True),
    Column("nodes", number_of("nodes", count), is_number=True),
    Column("BatchNorms", number_of("batchnorms", count), is_number=True),
    Column("SHA-256", text_of("sha256", 80), is_wide=True),
)
