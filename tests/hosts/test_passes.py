"""`FoldBatchNorm` within pipelines of passes over `onnx_ir` models."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnxscript import optimizer

import bnfold
from bnfold.hosts.passes import FoldBatchNorm

RESIDUAL = Path(__file__).parents[2] / "models" / "digits_residual.onnx"


def batchnorms(model: ir.Model) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph)


def test_it_folds_in_place_and_says_so() -> None:
    model, fold = ir.load(RESIDUAL), FoldBatchNorm()
    before = batchnorms(model)
    result = fold(model)
    assert result.modified
    assert result.model is model
    assert (before, batchnorms(model)) == (8, 0)
    assert sum(outcome.is_batchnorm for outcome in fold.outcomes) == 8
    assert bnfold.verify(RESIDUAL, model).is_equivalent
    assert not fold(model).modified


def test_it_takes_its_place_among_other_passes() -> None:
    model = ir.load(RESIDUAL)
    kept = FoldBatchNorm(only=["/0/*"], merge=False)
    result = ir.passes.Sequential(kept, FoldBatchNorm())(model)
    assert result.modified
    assert sum(isinstance(outcome, bnfold.Fold) for outcome in kept.outcomes) == 1
    assert batchnorms(result.model) == 0


def test_onnxscript_optimises_what_is_left() -> None:
    model = FoldBatchNorm()(ir.load(RESIDUAL)).model
    optimised = optimizer.optimize(model)
    assert bnfold.verify(RESIDUAL, optimised, allow_interface=True).is_equivalent
