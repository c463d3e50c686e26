"""What a file declares of inner values is a hint: not believed against what is known, nor before a run confirms it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Reason, Refusal, api, cli
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification import confirm
from bnfold.verification.options import CompareOptions
from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32

CHANNELS = {"w": random(4, 4, 1, 1, dtype=FLOAT), "m": random(4, 4, dtype=FLOAT), **statistics(4, dtype=FLOAT)}

SPREAD = numpy_helper.from_array(np.array([1, 4, 4, 1]), "spread")


def declare(proto: onnx.ModelProto, name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> None:
    """Declare an inner value."""
    proto.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def network(nodes: list[onnx.NodeProto], shape: tuple[int | str, ...], **options: Any) -> onnx.ModelProto:
    return model(nodes, {**CHANNELS, "spread": np.array([1, 4, 4, 1])}, shape, dtype=FLOAT, **options)


def stale_convolution() -> onnx.ModelProto:
    """The batch is what the BatchNorm takes for channels; by the declaration the channels would be."""
    proto = network([node("Conv", "x w", "c"), node("Reshape", "c spread", "r"), norm("r", "y")], (4, 4, 1, 1))
    declare(proto, "c", [1, 4, 4, 1])
    return proto


def stale_reshape() -> onnx.ModelProto:
    proto = network([node("MatMul", "x m", "c"), node("Reshape", "c spread", "r"), norm("r", "y")], (4, 4))
    declare(proto, "r", [4, 4, 1, 1])
    return proto


def stale_rank() -> onnx.ModelProto:
    proto = network([node("Relu", "x", "r"), node("MatMul", "r m", "c"), norm("c", "y")], (1, 4, 4))
    declare(proto, "r", [4, 4])
    return proto


def stale_output() -> onnx.ModelProto:
    """The shape of an output is read, and decides how the product is spread."""
    nodes = [node("Reshape", "x spread", "o"), node("Shape", "o", "s"), node("MatMul", "x m", "c")]
    proto = network([*nodes, node("Reshape", "c s", "r"), norm("r", "y")], (4, 4), outputs="o y")
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("o", TensorProto.FLOAT, [4, 4, 1, 1]))
    return proto


def stale_body() -> onnx.ModelProto:
    """The stale convolution in both branches of an If."""
    proto = stale_convolution()
    bodies = []
    for name in ("then", "else"):
        body = helper.make_graph(
            [
                helper.make_node("Constant", [], [f"s_{name}"], value=SPREAD),
                node("Conv", "x w", f"c_{name}"),
                node("Reshape", f"c_{name} s_{name}", f"r_{name}"),
                norm(f"r_{name}", f"y_{name}"),
            ],
            name,
            [],
            [helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, None)],
            value_info=[helper.make_tensor_value_info(f"c_{name}", TensorProto.FLOAT, [1, 4, 4, 1])],
        )
        bodies.append(body)
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node.append(
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1])
    )
    return proto


def stale_function() -> onnx.ModelProto:
    """The stale convolution in a function, whose caller says what its input is."""
    proto = stale_convolution()
    constants = [
        helper.make_node("Constant", [], [each.name], value=each)
        for each in proto.graph.initializer
        if each.name in (*CHANNELS, "spread")
    ]
    function = helper.make_function(
        "own",
        "Block",
        ["x"],
        ["y"],
        [*constants, *proto.graph.node],
        proto.opset_import,
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 4, 1]) for name in "cr"],
    )
    del proto.graph.node[:], proto.graph.value_info[:], proto.graph.initializer[:]
    proto.ir_version = 10
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.append(function)
    proto.graph.node.append(helper.make_node("Block", ["x"], ["y"], domain="own", name="block"))
    return proto


STALE: list[Callable[[], onnx.ModelProto]] = [
    stale_convolution,
    stale_reshape,
    stale_rank,
    stale_output,
    stale_body,
    stale_function,
]


def refusals(proto: onnx.ModelProto) -> list[Refusal]:
    return [each for each in bnfold.plan(proto) if isinstance(each, Refusal)]


def warnings(proto: onnx.ModelProto, folder: Path) -> list[Any]:
    onnx.save(proto, folder / "model.onnx")
    return [each for each in api.inspect_file(folder / "model.onnx").warnings if hasattr(each, "value")]


@pytest.mark.parametrize("make", STALE, ids=lambda make: make.__name__)
def test_a_stale_shape_folds_nothing(make: Callable[[], onnx.ModelProto]) -> None:
    proto = make()
    assert refusals(proto)
    assert not [each for each in bnfold.plan(proto) if isinstance(each, Fold)]


SAID = {
    stale_convolution: ("c", "[1, 4, 4, 1]", "[4, 4, 1, 1]"),
    stale_reshape: ("r", "[4, 4, 1, 1]", "[1, 4, 4, 1]"),
    stale_rank: ("r", "[4, 4]", "[1, 4, 4]"),
    stale_output: ("o", "[4, 4, 1, 1]", "[1, 4, 4, 1]"),
    stale_body: ("c_then", "[1, 4, 4, 1]", "[4, 4, 1, 1]"),
    stale_function: ("c", "[1, 4, 4, 1]", "[4, 4, 1, 1]"),
}


@pytest.mark.parametrize("make", STALE, ids=lambda make: make.__name__)
def test_a_stale_shape_is_said_once_with_both_shapes(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    name, declared, known = SAID[make]
    (found,) = [each for each in warnings(make(), tmp_path) if each.value != "c_else"]
    assert (found.value, found.kind) == (name, "stale-declaration")
    assert f"declared as float{declared}, but it is float{known}" in found.detail


@pytest.mark.parametrize("make", STALE, ids=lambda make: make.__name__)
def test_without_the_stale_declaration_it_is_the_same(make: Callable[[], onnx.ModelProto]) -> None:
    proto = make()
    before = bnfold.plan(proto)
    for graph in (proto.graph, *proto.functions):
        del graph.value_info[:]
    assert bnfold.plan(proto) == before


def test_a_stale_type_makes_no_cast_the_identity(tmp_path: Path) -> None:
    """By its declaration, what is cast to float is float already."""
    nodes = [node("Conv", "x w", "c"), node("Cast", "c", "f", to=TensorProto.FLOAT), norm("f", "y")]
    proto = model(nodes, {"w": random(4, 4, 1, 1), **statistics(4, dtype=FLOAT)}, (1, 4, 2, 2))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    declare(proto, "c", [1, 4, 2, 2], TensorProto.FLOAT)
    (refusal,) = refusals(proto)
    assert refusal.reason is Reason.NOT_LINEAR
    (found,) = warnings(proto, tmp_path)
    assert "declared as float[1, 4, 2, 2], but it is double[1, 4, 2, 2]" in found.detail


def test_a_declaration_that_onnx_cannot_merge_loses_nothing() -> None:
    """onnx raises on it, and tells nothing of any value."""
    proto = network([node("Relu", "x", "r"), node("MatMul", "r m", "c"), norm("c", "y")], (4, 4))
    declare(proto, "m", [4, 4], TensorProto.FLOAT16)
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(proto)
    (outcome,) = bnfold.plan(proto)
    assert isinstance(outcome, Fold)


def computed(target: list[int], declared: list[Any], *, name: str = "u", norm_first: bool = False) -> onnx.ModelProto:
    """A Reshape by sizes that are computed from data, though they never vary, then a product and a BatchNorm."""
    tail = [norm("u", "c"), node("MatMul", "c m", "y")] if norm_first else [node("MatMul", "u m", "c"), norm("c", "y")]
    nodes = [
        node("ReduceSum", "x", "a", keepdims=0),
        node("Mul", "a nought", "b"),
        node("Cast", "b", "d", to=TensorProto.INT64),
        node("Add", "d target", "sizes"),
        node("Greater", "sizes below", "all"),
        node("Compress", "sizes all", "some", axis=0),
        node("Reshape", "x some", "u"),
    ]
    more = {"nought": np.array(0, FLOAT), "target": np.array(target), "below": np.array(-9)}
    proto = model([*nodes, *tail], {**CHANNELS, **more}, ("N", 16), dtype=FLOAT)
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", 4]))
    declare(proto, name, declared)
    return proto


def test_a_run_confirms_what_is_only_declared(tmp_path: Path) -> None:
    proto = computed([-1, 4], ["M", 4])
    (outcome,) = bnfold.fuse(proto, return_outcomes=True)[1]
    assert isinstance(outcome, Fold)
    found = warnings(proto, tmp_path)
    assert [each.kind for each in found] == ["confirmed-declaration"]
    assert "only declared" in found[0].detail
    assert found[0].detail.endswith("a run of the model confirmed it")


def test_a_rank_that_only_the_removed_value_has() -> None:
    """What the product reads instead of the BatchNorm's output has as many axes, though nothing says so."""
    fused, (outcome,) = bnfold.fuse(computed([-1, 4], ["M", 4], name="c", norm_first=True), return_outcomes=True)
    assert isinstance(outcome, Fold)
    onnx.checker.check_model(fused)


def test_a_run_refutes_what_is_only_declared(tmp_path: Path) -> None:
    proto = computed([1, 4, -1, 4], ["M", 4])
    (found,) = [each for each in warnings(proto, tmp_path) if each.value == "u"]
    assert found.kind == "stale-declaration"
    assert "declared as float[M, 4], but in a run of the model it was float[1, 4, 2, 4]" in found.detail
    (refusal,) = refusals(proto)
    assert refusal.reason is Reason.UNKNOWN_SHAPE


def test_a_number_that_fits_one_size_of_the_input_alone_is_refuted(tmp_path: Path) -> None:
    """The batch that is drawn first is 2, so that 8 rows are right once."""
    proto = computed([-1, 4], [8, 4])
    (found,) = warnings(proto, tmp_path)
    assert (found.value, found.kind) == ("u", "stale-declaration")


def test_what_a_caller_can_replace_confirms_nothing() -> None:
    proto = computed([-1, 4], ["M", 4])
    proto.graph.input.append(helper.make_tensor_value_info("target", TensorProto.INT64, [2]))
    (refusal,) = refusals(proto)
    assert refusal.detail.count("its shape is only declared, and the model could not be run to confirm it")


def custom(declared: list[Any] | None, *carriers: onnx.NodeProto) -> onnx.ModelProto:
    """Behind an operator that no runtime has."""
    proto = network([node("Identity", "x", "u"), *carriers, norm(carriers[-1].output[0], "y")], (2, 4))
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Mystery", "own"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2], FLOAT), "two"))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    if declared is not None:
        declare(proto, "u", declared)
    return proto


CARRIERS = {
    "product": node("MatMul", "u m", "c"),
    "concatenation": node("Concat", "u u", "c", axis=1),
    "sum": node("Sum", "u u", "c"),
    "reshape": node("Reshape", "u spread", "c"),
}


UNCONFIRMED = "its shape is only declared, and the model could not be run to confirm it"


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
def test_a_shape_that_no_run_can_confirm_is_not_believed(carrier: onnx.NodeProto) -> None:
    (refusal,) = refusals(custom([2, 4], carrier))
    assert refusal.reason is Reason.UNKNOWN_SHAPE
    assert UNCONFIRMED in refusal.detail


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
def test_where_nothing_is_declared_nothing_is_said_of_declarations(carrier: onnx.NodeProto) -> None:
    (refusal,) = refusals(custom(None, carrier))
    assert UNCONFIRMED not in refusal.detail


def test_without_a_runtime_nothing_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirm, "find_spec", lambda name: None)
    (refusal,) = refusals(computed([-1, 4], ["M", 4]))
    assert UNCONFIRMED in refusal.detail


def test_a_scaling_says_what_is_only_declared() -> None:
    """A constant factor along one axis, but it is not known which."""
    (refusal,) = refusals(custom([2, 4], node("Mul", "u two", "c")))
    assert refusal.reason is Reason.UNKNOWN_SHAPE
    assert UNCONFIRMED in refusal.detail


def test_a_model_whose_shapes_follow_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> Any:
        raise AssertionError

    monkeypatch.setattr(confirm, "run_module", run)
    declared = computed([-1, 4], ["M", 4])
    with pytest.raises(AssertionError):
        bnfold.plan(declared)
    proto = network([node("Relu", "x", "r"), node("Conv", "r w", "c"), norm("c", "y")], ("N", 4, "H", "W"))
    declare(proto, "r", ["N", 4, 7, 7])  # it varies with the input: no number to confirm
    assert isinstance(bnfold.plan(proto)[0], Fold)


def test_a_model_that_crashes_the_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = subprocess.CompletedProcess([], -11, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: crash)
    (refusal,) = refusals(computed([-1, 4], ["M", 4]))
    assert UNCONFIRMED in refusal.detail


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_result_declares_nothing_new_that_is_wrong(is_declared: bool) -> None:
    """A stale output of the convolution, which takes over the name of the BatchNorm's."""
    proto = network([node("Conv", "x w", "c"), norm("c", "n"), node("Relu", "n", "y")], (4, 4, 1, 1))
    declare(proto, "c", [1, 4, 4, 1])
    if is_declared:
        declare(proto, "n", [4, 4, 1, 1])
    fused = bnfold.fuse(proto)
    assert [each.op_type for each in fused.graph.node] == ["Conv", "Relu"]
    inner = [each for each in fused.graph.value_info if each.name in ("c", "n")]
    assert inner == list(proto.graph.value_info)[1:]


def test_a_stale_declaration_does_not_follow_to_a_fresh_name() -> None:
    """Downstream, the value between changes its name; what was wrong of the old one is not said of it."""
    proto = network(
        [norm("x", "n"), node("Relu", "x", "z"), node("MaxPool", "n", "p", kernel_shape=[1, 1])], (4, 4, 1, 1)
    )
    proto.graph.node.append(node("Conv", "p w", "y"))
    declare(proto, "p", [1, 4, 4, 1])
    statistic = {each.name: each for each in proto.graph.initializer}
    statistic["gamma"].CopyFrom(numpy_helper.from_array(np.abs(CHANNELS["gamma"]), "gamma"))
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert isinstance(outcomes[0], Fold)
    stale = [each for each in fused.graph.value_info if each.name != "p"]
    assert all([dim.dim_value for dim in each.type.tensor_type.shape.dim] != [1, 4, 4, 1] for each in stale)


def test_the_command_line_says_it(tmp_path: Path) -> None:
    onnx.save(stale_convolution(), tmp_path / "model.onnx")
    arguments = ["inspect", str(tmp_path / "model.onnx")]
    (line,) = [each for each in CliRunner().invoke(cli.cli, arguments).output.splitlines() if "warning" in each]
    assert line.startswith("warning: c: declared as float[1, 4, 4, 1], but it is float[4, 4, 1, 1]")
    record = json.loads(CliRunner().invoke(cli.cli, [*arguments, "--json"]).stdout)
    (warning,) = record["warnings"]
    assert (warning["value"], warning["kind"], warning["batchnorm"]) == ("c", "stale-declaration", None)


def test_many_stale_declarations_are_counted(tmp_path: Path) -> None:
    names = [f"r{index}" for index in range(12)]
    nodes = [node("Relu", each, other) for each, other in zip(["x", *names], names, strict=False)]
    proto = network([*nodes, node("Conv", "r11 w", "c"), norm("c", "y")], (4, 4, 1, 1))
    for name in names:
        declare(proto, name, [8, 4, 1, 1])
    onnx.save(proto, tmp_path / "model.onnx")
    arguments = ["inspect", str(tmp_path / "model.onnx")]
    lines = [each for each in CliRunner().invoke(cli.cli, arguments).output.splitlines() if "warning" in each]
    assert len(lines) == 7
    assert lines[-1] == "warning: and 6 stale declarations more (--verbose lists them)"
    assert len(json.loads(CliRunner().invoke(cli.cli, [*arguments, "--json"]).stdout)["warnings"]) == 12


def test_a_file_is_run_on_the_inputs_that_the_caller_gives(tmp_path: Path) -> None:
    """Of the sizes that are drawn, none fits: the sum of what is drawn is no whole number of rows."""
    proto = computed([-1, 4], ["M", 4])
    proto.graph.node[1].input[1] = "one"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1, FLOAT), "one"))
    onnx.save(proto, tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.zeros((2, 16), FLOAT))
    given = CompareOptions(InputOptions((tmp_path / "inputs.npz",)))
    drawn = api.fuse_file(tmp_path / "model.onnx", tmp_path / "drawn.onnx")
    assert isinstance(drawn.outcomes[0], Refusal)
    result = api.fuse_file(tmp_path / "model.onnx", tmp_path / "given.onnx", comparison=given)
    assert isinstance(result.outcomes[0], Fold)
    assert result.smoke is not None
    assert result.smoke.has_run
    assert [each.kind for each in result.warnings] == ["confirmed-declaration"]
