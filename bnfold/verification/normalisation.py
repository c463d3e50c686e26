"""The first thing that a model does with an input, which tells how real inputs look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt


@dataclass(frozen=True)
class Normalisation:
    """``(x - mean) / deviation``, for each channel or for all.

    Attributes:
        mean, deviation: arrays that broadcast against the input.
    """

    mean: npt.NDArray[Any]
    deviation: npt.NDArray[Any]
