"""Linear operators that changed: checks of their input, padding, kernel and bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import (
    CONVOLUTIONS,
    PRODUCTS,
    RECURRENT,
    Kernel,
    attribute,
    check_bias,
    check_kernel,
    data_index,
    read_equation,
    read_kernel,
    solve_bias,
    turned,
)
from bnfold.proof.models import Scope, first_output
from bnfold.proof.pair import Pair
from bnfold.proof.rounding import UNIT, Array, Worst, Wrong, check_rounded
from bnfold.proof.wiring import same_input, same_node

AnyArray = npt.NDArray[Any]

MAY_CHANGE = ("alpha", "beta", "broadcast", "pads")
"""Attributes that may be spelled differently, and are compared by their meaning."""


def check_linear(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> Worst:
    """Check that a linear operator has become its closed form."""
    name = first_output(node)
    add = pair.bias_add(scope, node)
    output = node.output[0] if add is None else add.output[0]
    inner, outer = _inner(pair, scope, node), _outer(pair, scope, node, output)
    core, constant = _core(pair, scope, other, node, add)
    index = data_index(scope, node)
    kernel_index = 1 - index if node.op_type in PRODUCTS else 1
    bias_index = None if node.op_type in PRODUCTS else _bias_index(node)
    for position, _read in enumerate(node.input):
        if position not in (index, kernel_index, bias_index):
            same_input(pair, scope, other, node, position, core.input[position] if position < len(core.input) else "")
    if len(core.input) > max(len(node.input), (bias_index or 0) + 1):
        raise ProofError("wiring", name, f"it reads {len(core.input)} values")
    _check_data(pair, scope, other, node, core, index, inner)
    stored = other.constant(core.input[kernel_index]) if kernel_index < len(core.input) else None
    values = scope.constant(node.input[kernel_index])
    if stored is None or values is None:
        raise ProofError("weights", name, "its weight is not constant")
    if stored.shape != values.shape:
        raise ProofError("weights", name, f"its weight has shape {stored.shape}, not {values.shape}")
    old, new = read_kernel(scope, node, values), read_kernel(other, core, stored)
    if new.factor != 1:
        raise ProofError("weights", name, f"its alpha is {new.factor}")
    if index == 1 and data_index(other, core) != 1:
        raise ProofError("wiring", name, "its weight is on another side")
    _fits(name, inner, old.sizes[1])
    _fits(name, outer, old.sizes[0])
    (matrix, was_turned), (matrix_now, is_turned) = (
        _matrix(side, part.input[kernel_index]) for side, part in ((scope, node), (other, core))
    )
    if _is_made_by(scope, matrix, "DequantizeLinear"):
        if was_turned != is_turned:
            raise ProofError("weights", name, "its weight is transposed in one of both models alone")
        worst = _check_scales(scope, other, node, matrix, matrix_now, inner, outer, is_turned=is_turned)
    else:
        worst = check_kernel(name, old, new, inner, outer)
    exact = solve_bias(old, _bias(scope, node, add, old), inner, outer)
    if bias_index is not None:
        constant = other.constant(core.input[bias_index]) if _has(core, bias_index) else None
        if constant is None and _has(core, bias_index):
            raise ProofError("weights", name, "its bias is not constant")
    if node.op_type in RECURRENT:
        constant = _half(scope, node, old, constant)
    if constant is not None:
        if attribute(core, "beta", 1.0) != 1:
            raise ProofError("weights", name, "it has a beta")
        if node.op_type == "Gemm" and constant.shape[-exact[0].ndim :] != exact[0].shape:
            raise ProofError("weights", name, f"its bias has shape {constant.shape}")
        if node.op_type == "Gemm" and constant.size != exact[0].size:
            raise ProofError("weights", name, f"its bias has shape {constant.shape}")
        if node.op_type == "Gemm" and other.version < 7 and not attribute(core, "broadcast", 0):
            raise ProofError("weights", name, "its bias is not broadcast")
        before = scope.constant(node.input[bias_index]) if bias_index and _has(node, bias_index) else None
        if constant.dtype not in (values.dtype, before.dtype if before is not None else values.dtype):
            raise ProofError("weights", name, f"its bias is of type {constant.dtype}")
    return worst.joined(check_bias(name, *exact, constant))


def _bias_index(node: onnx.NodeProto) -> int:
    return 3 if node.op_type in RECURRENT or node.op_type == "DeformConv" else 2


def _has(node: onnx.NodeProto, index: int) -> bool:
    return index < len(node.input) and bool(node.input[index])


def _inner(pair: Pair, scope: Scope, node: onnx.NodeProto) -> Affine | None:
    """The map from the operator's new input to its old one."""
    name, index = first_output(node), data_index(scope, node)
    for position, value in enumerate(node.input):
        if position != index and value and pair.relation(scope, value):
            raise ProofError("weights", name, f"its input {position} changed")
    relation = pair.relation(scope, node.input[index])
    if relation is None:
        return None
    back = relation.back
    if back is None:
        raise ProofError("weights", name, "its input changed in a way that is not covered")
    axis: int | None = 1
    if node.op_type == "Gemm":
        axis = 0 if attribute(node, "transA", 0) else 1
    elif node.op_type in RECURRENT:
        axis = 2
    elif node.op_type == "Einsum":
        axis = read_equation(scope, node).axis_in
    elif node.op_type in PRODUCTS:
        axis = _product_axis(pair, scope, node, is_input=True)
    if back.axis != axis:
        raise ProofError("weights", name, f"its input changed along axis {back.axis}, not {axis}")
    return back


def _outer(pair: Pair, scope: Scope, node: onnx.NodeProto, output: str) -> Affine | None:
    """The map from the operator's old output to its new one."""
    name = first_output(node)
    if any(pair.relation(scope, value) for value in node.output[1:] if value):
        raise ProofError("weights", name, "a further output changed")
    relation = pair.relation(scope, output)
    if relation is None:
        return None
    forth = relation.forth
    if forth is None or node.op_type in RECURRENT:
        raise ProofError("weights", name, "its output changed in a way that is not covered")
    axis = 1
    if node.op_type == "Einsum":
        axis = read_equation(scope, node).axis_out
    elif node.op_type in PRODUCTS:
        axis = _product_axis(pair, scope, node, is_input=False)
    if forth.axis != axis:
        raise ProofError("weights", name, f"its output changed along axis {forth.axis}, not {axis}")
    return forth


def _product_axis(pair: Pair, scope: Scope, node: onnx.NodeProto, *, is_input: bool) -> int:
    """The channel axis of a matrix product's input or output."""
    index = data_index(scope, node)
    rank = pair.rank(scope, node.input[index])
    kernel = scope.constant(node.input[1 - index])
    if rank is None:
        raise ProofError("weights", first_output(node), "the rank of its input does not follow from the model's inputs")
    if kernel is None or kernel.ndim < 2 or rank < max(2, kernel.ndim) or kernel.size != np.prod(kernel.shape[-2:]):
        raise ProofError("weights", first_output(node), "its weight is not one matrix")
    is_last = (index == 0) != (is_input and turned(node)[index])
    return rank - 1 if is_last else rank - 2


def _fits(name: str, affine: Affine | None, size: int) -> None:
    if affine is not None and affine.size != size:
        raise ProofError("weights", name, f"{affine.size} channels changed, and it has {size}")


def _core(
    pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, add: onnx.NodeProto | None
) -> tuple[onnx.NodeProto, AnyArray | None]:
    """The operator in the result, and the constant of the Add behind a product."""
    name = first_output(node)
    output = pair.name(scope, node.output[0] if add is None else add.output[0])
    maker = other.makers.get(output)
    if maker is None:
        raise ProofError("wiring", name, f"the result does not make {output!r}")
    constant: AnyArray | None = None
    if node.op_type in PRODUCTS and maker.op_type == "Add":
        if add is not None:
            same_node(pair, scope, other, add, ("broadcast", "axis"), maker)
        elif maker.domain or len(maker.input) != 2:
            raise ProofError("wiring", name, "the value added to its result is no bias")
        pair.accounted.add(id(maker))
        places = [index for index in (0, 1) if other.is_constant(maker.input[index])]
        if len(places) != 1:
            raise ProofError("wiring", name, "the value added to its result is no bias")
        constant = other.constant(maker.input[places[0]])
        assert constant is not None
        _check_side(pair, scope, other, node, maker, places[0], constant)
        inner = maker.input[1 - places[0]]
        pair.helpers.add((other.path, inner))
        maker = other.makers.get(inner)
        if maker is None or other.readers.get(inner) != 1:
            raise ProofError("wiring", name, "the addition does not add to its result")
    twin = same_node(pair, scope, other, node, MAY_CHANGE, maker)
    if [pair.name(scope, value) for value in node.output[1:]] != list(twin.output[1:]):
        raise ProofError("wiring", name, "its outputs differ")
    return twin, constant


def _check_side(
    pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, add: onnx.NodeProto, place: int, constant: AnyArray
) -> None:
    """Check that a constant is added along the channels of a product."""
    name = first_output(node)
    long = [axis - constant.ndim for axis, size in enumerate(constant.shape) if size != 1]
    wanted = -1 if data_index(scope, node) == 0 else -2
    if node.op_type == "Einsum":
        equation = read_equation(scope, node)
        wanted = equation.axis_out - equation.rank
        if constant.ndim > equation.rank:
            raise ProofError("wiring", name, "its bias has more axes than it")
    elif other.version < 7:
        rank = pair.rank(scope, node.input[data_index(scope, node)])
        axis = attribute(add, "axis", None)
        if place != 1 or not attribute(add, "broadcast", 0) or rank is None:
            raise ProofError("wiring", name, "its bias is not broadcast")
        if axis is not None and constant.size > 1:
            long = [place + axis + constant.ndim - rank for place in long]
    elif constant.ndim > 2:
        rank = pair.rank(scope, node.input[data_index(scope, node)])
        if rank is None or constant.ndim > rank:
            raise ProofError("wiring", name, "its bias has more axes than it")
    if long not in ([], [wanted]):
        raise ProofError("wiring", name, "its bias lies along another axis")


def _check_data(
    pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, core: onnx.NodeProto, index: int, inner: Affine | None
) -> None:
    """Check the operator's input: the old one, or the old one padded. A shift must meet no padding with zeros."""
    name = first_output(node)
    read = core.input[index]
    pads = list(attribute(node, "pads", [])) if node.op_type in CONVOLUTIONS else []
    auto = attribute(node, "auto_pad", "NOTSET") if node.op_type in CONVOLUTIONS else "NOTSET"
    now = list(attribute(core, "pads", [])) if node.op_type in CONVOLUTIONS else []
    if read == pair.name(scope, node.input[index]):
        if now != pads and (any(now) or any(pads)):
            raise ProofError("wiring", name, "its padding differs")
        if inner is None or not inner.has_shift:
            return
        kernel = scope.constant(node.input[1]) if node.op_type in CONVOLUTIONS else None
        is_point = kernel is None or kernel[0, 0].size == 1
        is_padded = (auto == "NOTSET" and any(pads)) or (auto.startswith("SAME") and not is_point)
        sees_border = node.op_type == "ConvTranspose" and not (is_point and _is_dense(node))
        if is_padded or sees_border or node.op_type == "DeformConv":
            raise ProofError("weights", name, "a shift went through it, and its outputs near the border do not see it")
        return
    pad = other.makers.get(read)
    if pad is None or pad.op_type != "Pad" or pad.domain or not any(pads) or auto != "NOTSET" or any(now):
        raise ProofError("wiring", name, f"it reads {read!r}, which is not its old input")
    if node.op_type != "Conv":
        raise ProofError("wiring", name, "it is padded")
    pair.accounted.add(id(pad))
    pair.helpers.add((other.path, read))
    same_input(pair, scope, other, node, index, pad.input[0])
    half = len(pads) // 2
    wanted = [0, 0, *pads[:half], 0, 0, *pads[half:]]
    if attribute(pad, "mode", "constant") != "constant" or len(pad.input) > 3:
        raise ProofError("wiring", name, "its padding is no constant")
    kernel = scope.constant(node.input[1])
    assert kernel is not None
    if other.version < 11:
        padding = attribute(pad, "pads" if other.version > 1 else "paddings", None)
        fill = np.asarray(attribute(pad, "value", 0.0), np.float32)
        dtype = kernel.dtype
    else:
        sizes = other.constant(pad.input[1])
        padding = None if sizes is None else sizes.tolist()
        value = other.constant(pad.input[2]) if _has(pad, 2) else np.zeros((), kernel.dtype)
        if value is None:
            raise ProofError("wiring", name, "its padding is no constant")
        fill, dtype = value, value.dtype
    if padding is None or list(padding) != wanted or fill.size != 1:
        raise ProofError("wiring", name, "its padding differs")
    _check_fill(name, fill, dtype, inner)


def _is_dense(node: onnx.NodeProto) -> bool:
    """Whether a ConvTranspose has exactly one output for each place of its input."""
    numbers = [*attribute(node, "pads", []), *attribute(node, "output_padding", [])]
    is_sized = bool(attribute(node, "output_shape", [])) or attribute(node, "auto_pad", "NOTSET").startswith("SAME")
    return set(attribute(node, "strides", [])) <= {1} and not any(numbers) and not is_sized


def _check_fill(name: str, fill: AnyArray, dtype: np.dtype[Any], inner: Affine | None) -> None:
    """Check that the map of each channel makes the padding zero."""
    if inner is None:
        wanted: Array = np.zeros(1)
    elif ((inner.scale == 0) & (inner.shift != 0)).any():
        raise ProofError("weights", name, "no padding becomes zero")
    else:
        scale = np.where(inner.scale == 0, 1.0, inner.scale)
        wanted = -inner.shift / scale
    numbers = np.broadcast_to(fill.astype(dtype).reshape(1), wanted.shape)
    if not np.array_equal(fill.astype(dtype).astype(np.float64), fill.astype(np.float64)):
        raise ProofError("weights", name, "its padding does not fit its type")
    outcome = check_rounded(numbers, wanted, 4 * UNIT * np.abs(wanted))
    if isinstance(outcome, Wrong):
        detail = f"its padding is {outcome.stored!r}, and channel {outcome.index} needs {outcome.exact!r}"
        raise ProofError("weights", name, detail)


def _bias(scope: Scope, node: onnx.NodeProto, add: onnx.NodeProto | None, kernel: Kernel) -> Array | None:
    """The bias of the original, in float64."""
    name, out = first_output(node), kernel.sizes[0]
    if node.op_type in PRODUCTS:
        if add is None:
            return None
        bias = scope.constant(add.input[1 if add.input[0] == node.output[0] else 0])
        assert bias is not None
        long = [axis - bias.ndim for axis, size in enumerate(bias.shape) if size != 1]
        wanted = -1 if data_index(scope, node) == 0 else -2
        if scope.version >= 7 and long not in ([], [wanted]):
            raise ProofError("weights", name, "its bias lies along another axis")
        return _broadcast(name, bias.astype(np.float64), out)
    index = _bias_index(node)
    if not _has(node, index):
        return None
    bias = scope.constant(node.input[index])
    if bias is None:
        raise ProofError("weights", name, "its bias is not constant")
    wide = bias.astype(np.float64)
    if node.op_type in RECURRENT:
        return _broadcast(name, wide[:, : wide.shape[1] // 2], out)
    if node.op_type == "Gemm":
        wide = wide * float(attribute(node, "beta", 1.0))
        if wide.ndim > 1 and wide.shape[-1] != wide.size:  # it differs from row to row
            if wide.ndim > 2 or wide.shape[1] not in (1, out) or scope.version < 7:
                raise ProofError("weights", name, "its bias has another shape than its output")
            return np.broadcast_to(wide, (len(wide), out))
    return _broadcast(name, wide, out)


def _broadcast(name: str, bias: Array, out: int) -> Array:
    if bias.size not in (1, out):
        raise ProofError("weights", name, f"its bias has {bias.size} entries for {out} channels")
    return np.broadcast_to(bias.reshape(-1), (out,))


def _half(scope: Scope, node: onnx.NodeProto, kernel: Kernel, stored: AnyArray | None) -> AnyArray | None:
    """The half of a recurrent layer's bias that belongs to its input. The other half must be unchanged."""
    if stored is None:
        return None
    name = first_output(node)
    if stored.ndim != 2 or stored.size != 2 * kernel.sizes[0]:
        raise ProofError("weights", name, "its bias has another shape")
    half = stored.shape[1] // 2
    before = scope.constant(node.input[3]) if _has(node, 3) else np.zeros_like(stored)
    if before is None or not np.array_equal(before[:, half:], stored[:, half:]):
        raise ProofError("weights", name, "its recurrent bias differs")
    return stored[:, :half]


def _is_made_by(scope: Scope, value: str, operator: str) -> bool:
    """Whether a node of this kind makes a value."""
    owner = scope.owner(value)
    maker = None if owner is None else owner.makers.get(value)
    return maker is not None and maker.op_type == operator and maker.domain == ""


def _matrix(scope: Scope, value: str) -> tuple[str, bool]:
    """The dequantised matrix that a value is, and whether it is transposed; the value itself, if it is none."""
    if not _is_made_by(scope, value, "Transpose"):
        return value, False
    owner = scope.owner(value)
    assert owner is not None
    maker = owner.makers[value]
    matrix = scope.constant(maker.input[0])
    is_turned = matrix is not None and matrix.ndim == 2 and list(attribute(maker, "perm", [1, 0])) == [1, 0]
    return (
        (maker.input[0], True)
        if is_turned and _is_made_by(scope, maker.input[0], "DequantizeLinear")
        else (value, False)
    )


def _check_scales(
    scope: Scope,
    other: Scope,
    node: onnx.NodeProto,
    before: str,
    after: str,
    inner: Affine | None,
    outer: Affine | None,
    *,
    is_turned: bool,
) -> Worst:
    """Check that a weight is dequantised from the same integers, with new scales that are rounded once."""
    name = first_output(node)
    owners = scope.owner(before), other.owner(after)
    assert owners[0] is not None
    old, new = owners[0].makers[before], None if owners[1] is None else owners[1].makers.get(after)
    if inner is not None:
        raise ProofError("weights", name, "its quantised weight takes no change of its input")
    if new is None or new.op_type != "DequantizeLinear" or new.domain:
        raise ProofError("weights", name, "its weight is not dequantised")
    parts = [(side.constant(node.input[0]), side.constant(node.input[1]), side.constant(node.input[2]) if _has(node, 2)
              else None) for side, node in ((scope, old), (other, new))]  # fmt: skip
    (integers, scales, zeros), (same, stored, zeros_now) = parts
    if integers is None or scales is None or same is None or stored is None or integers.dtype != same.dtype:
        raise ProofError("weights", name, "its quantised weight differs")
    if _is_made_by(scope, old.input[0], "QuantizeLinear") != _is_made_by(other, new.input[0], "QuantizeLinear"):
        raise ProofError("weights", name, "its weight is quantised in one of both models alone")
    kinds = [
        {option.name: option.SerializeToString() for option in part.attribute if option.name != "axis"}
        for part in (old, new)
    ]
    if kinds[0] != kinds[1] or attribute(new, "block_size", 0):
        raise ProofError("weights", name, "it is dequantised in another way")
    if node.op_type in PRODUCTS:
        if node.op_type != "MatMul":
            raise ProofError("weights", name, "its weight is quantised")
        axis = integers.ndim - (1 if data_index(scope, node) == 0 else 2)
    elif node.op_type == "Gemm":
        axis = 0 if attribute(node, "transB", 0) else 1
    else:
        axis = 1 if node.op_type == "ConvTranspose" else 0
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        raise ProofError("weights", name, "its groups share scales")
    axis = 1 - axis if is_turned else axis
    channels = integers.shape[axis]
    for part, vector in ((old, scales), (new, stored)):
        if vector.size not in (1, channels) or (vector.size > 1 and attribute(part, "axis", 1) % integers.ndim != axis):
            raise ProofError("weights", name, "its scales lie along another axis")
    if attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != attribute(node, "beta", 1.0):
        raise ProofError("weights", name, "it has an alpha")
    zero = np.zeros(1, integers.dtype) if zeros is None else zeros.reshape(-1)
    zero_now = np.zeros(1, integers.dtype) if zeros_now is None else zeros_now.reshape(-1)
    if not np.array_equal(np.broadcast_to(zero, (channels,)), np.broadcast_to(zero_now, (channels,))):
        raise ProofError("weights", name, "its zero points differ")
    factor = np.ones(channels) if outer is None else outer.scale
    _check_integers(name, integers, same, zero, factor, axis)
    if scales.dtype != stored.dtype:
        raise ProofError("weights", name, "its scales are of another type")
    exact = np.broadcast_to(scales.astype(np.float64).reshape(-1), (channels,))
    exact = exact * np.where(factor == 0, 1.0, np.abs(factor))
    outcome = check_rounded(np.broadcast_to(stored.reshape(-1), (channels,)), exact, 4 * UNIT * np.abs(exact))
    if isinstance(outcome, Wrong):
        raise ProofError(
            "weights", name, f"scale {outcome.index} is {outcome.stored!r} and should be {outcome.exact!r}"
        )
    return outcome


def _check_integers(name: str, old: AnyArray, new: AnyArray, zero: AnyArray, factor: Array, axis: int) -> None:
    """Check integers: the old ones, or mirrored at the zero point for a negative factor, or the zero point for zero."""
    shape = [1] * old.ndim
    shape[axis] = factor.size
    signs = np.sign(factor).reshape(shape)
    points = np.broadcast_to(zero.astype(np.float64), factor.shape).reshape(shape)
    if not np.array_equal(new.astype(np.float64), points + signs * (old.astype(np.float64) - points)):
        raise ProofError("weights", name, "its quantised weight differs")
