"""Shapes and element types of every value, as they follow from graph inputs, constants and operators.

What a file declares of an inner value, or of an output, is left out: it may be older than the graph
(`bnfold.frontends.onnx.operators.hints` has what becomes of it). The declaration of a graph input is a contract, which
a runtime enforces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import onnx
import onnx_ir as ir

from bnfold.errors import UnreadableTensorError
from bnfold.frontends.memory import give_back
from bnfold.frontends.onnx.files.pieces import form
from bnfold.frontends.onnx.files.slots import INSIDE
from bnfold.frontends.onnx.files.stored import Form, StoredModel, StoredTensor
from bnfold.frontends.onnx.nesting import graphs, nested, pairs
from bnfold.frontends.onnx.operators.constants import OVERRIDABLE, Constants
from bnfold.frontends.onnx.operators.skeleton import DATA_LIMIT, share_functions, skeleton
from bnfold.frontends.onnx.operators.targets import Targets
from bnfold.frontends.onnx.piecewise import infer_graphs
from bnfold.frontends.onnx.shape_inference import infer_shapes
from bnfold.graph.ops import Dim, Shape

T = TypeVar("T")

KINDS = frozenset(ir.DataType) - {ir.DataType.UNDEFINED}

DIM_LIMIT = 1 << 40
"""A dimension that no array has. A larger or negative one counts as unknown."""

SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Expand", "Reshape", "Split", "Squeeze", "Tile", "Unsqueeze"), (1,)),
    **dict.fromkeys((f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min")), (1,)),
    **dict.fromkeys((f"Reduce{kind}" for kind in ("Prod", "Sum", "SumSquare")), (1,)),
    "ConstantOfShape": (0,),
    "Pad": (1, 3),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Upsample": (1,),
}
"""Inputs whose values decide the shape of the output. onnx reads stored ones, but not all computed ones."""

FOLLOWED = 8
"""How often shapes are inferred again after some were computed here."""

OPAQUE = "bnfold.opaque"
"""A domain that has no operators."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Shape and type of one value; None stands for an unknown one."""

    shape: Shape | None = None
    dtype: ir.DataType | None = None


class Known(dict[ir.Value, T]):
    """Facts about values. Those of stored tensors, of which a model has most, are asked from these.

    Args:
        ask: what the type and shape of a tensor tell.
        is_overridable: whether a caller may replace a tensor by another one.
    """

    def __init__(self, ask: Callable[[Form], T], is_overridable: Callable[[ir.Value], bool]) -> None:
        super().__init__()
        self._ask, self._is_overridable = ask, is_overridable

    def __missing__(self, value: ir.Value) -> T:
        fact: T | None = self.get(value)
        if fact is None:
            raise KeyError(value)
        return fact

    def __contains__(self, value: object) -> bool:
        return super().__contains__(value) or (isinstance(value, ir.Value) and self.get(value) is not None)

    def get(self, value: ir.Value, default: Any = None) -> Any:
        """What is known of a value."""
        if (fact := super().get(value)) is not None:
            return fact
        tensor = value.const_value
        if isinstance(tensor, StoredTensor) and not self._is_overridable(value):
            return self._ask(tensor.form)
        return default


class Inference:
    """Inferred shapes and types of a model's values.

    Args:
        model: not changed.
        constants: its constants, as far as no shape is needed for them.
        original: the protobuf that the model is as it was read from; None where it is not known.

    Attributes:
        shapes, types: of values of all graphs and functions; what is not known is left out.
        symbols: the dynamic sizes that graph inputs declare; any other symbol is a size that nothing tells.
    """

    def __init__(
        self, model: ir.Model, constants: Constants, original: onnx.ModelProto | StoredModel | None = None
    ) -> None:
        self.shapes: Known[Shape] = Known(lambda form: form.dims, constants.is_overridable)
        self.types: Known[ir.DataType] = Known(lambda form: form.dtype, constants.is_overridable)
        self._note_stored(model)
        self._proto = skeleton(model, original)
        self._values = _prepare(model.graph, self._proto.graph, constants)
        self._functions = _functions(model, self._proto, constants)
        share_functions(self._proto)
        self.symbols = {dim.dim_param for each in self._proto.graph.input for dim in each.type.tensor_type.shape.dim}
        self._infer()
        self._follow(model.graph, Targets(constants, self.shapes))

    def _follow(self, graph: ir.Graph, targets: Targets) -> None:
        """Infer again what follows from Reshapes whose targets are computed from open sizes."""
        reshapes = [node for node in graph if node.op_type == "Reshape" and node.domain == "" and node.outputs[0].name]
        for _ in range(FOLLOWED):
            facts: dict[str, Kind] = {}
            for node in reshapes:
                output, read = node.outputs[0], node.inputs[0]
                known, made = self.shapes.get(output), targets.result(node)
                refined = made if known is None or made is None else self._refine(known, made)
                if refined is not None and refined != known and read is not None:
                    facts[str(output.name)] = Kind(refined, self.types.get(read))
            if not facts:
                return
            self.add(facts)

    def _refine(self, known: Shape, made: Shape) -> Shape:
        """A shape with sizes of another in place of those that nothing tells."""
        if len(known) != len(made):
            return known
        pairs = zip(known, made, strict=True)
        return tuple(new if self._tells(new) and not self._tells(old) else old for old, new in pairs)

    def _tells(self, dim: Dim) -> bool:
        return isinstance(dim, int) or dim in self.symbols

    def _note_stored(self, model: ir.Model) -> None:
        """Note the shapes and types of graph inputs and tensors, which are facts."""
        inputs = set(model.graph.inputs)
        forms: dict[Shape, Shape] = {}  # one object for each shape, of which most models have few
        for value in chain.from_iterable(map(graph_values, graphs(model))):
            tensor = value.const_value
            is_default = value in inputs and model.ir_version >= OVERRIDABLE
            if isinstance(tensor, StoredTensor) and not is_default:
                continue
            if tensor is not None and not is_default:
                self.types[value], shape = stored_form(tensor)
                self.shapes[value] = forms.setdefault(shape, shape)
            elif value in inputs:
                self._note(value, Kind(None if value.shape is None else read_shape(value.shape), value.dtype))

    def _note(self, value: ir.Value, kind: Kind) -> None:
        if kind.shape is not None:
            self.shapes[value] = kind.shape
        if kind.dtype is not None:
            self.types[value] = kind.dtype

    def release(self) -> None:
        """Give back what inferring again would take."""
        self._proto, self._values, self._functions = onnx.ModelProto(), [], {}
        give_back()

    def add(self, facts: Mapping[str, Kind]) -> None:
        """Infer again, with new facts about values of the main graph."""
        known = {name: value for name, value in self._values[0].items() if name in facts}
        outputs = {info.name: info for info in self._proto.graph.output}
        for name, value in known.items():
            kind = facts[name]
            info = outputs[name] if name in outputs else self._proto.graph.value_info.add(name=name)
            _describe(info, Kind(kind.shape, kind.dtype or self.types.get(value)))
        self._infer()
        for name, value in known.items():
            self._note(value, facts[name])

    def _infer(self) -> None:
        for graph in infer_graphs(self._proto):
            self._match(self._values, graph)
        self._infer_functions()

    def _match(self, values: Sequence[Mapping[str, ir.Value]], proto: onnx.GraphProto) -> None:
        kinds: dict[bytes, Kind] = {}
        for named, graph in zip(values, nested(proto), strict=True):
            for info in (*graph.input, *graph.value_info, *graph.output):
                value = named.get(info.name)
                if value is None or value.const_value is not None:
                    continue
                described = info.type.SerializeToString()  # mostly one of a few
                if described not in kinds:
                    kinds[described] = _read_kind(info.type)
                self._note(value, kinds[described])

    def _infer_functions(self) -> None:
        """Infer each function once, from the properties that all its callers share."""
        callers = Counter(callee for function in self._functions.values() for callee in function.callees)
        ready = [key for key in self._functions if not callers[key]]
        while ready:  # functions that call each other are no valid model
            function = self._functions[ready.pop()]
            inferred = infer_shapes(function.model([self._common(operands) for operands in function.operands]))
            if inferred is not None:
                self._match(function.values, inferred.graph)
            callers.subtract(function.callees)
            ready += [callee for callee in function.callees if callee in self._functions and not callers[callee]]

    def _common(self, operands: Sequence[ir.Value | None]) -> Kind:
        """The shape and type that all callers' values for one input have in common."""
        kinds = [Kind() if value is None else Kind(self.shapes.get(value), self.types.get(value)) for value in operands]
        shapes, dtypes = [kind.shape for kind in kinds], {kind.dtype for kind in kinds}
        known = [shape for shape in shapes if shape is not None]
        shape: Shape | None = None
        if len(known) == len(shapes) and len({len(dims) for dims in known}) == 1:
            shape = tuple(dims[0] if len(set(dims)) == 1 else None for dims in zip(*known, strict=True))
        return Kind(shape, dtypes.pop() if len(dtypes) == 1 else None)


Key = tuple[str, str, str]
"""The key of the function that a node calls: domain, name and overload."""


class _Function:
    """The body of a function as the graph of a model of its own.

    Attributes:
        values: those of its graphs, by name.
        callees: what its nodes call.
        operands: for each of its inputs, what its callers give.
    """

    def __init__(self, function: ir.Function, proto: onnx.FunctionProto, constants: Constants) -> None:
        self._proto = onnx.ModelProto(ir_version=onnx.IR_VERSION)
        self._proto.opset_import.extend((*proto.opset_import, onnx.helper.make_opsetid(OPAQUE, 1)))
        graph = self._proto.graph
        graph.name = proto.name
        graph.node.extend(proto.node)
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in proto.input)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output)
        self.values = _prepare(function.graph, graph, constants)
        self.callees = {node.op_identifier() for node in function.all_nodes()}
        self.operands: list[list[ir.Value | None]] = [[] for _ in function.inputs]

    def lend(self, functions: Mapping[Key, onnx.FunctionProto]) -> None:
        """Add the functions that this one calls."""
        self._proto.functions.extend(functions[key] for key in sorted(self.callees & functions.keys()))

    def note_call(self, node: ir.Node) -> None:
        """Add the operands of another node that calls the function."""
        for index, operands in enumerate(self.operands):
            operands.append(node.inputs[index] if index < len(node.inputs) else None)

    def model(self, inputs: Sequence[Kind]) -> onnx.ModelProto:
        """The body as a model, with these shapes and types of its inputs."""
        for info, kind in zip(self._proto.graph.input, inputs, strict=True):
            _describe(info, kind)
        return self._proto


def _functions(model: ir.Model, proto: onnx.ModelProto, constants: Constants) -> dict[Key, _Function]:
    """The functions of a model, each with the operands of its callers."""
    protos = {_key(function): function for function in proto.functions}
    functions = {key: _Function(function, protos[key], constants) for key, function in model.functions.items()}
    if not functions:
        return {}
    for function in functions.values():
        function.lend(protos)
    for node in chain.from_iterable(graphs(model)):
        if (key := node.op_identifier()) in functions:
            functions[key].note_call(node)
    return functions


def _key(function: onnx.FunctionProto) -> Key:
    return function.domain, function.name, function.overload


def _prepare(graph: ir.Graph, proto: onnx.GraphProto, constants: Constants) -> list[dict[str, ir.Value]]:
    """Store constants where onnx reads them; gives the values of a graph and its bodies by name."""
    values: list[dict[str, ir.Value]] = []
    for inner, described in pairs((graph, proto)):
        values.append({value.name: value for value in _open_values(inner) if value.name})
        _store_operands(inner, described, constants)
    return values


def _store_operands(graph: ir.Graph, proto: onnx.GraphProto, constants: Constants) -> None:
    """Make initializers of those constants that decide a shape and are computed, or come from another graph.

    A node with an attribute that the caller of a function sets becomes one of which nothing is known.
    """
    stored: dict[ir.Value, str] = {}
    for node, described in zip(graph, proto.node, strict=True):
        if any(attribute.ref_attr_name for attribute in described.attribute):
            described.domain = OPAQUE
            continue
        indices = SHAPE_OPERANDS.get(node.op_type, ()) if node.domain == "" else ()
        for index in indices:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or _is_stored_in(graph, value) or not constants.holds(value):
                continue
            if value not in stored:
                try:
                    array = constants.get(value)
                except UnreadableTensorError:
                    continue
                if array.nbytes > DATA_LIMIT or array.dtype.kind not in "fiu":
                    continue
                stored[value] = f"bnfold_constant_{len(stored)}_{value.name}"
                proto.initializer.append(onnx.numpy_helper.from_array(array, stored[value]))
            described.input[index] = stored[value]


def _is_stored_in(graph: ir.Graph, value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return value.is_initializer() and value.graph is graph
    return node.op_type == "Constant" and node.graph is graph


def _describe(info: onnx.ValueInfoProto, kind: Kind) -> None:
    """Declare a shape and a type, as far as they are known."""
    info.ClearField("type")
    if kind.dtype is None:
        return
    tensor = info.type.tensor_type
    tensor.elem_type = int(kind.dtype)
    if kind.shape is None:
        return
    tensor.shape.SetInParent()
    for dim in kind.shape:
        described = tensor.shape.dim.add()
        if isinstance(dim, int):
            described.dim_value = dim
        elif dim is not None:
            described.dim_param = dim


def _read_kind(described: onnx.TypeProto) -> Kind:
    """The shape and type of a tensor; nothing of any other value."""
    if not described.HasField("tensor_type"):
        return Kind()
    kind = described.tensor_type
    shape = tuple(_proto_dim(dim) for dim in kind.shape.dim) if kind.HasField("shape") else None
    return Kind(shape, ir.DataType(kind.elem_type) if kind.elem_type in KINDS else None)


def _proto_dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if 0 <= dim.dim_value < DIM_LIMIT else None
    return dim.dim_param or None


def read_shape(shape: ir.ShapeProtocol) -> Shape:
    """A shape that is declared or stored."""
    return tuple(_dim(dim) for dim in shape)


def stored_form(tensor: ir.TensorProtocol) -> tuple[ir.DataType, Shape]:
    """The type and shape of a stored tensor, with unknown sizes in place of those that no array has."""
    if type(tensor) in INSIDE:
        dtype, stored = form(tensor)
        is_usual = not stored or (min(stored) >= 0 and max(stored) < DIM_LIMIT)
        return dtype, stored if is_usual else tuple(map(_dim, stored))
    return tensor.dtype, read_shape(tensor.shape)


def _dim(dim: int | ir.SymbolicDimProtocol) -> Dim:
    if isinstance(dim, int):
        return dim if 0 <= dim < DIM_LIMIT else None
    return dim.value


def _open_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value of a graph itself of which a shape may be inferred."""
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def graph_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that a graph itself holds."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
