"""An ONNX model under test, run by ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from bnfold.errors import IncomparableError, NoKernelError, plural
from bnfold.frontends.limits import Limits
from bnfold.frontends.onnx.files.loading import read_proto
from bnfold.frontends.onnx.files.sorting import is_sorted, sort_nodes
from bnfold.frontends.onnx.nesting import bodies, nested, nested_nodes
from bnfold.frontends.onnx.shape_inference import infer_shapes
from bnfold.runtimes import reference
from bnfold.runtimes.inputs import Declared, Feeds, whole_range
from bnfold.runtimes.onnx_runtime import REFERENCE, STRICT, OnnxSession
from bnfold.runtimes.tensors import FLOATS, NARROW, read
from bnfold.verification.draws import DRAWS, fix_draws
from bnfold.verification.normalisation import Normalisation
from bnfold.verification.observe import is_float
from bnfold.verification.onnx_normalisation import find_normalisations
from bnfold.verification.onnx_sizes import find_hints, free_images
from bnfold.verification.onnx_weights import (
    WIDE_STEPS,
    Disturbance,
    may_all_move,
    room_for,
    weights,
    with_initializers,
    with_weights_as_inputs,
)
from bnfold.verification.sizes import SizeHints
from bnfold.verification.storage import BITS, Storage, find_rounded
from bnfold.verification.subject import Cut, Inside, Run, Subject
from bnfold.verification.unpacking import digest_narrow, unpack
from bnfold.verification.widening import widen

JUMPS = frozenset(
    {"ArgMax", "ArgMin", "TopK", "Hardmax", "NonMaxSuppression", "NonZero", "Unique", "Multinomial", "Bernoulli"}
    | {"Round", "Floor", "Ceil", "Sign", "Mod", "QuantizeLinear", "DynamicQuantizeLinear"}
    | {"Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"}
)
"""Operators whose output may jump where the input moves a little (Round, ArgMax)."""

CARRIERS = frozenset({"Cast", "CastLike", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators behind which an integer input is still the same integers."""

NUMERIC = frozenset(
    {"Add", "Sub", "Mul", "Div", "Conv", "Gemm", "MatMul", "Concat", "Resize", "Pad", "Slice", "DequantizeLinear"}
    | {"BatchNormalization", "Relu", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)
"""Operators that compute with integers as numbers, and do not look them up."""

INTEGERS = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64})

LARGE = 4096
"""The most elements of an initializer that may be a shape. Larger ones are not given to shape inference."""

DISTURBED = 2
"""How many draws of disturbed weights are kept for each size of the steps; later ones take the place of the last."""

SESSIONS = 4
"""How many sessions are kept for later calls that fetch the same values."""

ANCESTORS = 32
"""Of how many values it is kept what descends from them."""

FETCHED = FLOATS - {onnx.TensorProto.BFLOAT16}  # which ONNX Runtime cannot hand to numpy


def is_silent(model: object) -> bool:
    """Whether a model does not declare its inputs. An ONNX model does."""
    return False


def open_subject(
    model: Any,
    label: str,
    limits: Limits,
    feeds: Feeds | None,
    other: Subject | None,
    custom_ops: Sequence[Path] = (),
) -> OnnxSubject:
    """Open a ModelProto, an `onnx_ir.Model`, an `ONNXProgram` of torch, or the model in a file, ready to run.

    Raises:
        BnfoldError: the model cannot be read.
    """
    moved: list[onnx.ModelProto] = []

    def sort(proto: onnx.ModelProto) -> None:
        """Sort the nodes, which onnxruntime's own converter to float16 leaves in no order."""
        sort_nodes(proto)
        moved.append(proto)

    if isinstance(model, str | Path):
        subject = OnnxSubject(read_proto(Path(model), limits, sort), str(model), Path(model), custom_ops=custom_ops)
    else:
        proto = model if isinstance(model, onnx.ModelProto) else _serialized(model)
        if not is_sorted(proto):
            copy = onnx.ModelProto()
            copy.CopyFrom(proto)
            sort(proto := copy)
        subject = OnnxSubject(proto, label, custom_ops=custom_ops)
    if moved:
        subject.notes.append(f"the nodes of {subject.label} are not in order: they were sorted")
    return subject


def _serialized(model: Any) -> onnx.ModelProto:
    """The protobuf of an `onnx_ir.Model`, or of an `ONNXProgram`."""
    from bnfold.frontends.onnx.files.saving import serialize
    from bnfold.frontends.onnx.program import unwrap

    return serialize(unwrap(model))


def start_inside(
    path: Path, limits: Limits, names: Sequence[str], custom_ops: Sequence[Path] = ()
) -> tuple[Sequence[Declared], Inside]:
    """What a file takes, and a run that gives some of its values.

    Raises:
        BnfoldError: it cannot be read or run.
    """
    subject = OnnxSubject(read_proto(path, limits), str(path), path, custom_ops=custom_ops)
    given = {each.name for each in subject.inputs}
    fetch = [name for name in names if name not in given]
    if not fetch:  # a session that is asked for nothing gives everything
        return subject.inputs, dict
    run = subject.start(fetch)
    return subject.inputs, lambda feeds: {**feeds, **dict(zip(fetch, run(feeds), strict=True))}


class OnnxSubject:
    """A `bnfold.verification.subject.Subject`.

    Args:
        proto: the model, which was checked; external data is not loaded.
        label: its name in messages.
        path: its file, where it has one.
        folder: the folder of its external data; that of `path`, if there is one.
        custom_ops: libraries of custom operators.
    """

    kind = "onnx"

    def __init__(
        self,
        proto: onnx.ModelProto,
        label: str,
        path: Path | None = None,
        folder: Path | None = None,
        custom_ops: Sequence[Path] = (),
    ) -> None:
        self._proto, count = fix_draws(proto)
        self._path = None if count else path
        self._folder = folder if path is None else path.parent
        self._custom_ops = custom_ops
        self.label = label
        self.notes = (
            [f"{label} draws random numbers ({plural(count, 'operator')}): both are given the same"] if count else []
        )
        self._has_no_kernel = ""
        self._is_unpacked = self._has_free_images = False
        self._sessions: dict[tuple[str, ...], OnnxSession | reference.ReferenceSession] = {}
        self._disturbed: dict[Disturbance, dict[str, npt.NDArray[Any]]] = {}
        self._declared_outputs = [info.name for info in proto.graph.output]
        self._descendants: dict[str, frozenset[str]] = {}

    @cached_property
    def inputs(self) -> list[Declared]:
        """The inputs as declared. Integers that look up a constant table are below its length."""
        initializers = {tensor.name for tensor in self._proto.graph.initializer}
        return [self._declare(info) for info in self._proto.graph.input if info.name not in initializers]

    def _declare(self, info: onnx.ValueInfoProto) -> Declared:
        kind = info.type.WhichOneof("value")
        tensor = info.type.tensor_type
        if kind != "tensor_type":
            raise IncomparableError(f"{self.label}: input {info.name!r} is a {kind}, which cannot be drawn")
        dtype = (
            np.dtype(object)
            if tensor.elem_type == onnx.TensorProto.STRING
            else np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        )
        span = self._span(info.name, dtype) if dtype.kind in "iu" else None
        return Declared(info.name, dtype, _sizes(info), span, tensor.HasField("shape"))

    def _span(self, name: str, dtype: np.dtype[Any]) -> range | None:
        """The integers that an input may hold: rows of the tables that it looks up, or all numbers of a small type.

        An integer of one or two bytes counts as a number (an image, a quantised value) where it is only computed with.
        """
        names, readers = {name}, list[onnx.NodeProto]()
        for node in self._proto.graph.node:
            if not names.isdisjoint(reads(node)):
                readers.append(node)
                if node.op_type in CARRIERS:
                    names.update(node.output)
        tables = {tensor.name: tensor.dims[0] for tensor in self._proto.graph.initializer if tensor.dims}
        rows = [
            int(tables[node.input[0]])
            for node in readers
            if node.op_type == "Gather" and node.input[1] in names and node.input[0] in tables
        ]
        if not rows and dtype.itemsize <= 2 and all(node.op_type in CARRIERS | NUMERIC for node in readers):
            return whole_range(dtype)
        return range(min(rows)) if rows else None

    @property
    def defaults(self) -> list[str]:
        """Inputs that are initializers as well. Before version 4 of the format, each initializer had to be an input."""
        initializers = {tensor.name for tensor in self._proto.graph.initializer}
        is_choice = self._proto.ir_version >= 4
        return [info.name for info in self._proto.graph.input if is_choice and info.name in initializers]

    @property
    def declared_outputs(self) -> list[Declared]:
        """The declared outputs that are tensors."""
        return [
            Declared(info.name, np.dtype(object), _sizes(info), has_rank=info.type.tensor_type.HasField("shape"))
            for info in self._proto.graph.output
        ]

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs, in order."""
        return list(self._declared_outputs)

    @property
    def may_draw(self) -> bool:
        """Whether it has operators that draw random numbers, or such of a domain that is not ONNX's own."""
        nodes = (node for graph in nested(self._proto.graph, *self._proto.functions) for node in graph.node)
        return any(node.domain not in ("", "ai.onnx") or node.op_type in DRAWS for node in nodes)

    @cached_property
    def _makers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self._proto.graph.node for name in node.output if name}

    def values(self) -> Mapping[str, str]:
        """The float values of the main graph that depend on its inputs, each with its node."""
        known = self._inferred
        return {
            name: node.name or f"{node.op_type}:{name}"
            for name, node in self._makers.items()
            if name in known
            and known[name][0] in FETCHED
            and name not in self._declared_outputs
            and name in self._varying
        }

    @cached_property
    def _varying(self) -> frozenset[str]:
        """The values that depend on the inputs, even if only on their shapes."""
        varying = {declared.name for declared in self.inputs}
        for node in self._proto.graph.node:
            if not varying.isdisjoint(reads(node)):
                varying.update(node.output)
        return frozenset(varying)

    def size_hints(self) -> SizeHints:
        """The strides of the main graph, and the small integers that any graph compares, cuts or divides with."""
        return find_hints(self._proto)

    def normalisations(self) -> Mapping[str, Normalisation]:
        """What it first does with inputs, where that is a normalisation."""
        tensors = {tensor.name: tensor for tensor in self._disturbable.graph.initializer}

        def constant(name: str) -> npt.NDArray[Any] | None:
            tensor = tensors.get(name)
            if tensor is None or np.prod(tensor.dims, dtype=object) > LARGE:
                return None
            return read(tensor, self._folder or Path()).astype(np.float64)

        return find_normalisations(self._disturbable.graph, constant)

    def storage(self) -> Storage:
        """How it stores what is used as a weight; a quantised one has axes, and a reader that knows its scale."""
        nodes = list(nested_nodes(self._proto.graph))
        readers = {name: node for node in nodes if is_quantised(node) for name in node.input}
        stored = {
            tensor.name: helper.tensor_dtype_to_np_dtype(tensor.data_type).name
            for tensor in self._proto.graph.initializer
            if len(tensor.dims) > 1
        }
        bits = [BITS[kind] for name, kind in stored.items() if name in readers and kind in BITS]
        bits += [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "bits"]
        model = with_initializers(self._proto)
        used = set(weights(model.graph))
        types = {
            helper.tensor_dtype_to_np_dtype(tensor.data_type).name
            for tensor in model.graph.initializer
            if tensor.name in used
        }
        has_activations = any("Quantize" in node.op_type and node.op_type != "DequantizeLinear" for node in nodes)
        has_activations |= any(node.op_type.startswith("QLinear") for node in nodes)
        return Storage(frozenset(types), find_rounded(self._weights.values()), min(bits, default=0), has_activations)

    def measure(self, feeds: Feeds) -> Mapping[str, int]:
        """The bytes of values, by shape inference. A value of unknown shape counts as the largest known one."""
        sizes: dict[str, int] = {}
        unknown: list[str] = []
        for name, (kind, shape) in self._infer(feeds).items():
            if shape is None:
                unknown.append(name)
            else:
                sizes[name] = int(np.prod(shape, dtype=object)) * helper.tensor_dtype_to_np_dtype(kind).itemsize
        return sizes | dict.fromkeys(unknown, max(sizes.values(), default=0))

    @cached_property
    def _inferred(self) -> dict[str, tuple[int, tuple[int, ...] | None]]:
        """Type and shape of each tensor, as far as the model declares them."""
        return self._infer({})

    def _infer(self, feeds: Feeds) -> dict[str, tuple[int, tuple[int, ...] | None]]:
        """Type and shape of each tensor, for inputs of these shapes; no shape where a size is unknown."""
        bare = onnx.ModelProto(ir_version=self._proto.ir_version)
        bare.opset_import.extend(self._proto.opset_import)
        bare.functions.extend(self._proto.functions)
        graph = self._proto.graph
        bare.graph.name = graph.name
        bare.graph.node.extend(graph.node)
        bare.graph.output.extend(onnx.ValueInfoProto(name=output.name) for output in graph.output)
        constants = {stored.name for stored in graph.initializer}
        for info in graph.input:
            if info.name in feeds:
                kind = info.type.tensor_type.elem_type
                bare.graph.input.append(helper.make_tensor_value_info(info.name, kind, feeds[info.name].shape))
            elif info.name not in constants:
                bare.graph.input.append(info)
        for constant in graph.initializer:
            if np.prod(constant.dims, dtype=object) > LARGE or constant.data_location == onnx.TensorProto.EXTERNAL:
                bare.graph.input.append(helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims))
            else:
                bare.graph.initializer.append(constant)
        inferred = infer_shapes(bare)
        if inferred is None:
            return {}
        types: dict[str, tuple[int, tuple[int, ...] | None]] = {}
        for info in (*inferred.graph.value_info, *inferred.graph.output):
            if info.type.WhichOneof("value") == "tensor_type":
                tensor = info.type.tensor_type
                known = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
                shape = tuple(dim.dim_value for dim in tensor.shape.dim) if known else None
                types[info.name] = tensor.elem_type, shape
        return types

    @cached_property
    def _jumps(self) -> frozenset[str]:
        jumping: set[str] = set()
        fixed = {tensor.name for tensor in self._proto.graph.initializer} | {""}  # the same for all inputs and weights
        for node in self._proto.graph.node:
            read = set(reads(node))
            is_cast = node.op_type == "Cast" and any(
                attribute.name == "to" and attribute.i in INTEGERS for attribute in node.attribute
            )
            has_jump = any(inner.op_type in JUMPS for body in bodies(node) for inner in nested_nodes(body))
            if node.op_type in ("Shape", "Size", "Constant") or read <= fixed:
                fixed.update(node.output)
            elif node.op_type in JUMPS or has_jump or is_cast or not jumping.isdisjoint(read):
                jumping.update(node.output)
        return frozenset(jumping)

    def jumps(self) -> frozenset[str]:
        """The values behind an operator of `JUMPS`."""
        return self._jumps

    def descends(self, value: str, ancestor: str) -> bool:
        """Whether a path of nodes leads from `ancestor` to `value`."""
        if ancestor not in self._descendants:
            if len(self._descendants) >= ANCESTORS:
                del self._descendants[next(iter(self._descendants))]
            self._descendants[ancestor] = self._find_descendants(ancestor)
        return value in self._descendants[ancestor]

    def _find_descendants(self, ancestor: str) -> frozenset[str]:
        queue, seen = [ancestor], set[str]()
        while queue:
            for name in self._made_of.get(queue.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    queue.append(name)
        return frozenset(seen)

    @cached_property
    def _made_of(self) -> dict[str, list[str]]:
        """The values that the readers of each value make."""
        made: dict[str, list[str]] = {}
        for node in self._proto.graph.node:
            for name in set(reads(node)):
                made.setdefault(name, []).extend(filter(None, node.output))
        return made

    def start(self, fetch: Sequence[str], disturbance: Disturbance | None = None) -> Run:
        """Start with optimisation off, so that the runtime adds nothing of its own."""
        session = self._session(tuple(name for name in fetch if name not in self._declared_outputs))
        if disturbance is None:
            return lambda feeds: session({**self._weights, **feeds}, fetch)
        return lambda feeds: session({**self._disturb(disturbance), **feeds}, fetch)

    def start_replacing(self, value: str, fetch: Sequence[str]) -> Run:
        """Start with an input in the place of an inner value, which its node then makes under another name."""
        more = [name for name in fetch if name not in self._declared_outputs]
        model = self._bare(more)
        for node in model.graph.node:
            node.output[:] = [f"{name}/replaced" if name == value else name for name in node.output]
        kind = self._inferred[value][0]
        model.graph.input.append(helper.make_tensor_value_info(value, kind, None))
        session = self._open(model)
        return lambda feeds: session({**self._weights, **feeds}, fetch)

    def _disturb(self, disturbance: Disturbance) -> dict[str, npt.NDArray[Any]]:
        """The disturbed weights, which hold until the next ones are made. The first are kept: each input needs them."""
        if disturbance not in self._disturbed:
            kinds = {disturbance.steps, *(kept.steps for kept in self._disturbed)}
            if len(self._disturbed) >= DISTURBED * len(kinds):
                room = list(self._disturbed.popitem()[1].values())
            else:
                room = room_for(self._weights.values())
            self._disturbed[disturbance] = {
                name: disturbance(array, index, room[index], is_whole=name in self._whole)
                for index, (name, array) in enumerate(self._weights.items())
            }
        return self._disturbed[disturbance]

    def _session(self, more_outputs: tuple[str, ...]) -> OnnxSession | reference.ReferenceSession:
        """A session for the outputs and some inner values. The last few sessions are kept."""
        session = self._sessions.pop(more_outputs, None)
        if session is None:
            session = self._open(self._bare(more_outputs))
        self._sessions[more_outputs] = session
        if len(self._sessions) > SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        return session

    def _bare(self, more_outputs: Sequence[str]) -> onnx.ModelProto:
        """The model without its weights, which are inputs, and with further outputs."""
        model = with_weights_as_inputs(self._disturbable, self._weight_names, more_outputs)
        if self._has_free_images:
            free_images(model)
        return model

    def _open(self, bare: onnx.ModelProto) -> OnnxSession | reference.ReferenceSession:
        """A session of the runtime, or of the reference evaluator where that has no kernel for the model."""
        model = bare.SerializeToString()
        if not self._has_no_kernel:
            try:
                return OnnxSession(model, self.label, folder=self._folder, custom_ops=self._custom_ops)
            except NoKernelError as error:
                self._has_no_kernel = str(error)
        session = reference.ReferenceSession(model, self.label, self._folder)
        note = f"{self._has_no_kernel}: the reference evaluator of onnx runs it"
        if note not in self.notes:
            self.notes.append(note)
        return session

    def start_as_deployed(self, provider: str) -> tuple[Run, str | None]:
        """Start with all optimisations on, the default, or by the reference evaluator in float64."""
        if provider == REFERENCE:
            return self._start_in_float64(), None
        session = self._start_deployed(provider)
        count = session.nodes_elsewhere()
        finding = f"{provider} hands {plural(count, 'node')} of {self.label} back to the CPU" if count else None
        return partial(session, fetch=self.outputs), finding

    def start_with_defaults(self, provider: str) -> tuple[Run, str] | None:
        """Start with TF32, where the provider has it."""
        if provider not in STRICT:
            return None
        return partial(self._start_deployed(provider, is_strict=False), fetch=self.outputs), STRICT[provider].what

    def _start_in_float64(self) -> Run:
        wide = widen(self._proto, self._folder, FLOATS, onnx.TensorProto.DOUBLE)
        session = reference.ReferenceSession(wide.SerializeToString(), self.label, self._folder, seconds=inf)
        return lambda feeds: session(
            {name: array.astype(np.float64) if is_float(array) else array for name, array in feeds.items()},
            self.outputs,
        )

    def _start_deployed(self, provider: str, *, is_strict: bool = True) -> OnnxSession:
        model = self._path if self._path is not None else self._proto.SerializeToString()
        return OnnxSession(
            model,
            self.label,
            folder=self._folder,
            provider=provider,
            is_optimised=True,
            is_strict=is_strict,
            custom_ops=self._custom_ops,
        )

    @cached_property
    def _disturbable(self) -> onnx.ModelProto:
        """The model with its constants as initializers: in the type of the computation, where that is asked for."""
        model = with_initializers(self._proto)
        if not self._is_unpacked:
            return model
        return unpack(model, self._folder, {name: kind for name, (kind, _) in self._inferred.items()})

    @cached_property
    def narrow_weights(self) -> frozenset[bytes]:
        """A digest of each weight that is stored in float16 or bfloat16."""
        return digest_narrow(with_initializers(self._proto), self._folder)

    def unpack_weights(self) -> None:
        """From now on, take narrow weights in the type that operators compute with."""
        self._is_unpacked = True
        for name in ("_disturbable", "_weight_names", "_weights", "_whole"):
            self.__dict__.pop(name, None)

    @cached_property
    def _weight_names(self) -> list[str]:
        return weights(self._disturbable.graph)

    @cached_property
    def _weights(self) -> dict[str, npt.NDArray[Any]]:
        """The weights that disturbances move, by name."""
        tensors = {tensor.name: tensor for tensor in self._disturbable.graph.initializer}
        return {name: read(tensors[name], self._folder or Path()) for name in self._weight_names}

    @cached_property
    def _whole(self) -> frozenset[str]:
        """The weights that may be moved in every element."""
        return frozenset(name for name, array in self._weights.items() if may_all_move(array))

    def widened(self) -> tuple[OnnxSubject, int] | None:
        """The model with float32 in place of float16 and bfloat16, and the steps of its disturbances."""
        kinds = {tensor.data_type for tensor in self._disturbable.graph.initializer}
        steps = [step for name, step in WIDE_STEPS.items() if NARROW[name] in kinds]
        if not steps:
            return None
        proto = widen(self._proto, self._folder, tuple(NARROW.values()), onnx.TensorProto.FLOAT)
        return OnnxSubject(proto, self.label, folder=self._folder, custom_ops=self._custom_ops), max(steps)

    def resized(self) -> tuple[OnnxSubject, Sequence[str]] | None:
        """It shares the model, the weights and their disturbances."""
        interface = onnx.ModelProto()
        interface.graph.input.extend(self._proto.graph.input)
        interface.graph.initializer.extend(
            onnx.TensorProto(name=tensor.name) for tensor in self._proto.graph.initializer
        )
        symbols = free_images(interface)
        if not symbols or not self._weights:
            return None
        subject = copy(self)
        subject._sessions, subject._has_free_images = {}, True
        initializers = {tensor.name for tensor in interface.graph.initializer}
        infos = [info for info in interface.graph.input if info.name not in initializers]
        subject.__dict__["inputs"] = [self._declare(info) for info in infos]
        return subject, symbols

    def cut(self, fetch: Sequence[str], known: Collection[str]) -> Cut:
        """The nodes between known values and those to fetch."""
        given, made, queue = dict[str, None](), dict[str, None](), list(fetch)
        while queue:
            name = queue.pop()
            node = self._makers.get(name)
            if node is None or name in made or name in given:
                continue
            if name in known:
                given[name] = None
            else:
                made.update((output, None) for output in node.output if output)
                queue += reads(node)
        return Cut(tuple(given), tuple(made))

    def evaluate_exactly(
        self, feeds: Feeds, fetch: Sequence[str], seconds: float, given: Feeds | None = None
    ) -> list[npt.NDArray[Any]] | None:
        """Evaluate a copy of the model in float64, by the reference evaluator of ONNX."""
        deadline = time.process_time() + seconds
        part = self._proto if not given else self._part(self.cut(fetch, given))
        wide = widen(part, self._folder, FLOATS, onnx.TensorProto.DOUBLE)
        return reference.evaluate(wide, {**feeds, **(given or {})}, fetch, deadline - time.process_time())

    def _part(self, cut: Cut) -> onnx.ModelProto:
        """The model without what a cut leaves out; its inputs are those of the model and the given values."""
        graph, made = self._proto.graph, set(cut.made)
        part = onnx.ModelProto(ir_version=self._proto.ir_version, opset_import=self._proto.opset_import)
        part.functions.extend(self._proto.functions)
        nodes = [node for node in graph.node if not made.isdisjoint(node.output)]
        needed = {name for node in nodes for name in reads(node)}
        part.graph.node.extend(nodes)
        part.graph.name = graph.name
        part.graph.input.extend(graph.input)
        part.graph.input.extend(onnx.ValueInfoProto(name=name) for name in cut.given)
        part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
        part.graph.sparse_initializer.extend(graph.sparse_initializer)
        return part


def is_quantised(node: onnx.NodeProto) -> bool:
    """Whether an operator computes with quantised weights."""
    return any(part in node.op_type for part in ("QLinear", "Quantize", "Dequantize", "Integer", "QGemm", "NBits"))


def _sizes(info: onnx.ValueInfoProto) -> tuple[int | str | None, ...]:
    """The declared sizes of a tensor: numbers, symbols, or None."""
    dims = info.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in dims)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, in its bodies too."""
    yield from node.input
    for body in bodies(node):
        for inner in nested_nodes(body):
            yield from inner.input
