"""States what `fuse` did to a file, as an in-toto Statement v1 that others can sign (`attestation.schema.json`)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnfold.errors import OutputError
from bnfold.graph.outcome import Fold, Merge, Outcome, Refusal
from bnfold.proof.checker import Proof
from bnfold.verification.smoke import SmokeRun
from bnfold.verification.verdict import Verdict

STATEMENT = "https://in-toto.io/Statement/v1"

PREDICATE = "urn:bnfold:fold:v1"
"""The type of the predicate."""

PIECE = 1 << 22


@dataclass(frozen=True)
class Seal:
    """Files, with their sizes and times when they were first looked at."""

    states: tuple[tuple[Path, int, int], ...]

    @classmethod
    def of(cls, files: Sequence[Path]) -> Seal:
        """Seal files as they are now."""
        states = [(path, path.stat()) for path in files]
        return cls(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))

    def describe(self) -> list[dict[str, Any]]:
        """The resource descriptors of the files, in the terms of in-toto.

        Raises:
            OutputError: a file has changed since.
        """
        described = [describe(path, path.name) for path, _, _ in self.states]
        if Seal.of([path for path, _, _ in self.states]) != self:
            raise OutputError(f"{self.states[0][0]}: changed while it was read, so that nothing can be attested of it")
        return described


def describe(path: Path, name: str) -> dict[str, Any]:
    """A file's resource descriptor."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return {"name": name, "digest": {"sha256": digest.hexdigest()}}


def attest(
    subject: Sequence[dict[str, Any]],
    original: Sequence[dict[str, Any]],
    options: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    proof: Proof | None,
    smoke: SmokeRun | None,
    verdict: Verdict | None,
) -> str:
    """The statement, as JSON.

    Args:
        subject: the files of the result.
        original: the files of the original.
        options: the options of `fuse`.
        outcomes: what became of each BatchNorm.
        proof: the proof, if there was one.
        smoke: the smoke run, if there was one.
        verdict: the verdict of a comparison in full, if there was one.
    """
    is_proved = proof is not None and proof.is_proved
    statement = {
        "_type": STATEMENT,
        "subject": list(subject),
        "predicateType": PREDICATE,
        "predicate": {
            "tool": {"name": "bnfold", "version": version("bnfold")},
            "original": list(original),
            "options": dict(options),
            "outcomes": _count(outcomes),
            "proof": None if proof is None else _describe_proof(proof),
            "run": None if smoke is None else _describe_run(smoke),
            "comparison": None if verdict is None else {"equivalent": verdict.is_equivalent},
            "verdict": "proved" if is_proved else "equivalent" if verdict is not None else "not verified",
        },
    }
    return json.dumps(statement, indent=1, ensure_ascii=True) + "\n"


def _count(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    batchnorms = [outcome for outcome in outcomes if isinstance(outcome, Refusal | Fold) and outcome.is_batchnorm]
    refusals = Counter(str(outcome.reason) for outcome in batchnorms if isinstance(outcome, Refusal))
    return {
        "found": len(batchnorms),
        "folded": sum(isinstance(outcome, Fold) for outcome in batchnorms),
        "kept": dict(sorted(refusals.items())),
        "affines": sum(isinstance(outcome, Fold) and not outcome.is_batchnorm for outcome in outcomes),
        "merges": sum(isinstance(outcome, Merge) for outcome in outcomes),
    }


def _describe_proof(proof: Proof) -> dict[str, Any]:
    return {
        "proved": proof.is_proved,
        "identical": proof.is_identical,
        "obligations": dict(proof.obligations),
        "folds": proof.folds,
        "weights": proof.weights,
        "worst_ulp": round(proof.worst_ulp, 6),
        "assumed": [value for _, value in proof.assumed],
    }


def _describe_run(smoke: SmokeRun) -> dict[str, Any]:
    return {"ran": smoke.has_run, "error": smoke.error, "notes": list(smoke.notes)}
