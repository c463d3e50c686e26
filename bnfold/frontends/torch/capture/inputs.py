"""What a module is called with."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from torch import nn
from torch.utils import _pytree

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.inputs import Inputs
from bnfold.frontends.torch.tensors import from_numpy


def read_inputs(given: Any) -> Inputs | None:
    """What a user passes, in each form of `Inputs`; arrays of numpy become tensors."""
    if given is None:
        return None
    inputs = Inputs.of(given)
    args, kwargs = _pytree.tree_map(_tensor, (inputs.args, dict(inputs.kwargs)))
    return Inputs(args, kwargs)


def _tensor(leaf: Any) -> Any:
    return from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def bind(module: nn.Module, inputs: Inputs) -> inspect.BoundArguments:
    """Example inputs, by the names of the forward's parameters."""
    try:
        return inspect.signature(module.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise UnsupportedModelError(f"example_inputs do not fit {type(module).__name__}.forward: {error}") from error
