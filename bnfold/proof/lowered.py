"""A BatchNormalization that other operators take the place of.

y = s (x - m) + t,    s = scale,    t = shift + m * scale,    each rounded once; m is what is stored, or zero
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.algebra.affine import Affine
from bnfold.proof.batchnorm import as_affine, changed_map
from bnfold.proof.certificate import Relation
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import attribute
from bnfold.proof.models import Scope, first_output
from bnfold.proof.pair import Pair
from bnfold.proof.rounding import UNIT, Array, Worst, Wrong, check_rounded

AnyArray = npt.NDArray[Any]

ARITHMETIC = ("Sub", "Mul", "Add")


def is_lowered(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> bool:
    """Whether a convolution or an addition takes the place of a BatchNormalization in the result."""
    maker = other.makers.get(pair.name(scope, node.output[0]))
    return maker is not None and maker.op_type in ("Conv", "Add") and maker.domain in ("", "ai.onnx")


def check_lowered(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> Worst:
    """Check that operators in a row are the map of a BatchNormalization."""
    name = first_output(node)
    relations = pair.relation(scope, node.input[0]), pair.relation(scope, node.output[0])
    stages = _row(pair, scope, other, node)
    is_addition = [stage.op_type for stage in stages] == ["Add"]
    affine, size = (map_of_addition if is_addition else changed_map)(name, *as_affine(scope, node), relations)
    channels = affine.size
    rank = pair.rank(scope, node.input[0])
    constants: dict[str, AnyArray] = {}
    for stage in stages:
        if stage.op_type == "Conv":
            constants["Mul"], constants["Add"] = _depthwise(name, other, stage, channels)
        else:
            constants[stage.op_type] = _along_channels(name, other, stage, rank, channels)
    if is_addition:
        constants["Mul"] = np.ones(channels, constants["Add"].dtype)
    kinds = {constant.dtype for constant in constants.values()}
    old = scope.constant(node.input[1])
    known = pair.original.known.get((scope.path, node.input[0]), (None, 0))[1]
    wanted = onnx.helper.tensor_dtype_to_np_dtype(known) if known else old.dtype if old is not None else None
    if kinds != {wanted}:
        raise ProofError("weights", name, "what stands for it has parameters of another type")
    mean = constants.get("Sub", np.zeros(channels)).astype(np.float64)
    exact: Array = affine.shift + mean * affine.scale
    error = 16 * UNIT * (size + np.abs(mean * affine.scale))
    worst = Worst()
    if not np.isfinite(mean).all():
        raise ProofError("weights", name, "what it subtracts is not finite")
    for what, numbers, slack in (("Mul", affine.scale, 16 * UNIT * np.abs(affine.scale)), ("Add", exact, error)):
        result = check_rounded(constants[what], numbers, slack)
        if isinstance(result, Wrong):
            detail = f"channel {result.index} of its {what} is {result.stored!r} and should be {result.exact!r}"
            raise ProofError("weights", name, detail)
        worst = worst.joined(result)
    return worst


def map_of_addition(
    name: str, affine: Affine, size: Array, relations: tuple[Relation | None, Relation | None]
) -> tuple[Affine, Array]:
    """The map from the new input to the new output, where the old input was scaled as this node did, and its size.

    If the new input is ``f(x)``, with the scale of the whole map, it is an addition of the difference of both shifts.
    """
    inner, outer = relations
    forth = inner.forth if inner else Affine.identity(affine.size, affine.axis)
    behind = outer.forth if outer else Affine.identity(affine.size, affine.axis)
    place = affine.axis, affine.size
    if forth is None or behind is None or not place == (forth.axis, forth.size) == (behind.axis, behind.size):
        raise ProofError("weights", name, "its input or output changed in a way that is not covered")
    affine, size = behind.after(affine), np.abs(behind.scale) * size + np.abs(behind.shift)
    if not (np.abs(forth.scale - affine.scale) <= 16 * UNIT * np.abs(affine.scale)).all():
        raise ProofError("weights", name, "an addition stands for it, and its input is not scaled as it did")
    return Affine(np.ones(affine.size), affine.shift - forth.shift, affine.axis), size + np.abs(forth.shift)


def _row(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The operators in the place of a BatchNormalization, last one first. Each is the only reader of the one before."""
    name, start = first_output(node), pair.name(scope, node.input[0])
    if len([value for value in node.output if value]) != 1 or pair.home(scope, node.input[0]) is not other.owner(start):
        raise ProofError("wiring", name, "what stands for it has another output, or reads another graph")
    row: list[onnx.NodeProto] = []
    value = pair.name(scope, node.output[0])
    while value != start:
        maker = other.makers.get(value)
        if maker is None or not maker.input or maker.domain not in ("", "ai.onnx") or id(maker) in pair.accounted:
            raise ProofError("wiring", name, f"{value!r} does not follow from its input")
        pair.accounted.add(id(maker))
        row.append(maker)
        value = maker.input[0]
        if value != start:
            if other.readers.get(value) != 1 or value in scope.makers or value in other.outputs:
                raise ProofError("wiring", name, f"{value!r} is read elsewhere, or was something else")
            pair.helpers.add((other.path, value))
    kinds = [stage.op_type for stage in reversed(row)]
    if kinds not in (["Add"], ["Conv"], ["Sub", "Conv"], ["Mul", "Add"], ["Sub", "Mul", "Add"]):
        raise ProofError("wiring", name, f"{kinds} stand for it")
    return row


def _depthwise(name: str, other: Scope, conv: onnx.NodeProto, channels: int) -> tuple[AnyArray, AnyArray]:
    """Kernel and bias of a convolution that sees nothing but the same position of the same channel."""
    constants = [other.constant(value) for value in conv.input[1:]]
    if len(constants) != 2 or any(constant is None for constant in constants):
        raise ProofError("weights", name, "the convolution that stands for it has no constant weights")
    kernel, bias = (constant for constant in constants if constant is not None)
    plain = not any(attribute(conv, "pads", [])) and set(attribute(conv, "strides", [1])) == {1}
    if not plain or attribute(conv, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ProofError("weights", name, "the convolution that stands for it has strides or padding")
    if (
        attribute(conv, "group", 1) != channels
        or kernel.ndim < 3
        or kernel.shape != (channels, *(1,) * (kernel.ndim - 1))
    ):
        raise ProofError("weights", name, "the convolution that stands for it mixes channels or positions")
    if bias.shape != (channels,):
        raise ProofError("weights", name, "the convolution that stands for it has another bias")
    return kernel.reshape(-1), bias


def _along_channels(name: str, other: Scope, stage: onnx.NodeProto, rank: int | None, channels: int) -> AnyArray:
    """The constant of an arithmetic operator, one number for each channel of axis 1."""
    constant = other.constant(stage.input[1]) if len(stage.input) == 2 else None
    if stage.op_type not in ARITHMETIC or constant is None:
        raise ProofError("weights", name, f"the {stage.op_type} that stands for it has no constant")
    if other.version < 7:
        if not attribute(stage, "broadcast", 0) or attribute(stage, "axis", None) != 1 or constant.shape != (channels,):
            raise ProofError("weights", name, f"the {stage.op_type} that stands for it lies along another axis")
    elif rank is None or constant.shape != (channels, *(1,) * (rank - 2)):
        raise ProofError("weights", name, f"the {stage.op_type} that stands for it lies along another axis")
    return constant.reshape(-1)
