"""BatchNorms in functions whose parameters come from the calls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold import Fold, Merge, Reason, Refusal
from bnfold.api import certify, fuse_file, inspect_file, prove_files
from bnfold.errors import InvalidModelError
from bnfold.proof.certificate import Certificate
from bnfold.proof.checker import check_proof
from bnfold.proof.models import Files
from tests.toys.onnx_functions import parse
from tests.toys.onnx_graphs import operators, random

VALUES = "double[1,2,4,4]"

CONSTANTS = """<double[2,2,1,1] w = {1.0, 2.0, -3.0, 4.0}, double[2,2,1,1] u = {0.5, 2.0, 3.0, -1.0},
double[2] s = {1.5, -2.0}, double[2] b = {0.5, 1.0}, double[2] m = {0.25, -1.0}, double[2] v = {1.0, 2.0},
double[2] s2 = {0.75, 3.0}, double[2] b2 = {-0.5, 2.0}, double[2] m2 = {1.25, 0.5}, double[2] v2 = {0.5, 4.0}>"""

BLOCK = "block (x, w, s, b, m, v) => (y) { c = Conv(x, w)\n y = BatchNormalization(c, s, b, m, v) }"

NORM = "norm <eps>(x, s, b, m, v) => (y) { y = BatchNormalization<epsilon: float=@eps>(x, s, b, m, v) }"

CONV = "conv (x, w) => (y) { y = Conv(x, w) }"


def made(body: str, *functions: str) -> onnx.ModelProto:
    return parse(body, *functions, values=VALUES, constants=CONSTANTS)


def value(proto: onnx.ModelProto) -> np.ndarray:
    (found,) = ReferenceEvaluator(proto).run(None, {"x": random(1, 2, 4, 4)})
    return np.asarray(found)


def fuse(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Fold | Refusal]]:
    """Fuse, and assert that the result is proved and makes the same, and that each outcome has a name of its own."""
    before = proto.SerializeToString()
    fused, found = bnfold.fuse(proto, merge=False, return_outcomes=True)
    outcomes = [outcome for outcome in found if not isinstance(outcome, Merge)]
    assert proto.SerializeToString() == before
    again, certificate = certify(proto, merge=False)
    assert again.SerializeToString() == fused.SerializeToString()
    certificate = Certificate.from_json(certificate.to_json())
    assert check_proof(Files(proto), Files(fused), certificate).failures == ()
    onnx.checker.check_model(fused)
    np.testing.assert_allclose(value(proto), value(fused), rtol=1e-12, atol=1e-12)
    assert len({(outcome.scope, outcome.batchnorm) for outcome in outcomes}) == len(outcomes)
    assert [outcome.batchnorm for outcome in bnfold.plan(proto, merge=False)] == [
        outcome.batchnorm for outcome in outcomes
    ]
    return fused, outcomes


def left(proto: onnx.ModelProto) -> int:
    """How many BatchNorms are left, those in functions and bodies included."""
    return str(proto).count('op_type: "BatchNormalization"')


@pytest.mark.parametrize(
    ("body", "functions"),
    [
        ("y = L.block(x, w, s, b, m, v)", [BLOCK]),
        ("h = L.block(x, w, s, b, m, v)\n y = L.block(h, u, s2, b2, m2, v2)", [BLOCK]),
        ("h = L.block(x, w, s, b, m, v)\n r = Relu(h)\n y = Add(r, h)", [BLOCK]),
        ("c = Conv(x, w)\n y = L.norm<eps: float=0.25>(c, s, b, m, v)", [NORM]),
        ("c = L.conv(x, w)\n y = L.norm<eps: float=0.25>(c, s, b, m, v)", [NORM, CONV]),
        ("c = L.conv(x, w)\n y = BatchNormalization(c, s, b, m, v)", [CONV]),
        (
            "y = L.outer<e: float=0.5>(x, w, s)",
            [
                NORM,
                CONV,
                "outer <e>(x, w, s) => (y) { one = Constant<value = double[2] {1.0, 2.0}>()\n c = L.conv(x, w)\n"
                " y = L.norm<eps: float=@e>(c, s, one, one, one) }",
            ],
        ),
        (
            "one = Constant<value = bool {1}>()\n h = Relu(x)\n y = If(one) <then_branch = then () => (a) "
            "{ a = L.block(h, w, s, b, m, v) }, else_branch = other () => (q) { q = L.block(x, u, s, b, m, v) }>",
            [BLOCK],
        ),
        (
            "y = L.choose(x, w, s, b, m, v)",
            [
                "choose (x, w, s, b, m, v) => (y) { one = Constant<value = bool {1}>()\n c = Relu(x)\n"
                " y = If(one) <then_branch = then () => (k) { k0 = Conv(c, w)\n"
                " k = BatchNormalization(k0, s, b, m, v) }, else_branch = other () => (q) { k0 = Conv(x, w)\n"
                " q = BatchNormalization(k0, s, b, m, v) }> }"
            ],
        ),
    ],
    ids=[
        "once",
        "twice",
        "read twice",
        "epsilon",
        "apart",
        "weights",
        "nested",
        "call in a body",
        "body in a function",
    ],
)
def test_what_a_call_gives_folds(body: str, functions: list[str]) -> None:
    proto = made(body, *functions)
    assert left(proto) > 0
    fused, outcomes = fuse(proto)
    assert all(isinstance(outcome, Fold) for outcome in outcomes)
    assert left(fused) == 0
    assert not fused.functions


def test_names_that_are_taken() -> None:
    """The values of the function get others; those of the graph keep theirs."""
    proto = made("c = Relu(x)\n h = L.block(c, w, s, b, m, v)\n y = Add(h, c)", BLOCK)
    for index, name in enumerate(("call", "call/c", "call/n0")):
        proto.graph.node[index].name = name
    proto.graph.node[1].name, proto.graph.node[0].name = "call", "call/n0"
    for index, node in enumerate(proto.functions[0].node):
        node.name = f"n{index}"
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = proto.graph.node[2].input[1] = "call/c"
    fused, (outcome,) = fuse(proto)
    assert isinstance(outcome, Fold)
    assert (outcome.batchnorm, outcome.into) == ("call/n1", ("call/n0_2",))
    assert fused.graph.node[0] == proto.graph.node[0]


def test_the_default_of_an_epsilon() -> None:
    """A function's attribute has a default where a call does not set it."""
    proto = made("c = Conv(x, w)\n y = L.norm(c, s, b, m, v)", NORM)
    del proto.functions[0].attribute[:]
    proto.functions[0].attribute_proto.append(helper.make_attribute("eps", 0.5))
    fused, certificate = certify(proto)
    assert check_proof(Files(proto), Files(fused), certificate).is_proved
    proto.graph.node[1].attribute.append(helper.make_attribute("eps", 0.5))
    np.testing.assert_allclose(value(proto), value(fused), rtol=1e-12)


def test_functions_that_need_nothing_of_the_call_stay() -> None:
    """Only what is named changes: what folds in its function is folded there, for all calls."""
    other = "other (x) => (y) { y = Sigmoid(x) }"
    own = (
        "own (x) => (y) { w = Constant<value = double[2,2,1,1] {1.0, 2.0, 3.0, 4.0}>()\n c = Conv(x, w)\n"
        " g = Constant<value = double[2] {1.0, 2.0}>()\n y = BatchNormalization(c, g, g, g, g) }"
    )
    proto = made("h = L.other(x)\n i = L.own(h)\n r = Relu(i)\n y = L.block(r, w, s, b, m, v)", BLOCK, other, own)
    fused, outcomes = fuse(proto)
    assert [outcome.scope for outcome in outcomes] == ["main", "L.own"]
    assert operators(fused) == ["other", "own", "Relu", "Conv"]
    assert [function.name for function in fused.functions] == ["other", "own"]
    assert fused.functions[0] == proto.functions[1]
    assert left(fused) == 0


def test_a_function_that_lacks_nothing_stays_though_a_batchnorm_is_behind_it() -> None:
    own = "own (x) => (y) { w = Constant<value = double[2,2,1,1] {1.0, 2.0, 3.0, 4.0}>()\n y = Conv(x, w) }"
    proto = made("h = L.own(x)\n n = BatchNormalization(h, s, b, m, v)\n r = Relu(n)\n"
                 " y = L.block(r, w, s, b, m, v)", own, BLOCK)  # fmt: skip
    fused, outcomes = fuse(proto)
    assert [type(outcome) for outcome in outcomes] == [Refusal, Fold]
    assert operators(fused) == ["own", "BatchNormalization", "Relu", "Conv"]


def test_a_function_that_gives_constants_to_another_stays() -> None:
    """What it calls is written out in it, and folds there for all its callers."""
    outer = (
        "outer (x) => (y) { w = Constant<value = double[2,2,1,1] {1.0, 2.0, 3.0, 4.0}>()\n"
        " g = Constant<value = double[2] {1.5, 2.0}>()\n y = L.block(x, w, g, g, g, g) }"
    )
    fused, outcomes = fuse(made("h = L.outer(x)\n r = Relu(h)\n y = L.outer(r)", BLOCK, outer))
    assert [(type(outcome), outcome.scope) for outcome in outcomes] == [(Fold, "L.outer")]
    assert operators(fused) == ["outer", "Relu", "outer"]
    assert [node.op_type for node in fused.functions[0].node if node.op_type != "Constant"] == ["Conv"]


def test_a_function_that_hands_on_what_its_call_gives_is_written_out_too() -> None:
    """It gives a constant in one place, and hands on an operand in another."""
    outer = (
        "outer (x, s) => (y) { w = Constant<value = double[2,2,1,1] {1.0, 2.0, 3.0, 4.0}>()\n"
        " g = Constant<value = double[2] {1.5, 2.0}>()\n h = L.block(x, w, g, g, g, g)\n r = Relu(h)\n"
        " y = L.block(r, w, s, g, g, g) }"
    )
    fused, outcomes = fuse(made("y = L.outer(x, s)", BLOCK, outer))
    assert [type(outcome) for outcome in outcomes] == [Fold, Fold]
    assert left(fused) == 0
    assert not fused.functions


def test_a_function_whose_batchnorm_stays_is_not_written_out() -> None:
    lone = "lone (x, s, b, m, v) => (y) { r = Relu(x)\n q = BatchNormalization(r, s, b, m, v)\n y = Relu(q) }"
    proto = made("h = L.lone(x, s, b, m, v)\n y = L.block(h, w, s, b, m, v)", BLOCK, lone)
    fused, outcomes = fuse(proto)
    assert operators(fused) == ["lone", "Conv"]
    assert list(fused.functions) == list(proto.functions[1:])
    (stays,) = (outcome for outcome in outcomes if isinstance(outcome, Refusal))
    assert stays.scope == "L.lone"
    assert stays.reason is Reason.NONLINEAR


def test_a_value_of_the_graph_is_not_one_of_that_name_in_a_function() -> None:
    """The reason that is left for `lone` is found, though the graph has its `q`, too, which `block` makes."""
    lone = "lone (x, s, b, m, v) => (y) { r = Relu(x)\n q = BatchNormalization(r, s, b, m, v)\n y = Relu(q) }"
    proto = made("q = L.block(x, w, s, b, m, v)\n y = L.lone(q, s, b, m, v)", BLOCK, lone)
    _, outcomes = fuse(proto)
    (stays,) = (outcome for outcome in outcomes if isinstance(outcome, Refusal))
    assert (stays.scope, stays.reason) == ("L.lone", Reason.NONLINEAR)


def test_a_model_stays_where_writing_out_folds_nothing(tmp_path: Path) -> None:
    lone = "lone (x, s, b, m, v) => (y) { r = Relu(x)\n q = BatchNormalization(r, s, b, m, v)\n y = Relu(q) }"
    proto = made("y = L.lone(x, s, b, m, v)", lone)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    result = fuse_file(tmp_path / "model.onnx", tmp_path / "out.onnx", proof=tmp_path / "proof.json")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    assert "inlined" not in (tmp_path / "proof.json").read_text()
    (outcome,) = result.outcomes
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.NONLINEAR
    assert "what a call gives" in outcome.detail


@pytest.mark.parametrize("form", ["depthwise", "mul-add"])
def test_what_a_call_gives_is_written_as_other_operators(form: Literal["depthwise", "mul-add"]) -> None:
    lone = "lone (x, s, b, m, v) => (y) { r = Relu(x)\n q = BatchNormalization(r, s, b, m, v)\n y = Relu(q) }"
    own = (
        "own (x) => (y) { g = Constant<value = double[2] {1.0, 2.0}>()\n r = Relu(x)\n"
        " q = BatchNormalization(r, g, g, g, g)\n y = Relu(q) }"
    )
    proto = made("h = L.lone(x, s, b, m, v)\n y = L.own(h)", lone, own)
    fused, outcomes = bnfold.fuse(proto, lower=form, return_outcomes=True)
    assert {outcome.scope for outcome in outcomes} == {"main", "L.own"}
    assert all(isinstance(each, Refusal) and "written as" in each.detail for each in outcomes)
    assert left(fused) == 0
    assert [function.name for function in fused.functions] == ["own"]
    np.testing.assert_allclose(value(proto), value(fused), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "between",
    [
        "y = Neg(c)",
        "p = MaxPool<kernel_shape = [1, 1]>(c)\n q = Transpose<perm = [0, 1, 3, 2]>(p)\n"
        " y = BatchNormalization(q, g, g, g, g)",
    ],
)
def test_what_folds_through_carriers_in_a_function_is_proved(between: str) -> None:
    """The checker knows the shapes in a function that all its calls agree on."""
    own = (
        "own (x) => (y) { w = Constant<value = double[2,2,1,1] {1.0, 2.0, 3.0, 4.0}>()\n"
        f" g = Constant<value = double[2] {{1.5, 2.0}}>()\n c = Conv(x, w)\n {between} }}"
    )
    fused, (outcome,) = fuse(made("h = L.own(x)\n r = Relu(h)\n y = L.own(r)", own))
    assert isinstance(outcome, Fold)
    assert outcome.scope == "L.own"
    assert operators(fused) == ["own", "Relu", "own"]


@pytest.mark.parametrize("change", ["opset", "output", "overridable"])
def test_what_cannot_be_written_out_stays_with_its_reason(change: str) -> None:
    proto = made("y = L.block(x, w, s, b, m, v)", BLOCK)
    if change == "opset":
        proto.functions[0].opset_import[0].version = 13
    elif change == "output":
        proto.functions[0].output.append("x")
        proto.graph.node[0].output.append("z")
    else:
        proto.graph.input.append(helper.make_tensor_value_info("s", onnx.TensorProto.DOUBLE, [2]))
    fused, (outcome,) = bnfold.fuse(proto, return_outcomes=True)
    assert isinstance(outcome, Refusal)
    assert outcome.reason is (Reason.OVERRIDABLE if change == "overridable" else Reason.FUNCTION_INPUT)
    assert fused == proto


def test_a_function_of_another_opset_that_means_the_same_is_written_out() -> None:
    proto = made("y = L.block(x, w, s, b, m, v)", BLOCK)
    proto.functions[0].opset_import[0].version = 17
    fused, (outcome,) = fuse(proto)
    assert isinstance(outcome, Fold)
    assert left(fused) == 0


def test_one_call_that_folds_is_enough() -> None:
    proto = made("h = L.block(x, w, s, b, m, v)\n d = Conv(x, u)\n y = L.block(h, d, s2, b2, m2, v2)", BLOCK)
    proto.graph.node[1].CopyFrom(helper.make_node("Mul", ["u", "dyn"], ["d"]))
    proto.graph.input.append(helper.make_tensor_value_info("dyn", onnx.TensorProto.DOUBLE, []))
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    first, second = outcomes
    assert isinstance(first, Fold)
    assert isinstance(second, Refusal)
    assert second.reason is not Reason.FUNCTION_INPUT
    assert left(fused) == 1


def test_only_some_of_the_calls_are_selected() -> None:
    proto = made("h = L.block(x, w, s, b, m, v)\n y = L.block(h, u, s2, b2, m2, v2)", BLOCK)
    fused, outcomes = bnfold.fuse(proto, only=["BatchNormalization:h"], return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Fold, Refusal]
    assert left(fused) == 1
    assert bnfold.fuse(proto, skip=["*"]) == proto


@pytest.mark.parametrize("inplace", [False, True])
def test_models_of_onnx_ir(inplace: bool) -> None:
    proto = made("h = L.block(x, w, s, b, m, v)\n y = L.norm<eps: float=0.5>(h, s, b, m, v)", BLOCK, NORM)
    large = random(300, 2, 1, 1)  # lent, not copied
    proto.graph.initializer.append(numpy_helper.from_array(large, "large"))
    proto.graph.node.append(helper.make_node("Conv", ["x", "large"], ["unread"]))
    before = value(proto)
    given = ir.serde.deserialize_model(proto)
    fused = bnfold.fuse(given, inplace=inplace)
    assert (fused is given) == inplace
    assert len(given.functions) == (0 if inplace else 2)
    result = ir.serde.serialize_model(fused)
    assert left(result) == 0
    np.testing.assert_allclose(before, value(result), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("external", [False, True])
def test_files_with_large_weights(tmp_path: Path, external: bool) -> None:
    channels = 96
    shape = f"double[1,{channels},4,4]"
    proto = parse("h = L.block(x, w, s, b, m, v)\n r = Relu(h)\n y = L.block(r, w, s, b, m, v)", BLOCK, values=shape)
    arrays = {"w": random(channels, channels, 1, 1) / 16, "v": np.abs(random(channels)) + 0.5}
    arrays |= {name: random(channels, seed=seed) for seed, name in enumerate("sbm")}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    feeds = {"x": random(1, channels, 4, 4)}
    (before,) = ReferenceEvaluator(proto).run(None, feeds)
    model, output, proof = (tmp_path / name for name in ("model.onnx", "out.onnx", "proof.json"))
    onnx.save_model(proto, model, save_as_external_data=external, location="weights", size_threshold=0)
    result = fuse_file(model, output, proof=proof)
    assert [type(outcome) for outcome in result.outcomes] == [Fold, Fold]
    assert result.proof is not None
    assert result.proof.is_proved
    assert prove_files(model, output, proof).proof.is_proved
    fused = onnx.load_model(output)
    (after,) = ReferenceEvaluator(fused).run(None, feeds)
    np.testing.assert_allclose(before, after, rtol=1e-9, atol=1e-9)
    assert [outcome.batchnorm for outcome in inspect_file(model).outcomes] == [
        outcome.batchnorm for outcome in result.outcomes
    ]


def lies(certificate: Certificate) -> dict[str, Certificate]:
    return {
        "none": replace(certificate, inlined=()),
        "fewer": replace(certificate, inlined=certificate.inlined[:1]),
        "more": replace(certificate, inlined=(*certificate.inlined, ("L", "other", ""))),
    }


@pytest.mark.parametrize("lie", ["none", "fewer", "more"])
def test_a_certificate_with_other_functions_proves_nothing(lie: str) -> None:
    other = "other (x) => (y) { y = Sigmoid(x) }"
    proto = made("h = L.block(x, w, s, b, m, v)\n i = L.other(h)\n c = Conv(i, w)\n"
                 " y = L.norm<eps: float=0.5>(c, s, b, m, v)", BLOCK, NORM, other)  # fmt: skip
    fused, certificate = certify(proto)
    assert certificate.inlined == (("L", "block", ""), ("L", "norm", ""))
    assert check_proof(Files(proto), Files(fused), certificate).is_proved
    try:
        is_proved = check_proof(Files(proto), Files(fused), lies(certificate)[lie]).is_proved
    except InvalidModelError:  # it names what is in no graph without those functions
        is_proved = False
    assert not is_proved


def test_a_certificate_of_functions_that_are_not_there_is_of_another_model() -> None:
    proto = made("y = L.block(x, w, s, b, m, v)", BLOCK)
    fused, certificate = certify(proto)
    with pytest.raises(InvalidModelError, match="names a function 'none'"):
        check_proof(Files(proto), Files(fused), replace(certificate, inlined=(("L", "none", ""),)))


@pytest.mark.parametrize(
    "inlined", [[], "L", [{"domain": "L", "name": "f"}], [{"domain": "L", "name": "", "overload": ""}], [None]]
)
def test_a_list_of_functions_that_is_none(inlined: Any) -> None:
    document = json.loads(certify(made("y = L.block(x, w, s, b, m, v)", BLOCK))[1].to_json())
    with pytest.raises(InvalidModelError, match="not a certificate"):
        Certificate.from_json(json.dumps({**document, "inlined": inlined}))
