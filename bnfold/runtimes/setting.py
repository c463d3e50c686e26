"""What runs a model, and how it is set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How far ONNX Runtime optimises a graph when a session starts."""

    DISABLED = "disabled"
    BASIC = "basic"
    EXTENDED = "extended"
    ALL = "all"


class Engine(StrEnum):
    """What runs a model."""

    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"


@dataclass(frozen=True)
class Setting:
    """Under what a group of sessions runs: all that is equal among the models that are compared.

    Attributes:
        provider: short name of the execution provider; for PyTorch, of the device.
        level: graph optimisation of ONNX Runtime; None where no model uses it.
        threads, compiled, tf32: see `BenchOptions`.
    """

    provider: str
    level: Level | None
    threads: int
    compiled: bool = False
    tf32: bool = False
