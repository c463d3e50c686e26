"""Reads linear operators and BatchNorms of torch, with their weights. The closed forms are those of `bnfold.proof`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from torch import fx, nn

from bnfold.algebra.affine import Affine
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import Kernel
from bnfold.proof.rounding import Array
from bnfold.proof.torch.calls import BATCHNORMS, LINEAR
from bnfold.proof.torch.sides import AnyArray, Side, to_numpy


@dataclass(frozen=True, eq=False)
class Product:
    """A linear operator with constant weights.

    Attributes:
        data: its data input.
        kernel: the stored kernel, with its layout.
        bias: the stored bias; None where it has none.
        bias_factor: multiplies the bias (beta).
        axes: the channel axes of input and output, counted from the end.
        takes_bias: whether the operator takes a bias itself.
        is_padded: whether it pads with zeros, so that a shift of its input does not go through.
        rest: all other arguments, with None for kernel, bias, alpha and beta.
        weights: the nodes or tensors that are its kernel and its bias.
        rank: the rank of its input, where the operator tells it.
    """

    data: fx.Node
    kernel: Kernel
    stored: AnyArray
    bias: AnyArray | None
    axes: tuple[int, int]
    rest: Mapping[str, Any]
    weights: tuple[Any, ...]
    bias_factor: float = 1.0
    takes_bias: bool = True
    is_padded: bool = False
    rank: int | None = None

    @property
    def wide_bias(self) -> Array | None:
        """The bias in float64, one number for each channel; or one for each row and channel, where the rows differ."""
        if self.bias is None:
            return None
        if self.bias.ndim == 2 and len(self.bias) > 1 and self.axes[1] == -1:
            rows = len(self.bias), self.kernel.sizes[0]
            return np.broadcast_to(self.bias.astype(np.float64) * self.bias_factor, rows)
        wide: Array = self.bias.astype(np.float64).reshape(-1) * self.bias_factor
        return np.broadcast_to(wide, (self.kernel.sizes[0],))


def read_product(side: Side, node: fx.Node) -> Product | None:
    """Read a linear operator; None where the node is none, or its kernel is not constant.

    Raises:
        ProofError: the weights do not fit the operator.
    """
    call = side.calls[node]
    if call.name not in LINEAR:
        return None
    try:
        if call.name.startswith("conv"):
            return _convolution(side, node)
        if call.name == "einsum":
            return _einsum(side, node)
        return _matrix(side, node)
    except (ValueError, ZeroDivisionError, IndexError) as error:
        raise ProofError("weights", node.name, f"its weight does not fit it ({error})") from error


def _array(side: Side, node: fx.Node, argument: Any) -> AnyArray | None:
    constant = side.constant(argument)
    return None if constant is None else to_numpy(node.name, constant)


def _bias(side: Side, node: fx.Node, argument: Any) -> AnyArray | None:
    if argument is None:
        return None
    bias = _array(side, node, argument)
    if bias is None:
        raise ProofError("weights", node.name, "its bias is not constant")
    return bias


def _convolution(side: Side, node: fx.Node) -> Product | None:
    call = side.calls[node]
    kernel = _array(side, node, call.get("weight"))
    if kernel is None or not isinstance(call.get("input"), fx.Node):
        return None
    is_transposed = bool(call.get("transposed", False)) if call.name == "convolution" else "transpose" in call.name
    groups, taps = int(call.get("groups", 1)), kernel.ndim - 2
    if taps < 1 or groups < 1 or kernel.shape[0] % groups:
        raise ProofError("weights", node.name, f"its weight of shape {kernel.shape} does not fit {groups} groups")
    layout = Kernel(kernel.reshape(*kernel.shape[:2], -1), groups, not is_transposed)
    bias = _bias(side, node, call.get("bias"))
    if bias is not None and bias.shape != (layout.sizes[0],):
        raise ProofError("weights", node.name, f"its bias has shape {bias.shape}")
    padding = call.get("padding", 0)
    if isinstance(padding, str):
        pads = padding == "same" and prod(kernel.shape[2:]) > 1
    else:
        pads = any(
            type(size) is not int or size for size in (padding if isinstance(padding, list | tuple) else [padding])
        )
    is_padded = bool(pads) and call.get("padding_mode", "zeros") == "zeros"
    if is_transposed:  # with one tap, exactly one output for each place of its input
        is_padded = pads or prod(kernel.shape[2:]) > 1 or not _are(call.get("stride", 1), 1)
        is_padded = is_padded or not _are(call.get("output_padding", 0), 0)
    return Product(
        call.get("input"), layout, kernel, bias, (-taps - 1, -taps - 1), _rest(call.arguments, "weight", "bias"),
        (call.get("weight"), call.get("bias")), is_padded=is_padded,
    )  # fmt: skip


def _are(sizes: Any, number: int) -> bool:
    """Whether an argument, one number or several, equals `number` throughout."""
    numbers = sizes if isinstance(sizes, list | tuple) else [sizes]
    return all(type(size) is int and size == number for size in numbers)


def _rest(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The other arguments of a call, without those that are None."""
    return {key: value for key, value in arguments.items() if key not in names and value is not None}


ROLES = {
    "linear": ("input", "weight", "bias"),
    "matmul": ("input", "other", None),
    "mm": ("input", "mat2", None),
    "bmm": ("input", "mat2", None),
    "addmm": ("mat1", "mat2", "input"),
    "baddbmm": ("batch1", "batch2", "input"),
}
"""The parameters of an operator that are its two operands, and its bias."""

RANKS = {"mm": 2, "addmm": 2, "bmm": 3, "baddbmm": 3}


def _matrix(side: Side, node: fx.Node) -> Product | None:
    call = side.calls[node]
    first, second, bias_name = ROLES[call.name]
    operands = call.get(first), call.get(second)
    on_right = side.constant(operands[1]) is not None
    kernel = _array(side, node, operands[1 if on_right else 0])
    data = operands[0 if on_right else 1]
    if kernel is None or not isinstance(data, fx.Node) or data in side.constants:
        return None
    if kernel.ndim < 2 or prod(kernel.shape[:-2]) != 1:
        raise ProofError("weights", node.name, f"its weight of shape {kernel.shape} is not one matrix")
    is_linear = call.name == "linear"
    if is_linear and (not on_right or kernel.ndim != 2):
        return None
    alpha, beta = float(call.get("alpha", 1)), float(call.get("beta", 1))
    layout = Kernel(kernel.reshape(*kernel.shape[-2:], 1), 1, is_linear or not on_right, alpha)
    axis = -1 if on_right else -2
    bias = _bias(side, node, call.get(bias_name)) if bias_name is not None else None
    if bias is not None:
        wanted = (layout.sizes[0],) if axis == -1 else (layout.sizes[0], 1)
        core = tuple(bias.shape)
        while len(core) > len(wanted) and core[0] == 1:
            core = core[1:]
        has_rows = call.name == "addmm" and axis == -1 and len(core) == 2 and core[1] in (1, layout.sizes[0])
        if core != wanted and bias.size != 1 and not has_rows:
            raise ProofError("weights", node.name, f"its bias has shape {bias.shape}")
    kernel_name = second if on_right else first
    names = [name for name in (kernel_name, bias_name, "alpha", "beta") if name is not None]
    return Product(
        data, layout, kernel, bias, (axis, axis), _rest(call.arguments, *names),
        (call.get(kernel_name), call.get(bias_name) if bias_name else None), beta, bias_name is not None,
        rank=RANKS.get(call.name),
    )  # fmt: skip


def _einsum(side: Side, node: fx.Node) -> Product | None:
    call = side.calls[node]
    equation = str(node.args[0]).replace(" ", "") if node.args else ""
    arguments = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    operands = [argument for argument in arguments if isinstance(argument, fx.Node)]
    left, arrow, result = equation.partition("->")
    letters = left.split(",")
    places = [index for index, operand in enumerate(operands) if operand in side.constants]
    if len(operands) != 2 or len(letters) != 2 or not arrow or len(places) != 1 or "." in equation or call.module:
        return None
    term, data = letters[places[0]], letters[1 - places[0]]
    inner = [letter for letter in term if letter in data and letter not in result]
    outer = [letter for letter in term if letter in result and letter not in data]
    one_each = all(len(set(indices)) == len(indices) for indices in (term, data, result))
    if not one_each or len(term) != 2 or len(inner) != 1 or len(outer) != 1:
        return None
    if set(data) - set(inner) != set(result) - set(outer):
        return None
    kernel = _array(side, node, operands[places[0]])
    if kernel is None or kernel.ndim != 2:
        return None
    axes = data.index(inner[0]) - len(data), result.index(outer[0]) - len(result)
    rest = {"equation": equation, "place": places[0], "others": _rest(node.kwargs)}
    layout = Kernel(kernel.reshape(*kernel.shape, 1), 1, term[0] == outer[0])
    return Product(
        operands[1 - places[0]], layout, kernel, None, axes, {**rest, "data": operands[1 - places[0]]},
        (operands[places[0]], None), takes_bias=False, rank=len(data),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A BatchNorm in inference form.

    Attributes:
        data: its data input.
        stored: gamma, beta, mean and variance; ones and zeros where the first two are left out.
        epsilon: the number that is added to the variance.
        axis: the channel axis.
        rest: the other arguments.
        weights: the nodes or tensors that are its parameters.
    """

    data: fx.Node
    stored: tuple[AnyArray, AnyArray, AnyArray, AnyArray]
    epsilon: float
    axis: int
    rest: Mapping[str, Any]
    weights: tuple[Any, ...]

    @property
    def affine(self) -> tuple[Affine, Array]:
        """Its map, and the magnitude of the terms that its shift is computed from."""
        gamma, beta, mean, var = (parameter.astype(np.float64) for parameter in self.stored)
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(var + self.epsilon)
            return Affine(scale, beta - mean * scale, self.axis), np.abs(beta) + np.abs(mean * scale)


NAMES = ("weight", "bias", "running_mean", "running_var")


def read_batchnorm(side: Side, node: fx.Node, rank: int | None) -> BatchNorm | None:
    """Read a BatchNorm on data of this rank; None where the node is none.

    Raises:
        ProofError: the parameters are not constant, or do not fit each other.
    """
    call = side.calls[node]
    if call.name not in BATCHNORMS:
        return None
    data = call.get("input")
    if not isinstance(data, fx.Node) or call.get("training") or call.get("use_input_stats"):
        return None
    if call.name == "_native_batch_norm_legit" and "training" not in call.arguments:
        return None
    arguments = {name: call.get(name) for name in NAMES}
    arrays = {name: _array(side, node, value) for name, value in arguments.items() if value is not None}
    mean, var = arrays.get("running_mean"), arrays.get("running_var")
    if mean is None or var is None or any(array is None for array in arrays.values()):
        raise ProofError("weights", node.name, "its parameters are not constant")
    gamma, beta = arrays.get("weight"), arrays.get("bias")
    gamma = np.ones_like(mean) if gamma is None else gamma
    beta = np.zeros_like(mean) if beta is None else beta
    if mean.ndim != 1 or {array.shape for array in (gamma, beta, mean, var)} != {mean.shape}:
        raise ProofError("weights", node.name, "its parameters are not vectors of one length")
    epsilon = call.get("eps", call.get("epsilon", 1e-5))
    if isinstance(epsilon, fx.Node):
        raise ProofError("weights", node.name, "its epsilon is computed")
    axis = 1
    if isinstance(call.module, nn.modules.instancenorm._InstanceNorm):  # which also takes data without a batch axis
        dims = int(type(call.module).__name__.rstrip("d")[-1])
        if rank is None:
            raise ProofError("weights", node.name, "the rank of its input does not follow from the model's inputs")
        axis = rank - dims - 1
    weights = tuple(arguments[name] for name in NAMES)
    return BatchNorm(data, (gamma, beta, mean, var), float(epsilon), axis, _rest(call.arguments, *NAMES), weights)


def insist_on_axis(node: str, affine: Affine | None, axis: int, rank: int | None, size: int, what: str) -> None:
    """Check that a change lies along the channels of an operator."""
    if affine is None:
        return
    if rank is None:
        raise ProofError("weights", node, f"the rank of what it {what} does not follow from the model's inputs")
    if affine.axis != rank + axis or affine.size != size:
        raise ProofError(
            "weights",
            node,
            f"what it {what} changed in {affine.size} channels along axis {affine.axis}, and it has {size} along "
            f"{rank + axis}",
        )
