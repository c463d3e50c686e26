"""What shapes are inferred from, and what is known of operators until an edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.frontends.limits import LIMITS
from bnfold.frontends.onnx.files.loading import parse
from bnfold.frontends.onnx.files.original import as_read
from bnfold.frontends.onnx.operators import skeleton
from bnfold.frontends.onnx.operators.constants import Constants
from bnfold.frontends.onnx.operators.shapes import Inference
from bnfold.frontends.onnx.scopes import Scopes
from bnfold.frontends.onnx.view import OnnxGraph
from bnfold.planning.fold import fold
from bnfold.planning.planner import make_plan

MODELS = Path(__file__).resolve().parents[3] / "models"

TEXT = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float["N", 2, 8, 8] x, bool c) => (float["N", 2, "H", "W"] y)
<int64[4] target = {0, 2, -1, 4}, float[2, 2, 1, 1] w = {1.0, 2.0, 3.0, 4.0}>
{
    a = Conv(x, w)
    b = Reshape(a, target)
    d = Shape(b)
    e = Reshape(a, d)
    f = local.twice(e)
    y = If(c) <then_branch = t () => (p) { p = Relu(f) }, else_branch = u () => (q) { q = Conv(f, w) }>
}
<domain: "local", opset_import: ["" : 17]> twice (i) => (o) { j = Relu(i)
 o = Add(j, j) }
"""


def toy() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def with_large_constant() -> onnx.ModelProto:
    """A model whose weight of megabytes is in an attribute."""
    proto = toy()
    weight = numpy_helper.from_array(np.ones((2, 2, 1, 1 << 18), np.float32), "large")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["large"], value=weight))
    return proto


def with_another_name_of_the_domain() -> onnx.ModelProto:
    proto = toy()
    proto.graph.node[0].domain = "ai.onnx"
    return proto


def infer(model: ir.Model, original: onnx.ModelProto | None) -> Inference:
    return Inference(model, Constants(model, Scopes(model), {}, {}), original)


@pytest.mark.parametrize("make", [toy, with_large_constant, with_another_name_of_the_domain])
def test_a_copy_of_the_protobuf_tells_the_same_shapes(make: Callable[[], onnx.ModelProto]) -> None:
    model = parse(make())
    copied, serialised = infer(model, as_read(model)), infer(model, None)
    assert copied.shapes == serialised.shapes
    assert copied.types == serialised.types
    assert copied.symbols == serialised.symbols
    known = {value.name: shape for value, shape in copied.shapes.items()}
    assert known["b"] == known["e"] == known["o"] == ("N", 2, 16, 4)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_a_copy_of_a_shipped_model_tells_the_same_shapes(path: Path) -> None:
    model = parse(onnx.load(path), limits=LIMITS)
    copied, serialised = infer(model, as_read(model)), infer(model, None)
    assert copied.shapes == serialised.shapes
    assert copied.types == serialised.types


def test_large_tensors_are_not_copied() -> None:
    weight = numpy_helper.from_array(np.ones((1 << 10, 1 << 10), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1 << 10]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    model = parse(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    bare = skeleton.skeleton(model, as_read(model))
    assert bare.ByteSize() < 1000
    assert list(bare.graph.initializer[0].dims) == [1 << 10, 1 << 10]


def test_an_edit_renews_the_description_of_an_operator() -> None:
    model = parse(onnx.load(MODELS / "digits_cnn.onnx"))
    graph = OnnxGraph(model)
    plan = make_plan(graph)
    changed = [node for node in plan.absorbed if not graph.op(node).has_bias]  # type: ignore[union-attr]
    assert changed
    fold(graph, plan)
    assert all(graph.op(node).has_bias for node in changed)  # type: ignore[union-attr]


WEIGHTS = """<ir_version: 8, opset_import: ["" : 17]>
g (float["N", 2, 8, 8] x, bool c, float[2] given) => (float["N", 2, "H", "W"] y, float["N", 4, "I", "J"] z)
<float[2, 2, 1, 1] w1 = {1.0, 2.0, 3.0, 4.0}, float[2, 2, 1, 1] w2 = {4.0, 3.0, 2.0, 1.0},
 float[4, 2, 1, 1] w3 = {1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0}, float[2] s = {1.0, 2.0}, float[2] b = {3.0, 4.0},
 float[2] m = {1.0, 1.0}, float[2] v = {2.0, 2.0}, float[2] given = {5.0, 6.0},
 float[4] scales1 = {1.0, 1.0, 2.0, 2.0}, float[4] scales2 = {1.0, 1.0, 3.0, 3.0}>
{
    a = Conv(x, w1)
    d = BatchNormalization(a, s, given, m, v)
    e = Conv(d, w2, b)
    f = Resize(e, , scales1)
    h = Resize(f, , scales2)
    y = If(c) <then_branch = t () => (p) { p = Conv(h, w2) }, else_branch = u () => (q) { q = Relu(h) }>
    z = Conv(h, w3)
}
"""


def test_one_weight_of_each_type_and_shape_is_read_in_place_of_all() -> None:
    model = parse(onnx.parser.parse_model(WEIGHTS))
    bare = skeleton.skeleton(model, as_read(model))
    nodes = {node.output[0]: list(node.input) for node in bare.graph.node}
    assert nodes["e"][1:] == ["w1", "s"]
    assert nodes["d"] == ["a", "s", "given", "s", "s"]  # a caller may give another vector in place of this one
    assert nodes["f"][2] == "scales1"  # the values decide the shape
    assert nodes["h"][2] == "scales2"
    assert {each.name for each in bare.graph.initializer} == {"w1", "w2", "w3", "s", "scales1", "scales2"}  # w2: a body
    copied, serialised = infer(model, as_read(model)), infer(model, None)
    assert (copied.shapes, copied.types) == (serialised.shapes, serialised.types)
    assert {value.name: shape for value, shape in copied.shapes.items()}["z"][1:] == (4, 48, 48)


FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "local" : 1, "other" : 1]>
g (float["N", 2, 8, 8] x, bool c) => (float y, float z)
{
    a = local.one(x)
    b = local.two(a)
    d = other.one(b)
    e = local.outer(d)
    y = If(c) <then_branch = t () => (p) { p = local.two(e) }, else_branch = u () => (q) { q = Relu(e) }>
    z = local.third(e)
}
<domain: "local", opset_import: ["" : 17]> one (i) => (o) { o = MaxPool <kernel_shape = [2, 2]> (i) }
<domain: "local", opset_import: ["" : 17]> two (i) => (o) { o = MaxPool <kernel_shape = [2, 2]> (i) }
<domain: "other", opset_import: ["" : 17]> one (i) => (o) { o = MaxPool <kernel_shape = [2, 2]> (i) }
<domain: "local", opset_import: ["" : 17, "local" : 1]> outer (i) => (o) { o = local.two(i) }
<domain: "local", opset_import: ["" : 17]> third (i) => (o) { o = MaxPool <kernel_shape = [3, 3]> (i) }
"""


def test_functions_that_differ_in_name_alone_are_one() -> None:
    proto = onnx.parser.parse_model(FUNCTIONS)
    skeleton.share_functions(proto)
    assert [(each.domain, each.name) for each in proto.functions] == [
        *(("local", "one"), ("other", "one"), ("local", "outer"), ("local", "third")),
    ]
    assert [node.op_type for node in proto.graph.node] == ["one", "one", "one", "outer", "If", "third"]
    assert proto.graph.node[4].attribute[0].g.node[0].op_type == "one"
    assert proto.functions[2].node[0].op_type == "one"
    model = parse(onnx.parser.parse_model(FUNCTIONS))
    known = {value.name: shape for value, shape in infer(model, as_read(model)).shapes.items()}
    assert [known[name] for name in ("a", "b", "d", "e", "z")] == [("N", 2, size, size) for size in (7, 6, 5, 4, 2)]
