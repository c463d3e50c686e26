"""Checks that a run shows anything: two models without a number in their outputs agree for no reason of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import NoEvidenceError
from bnfold.verification.observe import is_float

AnyArray = npt.NDArray[Any]


def insist_on_evidence(label: str, feeds: Mapping[str, AnyArray], outputs: Sequence[AnyArray]) -> None:
    """Check that some output of the reference has an element; and a number, where the inputs hold NaN.

    Args:
        label: the name of the inputs in messages.
        feeds: the inputs of the caller.
        outputs: the outputs of the reference on them.

    Raises:
        NoEvidenceError: no output has one; the message names the inputs.
    """
    if not outputs:
        return
    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
    if not any(array.size for array in outputs):
        raise NoEvidenceError(f"{label}: no output has an element on it, so it shows nothing ({shapes})")
    unclear = [name for name, array in feeds.items() if is_float(array) and np.isnan(array).any()]
    if unclear and all(is_float(array) and not np.isfinite(array).any() for array in outputs):
        raise NoEvidenceError(f"{label}: input {unclear[0]!r} holds NaN, and no output has a number on it")
