"""Whether a certificate proves that two files are the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import InvalidModelError
from bnfold.frontends.limits import LIMITS, Limits
from bnfold.proof.certificate import Certificate
from bnfold.proof.checker import Proof
from bnfold.verification.proving import check_files


@dataclass(frozen=True)
class ProofResult:
    """The result of checking a certificate.

    Attributes:
        reference, candidate: the files.
        proof: the proof, with its obligations.
    """

    reference: Path
    candidate: Path
    proof: Proof


def prove_files(reference: Path, candidate: Path, certificate: Path, limits: Limits = LIMITS) -> ProofResult:
    """Whether a certificate proves that two ONNX files are the same model; runs neither.

    Raises:
        BnfoldError: a file cannot be read, or the certificate is of other models, or none.
    """
    try:
        if certificate.stat().st_size > limits.bytes:
            raise InvalidModelError(f"{certificate}: has more than {limits.bytes} bytes")
        text = certificate.read_bytes()
    except OSError as error:
        raise InvalidModelError(f"{certificate}: {error.strerror}") from error
    claimed = Certificate.from_json(text, str(certificate))
    return ProofResult(reference, candidate, check_files(reference, candidate, claimed, limits))
