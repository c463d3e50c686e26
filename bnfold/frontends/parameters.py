"""The parameters of a graph's nodes, and what the views of both front ends do with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np

from bnfold.algebra import terms
from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.kernels import Kernel, Rows, row_count
from bnfold.algebra.linear import Layout, Linear
from bnfold.algebra.masks import has_all, has_any
from bnfold.algebra.rounding import Rounding, is_narrow, measure_parameters, measure_rounding, round_once
from bnfold.algebra.terms import Load, Parameters
from bnfold.frontends.quantized import Quantized, kernel_axis
from bnfold.frontends.reading import AnyArray, Normalization, unit
from bnfold.graph.cautions import Caution, examine
from bnfold.graph.ops import Absorbed, ChannelAffine, Form, Lowered, Operands
from bnfold.graph.protocol import Graph

N = TypeVar("N", bound=Hashable)
V = TypeVar("V", bound=Hashable)
W = TypeVar("W")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor that a model stores, and a way to read it."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], AnyArray]


def array_rows(array: AnyArray, rows: int) -> Rows:
    """A way to read the rows of an array, which is seen as `rows` rows."""
    flat = array.reshape(rows, -1)
    return lambda start, stop: flat[start:stop]


@dataclass(frozen=True, eq=False)
class Stored(Generic[W]):
    """The parameters of a linear operator as they are stored, apart from the graph, which may change meanwhile.

    Attributes:
        linear: the operator.
        weights: where the front end keeps its parameters.
        kernel: the kernel.
        bias: the bias in float64, one entry for each output channel, or for each row and output channel where it
            differs from row to row; None where there is none.
        dtype: of the kernel.
        quantized: the integers that the kernel is made of, if it is.
    """

    linear: Linear
    weights: W
    kernel: Kernel
    bias: Array | None
    dtype: np.dtype[Any]
    quantized: Quantized | None = field(default=None, kw_only=True)

    def parameters(self) -> Parameters:
        """The parameters in the form that a merged operator computes with."""
        return Parameters(self.kernel.canonical, self.bias, None if self.kernel.is_input_major else self.kernel.take)

    def source(self, linear: Linear, load: Load) -> Kernel:
        """The kernel that `linear` starts from: the stored one, or the one that its terms add up to."""
        if not linear.terms:
            return self.kernel
        layout, shape = self.kernel.layout, self._native_shape(linear)

        def open_rows() -> Rows:
            if terms.is_by_rows(linear) and not self.kernel.is_input_major:
                return lambda start, stop: terms.kernel_rows(linear, load, slice(start, stop))
            return array_rows(layout.native(terms.kernel(linear, load), shape), row_count(shape, layout))

        return Kernel(shape, layout, linear.groups, open_rows)

    def solve_bias(self, linear: Linear, load: Load) -> Array | None:
        """The bias with everything that `linear` absorbed and is made of; None where none is needed."""
        return self.source(linear, load).solve_bias(linear, self._bias(linear, load))

    def _bias(self, linear: Linear, load: Load) -> Array | None:
        """The bias that `linear` starts from."""
        return terms.bias(linear, load) if linear.terms else self.bias

    def measure(self, linear: Linear, load: Load) -> Rounding:
        """The effect of storing the parameters with everything that `linear` absorbed and is made of."""
        if self.quantized is not None and linear.after is not None:
            return self._measure_scales(self.quantized, linear.after.scale, self.solve_bias(linear, load))
        source, spacing = self.source(linear, load), unit(self.dtype)
        rounding = source.measure(linear, self.solve_bias(linear, load), self.dtype, spacing)
        rounding = rounding.with_fill(linear.fill, self.dtype, spacing)
        for growth in terms.growths(linear, load, lambda: source.measure_growth(linear, self._bias(linear, load))):
            rounding = rounding.with_growth(growth)
        return rounding

    def _measure_scales(self, quantized: Quantized, factor: Array, bias: Array | None) -> Rounding:
        """The effect of storing the scales of a quantised kernel, whose integers stay as they are or are mirrored."""
        scales = quantized.rescaled(factor).reshape(1, -1, 1)
        rounding = measure_parameters(scales, bias, self.dtype, unit(self.dtype))
        if rounding.overflow is not None or rounding.loss is not None:
            return rounding
        is_kept = quantized.requantizes(factor, kernel_axis(quantized, self.kernel.layout))
        return rounding if has_all(is_kept) else replace(rounding, loss=int(np.argmin(is_kept)))

    def native_bias(self, bias: Array) -> Array:
        """A bias as the operator stores it."""
        return bias

    def _native_shape(self, linear: Linear) -> tuple[int, ...]:
        """The shape that the operator stores; a product may have other channels than the operator had."""
        shape = self.kernel.shape
        if (linear.out_channels, linear.in_channels) == (self.linear.out_channels, self.linear.in_channels):
            return shape
        match self.kernel.layout:
            case Layout.CONV:
                return linear.out_channels, linear.in_channels // linear.groups, *shape[2:]
            case Layout.IN_OUT:
                return *shape[:-2], linear.in_channels, linear.out_channels
            case Layout.OUT_IN:
                return *shape[:-2], linear.out_channels, linear.in_channels
        raise AssertionError(f"nothing merges into a kernel that is stored as {self.kernel.layout}")


class View(Graph[N, V], Generic[N, V, W]):
    """The part of a graph that is about stored parameters, and what it says of itself to readers."""

    can_lower = False

    @abstractmethod
    def operator(self, node: N) -> str:
        """The name of a node's operator."""

    @abstractmethod
    def attributes(self, node: N) -> Mapping[str, str]:
        """The attributes of a node, as text."""

    @abstractmethod
    def reads(self, node: N) -> Sequence[V]:
        """Everything that a node reads, constants left out; what is no data as well."""

    @abstractmethod
    def constant(self, value: V) -> AnyArray | None:
        """The content of a value that depends on no input; None for any other, and where it cannot be evaluated."""

    @abstractmethod
    def held(self, node: N) -> Sequence[AnyArray]:
        """The constants that a node reads, as far as they can be evaluated."""

    @abstractmethod
    def is_fixed(self, value: V) -> bool:
        """Whether a value depends on constants alone; evaluates nothing."""

    @abstractmethod
    def title(self, value: V) -> str:
        """The name of a value, for people."""

    @abstractmethod
    def sources(self) -> Sequence[V]:
        """The inputs of the model, in order."""

    @abstractmethod
    def results(self) -> Sequence[V]:
        """The outputs of the model, in order."""

    def parameters(self, node: N) -> Stored[W]:
        """The stored parameters of a node that `op` describes as linear."""
        return self._stored(node)

    def solved(self, node: N, linear: Linear) -> tuple[AnyArray, Array | None]:
        """The kernel, in canonical layout, and the bias that a node gets with all that `linear` absorbed."""
        stored, load = self._stored(node), self._loader(linear)
        source = stored.source(linear, load)
        return source.layout.canonical(source.solve(linear), linear.groups), stored.solve_bias(linear, load)

    @abstractmethod
    def _is_batchnorm(self, node: N) -> bool:
        """Whether a node is a BatchNorm."""

    @abstractmethod
    def _normalization(self, node: N) -> Normalization:
        """The constants of a BatchNorm that can be read."""

    @abstractmethod
    def _stored(self, node: N) -> Stored[W]:
        """The parameters of a linear operator that can be read."""

    def _loader(self, linear: Linear) -> Load:
        """The parameters of the nodes that make up a merged operator. They are captured now: the nodes will go."""
        captured = {node: self._stored(cast("N", node)).parameters() for node in terms.nodes(linear)}
        return captured.__getitem__

    def _operand(self, node: N, index: int) -> AnyArray:
        """A constant that a node reads as data, by its index among these, with as many axes as its output has."""
        raise NotImplementedError  # asked of front ends alone that describe operators with constants as data

    def write_operands(self, node: N, absorbed: Operands) -> None:
        """See `Graph`. A front end whose operators read no constants as data needs none."""
        raise NotImplementedError  # asked as `_operand` is

    def find_form(self, node: N, form: Form) -> Form | str:
        """See `Graph`. A front end that writes no BatchNorm as other operators needs none of this."""
        return "models of this kind keep it"

    def round_lowered(self, node: N, lowered: Lowered) -> Rounding:
        """See `Graph`."""
        raise NotImplementedError  # asked only where there is a form

    def lower(self, node: N, lowered: Lowered) -> None:
        """See `Graph`."""
        raise NotImplementedError  # asked only where there is a form

    def settle(self, node: N) -> None:
        """See `Graph`. A front end that reads no node as `Computed` needs none of this."""
        raise NotImplementedError  # asked only of nodes that are read so

    def _operands(self, node: N, absorbed: Operands) -> dict[int, tuple[Array, AnyArray]]:
        """Constants with all that they have taken in, in float64 and rounded once."""
        operands: dict[int, tuple[Array, AnyArray]] = {}
        for index, affine in absorbed.affines.items():
            constant = self._operand(node, index)
            exact = affine(constant.astype(np.float64))
            operands[index] = exact, round_once(exact, constant.dtype)
        return operands

    def _measure_operands(self, node: N, absorbed: Operands) -> Rounding:
        """The effect of storing the only constant that a node reads as data."""
        ((index, (exact, rounded)),) = self._operands(node, absorbed).items()
        axis, spacing = absorbed.affines[index].axis, unit(rounded.dtype)
        rounding = measure_rounding(np.moveaxis(exact, axis, 0), np.moveaxis(rounded, axis, 0), spacing)
        return replace(rounding, is_narrow=is_narrow(rounded.dtype))

    def round(self, node: N, absorbed: Absorbed) -> Rounding:
        """See `Graph`."""
        if isinstance(absorbed, Operands):
            return self._measure_operands(node, absorbed)
        if isinstance(absorbed, Affine):
            return self._normalization(node).solve(absorbed).rounding
        return self._measure(self._stored(node), absorbed)

    def _measure(self, stored: Stored[W], absorbed: Linear) -> Rounding:
        return stored.measure(absorbed, self._loader(absorbed))

    def makes_bias(self, node: N, absorbed: Linear) -> bool:
        """See `Graph`."""
        stored = self._stored(node)
        bias = stored.solve_bias(absorbed, self._loader(absorbed))
        return bias is not None and has_any(round_once(bias, stored.dtype))

    def _cautions(self) -> list[Caution]:
        """Statistics of readable BatchNorms that look wrong."""
        cautions: list[Caution] = []
        for node in self.nodes():
            if self._is_batchnorm(node) and isinstance(self.op(node), ChannelAffine):
                read = self._normalization(node)
                gamma, _, mean, var = read.wide
                cautions += examine(self.name(node), self.scope(node), gamma, mean, var, read.epsilon)
        return cautions
