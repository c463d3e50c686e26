"""Sizes of what a region reads, where it is run on smaller data than the model: what is added up has to fit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V", bound=Hashable)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step(Generic[V]):
    """A node of a region.

    Attributes:
        made: its output.
        reads: its inputs that are no constants.
        keeps_sizes: whether all of these have the same sizes behind the channels, as in a sum; not for convolutions.
    """

    made: V
    reads: tuple[V, ...]
    keeps_sizes: bool


def fit(
    shapes: Mapping[V, Shape], steps: Sequence[Step[V]], rank: int, output: Callable[[int, Mapping[V, Shape]], Shape]
) -> dict[V, Shape]:
    """The shapes of a region's inputs, with sizes that fit where one is added to what a convolution makes of another.

    Args:
        shapes: of the inputs, each by itself. A size of 1 stays, since it may be broadcast.
        steps: the nodes, in an order in which they can run.
        rank: how many axes there are behind the channels.
        output: gives the shape that a step makes, by its index and the shapes of its inputs.
    """
    if len(shapes) < 2 or not rank:
        return dict(shapes)
    fitted: dict[V, Shape] = {}
    sizes: dict[V, Shape] = {}

    def settle(value: V, found: Shape) -> None:
        if value not in sizes:
            sizes[value] = found
            if value in shapes:
                whole = shapes[value]
                own = [1 if one == 1 else size for one, size in zip(whole[-rank:], found[-len(whole) :], strict=False)]
                fitted[value] = (*whole[: len(whole) - len(own)], *own)

    def follow() -> None:
        count = -1
        while count != len(sizes) + len(fitted):
            count = len(sizes) + len(fitted)
            for index, step in enumerate(steps):
                if step.made not in fitted and all(read in fitted for read in step.reads):
                    fitted[step.made] = output(index, fitted)
                    settle(step.made, fitted[step.made][-rank:])
                alike = (step.made, *step.reads) if step.keeps_sizes else ()
                for known in [sizes[value] for value in alike if value in sizes][:1]:
                    for value in alike:
                        settle(value, known)

    follow()
    for step in sorted(steps, key=lambda step: step.keeps_sizes):  # what a convolution reads determines the rest
        for read in step.reads:
            if read in shapes and read not in fitted:
                settle(read, shapes[read][-rank:])
                follow()
    return {value: fitted.get(value, shape) for value, shape in shapes.items()}
