"""The view of an ONNX model that planner and folder have."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, wraps
from typing import Concatenate, ParamSpec

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.algebra.rounding import Rounding, measure_parameters, round_once
from bnfold.frontends.onnx.edit import Editor, Stage
from bnfold.frontends.onnx.files.pieces import SolvedTensor
from bnfold.frontends.onnx.files.stored import StoredModel
from bnfold.frontends.onnx.operators import read_affine, read_carry, read_linear
from bnfold.frontends.onnx.operators.constants import Constants
from bnfold.frontends.onnx.operators.hints import UNCONFIRMED, Hints
from bnfold.frontends.onnx.operators.read_linear import Weights
from bnfold.frontends.onnx.operators.reader import Facts, Reader, reads_of
from bnfold.frontends.onnx.operators.shapes import Inference
from bnfold.frontends.onnx.schema import find_defaults
from bnfold.frontends.onnx.scopes import Scopes, find_unread, label
from bnfold.frontends.onnx.shape_inference import Confirm
from bnfold.frontends.onnx.spelling import SPELLED
from bnfold.frontends.parameters import Stored, View
from bnfold.frontends.quantized import kernel_axis
from bnfold.frontends.reading import AnyArray, Normalization, Unreadable, foreign, leads_nowhere, opaque, unit
from bnfold.frontends.traversal import in_order, reach
from bnfold.graph.cautions import Caution, DeclarationCaution
from bnfold.graph.cost import count_elements
from bnfold.graph.ops import ChannelAffine, Computed, Form, Lowered, Op, Opaque, Operands, Select, Sum
from bnfold.graph.outcome import Outcome, Reason, Refusal, Stop
from bnfold.graph.protocol import Constant

P = ParamSpec("P")

Description = tuple[Op, Weights | None]
"""What a node is, and the place of its parameters where it is linear."""

Key = tuple[str, str, str]
"""A function: domain, name and overload."""

READS_NO_CONTENT = {
    "CastLike": 1,
    **dict.fromkeys(("EyeLike", "RandomNormalLike", "RandomUniformLike", "Shape", "Size"), 0),
}
"""Operators that read the shape or type of an input alone, with its index. A per-channel affine changes neither."""

CONVOLVED = (3, 4, 5)
"""Ranks of data that runtimes convolve."""

PRODUCTS = frozenset({"Einsum", "MatMul"})
"""Operators that have a constant on either side, and take no bias."""

READ_ONCE = Constant(1)
"""Stands for every stored constant that is read once: it is shared with nothing, whatever becomes of the graph."""

ARITHMETIC = frozenset({"Add", "Div", "Mul", "Neg", "Sub"})

READS_SEVERAL = PRODUCTS | ARITHMETIC | {"Where", "ScatterElements", "ScatterND"} | read_carry.ALL_INPUTS_ARE_DATA
"""Operators of which more than the first input, or another, may be data."""

FIRST = (0,)

HELD = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR, ir.AttributeType.TENSORS})
"""Types of attributes that are graphs and tensors, which are compared as such."""

JUDGED_BY_TYPE = frozenset({"Add", "Cast", "Neg", "Sub", "Sum"})
"""Operators that are rarely opaque for any other reason than an unknown type or shape."""


def _edit(method: Callable[Concatenate[OnnxGraph, P], None]) -> Callable[Concatenate[OnnxGraph, P], None]:
    """An edit of the graph, after which every description is made anew."""

    @wraps(method)
    def edit(graph: OnnxGraph, /, *args: P.args, **options: P.kwargs) -> None:
        method(graph, *args, **options)
        graph.forget()

    return edit


class OnnxGraph(View[ir.Node, ir.Value, Weights]):
    """All graphs of an ONNX model as one `bnfold.graph.protocol.Graph`: nodes are `ir.Node`, values are `ir.Value`.

    A matrix product and the Add that is its bias are one node, the product; its output is the Add's. The body of a
    function is folded once, for all its callers, by what is constant in the body.

    Args:
        model: changed by the edits.
        confirm: runs the model as it was for shapes that are only declared; they are not believed without.
        inlined: functions of the original whose calls are written out in the model.
        original: the protobuf that the model is as it was read from, where it is known.
    """

    can_lower = True

    def __init__(
        self,
        model: ir.Model,
        confirm: Confirm | None = None,
        inlined: tuple[Key, ...] = (),
        original: onnx.ModelProto | StoredModel | None = None,
    ) -> None:
        self.model, self.inlined = model, inlined
        scopes = Scopes(model)
        constants = Constants(model, scopes, {}, {})
        self._confirm = confirm
        self._hints = Hints(model, Inference(model, constants, original), scopes)
        self._facts = Facts(constants, scopes, self._hints.shapes, self._hints.types)
        self._missing: set[str] = set()
        self._unread = find_unread(scopes.nodes)
        self._renewed: set[ir.Node] = set()
        self._learn()

    @cached_property
    def _editor(self) -> Editor:
        """What changes the model, which is only read until a fold is written."""
        return Editor(self.model, self._facts.scopes, self._facts.constants.holds)

    def _learn(self) -> None:
        """Compute again everything that depends on the known shapes and types."""
        self._facts.constants.renew(self._facts.shapes, self._facts.types)
        self._missing.clear()
        self._bias_add: dict[ir.Node, ir.Node] = {}
        self._product: dict[ir.Node, ir.Node] = {}
        for node in self._facts.scopes.nodes:
            self._pair(node)
        self._data: dict[ir.Node, Sequence[int]] = {}
        self._computed: dict[ir.Node, Computed] = {}
        self._constants: dict[ir.Node | ir.Value, Constant] = {}  # by what makes it, if anything does
        self._descriptions: dict[ir.Node, Description] = {}  # until the next edit

    def try_out_hints(self) -> bool:
        """Run the model to confirm declared shapes that a plan missed; whether more is known now.

        Not part of `Graph`. Plans made before are void, and nothing may have been changed.
        """
        if self._confirm is None or not self._missing or not self._hints.try_out(self._confirm):
            return False
        self._learn()
        return True

    def explain(self, outcome: Outcome) -> Outcome:
        """Add to a refusal for lack of a shape that the shape is declared, but not confirmed. Not part of `Graph`."""
        if not isinstance(outcome, Refusal) or outcome.reason is not Reason.UNKNOWN_SHAPE:
            return outcome
        if outcome.at not in self._missing or UNCONFIRMED in outcome.detail:
            return outcome
        return replace(outcome, detail=f"{outcome.detail}; {UNCONFIRMED}")

    def forget(self) -> None:
        """Forget the descriptions of nodes. Not part of `Graph`."""
        self._descriptions.clear()

    def _pair(self, node: ir.Node) -> None:
        """Note the Add that is the bias of a matrix product."""
        if node.op_type != "MatMul" or node.domain != "":
            return
        product = node.outputs[0]
        uses = list(product.uses())
        if len(uses) != 1 or product.is_graph_output():
            return
        add = uses[0].node
        is_add = add.op_type == "Add" and add.domain == "" and add.graph is node.graph
        if is_add and read_linear.is_bias(self._reader(node), add):
            self._bias_add[node], self._product[add] = add, node

    def _reader(self, node: ir.Node) -> Reader:
        return Reader(node, self._facts)

    def nodes(self) -> Iterator[ir.Node]:
        return (node for node in self._facts.scopes.nodes if node not in self._product)

    def name(self, node: ir.Node) -> str:
        return label(node)

    def operator(self, node: ir.Node) -> str:
        spelled: str = node.meta.get(SPELLED, node.op_type)
        return spelled if node.domain == "" else f"{node.domain}.{spelled}"

    def attributes(self, node: ir.Node) -> Mapping[str, str]:
        defaults = find_defaults(node.op_type, self._reader(node).version) if node.domain == "" else {}
        given = {
            name: f"@{attribute.value}" if attribute.is_ref() else str(attribute.value)
            for name, attribute in node.attributes.items()
            if attribute.is_ref() or attribute.type not in HELD
        }
        return {**defaults, **given}

    def reads(self, node: ir.Node) -> Sequence[ir.Value]:
        return [value for value in node.inputs if value is not None and not self._is_stored(value)]

    def constant(self, value: ir.Value) -> AnyArray | None:
        if not self._is_stored(value):
            return None
        try:
            return self._facts.constants.get(value)
        except Unreadable:
            return None

    def held(self, node: ir.Node) -> Sequence[AnyArray]:
        read = [self.constant(value) for value in node.inputs if value is not None]
        return [array for array in read if array is not None]

    def is_fixed(self, value: ir.Value) -> bool:
        return self._is_stored(value)

    def title(self, value: ir.Value) -> str:
        return value.name or ""

    def sources(self) -> Sequence[ir.Value]:
        return [value for value in self.model.graph.inputs if not self._is_stored(value)]

    def _is_stored(self, value: ir.Value) -> bool:
        """Whether a value is a constant that no BatchNorm makes, for a reader who asks where each BatchNorm went."""
        return self._facts.constants.holds(value) and value not in self._made_of_batchnorms

    @cached_property
    def _made_of_batchnorms(self) -> frozenset[ir.Value]:
        """The constants that BatchNorms make, and all that is computed from them, in a model that is only read."""
        made: set[ir.Value] = set()
        for node in self._facts.scopes.nodes:
            if node.op_type == "BatchNormalization" or (made and not made.isdisjoint(node.inputs)):
                made.update(filter(self._facts.constants.holds, node.outputs))
        return frozenset(made)

    def results(self) -> Sequence[ir.Value]:
        return list(self.model.graph.outputs)

    def scope(self, node: ir.Node) -> str:
        return self._facts.scopes.name(node)

    def op(self, node: ir.Node) -> Op:
        return self._describe(node)[0]

    def _describe(self, node: ir.Node) -> Description:
        """The description of a node, made once and kept until an edit."""
        if node not in self._descriptions:
            misses = self._hints.misses
            try:
                description = self._read(node)
            except Unreadable as error:
                description = Opaque(error.stop, self._is_batchnorm(node)), None
            if self._hints.misses != misses:
                description = self._note_miss(node, description)
            if isinstance(description[0], Linear) and description[0].is_quantized:  # which would keep its integers
                return description
            self._descriptions[node] = description
        return self._descriptions[node]

    def _note_miss(self, node: ir.Node, description: Description) -> Description:
        """The description of a node of which a shape or type was missed that a hint declares."""
        self._missing.add(label(node))
        is_scaling = node.op_type in ("Mul", "Div") and any(map(self._facts.constants.holds, node.inputs))
        is_judged = node.domain == "" and (node.op_type in JUDGED_BY_TYPE or is_scaling)
        if isinstance(description[0], Opaque) and is_judged:
            return Opaque(Stop(Reason.UNKNOWN_SHAPE, UNCONFIRMED)), None
        return description

    def _read(self, node: ir.Node) -> Description:
        if node.domain != "" and not self._is_fused_matmul(node):
            unknown = f"{node.domain}.{node.op_type} is not an operator that bnfold knows"
            return opaque(Reason.NOT_LINEAR, unknown), None
        reader = self._reader(node)
        if (linear := read_linear.read_linear(reader, self._bias_add.get(node))) is not None:
            return linear
        if node in self._unread and any(value is not None and self._is_end(node, value) for value in node.inputs):
            raise leads_nowhere()
        if node.op_type == "BatchNormalization" and self._facts.constants.holds(node.outputs[0]):
            return self._compute(node), None
        if node.op_type == "BatchNormalization":
            return read_affine.read_batchnorm(reader), None
        if node.op_type in ARITHMETIC and (affine := read_affine.read_arithmetic(reader)):
            return affine, None
        if (read := read_carry.READERS.get(node.op_type)) is not None:
            self._insist_on_fixed_parameters(node)
            return read(reader), None
        return foreign(node.op_type), None

    def _compute(self, node: ir.Node) -> Computed:
        """A BatchNorm that reads constants alone, once it is known that it can be computed."""
        output = node.outputs[0]
        if output.is_graph_output():
            raise Unreadable(Reason.GRAPH_OUTPUT, "its result, which is constant, leaves the graph")
        if not output.uses():
            raise leads_nowhere()
        if node not in self._computed:
            self._facts.constants.get(output)
            holds = self._facts.constants.holds
            nodes = reach([node], lambda each: each.successors() if holds(each.outputs[0]) else ())
            readers = [each for each in self._facts.scopes.nodes if each in nodes and not holds(each.outputs[0])]
            self._computed[node] = Computed(tuple(map(label, readers)), self._describe_alone(node))
        return self._computed[node]

    def _describe_alone(self, node: ir.Node) -> ChannelAffine | Opaque:
        """The description of a BatchNorm without regard to what it reads."""
        try:
            return read_affine.read_batchnorm(self._reader(node))
        except Unreadable as error:
            return Opaque(error.stop, is_batchnorm=True)

    def _is_end(self, reader: ir.Node, value: ir.Value) -> bool:
        """Whether outputs depend on a value, but not on what a reader makes of it: it counts for nothing.

        What it makes is another value, then. Only a linear operator may take in what follows it: all others would hand
        that on to what outputs depend on.
        """
        if reader not in self._unread:
            return False
        maker = value.producer()
        return maker is not None and maker not in self._unread and maker.graph is reader.graph

    def _insist_on_fixed_parameters(self, node: ir.Node) -> None:
        """Refuse parameters that a caller can replace. Shape inference may have used the default of a target shape."""
        for value in node.inputs:
            if value is not None and self._facts.constants.is_overridable(value):
                raise Unreadable(Reason.OVERRIDABLE, f"its operand {value.name!r} is a graph input too")

    def _data_indices(self, node: ir.Node) -> Sequence[int]:
        """Which of a node's inputs are data rather than parameters."""
        if node.op_type not in READS_SEVERAL and node.domain == "" and node.inputs:
            return FIRST
        if node not in self._data:
            self._data[node] = self._find_data(node)
        return self._data[node]

    def _find_data(self, node: ir.Node) -> Sequence[int]:
        is_product = node.op_type in PRODUCTS if node.domain == "" else self._is_fused_matmul(node)
        if (node.domain != "" and not is_product) or not node.inputs:
            return range(len(node.inputs))
        if node.op_type == "MatMul" and read_linear.reads_two_values(self._reader(node)):
            return range(len(node.inputs))
        if is_product and len(node.inputs) == 2:
            return (1 - self._matmul_kernel(node),)
        if node.op_type in ARITHMETIC and isinstance(self.op(node), ChannelAffine):
            return [index for index in range(len(node.inputs)) if not self._facts.constants.holds(node.inputs[index])]
        if node.op_type == "Where":
            return (1, 2)
        if node.op_type in ("ScatterElements", "ScatterND"):
            return range(2, len(node.inputs))
        if node.op_type in read_carry.ALL_INPUTS_ARE_DATA:
            return range(len(node.inputs))
        return FIRST

    def _is_fused_matmul(self, node: ir.Node) -> bool:
        """Whether a node is ONNX Runtime's product, and no function of the model that is called like it."""
        return read_linear.is_fused_matmul(node) and node.op_identifier() not in self.model.functions

    def _matmul_kernel(self, node: ir.Node) -> int:
        try:
            return read_linear.matmul_kernel(self._reader(node))
        except Unreadable:
            return 1

    def inputs(self, node: ir.Node) -> Sequence[ir.Value]:
        read = node.inputs
        return [value for index in self._data_indices(node) if (value := read[index]) is not None]

    def outputs(self, node: ir.Node) -> Sequence[ir.Value]:
        node = self._bias_add.get(node, node)
        has_parts = node.op_type == "Split" and node.domain == ""
        return node.outputs if has_parts else node.outputs[:1]  # behind it come masks, indices and states

    def producer(self, value: ir.Value) -> ir.Node | None:
        node = value.producer()
        return None if node is None else self._product.get(node, node)

    def uses(self, value: ir.Value) -> Sequence[tuple[ir.Node | None, int]]:
        uses: list[tuple[ir.Node | None, int]] = []
        for reader, index in value.uses():
            if _reads_no_content(reader, index) or self._is_end(reader, value):
                continue
            node = self._product.get(reader, reader)
            indices = self._data_indices(node)
            uses.append((node, indices.index(index) if node is reader and index in indices else -1))
        if value.is_graph_output():
            uses.append((None, -1))
        return uses

    def is_measured(self, value: ir.Value) -> bool:
        return any(_reads_no_content(reader, index) or self._is_end(reader, value) for reader, index in value.uses())

    def elements(self, value: ir.Value) -> int | None:
        return count_elements(self._hints.shapes.get(value, value.shape))

    def constants(self, node: ir.Node) -> tuple[Sequence[Constant], Sequence[Constant]]:
        indices = self._replaced_indices(node)
        others = [node.inputs[index] for index in self._parameter_indices(node) if index not in indices]
        replaced = [node.inputs[index] for index in indices]
        if (add := self._bias_add.get(node)) is not None:
            replaced.append(add.inputs[1 - add.inputs.index(node.outputs[0])])
        return self._read_constants(replaced), self._read_constants(others)

    def _replaced_indices(self, node: ir.Node) -> Sequence[int]:
        """Which of a node's inputs `write` replaces."""
        if self._is_batchnorm(node):
            return (1, 2)
        op, weights = self._describe(node)
        if not isinstance(weights, Weights) or (isinstance(op, Linear) and op.is_quantized):  # whose integers stay
            return ()
        if weights.bias is None or weights.bias_index is None:
            return (weights.kernel,)
        return weights.kernel, weights.bias_index

    def _read_constants(self, values: Sequence[ir.Value | None]) -> list[Constant]:
        return [self._constant(value) for value in values if value is not None and self._facts.constants.holds(value)]

    def _constant(self, value: ir.Value) -> Constant:
        if value.producer() is None:
            if (readings := reads_of(value)) == 1:
                return READ_ONCE
            if value not in self._constants:
                self._constants[value] = Constant(readings)
            return self._constants[value]
        for read in in_order(value, self._unknown_sources):
            if (origin := _origin(read)) not in self._constants:
                outputs = origin.outputs if isinstance(origin, ir.Node) else [read]
                readings = sum(map(reads_of, outputs))
                sources = tuple(self._constants[_origin(source)] for source in self._sources(read))
                self._constants[origin] = Constant(readings, sources)
        return self._constants[_origin(value)]

    def _sources(self, value: ir.Value) -> list[ir.Value]:
        """The constants that a constant is computed from."""
        node = value.producer()
        return [read for read in node.inputs if read and self._facts.constants.holds(read)] if node else []

    def _unknown_sources(self, value: ir.Value) -> list[ir.Value]:
        return [] if _origin(value) in self._constants else self._sources(value)

    def warnings(self) -> list[Caution | DeclarationCaution]:
        """Declarations and statistics that look wrong. Not part of `Graph`."""
        return [*self._hints.warnings(), *self._cautions()]

    def confirmations(self) -> list[DeclarationCaution]:
        """The declarations that a run confirmed, as one caution. Not part of `Graph`."""
        return self._hints.confirmations()

    def confirmed_shapes(self) -> dict[ir.Value, tuple[tuple[int | None, ...], int]]:
        """Shapes and element types that a plan rests on because a run showed them; part of no protocol."""
        return {
            value: (tuple(dim if isinstance(dim, int) else None for dim in kind.shape), kind.dtype.value)
            for value, kind in self._hints.confirmed().items()
            if kind.shape is not None and kind.dtype is not None
        }

    def find_form(self, node: ir.Node, form: Form) -> Form | str:
        if self._lowered_type(node) is None:
            return "the type of its data is not known"
        rank = self._rank(node)
        if rank is None and self._reader(node).version >= 7:
            return "the rank of its data is not known"
        return Form.MUL_ADD if form is Form.DEPTHWISE and rank not in CONVOLVED else form

    def round_lowered(self, node: ir.Node, lowered: Lowered) -> Rounding:
        dtype = self._lowered_type(node)
        assert dtype is not None
        rounding = measure_parameters(lowered.affine.scale.reshape(1, -1, 1), lowered.shift, dtype, unit(dtype))
        is_lost = ~np.isfinite(round_once(lowered.mean, dtype).astype(np.float64))
        return replace(rounding, overflow=int(is_lost.argmax())) if is_lost.any() else rounding

    @_edit
    def lower(self, node: ir.Node, lowered: Lowered) -> None:
        dtype, rank = self._lowered_type(node), self._rank(node)
        assert dtype is not None
        is_aligned = self._reader(node).version >= 7
        shape = (-1, *(1,) * (rank - 2)) if is_aligned and rank else (-1,)
        attributes = [] if is_aligned else [ir.AttrInt64("broadcast", 1), ir.AttrInt64("axis", 1)]
        scale, shift, mean = (
            round_once(vector, dtype) for vector in (lowered.affine.scale, lowered.shift, lowered.mean)
        )
        stages: list[Stage] = []
        if lowered.mean.any():
            stages.append(Stage("Sub", (mean.reshape(shape),), tuple(attributes)))
        if lowered.form is Form.DEPTHWISE and rank:
            kernel = scale.reshape(-1, 1, *(1,) * (rank - 2))
            stages.append(Stage("Conv", (kernel, shift), (ir.AttrInt64("group", len(scale)),)))
        elif lowered.form is Form.ADD:
            stages.append(Stage("Add", (shift.reshape(shape),), tuple(attributes)))
        else:
            stages.append(Stage("Mul", (scale.reshape(shape),), tuple(attributes)))
            stages.append(Stage("Add", (shift.reshape(shape),), tuple(attributes)))
        self._editor.replace_operator(node, stages)

    def _lowered_type(self, node: ir.Node) -> np.dtype[np.generic] | None:
        """The element type of a BatchNorm's data; that of its parameters may be another one from opset 14 on."""
        known = self._reader(node).dtype()
        if known is not None:
            return known.numpy()
        return self._normalization(node).dtype if self._reader(node).version < 14 else None

    def _rank(self, node: ir.Node) -> int | None:
        shape = self._reader(node).shape()
        return None if shape is None else len(shape)

    @_edit
    def settle(self, node: ir.Node) -> None:
        if node.graph is not None:  # else what read it has got weights of its own
            self._editor.settle(node, ir.tensor(self._facts.constants.get(node.outputs[0])))

    @_edit
    def write_operands(self, node: ir.Node, absorbed: Operands) -> None:
        for index, (_, rounded) in self._operands(node, absorbed).items():
            self._editor.set_parameter(node, self._data_indices(node)[index], ir.tensor(rounded))

    def signature(self, node: ir.Node) -> Hashable | None:
        """See `Graph`."""
        is_batchnorm = self._is_batchnorm(node)
        if not is_batchnorm:
            stored = self._stored(node) if isinstance(self.op(node), Linear) else None
            if stored is None or stored.quantized is not None:
                return None
        data = {0} if is_batchnorm else set(self._data_indices(node))
        read = tuple(None if index in data else id(value) for index, value in enumerate(node.inputs))
        attributes = tuple(sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()))
        return id(node.graph), node.domain, node.op_type, read, attributes

    @_edit
    def write(self, node: ir.Node, absorbed: Linear | Affine, twins: Sequence[ir.Node] = ()) -> None:
        if isinstance(absorbed, Linear):
            self._write_linear(node, absorbed)
            for twin in twins:
                self._write_linear(twin, absorbed, like=node)
            return
        fresh = self._normalization(node).replaced(absorbed)
        for index, array in enumerate(fresh, start=1):
            self._editor.set_parameter(node, index, ir.tensor(array))

    def _operand(self, node: ir.Node, index: int) -> AnyArray:
        op, constant = self.op(node), self._reader(node).constant(self._data_indices(node)[index], "operand")
        shape = op.shapes[index] if isinstance(op, Sum | Select) else None
        return constant if shape is None else constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)

    def _is_batchnorm(self, node: ir.Node) -> bool:
        return node.op_type == "BatchNormalization" and node.domain == ""

    def _normalization(self, node: ir.Node) -> Normalization:
        return read_affine.normalization(self._reader(node))

    def _stored(self, node: ir.Node) -> Stored[Weights]:
        linear, weights = self._describe(node)
        assert isinstance(linear, Linear)
        assert isinstance(weights, Weights)
        return read_linear.stored(self._reader(node), linear, weights)

    def _write_linear(self, node: ir.Node, linear: Linear, like: ir.Node | None = None) -> None:
        """Write a linear operator; where there is another one like it, with the kernel and bias of that."""
        stored, load = self._stored(node), self._loader(linear)
        index = stored.weights.kernel
        dtype, bias = stored.dtype, stored.solve_bias(linear, load)
        if node in self._bias_add:  # the product changes, though only the sum is a value of this view
            self._rename(node.outputs[0])
        if stored.quantized is not None:
            self._write_scales(node, linear, stored)
            if bias is not None:
                self._write_bias(node, linear, stored, round_once(bias, dtype))
            return
        if like is not None:
            self._editor.read_alike(node, index, like)
        else:
            self._editor.set_parameter(node, index, SolvedTensor(stored.source(linear, load), linear, dtype))
        self._editor.drop_attributes(node, "alpha", "beta")
        has_add = node in self._bias_add or node.op_type not in ("Einsum", "FusedMatMul")
        if bias is not None and (has_add or bias.any()):  # else an Add is an operator of its own
            self._write_bias(node, linear, stored, round_once(stored.native_bias(bias), dtype), like)
        if linear.fill:
            self._editor.pad_explicitly(node, linear.fill, dtype, self._reader(node).version)

    def _write_scales(self, node: ir.Node, linear: Linear, stored: Stored[Weights]) -> None:
        old = stored.quantized
        assert old is not None
        assert linear.after is not None
        axis = kernel_axis(old, stored.weights.layout)
        turn = _producer(node.inputs[stored.weights.kernel]) if old.is_turned else None
        maker = _producer(node.inputs[stored.weights.kernel] if turn is None else turn.inputs[0])
        scales = round_once(old.rescaled(linear.after.scale), old.scales.dtype)
        zero_points = np.broadcast_to(old.zero_points, scales.shape).copy()
        integers = old.resigned(linear.after.scale, axis)
        weights = old.reweighted(linear.after.scale, axis)
        changed = None if integers is old.integers or weights is not None else integers
        if turn is not None:
            changed, weights = (None if array is None else array.T.copy() for array in (changed, weights))
            axis = 1 - axis
        self._editor.requantize(node, stored.weights.kernel, maker, changed, scales, zero_points, axis, weights, turn)
        fresh = node.inputs[stored.weights.kernel]
        assert fresh is not None
        self._declare_known(fresh, maker.outputs[0] if turn is None else turn.outputs[0])
        if turn is not None:
            matrix = _producer(fresh).inputs[0]
            assert matrix is not None
            self._declare_known(matrix, maker.outputs[0])

    def _write_bias(
        self,
        node: ir.Node,
        linear: Linear,
        stored: Stored[Weights],
        bias: AnyArray,
        like: ir.Node | None = None,
    ) -> None:
        version = self._reader(node).version
        if stored.weights.bias_index is not None:
            if like is not None:
                self._editor.read_alike(node, stored.weights.bias_index, like)
            else:
                self._editor.set_parameter(node, stored.weights.bias_index, ir.tensor(bias), "bias")
            if node.op_type == "Gemm" and version < 7:
                node.attributes["broadcast"] = ir.AttrInt64("broadcast", 1)
            return
        if version >= 7:
            bias = bias.reshape(-1, *(1,) * stored.weights.behind)
        attributes = [] if version >= 7 else [ir.AttrInt64("broadcast", 1), ir.AttrInt64("axis", linear.axis_out or 0)]
        add = self._bias_add.get(node)
        if add is not None:
            self._editor.set_parameter(add, 1 - add.inputs.index(node.outputs[0]), ir.tensor(bias))
            add.attributes.update({attribute.name: attribute for attribute in attributes})
            return
        product, total = node.outputs[0], self._editor.insert_add(node, ir.tensor(bias), attributes)
        self._declare_known(product, product)
        if product in self._facts.shapes:  # what reads the sum may be written after this
            self._facts.shapes[total] = self._facts.shapes[product]
        if product in self._facts.types:
            self._facts.types[total] = self._facts.types[product]

    @_edit
    def bypass(self, node: ir.Node, *, keep_output_name: bool, index: int = 0) -> None:
        kept = self._data_indices(node)[index]
        value = node.inputs[kept]
        assert value is not None
        if len(self._data_indices(node)) == 1:
            self._know_rank(value, self.outputs(node)[0])
        self._renew_ends(value)
        self._renew_ends(self.outputs(node)[0])
        self._editor.bypass(node, kept, self._parameter_indices(node), keep_output_name=keep_output_name)

    @_edit
    def join(self, host: ir.Node, source: ir.Node, root: ir.Node) -> None:
        data = source.inputs[self._data_indices(source)[0]]
        assert data is not None
        if (read := host.inputs[self._data_indices(host)[0]]) is not None:
            self._know_rank(data, read)
        self._editor.read(host, self._data_indices(host)[0], data)
        self._editor.replace(self.outputs(root)[0], self.outputs(host)[0])

    def _know_rank(self, value: ir.Value, like: ir.Value) -> None:
        """Give a value the rank of another that is known."""
        if value not in self._facts.shapes and like in self._facts.shapes:
            self._facts.shapes[value] = (None,) * len(self._facts.shapes[like])

    @_edit
    def remove(self, node: ir.Node) -> None:
        add = self._bias_add.get(node)
        if add is not None:
            self._editor.remove(add, [1 - add.inputs.index(node.outputs[0])])
        self._editor.remove(node, self._parameter_indices(node))

    def _parameter_indices(self, node: ir.Node) -> list[int]:
        data = self._data_indices(node)
        return [index for index in range(len(node.inputs)) if index not in data]

    def renew(self, value: ir.Value) -> None:
        self._rename(value)
        self._renew_ends(value)

    def _renew_ends(self, value: ir.Value) -> None:
        """Give fresh names to all that is computed from a value that changes, and that no output depends on."""
        readers = (reader for reader, index in value.uses() if not _reads_no_content(reader, index))
        ends = [reader for reader in readers if self._is_end(reader, value)]
        for node in reach(ends, lambda node: node.successors()) - self._renewed:
            self._renewed.add(node)
            for output in node.outputs:
                if output.name:
                    self._rename(output)

    def _rename(self, value: ir.Value) -> None:
        self._editor.rename(value, f"{value.name}_folded")
        self._declare_known(value, value)

    def _declare_known(self, value: ir.Value, like: ir.Value) -> None:
        """Drop the declaration of a value with a fresh name, unless that of `like` is known to hold."""
        if not self._hints.agrees(like):
            value.shape = value.type = None


def _producer(value: ir.Value | None) -> ir.Node:
    """The node that makes a value which some node does make."""
    node = None if value is None else value.producer()
    assert node is not None
    return node


def _origin(value: ir.Value) -> ir.Node | ir.Value:
    """The node that computes a constant; the constant itself, if it is stored."""
    return value.producer() or value


def _reads_no_content(node: ir.Node, index: int) -> bool:
    return READS_NO_CONTENT.get(node.op_type) == index and node.domain == ""
