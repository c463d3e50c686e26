"""Inputs of other ranges: as far as the reference can compute, and as its first normalisation expects them.

A bound that a candidate adds (a Clip at 3000) shows only where values go beyond it. Far out, a gate or a softmax may be
decided by the last digit, so that what differs there counts only if it does so on a second draw as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError
from bnfold.runtimes.inputs import LARGE, Declared, Sample
from bnfold.verification.normalisation import Normalisation
from bnfold.verification.observe import is_float
from bnfold.verification.subject import Run

AnyArray = npt.NDArray[Any]

ROOM = 1e-3
"""The largest value on a far input, over the square root of the largest number: sums of squares stay numbers."""

TRIES = 4
"""How many scales are tried, each the square root of the one before."""


def find_far(large: Sample, inside: Run) -> Sample | None:
    """Normal random inputs that reach as far as the reference can compute; None where that is not beyond `large`.

    Args:
        large: an input of large values, `LARGE` times normal.
        inside: runs the reference for its outputs and inner values.
    """
    reach = _reach(large, inside)
    if not 0 < reach < 1:
        return None
    scale = 10.0 ** np.floor(-np.log10(reach))
    for _ in range(TRIES):
        far = _scaled(large, scale)
        if scale > 1 and _reach(far, inside) <= 1:
            return far
        scale = 10.0 ** np.floor(np.log10(scale) / 2)
    return None


def draw_again(far: Sample, seed: int) -> Sample:
    """The same numbers in another order."""
    generator = np.random.default_rng(seed)
    feeds = {
        name: generator.permutation(array.reshape(-1)).reshape(array.shape) if is_float(array) else array
        for name, array in far.feeds.items()
    }
    return replace(far, feeds=feeds)


def _scaled(large: Sample, scale: float) -> Sample:
    feeds = {
        name: (array * array.dtype.type(scale)) if is_float(array) else array for name, array in large.feeds.items()
    }
    return replace(
        large, label=f"far ({LARGE * scale:.0e} times normal)", feeds=feeds, is_inside=False, is_further=True
    )


def _reach(sample: Sample, inside: Run) -> float:
    """The largest number on an input, over the largest allowed in its type; infinite where one is not finite."""
    try:
        values = [*sample.feeds.values(), *inside(sample.feeds)]
    except IncomparableError:
        return float("inf")
    reach = 0.0
    for array in values:
        if is_float(array) and array.size:
            largest = float(np.abs(array.astype(np.float64)).max())
            if not np.isfinite(largest):
                return float("inf")
            reach = max(reach, largest / (ROOM * float(ml_dtypes.finfo(array.dtype).max) ** 0.5))  # type: ignore[no-untyped-call]
    return reach


def draw_as_normalised(
    declared: Sequence[Declared], found: Mapping[str, Normalisation], sample: Sample
) -> Sample | None:
    """Inputs as the first normalisations expect them; None where there are none.

    Args:
        declared: the inputs.
        found: the normalisation of an input, by its name.
        sample: normal random inputs.
    """
    feeds = dict(sample.feeds)
    for entry in declared:
        if entry.name in found and is_float(feeds[entry.name]):
            normal, like = feeds[entry.name], found[entry.name]
            try:
                shaped = like.mean + like.deviation * normal.astype(np.float64)
            except ValueError:  # it does not broadcast against this input
                continue
            if shaped.shape == normal.shape and np.isfinite(shaped).all():
                feeds[entry.name] = shaped.astype(normal.dtype)
    if all(feeds[name] is array for name, array in sample.feeds.items()):
        return None
    return replace(sample, label="as normalised", feeds=feeds)
