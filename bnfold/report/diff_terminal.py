"""Shows the record of `diff` to people: what became of the BatchNorms, in groups, and what else changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console

from bnfold.errors import plural
from bnfold.report.documents import DiffDocument, FateOf, NodeOf
from bnfold.report.terminal import LINES, print_line, where

TITLES = {
    "kept": "still there",
    "folded": "folded",
    "merged": "merged with other branches",
    "decomposed": "written as other operators",
    "depthwise": "turned into a depthwise convolution",
    "constant": "folded into a constant",
    "identity": "gone, since it changes nothing",
    "unread": "gone, since nothing needs it",
    "unknown": "unknown: bnfold cannot tell",
}
"""What each status is called."""


def show(record: DiffDocument, console: Console, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print what changed, and a summary."""
    if not quiet:
        for line in lines(record, verbose=verbose):
            print_line(console, line)
    print_line(console, summary(record))


def lines(record: DiffDocument, *, verbose: bool) -> Iterator[str]:
    """What changed, a line each; those that belong to the one before begin with spaces."""
    groups: dict[str, list[FateOf]] = {}
    for fate in record["fates"]:
        groups.setdefault(_title(fate), []).append(fate)
    for title, fates in groups.items():
        yield f"{title}: {plural(len(fates), 'BatchNorm')}"
        yield from _some([_line(fate) for fate in fates], verbose=verbose)
    nodes, weights = record["nodes"], record["weights"]
    for word, listed in (("gone", nodes["gone"]), ("new", nodes["new"])):
        if listed:
            yield f"{plural(len(listed), 'node')} {word}: {_operators(listed)}"
            if verbose:
                yield from (f"  {_place(node['name'], node['scope'])}" for node in listed)
    if nodes["changed"]:
        yield f"{plural(len(nodes['changed']), 'node')} changed"
        changes = [f"{_place(each['name'], each['scope'])}: {'; '.join(each['changes'])}" for each in nodes["changed"]]
        yield from _some(changes, verbose=verbose)
    if weights["changed"]:
        yield f"{plural(len(weights['changed']), 'weight')} changed"
        ordered = sorted(weights["changed"], key=lambda each: -(each["largest"] or float("inf")))
        yield from _some([_weight(each["name"], each["largest"], each["detail"]) for each in ordered], verbose=verbose)
    if weights["gone"] or weights["new"]:
        yield f"names of weights: {len(weights['gone'])} gone, {len(weights['new'])} new"
        if verbose:
            yield from (f"  gone  {name}" for name in weights["gone"])
            yield from (f"  new   {name}" for name in weights["new"])
    for change in record["interface"]:
        yield f"interface: {change}"


def _some(lines: Sequence[str], *, verbose: bool) -> Iterator[str]:
    shown = lines if verbose else lines[:LINES]
    yield from (f"  {line}" for line in shown)
    if len(shown) < len(lines):
        yield f"  and {len(lines) - len(shown)} more (--verbose lists them)"


def _title(fate: FateOf) -> str:
    title = TITLES[fate["status"]]
    if fate["direction"]:
        title += f" {fate['direction']}"
    if fate["status"] in ("folded", "merged"):
        title += f" into {', '.join(dict.fromkeys(fate['operators']))}"
    said = fate["bnfold"]
    if said is not None:
        title += ", would fold" if said["status"] == "folded" else f", {said['reason']}"
    return title


def _line(fate: FateOf) -> str:
    parts = [_place(fate["batchnorm"], fate["scope"])]
    if fate["into"] and fate["status"] not in ("kept", "constant"):
        parts.append(f"-> {', '.join(fate['into'])}")
    elif fate["into"] and fate["into"] != [fate["batchnorm"]] and fate["status"] == "kept":
        parts.append(f"is {fate['into'][0]}")
    details = [fate["detail"]] if fate["detail"] else []
    if fate["bnfold"] is not None:
        details.append(where(fate["bnfold"]))
    return " ".join(parts) + (f": {'; '.join(details)}" if details else "")


def _place(name: str, scope: str) -> str:
    return name if scope == "main" else f"{scope}/{name}"


def _operators(nodes: Sequence[NodeOf]) -> str:
    counts = Counter(node["operator"] for node in nodes).most_common()
    return ", ".join(f"{count} {operator}" for operator, count in counts[:LINES]) + (
        ", ..." if len(counts) > LINES else ""
    )


def _weight(name: str, largest: float | None, detail: str) -> str:
    figures = [f"by at most {largest:.1e} of its largest value"] if largest else []
    return f"{name}: {', '.join([*figures, *([detail] if detail else [])])}"


def summary(record: DiffDocument) -> str:
    """The answer in one line."""
    if record["identical"]:
        return "identical: the same nodes, attributes, weights and interface"
    if not record["related"]:
        return "unrelated: the models have no weights, and few names, in common"
    nodes = record["nodes"]
    counts = ", ".join(f"{count} {status}" for status, count in record["statuses"].items())
    found = sum(record["statuses"].values())
    norms = f"{plural(found, 'BatchNorm')}: {counts}; " if found else ""
    same = "" if nodes["gone"] or nodes["new"] else ", all of them in both"
    return f"{norms}{nodes['before']:,} -> {plural(nodes['after'], 'node')}{same}"
