"""The section on the proof: its obligations, and the smoke run after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bnfold.report.documents import Record
from bnfold.report.html.parts import Cell, Column, Section, tabulate
from bnfold.report.html.text import count, plain, scientific, shown

MEANINGS = {
    "wiring": "everything that no other obligation is about is the same, byte for byte",
    "weights": "operators whose stored weights and biases are the exact ones, rounded once",
    "carriers": "operators between, through which the change goes",
    "merges": "regions that became one operator",
}
"""The kinds of obligations."""

_COLUMNS: tuple[Column[tuple[str, Any]], ...] = (
    Column("obligation", lambda row: Cell(shown(row[0], 40)), is_short=True),
    Column("met", lambda row: Cell(count(row[1])), is_number=True),
    Column("what it says", lambda row: Cell(MEANINGS.get(row[0], "")), is_wide=True),
)


def proof_section(proof: Any, verification: Record | None) -> Section | None:
    """The obligations with their counts, the largest error, and what the smoke run showed."""
    if not isinstance(proof, dict):
        return None
    obligations = proof.get("obligations")
    rows = list(obligations.items()) if isinstance(obligations, dict) else []
    return Section(
        "proof",
        "Proof",
        list(_sentences(proof, (verification or {}).get("smoke"))),
        tables=[tabulate("Obligations", _COLUMNS, rows)] if rows and not proof.get("identical") else [],
    )


def _sentences(proof: Record, smoke: Any) -> Iterator[str]:
    if not proof.get("proved"):
        yield f"The result is not proved: {shown(proof.get('failure') or 'nobody says why', 600)}"
    elif proof.get("identical"):
        yield "The result is the original, byte for byte."
    else:
        worst = plain(proof.get("worst_ulp"), 3)
        yield (
            f"Each fold is proved by its weights, without running the model: {count(proof.get('weights'))} numbers "
            f"were checked one by one, and the largest error is {worst} units in the last place."
        )
    if not isinstance(smoke, dict):
        return
    if smoke.get("difference"):
        yield f"And yet it does not run like the original: {shown(smoke['difference'], 600)}"
    elif smoke.get("ran") and smoke.get("error") is not None:
        yield (
            f"Both models then ran once in {shown(smoke.get('runtime', ''), 40)}: the outputs differ by at most "
            f"{scientific(smoke['error'])} of their largest value."
        )
