"""Channels of which few numbers tell the noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bnfold.verification.metrics import Counts
from bnfold.verification.noise import Judgement, count_distinct
from bnfold.verification.observe import Observation, Weighing, observe_move
from bnfold.verification.truth import _is_as_near

CHANNELS, UNIT = 4096, 2.0**-23


def behind_a_pixel(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The same nine elements of each channel are one number, behind one pixel; all others are zero."""
    image = np.zeros((1, CHANNELS, 8, 8))
    image[:, :, 2:5, 2:5] = numbers[:, None, None]
    return image.astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_elements_that_are_one_number_have_one_error(seed: int) -> None:
    """Of thousands of channels, some have three moves that are all near zero."""
    generator = np.random.default_rng(seed)
    numbers = generator.uniform(0.01, 1, CHANNELS)

    def moved(error: float) -> npt.NDArray[np.float32]:
        return behind_a_pixel(numbers + error * UNIT * generator.standard_normal(CHANNELS))

    expected = behind_a_pixel(numbers)
    moves = [observe_move(expected, moved(16)) for _ in range(3)]
    for error, passes in ((28, True), (1600, False)):
        assert bool(Weighing(expected, moved(error), moves, 3).observe(is_output=True).reason) != passes


@pytest.mark.parametrize("seed", range(8))
def test_a_reference_that_is_right_by_chance_is_no_measure(seed: int) -> None:
    generator = np.random.default_rng(seed)
    numbers = generator.uniform(0.01, 1, CHANNELS)
    exact = behind_a_pixel(numbers).astype(np.float64)
    expected, actual, wrong = (
        behind_a_pixel(numbers + error * UNIT * generator.standard_normal(CHANNELS)) for error in (16, 16, 800)
    )
    judgement = Judgement(0.0, 32 * UNIT, 2.0, "peak")
    seen = Observation(judgement, Counts(0, exact.size), 0.0, "differs")
    assert _is_as_near(exact, expected, actual, seen)
    assert not _is_as_near(exact, expected, wrong, seen)


def test_numbers_are_counted_in_each_channel() -> None:
    array = np.array([[[[0, 1], [1, 2]], [[0, 0], [0, 0]]], [[[3, 0], [2, 2]], [[np.nan, 5], [5, 5]]]], np.float32)
    assert count_distinct(array)[:3].tolist() == [np.inf, 3, 2]
