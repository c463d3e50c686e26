"""Graphs in which folding is known to lose digits, one for each way that it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import bnfold
from scripts.benchmarks.rounding_graphs import BATCH, REAL, Builder, Case, Source, finish
from scripts.benchmarks.rounding_judge import judge

Array = np.ndarray
Build = Callable[[Builder], None]

IMAGE, TABLE = (3, 5, 5), (4,)


def case(dtype: Any, data: Source, shape: tuple[int, ...], build: Build, *, is_described: bool = True) -> Case:
    b = Builder(np.random.default_rng(17), dtype, 17, is_described)
    b.values["x"], b.axes["x"] = data.draw(b.random, (BATCH, *shape), 1, dtype).astype(np.float64), 1
    build(b)
    made = finish(b, data, shape, 1)
    assert made is not None
    return made


def data(mean: Any, dev: Any, channels: int, kind: str = "normal") -> Source:
    return Source("", np.resize(np.asarray(mean, float), channels), np.resize(np.asarray(dev, float), channels), kind)


def real(name: str, channels: int) -> Source:
    return data(*REAL[name][:2], channels, REAL[name][2])


def norm(b: Builder, x: str, *, gamma: Any = 1.0, beta: Any = 0.0) -> str:
    """A BatchNorm with its input's own statistics; of mean 0 and variance 1 where the case is not described."""
    count = b.channels(x)
    mean, var = (b.per_channel(x, np.mean), b.per_channel(x, np.var)) if b.is_described else (0.0, 1.0)
    vectors = [np.resize(np.asarray(each, float), count) for each in (gamma, beta, mean, var)]
    return b.add("BatchNormalization", [x, *map(b.constant, vectors)])


def linear(b: Builder, x: str, *, size: float = 0.5, bias: float = 1.0, padded: bool = False) -> str:
    """A convolution of images, a Gemm of tables."""
    count, vector = b.channels(x), b.random.standard_normal(4) * bias
    if b.values[x].ndim == 2:
        weight = b.random.standard_normal((count, 4)) * size
        return b.add("Gemm", [x, b.constant(weight), b.constant(vector)])
    weight = b.random.standard_normal((4, count, 3, 3)) * size
    pads = {"pads": [1] * 4} if padded else {}
    return b.add("Conv", [x, b.constant(weight), b.constant(vector)], **pads)


def scaled_before_a_norm_that_stays(factor: float) -> Build:
    def build(b: Builder) -> None:
        linear(b, norm(b, b.add("Mul", ["x", b.constant(factor)])), padded=True)

    return build


def normalised(form: str) -> Build:
    def build(b: Builder) -> None:
        mean, dev = b.per_channel("x", np.mean), b.per_channel("x", np.std)
        if form == "BatchNormalization":
            linear(b, norm(b, "x"))
            return
        column = (-1, *[1] * (b.values["x"].ndim - 2))
        x = b.add("Sub", ["x", b.constant(mean.reshape(column))])
        linear(b, b.add("Div", [x, b.constant(dev.reshape(column))]))

    return build


def two_norms(*gammas: Any) -> Build:
    def build(b: Builder) -> None:
        x = "x"
        for gamma in gammas:
            x = norm(b, x, gamma=gamma)

    return build


def bordered(gamma: float, beta: float) -> Build:
    """The zeros around the padded convolution become ``mean - beta / scale``."""

    def build(b: Builder) -> None:
        linear(b, norm(b, "x", gamma=gamma, beta=beta), padded=True)

    return build


def tiny_column(b: Builder) -> None:
    """One input channel is much larger than the others, and its weights become as much smaller."""
    dev = b.per_channel("x", np.std).reshape(-1, *[1] * (b.values["x"].ndim - 2))
    linear(b, b.add("Div", ["x", b.constant(dev)]), size=0.004, bias=0.0)


def tiny_row(b: Builder) -> None:
    """One output channel has a tiny gamma."""
    norm(b, linear(b, "x"), gamma=[1.0, 1e-6, 1e-7, 1.0])


HALF, SINGLE = np.float16, np.float32
TRAPS: dict[str, Callable[[], Case]] = {
    "x * 255 before a BatchNorm that stays": lambda: case(
        SINGLE, data(0.5, 0.2887, 3, "uniform"), IMAGE, scaled_before_a_norm_that_stays(255.0)
    ),
    "x * 65535 before a BatchNorm that stays": lambda: case(
        SINGLE, data(0.5, 0.2887, 3, "uniform"), IMAGE, scaled_before_a_norm_that_stays(65535.0)
    ),
    "x * 1e-3, mean of 1e4 deviations, before a BatchNorm that stays": lambda: case(
        SINGLE, data(1e4, 1.0, 3), IMAGE, scaled_before_a_norm_that_stays(1e-3)
    ),
    "x * 255 before a BatchNorm that stays, float16": lambda: case(
        HALF, data(0.5, 0.2887, 3, "uniform"), IMAGE, scaled_before_a_norm_that_stays(255.0)
    ),
    "input channel of a Gemm becomes subnormal, float16": lambda: case(
        HALF, data([0.0] * 4, [1.0, 1.0, 8e3, 4e3], 4), TABLE, tiny_column
    ),
    "input channel of a convolution becomes subnormal, float16": lambda: case(
        HALF, data([0.0] * 3, [1.0, 8e3, 4e3], 3), IMAGE, tiny_column
    ),
    "output channel of a Gemm becomes subnormal, float16": lambda: case(HALF, data(0.0, 1.0, 4), TABLE, tiny_row),
    "gamma of BatchNorm after BatchNorm becomes subnormal, float16": lambda: case(
        HALF, data(0.0, 1e4, 3), IMAGE, two_norms([1e-2, 1e-3, 2e-3], [1.0, 4e-4, 3e-4]), is_described=False
    ),
    "fill of a border overflows, float16": lambda: case(HALF, data(0.0, 100.0, 1), (1, 5, 5), bordered(1e-3, 1.0)),
    "fill of a border overflows, float32": lambda: case(SINGLE, data(0.0, 1.0, 1), (1, 5, 5), bordered(1e-30, 1e10)),
    "fill of a border becomes subnormal, float16": lambda: case(
        HALF, data(0.0, 1e-5, 1), (1, 5, 5), bordered(10.0, 0.3)
    ),
    **{
        f"{name}, {form}, {np.dtype(dtype).name}": lambda name=name, form=form, dtype=dtype: case(  # type: ignore[misc]
            dtype, real(name, 4), TABLE, normalised(form)
        )
        for name in ("Unix time", "year", "pressure in Pa", "temperature in K", "ADC counts")
        for form in ("Sub, Div", "BatchNormalization")
        for dtype in (SINGLE, HALF)
        if dtype == SINGLE or name in ("year", "temperature in K")
    },
}


def traps() -> Iterator[str]:
    """A line for each: what bnfold does, and how the result compares."""
    for name, make in TRAPS.items():
        made = make()
        result, outcomes = bnfold.fuse(made.model, return_outcomes=True)
        verdict = judge(made, result, 0)
        done = ", ".join(
            f"{each.batchnorm} {each.reason}" if isinstance(each, bnfold.Refusal) else f"{type(each).__name__.lower()}s"
            for each in outcomes
        )
        found = verdict.wrong or (f"{verdict.worst.excess:.2g}" if verdict.worst else "")
        yield f"{'WRONG' if verdict.is_violation else 'right'}  {name}: {found}; {done or 'nothing folds'}"
