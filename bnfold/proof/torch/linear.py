"""Linear operators of torch and BatchNorms, by what their weights are: the closed forms are those of `bnfold.proof`."""

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
        data: what it reads.
        kernel: as stored, and how it is laid out.
        bias: as stored; None where it has none.
        bias_factor: of the bias (beta).
        axes: the channel axes of what it reads and makes, counted from the end.
        takes_bias: whether the operator takes a bias itself.
        is_padded: with zeros, so that a shift of what it reads does not go through.
        rest: all other arguments, with None for kernel, bias, alpha and beta.
        weights: the nodes or tensors that are its kernel and its bias.
        rank: of what it reads, where the operator tells.
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
        """The bias in float64, one number for each channel."""
        if self.bias is None:
            return None
        wide: Array = self.bias.astype(np.float64).reshape(-1) * self.bias_factor
        return np.broadcast_to(wide, (self.kernel.sizes[0],))


def read_product(side: Side, node: fx.Node) -> Product | None:
    """The linear operator that a node is; None where it is none, or its weight is not constant.

    Raises:
        ProofError: its weights do not fit it.
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


def _array(side: Side, node: fx.Node, given: Any) -> AnyArray | None:
    found = side.constant(given)
    return None if found is None else to_numpy(node.name, found)


def _bias(side: Side, node: fx.Node, given: Any) -> AnyArray | None:
    if given is None:
        return None
    found = _array(side, node, given)
    if found is None:
        raise ProofError("weights", node.name, "its bias is not constant")
    return found


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
            type(each) is not int or each for each in (padding if isinstance(padding, list | tuple) else [padding])
        )
    is_padded = bool(pads) and call.get("padding_mode", "zeros") == "zeros"
    if is_transposed:  # of one tap, it puts an output on each place of its input, and on no other
        is_padded = pads or prod(kernel.shape[2:]) > 1 or not _are(call.get("stride", 1), 1)
        is_padded = is_padded or not _are(call.get("output_padding", 0), 0)
    return Product(
        call.get("input"), layout, kernel, bias, (-taps - 1, -taps - 1), _rest(call.arguments, "weight", "bias"),
        (call.get("weight"), call.get("bias")), is_padded=is_padded,
    )  # fmt: skip


def _are(given: Any, number: int) -> bool:
    """Whether one number, or each of several, is this one."""
    numbers = given if isinstance(given, list | tuple) else [given]
    return all(type(each) is int and each == number for each in numbers)


def _rest(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """All other arguments; None is as good as left out."""
    return {key: value for key, value in arguments.items() if key not in names and value is not None}


ROLES = {
    "linear": ("input", "weight", "bias"),
    "matmul": ("input", "other", None),
    "mm": ("input", "mat2", None),
    "bmm": ("input", "mat2", None),
    "addmm": ("mat1", "mat2", "input"),
    "baddbmm": ("batch1", "batch2", "input"),
}
"""First and second operand, and bias."""

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
        if core != wanted and bias.size != 1:
            raise ProofError("weights", node.name, f"its bias has shape {bias.shape}")
    kernel_name = second if on_right else first
    names = [each for each in (kernel_name, bias_name, "alpha", "beta") if each is not None]
    return Product(
        data, layout, kernel, bias, (axis, axis), _rest(call.arguments, *names),
        (call.get(kernel_name), call.get(bias_name) if bias_name else None), beta, bias_name is not None,
        rank=RANKS.get(call.name),
    )  # fmt: skip


def _einsum(side: Side, node: fx.Node) -> Product | None:
    call = side.calls[node]
    equation = str(node.args[0]).replace(" ", "") if node.args else ""
    given = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    operands = [each for each in given if isinstance(each, fx.Node)]
    left, arrow, result = equation.partition("->")
    letters = left.split(",")
    held = [index for index, each in enumerate(operands) if each in side.constants]
    if len(operands) != 2 or len(letters) != 2 or not arrow or len(held) != 1 or "." in equation or call.module:
        return None
    term, data = letters[held[0]], letters[1 - held[0]]
    inner = [each for each in term if each in data and each not in result]
    outer = [each for each in term if each in result and each not in data]
    one_each = all(len(set(each)) == len(each) for each in (term, data, result))
    if not one_each or len(term) != 2 or len(inner) != 1 or len(outer) != 1:
        return None
    if set(data) - set(inner) != set(result) - set(outer):
        return None
    kernel = _array(side, node, operands[held[0]])
    if kernel is None or kernel.ndim != 2:
        return None
    axes = data.index(inner[0]) - len(data), result.index(outer[0]) - len(result)
    rest = {"equation": equation, "place": held[0], "others": _rest(node.kwargs)}
    layout = Kernel(kernel.reshape(*kernel.shape, 1), 1, term[0] == outer[0])
    return Product(
        operands[1 - held[0]], layout, kernel, None, axes, {**rest, "data": operands[1 - held[0]]},
        (operands[held[0]], None), takes_bias=False, rank=len(data),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A BatchNorm in inference form.

    Attributes:
        data: what it reads.
        stored: gamma, beta, mean and variance, as they are; ones and zeros where the first two are left out.
        epsilon: as it is.
        axis: of the channels.
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
        """Its map, and the size of what its shift is the difference of."""
        gamma, beta, mean, var = (each.astype(np.float64) for each in self.stored)
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(var + self.epsilon)
            return Affine(scale, beta - mean * scale, self.axis), np.abs(beta) + np.abs(mean * scale)


NAMES = ("weight", "bias", "running_mean", "running_var")


def read_batchnorm(side: Side, node: fx.Node, rank: int | None) -> BatchNorm | None:
    """The BatchNorm that a node is, of data of some rank; None where it is none.

    Raises:
        ProofError: its parameters are not constant, or do not fit each other.
    """
    call = side.calls[node]
    if call.name not in BATCHNORMS:
        return None
    data = call.get("input")
    if not isinstance(data, fx.Node) or call.get("training") or call.get("use_input_stats"):
        return None
    if call.name == "_native_batch_norm_legit" and "training" not in call.arguments:
        return None
    given = {name: call.get(name) for name in NAMES}
    arrays = {name: _array(side, node, value) for name, value in given.items() if value is not None}
    mean, var = arrays.get("running_mean"), arrays.get("running_var")
    if mean is None or var is None or any(each is None for each in arrays.values()):
        raise ProofError("weights", node.name, "its parameters are not constant")
    gamma, beta = arrays.get("weight"), arrays.get("bias")
    gamma = np.ones_like(mean) if gamma is None else gamma
    beta = np.zeros_like(mean) if beta is None else beta
    if mean.ndim != 1 or {each.shape for each in (gamma, beta, mean, var)} != {mean.shape}:
        raise ProofError("weights", node.name, "its parameters are not vectors of one length")
    epsilon = call.get("eps", call.get("epsilon", 1e-5))
    if isinstance(epsilon, fx.Node):
        raise ProofError("weights", node.name, "its epsilon is computed")
    axis = 1
    if isinstance(call.module, nn.modules.instancenorm._InstanceNorm):  # it takes data without a batch axis, too
        dims = int(type(call.module).__name__.rstrip("d")[-1])
        if rank is None:
            raise ProofError("weights", node.name, "the rank of what it reads does not follow from the model's inputs")
        axis = rank - dims - 1
    weights = tuple(given[name] for name in NAMES)
    return BatchNorm(data, (gamma, beta, mean, var), float(epsilon), axis, _rest(call.arguments, *NAMES), weights)


def insist_on_axis(node: str, affine: Affine | None, axis: int, rank: int | None, size: int, what: str) -> None:
    """That a change lies along the channels of an operator."""
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
