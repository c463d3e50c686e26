"""What is written out for the calls of functions makes the same as the calls, whatever names they use."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from bnfold.proof import inlining
from bnfold.proof.inlining import can_inline, inline, key_of
from tests.toys.onnx_functions import DOMAIN, parse

BODY_POOL = ["p", "q", "y/p"]
"""Names of values in bodies, which may be none of the graphs around them."""

POOL = ["a", "b", "c", "x", "y", "f/a", "y/a"]
"""Names that graphs and functions share, some of which are what new names begin like."""


class Drawing:
    """A model of functions that call each other, in which as many names as possible are the same."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.functions: list[onnx.FunctionProto] = []

    def nodes(self, known: list[str], *, attributes: bool, bodies: bool = True) -> list[onnx.NodeProto]:
        nodes: list[onnx.NodeProto] = []
        pool = POOL if bodies else BODY_POOL
        names = [name for name in self.generator.permutation(pool) if name not in known]
        for name in names:
            kind = self.generator.integers(5 if bodies else 4)
            read = [str(self.generator.choice(known)) for _ in range(2)]
            if kind == 0:
                node = helper.make_node("Sub", read, [name])
            elif kind == 1 or (kind == 2 and not self.functions):
                node = helper.make_node("Elu", read[:1], [name])
                self._set(node, "alpha", attributes=attributes)
            elif kind in (2, 3) and self.functions:
                function = self.generator.choice(len(self.functions))
                node = helper.make_node(f"F{function}", read, [name], domain=DOMAIN)
                self._set(node, "e", attributes=attributes)
            elif kind == 3:
                node = helper.make_node("Neg", read[:1], [name])
            else:
                sides = [
                    helper.make_graph(self.nodes([*known], attributes=attributes, bodies=False), f"body{side}", [], [])
                    for side in range(2)
                ]
                for side in sides:
                    side.output.add(name=side.node[-1].output[0])
                node = helper.make_node("If", ["flag"], [name], then_branch=sides[0], else_branch=sides[1])
            node.name = str(self.generator.choice(["", f"y{len(nodes)}" if bodies else ""]))
            nodes.append(node)
            known.append(str(name))
        return nodes

    def _set(self, node: onnx.NodeProto, name: str, *, attributes: bool) -> None:
        kind = self.generator.integers(3)
        if kind == 0:
            node.attribute.append(helper.make_attribute(name, float(self.generator.random())))
        elif kind == 1 and attributes:
            node.attribute.add(name=name, type=onnx.AttributeProto.FLOAT, ref_attr_name="e")

    def model(self) -> onnx.ModelProto:
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
        for index in range(3):
            constant = helper.make_node("Constant", [], ["flag"], value_int=int(self.generator.integers(2)))
            cast = helper.make_node("Cast", ["flag"], ["flag"], to=onnx.TensorProto.BOOL)
            constant.output[0] = cast.input[0] = "integer"
            nodes = [constant, cast, *self.nodes(["b", "x"], attributes=index < 2)]
            function = helper.make_function(
                DOMAIN, f"F{index}", ["b", "x"], [nodes[-1].output[0]], nodes, opsets, attributes=["e"]
            )
            if self.generator.integers(2):
                del function.attribute[:]
                function.attribute_proto.append(helper.make_attribute("e", float(self.generator.random())))
            self.functions.append(function)
        kind = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [3])
        nodes = self.nodes(["x"], attributes=False)
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_value_info("x", kind), helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])],
            [helper.make_value_info(node.output[0], kind) for node in nodes],
        )
        return helper.make_model(graph, opset_imports=opsets, functions=self.functions, ir_version=10)


def values(proto: onnx.ModelProto) -> list[np.ndarray]:
    """The outputs. ONNX Runtime knows defaults of a function's attributes, onnx.reference does not."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.asarray([-1.5, 0.25, 2.0], np.float32), "flag": np.asarray(True)}
    wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
    return [np.asarray(value) for value in session.run(None, wanted)]


@pytest.mark.parametrize("seed", range(30))
def test_what_is_written_out_makes_the_same(seed: int) -> None:
    proto = Drawing(seed).model()
    before = proto.SerializeToString()
    keys = {key_of(function) for function in proto.functions}
    everything = inline(proto, keys).proto
    onnx.checker.check_model(everything)
    assert not everything.functions
    some = inline(proto, sorted(keys)[:2]).proto
    onnx.checker.check_model(some)
    assert [function.name for function in some.functions] == ["F2"]
    for result in (everything, some):
        for one, other in zip(values(proto), values(result), strict=True):
            np.testing.assert_array_equal(one, other)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(
    "body",
    [
        "f (x) => (x) { c = Relu(x) }",
        "f (x) => (c, c) { c = Relu(x) }",
        "f <b: graph>(x) => (y) { y = If(x) <then_branch: graph = @b, else_branch: graph = @b> }",
    ],
)
def test_functions_that_cannot_be_written_out(body: str) -> None:
    if "@b" in body:
        proto = parse("y = L.f(x)", "f (x) => (y) { y = Relu(x) }")
        proto.functions[0].node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH, ref_attr_name="b")
    else:
        proto = parse("y = L.f(x)" if "(c, c)" not in body else "y, q = L.f(x)", body)
    assert not can_inline(proto, proto.functions[0])
    with pytest.raises(ValueError, match="cannot be written out"):
        inline(proto, [key_of(proto.functions[0])])


def test_a_loop_in_a_function_keeps_its_values_apart() -> None:
    """Its body has inputs, a constant of its own, and values of the function; all are called like values outside."""
    kinds = {"i": (onnx.TensorProto.INT64, []), "go": (onnx.TensorProto.BOOL, []), "a": (onnx.TensorProto.FLOAT, [3])}
    infos = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info("go", *kinds["go"]), helper.make_tensor_value_info("q", *kinds["a"])]
    step = helper.make_tensor("c", onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    nodes = [
        helper.make_node("Add", ["a", "c"], ["p"]),
        helper.make_node("Mul", ["p", "d"], ["q"]),
    ]
    loop = helper.make_graph(nodes, "loop", infos, outputs, [step])
    body = [
        helper.make_node("Neg", ["b"], ["d"]),
        helper.make_node("Constant", [], ["count"], value_int=3),
        helper.make_node("Loop", ["count", "", "b"], ["y"], body=loop),
    ]
    proto = parse(
        "a = L.f(x)\n c = L.f(a)\n p = Neg(c)\n y = Add(p, a)", "f (b) => (y) { y = Neg(b) }", values="float[3]"
    )
    proto.functions[0].CopyFrom(
        helper.make_function(DOMAIN, "f", ["b"], ["y"], body, [helper.make_opsetid("", 18)], attributes=[])
    )
    result = inline(proto, [key_of(proto.functions[0])]).proto
    onnx.checker.check_model(result)
    for one, other in zip(values(proto), values(result), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bodies_that_calls_would_nest_too_deep_are_not_written_out() -> None:
    """Each function calls the one before it in a body."""
    bodies = ["f0 (x) => (y) { y = Neg(x) }"]
    bodies += [
        f"f{k} (x) => (y) {{ t = Constant<value = bool {{1}}>()\n y = If(t) <then_branch = a () => (p) "
        f"{{ p = L.f{k - 1}(x) }}, else_branch = b () => (q) {{ q = Neg(x) }}> }}"
        for k in range(1, 400)
    ]
    proto = parse("y = L.f399(x)", *bodies)
    with pytest.raises(ValueError, match="too deep"):
        inline(proto, [key_of(function) for function in proto.functions])


def test_functions_whose_operators_mean_something_else_in_another_opset_cannot_be_written_out() -> None:
    proto = parse("y = L.f(x)", "f (x) => (y) { y = Relu(x) }")
    assert can_inline(proto, proto.functions[0])
    proto.functions[0].opset_import[0].version = 14  # in which Relu became what it is
    assert can_inline(proto, proto.functions[0])
    proto.functions[0].opset_import[0].version = 13
    assert not can_inline(proto, proto.functions[0])
    proto.functions[0].opset_import[0].version = 10_000  # of which nobody knows anything
    assert not can_inline(proto, proto.functions[0])


def test_operators_of_another_domain_need_one_version() -> None:
    proto = parse("y = L.f(x)", "f (x) => (y) { y = Z.Op(x) }")
    proto.functions[0].opset_import.append(helper.make_opsetid("Z", 3))
    assert can_inline(proto, proto.functions[0])
    proto.opset_import.append(helper.make_opsetid("Z", 2))
    assert not can_inline(proto, proto.functions[0])


def test_an_opset_that_only_a_function_imports_goes_with_its_nodes() -> None:
    proto = parse("y = L.f(x)", "f (x) => (y) { y = Z.Op(x) }")
    proto.functions[0].opset_import.append(helper.make_opsetid("Z", 3))
    assert helper.make_opsetid("Z", 3) in inline(proto, [key_of(proto.functions[0])]).proto.opset_import


def test_a_call_that_may_fall_back_to_either_of_two_defaults_stays() -> None:
    """The call in `g` sets `e` where a call of `g` sets it, and leaves the default of `f` otherwise."""
    proto = parse(
        "y = L.g(x)",
        "f (x) => (y) { y = Elu<alpha: float=@e>(x) }",
        "g <e>(x) => (y) { y = L.f<e: float=@e>(x) }",
    )
    proto.functions[0].attribute_proto.append(helper.make_attribute("e", 0.25))
    both = inline(proto, [key_of(function) for function in proto.functions]).proto
    assert [attribute.f for attribute in both.graph.node[0].attribute] == [0.25]
    with pytest.raises(ValueError, match="depends on another call"):
        inline(proto, [key_of(proto.functions[0])])


def test_functions_of_one_name_are_told_apart() -> None:
    proto = parse("z = L.f(x)\n y = L.f(z)", "f (x) => (y) { y = Neg(x) }", "f (x) => (y) { y = Relu(x) }")
    proto.functions[1].overload = proto.graph.node[1].overload = "other"
    only = inline(proto, [key_of(proto.functions[1])]).proto
    assert [node.op_type for node in only.graph.node] == ["f", "Relu"]
    assert [function.overload for function in only.functions] == [""]


def test_calls_that_would_be_too_many_are_not_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each function calls the one before it twice."""
    bodies = ["f0 (x) => (y) { y = Neg(x) }"]
    bodies += [f"f{k} (x) => (y) {{ a = L.f{k - 1}(x)\n y = L.f{k - 1}(a) }}" for k in range(1, 40)]
    proto = parse("y = L.f39(x)", *bodies)
    monkeypatch.setattr(inlining, "BYTES", 1 << 22)
    with pytest.raises(ValueError, match="too much"):
        inline(proto, [key_of(function) for function in proto.functions])
