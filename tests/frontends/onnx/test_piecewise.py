"""Shapes that are inferred in pieces are those of the whole model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.frontends.onnx import piecewise
from bnfold.frontends.onnx.shape_inference import infer_shapes

MODELS = sorted((Path(__file__).resolve().parents[3] / "models").glob("*.onnx"))

OPEN = """<ir_version: 8, opset_import: ["" : 17, "foreign" : 1]>
g (float["N", 4, "H", 9] x, float["unk__1", 3] e) => (y, z)
<float[4, 4, 3, 3] w, float[4] ones = {1.0, 1.0, 1.0, 1.0}>
{
    a = Conv(x, w)
    k = Constant<value = float[1] {1.0}>()
    b = Relu(a)
    c = Conv(b, w)
    d = Add(c, c)
    f = Add(a, k)
    u = foreign.Operator(x)
    v = Relu(u)
    p = Sigmoid(d)
    q = MaxPool<kernel_shape = [2, 2]>(p)
    s = SequenceConstruct(q, b)
    y = Mul(f, f)
    r = SequenceInsert(s, d)
    n = Add(e, e)
    z = Compress<axis = 0>(n, t)
    t = foreign.Operator(r)
}"""


def declare(*protos: onnx.GraphProto) -> dict[str, bytes]:
    infos = (info for graph in protos for info in (*graph.value_info, *graph.output, *graph.input))
    return {info.name: info.type.SerializeToString() for info in infos if info.HasField("type")}


def compare(proto: onnx.ModelProto) -> dict[str, bytes]:
    """What pieces tell, once it is known that the whole tells the same."""
    whole = infer_shapes(proto)
    assert whole is not None
    graphs = list(piecewise.infer_graphs(proto))
    found = declare(*graphs)
    expected = declare(whole.graph)
    assert found == {name: kind for name, kind in expected.items() if name in found}
    assert found.keys() >= expected.keys() - {info.name for info in proto.graph.input}
    return {name: kind for name, kind in found.items() if len(graphs) > 1}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_pieces_tell_what_the_whole_tells(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piecewise, "PIECE", count)
    proto = onnx.parser.parse_model(OPEN)
    found = compare(proto)
    assert found["s"]
    assert b"unk__1" in found["n"]
    sizes = {found[name] for name in ("a", "c", "q", "z")}
    assert len(sizes) == 4
    assert found["c"] == found["d"] == found["p"]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_pieces_of_a_shipped_model_tell_what_the_whole_tells(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piecewise, "PIECE", 3)
    compare(onnx.load(path))


def test_a_model_that_computes_shapes_is_taken_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piecewise, "PIECE", 2)
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 3, 4] x) => (y) <int64[1] last = {-1}, int64[2] axes = {0, 1}>
    {
        a = Relu(x)
        b = Shape(a)
        c = Gather(b, axes)
        d = Concat<axis = 0>(c, last)
        e = Relu(a)
        y = Reshape(e, d)
    }""")
    assert not compare(proto)
    (graph,) = piecewise.infer_graphs(proto)
    (out,) = graph.output
    assert [dim.dim_value for dim in out.type.tensor_type.shape.dim] == [2, 3, 4]


def test_a_fact_about_an_inner_value_holds_in_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piecewise, "PIECE", 1)
    names = ["x", "a", "b", "y"]
    nodes = [
        helper.make_node("Other" if out == "a" else "Relu", [read], [out], domain="foreign" if out == "a" else "")
        for read, out in pairwise(names)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    fact = helper.make_tensor_value_info("a", TensorProto.FLOAT, [5])
    graph = helper.make_graph(nodes, "g", ends[:1], [onnx.ValueInfoProto(name="y")], value_info=[fact])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("foreign", 1)]
    found = compare(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert found["y"] == fact.type.SerializeToString()
