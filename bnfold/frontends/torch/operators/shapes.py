"""Shapes, ranks and element types of every value: what an exporter or a run on fake tensors noted, else what follows.

Without example inputs, only that is known which holds whatever is fed: a BatchNorm2d insists on four axes, a
convolution makes as many channels as its weight has. A size that is not known is a symbol of its own, so that equal
sizes are seen to be equal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree

from bnfold.frontends.torch.operators.calls import Call, Keeps, Slot
from bnfold.graph.ops import Dim, Shape


def recorded(graph: fx.Graph) -> dict[fx.Node, Any]:
    """The example value of each node that has one."""
    return {node: node.meta["val"] for node in graph.nodes if node.meta.get("val") is not None}


@dataclass(frozen=True)
class Sketch:
    """Rank and type of a value, without its sizes."""

    rank: int
    dtype: torch.dtype


def sketched(values: Mapping[fx.Node, Any]) -> dict[fx.Node, Sketch]:
    """Ranks and types alone of example values."""
    tensors = {node: value for node, value in values.items() if isinstance(value, torch.Tensor)}
    return {node: Sketch(tensor.dim(), tensor.dtype) for node, tensor in tensors.items()}


def noted(values: Mapping[fx.Node, Any]) -> tuple[dict[fx.Node, Shape], dict[fx.Node, torch.dtype]]:
    """Shapes and types of example values that are tensors."""
    tensors = {node: value for node, value in values.items() if isinstance(value, torch.Tensor)}
    shapes = {node: tuple(_dim(dim) for dim in tensor.shape) for node, tensor in tensors.items()}
    return shapes, {node: tensor.dtype for node, tensor in tensors.items()}


def _dim(dim: Any) -> Dim:
    """A number, a symbol, or nothing for a product of sizes, which follows from the other sizes."""
    if isinstance(dim, int):
        return dim
    return _written(dim.node.expr)


@lru_cache(maxsize=4096)
def _written(expression: Any) -> Dim:
    if expression.is_Integer:
        return int(expression)
    factors = [factor for factor in sympy.Mul.make_args(expression) if not factor.is_number]
    is_multiple = isinstance(expression, sympy.Mul) and factors[0].is_Symbol
    return None if is_multiple or len(factors) > 1 else str(expression)


class Inference:
    """Ranks, shapes and types of a graph whose inputs are not known.

    Args:
        graph: in topological order.
        calls: what its nodes do.
        stored: the tensor that a node or a place in a module holds.
        values: sketches of some values; anything else there is left out.
    """

    def __init__(
        self,
        graph: fx.Graph,
        calls: Mapping[fx.Node, Call],
        stored: Callable[[Any], torch.Tensor | None],
        values: Mapping[fx.Node, Any],
    ) -> None:
        self._graph = graph
        self._calls = calls
        self._stored = stored
        self.ranks: dict[fx.Node, int] = {}
        self.shapes: dict[fx.Node, Shape] = {}
        self.dtypes: dict[fx.Node, torch.dtype] = {}
        for node, value in values.items():
            if isinstance(value, Sketch):
                self.ranks[node], self.dtypes[node] = value.rank, value.dtype
        for node in graph.nodes:
            tensor = stored(node) if node.op in ("get_attr", "placeholder") else None
            if tensor is not None:
                self.shapes[node], self.dtypes[node] = tuple(tensor.shape), tensor.dtype
        self._rank_all()
        for node in graph.nodes:
            self._visit(node)

    def _rank_all(self) -> None:
        """Ranks follow from outputs to inputs too."""
        count = -1
        while count != len(self.ranks):
            count = len(self.ranks)
            for node, call in [*self._calls.items(), *reversed(list(self._calls.items()))]:
                source = call.arguments.get("input")
                self._note_assertion(node)
                if call.get("rank") is not None:
                    self.ranks[node] = call.get("rank")
                if call.op == "permute" and call.get("dims"):
                    self.ranks[node] = len(call.get("dims"))
                if Keeps.RANK in call.operator.keeps or call.op == "permute":
                    self._equate(node, source)
                elif call.operator.is_arithmetic:
                    self._equate_sum(node, call)
                elif call.op == "cat" and isinstance(call.get("tensors"), list | tuple):
                    for tensor in call.get("tensors"):
                        self._equate(node, tensor)

    def _note_assertion(self, node: fx.Node) -> None:
        """``torch._assert(x.ndim == 4, ...)``, which subclasses of BatchNorm begin with."""
        claim = node.args[0] if node.target is torch._assert and node.args else None
        if not isinstance(claim, fx.Node) or claim.target is not operator.eq or len(claim.args) != 2:
            return
        asked, rank = claim.args
        if isinstance(asked, fx.Node) and isinstance(rank, int) and _asks_for_rank(asked):
            subject = asked.args[0]
            if isinstance(subject, fx.Node):
                self.ranks[subject] = rank

    def _equate(self, node: fx.Node, other: object) -> None:
        if isinstance(other, fx.Node):
            rank = self.ranks.get(node, self.ranks.get(other))
            if rank is not None:
                self.ranks[node] = self.ranks[other] = rank

    def _equate_sum(self, node: fx.Node, call: Call) -> None:
        sides = [call.get("input"), call.get("other")]
        ranks = [
            len(self.shapes[side]) if side in self.shapes else self.ranks.get(side, -1)
            for side in sides
            if isinstance(side, fx.Node)
        ]
        if ranks and min(ranks) >= 0:
            self.ranks[node] = max(ranks)

    def _visit(self, node: fx.Node) -> None:
        call = self._calls.get(node)
        if call is None:
            if node.op == "placeholder" and node not in self.shapes and node in self.ranks:
                self.shapes[node] = self._fresh(node, self.ranks[node])
            return
        source = call.arguments.get("input")
        if call.op == "cat" and isinstance(call.get("tensors"), list | tuple) and call.get("tensors"):
            source = call.get("tensors")[0]
        dtype = self._type(call, source)
        if dtype is not None:
            self.dtypes[node] = dtype
        shape = self._shape(node, call, source)
        if shape is None and node in self.ranks:
            shape = self._fresh(node, self.ranks[node])
        if shape is not None:
            self.shapes[node] = shape

    def _fresh(self, node: fx.Node, rank: int) -> Shape:
        return tuple(f"{node.name}.{axis}" for axis in range(rank))

    def _type(self, call: Call, source: object) -> torch.dtype | None:
        if call.op.startswith("conv") or call.op == "linear":
            weight = self._held(call.get("weight"))
            return None if weight is None else weight.dtype
        if call.op == "cast":
            dtype: torch.dtype = call.get("dtype")
            return dtype
        known = self.dtypes.get(source) if isinstance(source, fx.Node) else None
        if call.op == "type_as":
            return self.dtypes.get(call.arguments["other"])
        if call.op == "to":
            return _cast(call, known)
        if call.operator.is_arithmetic:
            other = call.get("other")
            second = self.dtypes.get(other) if isinstance(other, fx.Node) else known
            return known if known == second and known is not None and known.is_floating_point else None
        is_told = any(isinstance(value, torch.dtype) for value in _pytree.tree_leaves([*call.arguments.values()]))
        return known if Keeps.TYPE in call.operator.keeps and not is_told else None

    def _held(self, handle: object) -> torch.Tensor | None:
        return self._stored(handle) if isinstance(handle, fx.Node | Slot) else None

    def _shape(self, node: fx.Node, call: Call, source: object) -> Shape | None:
        before = self.shapes.get(source) if isinstance(source, fx.Node) else None
        if Keeps.SHAPE in call.operator.keeps:
            return before
        weight = self._held(call.get("weight"))
        if call.op.startswith("conv") and weight is not None and call.dims is not None:
            return self._convolved(node, call, before, weight, call.dims)
        if before is None:
            return None
        if call.op == "linear" and weight is not None and weight.dim() == 2:
            return (*before[:-1], weight.shape[0])
        if call.op in ("avg_pool", "max_pool", "interpolate", "adaptive_avg_pool", "adaptive_max_pool"):
            return self._pooled(node, call, before)
        if call.op == "flatten":
            return _flattened(before, call)
        if call.op == "cat":
            return self._joined(call)
        if call.operator.is_arithmetic:
            return self._summed(call, before)
        return None

    def _convolved(
        self, node: fx.Node, call: Call, before: Shape | None, weight: torch.Tensor, dims: int
    ) -> Shape | None:
        rank = self.ranks.get(node)
        if rank is None or weight.dim() != dims + 2:
            return None
        groups = call.get("groups", 1)
        out = weight.shape[1] * groups if "transpose" in call.op else weight.shape[0]
        front = (before[0],) if before is not None and rank == dims + 2 else self._fresh(node, rank)[: rank - dims - 1]
        return (*front, out, *self._fresh(node, rank)[-dims:])

    def _pooled(self, node: fx.Node, call: Call, before: Shape) -> Shape:
        dims = len(before) - 2 if call.op == "interpolate" else call.dims
        if dims is None:
            return self._fresh(node, len(before))
        space = self._fresh(node, len(before))[-dims:]
        size = call.get("output_size")
        if call.op.startswith("adaptive") and size is not None:
            sizes = list(size) if isinstance(size, list | tuple) else [size] * dims
            if len(sizes) == dims:
                space = tuple(
                    length if isinstance(length, int) else symbol for length, symbol in zip(sizes, space, strict=True)
                )
        return (*before[:-dims], *space)

    def _joined(self, call: Call) -> Shape | None:
        shapes = [self.shapes.get(tensor) for tensor in call.get("tensors")]
        axis = call.get("dim", 0)
        if any(shape is None for shape in shapes) or not isinstance(axis, int):
            return None
        known = [shape for shape in shapes if shape is not None]
        sizes = [shape[axis] for shape in known]
        total = sum(size for size in sizes if isinstance(size, int))
        joined = list(known[0])
        joined[axis] = total if all(isinstance(size, int) for size in sizes) else None
        return tuple(joined)

    def _summed(self, call: Call, before: Shape) -> Shape | None:
        other = call.get("other")
        if not isinstance(other, fx.Node):
            return before
        second = self.shapes.get(other)
        if second is None or len(second) > len(before):
            return None
        padded = (1,) * (len(before) - len(second)) + second
        sizes: list[Dim] = []
        for one, two in zip(before, padded, strict=True):
            if one == two or two == 1:
                sizes.append(one)
            elif one == 1:
                sizes.append(two)
            else:  # where neither is one, they are equal, or it fails
                numbers = [dim for dim in (one, two) if isinstance(dim, int)]
                sizes.append(numbers[0] if numbers else None)
        return tuple(sizes)


def _asks_for_rank(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("dim", "ndimension")
    return node.target is getattr and node.args[1:] == ("ndim",)


def _cast(call: Call, known: torch.dtype | None) -> torch.dtype | None:
    """The type that a cast makes of a known one; None where it is computed, or named as a tensor's."""
    types = [value for name, value in call.arguments.items() if name not in ("input", "to")]
    types.extend(call.arguments.get("to", ()))
    for argument in types:
        if isinstance(argument, torch.dtype):
            return argument
    is_device = [
        isinstance(argument, fx.Node) and argument.target is getattr and argument.args[1] == "device"
        for argument in types
    ]
    plain = [isinstance(argument, bool | torch.device | torch.memory_format | NoneType) for argument in types]
    named = [isinstance(argument, str) and not argument.startswith("torch.") for argument in types]
    return known if all(map(any, zip(is_device, plain, named, strict=True))) else None


def _flattened(before: Shape, call: Call) -> Shape | None:
    first, last = call.get("start_dim", 0), call.get("end_dim", -1)
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    first, last = first % len(before), last % len(before)
    merged = before[first : last + 1]
    size: Dim = 1
    for dim in merged:
        if dim == 1:
            continue
        size = dim if size == 1 else (size * dim if isinstance(size, int) and isinstance(dim, int) else None)
        if size is None:
            break
    return (*before[:first], size, *before[last + 1 :])
