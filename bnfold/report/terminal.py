"""Shows the record to people: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnfold.errors import plural, shorten
from bnfold.report.columns import Column, Row
from bnfold.report.documents import (
    Change,
    Divergence,
    DriftDocument,
    FileDocument,
    Folded,
    Gate,
    Kept,
    Merged,
    Output,
    Proof,
    SmokeRun,
    Value,
    Verification,
    VerifyDocument,
    Warned,
)


def show(record: FileDocument, console: Console, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print the outcome of each BatchNorm, and a summary."""
    if not quiet:
        rows = [*record["outcomes"], *(record["affine_outcomes"] if verbose else [])]
        is_done = record["output"] is not None
        if len(rows) > LISTED and not verbose:
            for line in _groups(rows, is_done=is_done):
                print_line(console, line)
        elif console.is_terminal and rows:
            console.print(tabulate(_columns(is_done=is_done), rows))
        else:
            width = len("folded" if is_done else "would fold")
            for row in rows:
                print_line(console, "  ".join([_status(row, is_done=is_done).ljust(width), _name(row), where(row)]))
        hidden = [] if verbose or len(record["merges"]) <= LISTED else record["merges"][LINES:]
        for merge in record["merges"][: len(record["merges"]) - len(hidden)]:
            print_line(console, _merge(merge))
        if hidden:
            print_line(console, f"merged  and {len(hidden)} more (--verbose lists them)")
        for line in _advice(rows):
            print_line(console, line)
        for line in _warnings(record["warnings"], verbose=verbose):
            print_line(console, line)
    first, *rest = summary(record)
    for line in [f"{record['model']}: {first}" if quiet else first, *rest]:
        print_line(console, line)
    is_fold = record["command"] == "fuse"
    if "drift" in record:
        for line in _drift(record["drift"], quiet=quiet or (is_fold and not verbose), verbose=verbose):
            print_line(console, line)


LISTED = 100
"""The most BatchNorms that are listed one by one, unless all are asked for."""

GROUPS = 12
"""How many groups of more BatchNorms are told."""

NAME = 40
"""Characters of a name among others."""


def _groups(rows: Sequence[Folded | Kept], *, is_done: bool) -> Iterator[str]:
    """Many BatchNorms in few lines: those that went one way, and those that stay for one reason, the largest first."""
    groups: dict[tuple[str, str], list[Folded | Kept]] = {}
    for row in rows:
        if row["status"] == "kept":
            key = f"{row['reason']}: {row['detail']}"
        else:
            key = f"{row['direction']} into {plural(len(row['into']), 'operator')}"
        groups.setdefault((_status(row, is_done=is_done), key), []).append(row)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    for (status, what), members in ordered[:GROUPS]:
        names = ", ".join(shorten(_name(row), NAME) for row in members[:2]) + (", ..." if len(members) > 2 else "")
        yield f"{status}  {len(members):,}  {what} ({names})"
    if len(ordered) > GROUPS:
        rest = sum(len(members) for _, members in ordered[GROUPS:])
        yield f"and {rest:,} more in {len(ordered) - GROUPS:,} groups"
    yield "--verbose lists each of them"


def _drift(drift: DriftDocument, *, quiet: bool, verbose: bool) -> Iterator[str]:
    """The BatchNorms that drift most, and a summary."""
    ordered = sorted(drift["batchnorms"], key=lambda row: -abs(row["shift"]))
    for row in () if quiet else ordered if verbose else ordered[:LINES]:
        chance = "" if row["chance"] is None else f", chance explains {row['chance']:.2g}"
        still = f"; {plural(len(row['still']), 'channel')} never {'varies' if len(row['still']) == 1 else 'vary'}"
        name = row["batchnorm"] if row["scope"] == "main" else f"{row['scope']}/{row['batchnorm']}"
        yield (
            f"data  {name}: mean off by {row['shift']:.2g} deviations in channel {row['channel']}{chance}; "
            f"variance {row['ratio']:.2g} times in channel {row['ratio_channel']}{still if row['still'] else ''}"
        )
    if drift["left_out"]:
        yield f"note: {plural(drift['left_out'], 'BatchNorm')} could not be compared with data"
    if drift["untrained"]:
        yield "note: all running statistics are those of a new model, mean 0 and variance 1: was it exported untrained?"
    yield (
        f"{plural(drift['samples'], 'sample')}: data are at most {drift['largest']:.2g} running deviations off, "
        "beside what chance explains"
    )


LINES = 6
"""How many inner values that differ or are declared wrong are listed, unless all are asked for."""


def _warnings(warnings: list[Warned], *, verbose: bool) -> Iterator[str]:
    """A line for each warning, but only few about declarations. Where one is stale, so are most behind it."""
    stale = [caution for caution in warnings if caution["kind"] == "stale-declaration"]
    hidden = [] if verbose else stale[LINES:]
    for warning in warnings:
        if warning not in hidden:
            yield f"warning: {_name(warning)}: {warning['detail']}"
    if hidden:
        yield f"warning: and {len(hidden)} stale declarations more (--verbose lists them)"


def show_comparison(record: VerifyDocument, console: Console, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print the verdict on each output, the first difference, and a summary."""
    if not quiet:
        for output in record["outputs"]:
            name = f"{output['name']} ({_where_run(output)})"
            word = "within" if "gate" in record else "same"
            print_line(console, _verdict_line(output, name, output["argmax_agreement"], word))
        values = record["values"] if verbose else [entry for entry in record["values"] if entry["reason"]]
        for value in values if verbose else values[:LINES]:
            print_line(console, _verdict_line(value, value["name"]))
        if not verbose and len(values) > LINES:
            print_line(console, f"         and {len(values) - LINES} inner values more (--verbose lists them)")
        if record["first_divergence"] is not None:
            print_line(console, _divergence_line(record["first_divergence"]))
        for change in record.get("interface", ()):
            print_line(console, f"differs  interface: {change}")
        for finding in record["findings"] if "proof" not in record else ():
            print_line(console, f"note: {finding}")
    print_line(console, proof_line(record["proof"]) if "proof" in record else judgement_line(record))


def _where_run(output: Output) -> str:
    return output["provider"] if output["level"] == "disabled" else f"{output['provider']}, as deployed"


def _verdict_line(verdict: Value, name: str, agreement: float | None = None, word: str = "same") -> str:
    if verdict["reason"]:
        return f"differs  {name}: {verdict['reason']}, on the input {verdict['input']!r}"
    if verdict["error"] == 0:
        return f"same     {name}: identical"
    figures = [f"{name} {verdict[name]:.1e}" for name in ("error", "budget") if verdict[name] is not None]
    if verdict["snr_db"] is not None:
        figures.append(f"{verdict['snr_db']:.0f} dB")
    if agreement is not None:
        figures.append(f"argmax agrees {agreement:.2%}")
    return f"{word:<9}{name}: {', '.join(figures)}"


def _divergence_line(divergence: Divergence) -> str:
    node = f", made by {divergence['node']}" if divergence["node"] else ""
    channel = "" if divergence["channel"] is None else f", channel {divergence['channel']}"
    return (
        f"first difference: {divergence['name']}{node}{channel}, at {divergence['position']}: "
        f"{divergence['actual']} instead of {divergence['expected']}"
    )


def proof_line(proof: Proof) -> str:
    """The line on the proof: its obligations, or that the result is not proved."""
    if not proof["proved"]:
        return f"NOT proved: {proof['failure']}"
    if proof["identical"]:
        return "proved: identical"
    many = f"{plural(proof['folds'], 'fold')}, {', '.join(_obligations(proof))} in {proof['seconds']:.1f} s"
    return f"proved: {many}{_assumptions(proof)}"


def _obligations(proof: Proof) -> Iterator[str]:
    accuracy = "half an ulp" if proof["worst_ulp"] < 0.5001 else f"{proof['worst_ulp']:.1f} ulp"  # sums in float64
    yield f"{plural(proof['weights'], 'weight')} to {accuracy}"
    for kind in ("carrier", "merge"):
        yield plural(proof["obligations"][f"{kind}s"], kind)  # type: ignore[literal-required]


def _assumptions(proof: Proof) -> str:
    many = len(proof["assumed"])
    return f", with {plural(many, 'shape')} as a run of the model had {'it' if many == 1 else 'them'}" if many else ""


def _checks(record: FileDocument) -> str:
    """The lines on the checks of the result."""
    verification, proof = record["verification"], record.get("proof")
    if verification is None:
        return "not verified"
    if proof is None:
        return f"verified: {judgement_line(verification)}"
    if proof["identical"]:
        return "verified: identical"
    many = f"{plural(proof['folds'], 'fold')} proved ({', '.join(_obligations(proof))}) in {proof['seconds']:.1f} s"
    many += _assumptions(proof)
    if "smoke" in verification:
        return f"verified: {many}; {_smoke(verification['smoke'], verification['findings'])}"
    return f"verified: {many}; {judgement_line(verification) if verification['inputs'] else 'not run'}"


def _smoke(smoke: SmokeRun, findings: list[str]) -> str:
    if not smoke["ran"]:
        return findings[0]
    ran = f"ran once in {smoke['runtime']}"
    if smoke["error"] is None:
        return f"{ran}, {findings[0] if findings else 'which gives no outputs'}"
    difference = f"largest difference {smoke['error']:.0e}".replace("e-0", "e-") if smoke["error"] else "no difference"
    return ", ".join([f"{ran}, {difference}", *findings[:1]])


def judgement_line(verification: Verification) -> str:
    """The answer of a verification, and its grounds."""
    inputs, values = verification["inputs"], len(verification["values"])
    on = f"{plural(inputs, 'set')} of inputs"
    if not inputs and verification["equivalent"]:
        return "equivalent: the same model, bit for bit"
    if "gate" in verification:
        return _gate_line(verification, verification["gate"], on)
    if not verification["equivalent"]:
        return f"NOT equivalent, on {on}"
    inside = f", {plural(values, 'inner value')}" if values else ""
    outputs = [output for output in verification["outputs"] if output["level"] == "disabled"]
    worst = max(outputs, key=lambda output: (output["excess"] is None, output["excess"] or 0), default=None)
    error = f" (largest error {worst['error']:.1e}, budget {worst['budget']:.1e})" if worst else ""
    if worst and worst["error"] == 0:
        error = " (identical)"
    return f"equivalent on {on}{inside}{error}"


def _gate_line(verification: Verification, gate: Gate, on: str) -> str:
    """The answer of a gate, with the worst figures of the outputs."""
    names = {"min_snr": "--min-snr", "min_argmax": "--min-argmax", "atol": "--atol", "rtol": "--rtol"}
    options = " ".join(f"{option} {gate[name]:g}" for name, option in names.items() if gate[name] is not None)  # type: ignore[literal-required]
    if not verification["equivalent"]:
        return f"NOT within {options}, on {on}"
    outputs = [output for output in verification["outputs"] if output["level"] == "disabled"]
    ratios = [output["snr_db"] for output in outputs if output["snr_db"] is not None]
    shares = [output["argmax_agreement"] for output in outputs if output["argmax_agreement"] is not None]
    figures = [f"{min(ratios):.1f} dB"] if ratios else []
    figures += [f"argmax agrees in {min(shares):.2%}"] if shares else []
    if all(output["error"] == 0 for output in outputs):
        figures = ["identical"]
    return f"within {options}, on {on} ({', '.join(figures) or 'nothing to measure'})"


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: not wrapped, and with its markup as plain text."""
    console.print(Text(line), soft_wrap=True)


def _name(row: Folded | Kept | Warned) -> str:
    name = str(row.get("batchnorm") or row.get("value"))
    return name if row["scope"] == "main" else f"{row['scope']}/{name}"


def where(row: Folded | Kept) -> str:
    """Where a BatchNorm goes, or why it stays."""
    if row["status"] == "kept":
        return f"{row['reason']} at {row['at']}: {row['detail']}"
    if row["direction"] == "computed":
        return f"computed once, for {', '.join(row['into'])}"
    through = f" through {', '.join(row['through'])}" if row["through"] else ""
    return f"{row['direction']} into {', '.join(row['into'])}{through}"


def _merge(merge: Merged) -> str:
    scope = "" if merge["scope"] == "main" else f"{merge['scope']}/"
    through = f" through {', '.join(merge['through'])}" if merge["through"] else ""
    return f"merged  {scope}{merge['into']} takes {', '.join(merge['branches'])}{through}"


def _advice(rows: list[Folded | Kept]) -> Iterator[str]:
    """Each piece of advice once."""
    kept = [row for row in rows if row["status"] == "kept"]
    yield from dict.fromkeys(f"{row['reason']}: {row['advice']}" for row in kept if row["advice"])


def _status(row: Folded | Kept, *, is_done: bool) -> str:
    return row["status"] if is_done or row["status"] == "kept" else "would fold"


def _columns(*, is_done: bool) -> tuple[Column[Folded | Kept, str | Text], ...]:
    def status(row: Folded | Kept) -> Text:
        return Text(_status(row, is_done=is_done), style="green" if row["status"] == "folded" else "yellow")

    return (Column("BatchNorm", _name), Column("", status), Column("where it goes, or why it stays", where))


SHORTEST = 10
"""The columns of a terminal that texts get at least, where the numbers beside them take the rest."""


def fitting(
    columns: Sequence[Column[Row, str | Text]], rows: Sequence[Row], width: int
) -> Sequence[Column[Row, str | Text]]:
    """The first columns, as many as a terminal has room for, so that no number loses a digit. Texts are folded."""
    room = width
    for count, column in enumerate(columns):
        needed = max(len(text) for text in (column.label, *(str(column.cell(row)) for row in rows)))
        room -= (needed if column.is_number else min(needed, SHORTEST)) + 2 * (count > 0)
        if room < 0 and count > 1:
            return columns[:count]
    return columns


def tabulate(
    columns: Sequence[Column[Row, str | Text]],
    rows: Iterable[Row],
    style: Callable[[Row], str] = lambda row: "",
) -> Table:
    """A table without lines, in which each row has its style."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(column.label, justify=justify, no_wrap=column.is_number, overflow="fold")
    for row in rows:
        cells = [column.cell(row) for column in columns]
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), style=style(row))
    return table


def _change(change: Change, noun: str) -> str:
    """``12 -> 9 nodes``, where something was written."""
    assert change["after"] is not None
    return f"{change['before']:,} -> {plural(change['after'], noun)}"


def summary(record: FileDocument) -> Iterator[str]:
    """The summary of outcomes, in one or two lines."""
    counts, nodes, sizes = record["batchnorms"], record["nodes"], record["bytes"]
    would = "would fold" if record["output"] is None else "folded"
    others = record["affines"]["folded"]
    extra = f", and {plural(others, 'other per-channel affine')}" if others else ""
    total = plural(counts["found"], "BatchNorm")
    yield f"{total} found: {counts['folded']} {would}, {counts['kept']} kept{extra}"
    if record["merges"]:
        merge = "would become" if record["output"] is None else "became"
        many = len(record["merges"])
        yield f"{plural(many, 'group')} of linear operators {merge} one{'' if many == 1 else ' each'}"
    if record["output"] is None:
        return
    yield f"{_change(nodes, 'node')}, {_change(sizes, 'byte')}, {record['seconds']:.2f} s"
    yield _checks(record)
    yield f"wrote {record['output']}"
