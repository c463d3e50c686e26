"""The interface that proves the folds of one kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.door import Entry, find_entry
from bnfold.frontends.limits import Limits
from bnfold.frontends.protocol import OpenModel, Written
from bnfold.proof.certificate import Certificate
from bnfold.proof.checker import Proof
from bnfold.proof.ledger import Changes
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.smoke import SmokeRun


class Prover(Protocol):
    """Proves the changes of a model. It is made before the model is changed."""

    def prove(self) -> Proof:
        """Prove the model in memory, after the edits and before it is finished."""
        ...

    def prove_file(self, original: Path, written: Written) -> Proof:
        """Prove the file that was written against the one that was read."""
        ...

    def certify(self, written: Written) -> Certificate:
        """The certificate with which others can check the proof.

        Raises:
            UnsupportedModelError: models of this kind have no certificates.
        """
        ...

    def run_once(
        self, original: Path, written: Written, inputs: InputOptions, custom_ops: Sequence[Path] = ()
    ) -> SmokeRun:
        """Run both files once, in a process of their own, with these libraries of custom operators.

        Raises:
            BnfoldError: the caller's inputs do not fit.
        """
        ...


def begin(entry: Entry, opened: OpenModel, changes: Callable[[], Changes]) -> Prover | None:
    """The prover of a model, before anything is changed; None where there is none for its kind."""
    if entry.proof is None:
        return None
    prover: Prover | None = entry.part(entry.proof).begin(opened, changes())
    return prover


def check_files(reference: Path, candidate: Path, certificate: Certificate, limits: Limits) -> Proof:
    """Whether a certificate proves that two files hold the same model; runs neither.

    Raises:
        InvalidModelError: a file cannot be read, or the certificate is of other models.
        UnsupportedModelError: the files are of different kinds, or of one without proofs.
    """
    entry = find_entry(reference)
    if entry.proof is None or find_entry(candidate) is not entry:
        raise UnsupportedModelError(f"{candidate}: a certificate is of two files of one kind")
    proof: Proof = entry.part(entry.proof).check_files(reference, candidate, certificate, limits)
    return proof


def describe_failure(proof: Proof) -> str:
    """The first obligation that is not proved, in one line."""
    return f"it is not proved: {proof.failures[0]}; please report this as a bug"
