"""Whether any or all entries of an array are true: what `any` and `all` say, which take eight times as long on few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def has_any(array: npt.NDArray[np.generic]) -> bool:
    """Whether any entry is true, or not zero."""
    return bool(np.count_nonzero(array))


def has_all(array: npt.NDArray[np.generic]) -> bool:
    """Whether every entry is true, or not zero."""
    return bool(np.count_nonzero(array) == array.size)
