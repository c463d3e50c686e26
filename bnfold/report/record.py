"""The results of `fuse`, `inspect` and `verify`, as documents."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from bnfold.graph.cautions import Caution, DeclarationCaution
from bnfold.graph.cost import Cost
from bnfold.graph.outcome import Fold, Merge, Refusal
from bnfold.report import documents
from bnfold.report.documents import SCHEMA
from bnfold.verification.verdict import Divergence, ValueVerdict, Verdict

if TYPE_CHECKING:
    from bnfold.api import FileResult, ProofResult
    from bnfold.proof.checker import Proof
    from bnfold.verification.drift import Drift, DriftReport
    from bnfold.verification.equivalence import Comparison


def record_file(command: Literal["fuse", "inspect"], result: FileResult) -> documents.FileDocument:
    """The record of `fuse` or `inspect`."""
    batchnorms = [
        outcome for outcome in result.outcomes if isinstance(outcome, Refusal | Fold) and outcome.is_batchnorm
    ]
    affines = [outcome for outcome in result.outcomes if isinstance(outcome, Fold) and not outcome.is_batchnorm]
    merges = [outcome for outcome in result.outcomes if isinstance(outcome, Merge)]
    folded = sum(isinstance(outcome, Fold) for outcome in batchnorms)
    record: documents.FileDocument = {
        "schema": SCHEMA,
        "command": command,
        "model": str(result.model),
        "output": None if result.output is None else str(result.output),
        "batchnorms": {"found": len(batchnorms), "folded": folded, "kept": len(batchnorms) - folded},
        "affines": {"folded": len(affines)},
        "outcomes": [_batchnorm(outcome, result.costs) for outcome in batchnorms],
        "affine_outcomes": [record_fold(outcome) for outcome in affines],
        "merges": [_merge(merge) for merge in merges],
        "warnings": [_warning(warning) for warning in result.warnings],
        "nodes": {"before": result.before.nodes, "after": result.after.nodes if result.after else None},
        "bytes": {"before": result.before.bytes, "after": result.after.bytes if result.after else None},
        "seconds": round(result.seconds, 3),
        "verification": _checks(result),
    }
    if result.proof is not None:
        record["proof"] = _proof(result.proof)
    return record


def _batchnorm(outcome: Fold | Refusal, costs: Mapping[tuple[str, str], Cost]) -> documents.Folded | documents.Kept:
    """The outcome of a BatchNorm, with what it costs where it stays."""
    row = record_fold(outcome) if isinstance(outcome, Fold) else record_refusal(outcome)
    if (cost := costs.get((outcome.scope, outcome.batchnorm))) is not None:
        row["cost"] = {"parameters": cost.parameters, "elements": cost.elements}
    return row


def record_drift(report: DriftReport, limit: float | None) -> documents.DriftDocument:
    """The record of running statistics beside data; `limit` is that of ``--fail-on-drift``."""
    return {
        "samples": report.samples,
        "untrained": report.is_untrained,
        "left_out": report.left_out,
        "largest": report.largest,
        "limit": limit,
        "batchnorms": [_drift(drift) for drift in report.drifts],
    }


def _drift(drift: Drift) -> documents.DriftOf:
    channel, other = drift.farthest, drift.strangest
    return {
        "batchnorm": drift.name,
        "scope": drift.scope,
        "channels": len(drift.shift),
        "channel": channel,
        "shift": float(drift.shift[channel]),
        "chance": _number(float(drift.chance[channel])),
        "ratio_channel": other,
        "ratio": float(drift.ratio[other]),
        "still": drift.still,
    }


def _checks(result: FileResult) -> documents.Verification | None:
    """The comparison if there was one, else the results of proof and smoke run; None if there was no proof."""
    if result.verdict is not None:
        return _verification(result.verdict)
    proof, smoke = result.proof, result.smoke
    if proof is None:
        return None
    verification: documents.Verification = {
        "equivalent": proof.is_proved and not (smoke and smoke.difference),
        "inputs": int(smoke is not None and smoke.has_run),
        "samples": [{"label": "once", "shapes": smoke.shapes}] if smoke is not None and smoke.has_run else [],
        "outputs": [],
        "values": [],
        "first_divergence": None,
        "findings": [*_failures(proof), *(smoke.notes if smoke else ())],
    }
    if smoke is not None:
        verification["smoke"] = {
            "ran": smoke.has_run,
            "runtime": smoke.runtime,
            "error": smoke.error,
            "difference": smoke.difference or None,
            "seconds": round(smoke.seconds, 3),
        }
    return verification


def record_proof(result: ProofResult) -> documents.VerifyDocument:
    """The record of `verify` with a certificate: nothing was run."""
    return {
        "schema": SCHEMA,
        "command": "verify",
        "reference": str(result.reference),
        "candidate": str(result.candidate),
        "equivalent": result.proof.is_proved,
        "inputs": 0,
        "samples": [],
        "outputs": [],
        "values": [],
        "first_divergence": None,
        "findings": _failures(result.proof),
        "seconds": round(result.proof.seconds, 3),
        "proof": _proof(result.proof),
    }


def _failures(proof: Proof) -> list[str]:
    return [f"not proved: {failure}" for failure in proof.failures]


def _proof(proof: Proof) -> documents.Proof:
    met = proof.obligations
    return {
        "proved": proof.is_proved,
        "obligations": {
            "wiring": met["wiring"],
            "weights": met["weights"],
            "carriers": met["carriers"],
            "merges": met["merges"],
        },
        "folds": proof.folds,
        "weights": proof.weights,
        "worst_ulp": round(proof.worst_ulp, 6),
        "failure": str(proof.failures[0]) if proof.failures else None,
        "identical": proof.is_identical,
        "assumed": [value for _, value in proof.assumed],
        "seconds": round(proof.seconds, 3),
    }


def _merge(merge: Merge) -> documents.Merged:
    return {
        "into": merge.into,
        "scope": merge.scope,
        "branches": list(merge.branches),
        "through": list(merge.through),
        "rounding": merge.rounding,
    }


def record_fold(fold: Fold) -> documents.Folded:
    """A BatchNorm that folds, or another per-channel affine."""
    return {
        "batchnorm": fold.batchnorm,
        "scope": fold.scope,
        "status": "folded",
        "direction": fold.direction,
        "into": list(fold.into),
        "through": list(fold.through),
        "rounding": fold.rounding,
    }


def record_refusal(refusal: Refusal) -> documents.Kept:
    """A BatchNorm that stays."""
    return {
        "batchnorm": refusal.batchnorm,
        "scope": refusal.scope,
        "status": "kept",
        "reason": str(refusal.reason),
        "detail": refusal.detail,
        "at": refusal.at,
        "advice": refusal.advice,
    }


def _warning(warning: Caution | DeclarationCaution) -> documents.Warned:
    return {
        "batchnorm": None if isinstance(warning, DeclarationCaution) else warning.batchnorm,
        "value": warning.value if isinstance(warning, DeclarationCaution) else None,
        "scope": warning.scope,
        "kind": warning.kind,
        "channels": [] if isinstance(warning, DeclarationCaution) else list(warning.channels),
        "detail": warning.detail,
    }


def record_comparison(result: Comparison) -> documents.VerifyDocument:
    """The record of `verify`."""
    verification: documents.Verification = _verification(result.verdict)
    record: documents.VerifyDocument = {
        "schema": SCHEMA,
        "command": "verify",
        "reference": str(result.reference),
        "candidate": str(result.candidate),
        "equivalent": verification["equivalent"],
        "inputs": verification["inputs"],
        "samples": verification["samples"],
        "outputs": verification["outputs"],
        "values": verification["values"],
        "first_divergence": verification["first_divergence"],
        "findings": verification["findings"],
        "interface": verification["interface"],
        "seconds": round(result.seconds, 3),
    }
    if "gate" in verification:
        record["gate"] = verification["gate"]
    return record


def _verification(verdict: Verdict) -> documents.Verification:
    divergence = verdict.first_divergence
    verification: documents.Verification = {
        "equivalent": verdict.is_equivalent,
        "inputs": len(verdict.samples),
        "samples": [{"label": sample.label, "shapes": sample.shapes} for sample in verdict.samples],
        "outputs": [_output(output) for output in verdict.outputs],
        "values": [_value(value) for value in verdict.values],
        "first_divergence": None if divergence is None else _divergence(divergence),
        "findings": list(verdict.findings),
        "interface": list(verdict.interface),
    }
    if (gate := verdict.gate) is not None:
        verification["gate"] = {
            "min_snr": gate.min_snr,
            "min_argmax": gate.min_argmax,
            "atol": gate.atol,
            "rtol": gate.rtol,
        }
    return verification


def _value(verdict: ValueVerdict) -> documents.Value:
    judgement, counts = verdict.observation.judgement, verdict.observation.counts
    return {
        "name": verdict.name,
        "equivalent": verdict.is_equivalent,
        "reason": verdict.reason or None,
        "error": _number(verdict.error),
        "budget": _number(verdict.budget),
        "excess": _number(judgement.excess),
        "test": judgement.test,
        "input": verdict.sample,
        "snr_db": _number(verdict.observation.snr_db),
        "nan": {"created": counts.nan_created, "lost": counts.nan_lost},
        "inf": {"created": counts.inf_created, "lost": counts.inf_lost},
    }


def _output(verdict: ValueVerdict) -> documents.Output:
    agreement = verdict.observation.agreement
    return {
        **_value(verdict),
        "provider": verdict.provider,
        "level": "default" if verdict.is_deployed else "disabled",
        "ulp": verdict.observation.ulp,
        "argmax_agreement": agreement.share if agreement else None,
        "argmax_margin": _number(agreement.margin) if agreement else None,
    }


def _divergence(divergence: Divergence) -> documents.Divergence:
    return {
        "name": divergence.name,
        "node": divergence.node,
        "channel": divergence.channel,
        "position": list(divergence.place.position),
        "expected": _number(divergence.place.expected),
        "actual": _number(divergence.place.actual),
        "error": _number(divergence.verdict.error),
        "budget": _number(divergence.verdict.budget),
        "input": divergence.verdict.sample,
        "reason": divergence.verdict.reason,
    }


def _number(value: Any) -> Any:
    """A number for JSON, as text if it is infinite or NaN, which JSON cannot spell."""
    return None if isinstance(value, float) and not isfinite(value) else value
