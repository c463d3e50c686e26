"""How models store their weights, to say what kind of conversion one is of the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

NARROW = ("bfloat16", "float16")
"""The types that a conversion stores weights in, the coarser one first."""


@dataclass(frozen=True)
class Storage:
    """How a model stores its weights.

    Attributes:
        types: the types of its floating point weights.
        rounded: the coarsest narrow type that has all of them, though they are stored in a wider one; else empty.
        bits: of its quantised weights, the fewest; 0 if there are none.
        has_quantised_activations: whether it quantises what it computes.
    """

    types: frozenset[str] = frozenset()
    rounded: str = ""
    bits: int = 0
    has_quantised_activations: bool = False


def describe_conversion(reference: Storage, candidate: Storage) -> str:
    """The conversion that one model is of the other, as people call it; empty where storage shows none."""
    words = [f"the candidate is {kind}" for kind in NARROW if kind in candidate.types - reference.types]
    if candidate.rounded and candidate.rounded not in (reference.rounded, *reference.types):
        words.append(f"weights rounded to {candidate.rounded}")
    quantised = ["weights"] if candidate.bits and candidate.bits != reference.bits else []
    if candidate.has_quantised_activations and not reference.has_quantised_activations:
        quantised.append("activations")
    if quantised:
        bits = f" to {candidate.bits} bits" if candidate.bits else ""
        words.append(f"{' and '.join(quantised)} quantised{bits}")
    return ", ".join(words)


def find_rounded(weights: Iterable[npt.NDArray[Any]]) -> str:
    """The coarsest type that has every number of float32 or float64 weights; empty where none has."""
    kept = list(NARROW)
    count = 0
    for weight in weights:
        if weight.dtype.name in ("float32", "float64"):
            count += 1
            kept = [kind for kind in kept if _has(kind, weight)]
        if not kept:
            return ""
    return kept[0] if count else ""


def _has(kind: str, weight: npt.NDArray[Any]) -> bool:
    dtype = np.dtype(np.float16) if kind == "float16" else np.dtype(ml_dtypes.bfloat16)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.array_equal(weight.astype(dtype).astype(weight.dtype), weight, equal_nan=True))


BITS: Mapping[str, int] = {
    "int8": 8,
    "uint8": 8,
    "int4": 4,
    "uint4": 4,
    "int2": 2,
    "uint2": 2,
    "int16": 16,
    "uint16": 16,
}
"""The bits of the types of quantised weights."""
