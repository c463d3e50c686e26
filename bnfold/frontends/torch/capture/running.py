"""Whether two modules compute the same, found out by running both on random data: fast, and no proof."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from bnfold.frontends.inputs import Inputs
from bnfold.frontends.torch.capture.copies import PLAIN
from bnfold.frontends.torch.capture.silence import quiet

TOLERANCE = 128
"""The largest difference of outputs, in units of their type at the largest value: a fault in a faint branch shows."""

MOST = 1 << 22
"""Elements of the largest input that is run."""


def is_runnable(inputs: Inputs) -> bool:
    """Whether an input takes little time."""
    leaves = [
        leaf for leaf in _pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, torch.Tensor)
    ]
    return all(leaf.numel() <= MOST and leaf.device.type != "meta" for leaf in leaves)


def run_alike(original: nn.Module, result: nn.Module, inputs: Inputs) -> bool:
    """Whether a module is seen to give back what another does on random data.

    It is not where one does not run, maybe for what the data are, or where outputs are in structures unknown to torch.

    Args:
        original: which may change itself by that.
        result: which may change itself as well.
        inputs: whose sizes are tried. Their floating-point numbers are drawn anew.
    """
    made: list[Any] = []
    with quiet(), torch.no_grad():
        args, kwargs = _pytree.tree_map(_drawn, (inputs.args, dict(inputs.kwargs)))
        for module in (original, result):
            try:
                made.append(module(*_pytree.tree_map(_copied, args), **_pytree.tree_map(_copied, kwargs)))
            except Exception:  # code of a model may raise anything
                return False
    (before, shape), (after, other) = map(_pytree.tree_flatten, made)
    try:
        return shape == other and all(map(_is_alike, before, after))
    except (RuntimeError, NotImplementedError):  # of tensors of another kind, such as sparse ones
        return False


def _drawn(value: Any) -> Any:
    is_data = isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout is torch.strided
    return torch.randn_like(value, requires_grad=False) if is_data else value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _is_alike(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return isinstance(one, PLAIN) and one == other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    if not one.numel():
        return True
    wide, its = one.double(), other.double()
    difference = float((wide - its).abs().max())
    return math.isfinite(difference) and difference <= TOLERANCE * torch.finfo(one.dtype).eps * float(wide.abs().max())
