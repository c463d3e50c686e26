"""What `fuse` did to a file, as an in-toto Statement v1 that others can sign (`attestation.schema.json`)."""

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
    """Files as they were when they were first looked at."""

    states: tuple[tuple[Path, int, int], ...]

    @classmethod
    def of(cls, files: Sequence[Path]) -> Seal:
        """Files as they are now."""
        found = [(path, path.stat()) for path in files]
        return cls(tuple((path, state.st_size, state.st_mtime_ns) for path, state in found))

    def describe(self) -> list[dict[str, Any]]:
        """The resource descriptors of in-toto.

        Raises:
            OutputError: a file is not any more what it was.
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
        original: those that it was made of.
        options: what `fuse` was asked for.
        outcomes: what became of each BatchNorm.
        proof: what was proved, if anything.
        smoke: what running both once showed, if they were run.
        verdict: of a comparison in full, if there was one.
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
    batchnorms = [each for each in outcomes if isinstance(each, Refusal | Fold) and each.is_batchnorm]
    refusals = Counter(str(each.reason) for each in batchnorms if isinstance(each, Refusal))
    return {
        "found": len(batchnorms),
        "folded": sum(isinstance(each, Fold) for each in batchnorms),
        "kept": dict(sorted(refusals.items())),
        "affines": sum(isinstance(each, Fold) and not each.is_batchnorm for each in outcomes),
        "merges": sum(isinstance(each, Merge) for each in outcomes),
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
