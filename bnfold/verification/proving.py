"""What proves the folds of one kind of model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bnfold.frontends.door import Entry
from bnfold.frontends.protocol import OpenModel, Written
from bnfold.proof.certificate import Certificate
from bnfold.proof.checker import Proof
from bnfold.proof.ledger import Deeds
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.smoke import SmokeRun


class Prover(Protocol):
    """Proves what was done to a model; made before it was done."""

    def prove(self) -> Proof:
        """Of the model in memory, after the edits and before it is finished."""
        ...

    def prove_file(self, original: Path, written: Written) -> Proof:
        """Of the file that it was read from, and what was written."""
        ...

    def certify(self, written: Written) -> Certificate:
        """What lets others check that proof.

        Raises:
            UnsupportedModelError: it has no such form.
        """
        ...

    def run_once(self, original: Path, written: Written, inputs: InputOptions) -> SmokeRun:
        """Run both files once, in a process of their own.

        Raises:
            BnfoldError: the inputs that the caller gives do not fit.
        """
        ...


def begin(entry: Entry, opened: OpenModel, deeds: Callable[[], Deeds]) -> Prover | None:
    """The prover of a model of which nothing has been changed yet; None where its front end has none."""
    if entry.proof is None:
        return None
    prover: Prover = entry.part(entry.proof).begin(opened, deeds())
    return prover
