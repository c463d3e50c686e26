"""The engine that runs a model, and its settings."""

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
    """The engine that runs a model."""

    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"


@dataclass(frozen=True)
class Setting:
    """The setting of a group of sessions, which is equal for all models that are compared.

    Attributes:
        provider: the short name of the execution provider; for PyTorch, of the device.
        level: graph optimisation of ONNX Runtime; None where no model uses it.
        threads, compiled, tf32, custom_ops: see `BenchOptions`.
    """

    provider: str
    level: Level | None
    threads: int
    compiled: bool = False
    tf32: bool = False
    custom_ops: tuple[str, ...] = ()
