"""Files that are wrong on purpose: each function writes one into a folder and gives its path."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.toys.onnx_graphs import node, norm, statistics

Change = Callable[[onnx.ModelProto], None]
Write = Callable[[Path], Path]
PATH = "m.onnx"


def good() -> onnx.ModelProto:
    """A convolution and its BatchNorm, which fold."""
    w = np.random.default_rng(0).standard_normal((3, 4, 1, 1)).astype(np.float32)
    constants = {"w": w, **statistics(3, dtype=np.float32)}
    graph = helper.make_graph(
        [node("Conv", "x w", "c"), norm("c", "y")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / PATH
    path.write_bytes(proto.SerializeToString())
    return path


def content(data: bytes) -> Write:
    def write(folder: Path) -> Path:
        (folder / PATH).write_bytes(data)
        return folder / PATH

    return write


def changed(change: Change) -> Write:
    """The good model with one change."""

    def write(folder: Path) -> Path:
        proto = good()
        change(proto)
        return save(proto, folder)

    return write


def tensor(proto: onnx.ModelProto, name: str) -> TensorProto:
    return next(each for each in proto.graph.initializer if each.name == name)


def external(**entries: str) -> Write:
    """The good model with its weight in a file, 48 bytes of it, described by `entries`."""

    def write(folder: Path) -> Path:
        (folder / "w.bin").write_bytes(bytes(48))
        (folder.parent / "secret.bin").write_bytes(bytes(48))
        proto = good()
        _externalise(tensor(proto, "w"), entries)
        return save(proto, folder)

    return write


def _externalise(weight: TensorProto, entries: dict[str, str]) -> None:
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)


def linked(make: Callable[[Path, Path], None], *locations: str) -> Write:
    """The good model with its weight in a file that `make` makes from the path and a file outside."""

    def write(folder: Path) -> Path:
        outside = folder.parent / "secret.bin"
        outside.write_bytes(bytes(48))
        make(folder / "w.bin", outside)
        proto = good()
        _externalise(tensor(proto, "w"), {})
        for location in locations or ("w.bin",):
            tensor(proto, "w").external_data.add(key="location", value=location)
        return save(proto, folder)

    return write


def nested(depth: int) -> Write:
    """If in If in If; written as bytes from the inside out, since protobuf would not read it back."""

    def field(number: int, data: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(data)) + data

    def write(folder: Path) -> Path:
        body = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Relu")) + field(12, field(1, b"y"))
        for _ in range(depth):
            branch = field(1, b"then_branch") + field(6, body) + _varint(20 << 3) + _varint(5)
            body = field(1, field(1, b"c") + field(2, b"y") + field(4, b"If") + field(5, branch))
            body += field(12, field(1, b"y"))
        body += field(11, field(1, b"x")) + field(11, field(1, b"c"))
        (folder / PATH).write_bytes(b"\x08\x08" + field(7, body) + field(8, field(1, b"") + b"\x10\x11"))
        return folder / PATH

    return write


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def nest(proto: onnx.ModelProto, depth: int) -> None:
    body = helper.make_graph([node("Relu", "x", "y")], "b", [], [onnx.ValueInfoProto(name="y")])
    for _ in range(depth):
        branch = node("If", "flag", "y", then_branch=body)
        body = helper.make_graph([branch], "b", [], [onnx.ValueInfoProto(name="y")])
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "flag"))
    del proto.graph.node[:]
    proto.graph.node.extend(body.node)


def calls(*edges: tuple[str, str]) -> Change:
    """Functions that call each other; the graph calls the first."""

    def change(proto: onnx.ModelProto) -> None:
        callees: dict[str, list[str]] = {}
        for caller, callee in edges:
            callees.setdefault(caller, []).append(callee)
            callees.setdefault(callee, [])
        for name, called in callees.items():
            nodes = [helper.make_node(each, ["a"], [f"b{i}"], domain="own") for i, each in enumerate(called)]
            nodes.append(helper.make_node("Relu", ["a"], ["b"]))
            opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
            proto.functions.append(helper.make_function("own", name, ["a"], ["b"], nodes, opsets))
        proto.opset_import.append(helper.make_opsetid("own", 1))
        proto.graph.node.append(helper.make_node(edges[0][0], ["y"], ["z"], domain="own"))

    return change


def computed_gamma(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> Write:
    """The good model with a gamma `k` that nodes compute."""

    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[1].input[1] = "k"
        kept = list(proto.graph.node)
        del proto.graph.node[:]
        proto.graph.node.extend([*nodes, *kept])
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())

    return changed(change)


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / PATH, "w") as archive:
        archive.writestr("archive/data.pkl", "data")
    return folder / PATH


def _folder(folder: Path) -> Path:
    (folder / PATH).mkdir()
    return folder / PATH


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / PATH)
    return folder / PATH


def _link(target: str) -> Write:
    def write(folder: Path) -> Path:
        (folder / PATH).symlink_to(target)
        return folder / PATH

    return write


def _hole(folder: Path) -> Path:
    with (folder / PATH).open("wb") as file:
        file.truncate(1 << 40)
    return folder / PATH


def set_(name: str, **fields: object) -> Change:
    """Set fields of an initializer."""

    def change(proto: onnx.ModelProto) -> None:
        found = tensor(proto, name)
        for field, value in fields.items():
            if isinstance(value, list):
                found.ClearField(field)
                getattr(found, field).extend(value)
            else:
                setattr(found, field, value)

    return change


def _repeat_initializer(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def _typed(proto: onnx.ModelProto) -> None:
    found = tensor(proto, "w")
    found.ClearField("raw_data")
    found.float_data.extend([1.0] * 11)


def _cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "y"


def _unsorted(proto: onnx.ModelProto) -> None:
    first, second = proto.graph.node
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in (second, first)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _sparse(values: list[float], indices: list[int], dims: list[int]) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.remove(tensor(proto, "w"))
        held = numpy_helper.from_array(np.asarray(values, np.float32), "w")
        places = numpy_helper.from_array(np.asarray(indices, np.int64), "i")
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(held, places, dims))

    return change


def _sparse_segment(proto: onnx.ModelProto) -> None:
    _sparse([1.0], [5], [3, 4, 1, 1])(proto)
    proto.graph.sparse_initializer[0].values.segment.begin = 0


def _segment(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].segment.end = 1


def _external_sparse(proto: onnx.ModelProto) -> None:
    _sparse([1.0], [5], [3, 4, 1, 1])(proto)
    _externalise(proto.graph.sparse_initializer[0].values, {"location": "../secret.bin"})


def _not_utf8(old: bytes, new: bytes) -> Write:
    def write(folder: Path) -> Path:
        proto = good()
        proto.graph.node[0].name, proto.graph.doc_string = "abcdefgh", "12345678"
        proto.graph.node[0].metadata_props.add(key="k", value="ABCDEFGH")
        proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = "ijklmnop"
        (folder / PATH).write_bytes(proto.SerializeToString().replace(old, new))
        return folder / PATH

    return write


def _many_shared(proto: onnx.ModelProto) -> None:
    for index in range(1000):
        proto.graph.initializer.add(name=f"t{index}", data_type=1, dims=[1 << 30, 1 << 10])


def _long_name(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[1] = "n" * (1 << 20)


def _escapes(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[1] = "\x1b]0;owned\x07\x1b[2J\nbnfold: all is well"


def _graphless(proto: onnx.ModelProto) -> None:
    proto.ClearField("graph")


def _own_outer(proto: onnx.ModelProto) -> None:
    body = helper.make_graph([node("Relu", "z", "b")], "b", [], [onnx.ValueInfoProto(name="b")])
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "flag"))
    proto.graph.node.append(node("If", "flag", "z", then_branch=body, else_branch=body))


def _batchnorm(*inputs: str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        del proto.graph.node[1].input[:]
        proto.graph.node[1].input.extend(inputs)

    return change


def _dims(*dims: int) -> np.ndarray:
    return np.asarray(dims, np.int64)


def _chain_of_outer_products() -> Write:
    nodes = [node("Unsqueeze", "v one", "v0")]
    nodes += [node("Expand", f"v{i} big", f"v{i + 1}") for i in range(40)]
    nodes += [node("Identity", "v40", "k")]
    big = np.zeros(1 << 12, np.float32)
    return computed_gamma(nodes, v=big, one=_dims(1), big=_dims(1 << 12, 1 << 13))


def _negative_opset(proto: onnx.ModelProto) -> None:
    calls(("f", "g"))(proto)
    proto.functions[0].opset_import[0].version = -(1 << 63)


def _early_expand(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 7
    proto.graph.node.add(op_type="Expand", name="e")


def _redefines_relu(proto: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("", "Relu", ["a"], ["b"], [node("Neg", "a", "b")], opsets))


def between(made: onnx.NodeProto, shape: list[int] | None = None, **constants: np.ndarray) -> Write:
    """The good model with a node from `c` to `d` between the convolution and the BatchNorm."""

    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[1].input[0] = "d"
        proto.graph.node.insert(1, made)
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
        if shape is not None:
            for name in ("c", "d"):
                proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    return changed(change)


def _biased(proto: onnx.ModelProto) -> None:
    """A matrix product of four channels plus three numbers."""
    del proto.graph.node[0]
    proto.graph.node.insert(0, node("MatMul", "x m", "p"))
    proto.graph.node.insert(1, node("Add", "p three", "c"))
    for name, array in (("m", np.ones((2, 4), np.float32)), ("three", np.ones(3, np.float32))):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))


def _negated(proto: onnx.ModelProto) -> None:
    """A BatchNorm of three channels behind the negation of an input of many more."""
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 38
    proto.graph.node[0].CopyFrom(node("Neg", "x", "c"))


def _reshaped(proto: onnx.ModelProto) -> None:
    """A reshape whose declared shapes have not the same number of elements."""
    proto.graph.node[1].input[0] = "d"
    proto.graph.node.insert(1, node("Reshape", "c own", "d"))
    proto.graph.input.append(helper.make_tensor_value_info("own", TensorProto.INT64, [4]))
    for name, shape in (("c", [1, None, 2, 2]), ("d", [1, 3, 1, 1])):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Mystery", "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 3))


def _renamed(proto: onnx.ModelProto) -> None:
    """The convolution becomes an operator that nobody knows, and a second pair of the usual kind follows."""
    proto.opset_import.append(helper.make_opsetid("com.example", 3))
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "com.example", "Mystery"
    square = np.ones((3, 3, 1, 1), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(square, "v"))
    proto.graph.node.extend([node("Conv", "y v", "e"), norm("e", "z")])
    proto.graph.output[0].name = "z"


def _chain(proto: onnx.ModelProto) -> None:
    """The good model behind 100,000 nodes."""
    nodes = [node("Relu", "x" if not index else f"r{index - 1}", f"r{index}") for index in range(100_000)]
    nodes += proto.graph.node
    nodes[-2].input[0] = "r99999"
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


TRUNCATIONS = {f"truncated-to-{share}-tenths": share / 10 for share in range(1, 10)}

NOT_MODELS: dict[str, tuple[Write, str]] = {
    "missing": (lambda folder: folder / PATH, "no such file"),
    "empty": (content(b""), "no graph"),
    "folder": (_folder, "is a folder"),
    "fifo": (_fifo, "not a plain file"),
    "device": (_link("/dev/zero"), "not a plain file"),
    "dangling-link": (_link("nowhere"), "no such file"),
    "link-to-itself": (_link(PATH), "symbolic links|no such file"),
    "terabyte-hole": (_hole, "too many for a protobuf"),
    "text": (content(b"This is not a model.\n"), "not an ONNX model"),
    "png": (content(b"\x89PNG\r\n\x1a\n" + bytes(100)), "not an ONNX model"),
    "zip": (_zip, "not an ONNX model"),
    "gzip": (content(gzip.compress(good().SerializeToString(), mtime=0)), "not an ONNX model"),
    "json": (content(json.dumps({"graph": {}}).encode()), "not an ONNX model"),
    "pickle": (content(pickle.dumps({"model": [1, 2]})), "not an ONNX model"),
    "hdf5": (content(b"\x89HDF\r\n\x1a\n" + bytes(64)), "not an ONNX model"),
    "zeros": (content(bytes(1000)), "not an ONNX model"),
    **{f"random-{seed}": (content(np.random.default_rng(seed).bytes(500)), "not an") for seed in range(4)},
    **{
        name: (content(good().SerializeToString()[: int(len(good().SerializeToString()) * share)]), "not an")
        for name, share in TRUNCATIONS.items()
    },
    "huge-length-prefix": (content(b"\x08\x08\x3a\xff\xff\xff\xff\x07"), "not an ONNX model"),
    "endless-varint": (content(b"\x08" + b"\xff" * 100), "not an ONNX model"),
    "if-200-deep": (nested(200), "nested too deep"),
    "if-40-deep": (nested(40), "nested too deep"),
}

BROKEN: dict[str, tuple[Write, str]] = {
    "no-graph": (changed(_graphless), "no graph"),
    "no-opset": (changed(lambda proto: proto.ClearField("opset_import")), "no opset"),
    "operator-of-a-later-opset": (changed(_early_expand), "opset 7 has no Expand"),
    "opset-of-a-function-negative": (changed(_negative_opset), "imports an opset below 1"),
    "two-opsets-of-one-domain": (
        changed(lambda proto: proto.opset_import.append(helper.make_opsetid("ai.onnx", 9))),
        "imports two opsets",
    ),
    "documentation-not-utf8": (_not_utf8(b"12345678", b"1\xff\xfe\x805678"), "graph.doc_string is not UTF-8"),
    "metadata-not-utf8": (
        _not_utf8(b"ABCDEFGH", b"\x80BCDEFGH"),
        r"graph.node\[0\].metadata_props\[0\].value is not UTF-8",
    ),
    "attribute-without-type": (changed(lambda proto: proto.graph.node[0].attribute.add(name="own")), "has no type"),
    "attribute-twice": (
        changed(lambda proto: proto.graph.node[0].attribute.extend([helper.make_attribute("group", 1)] * 2)),
        "more than one attribute",
    ),
    "function-redefines-an-operator": (changed(_redefines_relu), "redefines 'Relu'"),
    "more-outputs-than-the-operator": (
        changed(lambda proto: proto.graph.node[0].output.append("more")),
        "more inputs or outputs",
    ),
    "initializer-without-name": (changed(lambda proto: setattr(proto.graph.initializer[0], "name", "")), "has no name"),
    "opset-zero": (changed(lambda proto: setattr(proto.opset_import[0], "version", 0)), "opset"),
    "cycle": (changed(_cycle), "reads 'y', which nothing before it makes"),
    "unsorted": (changed(_unsorted), "reads 'c', which nothing before it makes"),
    "dangling-input": (changed(lambda proto: proto.graph.node[0].input.__setitem__(0, "nowhere")), "'nowhere'"),
    "dangling-output": (changed(lambda proto: setattr(proto.graph.output[0], "name", "nowhere")), "made by nothing"),
    "body-reads-its-own-node": (changed(_own_outer), "reads 'z'"),
    "value-made-twice": (changed(lambda proto: proto.graph.node[1].output.__setitem__(0, "c")), "which there is"),
    "value-made-over-input": (changed(lambda proto: proto.graph.node[1].output.__setitem__(0, "x")), "which there is"),
    "two-initializers": (changed(_repeat_initializer), "more than one initializer"),
    "two-inputs": (changed(lambda proto: proto.graph.input.append(proto.graph.input[0])), "more than one input"),
    "batchnorm-without-parameters": (changed(_batchnorm("c")), "lacks an input"),
    "batchnorm-with-empty-mean": (changed(_batchnorm("c", "gamma", "beta", "", "var")), "lacks an input"),
    "batchnorm-without-output": (changed(lambda proto: proto.graph.node[1].ClearField("output")), "lacks an output"),
    "convolution-without-inputs": (changed(lambda proto: proto.graph.node[0].ClearField("input")), "lacks an input"),
    "attribute-of-another-type": (
        changed(lambda proto: proto.graph.node[1].attribute.append(helper.make_attribute("epsilon", "small"))),
        "'epsilon' of .* has the type STRING instead of FLOAT",
    ),
    "batchnorm-of-integers": (changed(set_("gamma", data_type=TensorProto.INT32)), "has the type INT32"),
    "name-not-utf8": (_not_utf8(b"abcdefgh", b"\xff\xfe\xfdab\x80\x81\x82"), "not UTF-8"),
    "value-not-utf8": (_not_utf8(b"ijklmnop", b"\xff\xfe\xfdab\x80\x81\x82"), "not UTF-8"),
    "megabyte-name": (changed(_long_name), "nnnn"),
    "terminal-escapes": (changed(_escapes), r"\\\\x1b|\\x1b"),
    "function-calls-itself": (changed(calls(("f", "f"))), "calls itself"),
    "functions-in-a-circle": (changed(calls(("f", "g"), ("g", "h"), ("h", "f"))), "calls itself"),
    "functions-that-inline-to-2-to-the-40": (
        changed(calls(*[(f"f{i}", f"f{i + 1}") for i in range(40) for _ in range(2)])),
        "with its functions expanded",
    ),
    "two-functions-of-one-name": (
        changed(lambda proto: (calls(("f", "g"))(proto), proto.functions.append(proto.functions[0]))),
        "two functions",
    ),
}

TENSORS: dict[str, tuple[Write, str]] = {
    "raw-data-too-short": (changed(set_("w", raw_data=bytes(47))), "47 bytes"),
    "raw-data-too-long": (changed(set_("w", raw_data=bytes(52))), "52 bytes"),
    "raw-data-empty": (changed(set_("w", raw_data=b"")), "0 bytes"),
    "typed-data-too-short": (changed(_typed), "11 values"),
    "no-data": (changed(lambda proto: tensor(proto, "w").ClearField("raw_data")), "0 values"),
    "negative-dimension": (changed(set_("w", dims=[3, -4, 1, 1])), "negative dimension"),
    "overflow-beside-a-zero": (changed(set_("w", dims=[0, 1 << 32, 1 << 32, 4], raw_data=b"")), "overflows"),
    "overflowing-dimensions": (changed(set_("w", dims=[1 << 32, 1 << 32, 2, 2])), "declare more than"),
    "dimensions-that-wrap-to-twelve": (changed(set_("w", dims=[1 << 62, 4, 3, 4])), "declare more than"),
    "too-many-axes": (changed(set_("w", dims=[3, 4] + [1] * 100)), "102 axes"),
    "declared-sizes-without-data": (changed(_many_shared), "declare more than|0 values"),
    "unknown-type": (changed(set_("w", data_type=99)), "unknown type"),
    "negative-type": (changed(set_("w", data_type=-1)), "unknown type"),
    "no-type": (changed(set_("w", data_type=0)), "no type"),
    "strings-as-raw-data": (changed(set_("w", data_type=8)), "bytes"),
    "sparse-terabyte": (changed(_sparse([1.0], [5], [1 << 32, 1 << 32])), "declare more than"),
    "sparse-index-outside": (changed(_sparse([1.0], [12], [3, 4, 1, 1])), "index outside"),
    "sparse-index-negative": (changed(_sparse([1.0], [-1], [3, 4, 1, 1])), "index outside"),
    "sparse-too-few-indices": (changed(_sparse([1.0, 2.0], [1], [3, 4, 1, 1])), "indices of shape"),
}

EXTERNAL: dict[str, tuple[Write, str]] = {
    "external-parent-folder": (external(location="../secret.bin"), "not a plain relative path"),
    "external-inner-parent": (external(location="a/../../secret.bin"), "not a plain relative path"),
    "external-absolute": (external(location="/etc/passwd"), "not a plain relative path"),
    "external-backslashes": (external(location="..\\secret.bin"), "not a plain relative path"),
    "external-no-location": (external(offset="0"), "not a plain relative path"),
    "external-nul": (external(location="w.bin\0"), "not a plain relative path"),
    "external-two-locations": (
        linked(lambda path, outside: path.write_bytes(bytes(48)), "w.bin", "../secret.bin"),
        "says twice",
    ),
    "sparse-segment": (changed(_sparse_segment), "is a segment"),
    "segment": (changed(_segment), "is a segment"),
    "external-sparse": (changed(_external_sparse), "holds external data"),
    "external-missing": (external(location="nowhere.bin"), "cannot be read"),
    "external-folder": (external(location="."), "not a plain file"),
    "external-name-too-long": (external(location="w" * 5000), "cannot be read"),
    "external-negative-offset": (external(location="w.bin", offset="-8"), "offset"),
    "external-negative-length": (external(location="w.bin", length="-48"), "length"),
    "external-offset-beyond": (external(location="w.bin", offset="8"), "which has 48"),
    "external-offset-overflow": (external(location="w.bin", offset=str(2**64 - 8)), "offset"),
    "external-length-beyond": (external(location="w.bin", length="4800"), "4800 bytes"),
    "external-length-too-short": (external(location="w.bin", length="8"), "8 bytes"),
    "external-offset-no-number": (external(location="w.bin", offset="1e3"), "offset"),
    "external-offset-of-a-megabyte": (external(location="w.bin", offset="1" * (1 << 20)), "offset"),
    "external-link-out": (linked(lambda path, outside: path.symlink_to(outside)), "link out of"),
    "external-hard-link": (linked(lambda path, outside: os.link(outside, path)), "hard link"),
    "external-fifo": (linked(lambda path, outside: os.mkfifo(path)), "not a plain file"),
    "external-device": (linked(lambda path, outside: path.symlink_to("/dev/zero")), "link out of"),
    "external-linked-folder": (
        linked(lambda path, outside: path.symlink_to(outside.parent), "w.bin/secret.bin"),
        "link out of",
    ),
    "external-truncated-file": (linked(lambda path, outside: path.write_bytes(bytes(40))), "which has 40"),
}

EXPANDING: dict[str, tuple[Write, str]] = {
    "constant-of-shape": (computed_gamma([node("ConstantOfShape", "d", "k")], d=_dims(1 << 20, 1 << 20)), "asks for"),
    "vector-of-a-terabyte": (
        computed_gamma([node("ConstantOfShape", "d", "v"), node("Cast", "v", "k", to=1)], d=_dims(1 << 40)),
        "asks for",
    ),
    "constant-of-negative-shape": (computed_gamma([node("ConstantOfShape", "d", "k")], d=_dims(-1, 4)), "asks for"),
    "tile": (computed_gamma([node("Tile", "w d", "k")], d=_dims(1 << 20, 1 << 20, 1, 1)), "asks for"),
    "tile-to-nothing": (computed_gamma([node("Tile", "w d", "k")], d=_dims(1 << 40, 1, 1, 0)), "asks for"),
    "expand": (computed_gamma([node("Expand", "w d", "k")], d=_dims(3, 4, 1 << 20, 1 << 20)), "asks for"),
    "pad": (computed_gamma([node("Pad", "w d", "k")], d=_dims(0, 0, 0, 0, 0, 0, 1 << 20, 1 << 20)), "asks for"),
    "range": (
        computed_gamma([node("Range", "a b s", "k")], a=_dims(0)[0], b=_dims(1 << 60)[0], s=_dims(1)[0]),
        "asks",
    ),
    "range-by-nan": (
        computed_gamma([node("Range", "a b s", "k")], **{n: np.float32("nan") * np.ones(()) for n in "abs"}),
        "counts from nan",
    ),
    "range-by-zero": (computed_gamma([node("Range", "a b s", "k")], **{n: _dims(0)[0] for n in "abs"}), "counts"),
    "outer-sum": (
        computed_gamma(
            [node("Add", "a b", "k")], a=np.zeros((1 << 17, 1), np.float32), b=np.zeros((1, 1 << 17), np.float32)
        ),
        "asks for",
    ),
    "gather": (
        computed_gamma([node("Gather", "a b", "k")], a=np.zeros((1, 1 << 16), np.float32), b=_dims(*[0] * (1 << 12))),
        "asks for",
    ),
}
"""Files with a constant that cannot be made: what writes each, and a pattern of what is said of it."""

SORTED = frozenset({"unsorted"})
"""Cases that `verify` runs all the same, since it sorts nodes. The other commands keep the order of nodes."""

LABORIOUS: dict[str, tuple[Write, str]] = {
    "many-large-constants": (_chain_of_outer_products(), "take too much work"),
}

FIT: dict[str, tuple[Write, str | None]] = {
    "good": (changed(lambda proto: None), None),
    "unknown-operator": (changed(_renamed), None),
    "unknown-attribute": (between(node("AveragePool", "c", "d", kernel_shape=[1, 1], count_include_pad=1)), None),
    "cast-to-nothing-known": (between(node("Cast", "c", "d", to=127)), "not-linear"),
    "concat-along-no-axis": (between(node("Concat", "c", "d", axis=9)), "invalid-parameters"),
    "transpose-by-no-permutation": (between(node("Transpose", "c", "d", perm=[0, 0, 1, 2])), "invalid-parameters"),
    "split-into-fewer-parts": (between(node("Split", "c s", "d", axis=1), s=_dims(2, 1)), "invalid-parameters"),
    "split-into-other-sizes": (between(node("Split", "c s", "d e", axis=1), s=_dims(3, 5)), "mixed-channels"),
    "slice-by-zero": (
        between(node("Slice", "c a b e f", "d"), a=_dims(0), b=_dims(3), e=_dims(1), f=_dims(0)),
        "invalid-parameters",
    ),
    "slice-of-nothing-that-fits": (
        between(node("Slice", "c a b", "d"), a=_dims(0), b=_dims(3, 3)),
        "invalid-parameters",
    ),
    "gather-along-no-axis": (between(node("Gather", "c a", "d", axis=7), a=_dims(0)), "invalid-parameters"),
    "gather-by-fractions": (between(node("Gather", "c a", "d", axis=1), a=np.ones(3, np.float32)), "not-linear"),
    "pads-of-other-axes": (between(node("Pad", "c a", "d"), a=_dims(0, 0, 1)), "invalid-parameters"),
    "scales-of-strings": (between(node("Resize", "c _ a", "d"), a=np.asarray(["1"] * 4, object)), "invalid-parameters"),
    "terabyte-of-channels": (changed(_negated), "not-linear"),
    "terabyte-of-declared-channels": (between(node("Neg", "c", "d"), [1, 1 << 38, 1, 1]), None),
    "terabyte-of-pixels": (between(node("DepthToSpace", "c", "d", blocksize=1 << 18), [1, 3, 2, 2]), "unknown-shape"),
    "external-data-with-other-keys": (
        external(location="w.bin", basepath="/etc", checksum="0" * 40, __class__="x", info="y"),
        None,
    ),
    "reshape-to-a-third-of-a-channel": (changed(_reshaped), "unknown-shape"),
    "bias-of-other-channels": (changed(_biased), "mixed-channels"),
    "negative-channels": (between(node("Identity", "c", "d"), [1, -3, 2, 2]), None),
    "dropout-with-a-mask": (between(node("Dropout", "c", "d m")), None),
    "convolution-without-groups": (
        changed(lambda proto: proto.graph.node[0].attribute.append(helper.make_attribute("group", 0))),
        "invalid-parameters",
    ),
    "100000-nodes": (changed(_chain), None),
}
"""Files that are odd but models: what writes each, and why the first BatchNorm stays; None where it folds."""

CASES: dict[str, tuple[Write, str]] = {**NOT_MODELS, **BROKEN, **TENSORS, **EXTERNAL, **LABORIOUS}
"""By the name of the situation: what writes the file, and a pattern of the error."""
