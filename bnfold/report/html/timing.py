"""Which model is faster: the sections of `bench`."""

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
    for name, each in zip(model_names(entries), entries, strict=True):
        groups.setdefault(setting(each), []).append((name, each))
    sentences = [
        "The first model is the baseline. The models took turns, so each ratio compares runs under the same load.",
        *_handed_back(model_names(entries), entries),
    ]
    tables = [tabulate("Steady state", _STEADY, _with_baselines(entries)), *_noise(noise)]
    return Section("latency", "Latency", sentences, figures=list(_drawn(groups)), tables=tables)


def start(entries: Sequence[Record] | None) -> Section | None:
    """What happens before the steady state, and the memory."""
    if not entries:
        return None
    sentences = [
        "Session creation, first run and memory are those of cold starts, each in a process of its own. The ratio of "
        "sessions is of those made in turns in one process."
    ]
    table = tabulate("Cold starts", _START, _with_baselines(entries))
    return Section("start", "Start and memory", sentences, tables=[table])


class Timed(NamedTuple):
    """A row: what to call a model, its entry, and whether it is the first of its setting."""

    name: str
    entry: Record
    is_baseline: bool


def _with_baselines(entries: Sequence[Record]) -> Iterator[Timed]:
    begun: set[str] = set()
    for name, each in zip(model_names(entries), entries, strict=True):
        yield Timed(name, each, setting(each) not in begun)
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
    """A ratio to the baseline, which has none itself."""
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
    return Cell(", ".join(shown(each, 40) for each in (entry.get("provider"), entry.get("level")) if each) or MISSING)


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
    """What was measured: sizes, and what tells the files from any others."""
    listed = [each for each in described if isinstance(each, dict)] if isinstance(described, list) else []
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
