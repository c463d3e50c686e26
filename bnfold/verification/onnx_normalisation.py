"""Finds what an ONNX model first does with its inputs: subtract a mean, divide by a deviation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine
from bnfold.verification.normalisation import Normalisation

AnyArray = npt.NDArray[Any]

Constant = Callable[[str], AnyArray | None]
"""The content of a small constant, by its name."""

SMALLEST = 1e-6
"""The smallest scale of a normalisation, and one over the largest. Beyond that it is something else."""


def find_normalisations(graph: onnx.GraphProto, constant: Constant) -> Mapping[str, Normalisation]:
    """The normalisation of each input that has one, by name."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in graph.input}
    found = {name: _follow(name, rank, readers, constant) for name, rank in ranks.items()}
    return {name: normalisation for name, normalisation in found.items() if normalisation is not None}


def _follow(
    name: str, rank: int, readers: Mapping[str, list[onnx.NodeProto]], constant: Constant
) -> Normalisation | None:
    """Follow an input through what computes ``scale * x + shift`` of it."""
    scale, shift = np.ones(()), np.zeros(())
    while len(nodes := readers.get(name, [])) == 1:
        node = nodes[0]
        if node.op_type == "BatchNormalization" and node.input[0] == name:
            mean, variance = constant(node.input[3]), constant(node.input[4])
            if mean is None or variance is None:
                break
            epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
            normed = Affine.from_batchnorm(1.0, 0.0, mean, np.maximum(variance, 0), epsilon)
            column = (-1, *(1 for _ in range(rank - 2)))
            factor, offset = normed.scale.reshape(column), normed.shift.reshape(column)
            scale, shift = scale * factor, shift * factor + offset
            break
        step = _step(node, name, constant)
        if step is None:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        name = node.output[0]
    if not np.isfinite(scale).all() or (np.abs(scale) < SMALLEST).any() or (np.abs(scale) > 1 / SMALLEST).any():
        return None
    if (scale == 1).all() and (shift == 0).all():
        return None
    return Normalisation(-shift / scale, 1 / np.abs(scale))


def _step(node: onnx.NodeProto, name: str, constant: Constant) -> tuple[AnyArray, AnyArray] | None:
    """The scale and shift of an operator with a constant; None if it is something else."""
    if node.op_type in ("Cast", "Identity") and len(node.output) == 1:
        return np.ones(()), np.zeros(())
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or list(node.input).count(name) != 1:
        return None
    is_first = node.input[0] == name
    other = constant(node.input[1] if is_first else node.input[0])
    if other is None or (node.op_type == "Div" and (not is_first or not other.all())):
        return None
    zero, one = np.zeros(()), np.ones(())
    if node.op_type == "Add":
        return one, other
    if node.op_type == "Sub":
        return (one, -other) if is_first else (-one, other)
    return (other if node.op_type == "Mul" else 1 / other), zero
