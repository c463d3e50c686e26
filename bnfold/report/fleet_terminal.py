"""Shows the record of a fleet on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from bnfold.errors import escape, plural
from bnfold.report.documents import FleetDocument
from bnfold.report.terminal import print_line


def show(record: FleetDocument, console: Console, *, verbose: bool, quiet: bool) -> None:
    """Print the failures, and the sums; with `verbose` also the slowest and the largest models."""
    if not quiet:
        for failure in record["failures"]:
            print_line(console, f"failed  {escape(_named(failure['source'], failure['message']))}")
        counts = record["counts"]
        more = counts["no"] + counts["refused"] + counts["failed"] - len(record["failures"])
        if more > 0:
            print_line(console, f"failed  {plural(more, 'further model')}, in the ledger or the report")
    if verbose:
        for model in record["slowest"]:
            print_line(console, f"slow    {escape(model['source'])}: {model['seconds']:.2f} s")
        for model in record["largest"]:
            print_line(console, f"large   {escape(model['source'])}: {model['bytes']:,} bytes")
    for line in summary(record):
        print_line(console, line)


def _named(source: str, message: str) -> str:
    """A message that names its model, once."""
    return message if source in message else f"{source}: {message}"


def summary(record: FleetDocument) -> Iterator[str]:
    """The sums, a line each."""
    counts, batchnorms = record["counts"], record["batchnorms"]
    ends = {
        "well": "done",
        "no": "with the answer no",
        "refused": "refused",
        "failed": "without an answer",
        "left_out": "not begun",
    }
    parts = [f"{counts[key]:,} {what}" for key, what in ends.items() if counts[key] or key == "well"]  # type: ignore[literal-required]
    known = f" ({counts['unchanged']:,} of them by an earlier run)" if counts["unchanged"] else ""
    yield f"{plural(counts['found'], 'model')}: {', '.join(parts)}{known}"
    if record["task"] in ("fuse", "inspect"):
        would = "folded" if record["task"] == "fuse" else "would fold"
        total = plural(batchnorms["found"], "BatchNorm")
        yield f"{total} found: {batchnorms['folded']:,} {would}, {batchnorms['kept']:,} kept"
    if record["reasons"]:
        yield f"kept: {', '.join(f'{count:,} {reason}' for reason, count in record['reasons'].items())}"
    after = record["bytes"]["after"]
    if after is not None:
        yield f"{record['bytes']['before']:,} -> {plural(after, 'byte')}, {record['seconds']:.2f} s"
    else:
        yield f"{record['seconds']:.2f} s"
    if record["out"] is not None:
        yield f"wrote {record['out']}"
    if record["ledger"] is not None:
        yield f"ledger {record['ledger']}"
