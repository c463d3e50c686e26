"""The outline of a model: its nodes and values as numbers, in the neutral vocabulary, whichever front end read it.

Nodes are of two kinds. A *step* makes of one value the same value in other terms: a per-channel affine, or a reshape.
All others *compute*. Between two that compute lies a chain of steps, which is what a fold changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import Linear
from bnfold.frontends.parameters import View
from bnfold.frontends.reading import Unreadable, unit
from bnfold.graph.ops import ChannelAffine, Computed, Concat, Op, Opaque

CHAIN_LIMIT = 64
"""The most steps of a chain. A longer one is cut."""

SMALL_KERNEL = 1 << 12
"""The most weights of a kernel that is kept for the next question about it. Large ones are read again."""

KERNELS = 1 << 22
"""The most weights of all kernels of a model that are kept."""

MOVED = frozenset({"Identity", "Reshape", "Transpose"})
"""What steps do that are no map."""

MOVES = {
    **dict.fromkeys(("flatten", "reshape", "squeeze", "unsqueeze", "view"), "Reshape"),
    **dict.fromkeys(("permute", "transpose"), "Transpose"),
}
"""The same where nothing is known of the shapes, so that the vocabulary has no word for it."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """The parameters of a linear operator in float64: ``[groups, out/group, in/group, taps]`` and a vector.

    Attributes:
        weights: the kernel.
        bias: the bias; zeros where there is none.
        unit: the spacing of its type at 1.
        smallest: the spacing of its type at 0.
    """

    weights: Array
    bias: Array
    unit: float
    smallest: float


@dataclass(frozen=True, eq=False, slots=True)
class Item:
    """A node.

    Attributes:
        index: its place in the outline.
        name, scope, operator: for people.
        key: what it does, in the neutral vocabulary where that has a word.
        op: its description.
        inputs, outputs: the values that are data.
        reads: all values that it reads.
        native: the node itself.
        affine: its map, for a per-channel affine; a depthwise convolution of one tap is one as well.
        is_batchnorm: whether it is a BatchNorm.
        is_step: whether it makes of one value the same in other terms.
    """

    index: int
    name: str
    scope: str
    operator: str
    key: str
    op: Op
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    reads: tuple[int, ...]
    native: Any
    affine: Affine | None
    is_batchnorm: bool
    is_step: bool

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a per-channel affine in the form of a convolution."""
        return self.affine is not None and isinstance(self.op, Linear)

    @property
    def place(self) -> str:
        """Its name, after its scope where that is not the main graph."""
        return self.name if self.scope == "main" else f"{self.scope}/{self.name}"


class Outline:
    """A model's nodes in topological order.

    Args:
        graph: its view, which is only read.
    """

    def __init__(self, graph: View[Any, Any, Any]) -> None:
        self.graph = graph
        self._numbers: dict[Any, int] = {}
        self._kernels: dict[int, Kernel | None] = {}
        self._room = KERNELS
        self.values: list[Any] = []
        self.items: list[Item] = []
        for node in graph.nodes():
            outputs = tuple(map(self.number, graph.outputs(node)))
            if outputs and all(graph.is_fixed(self.values[output]) for output in outputs):
                continue
            self.items.append(self._item(node, outputs))
        self.sources = tuple(map(self.number, graph.sources()))
        self.results = tuple(map(self.number, graph.results()))

    def number(self, value: Any) -> int:
        """The number of a value."""
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(value)
        return self._numbers[value]

    def _item(self, node: Any, outputs: tuple[int, ...]) -> Item:
        graph, op = self.graph, self.graph.op(node)
        if isinstance(op, Computed):
            op = op.alone
        operator = graph.operator(node)
        inputs = tuple(map(self.number, graph.inputs(node)))
        reads = tuple(map(self.number, graph.reads(node)))
        affine = self._affine(node, op) if len(inputs) == 1 else None
        is_batchnorm = isinstance(op, ChannelAffine | Opaque) and op.is_batchnorm
        key = _key(op, operator)
        is_step = affine is not None or (key in MOVED and len(inputs) == len(outputs) == 1)
        return Item(
            len(self.items),
            graph.name(node),
            graph.scope(node),
            operator,
            key,
            op,
            inputs,
            outputs,
            reads,
            node,
            affine,
            is_batchnorm,
            is_step,
        )

    def _affine(self, node: Any, op: Op) -> Affine | None:
        """The map of a per-channel affine, if the node is one."""
        if isinstance(op, ChannelAffine):
            return op.affine
        if not isinstance(op, Linear) or op.axis_out is None or op.window is None or not op.window.is_point:
            return None
        if not op.groups == op.in_channels == op.out_channels or op.out_channels < 2 or op.is_quantized:
            return None
        stored = self.graph.parameters(node)
        scale = stored.kernel.canonical().astype(np.float64).reshape(-1)
        shift = np.zeros(len(scale)) if stored.bias is None else np.asarray(stored.bias, np.float64).reshape(-1)
        return Affine.of(scale, shift, op.axis_out) if shift.shape == scale.shape else None

    @cached_property
    def makers(self) -> Mapping[int, Item]:
        """The node that makes each value."""
        return {output: item for item in self.items for output in item.outputs}

    @cached_property
    def readers(self) -> Mapping[int, Sequence[tuple[Item, int]]]:
        """The nodes that read each value as data, each with the place among its inputs."""
        readers: dict[int, list[tuple[Item, int]]] = {}
        for item in self.items:
            for slot, value in enumerate(item.inputs):
                readers.setdefault(value, []).append((item, slot))
        return readers

    @cached_property
    def _origins(self) -> tuple[dict[int, int], dict[int, tuple[Item, ...]]]:
        bases: dict[int, int] = {}
        steps: dict[int, tuple[Item, ...]] = {}
        for item in self.items:
            if item.is_step and len(steps.get(item.inputs[0], ())) < CHAIN_LIMIT:
                source = item.inputs[0]
                bases[item.outputs[0]] = bases.get(source, source)
                steps[item.outputs[0]] = (*steps.get(source, ()), item)
        return bases, steps

    def base(self, value: int) -> int:
        """The value at the beginning of the chain of steps that makes a value."""
        return self._origins[0].get(value, value)

    def steps(self, value: int) -> tuple[Item, ...]:
        """The steps from its base to a value."""
        return self._origins[1].get(value, ())

    @cached_property
    def ends(self) -> Mapping[int, Sequence[tuple[Item, int]]]:
        """The nodes that compute, by the base of what they read, each with the place among its inputs."""
        ends: dict[int, list[tuple[Item, int]]] = {}
        for item in self.items:
            if not item.is_step:
                for slot, value in enumerate(item.inputs):
                    ends.setdefault(self.base(value), []).append((item, slot))
        return ends

    @cached_property
    def varying(self) -> frozenset[int]:
        """The values that may depend on an input of the model, or on chance."""
        varying = set(self.sources)
        for item in self.items:
            is_drawn = not item.reads and not item.inputs
            if is_drawn or any(value in varying or value not in self.makers for value in item.reads):
                varying.update(item.outputs)
        return frozenset(varying)

    @cached_property
    def unread(self) -> frozenset[int]:
        """The nodes, by their places, that nothing computed depends on that leaves the graph."""
        graph, live = self.graph, set(self.results)
        unread: set[int] = set()
        for item in reversed(self.items):
            leaves = any((None, -1) in graph.uses(self.values[output]) for output in item.outputs)
            if leaves or not item.outputs or any(output in live for output in item.outputs):
                live.update(item.reads)
            else:
                unread.add(item.index)
        return frozenset(unread)

    def title(self, value: int) -> str:
        """The name of a value."""
        return self.graph.title(self.values[value])

    def constant(self, value: int) -> Any:
        """The content of a value that depends on no input; None for any other."""
        return self.graph.constant(self.values[value])

    def kernel(self, item: Item) -> Kernel | None:
        """The parameters of a linear operator; None where they cannot be read, or differ from row to row."""
        if item.index in self._kernels:
            return self._kernels[item.index]
        kernel = self._read_kernel(item)
        size = 0 if kernel is None else kernel.weights.size
        if size <= SMALL_KERNEL and size <= self._room:
            self._kernels[item.index] = kernel
            self._room -= size
        return kernel

    def _read_kernel(self, item: Item) -> Kernel | None:
        try:
            stored = self.graph.parameters(item.native)
        except Unreadable:
            return None
        weights = np.asarray(stored.kernel.canonical(), np.float64)
        weights = weights.reshape(*weights.shape[:3], -1)
        channels = weights.shape[0] * weights.shape[1]
        bias = np.zeros(channels) if stored.bias is None else np.asarray(stored.bias, np.float64)
        if bias.shape != (channels,) or stored.quantized is not None:
            return None
        return Kernel(weights, bias, unit(stored.dtype), smallest(stored.dtype))


@cache
def smallest(dtype: np.dtype[Any]) -> float:
    """The spacing of a floating-point type at 0."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).smallest_subnormal)  # type: ignore[no-untyped-call]


def _key(op: Op, operator: str) -> str:
    if isinstance(op, ChannelAffine):
        return "BatchNorm" if op.is_batchnorm else "Affine"
    if isinstance(op, Opaque):
        name = plain(operator)
        return "BatchNorm" if op.is_batchnorm else MOVES.get(name, name)
    return "Identity" if isinstance(op, Concat) and len(op.sizes) == 1 else type(op).__name__


def plain(operator: str) -> str:
    """An operator's name as both PyTorch and ONNX would spell it: ``aten.max_pool2d.default`` -> ``maxpool``."""
    name = operator.removesuffix(".default").rpartition(".")[2].lower().replace("_", "")
    return re.sub(r"\dd$", "", name)
