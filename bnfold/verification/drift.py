"""Whether data still look as the statistics of the BatchNorms say: a model is folded with those of its training.

The original runs on the data that the caller gives, and each BatchNorm is told by what it reads: how far the mean of a
channel lies from its running mean, in running standard deviations, and how much larger its variance is. Beside the
first stands what chance explains, twice the standard error of the mean over the samples: elements of one sample are
not independent, samples are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Array, Statistics
from bnfold.errors import NoEvidenceError
from bnfold.frontends.door import find_entry, open_model
from bnfold.frontends.limits import LIMITS, Limits
from bnfold.frontends.protocol import OpenOptions
from bnfold.graph.ops import ChannelAffine, Opaque
from bnfold.runtimes.inputs import InputOptions, find_given


@dataclass(frozen=True, eq=False)
class Drift:
    """One BatchNorm beside the data that it reads; a number for each channel.

    Attributes:
        name, scope: of the BatchNorm.
        shift: mean of the data less running mean, in running standard deviations.
        chance: how large that may be by chance, 95 times in 100; NaN for a single sample.
        ratio: variance of the data over running variance.
    """

    name: str
    scope: str
    shift: Array
    chance: Array
    ratio: Array

    @property
    def beyond(self) -> Array:
        """How much of the shift chance does not explain."""
        found: Array = np.maximum(np.abs(self.shift) - np.nan_to_num(self.chance), 0.0)
        return found

    @property
    def farthest(self) -> int:
        """The channel whose mean is farthest off, beside what chance explains."""
        return int(np.argmax(self.beyond))

    @property
    def strangest(self) -> int:
        """The channel that varies, and whose variance is the least like the running one."""
        return int(np.argmax(np.abs(np.log(np.where(self.ratio > 0, self.ratio, 1.0)))))

    @property
    def still(self) -> list[int]:
        """The channels that do not vary at all."""
        return [int(channel) for channel in np.flatnonzero(self.ratio == 0)]


@dataclass(frozen=True)
class DriftReport:
    """All BatchNorms of the main graph beside the data.

    Attributes:
        samples: how many there were: the sizes of the first axis, in all sets of inputs.
        drifts: in graph order.
        is_untrained: whether all running statistics are those that a new BatchNorm has, mean 0 and variance 1.
        left_out: how many BatchNorms are not told of: in bodies, in training mode, with parameters that are computed,
            or on a tensor that is written into.
    """

    samples: int
    drifts: tuple[Drift, ...]
    is_untrained: bool
    left_out: int = 0

    @property
    def largest(self) -> float:
        """The largest shift that chance does not explain, in running standard deviations."""
        return max((float(drift.beyond.max(initial=0.0)) for drift in self.drifts), default=0.0)


@dataclass(eq=False)
class _Sums:
    """What is added up of the data that a BatchNorm reads, for each channel."""

    axis: int
    samples: int = 0
    elements: int = 0
    means: Array | float = 0.0
    squared_means: Array | float = 0.0
    total: Array | float = 0.0
    squares: Array | float = 0.0
    origin: Array = field(default_factory=lambda: np.zeros(0))

    def add(self, data: npt.NDArray[Any]) -> None:
        """Take note of one more batch, less the running mean, so that no digits cancel."""
        shape = [1] * data.ndim
        shape[self.axis] = -1
        wide = data.astype(np.float64) - self.origin.reshape(shape)
        others = tuple(axis for axis in range(1, data.ndim) if axis != self.axis)
        means = wide.mean(axis=others)
        self.samples += len(data)
        self.elements += data.size // max(1, data.shape[self.axis])
        self.means = self.means + means.sum(axis=0)
        self.squared_means = self.squared_means + (means**2).sum(axis=0)
        self.total = self.total + wide.sum(axis=(0, *others))
        self.squares = self.squares + (wide**2).sum(axis=(0, *others))

    def drift(self, name: str, scope: str, statistics: Statistics) -> Drift:
        """Beside the running statistics."""
        deviation = np.sqrt(statistics.variance)
        mean = self.total / self.elements
        variance = np.maximum(self.squares / self.elements - mean**2, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.maximum(self.squared_means / self.samples - (self.means / self.samples) ** 2, 0.0)
            error = np.sqrt(spread / (self.samples - 1)) if self.samples > 1 else np.full(np.shape(mean), np.nan)
            return Drift(
                name, scope, mean / deviation, 2 * np.asarray(error) / deviation, variance / statistics.variance
            )


def measure_drift(
    model: Path, inputs: InputOptions, limits: Limits = LIMITS, custom_ops: Sequence[Path] = ()
) -> DriftReport:
    """Run a model on the caller's data, and compare what its BatchNorms read with their running statistics.

    Args:
        model: an `.onnx` or `.pt2` file.
        inputs: the data.
        limits: how much the model may ask for.
        custom_ops: libraries of custom operators for ONNX Runtime.

    Raises:
        NoEvidenceError: no data is given, or a BatchNorm reads what is no number.
        BnfoldError: the model or the data cannot be read, or the model does not run.
    """
    if not inputs.is_given:
        raise NoEvidenceError("no inputs are given: drawn ones tell nothing of statistics")
    graph = open_model(model, OpenOptions(limits=limits)).graph
    found: dict[Any, tuple[Statistics, str, _Sums]] = {}
    left_out = 0
    for node in graph.nodes():
        op = graph.op(node)
        if not isinstance(op, ChannelAffine | Opaque) or not op.is_batchnorm:
            continue
        statistics = op.affine.statistics if isinstance(op, ChannelAffine) and graph.scope(node) == "main" else None
        if isinstance(op, Opaque) or statistics is None or not (statistics.variance > 0).all():
            left_out += 1
            continue
        (value,) = graph.inputs(node)
        found[node] = statistics, value.name, _Sums(op.affine.axis, origin=statistics.mean)
    names = list(dict.fromkeys(name for _, name, _ in found.values()))
    start = find_entry(model).part(find_entry(model).subject).start_inside
    declared, run = start(model, limits, names, custom_ops)
    samples = 0
    for sample in find_given(declared, inputs):
        samples += max((len(array) for array in sample.feeds.values() if array.ndim), default=1)
        made: Mapping[str, npt.NDArray[Any]] = run(sample.feeds)
        for _, name, sums in found.values():
            sums.add(made[name])
    drifts = tuple(
        sums.drift(graph.name(node), graph.scope(node), statistics) for node, (statistics, _, sums) in found.items()
    )
    unclear = [drift.name for drift in drifts if not (np.isfinite(drift.shift) & np.isfinite(drift.ratio)).all()]
    if unclear:
        raise NoEvidenceError(
            f"{model}: {unclear[0]!r} reads NaN or infinity on these inputs, so they tell nothing of it"
        )
    return DriftReport(samples, drifts, _are_new([statistics for statistics, _, _ in found.values()]), left_out)


def _are_new(all_statistics: Sequence[Statistics]) -> bool:
    return bool(all_statistics) and all(
        not each.mean.any() and bool((np.abs(each.variance - 1) <= 1e-3).all()) for each in all_statistics
    )
