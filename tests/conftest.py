"""What holds for all tests."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def _forget_what_stays() -> None:
    """Leave what was made before these tests out of each garbage collection: a million objects, most of libraries."""
    gc.collect()
    gc.freeze()
