"""Many models: folders, globs and object stores, on the workers of this machine or of a Dask cluster.

Names are imported on first use, so that a process that only forks for models imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.fleet.engine import FleetResult as FleetResult
    from bnfold.fleet.engine import run as run
    from bnfold.fleet.ledger import read_lines as read_lines

_MODULES = {"FleetResult": "engine", "read_lines": "ledger", "run": "engine"}
"""The module of each public name."""

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bnfold.fleet' has no attribute {name!r}")
    return getattr(import_module(f"bnfold.fleet.{_MODULES[name]}"), name)
