"""Random small ONNX graphs that stress floating point, with inputs as their BatchNorms' statistics describe them.

A graph is computed in float64 on a calibration batch while it is built, so a BatchNorm's running mean and variance, and
the constants of a normalisation, are those of the data that reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from scripts.benchmarks.node_evaluator import EXACT, apply

Array = np.ndarray
Draw = Callable[[int], Array]
"""Makes so many samples of the input, in float64."""

BATCH = 64


class UnusableError(Exception):
    """The graph that was drawn has values that its type cannot hold."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model, and the data that it is for.

    Attributes:
        model: the original.
        axes: the channel axis of each output.
        draw: makes samples of the input `x`, of the input's type.
        is_described: whether the BatchNorms' statistics are those of the data.
        note: a few words on data and graph.
    """

    model: onnx.ModelProto
    axes: tuple[int, ...]
    draw: Callable[[np.random.Generator], Array]
    is_described: bool
    note: str

    @property
    def limit(self) -> np.finfo[Any]:
        """The limits of the model's type."""
        kind = self.model.graph.output[0].type.tensor_type.elem_type
        return np.finfo(helper.tensor_dtype_to_np_dtype(kind))


@dataclass
class Builder:
    """A graph under construction, and its values on the calibration batch."""

    random: np.random.Generator
    dtype: Any
    opset: int
    is_described: bool = True
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    @property
    def largest(self) -> float:
        """What no value on the calibration batch may exceed."""
        return float(np.finfo(self.dtype).max) / 4

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.random.integers(len(options)))]

    def spread(self, low: float, high: float, size: Any = None) -> Any:
        """Numbers from ``10**low`` to ``10**high``, uniform in the exponent."""
        return 10.0 ** self.random.uniform(low, high, size)

    def signs(self, size: Any) -> Array:
        return self.random.choice([-1.0, 1.0], size)

    def channels(self, name: str) -> int:
        return int(self.values[name].shape[self.axes[name]])

    def per_channel(self, name: str, function: Callable[..., Array]) -> Array:
        """A statistic of a value for each channel."""
        value = self.values[name]
        others = tuple(axis for axis in range(value.ndim) if axis != self.axes[name])
        return function(value, axis=others)

    def constant(self, array: Any) -> str:
        stored = np.asarray(array, np.float64)
        with np.errstate(all="ignore"):
            stored = stored.astype(self.dtype)
        if not np.isfinite(stored).all():
            raise UnusableError
        name = f"k{len(self.constants)}"
        self.constants[name] = stored
        return name

    def integers(self, values: Sequence[int]) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(values, np.int64)
        return name

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        node = helper.make_node(op, inputs, [f"v{len(self.nodes)}"], name=f"{op}_{len(self.nodes)}", **attributes)
        known = {**self.constants, **self.values}
        arrays = [known[name].astype(np.float64) if known[name].dtype.kind == "f" else known[name] for name in inputs]
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        with np.errstate(all="ignore"):
            value = apply(op, arrays, attributes, EXACT)  # type: ignore[arg-type]
        if value.size == 0 or not np.isfinite(value).all() or np.abs(value).max() > self.largest:
            raise UnusableError
        self.nodes.append(node)
        self.read.update(inputs)
        self.values[node.output[0]] = value
        self.axes[node.output[0]] = self.axes[inputs[0]]
        return str(node.output[0])

    def attempt(self, stage: Callable[[Builder, str], str], name: str) -> str | None:
        """What a stage makes of a value; the graph as it was where that is of no use."""
        count, read = len(self.nodes), set(self.read)
        try:
            return stage(self, name)
        except UnusableError:
            for node in self.nodes[count:]:
                del self.values[node.output[0]], self.axes[node.output[0]]
            del self.nodes[count:]
            self.read = read
            return None

    def shaped(self, name: str, vector: Array) -> Array:
        """A vector of one number a channel, so that it broadcasts along a value's channel axis."""
        value, axis = self.values[name], self.axes[name]
        tail = [1] * (value.ndim - axis - 1)
        return vector.reshape([1] * axis + [-1, *tail] if self.chance(0.5) else [-1, *tail])

    def sibling(self, name: str) -> str | None:
        """Another value of the same shape."""
        shape, axis = self.values[name].shape, self.axes[name]
        names = [
            other
            for other, value in self.values.items()
            if value.shape == shape and self.axes[other] == axis and other != name
        ]
        return self.pick(names) if names else None


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Source:
    """A distribution of inputs, the same for all positions; mean and deviation for each channel."""

    name: str
    mean: Array
    dev: Array
    kind: str = "normal"

    def draw(self, random: np.random.Generator, shape: tuple[int, ...], axis: int, dtype: Any) -> Array:
        view = [-1 if k == axis else 1 for k in range(len(shape))]
        is_normal = self.kind == "normal"
        drawn = random.standard_normal(shape) if is_normal else random.uniform(-(3**0.5), 3**0.5, shape)
        array = self.mean.reshape(view) + self.dev.reshape(view) * drawn
        return (np.round(array) if self.kind == "integer" else array).astype(dtype)


REAL = {
    "Unix time": (1.7e9, 1e4, "normal"),
    "year": (2000.0, 15.0, "integer"),
    "pressure in Pa": (101325.0, 800.0, "normal"),
    "pressure in hPa": (1013.25, 8.0, "normal"),
    "temperature in K": (290.0, 10.0, "normal"),
    "latitude": (48.2, 0.05, "normal"),
    "ADC counts": (32768.0, 40.0, "integer"),
    "16-bit image, dark": (1200.0, 60.0, "integer"),
    "16-bit image, bright": (41000.0, 300.0, "integer"),
    "16-bit image": (32767.5, 18918.0, "integer"),
    "8-bit image": (127.5, 73.9, "integer"),
    "unit image": (0.5, 0.2887, "uniform"),
}
"""Mean, deviation and kind of real data."""


def source(b: Builder, channels: int) -> Source:
    """Either real data or any ratio of mean to deviation."""
    largest = float(np.finfo(b.dtype).max)
    ones = np.ones(channels)
    if b.chance(0.5):
        name = b.pick([name for name, (mean, dev, _) in REAL.items() if mean + 6 * dev < largest / 4])
        mean, dev, kind = REAL[name]
        jitter = b.random.uniform(0.8, 1.25, channels) if b.chance(0.5) else ones
        return Source(name, mean * ones, dev * jitter, kind)
    is_half = b.dtype == np.float16
    dev = b.spread(-2, 1.5, channels) if is_half else b.spread(-3, 3, channels)
    if b.chance(0.3):
        dev = ones * dev[0]
    if b.chance(0.3):
        return Source("centred", 0 * ones, dev)
    ratio = b.spread(-1, 2.5 if is_half else 6, channels)
    if b.chance(0.4):
        ratio = ones * ratio[0]
    mean = b.signs(channels) * ratio * dev
    if np.abs(mean).max() + 6 * dev.max() > largest / 4:
        raise UnusableError
    return Source(f"mean/dev {ratio.min():.0e}..{ratio.max():.0e}", mean, dev, b.pick(["normal", "uniform"]))


# -------------------------------------------------------------------------------------------------------------- stages


def standardise(b: Builder, x: str) -> str:
    """``(x - mean) / dev`` with the data's own statistics, in one of the ways that people write it."""
    mean, dev = b.per_channel(x, np.mean), b.per_channel(x, np.std)
    if b.chance(0.3):
        mean, dev = np.full_like(mean, mean.mean()), np.full_like(dev, dev.mean())
    dev = np.where(dev > 0, dev, 1.0)
    scalar = np.ptp(mean) == 0 and np.ptp(dev) == 0 and b.chance(0.6)

    def put(op: str, name: str, vector: Array) -> str:
        array = vector[0] if scalar else b.shaped(name, vector)
        return b.add(op, [name, b.constant(array)])

    form = int(b.random.integers(5))
    if form == 0:
        return put("Div", put("Sub", x, mean), dev)
    if form == 1:
        return put("Mul", put("Sub", x, mean), 1 / dev)
    if form == 2:
        return put("Add", put("Mul", x, 1 / dev), -mean / dev)
    if form == 3:
        return put("Sub", put("Div", x, dev), mean / dev)
    return put("Div", put("Add", x, -mean), dev)


def rescale(b: Builder, x: str) -> str:
    """A change of units."""
    factor = b.pick([255.0, 65535.0, 1000.0, 100.0, 1 / 255, 1 / 65535, 1e-3, 2.0])
    op = b.pick(["Mul", "Div"])
    stored = factor if op == "Mul" else 1 / factor
    array = b.pick([stored, [stored], b.shaped(x, np.full(b.channels(x), stored))])
    return b.add(op, [x, b.constant(array)])


def arithmetic(b: Builder, x: str) -> str:
    """Any affine per channel."""
    op = b.pick(["Mul", "Add", "Sub", "Div"])
    count = b.channels(x)
    if op in ("Add", "Sub"):
        size = b.per_channel(x, np.std).max() + 1e-30
        vector = b.random.standard_normal(count) * size * b.spread(-2, 3)
    else:
        vector = b.signs(count) * b.spread(-1, 1, count) * b.spread(-3, 3)
    return b.add(op, [x, b.constant(b.shaped(x, vector))])


def gammas(b: Builder, count: int) -> Array:
    """Usual ones, small ones, those that end up below the type's normal range, none."""
    kind = b.random.random()
    gamma = b.random.uniform(0.3, 2, count) if kind < 0.5 else b.spread(-8, 3, count)
    if kind > 0.8:
        gamma = np.where(b.random.random(count) < 0.5, b.spread(-8, -2, count), b.random.uniform(0.3, 2, count))
    gamma = gamma * (b.signs(count) if b.chance(0.5) else 1.0)
    return np.where(b.random.random(count) < 0.07, 0.0, gamma)


def batchnorm(b: Builder, x: str) -> str:
    """A BatchNorm whose statistics are those of its input, or nearly; any where the case is not described."""
    if b.values[x].ndim < 2 or b.axes[x] != 1:
        raise UnusableError
    count = b.channels(x)
    gamma = gammas(b, count)
    beta = b.pick([np.zeros(count), b.random.standard_normal(count), b.random.standard_normal(count) * b.spread(-3, 2)])
    epsilon = b.pick([1e-5, 1e-5, 1e-3, 1e-12, 0.0])
    if b.is_described:
        mean, var = b.per_channel(x, np.mean), b.per_channel(x, np.var)
        if b.chance(0.5):
            mean = mean + 0.05 * np.sqrt(var) * b.random.standard_normal(count)
            var = var * b.random.uniform(0.93, 1.07, count)
    else:
        var = b.spread(-12, 8 if b.dtype == np.float32 else 4, count) * (b.random.random(count) > 0.1)
        mean = b.signs(count) * np.sqrt(var) * b.spread(-2, 6 if b.dtype == np.float32 else 3, count)
    with np.errstate(all="ignore"):
        if (var.astype(b.dtype) + epsilon <= 0).any():
            epsilon = 1e-5
    extra = {"epsilon": epsilon} if epsilon != 1e-5 or b.chance(0.5) else {}
    return b.add("BatchNormalization", [x, *map(b.constant, (gamma, beta, mean, var))], **extra)


def weights(b: Builder, shape: tuple[int, ...], fan_in: int, x: str, *axes: int) -> Array:
    """A kernel: usual, all of one sign, or with rows or columns near or below the type's normal range."""
    kernel = b.random.standard_normal(shape) / np.sqrt(fan_in)
    if b.chance(0.25):
        kernel = np.abs(kernel)
    if b.chance(0.3):
        kernel = kernel * b.spread(-3, 2)
    if b.chance(0.25):
        axis = b.pick(axes)
        low = -7 if b.dtype == np.float16 else -38
        factor = np.where(b.random.random(shape[axis]) < 0.4, b.spread(low, low / 3), 1.0)
        kernel = kernel * factor.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    if b.chance(0.2):  # one input channel weighs in as much as another that is larger
        axis = axes[0]
        factor = b.spread(-4 if b.dtype == np.float16 else -12, 0, shape[axis])
        kernel = kernel * factor.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    if b.chance(0.3) and np.abs(b.values[x]).max() > 0:  # keeps what follows in range
        kernel = kernel / np.abs(b.values[x]).max()
    return kernel


def bias(b: Builder, count: int, size: float) -> Array:
    return b.pick(
        [
            np.zeros(count),
            b.random.standard_normal(count) * size,
            b.random.standard_normal(count) * size * b.spread(-8, 3),
            b.random.standard_normal(count) * 1e-7,
        ]
    )


def conv(b: Builder, x: str) -> str:
    """1d or 2d; padded or not; grouped, depthwise or neither; with a bias or without."""
    value = b.values[x]
    rank = value.ndim - 2
    if rank < 1 or b.axes[x] != 1:
        raise UnusableError
    count = value.shape[1]
    k = b.pick([k for k in (1, 2, 3) if k <= min(value.shape[2:])])
    group = b.pick([1, 1, 1, count, 2 if count % 2 == 0 else 1])
    out = group * int(b.random.integers(1, 4)) if group > 1 else b.pick([2, 3, 4])
    fan_in = count // group * k**rank
    pads = [int(b.random.integers(0, k))] * 2 * rank if b.chance(0.4) else [0] * 2 * rank
    kernel = weights(b, (out, count // group, *[k] * rank), fan_in, x, 1, 0)
    extra: dict[str, Any] = {"group": group} if group > 1 else {}
    if any(pads):
        extra["pads"] = pads
    if b.chance(0.1):
        extra["strides"] = [2] * rank
    inputs = [x, b.constant(kernel)]
    if b.chance(0.6):
        inputs.append(b.constant(bias(b, out, float(np.abs(kernel).max() * np.abs(value).max()))))
    return b.add("Conv", inputs, **extra)


def conv_transpose(b: Builder, x: str) -> str:
    value = b.values[x]
    rank = value.ndim - 2
    if rank < 1 or b.axes[x] != 1 or max(value.shape[2:]) > 6:
        raise UnusableError
    count, k = value.shape[1], b.pick([1, 2, 3])
    group = b.pick([1, 1, 1, count, 2 if count % 2 == 0 else 1])
    out = b.pick([1, 2, 3])
    kernel = weights(b, (count, out, *[k] * rank), count // group * k, x, 0, 1)
    extra: dict[str, Any] = {"group": group} if group > 1 else {}
    if b.chance(0.3) and k == 3:
        extra["pads"] = [1] * 2 * rank
    if b.chance(0.4):
        extra["strides"] = [2] * rank
    inputs = [x, b.constant(kernel)]
    if b.chance(0.6):
        inputs.append(b.constant(bias(b, out * group, float(np.abs(kernel).max() * np.abs(value).max()))))
    return b.add("ConvTranspose", inputs, **extra)


def gemm(b: Builder, x: str) -> str:
    if b.values[x].ndim != 2:
        raise UnusableError
    fan_in, out = b.values[x].shape[1], b.pick([2, 3, 5])
    transposed = b.chance(0.5)
    kernel = weights(b, (fan_in, out), fan_in, x, 0, 1)
    inputs = [x, b.constant(kernel.T if transposed else kernel)]
    if b.chance(0.7) or b.opset < 11:
        inputs.append(b.constant(bias(b, out, float(np.abs(kernel).max() * np.abs(b.values[x]).max()))))
    extra: dict[str, Any] = {"transB": 1} if transposed else {}
    if b.chance(0.1):
        extra |= {"alpha": 0.5, "beta": 2.0}
    return b.add("Gemm", inputs, **extra)


def matmul(b: Builder, x: str) -> str:
    value = b.values[x]
    if b.axes[x] != value.ndim - 1:
        raise UnusableError
    fan_in, out = value.shape[-1], b.pick([2, 3, 5])
    kernel = weights(b, (fan_in, out), fan_in, x, 0, 1)
    y = b.add("MatMul", [x, b.constant(kernel)])
    if b.chance(0.6):
        y = b.add("Add", [y, b.constant(bias(b, out, float(np.abs(kernel).max() * np.abs(value).max())))])
    return y


def linear(b: Builder, x: str) -> str:
    if b.values[x].ndim == 2:
        return b.pick([gemm, gemm, matmul])(b, x)
    if b.axes[x] != 1:
        return matmul(b, x)
    return b.pick([conv, conv, conv, conv_transpose])(b, x)


def activation(b: Builder, x: str) -> str:
    op = b.pick(["Relu", "Relu", "LeakyRelu", "Identity"])
    return b.add(op, [x], **({"alpha": 0.1} if op == "LeakyRelu" else {}))


def pool(b: Builder, x: str) -> str:
    value = b.values[x]
    rank = value.ndim - 2
    if rank < 1 or b.axes[x] != 1 or min(value.shape[2:]) < 2:
        raise UnusableError
    op = b.pick(["MaxPool", "AveragePool", "AveragePool", "GlobalAveragePool"])
    if op == "GlobalAveragePool":
        return b.add(op, [x])
    extra: dict[str, Any] = {"kernel_shape": [2] * rank}
    if b.chance(0.3):
        extra["pads"] = [1] * 2 * rank
        if op == "AveragePool":
            extra["count_include_pad"] = int(b.random.integers(2))
    return b.add(op, [x], **extra)


def pad(b: Builder, x: str) -> str:
    """A constant border: zero, a usual value, or one near the type's limits."""
    value = b.values[x]
    rank = value.ndim - 2
    if rank < 1 or b.axes[x] != 1 or max(value.shape[2:]) > 6:
        raise UnusableError
    size = float(np.abs(value).max()) + 1e-30
    fill = b.pick([0.0, 0.0, size, -0.5 * size, float(b.values[x].mean()), size * b.spread(-6, 3)])
    fill = float(np.clip(fill, -b.largest, b.largest))
    ends = [0, 0, *[1] * rank] * 2
    if b.opset < 11:
        return b.add("Pad", [x], pads=ends, value=fill)
    inputs = [x, b.integers(ends)]
    if fill or b.chance(0.5):
        inputs.append(b.constant(fill))
    return b.add("Pad", inputs)


def join(b: Builder, x: str) -> str:
    """A sum or a concatenation with an earlier value of the same shape."""
    other = b.sibling(x)
    if other is None:
        raise UnusableError
    op = b.pick(["Add", "Sub", "Sum", "Concat"])
    return b.add(op, [x, other], **({"axis": b.axes[x]} if op == "Concat" else {}))


def branches(b: Builder, x: str) -> str:
    """Two linear operators on one value, each with a BatchNorm or not, and their sum or concatenation."""
    first = linear(b, x)
    if b.chance(0.7):
        first = batchnorm(b, first)
    for _ in range(8):
        if y := b.attempt(lambda b, name: second_branch(b, name, first), x):
            return y
    return first


def second_branch(b: Builder, x: str, first: str) -> str:
    second = linear(b, x) if b.chance(0.8) else x
    if b.chance(0.7):
        second = batchnorm(b, second)
    if b.values[second].shape != b.values[first].shape:
        raise UnusableError
    op = b.pick(["Add", "Add", "Sum", "Concat"])
    return b.add(op, [first, second], **({"axis": b.axes[first]} if op == "Concat" else {}))


def flatten(b: Builder, x: str) -> str:
    if b.values[x].ndim < 3 or b.axes[x] != 1:
        raise UnusableError
    return b.add("Flatten", [x], axis=1)


STAGES: list[tuple[int, Callable[[Builder, str], str]]] = [
    (26, linear),
    (26, batchnorm),
    (8, activation),
    (5, pool),
    (5, pad),
    (6, arithmetic),
    (4, rescale),
    (4, standardise),
    (6, join),
    (6, branches),
    (4, flatten),
]


def front(b: Builder, x: str) -> str:
    """What people put in front of a network."""
    kind = int(b.random.integers(6))
    if kind == 0:
        return x
    if kind == 1:
        return rescale(b, x)
    if kind == 2:
        return standardise(b, x)
    if kind == 3:
        return standardise(b, rescale(b, x))
    if kind == 4:
        return batchnorm(b, x)
    return batchnorm(b, rescale(b, x))


def grow(b: Builder, x: str) -> None:
    """A front, then a few stages, each on the newest value or, now and then, on an older one."""
    weight = np.asarray([each for each, _ in STAGES], float)
    b.attempt(front, x)
    wanted = len(b.nodes) + int(b.random.integers(2, 7))
    for _ in range(40):
        if len(b.nodes) >= wanted:
            return
        names = list(b.values)
        name = names[-1] if b.chance(0.85) else b.pick(names)
        stage = STAGES[b.random.choice(len(STAGES), p=weight / weight.sum())][1]
        b.attempt(stage, name)


SHAPES: dict[str, Callable[[Builder], tuple[tuple[int, ...], int]]] = {
    "table": lambda b: ((b.pick([2, 3, 4, 6]),), 1),
    "sequence": lambda b: ((b.pick([2, 3]), b.pick([2, 3, 4])), 2),
    "signal": lambda b: ((b.pick([2, 3, 4]), b.pick([4, 6])), 1),
    "image": lambda b: ((b.pick([1, 2, 3, 4]), b.pick([3, 4, 5]), b.pick([4, 5])), 1),
}


def random_case(seed: int) -> Case | None:
    """The graph of a seed; None where what was drawn cannot be used."""
    random = np.random.default_rng([13, seed])
    dtype = np.float16 if random.random() < 0.4 else np.float32
    b = Builder(random, dtype, int(random.integers(7, 22)), is_described=bool(random.random() < 0.85))
    kind = b.pick(["table", "table", "sequence", "signal", "image", "image", "image"])
    shape, axis = SHAPES[kind](b)
    try:
        data = source(b, shape[axis - 1])
    except UnusableError:
        return None
    given = data.draw(random, (BATCH, *shape), axis, dtype)
    b.values["x"], b.axes["x"] = given.astype(np.float64), axis
    grow(b, "x")
    return finish(b, data, shape, axis)


def finish(b: Builder, data: Source, shape: tuple[int, ...], axis: int) -> Case | None:
    """The model of what was built; every value that nothing reads is an output."""
    ends = [name for name in b.values if name not in b.read and name != "x"]
    if not ends:
        return None
    if b.chance(0.1):
        extra = b.pick(list(b.values))
        ends += [extra] if extra not in (*ends, "x") else []
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(b.dtype))
    outputs = [helper.make_tensor_value_info(name, kind, b.values[name].shape) for name in ends]
    inputs = [helper.make_tensor_value_info("x", kind, b.values["x"].shape)]
    used = {name for node in b.nodes for name in node.input}
    initializers = [numpy_helper.from_array(array, name) for name, array in b.constants.items() if name in used]
    graph = helper.make_graph(b.nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=10)
    axes = tuple(b.axes[name] for name in ends)
    return Case(
        model,
        axes,
        lambda random: data.draw(random, (BATCH, *shape), axis, b.dtype),
        b.is_described,
        f"{np.dtype(b.dtype).name} opset {b.opset}, {data.name}: {' '.join(node.op_type for node in b.nodes)}",
    )
