"""Further sizes of dynamic dimensions, chosen by what the two graphs do with them.

A candidate may be right at one size and wrong at others: with fixed pads where the reference pads to a multiple of a
stride, say, or with a constant where the reference reads the batch. Sizes are chosen so that each strided operator
meets each remainder, and that each number which a graph compares a size with has a size on both of its sides. Where
there are several axes they get several lengths, since a candidate may take one for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod

import numpy as np

from bnfold.errors import IncomparableError
from bnfold.runtimes.inputs import Declared, Feeds, InputOptions, Sample, Sizes, draw, name_of_axis, normal, shape_of

BATCHES = (3,)
"""Batches beside 2 and 1, which are always there: what is made for a batch of two is wrong for three."""

LENGTHS = 3
"""The most further lengths for remainders."""

NUMBERS = 2
"""The most numbers of a graph that get sizes of their own, for batches and for lengths."""

LARGEST = 8
"""How many times more elements than the first inputs further ones may have."""


MOST = 512
"""The largest number of a graph that may be a size to try."""


@dataclass(frozen=True)
class SizeHints:
    """What a graph does with sizes.

    Attributes:
        strides: strided operators: the product of the strides before each, and its own.
        numbers: small integers that it compares, cuts or divides with, those that it compares with first.
    """

    strides: tuple[tuple[int, int], ...] = ()
    numbers: tuple[int, ...] = ()


def find_further(
    declared: Sequence[Declared],
    options: InputOptions,
    samples: Sequence[Sample],
    hints: Sequence[SizeHints],
    runs: Callable[[Feeds], IncomparableError | None],
) -> list[Sample]:
    """Normal random inputs of further sizes, for the outputs alone.

    Args:
        declared: the inputs that both models accept.
        options: how inputs are found; sizes that the caller chose stay.
        samples: the inputs that were found, the first of them of the sizes to start from.
        hints: what the reference does with sizes, and what the candidate does.
        runs: tries the reference on an input. Sizes that it does not take are left out.
    """
    sizes = [_sizes_of(declared, sample.feeds) for sample in samples]
    base = sizes[0]
    free = [name for name in base if name not in (options.dims or {})]
    batches = [name for name in free if any(_is_axis(entry, 0, name) for entry in declared)]
    lengths = [name for name in free if name not in batches]
    generator = np.random.default_rng([options.seed, len(sizes)])
    most = LARGEST * sum(array.size for array in samples[0].feeds.values())
    further: list[Sample] = []

    def attempt(chosen: Sizes) -> bool:
        """Add an input of these sizes, if the reference takes it, and say whether it does."""
        if chosen in sizes:
            return True
        if sum(prod(shape_of(entry, chosen)) for entry in declared) > most:
            return False
        feeds = draw(declared, chosen, normal, generator)
        if runs(feeds) is not None:
            return False
        changed = ", ".join(f"{name}={size}" for name, size in chosen.items() if size != base[name])
        further.append(Sample(f"normal, {changed}", feeds, is_inside=False, is_further=True))
        sizes.append(chosen)
        return True

    for batch, length in zip_longest(_batches(batches, hints), _lengths(lengths, sizes, hints)):
        many = dict.fromkeys(batches, batch) if batch else {}
        even = dict.fromkeys(lengths, length) if length else {}
        mixed = {name: length + index for index, name in enumerate(lengths)} if length else {}
        if not any(attempt({**base, **many, **long}) for long in (mixed, even)):
            attempt({**base, **many})
            attempt({**base, **even})
    return further


def _batches(names: Sequence[str], hints: Sequence[SizeHints]) -> list[int]:
    return [*BATCHES, *(number + 1 for number in _numbers(hints)[:NUMBERS])] if names else []


def _lengths(names: Sequence[str], sizes: Sequence[Sizes], hints: Sequence[SizeHints]) -> list[int]:
    """Lengths with other remainders, and on both sides of numbers."""
    if not names:
        return []
    met = {each[name] for each in sizes for name in names}
    base = max(sizes[0][name] for name in names)
    strides = {stride for hint in hints for stride in hint.strides}
    numbers = [size for number in _numbers(hints)[:NUMBERS] for size in (number + 1, number - 1)]
    return [*_remaining(strides, met, base), *numbers]


def _numbers(hints: Sequence[SizeHints]) -> list[int]:
    """The numbers of both graphs, those first that only the candidate has."""
    reference, candidate = hints
    own = [number for number in candidate.numbers if number not in reference.numbers]
    return list(dict.fromkeys([*own, *reference.numbers]))


def _remaining(strides: set[tuple[int, int]], met: set[int], base: int) -> list[int]:
    """The fewest lengths from `base` on that bring most of the remainders that no length brought before."""

    def remainders(length: int) -> set[tuple[int, int, int]]:
        return {(before, own, -(-length // before) % own) for before, own in strides}

    seen = set().union(*map(remainders, met)) if met else set()
    chosen: list[int] = []
    reach = range(base + 1, base + 2 + min(max((before * own for before, own in strides), default=1), base + 16))
    while len(chosen) < LENGTHS:
        best = max(reach, key=lambda length: (len(remainders(length) - seen), -length))
        if not remainders(best) - seen:
            return chosen
        chosen.append(best)
        seen |= remainders(best)
    return chosen


def _sizes_of(declared: Sequence[Declared], feeds: Feeds) -> Sizes:
    """The sizes of dynamic dimensions that inputs have."""
    return {
        name: feeds[entry.name].shape[axis]
        for entry in declared
        for axis in range(len(entry.shape))
        if (name := name_of_axis(entry, axis)) is not None
    }


def _is_axis(entry: Declared, axis: int, name: str) -> bool:
    return axis < len(entry.shape) and name_of_axis(entry, axis) == name
