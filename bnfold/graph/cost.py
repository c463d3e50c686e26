"""What a BatchNorm costs where it stays: what a fold saves, and a refusal leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from bnfold.graph.ops import ChannelAffine, Opaque
from bnfold.graph.protocol import Graph


@dataclass(frozen=True)
class Cost:
    """The cost of one BatchNorm in eval mode.

    Attributes:
        parameters: how many numbers it stores: gamma, beta, mean and variance; None where they are not known.
        elements: how many elements one sample of its output has, each with one multiplication and one addition in a
            pass over memory of their own, unless the runtime fuses it; None where a declared size is open.
    """

    parameters: int | None
    elements: int | None


def count_elements(shape: Iterable[object] | None) -> int | None:
    """How many elements one sample has, of a shape with open sizes or an unknown one."""
    sizes = [None] if shape is None else list(shape)[1:]
    known = [size for size in sizes if isinstance(size, int)]
    return prod(known) if len(known) == len(sizes) else None


def measure_costs(graph: Graph[Any, Any]) -> Mapping[tuple[str, str], Cost]:
    """The cost of each BatchNorm, by scope and name."""
    costs: dict[tuple[str, str], Cost] = {}
    for node in graph.nodes():
        op = graph.op(node)
        if not isinstance(op, ChannelAffine | Opaque) or not op.is_batchnorm:
            continue
        parameters = 4 * op.affine.scale.size if isinstance(op, ChannelAffine) else None
        elements = graph.elements(value) if (value := next(iter(graph.outputs(node)), None)) is not None else None
        costs[graph.scope(node), graph.name(node)] = Cost(parameters, elements)
    return costs
