"""The record: the JSON document that pipelines read. Keys are only ever added."""

from __future__ import annotations

from typing import Any

from bnfold.api import FileResult
from bnfold.health import Caution
from bnfold.outcome import Fold, Merge, Refusal
from bnfold.verification.compare import Verdict

Record = dict[str, Any]

SCHEMA = "bnfold/1"


def record_file(command: str, result: FileResult) -> Record:
    """The record of `fuse` or `inspect`."""
    batchnorms = [each for each in result.outcomes if isinstance(each, Refusal | Fold) and each.is_batchnorm]
    affines = [each for each in result.outcomes if isinstance(each, Fold) and not each.is_batchnorm]
    merges = [each for each in result.outcomes if isinstance(each, Merge)]
    folded = sum(isinstance(each, Fold) for each in batchnorms)
    record: Record = {
        "schema": SCHEMA,
        "command": command,
        "model": str(result.model),
        "output": None if result.output is None else str(result.output),
        "batchnorms": {"found": len(batchnorms), "folded": folded, "kept": len(batchnorms) - folded},
        "affines": {"folded": len(affines)},
        "outcomes": [_outcome(each) for each in batchnorms],
        "affine_outcomes": [_outcome(each) for each in affines],
        "merges": [_merge(each) for each in merges],
        "warnings": [_warning(each) for each in result.warnings],
        "nodes": {"before": result.before.nodes, "after": result.after and result.after.nodes},
        "bytes": {"before": result.before.bytes, "after": result.after and result.after.bytes},
        "seconds": round(result.seconds, 3),
        "verification": None if result.verdict is None else _verification(result.verdict),
    }
    return record


def _merge(merge: Merge) -> Record:
    return {
        "into": merge.into,
        "scope": merge.scope,
        "branches": list(merge.branches),
        "through": list(merge.through),
        "rounding": merge.rounding,
    }


def _outcome(outcome: Fold | Refusal) -> Record:
    if isinstance(outcome, Fold):
        return {
            "batchnorm": outcome.batchnorm,
            "scope": outcome.scope,
            "status": "folded",
            "direction": outcome.direction,
            "into": list(outcome.into),
            "through": list(outcome.through),
            "rounding": outcome.rounding,
        }
    return {
        "batchnorm": outcome.batchnorm,
        "scope": outcome.scope,
        "status": "kept",
        "reason": str(outcome.reason),
        "detail": outcome.detail,
        "at": outcome.at,
        "advice": outcome.advice,
    }


def _warning(warning: Caution) -> Record:
    return {
        "batchnorm": warning.batchnorm,
        "scope": warning.scope,
        "kind": warning.kind,
        "channels": list(warning.channels),
        "detail": warning.detail,
    }


def _verification(verdict: Verdict) -> Record:
    return {
        "equivalent": verdict.is_equivalent,
        "inputs": verdict.inputs,
        "outputs": [
            {
                "name": output.name,
                "provider": output.provider,
                "error": output.error,
                "budget": output.budget,
                "equivalent": output.is_equivalent,
            }
            for output in verdict.outputs
        ],
    }
