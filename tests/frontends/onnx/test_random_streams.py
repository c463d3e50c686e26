"""Random streams that many blocks read and add to: never wrong, each fold proved, and a second fuse finds nothing.

Set BNFOLD_EXAMPLES to draw more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest

from bnfold import Fold, Outcome
from tests.toys.onnx_graphs import Array, fuse, model, node

EXAMPLES = int(os.environ.get("BNFOLD_EXAMPLES", "400"))
CHUNK = 50

Stream = tuple[str, int, int]
"""A value with its channels and its side."""


@dataclass
class Builder:
    """A network under construction, with the values that may be read again."""

    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    taken: list[Stream] = field(default_factory=list)

    def one_of(self, count: int) -> bool:
        return bool(self.random.integers(count) == 0)

    def constant(self, array: Array) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = array
        return name

    def add(self, op: str, inputs: str, channels: int, side: int, **attributes: object) -> Stream:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, inputs, name, **attributes))
        self.taken.append((name, channels, side))
        return self.taken[-1]

    def norm(self, x: Stream) -> Stream:
        """A BatchNorm, mostly of positive scales, seldom of a scale of zero or a tiny one."""
        c = x[1]
        gamma = self.random.uniform(0.3, 1.5, c)
        if self.one_of(6):
            gamma *= self.random.choice([1, -1], c)
        if self.one_of(8):
            gamma[self.random.integers(c)] = self.random.choice([0.0, 1e-3])
        beta = np.zeros(c) if self.one_of(8) else self.random.standard_normal(c)
        if gamma[0] == 0 and self.one_of(2):
            beta[0] = 0
        given = gamma, beta, self.random.standard_normal(c), self.random.random(c) + 0.5
        names = " ".join(map(self.constant, given))
        return self.add("BatchNormalization", f"{x[0]} {names}", c, x[2])

    def conv(self, x: Stream, channels: int) -> Stream:
        """A convolution that keeps the side, padded or not."""
        taps, groups = self.random.choice([1, 3]), 1
        if x[1] == channels and self.one_of(4):
            groups = channels
        kernel = self.random.standard_normal((channels, x[1] // groups, taps, taps)) / np.sqrt(x[1] * taps**2 / groups)
        bias = f" {self.constant(self.random.standard_normal(channels))}" if self.one_of(2) else ""
        pads = [int(taps // 2)] * 4
        return self.add("Conv", f"{x[0]} {self.constant(kernel)}{bias}", channels, x[2], pads=pads, group=groups)

    def again(self, channels: int, side: int) -> Stream | None:
        """A value of this shape that is there already."""
        found = [each for each in self.taken if each[1:] == (channels, side)]
        return found[self.random.integers(len(found))] if found else None


def activation(b: Builder, x: Stream) -> Stream:
    return b.add(str(b.random.choice(["Relu"] * 5 + ["LeakyRelu", "Sigmoid", "Identity"])), x[0], *x[1:])


def branch(b: Builder, x: Stream, channels: int) -> Stream:
    """What a block makes of its stream."""
    y = b.norm(x) if not b.one_of(6) else x
    y = activation(b, y) if not b.one_of(8) else y
    y = b.conv(y, channels)
    if b.one_of(3):
        y = b.conv(activation(b, b.norm(y)), channels)
    if b.one_of(8):
        gate = b.add("Sigmoid", b.conv(b.add("GlobalAveragePool", y[0], channels, 1), channels)[0], channels, 1)
        y = b.add("Mul", f"{y[0]} {gate[0]}", channels, y[2])
    return y


def residual(b: Builder, x: Stream) -> Stream:
    y = branch(b, x, x[1])
    op, first, second = str(b.random.choice(["Add"] * 4 + ["Sub", "Sum"])), x[0], y[0]
    if b.one_of(4) and (other := b.again(*x[1:])):
        first = other[0]
    if b.one_of(4):
        first, second = second, first
    return b.add(op, f"{first} {second}", *x[1:])


def dense(b: Builder, x: Stream) -> Stream:
    y = branch(b, x, 2)
    return b.add("Concat", f"{x[0]} {y[0]}", x[1] + 2, x[2], axis=1)


def cut(b: Builder, x: Stream) -> Stream:
    if x[1] < 4:
        return x
    sizes = b.constant(np.asarray([2, x[1] - 2], np.int64))
    name = f"v{len(b.nodes)}"
    b.nodes.append(node("Split", f"{x[0]} {sizes}", f"{name} {name}b", axis=1))
    b.taken += [(name, 2, x[2]), (f"{name}b", x[1] - 2, x[2])]
    return b.taken[-1]


def pool(b: Builder, x: Stream) -> Stream:
    if x[2] < 3:
        return x
    if b.one_of(2):
        return b.add("MaxPool", x[0], *x[1:], kernel_shape=[3, 3], pads=[1] * 4)
    return b.add("AveragePool", x[0], x[1], x[2] - 1, kernel_shape=[2, 2])


def gated(b: Builder, x: Stream) -> Stream:
    """A vector for each channel, broadcast over the positions, or a map over the positions for all channels."""
    vector = b.one_of(2)
    y = b.conv(b.add("GlobalAveragePool", x[0], x[1], 1), x[1]) if vector else b.conv(x, 1)
    return b.add("Add", f"{x[0]} {y[0]}", *x[1:])


def twice(b: Builder, x: Stream) -> Stream:
    if b.one_of(2):
        return b.add(str(b.random.choice(["Add", "Sub"])), f"{x[0]} {x[0]}", *x[1:])
    return b.add("Concat", f"{x[0]} {x[0]}", 2 * x[1], x[2], axis=1)


STEPS = [residual] * 6 + [dense] * 3 + [cut, pool, gated, twice, lambda b, x: b.conv(x, x[1])]


def build(seed: int) -> onnx.ModelProto:
    b = Builder(np.random.default_rng(seed))
    channels, side = int(b.random.integers(2, 5)), int(b.random.integers(3, 6))
    x = b.conv(("x", 3, side), channels)
    for _ in range(int(b.random.integers(1, 6))):
        if x[1] <= 12:
            x = STEPS[b.random.integers(len(STEPS))](b, x)
    if b.one_of(2):
        x = b.conv(activation(b, b.norm(x)), 3)
    read = {name for each in b.nodes for name in each.input}
    ends = [name for name, *_ in b.taken if name not in read or (b.one_of(40))]
    return model(b.nodes, b.constants, (2, 3, side, side), outputs=" ".join(ends), opset=18, ir_version=9)


def check(seed: int) -> tuple[Outcome, ...]:
    return fuse(build(seed), 1e-12)[1]


@pytest.mark.parametrize("start", range(0, EXAMPLES, CHUNK))
def test_random_streams_are_never_wrong(start: int) -> None:
    found = [each for seed in range(start, start + CHUNK) for each in check(seed)]
    both = [each for each in found if isinstance(each, Fold) and each.direction == "both"]
    assert len(both) >= CHUNK // 5


@pytest.mark.parametrize("seed", [1005, 11003], ids=["a part of a sum loses digits", "shifts that nearly cancel"])
def test_streams_that_were_hard(seed: int) -> None:
    """A second fuse folded what the first had refused; and a fold whose shifts add up to little was not proved."""
    check(seed)
