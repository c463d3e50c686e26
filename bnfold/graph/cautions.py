"""Warnings about a model whose folds are exact all the same: statistics of BatchNorms, and declared shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bnfold.algebra.masks import has_all, has_any

LARGE_SCALE = 1e3
SMALL_GAMMA = 1e-6


@dataclass(frozen=True)
class Caution:
    """A warning for the author of the model. It never blocks a fold.

    Attributes:
        batchnorm: the node's name.
        scope: the graph that holds it.
        kind: "untrained", "small-variance", "small-gamma" or "large-scale".
        channels: the channels that it is about.
    """

    batchnorm: str
    scope: str
    kind: str
    channels: tuple[int, ...]

    @property
    def detail(self) -> str:
        """A sentence for people."""
        shown = ", ".join(map(str, self.channels[:8])) + (", ..." if len(self.channels) > 8 else "")
        what = {
            "untrained": "its running statistics are mean 0 and variance 1 everywhere, as before any training",
            "small-variance": f"the variance is below epsilon in channels {shown}",
            "small-gamma": f"gamma is nearly zero in channels {shown}",
            "large-scale": f"the scale is above {LARGE_SCALE:g} in channels {shown}",
        }
        return what[self.kind]


@dataclass(frozen=True)
class DeclarationCaution:
    """A warning about a declared shape or element type: it is wrong, or only a run of the model confirms it.

    Attributes:
        value: the value's name.
        scope: the graph that holds it.
        kind: "stale-declaration" or "confirmed-declaration".
        detail: a sentence for people.
    """

    value: str
    scope: str
    kind: str
    detail: str


def examine(
    batchnorm: str,
    scope: str,
    gamma: npt.NDArray[np.generic],
    mean: npt.NDArray[np.generic],
    var: npt.NDArray[np.generic],
    eps: float,
) -> list[Caution]:
    """The warnings about the parameters of one BatchNorm (vectors, one entry per channel)."""
    scale, wide = (np.asarray(vector, np.float64) for vector in (gamma, var))
    if wide.size and not has_any(mean) and has_all(wide == 1):
        return [Caution(batchnorm, scope, "untrained", tuple(range(len(scale))))]
    channels_by_kind = {
        "small-variance": wide < eps,
        "small-gamma": np.abs(scale) < SMALL_GAMMA,
        "large-scale": np.abs(scale / np.sqrt(wide + eps)) > LARGE_SCALE,
    }
    return [
        Caution(batchnorm, scope, kind, tuple(int(channel) for channel in np.flatnonzero(channels)))
        for kind, channels in channels_by_kind.items()
        if has_any(channels)
    ]
