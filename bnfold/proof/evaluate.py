"""Operators evaluated in float64 by `onnx.reference`, an independent implementation, with its known bugs mended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

AnyArray = npt.NDArray[Any]

NARROW = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


class UnevaluatedError(Exception):
    """The evaluator does not know an operator, or the operator does not take this data."""


class BatchNormalization(OpRun):
    """BatchNormalization in eval mode, whatever the opset. The evaluator's own trains in opsets 9 to 13.

    The formula is written out again, and not taken from `bnfold.algebra.affine`. A judge must not share the mistakes of
    what it judges.
    """

    def _run(
        self, x: AnyArray, gamma: AnyArray, beta: AnyArray, mean: AnyArray, var: AnyArray, **attributes: Any
    ) -> tuple[AnyArray, ...]:
        if attributes.get("training_mode") or attributes.get("spatial") == 0:
            raise NotImplementedError("BatchNormalization in training, or for each position")
        shape = (1, -1) + (1,) * (x.ndim - 2)
        gamma, beta, mean, var = (parameter.reshape(shape) for parameter in (gamma, beta, mean, var))
        epsilon = attributes.get("epsilon")
        epsilon = float(np.float32(1e-5)) if epsilon is None else epsilon
        return (((x - mean) / np.sqrt(var + epsilon) * gamma + beta).astype(x.dtype),)


def _align(a: AnyArray, b: AnyArray, attributes: dict[str, Any]) -> AnyArray:
    """The second operand, broadcast as in opsets below 7."""
    if a.shape == b.shape:
        return b
    if not attributes.get("broadcast"):
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    axis = attributes.get("axis")
    if axis is None or b.size == 1:
        return b
    axis += a.ndim if axis < 0 else 0
    return b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))


class _Old(OpRun):
    """An arithmetic operator of opsets below 7. The evaluator's own broadcasts as in later opsets."""

    function: np.ufunc

    def _run(self, a: AnyArray, b: AnyArray, **attributes: Any) -> tuple[AnyArray, ...]:
        wide_b = _align(a, b, attributes)
        output: AnyArray = type(self).function(a, wide_b)
        if output.shape != a.shape:
            raise ValueError(f"shapes {a.shape} and {b.shape} differ")
        return (output,)


class Add(_Old):
    """Addition."""

    function = np.add


class Sub(_Old):
    """Subtraction."""

    function = np.subtract


class Mul(_Old):
    """Multiplication."""

    function = np.multiply


class Div(_Old):
    """Division."""

    function = np.divide


OLD = [Add, Sub, Mul, Div]


def own_operators(opsets: Iterable[onnx.OperatorSetIdProto]) -> list[type[OpRun]]:
    """Our replacements for operators of the evaluator."""
    is_old = any(opset.domain in ("", "ai.onnx") and opset.version < 7 for opset in opsets)
    return [BatchNormalization, *(OLD if is_old else [])]


def wide(array: AnyArray) -> AnyArray:
    """An array with floating-point numbers as float64."""
    return array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array


def evaluate(
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, AnyArray],
    fetch: Sequence[str],
    opsets: Iterable[onnx.OperatorSetIdProto],
    *,
    widen: bool = True,
) -> list[AnyArray]:
    """The named outputs of some nodes.

    Args:
        nodes: the nodes, in order.
        feeds: every value that they read and do not make, constants included.
        fetch: names of the values to return.
        opsets: the opsets of the operators.
        widen: compute in float64, whatever the types are.

    Raises:
        UnevaluatedError: the nodes cannot be evaluated.
    """
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for attribute in copy.attribute:
            if widen and node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
                attribute.i = onnx.TensorProto.DOUBLE
        if copy.domain == "ai.onnx":
            copy.domain = ""
        copies.append(copy)
    arrays = {name: wide(array) if widen else array for name, array in feeds.items()}
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in arrays]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in fetch]
    graph = helper.make_graph(copies, "part", inputs, outputs)
    imports = [
        helper.make_opsetid("" if opset.domain == "ai.onnx" else opset.domain, opset.version) for opset in opsets
    ]
    try:
        model = helper.make_model(graph, opset_imports=imports)
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model, new_ops=own_operators(imports)).run(list(fetch), arrays)
    except Exception as error:  # it raises anything on an operator that it knows badly or not at all
        raise UnevaluatedError(f"{type(error).__name__}: {error}") from error
    return [np.asarray(result) for result in results]
