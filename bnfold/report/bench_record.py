"""The record of `bench`: the JSON document that pipelines read. Keys are only ever added."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from bnfold.bench import statistics
from bnfold.bench.comparison import BenchReport, Entry, Group
from bnfold.bench.models import Subject
from bnfold.bench.rounds import ROUNDS_PER_SITTING, Track
from bnfold.bench.statistics import Ratio
from bnfold.report.record import SCHEMA, Record

PERCENTILES = (50, 90, 99)


def record_bench(report: BenchReport) -> Record:
    """The record: one entry for each model, provider and level; times in milliseconds, raw ones included."""
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
        "fingerprint": report.machine | {"load_before": report.load[0], "load_after": report.load[1]},
        "warnings": [],
        "seconds": round(report.seconds, 3),
    }


def _model(subject: Subject) -> Record:
    return {
        "model": subject.name,
        "engine": str(subject.engine),
        "sha256": subject.sha256,
        "file_bytes": subject.file_bytes,
        "nodes": subject.nodes,
        "batchnorms": subject.batchnorms,
    }


def _entry(entry: Entry, number: int, group: Group) -> Record:
    runs = entry.track.runs * 1e3
    p50, p90, p99 = (_rounded(np.percentile(runs, each)) for each in PERCENTILES)
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
        **_ratio("ratio", entry.ratio),
        "noise_low": round(1 / group.noise.reach, 6),
        "noise_high": round(group.noise.reach, 6),
        "session_ms": cold and _rounded(median(cold.session_ms)),
        **_ratio("session_ratio", entry.session_ratio),
        "first_run_ms": cold and _rounded(median(cold.first_run_ms)),
        "peak_bytes": cold and cold.peak_bytes,
        "memory_before_bytes": cold and cold.memory_before_bytes,
        "file_bytes": entry.subject.file_bytes,
        "nodes": entry.subject.nodes,
        "batchnorms": entry.subject.batchnorms,
        "details": entry.details,
        "placement": cold and cold.placement and {name: len(nodes) for name, nodes in cold.placement.items()},
        "handed_back": _handed_back(entry),
        "samples_ms": _samples(entry.track),
        "session_samples_ms": [_rounded(start * 1e3) for start in entry.track.starts],
        "cold_session_samples_ms": cold and [_rounded(each) for each in cold.session_ms],
        "cold_first_run_samples_ms": cold and [_rounded(each) for each in cold.first_run_ms],
    }


def _noise(group: Group) -> Record:
    """The baseline beside itself."""
    return {
        "provider": group.setting.provider,
        "level": group.setting.level and str(group.setting.level),
        **_ratio("ratio", group.noise),
        "samples_ms": _samples(group.noise_track),
        "session_samples_ms": [_rounded(start * 1e3) for start in group.noise_track.starts],
    }


def _handed_back(entry: Entry) -> list[str]:
    """Nodes that the CPU ran though another provider was asked for."""
    placement = (entry.cold and entry.cold.placement) or {}
    return [] if entry.setting.provider == "cpu" else placement.get("CPUExecutionProvider", [])


def _ratio(name: str, ratio: Ratio) -> dict[str, float]:
    return {
        name: round(ratio.median, 6),
        f"{name}_low": round(ratio.low, 6),
        f"{name}_high": round(ratio.high, 6),
    }


def _samples(track: Track) -> list[list[list[float]]]:
    """Every inference, by sitting and round."""
    return [[[_rounded(run * 1e3) for run in turn] for turn in sitting] for sitting in track.turns]


def _rounded(milliseconds: Any) -> float:
    """To the nanosecond."""
    return round(float(milliseconds), 6)
