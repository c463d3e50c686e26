"""Branches in bodies and functions, and of quantised weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold
from tests.toys.onnx_branches import BOTH, CONSTANTS, SAME, C, conv, merges
from tests.toys.onnx_graphs import evaluate, fuse, model, node, norm, operators


def test_quantised_branches_stay() -> None:
    scales = {"scale": np.full(C, 0.1, np.float32), "zero": np.zeros(C, np.int8)}
    integers = np.random.default_rng(0).integers(-9, 9, (C, C, 3, 3)).astype(np.int8)
    nodes = [
        node("DequantizeLinear", "q scale zero", "w", axis=0),
        conv("x w", "c", **SAME),
        node("Add", "c x", "y"),
    ]
    fused, outcomes = bnfold.fuse(
        model(nodes, {"q": integers, **scales}, (2, C, 5, 5), dtype=np.float32), return_outcomes=True
    )
    assert operators(fused) == ["DequantizeLinear", "Conv", "Add"]
    assert not merges(outcomes)


def test_branches_in_the_body_of_an_if() -> None:
    kind = TensorProto.DOUBLE
    nodes = [*BOTH, norm("x", "n", "p_"), node("Sum", "c d n", "out")]
    constants = {name: CONSTANTS[name] for name in ("w", "v", "p_gamma", "p_beta", "p_mean", "p_var")}
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    end = [helper.make_tensor_value_info("out", kind, (2, C, 6, 6))]
    then = helper.make_graph(nodes, "then", [], end, initializers)
    otherwise = helper.make_graph([node("Neg", "x", "out")], "else", [], end)
    flow = helper.make_node("If", ["yes"], ["y"], name="If", then_branch=then, else_branch=otherwise)
    fused, outcomes = fuse(model([flow], {"yes": np.asarray(True)}, (2, C, 6, 6)))
    (body,) = [each.g for each in fused.graph.node[0].attribute if each.name == "then_branch"]
    assert [each.op_type for each in body.node] == ["Conv"]
    assert [each.scope for each in outcomes] == ["main/If/then_branch"] * 2


def test_a_branch_across_a_scope_stays() -> None:
    kind = TensorProto.DOUBLE
    end = [helper.make_tensor_value_info("out", kind, (2, C, 6, 6))]
    then = helper.make_graph([conv("x v", "d"), node("Add", "c d", "out")], "then", [], end)
    otherwise = helper.make_graph([node("Neg", "x", "out")], "else", [], end)
    flow = helper.make_node("If", ["yes"], ["y"], name="If", then_branch=then, else_branch=otherwise)
    constants = {name: CONSTANTS[name] for name in ("w", "v")}
    _, outcomes = fuse(model([BOTH[0], flow], {"yes": np.asarray(True), **constants}, (2, C, 6, 6)))
    assert not merges(outcomes)


def test_a_chain_in_a_function() -> None:
    """A function holds no initializers: its weights are Constant nodes. (Sums stay: no types are known there.)"""
    names = ("w", "v", "p_gamma", "p_beta", "p_mean", "p_var")
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(CONSTANTS[name])) for name in names
    ]
    body = [*constants, conv("x w", "c", **SAME), norm("c", "n", "p_"), conv("n v", "y")]
    proto = calling(body)
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert [each.op_type for each in fused.functions[0].node if each.op_type != "Constant"] == ["Conv"]
    assert len(merges(outcomes)) == 1
    onnx.checker.check_model(fused)
    expected, actual = evaluate(proto)["y"], evaluate(fused)["y"]
    assert np.abs(expected - actual).max() <= 1e-12 * np.abs(expected).max()


def calling(body: Sequence[onnx.NodeProto], **attributes: Any) -> onnx.ModelProto:
    """A model that calls a function with this body."""
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Block", ["x"], ["y"], body, imports, attributes=list(attributes))
    info = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, (2, C, 6, 6)) for name in ("x", "y")]
    call = helper.make_node("Block", ["x"], ["y"], domain="own", **attributes)
    graph = helper.make_graph([call], "graph", info[:1], info[1:])
    opsets = [*imports, helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)


def test_attributes_that_a_caller_sets_keep_a_convolution_from_merging() -> None:
    """In a function, strides may be a reference to the caller's attribute; a BatchNorm still folds."""
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(CONSTANTS[name]))
        for name in ("w", "v", "p_gamma", "p_beta", "p_mean", "p_var")
    ]
    strided = conv("x w", "c", **SAME)
    strided.attribute.append(onnx.AttributeProto(name="strides", type=onnx.AttributeProto.INTS, ref_attr_name="steps"))
    body = [*constants, strided, norm("c", "n", "p_"), conv("n v", "y")]
    proto = calling(body, steps=[1, 1])
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    left = [each.op_type for each in fused.functions[0].node if each.op_type != "Constant"]
    assert left == ["Conv", "Conv"]
    assert isinstance(outcomes[0], Fold)
