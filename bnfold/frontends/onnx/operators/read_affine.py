"""Per-channel affines with constant parameters: BatchNormalization, and Mul, Add, Sub, Div by a constant."""

from __future__ import annotations

import numpy as np

from bnfold.frontends import reading
from bnfold.frontends.onnx.operators.batchnorms import EPSILON
from bnfold.frontends.onnx.operators.read_linear import operand_shape
from bnfold.frontends.onnx.operators.reader import FLOATS, Reader
from bnfold.frontends.reading import Normalization, Unreadable
from bnfold.graph.ops import ChannelAffine
from bnfold.graph.outcome import Reason


def read_batchnorm(reader: Reader) -> ChannelAffine:
    """BatchNormalization of any opset, in inference form.

    Raises:
        Unreadable: training mode, per-activation statistics, or parameters that are not constant or not valid.
    """
    if reader.version < 9 and not reader.attribute("spatial", 1):
        raise Unreadable(Reason.PER_ACTIVATION, "it has spatial=0: statistics per activation, not per channel")
    if reader.attribute("training_mode", 0) or (reader.version < 7 and not reader.attribute("is_test", 0)):
        raise reading.in_training_mode()
    if any(output.name for output in reader.node.outputs[1:]):
        raise Unreadable(Reason.TRAINING_MODE, "it has the outputs of the training form")
    constants = normalization(reader)
    return constants.op(stored=(constants.channels,) * 4)


def normalization(reader: Reader) -> Normalization:
    """The constants of a BatchNormalization."""
    gamma, beta, mean, var = map(reader.numbers, (1, 2, 3, 4), ("scale", "bias", "mean", "variance"))
    return reading.normalization(gamma, beta, mean, var, float(reader.attribute("epsilon", EPSILON)))


def read_arithmetic(reader: Reader) -> ChannelAffine | None:
    """Add, Sub, Mul, Div of a computed value and a constant that varies along one axis, Neg; None for anything else."""
    are_constant = [reader.facts.constants.holds(value) for value in reader.node.inputs]
    is_negation = reader.node.op_type == "Neg"
    if sorted(are_constant) != ([False] if is_negation else [False, True]):
        return None
    data = are_constant.index(False)
    shape = reader.shape(data)
    if not shape or reader.dtype(data) not in FLOATS:
        return None
    if is_negation:
        return reading.arithmetic("mul", np.asarray(-1.0), shape, stored=())
    constant = reader.numbers(1 - data, "operand")
    aligned = operand_shape(reader, 1 - data, constant.shape, len(shape))
    if aligned is None:
        return None
    operator, stored = reader.node.op_type.lower(), (constant.size,)
    return reading.arithmetic(operator, constant.reshape(aligned), shape, constant_first=data == 1, stored=stored)
