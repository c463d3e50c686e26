"""Records of every command, written by hand: what the page must show, and names that would break a careless one."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.report.documents import Record

HOSTILE = "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>$x_1$ \u202egnp.\u0007\ud800"


def fold(name: str = "bn1", into: int = 1, through: int = 0, direction: str = "upstream") -> Record:
    """The outcome of a BatchNorm that folds."""
    return {
        "batchnorm": name,
        "scope": "main",
        "status": "folded",
        "direction": direction,
        "into": [f"{name}/conv{index}" for index in range(into)],
        "through": [f"{name}/carrier{index}" for index in range(through)],
        "rounding": 5.9e-8,
    }


def refusal(name: str, at: str, reason: str, detail: str, advice: str | None = None) -> Record:
    """The outcome of a BatchNorm that stays."""
    return {
        "batchnorm": name,
        "scope": "loop.body",
        "status": "kept",
        "reason": reason,
        "detail": detail,
        "at": at,
        "advice": advice,
    }


ABOUT_FILES = ("schema", "command", "reference", "candidate", "seconds")
"""What a verification does not say inside the record of `fuse`."""


def fuse() -> Record:
    """Every kind of outcome."""
    outcomes = [
        fold(),
        fold("stage2/bn", 6, 2),
        fold("head/norm", 1, 1, "downstream"),
        refusal("bn9", "bn9", "training-mode", "training_mode=1", "export the model in eval mode"),
        refusal("bn10", "conv10", "second-use", "its output is read elsewhere", "let it alone read that value"),
        refusal("bn11", "sigmoid_4", "nonlinear", "Sigmoid does not commute with a scale"),
    ]
    return {
        "schema": "bnfold/1",
        "command": "fuse",
        "model": "models/mixed.onnx",
        "output": "mixed.fused.onnx",
        "batchnorms": {"found": 6, "folded": 3, "kept": 3},
        "affines": {"folded": 1},
        "outcomes": outcomes,
        "affine_outcomes": [fold("scale")],
        "merges": [
            {
                "into": "block/conv",
                "scope": "loop.body",
                "branches": ["block/conv_1x1", "block/identity_norm"],
                "through": ["block/add"],
                "rounding": 4.1e-8,
            }
        ],
        "warnings": [
            {
                "batchnorm": "bn1",
                "value": None,
                "scope": "main",
                "kind": "tiny-variance",
                "channels": [3, 9],
                "detail": "below 1e-12",
            }
        ],
        "nodes": {"before": 120, "after": 98},
        "bytes": {"before": 5_123_456, "after": 5_023_456},
        "seconds": 1.234,
        "verification": {key: value for key, value in verify(40, 0).items() if key not in ABOUT_FILES},
    }


def inspect() -> Record:
    """Nothing written, so nothing to verify."""
    record = fuse() | {"command": "inspect", "output": None, "verification": None}
    return record | {"nodes": {"before": 120, "after": None}, "bytes": {"before": 5_123_456, "after": None}}


def verify(values: int = 1500, failing: int = 12) -> Record:
    """A comparison in which some inner values in a row differ, one of them without bounds."""
    generator = np.random.default_rng(0)
    errors = 10 ** generator.normal(-6.8, 0.3, values)
    errors[::40] = 0.0
    first = values // 2
    errors[first : first + failing] = 0.01
    errors[first + 1 : first + min(failing, 2)] = np.inf
    named = [judged(f"/layer{index}/out", float(error)) for index, error in enumerate(errors)]
    outputs = [
        {
            **judged("logits", 0.02 if failing else 3e-7),
            "provider": provider,
            "level": level,
            "ulp": 391708,
            "argmax_agreement": 0.97,
            "argmax_margin": 0.1,
        }
        for provider, level in (("cpu", "disabled"), ("cpu", "default"), ("cuda", "default"))
    ]
    divergence = {
        "name": named[first]["name"],
        "node": "Conv_17",
        "channel": 12,
        "position": [0, 12, 3, 4],
        "expected": -690.8361,
        "actual": None,
        **{key: named[first][key] for key in ("error", "budget", "input", "reason")},
    }
    return {
        "schema": "bnfold/1",
        "command": "verify",
        "reference": "model.onnx",
        "candidate": "model.fused.onnx",
        "equivalent": not failing,
        "inputs": 3,
        "samples": [
            {"label": label, "shapes": {"image": [size, 3, 32, 32]}}
            for label, size in (("normal", 2), ("normal", 1), ("zeros", 2))
        ],
        "outputs": outputs,
        "values": named,
        "first_divergence": divergence if failing else None,
        "findings": ["The error is constant within each channel."] if failing else [],
        "seconds": 1.5,
    }


def judged(name: str, error: float, budget: float = 6e-5) -> Record:
    """A value, and what was found of it."""
    passes = error <= budget
    excess = error / budget if np.isfinite(error) else None
    return {
        "name": name,
        "equivalent": passes,
        "reason": None if passes else f"{error / budget:.3g} times what rounding explains (rms of channel 12)",
        "error": error if np.isfinite(error) else None,
        "budget": budget,
        "excess": excess,
        "test": "rms of channel 12",
        "input": "normal",
        "snr_db": 34.2,
        "nan": {"created": 0, "lost": 0},
        "inf": {"created": 0, "lost": 0},
    }


def bench() -> Record:
    """One candidate that is faster, as fast, and slower, depending on where it runs."""
    generator = np.random.default_rng(0)
    entries: list[Record] = []
    for provider, level, ratio, verdict in (
        ("cpu", "disabled", 0.71, "faster"),
        ("cpu", "all", 1.0, "no detectable change"),
        ("cuda", "all", 1.06, "slower"),
    ):
        for index, (model, factor) in enumerate((("models/net.onnx", 1.0), ("models/net.fused.onnx", ratio))):
            samples = generator.lognormal(np.log(4.2 * factor), 0.06, 80)
            quantiles = {f"p{share}_ms": float(np.quantile(samples, share / 100)) for share in (50, 90, 99)}
            entry: Record = {
                "model": model,
                "provider": provider,
                "level": level,
                "median_ms": quantiles["p50_ms"],
                **quantiles,
                "first_run_ms": 12.2,
                "session_ms": 88.1,
                "session_ratio": 0.7 if index else 1.0,
                "session_ratio_low": 0.61 if index else 1.0,
                "session_ratio_high": 0.82 if index else 1.0,
                "peak_bytes": 312_000_000,
                "memory_before_bytes": 55_200_000,
                "file_bytes": 102_000_000,
                "nodes": 125 if index else 415,
                "batchnorms": 0 if index else 53,
                "noise_low": 0.985,
                "noise_high": 1.015,
                "handed_back": ["Shape_3"] if provider == "cuda" else [],
                "samples_ms": samples.round(4).reshape(4, 10, 2).tolist(),  # by sitting, round and run
            }
            if index:
                interval = {"ratio_low": ratio - 0.008, "ratio_high": ratio + 0.009}
                entry |= {"ratio": ratio, **interval, "verdict": verdict}
            entries.append(entry)
    return {
        "schema": "bnfold/1",
        "command": "bench",
        "entries": entries,
        "noise": [
            {"provider": "cpu", "level": "all", "ratio": 1.0004, "ratio_low": 0.997, "ratio_high": 1.003},
        ],
        "inputs": [{"image": "float32[2, 1, 8, 8]"}],
        "models": [
            {
                "model": f"models/net{name}.onnx",
                "engine": "onnxruntime",
                "sha256": digits * 32,
                "file_bytes": 102_000_000,
                "nodes": nodes,
                "batchnorms": batchnorms,
            }
            for name, digits, nodes, batchnorms in (("", "ab", 415, 53), (".fused", "cd", 125, 0))
        ],
        "method": {"threads": 4, "rounds": 40, "looks": [0.25, 0.5, 1.0], "tf32": False},
        "fingerprint": {
            "cpu": "A processor",
            "cores": 4,
            "memory_bytes": 25_276_067_840,
            "gpus": [],
            "versions": {"numpy": "2.4.6", "onnxruntime": "1.31.1"},
            "load_average": [0.5, 0.4, 0.3],
        },
    }


def diff() -> Record:
    """Every way in which a BatchNorm may be done without."""
    statuses = ("kept", "folded", "merged", "decomposed", "depthwise", "constant", "identity", "unread", "unknown")
    fates = [
        {
            "batchnorm": f"bn{index}",
            "scope": "main",
            "status": status,
            "into": [] if status in ("identity", "unread", "unknown") else [f"conv{index}"],
            "operators": [] if status in ("identity", "unread", "unknown") else ["Conv"],
            "direction": "upstream" if status == "folded" else None,
            "others": [],
            "detail": "nothing has its numbers" if status == "unknown" else "",
            "bnfold": fold(f"bn{index}") if status == "kept" else None,
            "before": [
                {"name": f"conv{index}", "operator": "Conv", "role": "beside"},
                {"name": f"bn{index}", "operator": "BatchNormalization", "role": "batchnorm"},
            ],
            "after": [{"name": f"conv{index}", "operator": "Conv", "role": "into"}],
        }
        for index, status in enumerate(statuses)
    ]
    return {
        "schema": "bnfold/1",
        "command": "diff",
        "reference": "models/a.onnx",
        "candidate": "b.onnx",
        "identical": False,
        "related": True,
        "statuses": dict.fromkeys(statuses, 1),
        "fates": fates,
        "nodes": {
            "before": 120,
            "after": 112,
            "gone": [{"name": "bn1", "scope": "main", "operator": "BatchNormalization"}],
            "new": [{"name": "mul", "scope": "main", "operator": "Mul"}],
            "changed": [{"name": "conv1", "scope": "main", "other": "conv1", "changes": ["pads: (0,) became (1,)"]}],
        },
        "weights": {
            "changed": [{"name": "w", "largest": 0.02, "detail": "FLOAT became FLOAT16"}],
            "gone": ["old"],
            "new": ["fresh"],
        },
        "interface": ["input 'x' was float32 and is float16"],
        "seconds": 1.5,
    }


def fleet(models: int = 300) -> Record:
    """Models in three folders that end in every way."""
    rows: list[Record] = []
    for index in range(models):
        code = {7: 3, 11: 1, 13: 2}.get(index % 20, 0)
        source = f"zoo/{'abc'[index % 3]}/model_{index:05}.onnx"
        message = {0: None, 1: "not equivalent: y differs", 2: f"{source}: exists already", 3: f"{source}: no model"}[
            code
        ]
        rows.append(
            {
                "source": source,
                "output": None if code else f"out/{'abc'[index % 3]}/model_{index:05}.onnx",
                "exit_code": code,
                "message": message,
                "found": None if code == 3 else index % 60,
                "folded": None if code == 3 else index % 60 - index % 3 % (index % 60 + 1),
                "kept": None if code == 3 else index % 3 % (index % 60 + 1),
                "bytes": 1_000 * (index * 7919 % 10_007),
                "seconds": 0.1 + index * 31 % 97 / 50,
                "peak_bytes": 120_000_000 + index,
                "worker": "tcp://10.0.0.1:40001",
                "report": f"fleet.models/model_{index:05}.html",
            }
        )
    codes = [row["exit_code"] for row in rows]
    kept = sum(row["kept"] or 0 for row in rows)
    return {
        "schema": "bnfold/1",
        "command": "fleet",
        "task": "fuse",
        "out": "out",
        "ledger": "out/bnfold-fleet.jsonl",
        "exit_code": 1,
        "counts": {
            "found": models,
            "well": codes.count(0),
            "no": codes.count(1),
            "refused": codes.count(2),
            "failed": codes.count(3),
            "unchanged": 0,
            "left_out": 0,
        },
        "batchnorms": {
            "found": sum(row["found"] or 0 for row in rows),
            "folded": sum(row["folded"] or 0 for row in rows),
            "kept": kept,
        },
        "reasons": {"nonlinear": kept - kept // 3, "graph-output": kept // 3},
        "bytes": {"before": 900_000_000, "after": 880_000_000},
        "seconds": 61.0,
        "model_seconds": 118.0,
        "peak_bytes": 240_000_000,
        "workers": 2,
        "slowest": [{"source": row["source"], "seconds": row["seconds"]} for row in rows[:10]],
        "largest": [{"source": row["source"], "bytes": row["bytes"]} for row in rows[:10]],
        "failures": [{"source": row["source"], "message": row["message"]} for row in rows if row["exit_code"]][:20],
        "rows": sorted(rows, key=lambda row: not row["exit_code"]),
        "omitted": 0,
    }


def rename(value: Any) -> Any:
    """Every string of a record replaced by a hostile one, apart from those that choose what is shown."""
    if isinstance(value, dict):
        fixed = ("status", "direction", "scope")
        return {key: inner if key in fixed else rename(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rename(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


RECORDS = {"fuse": fuse, "inspect": inspect, "verify": verify, "bench": bench, "diff": diff}
