"""Models in memory that an exporter made: numbers as a file would store them, and the program around them."""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import bnfold


@pytest.fixture(scope="module")
def exported() -> torch.onnx.ONNXProgram:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.3), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            nn.Sequential(*layers).eval(), (torch.randn(2, 3, 9, 9),), dynamo=True, optimize=False, verbose=False
        )
    assert program is not None
    return program


@pytest.fixture
def program(exported: torch.onnx.ONNXProgram) -> torch.onnx.ONNXProgram:
    """One for each test."""
    return torch.onnx.ONNXProgram(exported.model.clone(), exported.exported_program)


def batchnorms(model: ir.Model) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph)


def test_an_epsilon_in_memory_is_that_of_a_file(program: torch.onnx.ONNXProgram) -> None:
    """An exporter may leave a double where every runtime reads a float, and the 13th digit is another one."""
    model = program.model
    (norm, *_) = (node for node in model.graph if node.op_type == "BatchNormalization")
    epsilon = norm.attributes["epsilon"].as_float()
    assert epsilon != float(np.float32(epsilon))
    folded, outcomes = bnfold.fuse(model, return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [bnfold.Fold] * 2
    written, read = (bnfold.fuse(each) for each in (ir.to_proto(model), ir.from_proto(ir.to_proto(model))))
    stored = {name: value.const_value.numpy() for name, value in folded.graph.initializers.items() if value.const_value}
    for tensor in written.graph.initializer:
        np.testing.assert_array_equal(stored[tensor.name], ir.from_proto(tensor).numpy())
        np.testing.assert_array_equal(stored[tensor.name], read.graph.initializers[tensor.name].const_value.numpy())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_program_comes_back_as_a_program(inplace: bool, program: torch.onnx.ONNXProgram) -> None:
    before, x = ir.to_proto(program.model), torch.randn(2, 3, 9, 9)
    expected = program(x)[0]
    folded = bnfold.fuse(program, inplace=inplace)
    assert (folded is program) == inplace
    assert isinstance(folded, torch.onnx.ONNXProgram)
    assert batchnorms(folded.model) == 0
    assert folded.exported_program is program.exported_program
    assert bnfold.verify(before, folded).is_equivalent
    torch.testing.assert_close(folded(x)[0], expected)
    if not inplace:
        assert ir.to_proto(program.model) == before


def test_a_program_is_planned_and_verified_like_its_model(program: torch.onnx.ONNXProgram) -> None:
    assert bnfold.plan(program) == bnfold.plan(program.model)
    assert bnfold.verify(program, bnfold.fuse(program)).is_equivalent
