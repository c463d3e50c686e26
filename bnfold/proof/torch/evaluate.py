"""One node, evaluated by torch itself in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from bnfold.proof.evaluate import UnevaluatedError
from bnfold.proof.torch.sides import TYPES, run_node

AnyArray = npt.NDArray[Any]

CASTS = {"float": "double", "half": "double", "bfloat16": "double"}


def widen(value: Any) -> Any:
    """A tensor of floating-point numbers, or such a type, as float64."""
    if isinstance(value, torch.Tensor):
        plain = value.detach()
        return plain.double() if plain.dtype in TYPES else plain
    if isinstance(value, torch.dtype):
        return torch.float64 if value in TYPES else value
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if type(value) in (tuple, list):
        return type(value)(map(widen, value))
    return value


def evaluate(node: fx.Node, module: nn.Module | None, values: Mapping[fx.Node, Any]) -> Any:
    """What a node makes of values, which it does not change.

    Raises:
        UnevaluatedError: the operator does not take them.
    """

    def fetch(source: fx.Node) -> Any:
        found = values[source]
        return found.clone() if isinstance(found, torch.Tensor) else widen(found)

    wide = _Wide(node)
    try:
        with torch.no_grad():
            if module is not None:
                arguments = fx.node.map_arg((wide.args, wide.kwargs), fetch)
                return copy.deepcopy(module).double()(*arguments[0], **arguments[1])
            return run_node(wide, fetch)  # type: ignore[arg-type]
    except Exception as error:  # operators raise anything on what they do not take
        raise UnevaluatedError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


class _Wide:
    """A node whose arguments ask for float64, whatever types they asked for."""

    def __init__(self, node: fx.Node) -> None:
        self.op, self.target = node.op, node.target
        if node.op == "call_method":
            self.target = CASTS.get(str(node.target), node.target)
        self.args = fx.node.map_aggregate(node.args, widen)
        self.kwargs = fx.node.map_aggregate(node.kwargs, widen)


def tensors(made: Any) -> list[torch.Tensor]:
    """All that a node made."""
    if isinstance(made, torch.Tensor):
        return [made]
    if isinstance(made, tuple | list) and all(isinstance(each, torch.Tensor) for each in made):
        return list(made)
    raise UnevaluatedError("it makes what is no tensor")


def array(tensor: torch.Tensor) -> AnyArray:
    """The numbers of a tensor."""
    found: AnyArray = np.asarray(tensor.detach().cpu().numpy())
    return found
