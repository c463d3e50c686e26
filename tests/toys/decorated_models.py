"""Models in which every message has everything that it may have: what an edit must not lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, TensorProto, TypeProto, helper, numpy_helper

from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def unknown(number: int) -> bytes:
    """Fields that no message of ONNX has, one of each kind of the wire."""
    first = 5000 + 10 * number
    return b"".join(
        [
            varint(first << 3) + varint((1 << 64) - 1),
            varint(first + 1 << 3 | 1) + b"12345678",
            varint(first + 2 << 3 | 2) + varint(5) + b"bytes",
            varint(first + 3 << 3 | 3) + varint(1 << 3) + varint(7) + varint(first + 3 << 3 | 4),
            varint(first + 4 << 3 | 5) + b"1234",
        ]
    )


def messages(message: Message) -> Iterator[Message]:
    """A message and all within it."""
    yield message
    for field, content in message.ListFields():
        if field.message_type is not None:
            for each in content if not field.has_presence else [content]:
                yield from messages(each)


def decorate(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fill what may be filled without a change of meaning, everywhere."""
    proto.producer_name, proto.producer_version, proto.domain = "somebody", "1.2", "org.example"
    proto.model_version = 7
    device = proto.configuration.add(name="pair", num_devices=2)
    device.device.extend(["left", "right"])
    for number, each in enumerate(list(messages(proto))):
        if isinstance(each, onnx.NodeProto) and each.output and each.op_type != "Constant":
            configuration = each.device_configurations.add(configuration_id="pair", pipeline_stage=1)
            for name in dict.fromkeys([*each.input[:2], each.output[0]]):
                spec = configuration.sharding_spec.add(tensor_name=name, device=[0, 1])
                spec.sharded_dim.add(axis=0).simple_sharding.add(num_shards=1)
                spec.index_to_device_group_map.add(key=1, value=[0, 1])
        if isinstance(each, onnx.GraphProto) and each.initializer:
            scale = each.initializer.add()
            scale.CopyFrom(numpy_helper.from_array(np.asarray(0.1, FLOAT), f"scale_{number}"))
            described = [*each.input[:1], *each.initializer[:3], *each.output]
            names = [one.name for one in described] + [each.node[0].output[0]]
            for name in dict.fromkeys(names):
                annotation = each.quantization_annotation.add(tensor_name=name)
                annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale.name)
        if isinstance(each, onnx.GraphProto | onnx.FunctionProto):
            each.value_info.add(name=f"nothing_{number}", doc_string="of no value")
            made = [one for part in each.node for one in part.output if one]
            each.value_info.extend(onnx.ValueInfoProto(name=name, doc_string=f"about {name}") for name in made[:-1])
    for number, each in enumerate(list(messages(proto))):
        fields = each.DESCRIPTOR.fields_by_name
        if "doc_string" in fields:
            each.doc_string = f"about {number}"  # type: ignore[attr-defined]
        if "denotation" in fields:
            each.denotation = f"d{number}"  # type: ignore[attr-defined]
        if "metadata_props" in fields:
            each.metadata_props.add(key=f"key{number}", value="value")  # type: ignore[attr-defined]
        each.MergeFromString(unknown(number))
    return proto


def convolution() -> onnx.ModelProto:
    nodes = [node("Conv", "x w b", "c", pads=[1, 1, 1, 1]), norm("c", "n"), node("Relu", "n", "y")]
    constants = {"w": random(16, 4, 3, 3, dtype=FLOAT), "b": random(16, dtype=FLOAT), "unused": random(3, dtype=FLOAT)}
    return model(nodes, {**constants, **statistics(16, dtype=FLOAT)}, (1, 4, 5, 5), dtype=FLOAT)


def old() -> onnx.ModelProto:
    """Of IR version 3, where each initializer is an input as well."""
    proto = convolution()
    inputs = [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in proto.graph.initializer]
    proto.graph.input.extend(inputs)
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    return proto


def downstream() -> onnx.ModelProto:
    """With a renamed value, a MaxPool in between, and a padding that becomes a node."""
    nodes = [norm("x", "n"), node("MaxPool", "n", "p", kernel_shape=[2, 2]), node("Conv", "p w", "y")]
    parameters = statistics(4, dtype=FLOAT, sign=1)
    return model(nodes, {"w": random(6, 4, 3, 3, dtype=FLOAT), **parameters}, (1, 4, 6, 6), dtype=FLOAT)


def padded() -> onnx.ModelProto:
    nodes = [node("Sigmoid", "x", "s"), norm("s", "n"), node("Conv", "n w", "y", pads=[1, 1, 1, 1])]
    values = {"gamma": 2, "beta": 0, "mean": 0.25, "var": 1}
    parameters = {name: np.full(4, value, FLOAT) for name, value in values.items()}
    return model(nodes, {"w": random(6, 4, 3, 3, dtype=FLOAT), **parameters}, (1, 4, 6, 6), dtype=FLOAT)


def product() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "m"), norm("m", "n"), node("Gemm", "n v", "g", alpha=0.5), norm("g", "y", "p")]
    constants = {"w": random(4, 6, dtype=FLOAT), "v": random(6, 8, dtype=FLOAT)}
    stats = {**statistics(6, dtype=FLOAT), **statistics(8, "p", dtype=FLOAT)}
    return model(nodes, {**constants, **stats}, (2, 4), dtype=FLOAT)


def branches() -> onnx.ModelProto:
    """A block of RepVGG, which becomes one convolution."""
    nodes = [
        *(node("Conv", "x w", "c", pads=[1, 1, 1, 1]), norm("c", "cn"), node("Conv", "x v", "d"), norm("d", "dn", "d")),
        *(norm("x", "xn", "i"), node("Add", "cn dn", "s"), node("Add", "s xn", "t"), node("Relu", "t", "y")),
    ]
    constants = {"w": random(4, 4, 3, 3, dtype=FLOAT), "v": random(4, 4, 1, 1, dtype=FLOAT)}
    stats = [statistics(4, prefix, dtype=FLOAT) for prefix in ("", "d", "i")]
    return model(nodes, {**constants, **stats[0], **stats[1], **stats[2]}, (1, 4, 5, 5), dtype=FLOAT)


def bodies() -> onnx.ModelProto:
    """An If: one branch folds, the other has nothing to fold."""
    initializers = {"w": random(4, 4, 1, 1, dtype=FLOAT), **statistics(4, dtype=FLOAT)}
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    info = helper.make_tensor_value_info
    first = helper.make_graph(
        [node("Conv", "x w", "c"), norm("c", "then")], "first", [], [info("then", 1, [1, 4, 5, 5])], tensors
    )
    second = helper.make_graph([node("Neg", "x", "else")], "second", [], [info("else", 1, [1, 4, 5, 5])])
    nodes = [node("If", "which", "i", then_branch=first, else_branch=second), node("Relu", "i", "y")]
    return model(nodes, {"which": np.asarray(True)}, (1, 4, 5, 5), dtype=FLOAT)


def functions() -> onnx.ModelProto:
    """Two overloads of a function: one folds inside, the other is never called."""
    constants = {"w": random(4, 4, 1, 1, dtype=FLOAT), **statistics(4, dtype=FLOAT)}
    held = [
        helper.make_node("Constant", [], [name], name=f"k_{name}", value=numpy_helper.from_array(array))
        for name, array in constants.items()
    ]
    opset = helper.make_opsetid("", 17)
    body = [*held, node("Conv", "a w", "c"), norm("c", "r")]
    first = helper.make_function("local", "F", ["a"], ["r"], body, [opset], overload="one")
    ramp = node("LeakyRelu", "a", "r2")
    ramp.attribute.add(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT)
    second = helper.make_function(
        "local", "F", ["a"], ["r2"], [ramp], [opset], ["other"], [helper.make_attribute("slope", 0.5)], overload="two"
    )
    proto = model([node("Identity", "x", "i"), node("Relu", "i", "y")], {}, (1, 4, 5, 5), dtype=FLOAT)
    proto.graph.node[0].CopyFrom(helper.make_node("F", ["x"], ["i"], name="call", domain="local", overload="one"))
    proto.functions.extend([first, second])
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.ir_version = 10
    return proto


def sparse_tensor(values: np.ndarray, indices: list[int], dims: list[int], name: str) -> onnx.SparseTensorProto:
    parts = numpy_helper.from_array(values, name), numpy_helper.from_array(np.asarray(indices), f"{name}_indices")
    return helper.make_sparse_tensor(*parts, dims)


def sparse() -> onnx.ModelProto:
    """A sparse kernel that folds, one that stays, and a Constant that is sparse."""
    proto = convolution()
    proto.graph.sparse_initializer.append(sparse_tensor(np.ones(2, FLOAT), [0, 5], [6, 16, 1, 1], "s"))
    proto.graph.sparse_initializer.append(sparse_tensor(np.ones(2, FLOAT), [1, 3], [1, 4, 5, 5], "t"))
    constant = helper.make_node(
        "Constant", [], ["k"], name="k", sparse_value=sparse_tensor(np.ones(1, FLOAT), [2], [6], "")
    )
    more = [node("Conv", "y s", "d"), norm("d", "e", "e"), node("Add", "x t", "f")]
    proto.graph.node.extend([constant, *more, node("Unsqueeze", "k axes", "l"), node("Mul", "e l", "z")])
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray([1, 2]), "axes"))
    stats = statistics(6, "e", dtype=FLOAT).items()
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stats)
    for name, channels in (("z", 6), ("f", 4)):
        proto.graph.output.append(helper.make_tensor_value_info(name, 1, [1, channels, 5, 5]))
    return proto


def types() -> onnx.ModelProto:
    """Inputs and outputs of every type, read by operators of somebody else's."""
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3])
    table = TypeProto()
    table.map_type.key_type = TensorProto.STRING
    table.map_type.value_type.CopyFrom(tensor)
    opaque = TypeProto()
    opaque.opaque_type.domain, opaque.opaque_type.name = "other", "Thing"
    kinds = {
        "map": table,
        "maps": helper.make_sequence_type_proto(table),
        "opaque": opaque,
        "opaques": helper.make_sequence_type_proto(opaque),
        "maybe": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "maybe_map": helper.make_optional_type_proto(table),
        "sequence": helper.make_sequence_type_proto(tensor),
        "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3, "N"]),
    }
    proto = convolution()
    for name, kind in kinds.items():
        proto.graph.input.append(helper.make_value_info(name, kind))
        proto.graph.output.append(helper.make_value_info(f"{name}_out", kind))
        inner = helper.make_value_info(f"{name}_inner", kind)
        proto.graph.value_info.append(inner)
        proto.graph.node.append(helper.make_node("Make", [name], [inner.name], name=f"make_{name}", domain="other"))
        proto.graph.node.append(helper.make_node("Take", [inner.name], [f"{name}_out"], name=name, domain="other"))
        proto.graph.node[-1].attribute.append(helper.make_attribute("kind", kind))
    many = proto.graph.node[-1].attribute.add(name="kinds", type=AttributeProto.TYPE_PROTOS)
    many.type_protos.extend(kinds.values())
    proto.opset_import.append(helper.make_opsetid("other", 3))
    return proto


def attributes() -> onnx.ModelProto:
    """A custom operator with every kind of attribute, in the graph, a body and a function."""
    dense = numpy_helper.from_array(random(40, 40, dtype=FLOAT), "dense")
    few = sparse_tensor(np.ones(1, FLOAT), [2], [6], "few")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [400], range(400))
    inner = helper.make_graph(
        [helper.make_node("Custom", ["x"], ["u"], name="inside", domain="other", few=few)], "inner", [], []
    )
    inner.output.add(name="u")
    values: dict[str, Any] = {
        "f": 0.5,
        "i": 7,
        "s": b"\xff\xfe",
        "t": dense,
        "g": inner,
        "few": few,
        "floats": [0.1, 0.2],
        "ints": [1, -1],
        "strings": ["a", "b"],
        "tensors": [dense, typed],
        "graphs": [inner, inner],
        "sparse": [few, few],
    }
    proto = convolution()
    custom = helper.make_node("Custom", ["x"], ["other", "more"], name="custom", domain="other", **values)
    custom.attribute.add(name="empty", type=AttributeProto.INTS)
    proto.graph.node.append(custom)
    proto.graph.output.add(name="other")
    body = helper.make_node("Custom", ["a"], ["r"], name="in_function", domain="other", few=few)
    body.attribute.add(name="given", ref_attr_name="given", type=AttributeProto.SPARSE_TENSOR)
    function = helper.make_function(
        "local",
        "G",
        ["a"],
        ["r"],
        [body],
        [helper.make_opsetid("other", 3)],
        ["given"],
        [helper.make_attribute("d", few)],
    )
    proto.functions.append(function)
    proto.opset_import.extend([helper.make_opsetid("other", 3), helper.make_opsetid("local", 1)])
    return proto


def training() -> onnx.ModelProto:
    proto = convolution()
    step = proto.training_info.add()
    step.initialization.node.append(node("Constant", "", "fresh", value=numpy_helper.from_array(np.ones(3, FLOAT))))
    step.initialization.output.add(name="fresh")
    step.initialization.name = "start"
    step.initialization_binding.add(key="unused", value="fresh")
    step.algorithm.node.append(node("Neg", "w", "w_new"))
    step.algorithm.output.add(name="w_new")
    step.algorithm.name = "step"
    step.update_binding.add(key="w", value="w_new")
    return proto


def weights_in_nodes() -> onnx.ModelProto:
    """Large constants that nodes and bodies hold, which are written in pieces as initializers are."""
    proto = bodies()
    large = numpy_helper.from_array(random(40, 40, dtype=FLOAT))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["k"], name="k", value=large))
    branch = proto.graph.node[1].attribute[1].g
    branch.initializer.append(numpy_helper.from_array(random(50, 30, dtype=FLOAT), "in_body"))
    proto.graph.output.append(helper.make_tensor_value_info("k", 1, [40, 40]))
    return proto


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    each.__name__: each
    for each in (
        *(convolution, old, downstream, padded, product, branches, bodies, functions, sparse, types, attributes),
        *(training, weights_in_nodes),
    )
}
