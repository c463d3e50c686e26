"""The options of a benchmark."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from bnfold.bench.gate import Gate
from bnfold.runtimes.inputs import InputOptions
from bnfold.runtimes.setting import Level


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class BenchOptions:
    """The options of a benchmark: what to measure, and how.

    Attributes:
        levels: graph optimisation levels; each is measured by itself.
        providers: execution providers by their short names; each is measured by itself.
        threads: threads within an operator, of each session.
        warmup: untimed inferences of each new session.
        rounds: the most rounds; there are fewer if the intervals are narrow enough before.
        starts: processes in which each model is started, for its first run and its memory.
        compiled: run PyTorch models through `torch.compile`.
        tf32: let GPUs round float32 to TensorFloat-32 in convolutions and matrix products.
        inputs: the inputs to run the models on.
        gate: the demand on the models.
        seconds: how long a provider and level may take, in place of `rounds`; None leaves it to these.
        custom_ops: libraries of custom operators for ONNX Runtime.
        timeout: how many seconds a cold start of a model may take.
    """

    levels: tuple[Level, ...] = tuple(Level)
    providers: tuple[str, ...] = ("cpu",)
    threads: int = field(default_factory=available_cores)
    warmup: int = 3
    rounds: int = 240
    starts: int = 3
    compiled: bool = False
    tf32: bool = False
    inputs: InputOptions = field(default_factory=InputOptions)
    gate: Gate = field(default_factory=Gate)
    seconds: float | None = None
    custom_ops: tuple[str, ...] = ()
    timeout: float = 600.0
