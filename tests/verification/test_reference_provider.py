"""The reference evaluator of onnx as a provider: it counts, and computes both models in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

import bnfold
from bnfold.errors import IncomparableError
from bnfold.verification.metrics import spacing
from tests.proof.test_proof_files import conv, custom


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_fold_agrees_in_float64(dtype: type) -> None:
    model = conv(dtype)
    verdict = bnfold.verify(model, bnfold.fuse(model), providers=["reference"])
    assert verdict.is_equivalent
    plain, exact = verdict.outputs
    assert (exact.provider, exact.is_deployed) == ("reference", True)
    # The rounding of the weights is all that is left, or that of the output.
    assert exact.error <= max(plain.error, spacing(np.dtype(dtype))[0])


def test_a_fault_is_seen_there_too() -> None:
    model, faulty = conv(np.float32), conv(np.float32)
    beta = next(tensor for tensor in faulty.graph.initializer if tensor.name == faulty.graph.node[1].input[2])
    moved = onnx.numpy_helper.to_array(beta) + np.float32(0.01)
    beta.CopyFrom(onnx.numpy_helper.from_array(moved, beta.name))
    verdict = bnfold.verify(model, faulty, providers=["reference"])
    assert [(output.provider, output.is_equivalent) for output in verdict.outputs] == [
        ("cpu", False),
        ("reference", False),
    ]


def test_a_model_that_the_evaluator_does_not_know_is_an_error() -> None:
    with pytest.raises(IncomparableError):
        bnfold.verify(custom(), custom(), providers=["reference"])
