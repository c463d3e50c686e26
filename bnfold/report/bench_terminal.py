"""Shows the record of `bench` to people: a table for each provider and level, in 80 columns and milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from bnfold.errors import plural
from bnfold.report.columns import Column
from bnfold.report.documents import BenchDocument, BenchEntry, Method
from bnfold.report.terminal import fitting, print_line, tabulate

STYLES = {"faster": "green", "slower": "red"}


class Timed(NamedTuple):
    """A row: an entry, and the name of its model."""

    name: str
    entry: BenchEntry


def show(record: BenchDocument, console: Console, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print the timings, then the conclusions from them."""
    names = short_names([model["model"] for model in record["models"]])
    if not quiet:
        for (provider, level), entries in groupby(record["entries"], lambda entry: (entry["provider"], entry["level"])):
            print_line(console, " ".join(filter(None, [provider, level and f"at level {level}", "(milliseconds)"])))
            rows = [Timed(names[entry["index"]], entry) for entry in entries]
            columns = fitting(COLUMNS, rows, console.width) if console.is_terminal else COLUMNS
            table = tabulate(columns, rows, lambda row: STYLES.get(row.entry["verdict"] or "", ""))
            console.print(table, soft_wrap=not console.is_terminal)
            if left_out := [column.label for column in COLUMNS if column not in columns]:
                print_line(console, f"too narrow for: {', '.join(left_out)}")
        print_line(console, _machine(record))
    if verbose:
        for line in _details(record, names):
            print_line(console, line)
    for line in conclusions(record):
        print_line(console, line)


def short_names(names: list[str]) -> list[str]:
    """File names of the models. One that occurs more than once has its position behind it."""
    stems = [Path(name).name for name in names]
    return [name if stems.count(name) == 1 else f"{name} #{index}" for index, name in enumerate(stems, 1)]


COLUMNS: tuple[Column[Timed, str | Text], ...] = (
    Column("model", lambda row: row.name),
    Column("median", lambda row: _number(row.entry["median_ms"]), is_number=True),
    Column("p90", lambda row: _number(row.entry["p90_ms"]), is_number=True),
    Column("ratio", lambda row: _beside(row, f"{row.entry['ratio']:.3f}"), is_number=True),
    Column("95 % interval", lambda row: _beside(row, _interval(row.entry)), is_number=True),
    Column("session", lambda row: _number(row.entry["session_ms"]), is_number=True),
    Column("peak MB", lambda row: _number(row.entry["peak_bytes"], per=1e6), is_number=True),
)


def _beside(row: Timed, compared: str) -> str:
    """The comparison of a model with the baseline; empty for the baseline itself."""
    return "" if row.entry["verdict"] is None else compared


def _interval(entry: BenchEntry) -> str:
    return f"{entry['ratio_low']:.3f} to {entry['ratio_high']:.3f}"


def _number(value: float | None, per: float = 1) -> str:
    """A number with three digits, or with all digits before the point."""
    if value is None:
        return "-"
    value /= per
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def conclusions(record: BenchDocument) -> Iterator[str]:
    """One line for each model beside the baseline, provider and level; for one model alone, its time."""
    names = short_names([model["model"] for model in record["models"]])
    for entry in record["entries"]:
        where = " ".join(filter(None, [entry["provider"], entry["level"]]))
        if entry["handed_back"]:
            yield f"{where}: {names[entry['index']]} ran {plural(len(entry['handed_back']), 'node')} on the CPU"
        if entry["verdict"] is None:
            if len(record["models"]) == 1:
                yield f"{where}: {names[0]}: {_number(entry['median_ms'])} ms"
            continue
        ends = _interval(entry)
        if entry["verdict"] == "no detectable change":
            rest = f"ratio {ends}; {_visible(entry)}"
        else:
            rest = f"it takes {entry['ratio']:.3f} of the time ({ends})"
        why = f"; {_same_kernels(record, entry)}" if entry["runs_same_kernels"] else ""
        yield f"{where}: {names[entry['index']]}: {entry['verdict']}; {rest}{why}"
        if entry["gate"] is not None:
            yield f"{where}: {names[entry['index']]}: {gate_line(record['method'], entry)}"


def _same_kernels(record: BenchDocument, entry: BenchEntry) -> str:
    """A sentence where there is little to gain, since the runtime optimises both models to the same."""
    counts = [record["models"][index]["batchnorms"] or 0 for index in (0, entry["index"])]
    same = "the two run the same kernels"
    if counts[0] <= counts[1]:
        return same
    return f"onnxruntime folds {plural(counts[0] - counts[1], 'BatchNorm')} itself here, and {same}"


def gate_line(method: Method, entry: BenchEntry) -> str:
    """The demand on a model, and the answer to it."""
    asked = [f"at least {method['require']:g} times as fast"] if method["require"] is not None else []
    asked += ["not slower"] if method["no_slower"] else []
    reason = f": {_visible(entry)}" if entry["gate"] == "cannot tell" else ""
    return f"{' and '.join(asked)}: {entry['gate']}{reason}"


def _visible(entry: BenchEntry) -> str:
    percent = 100 * (entry["visible_change"] or 0)
    return f"differences under {percent:.{0 if percent >= 10 else 1}f} % are not visible here"


def _machine(record: BenchDocument) -> str:
    machine, method = record["fingerprint"], record["method"]
    gpus = "".join(f", {gpu['name']}" for gpu in machine["gpus"])
    threads = plural(method["threads"], "thread")
    return f"{machine['cpu']}{gpus}, {threads}, load {machine['load_before']} to {machine['load_after']}"


def _details(record: BenchDocument, names: list[str]) -> Iterator[str]:
    for model, name in zip(record["models"], names, strict=True):
        digest = model["sha256"] and model["sha256"][:16]
        counted = ((model["nodes"], "node"), (model["batchnorms"], "BatchNorm"), (model["file_bytes"], "byte"))
        facts = [plural(number_of, noun) for number_of, noun in counted if number_of is not None]
        yield f"{name}: {', '.join(facts)}, sha256 {digest}"
    for entry in record["entries"]:
        where = " ".join(filter(None, [entry["provider"], entry["level"]]))
        sessions = plural(len(entry["session_samples_ms"]), "session")
        yield (
            f"{where}: {names[entry['index']]}: p99 {_number(entry['p99_ms'])} ms, first run "
            f"{_number(entry['first_run_ms'])} ms, {sessions}, session ratio "
            f"{entry['session_ratio_low']:.3f} to {entry['session_ratio_high']:.3f}, {entry['details']['clock']}"
        )
    yield ", ".join(f"{name} {version}" for name, version in record["fingerprint"]["libraries"].items())
