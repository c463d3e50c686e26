"""Folds eval-mode BatchNorm into the weights of neighbouring linear operators, exactly, and proves it.

Names are imported on first use: importing bnfold imports neither onnx nor onnxruntime nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold import testing as testing
    from bnfold.api import fuse, plan
    from bnfold.bench.comparison import benchmark
    from bnfold.errors import (
        BnfoldError,
        IncomparableError,
        InvalidModelError,
        MissingExtraError,
        NotEquivalentError,
        OutputError,
        OutputExistsError,
        UnsupportedModelError,
    )
    from bnfold.frontends.limits import Limits
    from bnfold.graph.outcome import Fold, Merge, Outcome, Reason, Refusal
    from bnfold.verification.equivalence import verify

__all__ = [
    "BnfoldError",
    "Fold",
    "IncomparableError",
    "InvalidModelError",
    "Limits",
    "Merge",
    "MissingExtraError",
    "NotEquivalentError",
    "Outcome",
    "OutputError",
    "OutputExistsError",
    "Reason",
    "Refusal",
    "UnsupportedModelError",
    "benchmark",
    "fuse",
    "plan",
    "verify",
]

_MODULES = {
    "benchmark": "bench.comparison",
    "fuse": "api",
    "plan": "api",
    "verify": "verification.equivalence",
    "Fold": "graph.outcome",
    "Limits": "frontends.limits",
    "Merge": "graph.outcome",
    "Outcome": "graph.outcome",
    "Reason": "graph.outcome",
    "Refusal": "graph.outcome",
}


def __getattr__(name: str) -> Any:
    if name == "testing":
        return import_module("bnfold.testing")
    if name not in __all__:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    return getattr(import_module(f"bnfold.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
