"""Makes the sections of a page from the record's keys. A missing key gives no section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bnfold.report.documents import Record
from bnfold.report.html import checking, data, fleet, folding, proving, timing
from bnfold.report.html.differing import difference_sections
from bnfold.report.html.parts import Section, Terms, terms


def sections(record: Record) -> Iterator[Section]:
    """The sections in the order in which a reader wants them."""
    if record.get("command") == "fleet":
        yield from fleet.sections(record)
        yield from filter(None, [_properties("provenance", "Provenance", record.get("provenance"), None)])
        return
    verification = checking.verification_of(record)
    timed = record.get("bench") or record
    if record.get("command") == "diff":
        yield from difference_sections(record)
    for section in (
        folding.stayed(record.get("outcomes")),
        folding.batchnorms(record.get("outcomes"), is_done=record.get("output") is not None),
        folding.merges(record.get("merges")),
        folding.cautions(record.get("warnings")),
        proving.proof_section(record.get("proof"), verification),
        checking.verification_section(verification) if verification else None,
        data.drift_section(record.get("drift")),
        timing.latency(timed.get("entries"), timed.get("noise")),
        timing.start(timed.get("entries")),
        timing.models(timed.get("models")),
        folding.affines(record.get("affine_outcomes")),
        _properties("method", "Method", timed.get("method"), timed.get("inputs")),
        _properties("fingerprint", "Fingerprint", timed.get("fingerprint"), None),
        _properties("provenance", "Provenance", record.get("provenance"), None),
    ):
        if section is not None:
            yield section


def _properties(key: str, title: str, value: Any, inputs: Any) -> Section | None:
    """A section of definitions, and of the inputs that belong to them."""
    if not isinstance(value, dict) or not value:
        return None
    listed: list[Terms] = [terms("", value)]
    if isinstance(inputs, list) and inputs:
        listed.append(terms("Inputs", {"set": inputs}))
    return Section(key, title, terms=listed)
