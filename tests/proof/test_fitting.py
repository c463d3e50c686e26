"""Sizes that fit each other in a region, whatever is added to what a convolution makes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bnfold.proof.fitting import Shape, Step, fit

CHANNELS = 4


def halved(*reads: str, made: str) -> Step[str]:
    return Step(made, reads, keeps_sizes=False)


def summed(*reads: str, made: str) -> Step[str]:
    return Step(made, reads, keeps_sizes=True)


def fitted(shapes: Mapping[str, Shape], *steps: Step[str]) -> dict[str, Shape]:
    """Convolutions halve sizes here, and sums are broadcast."""

    def output(index: int, known: Mapping[str, Shape]) -> Shape:
        step = steps[index]
        if step.keeps_sizes:
            return tuple(max(sizes) for sizes in zip(*(known[read] for read in step.reads), strict=True))
        return (1, CHANNELS, *(-(-size // 2) for size in known[step.reads[0]][2:]))

    return fit(shapes, steps, 2, output)


IMAGE: Shape = (1, CHANNELS, 9, 8)
HALF: Shape = (1, CHANNELS, 5, 4)

REGIONS: dict[str, tuple[list[Step[str]], dict[str, Shape], dict[str, Shape]]] = {
    "what is added": (
        [halved("x", made="c"), summed("c", "a", made="y")],
        {"x": IMAGE, "a": IMAGE},
        {"x": IMAGE, "a": HALF},
    ),
    "what is added first": (
        [summed("a", "b", made="s"), halved("x", made="c"), summed("s", "c", made="y")],
        {"a": IMAGE, "b": IMAGE, "x": IMAGE},
        {"a": HALF, "b": HALF, "x": IMAGE},
    ),
    "behind a second convolution": (
        [halved("x", made="c"), summed("c", "a", made="s"), halved("s", made="d"), summed("d", "b", made="y")],
        {"x": IMAGE, "a": IMAGE, "b": IMAGE},
        {"x": IMAGE, "a": HALF, "b": (1, CHANNELS, 3, 2)},
    ),
    "what is broadcast": (
        [halved("x", made="c"), summed("c", "a", made="y")],
        {"x": IMAGE, "a": (1, CHANNELS, 1, 8)},
        {"x": IMAGE, "a": (1, CHANNELS, 1, 4)},
    ),
    "sums alone": ([summed("a", "b", made="y")], {"a": IMAGE, "b": IMAGE}, {"a": IMAGE, "b": IMAGE}),
    "a scalar": ([halved("x", made="c"), summed("c", "a", made="y")], {"x": IMAGE, "a": ()}, {"x": IMAGE, "a": ()}),
}


@pytest.mark.parametrize("case", REGIONS)
def test_what_is_added_has_the_sizes_of_the_sum(case: str) -> None:
    steps, shapes, expected = REGIONS[case]
    if case == "a scalar":
        assert fit(shapes, steps, 2, lambda index, known: HALF) == expected
    else:
        assert fitted(shapes, *steps) == expected
