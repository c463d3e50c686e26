"""Only what a fold names changes: every other message has the bytes that it had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import Message
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

import bnfold
from bnfold import Fold, Merge, Outcome, UnsupportedModelError
from bnfold.api import Selection, fuse_file
from bnfold.frontends.onnx.files import loading, saving
from tests.toys.decorated_models import MODELS, attributes, convolution, decorate, functions, sparse, types, unknown
from tests.toys.onnx_graphs import model, node, norm, random, statistics

DATA = Path(onnx.__file__).parent / "backend/test/data"

FILES = sorted([*DATA.rglob("*.onnx"), *(Path(__file__).parents[4] / "models").glob("*.onnx")])

NOTHING = Selection(skip=("*",))


def parse(content: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.ParseFromString(content)
    return proto


def content(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def rest(message: Any, *fields: str) -> bytes:
    """A message without some of its fields."""
    bare = type(message)()
    bare.CopyFrom(message)
    for name in fields:
        bare.ClearField(name)
    return content(bare)


def named(outcomes: tuple[Outcome, ...]) -> set[str]:
    """The nodes that outcomes name."""
    names: set[str] = set()
    for each in outcomes:
        if isinstance(each, Fold):
            names |= {each.batchnorm, *each.into, *each.through}
        elif isinstance(each, Merge):
            names |= {each.into, *each.branches, *each.through}
    return names


class Comparison:
    """Of an original and what a fold made of it."""

    def __init__(self, outcomes: tuple[Outcome, ...]) -> None:
        self.named = named(outcomes)
        self.kept = 0

    def same(self, old: Message, new: Message) -> None:
        assert content(old) == content(new)
        self.kept += 1

    def models(self, old: onnx.ModelProto, new: onnx.ModelProto) -> None:
        assert rest(old, "graph", "functions") == rest(new, "graph", "functions")
        for before, after in zip(old.functions, new.functions, strict=True):
            parts = ("node", "value_info")
            assert rest(before, *parts) == rest(after, *parts)
            self.nodes(before, after)
            self.described(before, after, "value_info", "name")
        self.graphs(old.graph, new.graph)

    def graphs(self, old: onnx.GraphProto, new: onnx.GraphProto) -> None:
        parts = ("node", "initializer", "sparse_initializer", "value_info", "quantization_annotation")
        if {each.name for each in old.initializer} & {each.name for each in old.input}:  # below IR version 4
            parts = (*parts, "input")
            self.constants(old, new, "input", lambda each: each.name)
        assert rest(old, *parts) == rest(new, *parts)
        self.nodes(old, new)
        self.constants(old, new, "initializer", lambda each: each.name)
        self.constants(old, new, "sparse_initializer", lambda each: each.values.name)
        self.described(old, new, "value_info", "name")
        self.described(old, new, "quantization_annotation", "tensor_name")

    def nodes(self, old: Any, new: Any) -> None:
        after = {each.name: each for each in new.node}
        assert len(after) == len(new.node)
        order, read = [each.name for each in old.node], {name for each in nodes(new) for name in each.input}
        assert [name for name in after if name in order] == [name for name in order if name in after]
        for each in old.node:
            if each.name not in after:
                assert each.name in self.named or read.isdisjoint(each.output)
            elif any(attribute.HasField("g") for attribute in each.attribute) and each.domain != "other":
                self.bodies(each, after[each.name])
            elif each.name in self.named:
                parts = ("input", "output", "attribute", "device_configurations")
                assert rest(each, *parts) == rest(after[each.name], *parts)
                attributes = {content(attribute) for attribute in each.attribute}
                kept = [attribute for attribute in after[each.name].attribute if content(attribute) in attributes]
                assert len(kept) >= len(each.attribute) - 3
            else:
                self.same(each, after[each.name])

    def bodies(self, old: onnx.NodeProto, new: onnx.NodeProto) -> None:
        assert rest(old, "attribute") == rest(new, "attribute")
        for before, after in zip(old.attribute, new.attribute, strict=True):
            assert rest(before, "g") == rest(after, "g")
            self.graphs(before.g, after.g)

    def constants(self, old: Any, new: Any, field: str, name: Any) -> None:
        after = {name(each): each for each in getattr(new, field)}
        read = {name for each in nodes(new) for name in each.input}
        for each in getattr(old, field):
            if name(each) in after:
                self.same(each, after[name(each)])
            else:
                assert name(each) not in read
        order = [name(each) for each in getattr(old, field)]
        assert list(after)[: len(set(order) & after.keys())] == [each for each in order if each in after]

    def described(self, old: Any, new: Any, field: str, name: str) -> None:
        """What is said about values stays, unless there is no such value any more; nothing is added."""
        after = [content(each) for each in getattr(new, field)]
        gone = values(old) - values(new)
        assert after == [content(each) for each in getattr(old, field) if getattr(each, name) not in gone]
        self.kept += len(after)


def nodes(graph: Any) -> Iterator[onnx.NodeProto]:
    for each in graph.node:
        yield each
        for attribute in each.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from nodes(body)


def values(graph: Any) -> set[str]:
    made = {name for each in graph.node for name in each.output}
    if isinstance(graph, onnx.FunctionProto):
        return made | set(graph.input)
    made |= {each.name for each in (*graph.input, *graph.initializer)}
    return made | {each.values.name for each in graph.sparse_initializer}


def insist_on_the_rest(proto: onnx.ModelProto, path: Path) -> tuple[Outcome, ...]:
    """Fuse a model, as a message and as a file; assert that nothing else changes, and that both are the same."""
    before = content(proto)
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert content(proto) == before
    comparison = Comparison(outcomes)
    comparison.models(proto, fused)
    if any(isinstance(each, Fold | Merge) for each in outcomes):
        assert content(fused) != before
    else:
        assert content(fused) == before
    path.write_bytes(before)
    fuse_file(path, path.with_name("fused.onnx"), checks="none", overwrite=True)
    assert path.with_name("fused.onnx").read_bytes() == content(fused)
    again = parse(before)
    assert bnfold.fuse(again, inplace=True) is again
    assert content(again) == content(fused)
    return outcomes


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_model_of_others_keeps_what_no_fold_names(path: Path, tmp_path: Path) -> None:
    original = path.read_bytes()
    fuse_file(path, tmp_path / "out.onnx", selection=NOTHING, merge=False, checks="none")
    assert (tmp_path / "out.onnx").read_bytes() == original
    assert bnfold.fuse(parse(original), skip=["*"], merge=False) == parse(original)
    proto = parse(original)
    if len({each.name for each in proto.graph.node}) == len(proto.graph.node):
        insist_on_the_rest(proto, tmp_path / "model.onnx")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_everything_keeps_what_no_fold_names(name: str, tmp_path: Path) -> None:
    proto = decorate(MODELS[name]())
    original = proto.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(original)
    fuse_file(tmp_path / "m.onnx", tmp_path / "out.onnx", selection=NOTHING, merge=False, checks="none")
    assert (tmp_path / "out.onnx").read_bytes() == original
    assert content(bnfold.fuse(proto, skip=["*"], merge=False)) == content(proto)
    outcomes = insist_on_the_rest(proto, tmp_path / "model.onnx")
    assert any(isinstance(each, Fold) for each in outcomes)


def test_bytes_that_protobuf_would_write_otherwise_stay(tmp_path: Path) -> None:
    """The fields of a message may come in any order, and a number in more bytes than it takes."""
    proto = onnx.load(FILES[0])
    swapped = onnx.ModelProto(ir_version=proto.ir_version)
    original = rest(proto, "ir_version") + content(swapped)
    assert original != content(proto)
    assert parse(original) == proto
    (tmp_path / "m.onnx").write_bytes(original)
    fuse_file(tmp_path / "m.onnx", tmp_path / "out.onnx", selection=NOTHING, checks="none")
    assert (tmp_path / "out.onnx").read_bytes() == original


def test_external_data_moves_and_nothing_else(tmp_path: Path) -> None:
    proto = decorate(convolution())
    tensor = next(each for each in proto.graph.initializer if each.name == "w")
    small = numpy_helper.to_array(tensor).tobytes()
    (tmp_path / "w.bin").write_bytes(b"before" + small)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": "w.bin", "offset": "6", "length": str(len(small)), "mine": "kept", "checksum": "stale"}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    proto.graph.initializer.append(numpy_helper.from_array(random(100, 100, dtype=np.float32), "inside"))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "other").mkdir()
    fuse_file(tmp_path / "m.onnx", tmp_path / "other" / "out.onnx", selection=NOTHING, checks="none")
    made = onnx.load(tmp_path / "other" / "out.onnx", load_external_data=False)
    moved = next(each for each in made.graph.initializer if each.name == "w")
    where = {each.key: each.value for each in moved.external_data}
    assert (tmp_path / "other" / where.pop("location")).read_bytes() == small
    assert where == {"offset": "0", "length": str(len(small)), "mine": "kept"}
    assert rest(moved, "external_data") == rest(tensor, "external_data")
    moved.CopyFrom(tensor)
    assert content(made) == content(proto)


def test_a_new_value_does_not_take_a_name_that_something_describes() -> None:
    """A value_info of no value, of another type, would become that of the folded kernel."""
    proto = convolution()
    proto.graph.value_info.append(helper.make_tensor_value_info("w_folded", onnx.TensorProto.INT8, [7]))
    annotation = proto.graph.quantization_annotation.add(tensor_name="b_folded")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="n_bias")
    fused = bnfold.fuse(proto)
    assert {"w_folded", "b_folded"}.isdisjoint(each.name for each in fused.graph.initializer)
    assert [each.name for each in fused.graph.value_info] == ["w_folded"]
    onnx.checker.check_model(fused, full_check=True)


def test_what_an_annotation_or_the_training_reads_stays() -> None:
    proto = convolution()
    annotation = proto.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="gamma")
    proto.training_info.add().update_binding.add(key="w", value="w_new")
    fused = bnfold.fuse(proto)
    assert [each.name for each in fused.graph.initializer] == ["w", "unused", "gamma", "w_folded", "b_folded"]


def test_what_is_said_about_a_value_that_is_gone_goes_too() -> None:
    proto = decorate(convolution())
    fused = bnfold.fuse(proto)
    there = values(fused.graph)
    assert "c" not in there
    assert "n" in {each.name for each in fused.graph.value_info}
    assert not {"c", "w", "b"} & {each.name for each in fused.graph.value_info}
    assert not {"c", "w", "b"} & {each.tensor_name for each in fused.graph.quantization_annotation}


def test_shardings_follow_their_tensors() -> None:
    fused = bnfold.fuse(decorate(convolution()))
    convolutions = [each for each in fused.graph.node if each.op_type == "Conv"]
    (configuration,) = convolutions[0].device_configurations
    assert [each.tensor_name for each in configuration.sharding_spec] == ["x", "w_folded", "n"]
    assert content(configuration).endswith(unknown(0)[-4:])


def test_an_attribute_that_gets_the_value_that_it_had_stays() -> None:
    """Below opset 7 a Gemm whose C is a vector has to say so, and may have said it before."""
    gemm = node("Gemm", "x w b", "g", broadcast=1, alpha=0.5)
    gemm.attribute[1].doc_string = "for old runtimes"
    constants = {
        "w": random(4, 6, dtype=np.float32),
        "b": random(6, dtype=np.float32),
        **statistics(6, dtype=np.float32),
    }
    fused = bnfold.fuse(model([gemm, norm("g", "y", is_test=1)], constants, (2, 4), opset=6, dtype=np.float32))
    assert list(fused.graph.node[0].attribute) == [each for each in gemm.attribute if each.name == "broadcast"]


def test_the_type_of_an_output_is_not_added() -> None:
    proto = convolution()
    del proto.graph.output[:]
    proto.graph.output.add(name="y")
    assert list(bnfold.fuse(proto).graph.output) == list(proto.graph.output)


def test_values_that_functions_of_old_models_describe_in_the_graph() -> None:
    """Before IR version 10 exporters wrote them as domain::function/value."""
    proto = functions()
    proto.ir_version = 9
    proto.graph.node[0].overload = ""
    del proto.functions[1]
    proto.functions[0].overload = ""
    for name in ("c", "r", "w_folded", "nothing"):
        proto.graph.value_info.add(name=f"local::F/{name}")
    fused = bnfold.fuse(proto)
    assert [each.name for each in fused.graph.value_info] == [
        f"local::F/{name}" for name in ("r", "w_folded", "nothing")
    ]
    assert "w_folded" not in {name for each in fused.functions[0].node for name in each.output}


@pytest.mark.parametrize("make", [types, attributes])
def test_what_onnx_ir_cannot_hold_is_not_dropped_silently(make: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(UnsupportedModelError, match="Model cannot hold"):
        bnfold.fuse(tmp_path / "m.onnx")
    assert any(isinstance(each, Fold) for each in bnfold.plan(tmp_path / "m.onnx"))


def test_a_sparse_constant_is_dense_in_an_ir_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(sparse().SerializeToString())
    fused = bnfold.fuse(tmp_path / "m.onnx", skip=["*"])
    constant = next(each for each in fused.graph if each.name == "k")
    assert constant.attributes["value"].as_tensor().numpy().tolist() == [0, 0, 1, 0, 0, 0]
    assert fused.graph.initializers["t"].const_value.numpy().sum() == 2
    onnx.checker.check_model(ir.serde.serialize_model(fused))


def test_a_sparse_constant_folds() -> None:
    """It is a kernel like any other; the operator gets a dense one."""
    held = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1) + 1
    indices = numpy_helper.from_array(np.arange(16), "i")
    value = helper.make_sparse_tensor(numpy_helper.from_array(held.reshape(-1), "v"), indices, held.shape)
    nodes = [
        helper.make_node("Constant", [], ["w"], name="k", sparse_value=value),
        node("Conv", "x w", "c"),
        norm("c", "y"),
    ]
    dense = model(
        [node("Conv", "x w", "c"), norm("c", "y")],
        {"w": held, **statistics(4, dtype=np.float32)},
        (1, 4, 2, 2),
        dtype=np.float32,
    )
    proto = onnx.ModelProto()
    proto.CopyFrom(dense)
    del proto.graph.node[:], proto.graph.initializer[0]
    proto.graph.node.extend(nodes)
    fused, expected = bnfold.fuse(proto), bnfold.fuse(dense)
    assert fused.graph.initializer == expected.graph.initializer
    assert [each.op_type for each in fused.graph.node] == ["Conv"]


def test_a_file_that_changed_after_it_was_read_is_not_copied(tmp_path: Path) -> None:
    path, proto = tmp_path / "m.onnx", convolution()
    path.write_bytes(proto.SerializeToString())
    loaded = loading.load(path)
    path.write_bytes(b"something else")
    saving.save(loaded, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == proto.SerializeToString()


@pytest.mark.filterwarnings("ignore")  # onnx computes what the results are to be, with overflows
def test_each_operator_of_onnx_comes_out_as_it_went_in() -> None:
    cases = collect_testcases(None)
    assert len(cases) > 1000
    for case in cases:
        fused, outcomes = bnfold.fuse(case.model, return_outcomes=True)
        is_same = content(fused) == content(case.model)
        assert is_same != any(isinstance(each, Fold | Merge) for each in outcomes), case.name
