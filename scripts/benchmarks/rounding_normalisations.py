"""Real normalisations in front of every kind of linear operator, written in every way: what bnfold makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import bnfold
from scripts.benchmarks.rounding_graphs import REAL, Builder, Case, Source, finish
from scripts.benchmarks.rounding_judge import Channel, judge

Array = np.ndarray


@dataclass(frozen=True)
class Normalisation:
    """Data and the constants that centre and scale it: `data` is mean, deviation and kind, each channel its own."""

    mean: tuple[float, ...]
    dev: tuple[float, ...]
    kind: str
    centre: tuple[float, ...]
    width: tuple[float, ...]

    def vectors(self, channels: int) -> tuple[Source, Array, Array]:
        """The data of so many channels, and centre and width of each."""
        mean, dev, centre, width = (
            np.resize(np.asarray(each, float), channels) for each in (self.mean, self.dev, self.centre, self.width)
        )
        return Source("", mean, dev, self.kind), centre, width


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE = (103.939, 116.779, 123.68), (58.4, 57.1, 57.4)
ROWS = {
    "ImageNet, unit image": Normalisation(*IMAGENET, "normal", *IMAGENET),
    "ImageNet, bytes": Normalisation(CAFFE[0], CAFFE[1], "integer", CAFFE[0], CAFFE[1]),
    "Caffe, bytes, no division": Normalisation(CAFFE[0], CAFFE[1], "integer", CAFFE[0], (1.0,)),
    "(x - 127.5) / 127.5, bytes": Normalisation((127.5,), (73.9,), "integer", (127.5,), (127.5,)),
    "(x - 0.5) / 0.5, unit image": Normalisation((0.5,), (0.2887,), "uniform", (0.5,), (0.5,)),
    "MNIST, unit image": Normalisation((0.1307,), (0.3081,), "normal", (0.1307,), (0.3081,)),
} | {
    name: Normalisation((mean,), (dev,), kind, (mean,), (dev,))
    for name, (mean, dev, kind) in REAL.items()
    if name not in ("8-bit image", "unit image")
}
FORMS = ("Sub, Div", "Sub, Mul", "Mul, Add", "BatchNormalization")
SINKS = ("Gemm", "MatMul", "Conv")


def case(row: Normalisation, form: str, sink: str, dtype: Any, seed: int) -> Case | None:
    """Normalisation and linear operator; None where the type cannot hold the data."""
    b = Builder(np.random.default_rng([16, seed]), dtype, 17)
    shape = (3, 5, 5) if sink == "Conv" else (12,)
    data, centre, width = row.vectors(shape[0])
    if np.abs(centre).max() * 1.5 > b.largest:
        return None
    b.values["x"], b.axes["x"] = data.draw(b.random, (64, *shape), 1, dtype).astype(np.float64), 1
    column = (-1, *[1] * (len(shape) - 1))
    flat = [centre, width, 1 / width, -centre / width]
    centred, wide, factor, offset = (each.reshape(column) for each in flat)
    if form == "BatchNormalization":
        parameters = (np.ones(shape[0]), np.zeros(shape[0]), centre, width**2)
        x = b.add(form, ["x", *map(b.constant, parameters)], epsilon=0.0)
    elif form == "Mul, Add":
        x = b.add("Add", [b.add("Mul", ["x", b.constant(factor)]), b.constant(offset)])
    else:
        x = b.add("Sub", ["x", b.constant(centred)])
        x = b.add("Div", [x, b.constant(wide)]) if form == "Sub, Div" else b.add("Mul", [x, b.constant(factor)])
    kernel = b.random.standard_normal((8, shape[0], 3, 3) if sink == "Conv" else (shape[0], 8))
    bias = b.constant(b.random.standard_normal(8))
    weight = b.constant(kernel / np.sqrt(kernel.size / 8))
    if sink == "MatMul":
        b.add("Add", [b.add("MatMul", [x, weight]), bias])
    else:
        b.add(sink, [x, weight, bias])
    return finish(b, data, shape, 1)


def table(seeds: int) -> Iterator[str]:
    """For each normalisation and type: what folds, and the largest error over the original's of any output channel."""
    yield (
        "| data | type | (mean + width) / width | "
        + " | ".join(f"{form}, {sink}" for form in FORMS for sink in SINKS)
        + " |"
    )
    yield "|---|---|---:|" + "---|" * (len(FORMS) * len(SINKS))
    for name, row in ROWS.items():
        for dtype in (np.float32, np.float16):
            cells = [cell(row, form, sink, dtype, seeds) for form in FORMS for sink in SINKS]
            if any(cells):
                wide = max(1 + abs(centre) / width for centre, width in zip(*row.vectors(3)[1:], strict=True))
                yield f"| {name} | {np.dtype(dtype).name} | {wide:.3g} | " + " | ".join(cells) + " |"


def cell(row: Normalisation, form: str, sink: str, dtype: Any, seeds: int) -> str:
    """How many of the nodes in front fold, and the worst channel; a violation in bold."""
    worst: list[Channel] = []
    note = ""
    for seed in range(seeds):
        made = case(row, form, sink, dtype, seed)
        if made is None:
            return ""
        result, outcomes = bnfold.fuse(made.model, return_outcomes=True)
        in_front = [each for each in outcomes if isinstance(each, bnfold.Fold)]
        refused = [str(each.reason) for each in outcomes if isinstance(each, bnfold.Refusal)]
        note = f"{len(in_front)}/{form.count(',') + 1}" + "".join(f" {reason}" for reason in refused)
        verdict = judge(made, result, seed)
        if verdict.wrong:
            return f"**{verdict.wrong}**"
        if in_front and verdict.worst:
            worst.append(verdict.worst)
    if not worst:
        return f"stays ({note})" if note else "stays"
    excess = max(channel.excess for channel in worst)
    ratio = max(channel.ratio for channel in worst)
    return f"{note} x{ratio:.2g}" if excess <= 1 else f"**{note} x{ratio:.2g}**"
