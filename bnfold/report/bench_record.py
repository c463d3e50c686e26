"""The measurements of `bench`, as a document."""

from __future__ import annotations

from statistics import median
from typing import Any, cast

import numpy as np

from bnfold.bench import statistics
from bnfold.bench.comparison import BenchReport, Entry, Group
from bnfold.bench.models import Subject
from bnfold.bench.rounds import ROUNDS_PER_SITTING, Track
from bnfold.report import documents
from bnfold.report.documents import SCHEMA

PERCENTILES = (50, 90, 99)


def record_bench(report: BenchReport) -> documents.BenchDocument:
    """The record of `bench`: an entry for each model, provider and level. Times are in milliseconds, raw ones too."""
    options = report.options
    return {
        "schema": SCHEMA,
        "command": "bench",
        "baseline": report.subjects[0].name,
        "models": [_model(subject) for subject in report.subjects],
        "entries": [
            _entry(entry, number, group) for group in report.groups for number, entry in enumerate(group.entries)
        ],
        "noise": [_noise(group) for group in report.groups],
        "inputs": list(report.inputs),
        "method": {
            "threads": options.threads,
            "warmup": options.warmup,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "require": options.gate.speedup,
            "no_slower": options.gate.no_slower,
            "rounds_per_sitting": ROUNDS_PER_SITTING,
            "starts": options.starts,
            "seed": options.inputs.seed,
            "confidence": 1 - statistics.ALPHA,
            "looks": list(statistics.LOOKS),
            "precision": statistics.PRECISION,
            "resamples": statistics.RESAMPLES,
            "tf32": options.tf32,
            "compiled": options.compiled,
        },
        "fingerprint": cast(
            documents.Fingerprint, report.machine | {"load_before": report.load[0], "load_after": report.load[1]}
        ),
        "warnings": [],
        "seconds": round(report.seconds, 3),
    }


def _model(subject: Subject) -> documents.BenchModel:
    return {
        "model": subject.name,
        "engine": str(subject.engine),
        "sha256": subject.sha256,
        "file_bytes": subject.file_bytes,
        "nodes": subject.nodes,
        "batchnorms": subject.batchnorms,
    }


def _entry(entry: Entry, number: int, group: Group) -> documents.BenchEntry:
    runs = entry.track.runs * 1e3
    p50, p90, p99 = (_rounded(np.percentile(runs, percentile)) for percentile in PERCENTILES)
    cold = entry.cold
    return {
        "model": entry.subject.name,
        "index": number,
        "provider": entry.setting.provider,
        "level": entry.setting.level and str(entry.setting.level),
        "engine": entry.details["engine"],
        "verdict": entry.verdict and str(entry.verdict),
        "median_ms": p50,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "ratio": _rounded(entry.ratio.median),
        "ratio_low": _rounded(entry.ratio.low),
        "ratio_high": _rounded(entry.ratio.high),
        "noise_low": _rounded(1 / group.noise.reach),
        "noise_high": _rounded(group.noise.reach),
        "visible_change": None if entry.visible is None else _rounded(entry.visible),
        "gate": entry.answer and str(entry.answer),
        "runs_same_kernels": entry.runs_same_kernels,
        "session_ms": _rounded(median(cold.session_ms)) if cold else None,
        "session_ratio": _rounded(entry.session_ratio.median),
        "session_ratio_low": _rounded(entry.session_ratio.low),
        "session_ratio_high": _rounded(entry.session_ratio.high),
        "first_run_ms": _rounded(median(cold.first_run_ms)) if cold else None,
        "peak_bytes": cold.peak_bytes if cold else None,
        "memory_before_bytes": cold.memory_before_bytes if cold else None,
        "file_bytes": entry.subject.file_bytes,
        "nodes": entry.subject.nodes,
        "batchnorms": entry.subject.batchnorms,
        "details": entry.details,
        "placement": _count(cold.placement) if cold else None,
        "handed_back": _handed_back(entry),
        "samples_ms": _samples(entry.track),
        "session_samples_ms": [_rounded(start * 1e3) for start in entry.track.starts],
        "cold_session_samples_ms": [_rounded(time) for time in cold.session_ms] if cold else None,
        "cold_first_run_samples_ms": [_rounded(time) for time in cold.first_run_ms] if cold else None,
    }


def _count(placement: dict[str, list[str]] | None) -> dict[str, int] | None:
    return None if placement is None else {provider: len(nodes) for provider, nodes in placement.items()}


def _noise(group: Group) -> documents.Noise:
    """The baseline beside itself."""
    return {
        "provider": group.setting.provider,
        "level": group.setting.level and str(group.setting.level),
        "ratio": _rounded(group.noise.median),
        "ratio_low": _rounded(group.noise.low),
        "ratio_high": _rounded(group.noise.high),
        "samples_ms": _samples(group.noise_track),
        "session_samples_ms": [_rounded(start * 1e3) for start in group.noise_track.starts],
    }


def _handed_back(entry: Entry) -> list[str]:
    """The nodes that the CPU ran, though another provider was asked for."""
    placement = (entry.cold and entry.cold.placement) or {}
    return [] if entry.setting.provider == "cpu" else placement.get("CPUExecutionProvider", [])


def _samples(track: Track) -> list[list[list[float]]]:
    """Every inference, by sitting and round."""
    return [[[_rounded(run * 1e3) for run in turn] for turn in sitting] for sitting in track.turns]


def _rounded(value: Any) -> float:
    """Round to six places: milliseconds to the nanosecond."""
    return round(float(value), 6)
