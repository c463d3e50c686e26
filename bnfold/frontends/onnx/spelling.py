"""ONNX Runtime's operators that stand for several others, written out: a convolution or a product with its activation.

FusedConv(x, w, b, z) = activation(Conv(x, w, b) + z)        FusedGemm(x, w, b) = activation(Gemm(x, w, b))
"""

from __future__ import annotations

import onnx_ir as ir

SPELLED = "bnfold.spelled"
"""Where a node notes the operator that it was in the model."""

FUSED = {("com.microsoft", "FusedConv"): "Conv", ("com.microsoft", "FusedGemm"): "Gemm"}

PARAMETERS = {
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Elu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
}
"""The attributes of an activation, in the order in which a fused operator lists them."""

GEMM = ("alpha", "beta", "transA", "transB")


def spell_out(model: ir.Model) -> None:
    """Write out the fused operators of a model in place. It is for reading: Clip, whose bounds are inputs, stays."""
    for node in list(model.graph.all_nodes()):
        operator = FUSED.get((node.domain, node.op_type))
        activation = node.attributes.get_string("activation", "") or ""
        if operator is not None and activation != "Clip" and node.op_identifier() not in model.functions:
            _spell(node, operator, activation)


def _spell(node: ir.Node, operator: str, activation: str) -> None:
    """Write out one node: the activation behind it makes its output now."""
    graph, output = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    kept = {
        name: attribute
        for name, attribute in node.attributes.items()
        if (name in GEMM if operator == "Gemm" else not name.startswith("activation"))
    }
    first = ir.Node("", operator, node.inputs[:3], attributes=kept.values(), name=node.name, version=None)
    first.meta[SPELLED] = node.op_type
    made = [first]
    value = first.outputs[0]
    if operator == "Conv" and len(node.inputs) > 3 and node.inputs[3] is not None:
        made.append(ir.Node("", "Add", [value, node.inputs[3]], name=f"{node.name}:sum"))
        value = made[-1].outputs[0]
    if activation:
        made.append(ir.Node("", activation, [value], attributes=_parameters(node, activation), name=f"{node.name}:act"))
        value = made[-1].outputs[0]
    name = output.name
    for index, step in enumerate(made[:-1]):
        step.outputs[0].name = f"{name}:{index}"
    value.shape, value.type = output.shape, output.type
    for inner in (step.outputs[0] for step in made[:-1]):
        inner.shape, inner.type = output.shape, output.type
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = name


def _parameters(node: ir.Node, activation: str) -> list[ir.Attr]:
    given = node.attributes.get_floats("activation_params", None) or ()
    names = PARAMETERS.get(activation, ())
    if node.op_type == "FusedGemm":
        values = {name: node.attributes.get_float(f"activation_{name}", None) for name in names}
        return [ir.AttrFloat32(name, value) for name, value in values.items() if value is not None]
    return [ir.AttrFloat32(name, value) for name, value in zip(names, given, strict=False)]
