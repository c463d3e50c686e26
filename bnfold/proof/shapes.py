"""Shapes that follow from a model's inputs. What a file declares about inner values is not believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import helper, shape_inference

from bnfold.proof.certificate import Name, Shape
from bnfold.proof.inlining import inline, key_of
from bnfold.proof.models import Files, Side
from bnfold.proof.pinned import find_pinned

Known = dict[Name, tuple[Shape | None, int]]
"""Shape and element type of each value, by scope and name."""

SMALL = 1 << 12
"""The most elements of a tensor whose values may be shapes."""


def infer(side: Side, assumed: Mapping[Name, tuple[Shape, int]]) -> Known:
    """Shape and element type of each value, given assumed ones of some values of the main graph."""
    light = _without_weights(side.files)
    outputs = {output.name: output for output in light.graph.output}
    for (path, name), (sizes, element) in assumed.items():
        if path == "main":
            info = helper.make_tensor_value_info(name, element, sizes)
            if name in outputs:
                outputs[name].CopyFrom(info)
            else:
                light.graph.value_info.append(info)
    _name_sizes(light)
    known = _inferred(light, side)
    is_partial = any(
        _is_unknown(known.get((path, name), (None, 0))[0])
        for path, scope in side.scopes.items()
        for name in scope.makers
        if not scope.is_function
    )
    if is_partial and _evaluate_constants(light, side, known):
        return _inferred(light, side)
    return known


def _is_unknown(shape: Shape | None) -> bool:
    """Whether only the rank of a shape is known, as behind a Slice with computed bounds."""
    return shape is None or (shape != () and all(size is None for size in shape))


def _evaluate_constants(light: onnx.ModelProto, side: Side, known: Known) -> bool:
    """Replace nodes that compute integers from constants by their values.

    Shape inference does not follow all of these. Where they are the axes or the target of an operator, it then knows
    nothing of that operator's output.
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


def _name_sizes(light: onnx.ModelProto) -> None:
    """Give a name to each size of an input that has none."""
    for info in light.graph.input:
        for axis, size in enumerate(info.type.tensor_type.shape.dim):
            if not size.HasField("dim_value") and not size.dim_param:
                size.dim_param = f"{info.name} {axis}"


def _inferred(light: onnx.ModelProto, side: Side) -> Known:
    """The answer of `onnx.shape_inference`, once the sizes that the model fixes are put in place of their names."""
    inferred = _infer(light)
    main = Side(side.files, lambda *_: {}).main  # to which no shape is known, while shapes are inferred
    while pinned := find_pinned(main, inferred.graph):
        for info in light.graph.input:
            for size in info.type.tensor_type.shape.dim:
                if size.dim_param in pinned:
                    size.dim_value = pinned[size.dim_param]
        inferred = _infer(light)
    known: Known = {}
    for path, scope in Side(Files(inferred, side.files.folder, side.files.held)).scopes.items():
        if scope.is_function:
            continue
        graph = scope.message
        for info in (*graph.value_info, *graph.input, *graph.output):
            known[path, info.name] = _read(info)
        for tensor in graph.initializer:
            known[path, tensor.name] = tuple(tensor.dims), tensor.data_type
    return known | _in_functions(light)


def _in_functions(light: onnx.ModelProto) -> Known:
    """What all calls of a function agree on, of each of its values. Nothing where a call cannot be written out."""
    if not light.functions:
        return {}
    try:
        written_out = inline(light, [key_of(function) for function in light.functions])
    except ValueError:  # one that cannot be, or too much
        return {}
    found: dict[str, tuple[Shape | None, int]] = {}
    places = Counter[str]()
    for scope in Side(Files(_infer(written_out.proto))).scopes.values():
        graph = scope.message
        places.update({*scope.makers, *scope.inputs, *scope.initializers, *scope.sparse})
        found.update((info.name, _read(info)) for info in (*graph.value_info, *graph.input, *graph.output))
        found.update((tensor.name, (tuple(tensor.dims), tensor.data_type)) for tensor in graph.initializer)
    found = {name: kind for name, kind in found.items() if places[name] == 1}  # bodies may share names
    known: Known = {}
    for (domain, name, overload), values in written_out.calls:
        for value, now in values.items():
            key = f"function:{domain}:{name}:{overload}", value
            known[key] = _agreed(found.get(now, (None, 0)), known.get(key))
    return known


def _agreed(one: tuple[Shape | None, int], other: tuple[Shape | None, int] | None) -> tuple[Shape | None, int]:
    """What two shapes with element types have in common."""
    if other is None:
        return one
    kind = one[1] if one[1] == other[1] else 0
    if one[0] is None or other[0] is None or len(one[0]) != len(other[0]):
        return None, kind
    return tuple(a if a == b else None for a, b in zip(one[0], other[0], strict=True)), kind


def _read(info: onnx.ValueInfoProto) -> tuple[Shape | None, int]:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return None, kind.elem_type
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim), kind.elem_type


def _infer(light: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # inference may raise anything on a model that it does not know: then less is known
        return light


def _without_weights(files: Files) -> onnx.ModelProto:
    """A copy with the shapes of large tensors in place of their values, and without declarations of inner values."""
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
        listed = {value.name for value in target.input}
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
    """Drop the shapes that a graph declares for its outputs, and keep the types."""
    for info in graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")


def _copy(source: object, target: object, field: str) -> None:
    content = getattr(source, field)
    if isinstance(content, str | int):
        setattr(target, field, content)
    else:
        getattr(target, field).extend(content)
