"""Shapes that follow from a model's inputs; what a file declares of inner values is not believed."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper, shape_inference

from bnfold.proof.certificate import Name, Shape
from bnfold.proof.models import Files, Side

Known = dict[Name, tuple[Shape | None, int]]
"""Shape and element type of each value, by scope and name."""

SMALL = 1 << 12
"""Elements of a tensor whose values may be shapes."""


def infer(side: Side, assumed: Mapping[Name, tuple[Shape, int]]) -> Known:
    """What is known of each value, if some of the main graph are as is assumed."""
    light = _without_weights(side.files)
    outputs = {each.name: each for each in light.graph.output}
    for (path, name), (sizes, element) in assumed.items():
        if path == "main":
            info = helper.make_tensor_value_info(name, element, sizes)
            if name in outputs:
                outputs[name].CopyFrom(info)
            else:
                light.graph.value_info.append(info)
    found = _inferred(light, side)
    is_partial = any(
        _is_unknown(found.get((path, name), (None, 0))[0])
        for path, scope in side.scopes.items()
        for name in scope.makers
        if not scope.is_function
    )
    if is_partial and _evaluate_constants(light, side, found):
        return _inferred(light, side)
    return found


def _is_unknown(shape: Shape | None) -> bool:
    """Whether nothing is known of a shape but the number of its axes, as behind a Slice of computed bounds."""
    return shape is None or (shape != () and all(size is None for size in shape))


def _evaluate_constants(light: onnx.ModelProto, side: Side, known: Known) -> bool:
    """Put the values of integers that are computed from constants in place of the nodes that compute them.

    Shape inference does not follow all of these, and where they are the axes or the target of an operator, it learns
    nothing about what that makes.
    """
    scope = Side(Files(light, side.files.folder, side.files.held), lambda *_: known).main
    has_changed = False
    for node in light.graph.node:
        if node.op_type == "Constant" or len(node.output) != 1:
            continue
        constant = scope.constant(node.output[0])
        if constant is None or constant.dtype.kind not in "ib" or constant.size > SMALL:
            continue
        value = onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(constant))
        node.CopyFrom(onnx.NodeProto(op_type="Constant", output=node.output, attribute=[value]))
        has_changed = True
    return has_changed


def _inferred(light: onnx.ModelProto, side: Side) -> Known:
    """What `onnx.shape_inference` finds."""
    try:
        inferred = shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # it raises anything on a model that it does not understand: then less is known
        inferred = light
    found: Known = {}
    for path, scope in Side(Files(inferred, side.files.folder, side.files.held)).scopes.items():
        if scope.is_function:
            continue
        graph = scope.message
        for info in (*graph.value_info, *graph.input, *graph.output):
            kind = info.type.tensor_type
            shape: Shape | None = None
            if kind.HasField("shape"):
                shape = tuple(each.dim_value if each.HasField("dim_value") else None for each in kind.shape.dim)
            found[path, info.name] = shape, kind.elem_type
        for tensor in graph.initializer:
            found[path, tensor.name] = tuple(tensor.dims), tensor.data_type
    return found


def _without_weights(files: Files) -> onnx.ModelProto:
    """A copy with the shapes of large tensors in place of their values, and without what is declared inside."""
    light = onnx.ModelProto()
    stack = [(files.proto.graph, light.graph)]
    for field in ("ir_version", "opset_import", "functions"):
        part = onnx.ModelProto()
        _copy(files.proto, part, field)
        light.MergeFrom(part)
    while stack:
        source, target = stack.pop()
        for field in ("name", "input", "output", "node"):
            _copy(source, target, field)
        _forget_shapes(target)
        listed = {each.name for each in target.input}
        for tensor in source.initializer:
            count = 1
            for size in tensor.dims:
                count *= size
            if count <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
                target.initializer.add().CopyFrom(tensor)
            elif tensor.name not in listed:
                target.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        for sparse in source.sparse_initializer:  # which inference does not look at
            name, kind = sparse.values.name, sparse.values.data_type
            target.input.append(helper.make_tensor_value_info(name, kind, list(sparse.dims)))
        bodies = [attribute.g for node in target.node for attribute in node.attribute if attribute.HasField("g")]
        bodies += [body for node in target.node for attribute in node.attribute for body in attribute.graphs]
        while bodies:
            body = bodies.pop()
            del body.value_info[:]
            _forget_shapes(body)
            for node in body.node:
                for attribute in node.attribute:
                    bodies.extend([attribute.g] if attribute.HasField("g") else [])
                    bodies.extend(attribute.graphs)
    return light


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """Drop what a graph declares of its outputs but their types."""
    for info in graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")


def _copy(source: object, target: object, field: str) -> None:
    found = getattr(source, field)
    if isinstance(found, str | int):
        setattr(target, field, found)
    else:
        getattr(target, field).extend(found)
