"""An evaluator of ONNX graphs in plain numpy, in which every node's result is rounded to a type of choice.

It shares no code with bnfold, onnx.reference or onnxruntime. Three arithmetics: `EXACT`, which is float64 throughout;
`nodewise(type)`, which computes a node in float32 and rounds its result, as a deployment does; and `BOUND`, which
gives the sum of the magnitudes that each value is made of, beside which rounding errors are small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray


@dataclass(frozen=True)
class Arithmetic:
    """How a node is computed, and what its result is rounded to; of magnitudes instead where `is_bound`."""

    compute: Any
    store: Any
    is_bound: bool = False


EXACT = Arithmetic(np.float64, np.float64)
BOUND = Arithmetic(np.float64, np.float64, is_bound=True)


def nodewise(dtype: Any) -> Arithmetic:
    """Each node in float32, its result rounded to `dtype`."""
    return Arithmetic(np.float32, dtype)


Kernel = Callable[..., Array]
KERNELS: dict[str, Kernel] = {}


def kernel(*ops: str) -> Callable[[Kernel], Kernel]:
    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(ops, function))
        return function

    return register


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Every initializer and Constant of a model."""
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            arrays[node.output[0]] = np.asarray(numpy_helper.to_array(node.attribute[0].t))
    return arrays


def evaluate(
    model: onnx.ModelProto,
    feeds: dict[str, Array],
    arithmetic: Arithmetic,
    then: Callable[[str, Array], Array] = lambda name, value: value,
) -> list[Array]:
    """The outputs of a model; `then` may change each node's result."""
    values = {name: _stored(array, arithmetic) for name, array in (constants(model) | feeds).items()}
    with np.errstate(all="ignore"):
        for node in model.graph.node:
            if node.op_type != "Constant":
                inputs = [values[name] if name else None for name in node.input]
                attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
                name = node.output[0]
                values[name] = then(name, apply(node.op_type, inputs, attributes, arithmetic))
    return [values[each.name] for each in model.graph.output]


def inexact(model: onnx.ModelProto, feeds: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """Where each node's result, of inputs as they are, is not a number of `dtype`."""
    found: dict[str, Array] = {}

    def note(name: str, value: Array) -> Array:
        rounded = value.astype(dtype).astype(np.float64)
        found[name] = rounded != value
        return rounded

    evaluate(model, feeds, EXACT, note)
    return found


def apply(op: str, inputs: list[Array | None], attributes: dict[str, Any], arithmetic: Arithmetic) -> Array:
    """One node's result."""
    wide = [each.astype(arithmetic.compute) if each is not None and each.dtype.kind == "f" else each for each in inputs]
    if arithmetic.is_bound:
        op = {"Sub": "Add", "Relu": "Identity", "LeakyRelu": "Identity"}.get(op, op)
        attributes = {
            name: abs(value) if name in ("alpha", "beta", "value") else value for name, value in attributes.items()
        }
        if op == "BatchNormalization":
            wide[3] = -wide[3]  # type: ignore[operator]
    return np.asarray(KERNELS[op](*wide, **attributes)).astype(arithmetic.store)


def _stored(array: Array, arithmetic: Arithmetic) -> Array:
    if array.dtype.kind != "f":
        return array
    return np.abs(array.astype(arithmetic.store)) if arithmetic.is_bound else array.astype(arithmetic.store)


@kernel("BatchNormalization")
def batchnorm(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float = 1e-5, **_: Any
) -> Array:
    """The accurate order: subtract the mean first."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    scale = (gamma / np.sqrt(var + x.dtype.type(epsilon))).astype(x.dtype)
    return (x - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape)


def _windows(
    x: Array, size: tuple[int, ...], pads: Any, strides: Any, dilations: Any, fill: float
) -> tuple[Array, tuple[int, ...]]:
    """The windows of an image, its own axes last, and the number of axes that slide."""
    rank = len(size)
    pads, strides, dilations = pads or [0] * 2 * rank, strides or [1] * rank, dilations or [1] * rank
    if any(pads):
        padding = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
        x = np.pad(x, padding, constant_values=fill)
    span = tuple((k - 1) * d + 1 for k, d in zip(size, dilations, strict=True))
    slid = np.lib.stride_tricks.sliding_window_view(x, span, axis=tuple(range(2, 2 + rank)))
    slid = slid[(..., *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))]
    return slid, slid.shape[2 : 2 + rank]


@kernel("Conv")
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    group: int = 1,
    pads: Any = None,
    strides: Any = None,
    dilations: Any = None,
    **_: Any,
) -> Array:
    size = w.shape[2:]
    slid, out = _windows(x, size, pads, strides, dilations, 0)
    rank, n, each = len(size), len(x), x.shape[1] // group
    slid = slid.reshape(n, group, each, *out, *size)
    order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    columns = slid.transpose(order).reshape(group, n * int(np.prod(out)), -1)
    made = columns @ w.reshape(group, w.shape[0] // group, -1).transpose(0, 2, 1)
    y = made.reshape(group, n, *out, -1)
    y = y.transpose(1, 0, 2 + rank, *range(2, 2 + rank)).reshape(n, w.shape[0], *out)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@kernel("ConvTranspose")
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    group: int = 1,
    pads: Any = None,
    strides: Any = None,
    dilations: Any = None,
    output_padding: Any = None,
    **_: Any,
) -> Array:
    size, given = w.shape[2:], x.shape[2:]
    rank, n, each = len(size), len(x), x.shape[1] // group
    pads, strides, dilations = pads or [0] * 2 * rank, strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    rows = x.reshape(n, group, each, -1).transpose(1, 0, 3, 2).reshape(group, -1, each)
    made = (rows @ w.reshape(group, each, -1)).reshape(group, n, *given, w.shape[1], *size)
    full = [
        (k - 1) * d + 1 + (i - 1) * s + e for k, d, i, s, e in zip(size, dilations, given, strides, extra, strict=True)
    ]
    y = np.zeros((group, n, *full, w.shape[1]), x.dtype)
    for tap in np.ndindex(*size):
        at = tuple(
            slice(t * d, t * d + (i - 1) * s + 1, s) for t, d, i, s in zip(tap, dilations, given, strides, strict=True)
        )
        y[(slice(None), slice(None), *at)] += made[(..., *tap)]
    y = y.transpose(1, 0, 2 + rank, *range(2, 2 + rank)).reshape(n, -1, *full)
    y = y[(..., *(slice(pads[k], full[k] - pads[rank + k]) for k in range(rank)))]
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@kernel("Gemm")
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Array:
    y = a.dtype.type(alpha) * ((a.T if transA else a) @ (b.T if transB else b))
    return y if c is None else y + a.dtype.type(beta) * c


@kernel("MaxPool")
def max_pool(
    x: Array, *, kernel_shape: Any, pads: Any = None, strides: Any = None, dilations: Any = None, **_: Any
) -> Array:
    slid, _out = _windows(x, tuple(kernel_shape), pads, strides, dilations, -np.inf)
    return slid.max(axis=tuple(range(x.ndim, slid.ndim)))


@kernel("AveragePool")
def average_pool(
    x: Array, *, kernel_shape: Any, pads: Any = None, strides: Any = None, count_include_pad: int = 0, **_: Any
) -> Array:
    size = tuple(kernel_shape)
    slid, _out = _windows(x, size, pads, strides, None, 0)
    axes = tuple(range(x.ndim, slid.ndim))
    if count_include_pad:
        return slid.mean(axis=axes)
    seen, _out = _windows(np.ones_like(x), size, pads, strides, None, 0)
    return slid.sum(axis=axes) / seen.sum(axis=axes)


@kernel("Pad")
def pad(x: Array, pads: Any = None, value: Any = None, axes: Any = None, *, mode: bytes = b"constant") -> Array:
    """Ends and fill are attributes or inputs."""
    fill = 0.0 if value is None else np.ravel(value)[0]
    ends = np.zeros((x.ndim, 2), int)
    ends[slice(None) if axes is None else axes] = np.reshape(pads, (2, -1)).T
    if mode == b"constant":
        return np.pad(x, ends, constant_values=fill)
    return np.pad(x, ends, mode=mode.decode())  # type: ignore[call-overload]


@kernel("Reshape")
def reshape(x: Array, shape: Array, **_: Any) -> Array:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


@kernel("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


KERNELS["Add"] = np.add
KERNELS["Sub"] = np.subtract
KERNELS["Mul"] = np.multiply
KERNELS["Div"] = np.divide
KERNELS["MatMul"] = np.matmul
KERNELS["Sum"] = lambda *xs: sum(xs[1:], xs[0])  # type: ignore[misc]
KERNELS["Concat"] = lambda *xs, axis: np.concatenate(xs, axis)
KERNELS["Relu"] = lambda x: np.maximum(x, x.dtype.type(0))
KERNELS["LeakyRelu"] = lambda x, alpha=0.01: np.where(x < 0, x.dtype.type(alpha) * x, x)
KERNELS["Identity"] = lambda x, **_: x
KERNELS["Transpose"] = lambda x, perm: x.transpose(perm)
KERNELS["GlobalAveragePool"] = lambda x: x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)
