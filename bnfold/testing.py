"""For the tests of people who deploy models."""

from __future__ import annotations

from math import isfinite
from typing import Any

from bnfold.errors import plural
from bnfold.verification.equivalence import verify
from bnfold.verification.verdict import ValueVerdict, Verdict


def assert_equivalent(reference: Any, candidate: Any, inputs: Any = None, **options: Any) -> Verdict:
    """Assert that two models are the same, apart from rounding.

    Args:
        reference: as for `bnfold.verify`.
        candidate: as for `bnfold.verify`.
        inputs: as for `bnfold.verify`.
        **options: as for `bnfold.verify`.

    Returns:
        The verdict, for further assertions.

    Raises:
        AssertionError: they differ; the message says where, and by how much.
        BnfoldError: they cannot be compared.
    """
    __tracebackhide__ = True
    verdict = verify(reference, candidate, inputs, **options)
    if not verdict.is_equivalent:
        raise AssertionError(explain(verdict))
    return verdict


def explain(verdict: Verdict) -> str:
    """A failing verdict in a few lines: what differs, by how much, and where it starts."""
    failing = [each for each in verdict.counting if not each.is_equivalent]
    lines = [
        f"not equivalent: {len(failing)} of {plural(len(verdict.counting), 'value')} "
        f"{'differs' if len(failing) == 1 else 'differ'}, on {plural(len(verdict.samples), 'input')}"
    ]
    divergence = verdict.first_divergence
    if divergence is not None:
        place = divergence.place
        channel = "" if divergence.channel is None else f", channel {divergence.channel}"
        lines.append(f"  starts at {divergence.name} (node {divergence.node or 'unknown'}{channel})")
        lines.append(f"    at {list(place.position)}: {place.actual} instead of {place.expected}")
    names = {each.name for each in verdict.outputs}
    lines += [_line(each, "output" if each.name in names else "inner value") for each in failing[:LINES]]
    lines += [f"  interface: {change}" for change in verdict.interface]
    if len(failing) > LINES:
        lines.append(f"  and {len(failing) - LINES} more")
    return "\n".join([*lines, *(f"  note: {finding}" for finding in verdict.findings)])


LINES = 8
"""How many values a message lists."""


def _line(verdict: ValueVerdict, what: str) -> str:
    where = f" on {verdict.provider} as deployed" if verdict.is_deployed else ""
    budget = f", budget {verdict.budget:.2e}" if isfinite(verdict.budget) else ""
    return (
        f"  {what} {verdict.name}{where}: {verdict.reason}; error {verdict.error:.2e}{budget}, "
        f"on the input {verdict.sample!r}"
    )
