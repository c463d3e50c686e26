"""What a module is called with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnfold.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of a call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, given: Any) -> Inputs | None:
        """From what a user passes: a tuple of arguments, a dict of keyword arguments, or the only argument."""
        if given is None:
            return None
        if isinstance(given, dict):
            return cls((), given)
        return cls(tuple(given) if isinstance(given, list | tuple) else (given,), {})


def bind(module: nn.Module, inputs: Inputs) -> inspect.BoundArguments:
    """Example inputs, by the names of the forward's parameters."""
    try:
        return inspect.signature(module.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise UnsupportedModelError(f"example_inputs do not fit {type(module).__name__}.forward: {error}") from error
