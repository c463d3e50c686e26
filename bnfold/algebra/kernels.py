"""Kernels in blocks, so that solving a weight takes a few megabytes, however large it is.

A block is a run of rows of the kernel as it is stored, so it is contiguous in a file. It is a box of the canonical
layout as well, ``[groups, out, in]``, and so a small linear operator of its own (`Block.part`), which solves its share:

    K'[o, i] = out.scale[o] * K[o, i] * in.scale[i]          for the (o, i) of the box
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import STRIP, Layout, Linear
from bnfold.algebra.rounding import Growth, KernelPeaks, Rounding, Worst, bound_errors, is_narrow

ELEMENTS = 1 << 18
"""How many elements a block has: enough to keep numpy busy, and few enough for a cache."""

WORKERS = min(3, os.cpu_count() or 1)
"""How many threads solve blocks. They run in parallel, since numpy and file reads release the GIL."""

INPUT_MAJOR = (Layout.CONV_TRANSPOSE, Layout.IN_OUT)
"""Layouts whose rows are input channels; those of the others are output channels."""

T = TypeVar("T")

Rows = Callable[[int, int], npt.NDArray[np.generic]]
"""Reads rows ``start`` to ``stop`` of a stored kernel, in any shape but in stored order."""


@dataclass(frozen=True)
class Kernel:
    """How a kernel is stored, and a way to read it in part.

    Attributes:
        shape: the stored shape.
        layout, groups: the meaning of its axes.
        open: makes it ready for reading; gives a way to read some of its rows.
        factor: multiplies every weight.
    """

    shape: tuple[int, ...]
    layout: Layout
    groups: int
    open: Callable[[], Rows]
    factor: float = 1.0

    @property
    def rows(self) -> int:
        """The number of rows. A row holds all weights of one input or output channel."""
        return row_count(self.shape, self.layout)

    def blocks(self) -> Iterator[Block]:
        """The kernel in order, each block within one group or of whole groups."""
        size, rows = prod(self.shape), self.rows
        if not size:
            return
        read = self.open()
        per_group = rows // self.groups
        step = max(1, ELEMENTS * rows // size)
        if step >= per_group:
            step -= step % per_group
            for start in range(0, rows, step):
                yield Block(self, read, start, min(start + step, rows))
            return
        for group in range(self.groups):
            end = (group + 1) * per_group
            for start in range(group * per_group, end, step):
                yield Block(self, read, start, min(start + step, end))

    def canonical(self) -> npt.NDArray[np.generic]:
        """All weights as ``[groups, out/group, in/group, *window]``."""
        stored: npt.NDArray[Any] = self.open()(0, self.rows).reshape(self.shape)
        kernel = self.layout.canonical(stored, self.groups)
        return kernel if self.factor == 1 else kernel.astype(np.float64) * self.factor

    @property
    def is_input_major(self) -> bool:
        """Whether a row holds the weights of an input channel."""
        return self.layout in INPUT_MAJOR

    def take(self, rows: slice) -> npt.NDArray[np.generic]:
        """Weights of some output channels, which must be its rows, as ``[rows, in/group, *window]``."""
        start, stop, _ = rows.indices(self.rows)
        taken: npt.NDArray[Any] = self.open()(start, stop)
        taken = taken.reshape(stop - start, *self.shape[1 if self.layout is Layout.CONV else -1 :])
        return taken if self.factor == 1 else taken.astype(np.float64) * self.factor

    def solve(self, linear: Linear) -> Array:
        """The whole kernel with everything that `linear` absorbed, in float64, as it is stored."""
        solved = np.empty(self.shape)
        rows = solved.reshape(self.rows, -1)
        for block in self.blocks():
            rows[block.start : block.stop] = block.solve(linear)
        return solved

    def solve_bias(self, linear: Linear, bias: Array | None) -> Array | None:
        """The bias with everything that `linear` absorbed; reads the kernel only where a shift passes through it."""
        if linear.before is None or not linear.before.has_shift:
            return linear.solve_bias(lambda: np.zeros(0), bias)
        constant = np.zeros(linear.out_channels) if bias is None else np.array(bias, np.float64)
        for block in self.blocks():
            part = replace(block.part(linear), after=None)
            passed = part.solve_bias(block.canonical, None)
            assert passed is not None
            constant[..., block.outputs] += passed
        return replace(linear, before=None).solve_bias(lambda: np.zeros(0), constant)

    def measure(self, linear: Linear, bias: Array | None, dtype: np.dtype[np.generic], unit: float) -> Rounding:
        """The rounding of the solved kernel and `bias` to `dtype`; see `KernelPeaks.judge`."""
        blocks = list(self.blocks())
        sizes, worst = linear.input_sizes, Worst()
        is_by_rows = linear.before is None and not self.is_input_major and not is_narrow(dtype)

        def measure_block(block: Block) -> KernelPeaks:
            own = None if sizes is None else sizes[block.inputs(linear)]
            part, kernel = block.part(linear), block.canonical()
            if kernel.size <= STRIP:  # as most kernels are
                return KernelPeaks.of(part.solve_kernel(kernel), dtype, own)
            if is_by_rows:
                return _measure_rows(part, kernel.reshape(part.out_channels, -1), dtype, unit, worst)
            strips = ((strip, KernelPeaks.of(exact, dtype, own)) for strip, exact in part.solve_strips(kernel))
            return KernelPeaks.whole(strips, part.groups, part.out_channels, part.in_channels)

        if len(blocks) == 1:
            peaks = measure_block(blocks[0])
        else:
            peaks = KernelPeaks.zeros(linear.out_channels, linear.in_channels)
            for block, part in zip(blocks, _in_parallel(measure_block, blocks), strict=True):
                peaks.add(part, block.outputs, block.inputs(linear))
        sums = linear.output_sums if peaks.loses(unit) else None
        harmless = None if sums is None else peaks.hidden(sums, dtype, unit)
        return peaks.judge(bias, dtype, unit, harmless, linear.groups)

    def measure_growth(self, linear: Linear, bias: Array | None) -> Growth:
        """How much more the operator rounds because of the affines on its input side; `bias` is the old one."""
        products, results, shifts = (np.zeros(linear.out_channels) for _ in range(3))
        for block in self.blocks():
            for total, addend in zip(
                (products, results, shifts), block.part(linear).sizes(block.canonical()), strict=True
            ):
                total[block.outputs] += addend
        return linear.growth_of((products, results, shifts), bias)


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` of a kernel: whole groups, or a part of one."""

    kernel: Kernel
    read: Rows
    start: int
    stop: int

    @property
    def _groups(self) -> range:
        per_group = self.kernel.rows // self.kernel.groups
        return range(self.start // per_group, -(-self.stop // per_group))

    def _channels(self, total: int, *, are_rows: bool) -> slice:
        """The block's channels on one side, of `total` over all groups."""
        if are_rows:
            return slice(self.start, self.stop)
        per_group = total // self.kernel.groups
        return slice(self._groups.start * per_group, self._groups.stop * per_group)

    @property
    def outputs(self) -> slice:
        """Its output channels, over all groups."""
        shape, layout = self.kernel.shape, self.kernel.layout
        total = self.kernel.rows
        if self.kernel.is_input_major:
            total = shape[1] * self.kernel.groups if layout is Layout.CONV_TRANSPOSE else shape[-1]
        return self._channels(total, are_rows=not self.kernel.is_input_major)

    def inputs(self, linear: Linear) -> slice:
        """Its input channels, over all groups."""
        return self._channels(linear.in_channels, are_rows=self.kernel.is_input_major)

    def part(self, linear: Linear) -> Linear:
        """The operator whose kernel is this block alone."""
        if self.stop - self.start == self.kernel.rows:
            return linear
        inputs, outputs = self.inputs(linear), self.outputs
        return replace(
            linear,
            groups=len(self._groups),
            in_channels=inputs.stop - inputs.start,
            out_channels=outputs.stop - outputs.start,
            before=_slice(linear.before, inputs),
            after=_slice(linear.after, outputs),
        )

    def canonical(self) -> npt.NDArray[np.generic]:
        """The original weights as ``[groups, out/group, in/group, *window]``."""
        layout, shape, groups = self.kernel.layout, self.kernel.shape, len(self._groups)
        window = shape[2:] if layout in (Layout.CONV, Layout.CONV_TRANSPOSE) else ()
        fan = shape[1] if window else shape[-1]
        kernel = self.read(self.start, self.stop)
        kernel = kernel.reshape(groups, (self.stop - self.start) // groups, fan, *window)
        kernel = kernel.swapaxes(1, 2) if self.kernel.is_input_major else kernel
        return kernel if self.kernel.factor == 1 else kernel.astype(np.float64) * self.kernel.factor

    def solve(self, linear: Linear) -> Array:
        """The solved weights of the block, given the whole operator `linear`: ``[rows, -1]`` in stored order."""
        solved = self.solve_canonical(linear)
        solved = solved.swapaxes(1, 2) if self.kernel.is_input_major else solved
        return solved.reshape(self.stop - self.start, -1)

    def round(self, linear: Linear, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
        """The same, rounded once to a type."""
        kernel = self.canonical()
        groups, outputs, inputs, *window = kernel.shape
        stored = (groups, inputs, outputs) if self.kernel.is_input_major else (groups, outputs, inputs)
        rounded = np.empty((*stored, *window), dtype)
        canonical = rounded.swapaxes(1, 2) if self.kernel.is_input_major else rounded
        self.part(linear).round_into(canonical, kernel)
        return rounded.reshape(self.stop - self.start, -1)

    def solve_canonical(self, linear: Linear) -> Array:
        """The same in canonical layout."""
        return self.part(linear).solve_kernel(self.canonical())


def _measure_rows(
    linear: Linear, rows: npt.NDArray[np.generic], dtype: np.dtype[np.generic], unit: float, worst: Worst
) -> KernelPeaks:
    """The peaks of an operator whose output channels are rows, with one factor each.

    The largest values need no solving: rounding products to float64 keeps their order. By them, a channel is rounded
    only if its relative error may be larger than all that are known, and first where it may be largest.
    """
    peaks = KernelPeaks.zeros(len(rows), linear.in_channels)
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    np.abs(linear.solve_rows(largest[:, None], np.arange(len(rows)))[:, 0], out=peaks.output_peaks)
    bounds = bound_errors(peaks.output_peaks, dtype, unit)
    order, step = np.argsort(-bounds), max(1, STRIP // rows.shape[1])
    for start in range(0, len(rows), step):
        chosen = order[start : start + step]
        chosen = chosen[bounds[chosen] > worst.error]
        if not len(chosen):
            break
        part = KernelPeaks.of(linear.solve_rows(rows[chosen], chosen)[None], dtype)
        peaks.output_errors[chosen] = part.output_errors
        worst.note(part, unit)
    return peaks


def _in_parallel(function: Callable[[Block], T], blocks: Sequence[Block]) -> Iterator[T]:
    """Apply a function to each block, in order. A few blocks are not worth the start of a thread."""
    if len(blocks) <= WORKERS:
        yield from map(function, blocks)
        return
    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(function, blocks)


def row_count(shape: tuple[int, ...], layout: Layout) -> int:
    """The number of rows of a stored kernel. A row holds all weights of one input or output channel."""
    if layout is Layout.STACKED:
        return shape[0] * shape[1]
    return shape[0] if layout in (Layout.CONV, Layout.CONV_TRANSPOSE) else shape[-2]


def _slice(affine: Affine | None, channels: slice) -> Affine | None:
    return None if affine is None else affine.each(lambda vector: vector[channels])
