"""Folds eval-mode BatchNorm into the weights of neighbouring linear operators, exactly, and proves it.

Names are imported on first use: importing bnfold imports neither onnx nor onnxruntime nor torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold import fleet as fleet
    from bnfold import testing as testing
    from bnfold.api import diff as diff
    from bnfold.api import fuse as fuse
    from bnfold.api import plan as plan
    from bnfold.bench.comparison import benchmark as benchmark
    from bnfold.errors import BnfoldError as BnfoldError
    from bnfold.errors import CustomOpsError as CustomOpsError
    from bnfold.errors import IncomparableError as IncomparableError
    from bnfold.errors import InvalidModelError as InvalidModelError
    from bnfold.errors import MissingExtraError as MissingExtraError
    from bnfold.errors import NoEvidenceError as NoEvidenceError
    from bnfold.errors import NoKernelError as NoKernelError
    from bnfold.errors import NotEquivalentError as NotEquivalentError
    from bnfold.errors import OutputError as OutputError
    from bnfold.errors import OutputExistsError as OutputExistsError
    from bnfold.errors import UnsupportedModelError as UnsupportedModelError
    from bnfold.frontends.limits import Limits as Limits
    from bnfold.graph.outcome import Fold as Fold
    from bnfold.graph.outcome import Merge as Merge
    from bnfold.graph.outcome import Outcome as Outcome
    from bnfold.graph.outcome import Reason as Reason
    from bnfold.graph.outcome import Refusal as Refusal
    from bnfold.verification.equivalence import verify as verify

_MODULES = {
    "BnfoldError": "errors",
    "CustomOpsError": "errors",
    "Fold": "graph.outcome",
    "IncomparableError": "errors",
    "InvalidModelError": "errors",
    "Limits": "frontends.limits",
    "Merge": "graph.outcome",
    "MissingExtraError": "errors",
    "NoEvidenceError": "errors",
    "NoKernelError": "errors",
    "NotEquivalentError": "errors",
    "Outcome": "graph.outcome",
    "OutputError": "errors",
    "OutputExistsError": "errors",
    "Reason": "graph.outcome",
    "Refusal": "graph.outcome",
    "UnsupportedModelError": "errors",
    "benchmark": "bench.comparison",
    "diff": "api",
    "fuse": "api",
    "plan": "api",
    "verify": "verification.equivalence",
}
"""The module of each public name."""

ROOMS = ("fleet", "testing")
"""The packages and modules that are public as such."""

__all__ = list(_MODULES)

__version__: str
"""That of the installed package, as `bnfold --version` says it."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("bnfold")
    if name in ROOMS:
        return import_module(f"bnfold.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    return getattr(import_module(f"bnfold.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
