"""Evaluates one node by torch itself, in float64."""

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
    """A floating-point tensor or type as float64; anything else as it is."""
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
    """Compute the output of a node from values, which are not changed.

    Raises:
        UnevaluatedError: the operator does not take the values.
    """

    def fetch(source: fx.Node) -> Any:
        value = values[source]
        return value.clone() if isinstance(value, torch.Tensor) else widen(value)

    wide = _Wide(node)
    try:
        with torch.no_grad():
            if module is not None:
                arguments = fx.node.map_arg((wide.args, wide.kwargs), fetch)
                return copy.deepcopy(module).double()(*arguments[0], **arguments[1])
            return run_node(wide, fetch)  # type: ignore[arg-type]
    except Exception as error:  # operators may raise anything on values that they do not take
        raise UnevaluatedError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


class _Wide:
    """A node with float64 in place of every floating-point type among its arguments."""

    def __init__(self, node: fx.Node) -> None:
        self.op, self.target = node.op, node.target
        if node.op == "call_method":
            self.target = CASTS.get(str(node.target), node.target)
        self.args = fx.node.map_aggregate(node.args, widen)
        self.kwargs = fx.node.map_aggregate(node.kwargs, widen)


def tensors(output: Any) -> list[torch.Tensor]:
    """All tensors of a node's output."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, tuple | list) and all(isinstance(entry, torch.Tensor) for entry in output):
        return list(output)
    raise UnevaluatedError("its output is no tensor")


def array(tensor: torch.Tensor) -> AnyArray:
    """The numbers of a tensor."""
    numbers: AnyArray = np.asarray(tensor.detach().cpu().numpy())
    return numbers
