"""Shapes and element types of every value, without writing them into the model."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bnfold.ops import Dim, Shape


def infer(model: ir.Model) -> tuple[dict[ir.Value, Shape], dict[ir.Value, ir.DataType]]:
    """What onnx's shape inference knows on a copy of the model, keyed by the values of the original.

    The copy shares the tensors. Where inference fails, the declared shapes remain.
    """
    copy = model.clone()
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    finally:
        logger.setLevel(level)
    shapes: dict[ir.Value, Shape] = {}
    types: dict[ir.Value, ir.DataType] = {}
    for original, inferred in zip(_values(model), _values(copy), strict=True):
        tensor = inferred.const_value
        for shape in (inferred.shape, original.shape, None if tensor is None else tensor.shape):
            if shape is not None:
                shapes[original] = tuple(_dim(dim) for dim in shape)
                break
        dtype = inferred.dtype or (None if tensor is None else tensor.dtype)
        if dtype is not None:
            types[original] = dtype
    return shapes, types


def _dim(dim: int | ir.SymbolicDimProtocol) -> Dim:
    return dim if isinstance(dim, int) else dim.value


def _values(model: ir.Model) -> list[ir.Value]:
    """Every value of every graph and function, in an order that a clone shares after inference."""
    values: list[ir.Value] = []
    for graph in [*model.graphs(), *(function.graph for function in model.functions.values())]:
        values.extend(graph.inputs)
        values.extend(graph.initializers[name] for name in sorted(graph.initializers))
        for node in graph:
            values.extend(node.outputs)
    return values
