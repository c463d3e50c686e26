"""Whether any or all entries of an array are true: the same as numpy says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from bnfold.algebra.masks import has_all, has_any

VECTORS = [[], [0.0], [-0.0, 0.0], [1.0, 0.0], [np.nan, 0.0], [np.nan, np.inf], [1e-40, 2.0], [-1.0, -2.0]]


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.bool_])
def test_they_say_what_numpy_says(vector: list[float], dtype: type[np.generic]) -> None:
    array = np.asarray(vector).astype(dtype)
    assert (has_any(array), has_all(array)) == (bool(np.any(array)), bool(np.all(array)))
    table = array.reshape(1, -1, 1)
    assert (has_any(table), has_all(table)) == (bool(np.any(table)), bool(np.all(table)))
