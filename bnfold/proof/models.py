"""An ONNX file as the checker sees it: its scopes, its constants, its digest."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from bnfold.errors import InvalidModelError
from bnfold.proof.certificate import Key, Name, Shape
from bnfold.proof.computed import compute
from bnfold.proof.evaluate import UnevaluatedError, evaluate
from bnfold.proof.failure import ProofError
from bnfold.proof.inlining import inline, key_of

AnyArray = npt.NDArray[Any]

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}

NOT_CONSTANT = frozenset({"RandomNormal", "RandomUniform"})
"""Operators without inputs whose output differs from run to run."""

MEASURING = frozenset({"Shape", "Size"})
"""Operators that look at the shape alone of what they read."""

INTEGERS = {
    f"{prefix}int{bits}": (0, 2**bits - 1) if prefix else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for prefix in ("", "u")
    for bits in (4, 8, 16)
}
"""The integers that QuantizeLinear makes, with the least and the most of each type."""

CONSTANT_LIMIT = 1 << 26
"""The most elements of a constant that is computed."""

KEPT = 1 << 16
"""The most bytes of a constant that is kept. A larger one is read again each time, so that memory stays flat."""

PIECE = 1 << 22
"""How many bytes are hashed at a time."""


@dataclass(frozen=True)
class Files:
    """A model, and the tensors that lie outside its protobuf.

    Attributes:
        proto: the model.
        folder: the folder of its external data.
        held: tensors in memory, by the location that the protobuf gives for them. They have `shape` and `numpy`.
    """

    proto: onnx.ModelProto
    folder: Path | None = None
    held: Mapping[str, Any] = field(default_factory=dict)


class _Held:
    """A tensor of another protobuf, read where it is."""

    def __init__(self, tensor: onnx.TensorProto) -> None:
        self._tensor = tensor

    def numpy(self) -> AnyArray:
        return numpy_helper.to_array(self._tensor)

    def tobytes(self) -> bytes:
        content: bytes = self._tensor.raw_data
        return content


def write_out(files: Files, functions: Collection[Key]) -> Files:
    """A model with the calls of some functions written out. Its large tensors are not copied.

    Raises:
        InvalidModelError: it has no such function.
        ProofError: that cannot be done.
    """
    if not functions:
        return files
    known = {key_of(function) for function in files.proto.functions}
    if missing := [name for domain, name, overload in functions if (domain, name, overload) not in known]:
        raise InvalidModelError(f"the certificate names a function {missing[0]!r}, which the original does not have")
    held = dict(files.held)

    def stored(tensor: onnx.TensorProto) -> onnx.TensorProto:
        if len(tensor.raw_data) <= KEPT:
            return tensor
        place = f"proof:{len(held)}"
        held[place] = _Held(tensor)
        light = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        light.data_location = onnx.TensorProto.EXTERNAL
        light.external_data.add(key="location", value=place)
        return light

    try:
        return Files(inline(files.proto, functions, stored).proto, files.folder, held)
    except ValueError as error:
        raise ProofError("wiring", "", str(error)) from error


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, in the order of the document."""
    stack: list[Any] = [proto]
    while stack:
        message = stack.pop()
        messages: list[Any] = []
        if isinstance(message, onnx.ModelProto):
            messages = [message.graph, *message.functions]
        elif isinstance(message, onnx.GraphProto):
            yield from message.initializer
            for sparse in message.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            messages = list(message.node)
        elif isinstance(message, onnx.FunctionProto):
            messages = list(message.node)
        elif isinstance(message, onnx.NodeProto):
            for attribute in message.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    messages.append(attribute.g)
                messages.extend(attribute.graphs)
        stack.extend(reversed(messages))


def digest(files: Files) -> str:
    """SHA-256 of a model with its external data, wherever that lies.

    The hash covers the protobuf, serialised deterministically and without the places of external data. Then, for each
    tensor with external data in the order of the document, it covers the number of its bytes (8 bytes, little endian)
    and these bytes.
    """
    external = [entry for entry in tensors(files.proto) if entry.data_location == onnx.TensorProto.EXTERNAL]
    proto = files.proto
    if external:
        proto = onnx.ModelProto()
        proto.CopyFrom(files.proto)
        for tensor in tensors(proto):
            tensor.ClearField("external_data")
    sha = hashlib.sha256(proto.SerializeToString(deterministic=True))
    for tensor in external:
        content = external_bytes(tensor, files)
        sha.update(len(content).to_bytes(8, "little"))
        for start in range(0, len(content), PIECE):
            sha.update(content[start : start + PIECE])
    return sha.hexdigest()


def location(tensor: onnx.TensorProto) -> str:
    """The place of a tensor's external bytes."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def external_bytes(tensor: onnx.TensorProto, files: Files) -> Any:
    """The external bytes of a tensor. Those in another file stay there until they are read."""
    if (memory := files.held.get(location(tensor))) is not None:
        return np.frombuffer(memory.tobytes(), np.uint8)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    path = (files.folder or Path()) / entries["location"]
    length = int(entries["length"]) if "length" in entries else math.prod(tensor.dims) * dtype.itemsize
    if length == 0:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r", int(entries.get("offset", 0)), (length,))


def array_of(tensor: onnx.TensorProto, files: Files) -> AnyArray:
    """The values of a tensor; a view where they are in another file."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL and (kept := files.held.get(location(tensor))) is not None:
        values: AnyArray = kept.numpy()
        return values
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    is_plain = dtype.kind in "fiub" or tensor.data_type == onnx.TensorProto.BFLOAT16
    is_plain = is_plain and tensor.data_type not in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    if tensor.data_location == onnx.TensorProto.EXTERNAL and is_plain:
        content: AnyArray = external_bytes(tensor, files)
        return content.view(dtype).reshape(tuple(tensor.dims))
    return numpy_helper.to_array(tensor, str(files.folder or ""))


@dataclass(eq=False)
class Scope:
    """One graph, or the body of a function, with the scopes around it."""

    path: str
    message: Any
    side: Side
    around: Scope | None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    sparse: dict[str, onnx.SparseTensorProto] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    known: dict[str, AnyArray | weakref.ref[AnyArray] | None] = field(default_factory=dict)

    @property
    def is_function(self) -> bool:
        """Whether it is the body of a function."""
        return isinstance(self.message, onnx.FunctionProto)

    def owner(self, name: str) -> Scope | None:
        """The scope that a value of this name belongs to."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.makers or name in scope.initializers or name in scope.inputs or name in scope.sparse:
                return scope
            scope = scope.around
        return None

    @property
    def opsets(self) -> list[onnx.OperatorSetIdProto]:
        """The opsets of its operators."""
        scope: Scope = self
        while scope.around is not None:
            scope = scope.around
        imports = scope.message.opset_import if scope.is_function else self.side.files.proto.opset_import
        return list(imports)

    @property
    def version(self) -> int:
        """The opset version of the default operators."""
        return next((opset.version for opset in self.opsets if opset.domain in ("", "ai.onnx")), 1)

    def constant(self, name: str) -> AnyArray | None:
        """The constant that a name stands for; None where the value depends on the inputs."""
        owner = self.owner(name)
        if owner is None:
            return None
        if name in owner.known:
            cached = owner.known[name]
            kept = cached() if isinstance(cached, weakref.ref) else cached
            if kept is not None or cached is None:
                return kept
        pending, constant = [(owner, name)], None
        while pending:  # what it is computed of comes first, which may be thousands of nodes away
            scope, each = pending[-1]
            scope.known.setdefault(each)  # so that a cycle ends, as no constant
            behind = scope._find_unknown(each)
            if behind is not None:
                pending.append(behind)
                continue
            pending.pop()
            constant = scope._find(each)
            scope.known[each] = constant if constant is None or constant.nbytes <= KEPT else weakref.ref(constant)
        return constant

    def _find_unknown(self, name: str) -> tuple[Scope, str] | None:
        """A value that decides whether a name stands for a constant, if it is not known whether that does."""
        node = self._evaluated(name)
        for value in () if node is None else filter(None, node.input):
            owner = self.owner(value)
            if owner is None:
                return None
            if value not in owner.known:
                return owner, value
            if owner.known[value] is None:
                return None
        return None

    def is_constant(self, name: str) -> bool:
        """Whether a name stands for a constant."""
        owner = self.owner(name)
        if owner is None:
            return False
        if name in owner.initializers and name not in owner.inputs:
            return True
        return isinstance(owner.known.get(name), weakref.ref) or owner.constant(name) is not None

    def _find(self, name: str) -> AnyArray | None:
        if name in self.initializers:
            if name in self.inputs and self.side.files.proto.ir_version >= 4:
                return None  # a caller may replace it
            return array_of(self.initializers[name], self.side.files)
        if name in self.sparse:
            return _dense(self.sparse[name], self.side.files)
        node = self._computed(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    return array_of(attribute.t, self.side.files)
                if attribute.name == "sparse_value":
                    return _dense(attribute.sparse_tensor, self.side.files)
        if node.op_type in MEASURING:
            return self._measure(node)
        if node.op_type == "BatchNormalization":
            computed = compute(node, self.version, self.constant) if name == node.output[0] else None
            return None if computed is None else computed[0].astype(computed[2])
        if node.op_type == "CastLike":
            return self._cast_like(node, self.constant(node.input[0]))
        arrays: dict[str, AnyArray] = {}
        for value in filter(None, node.input):
            constant = self.constant(value)
            if constant is None:
                return None
            arrays[value] = constant
        if sum(array.size for array in arrays.values()) > CONSTANT_LIMIT:
            return None
        if node.op_type == "DequantizeLinear":  # which the evaluator does not have in every opset
            return _dequantize(node, [arrays[value] for value in node.input if value])
        if node.op_type == "QuantizeLinear":  # of which the evaluator wraps large numbers around
            return _quantize(node, [arrays[value] for value in node.input if value])
        try:
            return evaluate([node], arrays, [name], self.opsets, widen=False)[0]
        except UnevaluatedError:
            return None

    def _computed(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it may make a constant."""
        node = self.makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type in NOT_CONSTANT:
            return None
        if any(entry.HasField("g") or entry.graphs or entry.ref_attr_name for entry in node.attribute):
            return None
        return node

    def _evaluated(self, name: str) -> onnx.NodeProto | None:
        """The same, if what it reads decides that."""
        if name in self.initializers or name in self.sparse:
            return None
        node = self._computed(name)
        return None if node is None or node.op_type in MEASURING else node

    def _measure(self, node: onnx.NodeProto) -> AnyArray | None:
        """The sizes of a value from one axis to another, or their product (Shape and Size), where they are known."""
        owner = self.owner(node.input[0])
        known = None if owner is None else self.side.shape((owner.path, node.input[0]))
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        if known is None or None in (sizes := known[ends.get("start", 0) : ends.get("end")]):
            return None
        measured = np.asarray(sizes, np.int64)
        return np.asarray(np.prod(measured)) if node.op_type == "Size" else measured

    def _cast_like(self, node: onnx.NodeProto, constant: AnyArray | None) -> AnyArray | None:
        """A constant cast to the type of another value (CastLike)."""
        owner = self.owner(node.input[1])
        if constant is None or owner is None:
            return None
        kind = self.side.certain.get((owner.path, node.input[1]), (None, 0))[1]
        if kind not in FLOATS or constant.dtype.kind not in "fiu":
            return None
        return constant.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))

    def is_constant_node(self, node: onnx.NodeProto) -> bool:
        """Whether all outputs of a node are constant, but for those behind the first that nothing reads."""
        outputs = [value for value in node.output if value]
        read = [value for place, value in enumerate(outputs) if not place or self.readers.get(value)]
        return all(map(self.is_constant, read))


def _dequantize(node: onnx.NodeProto, operands: list[AnyArray]) -> AnyArray | None:
    """Integers times the scale of their channel."""
    options = {attribute.name: attribute.i for attribute in node.attribute}
    integers, scales = operands[:2]
    zeros = operands[2] if len(operands) > 2 else np.zeros(scales.shape, integers.dtype)
    axis = options.get("axis", 1)
    if options.get("block_size") or (scales.size != 1 and scales.shape != integers.shape[axis : axis + 1 or None]):
        return None
    shape = [1] * integers.ndim
    if scales.size > 1:
        shape[axis] = scales.size
    difference = integers.astype(np.float64) - zeros.astype(np.float64).reshape(shape)
    values: AnyArray = (difference * scales.astype(np.float64).reshape(shape)).astype(scales.dtype)
    return values


def _quantize(node: onnx.NodeProto, operands: list[AnyArray]) -> AnyArray | None:
    """Float32 numbers over the scale of their channel, rounded half to even, moved by the zero point, and clipped."""
    options = {attribute.name: attribute.i for attribute in node.attribute}
    values, scales = operands[:2]
    kind = onnx.helper.tensor_dtype_to_np_dtype(options.get("output_dtype") or onnx.TensorProto.UINT8)
    zeros = operands[2] if len(operands) > 2 else np.zeros(scales.shape, kind)
    axis = options.get("axis", 1)
    is_known = values.dtype == scales.dtype == np.float32 and zeros.dtype.name in INTEGERS and zeros.size == scales.size
    if not is_known or options.get("block_size") or options.get("precision"):
        return None
    if scales.size != 1 and scales.shape != values.shape[axis : axis + 1 or None]:
        return None
    if not (scales > 0).all() or not all(np.isfinite(array).all() for array in (values, scales)):
        return None
    shape = [1] * values.ndim
    if scales.size > 1:
        shape[axis] = scales.size
    with np.errstate(over="ignore"):
        quotients = np.rint(values / scales.reshape(shape))
    moved = np.float64(quotients) + zeros.astype(np.float64).reshape(shape)
    least, most = INTEGERS[zeros.dtype.name]
    return np.clip(moved, least, most).astype(np.int64).astype(zeros.dtype)


def _dense(sparse: onnx.SparseTensorProto, files: Files) -> AnyArray | None:
    values, places = array_of(sparse.values, files), array_of(sparse.indices, files)
    if math.prod(sparse.dims) > CONSTANT_LIMIT:
        return None
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        dense.reshape(-1)[places] = values
    else:
        dense[tuple(places.T)] = values
    return dense


class Side:
    """One of the two models.

    Attributes:
        files: the files that it was read from.
        assumed: shapes and element types that do not follow from the model's inputs.
        used: the assumed values that mattered so far.
    """

    def __init__(
        self,
        files: Files,
        infer: Callable[[Side, Mapping[Any, Any]], dict[Any, Any]] = lambda side, assumed: {},
        assumed: Mapping[Any, Any] | None = None,
    ) -> None:
        self.files, self.assumed = files, assumed or {}
        self._infer = infer
        self.used: set[Name] = set()
        self.scopes: dict[str, Scope] = {}
        self.main = self._add("main", files.proto.graph, None)
        self.functions = {f"function:{body.domain}:{body.name}:{body.overload}": body for body in files.proto.functions}
        for path, function in self.functions.items():
            self._add(path, function, None)

    @cached_property
    def known(self) -> dict[Any, Any]:
        """Shape and element type of each value, as far as they follow from the model's inputs and the assumed ones."""
        return self._infer(self, self.assumed) if self.assumed else self.certain

    @cached_property
    def certain(self) -> dict[Any, Any]:
        """The same, as far as they follow from the model's inputs alone."""
        return self._infer(self, {})

    def shape(self, key: Name) -> Shape | None:
        """The shape of a value, as far as it is known. Notes the assumed values that it rests on."""
        shape: Shape | None = self.known.get(key, (None, 0))[0]
        if self.assumed and shape != self.certain.get(key, (None, 0))[0]:
            self.used.update([key] if key in self.assumed else self.assumed)
        return shape

    def _add(self, path: str, message: Any, around: Scope | None) -> Scope:
        if path in self.scopes:
            raise ProofError("wiring", path, "two graphs have one place")
        scope = self.scopes[path] = Scope(path, message, self, around, list(message.node))
        if isinstance(message, onnx.GraphProto):
            scope.inputs = [value.name for value in message.input]
            scope.outputs = [value.name for value in message.output]
            scope.initializers = {tensor.name: tensor for tensor in message.initializer}
            scope.sparse = {tensor.values.name: tensor for tensor in message.sparse_initializer}
        else:
            scope.inputs, scope.outputs = list(message.input), list(message.output)
        for node in scope.nodes:
            for name in node.input:
                self._read(scope, name)
            for name, body in bodies(node):
                self._add(f"{path}/{first_output(node)}.{name}", body, scope)
            for name in node.output:
                if not name:
                    continue
                if name in scope.makers or name in scope.inputs or name in scope.initializers:
                    raise ProofError("wiring", first_output(node), f"the value {name!r} is made twice")
                scope.makers[name] = node
        for name in scope.outputs:
            self._read(scope, name)
        return scope

    def _read(self, scope: Scope, name: str) -> None:
        if not name:
            return
        owner = scope.owner(name)
        if owner is None:
            raise ProofError("wiring", name, "it is read before it is made, or never made")
        owner.readers[name] = owner.readers.get(name, 0) + 1


def first_output(node: onnx.NodeProto) -> str:
    """The first output of a node, which names the node in certificates."""
    return next((value for value in node.output if value), "")


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs that a node runs."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield f"{attribute.name}.0", attribute.g
        for index, body in enumerate(attribute.graphs):
            yield f"{attribute.name}.{index}", body
