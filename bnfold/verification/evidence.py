"""Whether a run shows anything: two models agree on nothing for no reason of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import NoEvidenceError
from bnfold.verification.observe import is_float

AnyArray = npt.NDArray[Any]


def insist_on_evidence(label: str, feeds: Mapping[str, AnyArray], outputs: Sequence[AnyArray]) -> None:
    """That some output of the reference has an element, and one that is a number where the inputs hold NaN.

    Args:
        label: what messages call the inputs.
        feeds: the inputs that a caller gives.
        outputs: what the reference makes of them.

    Raises:
        NoEvidenceError: none has; the message names the inputs.
    """
    if not outputs:
        return
    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
    if not any(each.size for each in outputs):
        raise NoEvidenceError(f"{label}: no output has an element on it, so it shows nothing ({shapes})")
    unclear = [name for name, array in feeds.items() if is_float(array) and np.isnan(array).any()]
    if unclear and all(is_float(each) and not np.isfinite(each).any() for each in outputs):
        raise NoEvidenceError(f"{label}: input {unclear[0]!r} holds NaN, and no output has a number on it")
