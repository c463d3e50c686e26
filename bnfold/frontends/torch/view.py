"""The view of an fx graph that planner and folder have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import map_arg

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.algebra.rounding import Rounding, measure_parameters, round_once
from bnfold.errors import InvalidModelError
from bnfold.frontends.parameters import Stored, View
from bnfold.frontends.quantized import kernel_axis
from bnfold.frontends.reading import Normalization, Unreadable, foreign, opaque, unit
from bnfold.frontends.torch.change.fresh import makes_fresh, release
from bnfold.frontends.torch.change.store import Store, set_argument, take_name
from bnfold.frontends.torch.operators import quantized, read_affine, read_carry, read_linear, shapes
from bnfold.frontends.torch.operators.aliases import exposed, releasable, tangled
from bnfold.frontends.torch.operators.calls import UNKNOWN, Call, Handle, Outputs, Slot
from bnfold.frontends.torch.operators.constants import Constants
from bnfold.frontends.torch.operators.read_linear import Weights
from bnfold.frontends.torch.operators.reader import Facts, Part, Reader, Value, part_of
from bnfold.frontends.torch.operators.spelling import is_parametrized, spell
from bnfold.frontends.torch.tensors import DTYPES, AnyArray, to_numpy
from bnfold.graph.cautions import Caution
from bnfold.graph.cost import count_elements
from bnfold.graph.ops import Form, Lowered, Op, Sum
from bnfold.graph.outcome import Reason
from bnfold.graph.protocol import Constant

CALLS = ("call_function", "call_method", "call_module")

CHANGED = "the tensor may be changed in place while something else reads it"


class TorchGraph(View[fx.Node, Value, Weights]):
    """An fx graph, whoever made it, as a `protocol.Graph`: nodes are `fx.Node`, values are nodes or parts of them.

    Args:
        graph: what is read, and changed by the edits.
        root: the module that holds what `get_attr` and `call_module` name; None for an exported program.
        store: where the parameters are.
        values: an example value of each node (a fake tensor), as far as there is one.
        observed: nodes whose values something outside the graph sees, with what that is.
        recast: nodes that run in other types than those of what they read.
    """

    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module | None,
        store: Store,
        values: Mapping[fx.Node, Any] | None = None,
        observed: Mapping[fx.Node, str] = MappingProxyType({}),
        recast: Collection[fx.Node] = frozenset(),
    ) -> None:
        self.graph = graph
        self.root = root
        self._store = store
        self._observed = observed
        self._recast = recast
        self._calls = {node: spell(node, root) for node in graph.nodes if node.op in CALLS}
        constants = Constants(graph, self._calls.__getitem__, store.tensor)
        releasing = releasable(self._calls, constants.nodes, observed)
        self.writers = {node: affines for node, affines in releasing.items() if self._is_releasable(node)}
        """Nodes that write in place as long as some affines are there; part of no protocol."""
        self._tangled = tangled(self._calls, constants.nodes, self.writers)
        self._exposed = exposed(self._calls, constants.nodes, self.writers)
        store.exclude(self._tangled)
        constants = Constants(graph, self._calls.__getitem__, store.tensor, self._tangled)
        self._facts = self._know(constants, values or {})
        self._scalars = _scalars(graph, self._calls)
        self._names: dict[fx.Node, str] = _distinct({node: self._label(node) for node in self._calls})
        self._nodes = [node for node in self._calls if self._is_of_interest(node)]
        self._inside = dict(store.nested_batchnorms(graph))
        self._names.update({node: node.name for node in self._inside})
        self._data: dict[fx.Node, list[int]] = {}
        self._constants: dict[int | fx.Node, Constant] = {}
        self.stands: dict[fx.Node, fx.Node] = {}
        """What stands now for the values of nodes that were replaced; part of no protocol."""
        self.changed: set[fx.Node] = set()
        """Nodes whose values became something else, wherever these are now; part of no protocol."""
        self.pulled: set[fx.Node] = set()
        """Nodes that are gone, since what they read is now what they made; part of no protocol."""
        self.released: set[fx.Node] = set()
        """Nodes that do not write in place any more; part of no protocol."""

    def _know(self, constants: Constants, values: Mapping[fx.Node, Any]) -> Facts:
        if any(isinstance(value, torch.Tensor) for value in values.values()):
            sizes, dtypes = shapes.noted(values)
            return Facts(self._calls, constants, sizes, {}, dtypes)
        guessed = shapes.Inference(self.graph, self._calls, self._store.tensor, values)
        return Facts(self._calls, constants, guessed.shapes, guessed.ranks, guessed.dtypes)

    def _is_of_interest(self, node: fx.Node) -> bool:
        return node not in self._facts.constants.nodes and node not in self._scalars and self._source(node) is None

    def _source(self, node: fx.Node) -> Part | None:
        """The output that a node picks from one that has several; None where it is not known which."""
        part = part_of(node)
        if part is None or part.node not in self._calls or not self._is_multiple(part.node):
            return None
        if part.index >= 0:
            return part
        index = part.index + len(self._sizes(part.node))
        return Part(part.node, index) if index >= 0 else None

    def _sizes(self, node: fx.Node) -> Sequence[int]:
        """The sizes of all outputs of a chunk or split; none where they are not known."""
        if self._calls[node].operator.outputs is not Outputs.ALL:
            return ()
        try:
            return read_carry.split(self._reader(node)).sizes
        except Unreadable:
            return ()

    def _is_multiple(self, node: fx.Node) -> bool:
        return self._calls[node].operator.outputs is not Outputs.ONE

    def _value(self, node: fx.Node) -> Value:
        return self._source(node) or node

    def _reader(self, node: fx.Node) -> Reader:
        return Reader(node, self._facts)

    def nodes(self) -> Iterator[fx.Node]:
        yield from self._nodes
        yield from self._inside

    def name(self, node: fx.Node) -> str:
        return self._names[node]

    def scope(self, node: fx.Node) -> str:
        return self._inside.get(node, "main")

    def operator(self, node: fx.Node) -> str:
        return node.op if node in self._inside else _title(node, self._calls[node])

    def attributes(self, node: fx.Node) -> Mapping[str, str]:
        if node in self._inside:
            return {}
        return {
            name: str(value)
            for name, value in sorted(self._calls[node].arguments.items())
            if isinstance(value, int | float | str) or (isinstance(value, list | tuple) and _are_numbers(value))
        }

    def reads(self, node: fx.Node) -> Sequence[Value]:
        return [self._value(read) for read in occurrences(node) if not self._facts.constants.holds(read)]

    def constant(self, value: Value) -> AnyArray | None:
        if isinstance(value, Part) or not self._facts.constants.holds(value):
            return None
        try:
            return to_numpy(self._facts.constants.get(value))
        except InvalidModelError:
            return None

    def held(self, node: fx.Node) -> Sequence[AnyArray]:
        read = [self.constant(value) for value in occurrences(node)]
        return [array for array in read if array is not None]

    def is_fixed(self, value: Value) -> bool:
        return not isinstance(value, Part) and self._facts.constants.holds(value)

    def title(self, value: Value) -> str:
        return f"{value.node.name}:{value.index}" if isinstance(value, Part) else value.name

    def sources(self) -> Sequence[Value]:
        return [node for node in self.graph.nodes if node.op == "placeholder" and not self._facts.constants.holds(node)]

    def results(self) -> Sequence[Value]:
        return [self._value(node) for node in occurrences(self.graph.output_node())]

    def _label(self, node: fx.Node) -> str:
        """The module that the node stands for, where there is one."""
        call = self._calls[node]
        if node.op == "call_module":
            return str(node.target)
        for argument in ("running_mean", "weight", "mat2"):
            if call.operator.is_batchnorm or call.operator.linear:
                place = self._store.place_of_source(call.get(argument))
                owner = place.rpartition(".")[0] if place else ""
                if owner:
                    return owner
        return node.name

    def op(self, node: fx.Node) -> Op:
        if node in self._inside:
            detail = "it is in a nested graph, which bnfold leaves as it is"
            return opaque(Reason.SCOPE_BOUNDARY, detail, is_batchnorm=True)
        try:
            return self._read(node)
        except Unreadable as error:
            module = self._calls[node].module
            is_inside = module is not None and _holds_batchnorms(module)
            is_batchnorm = is_inside or read_affine.is_batchnorm(self._reader(node))
            return opaque(error.stop.reason, error.stop.detail, is_batchnorm=is_batchnorm)
        except InvalidModelError as error:  # a constant that cannot be evaluated
            is_batchnorm = read_affine.is_batchnorm(self._reader(node))
            return opaque(Reason.NOT_CONSTANT, str(error), is_batchnorm=is_batchnorm)

    def _read(self, node: fx.Node) -> Op:
        reader = self._reader(node)
        if node in self._tangled or any(source in self._tangled for source in node.all_input_nodes):
            raise Unreadable(Reason.SECOND_USE, CHANGED)
        if node in self._recast:
            raise Unreadable(Reason.NOT_LINEAR, "it runs under autocast, in another type than its parameters have")
        self._insist_on_no_hooks(reader.call)
        if read_affine.is_batchnorm(reader):
            reader.only_first()
            return read_affine.read_batchnorm(reader)
        row = reader.call.operator
        if row.is_arithmetic and (affine := read_affine.read_arithmetic(reader)):
            return affine
        if (linear := read_linear.read_linear(reader)) is not None:
            return linear[0]
        if row.carry is not None:
            op = row.carry(reader)
            return _unevenly(op) if isinstance(op, Sum) and node in self._exposed else op
        if reader.call.module is not None and _holds_batchnorms(reader.call.module):
            kind = type(reader.call.module).__name__
            detail = f"{kind} is called as a whole, so its BatchNorms are not seen: trace into it"
            return opaque(Reason.NOT_LINEAR, detail, is_batchnorm=True)
        return foreign(_title(node, reader.call))

    @cached_property
    def _readings(self) -> Counter[int]:
        """How often each tensor is read, by the identity of the tensor."""
        readings: Counter[int] = Counter()
        for node in self.graph.nodes:
            if node.op == "call_module" and self.root is not None:
                called = self.root.get_submodule(str(node.target))
                readings.update(map(id, {*called.parameters(), *called.buffers()}))
            elif (tensor := self._store.tensor(node)) is not None:
                users = [user for user in node.users if user not in self._calls or self._calls[user].op != "shape"]
                readings[id(tensor)] += sum(occurrences(user).count(node) for user in users)
        return readings

    def constants(self, node: fx.Node) -> tuple[Sequence[Constant], Sequence[Constant]]:
        reader = self._reader(node)
        replaced = [read_linear.operand(reader, name) for name in self._replaced_names(reader)]
        slots = [handle for handle in reader.call.arguments.values() if isinstance(handle, Slot)]
        others = [handle for handle in (*slots, *occurrences(node)) if handle not in replaced]
        return self._read_constants(replaced), self._read_constants(others)

    def _replaced_names(self, reader: Reader) -> Sequence[str]:
        """The arguments of a node that `write` replaces."""
        if read_affine.is_batchnorm(reader):
            return ("weight", "bias")
        try:
            linear = read_linear.read_linear(reader)
        except Unreadable:
            return ()
        if linear is None or linear[0].is_quantized:  # whose integers stay
            return ()
        weights = linear[1]
        return (weights.kernel, weights.bias) if weights.bias else (weights.kernel,)

    def _read_constants(self, handles: Sequence[object]) -> list[Constant]:
        holds = self._facts.constants.holds
        return [self._constant(handle) for handle in handles if isinstance(handle, fx.Node | Slot) and holds(handle)]

    def _constant(self, handle: Handle) -> Constant:
        for source_handle in [handle] if isinstance(handle, Slot) else self._facts.constants.sources(handle):
            origin = self._origin(source_handle)
            if origin not in self._constants:
                read = occurrences(source_handle) if isinstance(source_handle, fx.Node) else ()
                sources = tuple(self._constants[self._origin(source)] for source in read)
                self._constants[origin] = Constant(self._count(source_handle), sources)
        return self._constants[self._origin(handle)]

    def _origin(self, handle: Handle) -> int | fx.Node:
        """The identity of a stored constant's tensor; the node, if the constant is computed."""
        tensor = self._store.tensor(handle)
        if tensor is not None:
            return id(tensor)
        assert isinstance(handle, fx.Node)
        return handle

    def _count(self, handle: Handle) -> int:
        """How often a constant is read."""
        tensor = self._store.tensor(handle)
        if tensor is not None:
            return self._readings[id(tensor)]
        assert isinstance(handle, fx.Node)
        return sum(occurrences(user).count(handle) for user in handle.users)

    def _insist_on_no_hooks(self, call: Call) -> None:
        if call.module is not None and is_parametrized(call.module):
            raise Unreadable(Reason.PARAMETRIZED, "its weight is computed from other parameters")
        if call.module is not None and (hook := hook_of(call.module)) is not None:
            raise Unreadable(Reason.HOOK, f"the hook {hook} is registered on it")

    def _data_nodes(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that a node reads as data, not as parameters, in order."""
        read = occurrences(node)
        return [read[place] for place in self._data_places(node)]

    def _data_places(self, node: fx.Node) -> list[int]:
        """Which of the nodes among the arguments are data, settled before anything changes."""
        if node not in self._data:
            places: list[int] = []
            for data in self._find_data(node):
                read = enumerate(occurrences(node))
                places.append(next(place for place, other in read if other is data and place not in places))
            self._data[node] = places
        return self._data[node]

    def _find_data(self, node: fx.Node) -> list[fx.Node]:
        reader, call = self._reader(node), self._calls[node]
        if call.op == "cat" and isinstance(call.get("tensors"), list | tuple):
            return [read_node for read_node in call.get("tensors") if isinstance(read_node, fx.Node)]
        row = call.operator
        if row.is_batchnorm or (row.carry and not row.is_arithmetic and not row.linear):
            data = call.arguments.get(row.data)
            return [data] if isinstance(data, fx.Node) else []
        if row.linear:
            try:
                if (read := read_linear.read_linear(reader)) is not None:
                    return [read_linear.data_node(reader, read[1])]
            except Unreadable:
                pass
        if call.operator.is_arithmetic and read_affine.read_arithmetic(reader) is not None:
            return [read_node for read_node in occurrences(node) if read_node not in self._facts.constants.nodes]
        measured = self._measured_arguments(node)
        return [read_node for read_node in occurrences(node) if read_node not in measured]

    def inputs(self, node: fx.Node) -> Sequence[Value]:
        return [self._value(data) for data in self._data_nodes(node)]

    def outputs(self, node: fx.Node) -> Sequence[Value]:
        if not self._is_multiple(node):
            return [node]
        if self._calls[node].operator.outputs is not Outputs.ALL:
            return [Part(node, 0)]
        if sizes := self._sizes(node):
            return [Part(node, index) for index in range(len(sizes))]
        picked = {part.index for user in node.users if (part := self._source(user))}
        return [Part(node, index) for index in sorted(picked)]

    def producer(self, value: Value) -> fx.Node | None:
        node = value.node if isinstance(value, Part) else value
        is_given = node not in self._calls or node in self._facts.constants.nodes or node in self._scalars
        return None if is_given else node

    def _carriers(self, value: Value) -> list[fx.Node]:
        """The nodes that stand for a value."""
        if not isinstance(value, Part):
            return [value]
        return [user for user in value.node.users if self._source(user) == value]

    def uses(self, value: Value) -> Sequence[tuple[fx.Node | None, int]]:
        carriers = self._carriers(value)
        uses: list[tuple[fx.Node | None, int]] = []
        for carrier in carriers:
            for user in carrier.users:
                uses.extend(self._uses_by(user, carrier))
            if carrier in self._observed:
                uses.append((None, -1))
        if isinstance(value, Part):  # a reader of all outputs as one
            readers = (user for user in value.node.users if self._source(user) is None)
            uses.extend((None if user.op == "output" else user, -1) for user in readers)
        return uses

    def _uses_by(self, user: fx.Node, carrier: fx.Node) -> list[tuple[fx.Node | None, int]]:
        count = occurrences(user).count(carrier)
        if user.op == "output":
            return [(None, -1)] * count
        if self._calls[user].op == "shape" or user in self._scalars:
            return []
        indices = [index for index, data in enumerate(self._data_nodes(user)) if data is carrier]
        rest = count - len(indices) - self._measured_arguments(user).count(carrier)
        uses: list[tuple[fx.Node | None, int]] = [(user, index) for index in indices]
        return uses + [(user, -1)] * rest

    def _measured_arguments(self, node: fx.Node) -> list[fx.Node]:
        """What a node reads the shape and type of, and nothing else."""
        call = self._calls[node]
        return [argument for name in call.operator.measures.split() if (argument := call.get(name)) is not None]

    def is_measured(self, value: Value) -> bool:
        return any(
            self._calls[user].op == "shape" or user in self._scalars or carrier in self._measured_arguments(user)
            for carrier in self._carriers(value)
            for user in carrier.users
            if user in self._calls
        )

    def elements(self, value: Value) -> int | None:
        return count_elements(self._facts.shapes.get(value) if isinstance(value, fx.Node) else None)

    def warnings(self) -> list[Caution]:
        """Statistics of BatchNorms that look wrong. Not part of `Graph`."""
        return self._cautions()

    def _is_batchnorm(self, node: fx.Node) -> bool:
        return node not in self._inside and read_affine.is_batchnorm(self._reader(node))

    def _normalization(self, node: fx.Node) -> Normalization:
        return read_affine.normalization(self._reader(node))

    def _stored(self, node: fx.Node) -> Stored[Weights]:
        return read_linear.stored(self._reader(node))

    def _batchnorm_arrays(self, node: fx.Node, affine: Affine) -> dict[str, AnyArray]:
        """The parameters of a BatchNorm that absorbed an affine, by argument; statistics only where they change."""
        return dict(zip(read_affine.STATISTICS, self._normalization(node).replaced(affine), strict=False))

    def _linear_arrays(self, node: fx.Node, linear: Linear) -> tuple[Stored[Weights], AnyArray, AnyArray | None]:
        """Where the parameters of a linear operator are, and the kernel and bias with everything that it absorbed.

        Where a BatchNorm folded, an operator that takes a bias has one, even if of zeros: names depend on no values.
        """
        stored, load = self._stored(node), self._loader(linear)
        kernel = round_once(stored.source(linear, load).solve(linear), stored.dtype)
        bias = stored.solve_bias(linear, load)
        if bias is None and linear.is_normalised and stored.weights.bias is not None:
            bias = np.zeros(linear.out_channels)
        return stored, kernel, None if bias is None else round_once(bias, stored.dtype)

    def signature(self, node: fx.Node) -> Hashable | None:
        """See `Graph`."""
        if not self._is_batchnorm(node):
            is_linear = read_linear.read_linear(self._reader(node)) is not None
            if not is_linear or self._stored(node).quantized is not None:
                return None
        if node.op == "call_module":
            return id(self._calls[node].module)
        data, missing = self._data_nodes(node), []

        def portray(source: fx.Node) -> str:
            place = self._store.place_of_source(source) if self._store.tensor(source) is not None else None
            if place is None and source not in data:
                missing.append(source)
            return "" if place is None else place

        text = repr(map_arg((node.args, node.kwargs), portray))
        return None if missing else (node.target, text)

    def write(self, node: fx.Node, absorbed: Linear | Affine, twins: Sequence[fx.Node] = ()) -> None:
        reader = self._reader(node)
        if isinstance(absorbed, Affine):
            self._set([node], self._batchnorm_arrays(node, absorbed), "running_mean")
            return
        stored, kernel, bias = self._linear_arrays(node, absorbed)
        arrays: dict[str, AnyArray] = {} if stored.quantized else {stored.weights.kernel: kernel}
        if stored.quantized is not None:
            self._requantize(node, stored, absorbed)
        name = stored.weights.bias
        if bias is not None and name is not None:
            is_column = reader.call.op in ("addmm", "baddbmm") and stored.weights.data in ("mat2", "batch2")
            arrays[name] = bias.reshape(-1, 1) if is_column else bias
        self._set([node, *twins], arrays, stored.weights.kernel)
        for each in (node, *twins):
            if bias is not None and name is None:
                shape = [-1] + [1] * stored.weights.behind
                like = read_linear.operand(self._reader(each), stored.weights.kernel)
                self._stand_in(each, self._store.insert_add(each, bias.reshape(shape), like))
            self._store.drop_factors(each)

    def _stand_in(self, node: fx.Node, total: fx.Node) -> None:
        """Let the addition that was put behind a node stand for its value."""
        self._facts.copy(node, total)
        self.stands[node] = total
        self._refresh(list(total.users))

    def find_form(self, node: fx.Node, form: Form) -> Form | str:
        """See `Graph`. A shift alone is written, as an addition, if that leaves the type of the data as it is."""
        reader = self._reader(node)
        if form is not Form.ADD:
            return "only additions are written in PyTorch"
        if reader.dtype() is not reader.tensor("running_mean", "mean").dtype or reader.shape() is None:
            return "the type and rank of its data are not known to be those of an addition"
        return form if len(self._own_carriers(node)) == 1 else "its parameters are used elsewhere"

    def round_lowered(self, node: fx.Node, lowered: Lowered) -> Rounding:
        """See `Graph`."""
        dtype = DTYPES[self._reader(node).tensor("running_mean", "mean").dtype]
        return measure_parameters(lowered.affine.scale.reshape(1, -1, 1), lowered.shift, dtype, unit(dtype))

    def lower(self, node: fx.Node, lowered: Lowered) -> None:
        """See `Graph`. The addition is no part of the BatchNorm's module, and its constant is held beside that."""
        reader, (data,), (carrier,) = self._reader(node), self._data_nodes(node), self._own_carriers(node)
        pattern = reader.call.get("running_mean")
        owner = (self._store.place_of_source(pattern) or "").rpartition(".")[0]
        shift = round_once(lowered.shift, DTYPES[reader.tensor("running_mean", "mean").dtype])
        behind = reader.rank() - 1 - lowered.affine.axis
        wish = f"{owner}_shift" if owner else "shift"
        total = self._store.insert_add(carrier, shift.reshape(-1, *(1,) * behind), pattern, wish)
        total.replace_input_with(carrier, data)
        total.meta = _outside(total.meta)
        self._stand_in(carrier, total)
        self._erase(node, [data])

    def _requantize(self, node: fx.Node, stored: Stored[Weights], linear: Linear) -> None:
        """Let a node read its weight dequantised by other scales, one for each output channel."""
        source, old = stored.quantized, read_linear.operand(self._reader(node), stored.weights.kernel)
        assert source is not None
        assert linear.after is not None
        assert isinstance(old, fx.Node)
        axis, factor = kernel_axis(source, stored.weights.layout), linear.after.scale
        arrays: dict[str, AnyArray] = {"scales": round_once(source.rescaled(factor), source.scales.dtype)}
        integers = source.resigned(factor, axis)
        if integers is not source.integers:
            arrays["input"] = integers
        with self.graph.inserting_before(node):
            fresh = self.graph.node_copy(old)
        if str(old.target) != quantized.PER_CHANNEL:
            call = self._calls[old]
            given = (call.get(name) for name in ("input", "scale", "zero_point"))
            tensors = (each if isinstance(each, fx.Node) else None for each in given)
            fresh.target = torch.ops.quantized_decomposed.dequantize_per_channel.default
            fresh.args = (*tensors, axis, *(call.get(name) for name in ("quant_min", "quant_max", "dtype")))
            fresh.kwargs = {}
            arrays["zero_points"] = np.broadcast_to(source.zero_points.astype(np.int64), factor.shape)
        set_argument(node, stored.weights.kernel, fresh)
        if not old.users:
            self._calls.pop(old)
            self.graph.erase_node(old)
        self._store.rename(fresh, f"{old.name}_folded")
        self._calls[fresh], self._calls[node] = spell(fresh, self.root), spell(node, self.root)
        handles = {name: self._calls[fresh].get(name) for name in arrays}
        self._store.write([fresh], arrays, handles, fresh.args[0])
        self._calls[fresh] = spell(fresh, self.root)

    def _set(self, nodes: Sequence[fx.Node], arrays: dict[str, AnyArray], first: str) -> None:
        """Give nodes fresh parameters; `first` names the one that tells how new ones are made."""
        reader = self._reader(nodes[0])
        old: dict[str, Any] = {name: read_linear.operand(reader, name) for name in arrays}
        like = read_linear.operand(reader, first)
        self._store.write(nodes, arrays, old, like)
        self._refresh(nodes)

    def bypass(self, node: fx.Node, *, keep_output_name: bool, index: int = 0) -> None:
        data = self._data_nodes(node)
        kept, carriers = data[index], self._own_carriers(node)
        if keep_output_name:
            self.pulled.add(node)
        else:
            self.changed.update((node, *carriers))
        name = carriers[0].name
        for writer in [each for each, affines in self.writers.items() if node in affines]:
            self._release(writer)
        self._read_instead(carriers, kept)
        self._erase(node, data)
        if keep_output_name and kept.op in CALLS:
            take_name(kept, name)

    def _is_releasable(self, writer: fx.Node) -> bool:
        call = self._calls[writer]
        if call.module is not None:
            return call.op in ("relu", "leaky_relu") and hook_of(call.module) is None
        return makes_fresh(writer)

    def _release(self, writer: fx.Node) -> None:
        """Let a node make a fresh result, which has written into its input."""
        if writer not in self.released:
            self.released.add(writer)
            release(writer, self.root)
            self._calls[writer] = spell(writer, self.root)

    def _own_carriers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that stand for a node's first output."""
        picks = [user for user in node.users if self._source(user)] if self._is_multiple(node) else []
        return picks or [node]

    def _read_instead(self, carriers: list[fx.Node], kept: fx.Node) -> None:
        """Let all readers of `carriers` read another value."""
        for carrier in carriers:
            readers = list(carrier.users)
            carrier.replace_all_uses_with(kept, propagate_meta=False)
            self.stands[carrier] = kept
            self._refresh(readers)

    def _refresh(self, readers: Sequence[fx.Node]) -> None:
        """Read calls again whose arguments changed."""
        for node in readers:
            if node in self._calls:
                self._calls[node] = spell(node, self.root)

    def _erase(self, node: fx.Node, data: Sequence[fx.Node]) -> None:
        """Take out a node that nothing reads, with the parameters that it alone read; its `data` stays."""
        self._store.erase(node, [source for source in node.all_input_nodes if source not in data])
        self._calls.pop(node, None)

    def join(self, host: fx.Node, source: fx.Node, root: fx.Node) -> None:
        self.changed.add(host)
        read, data = self._data_nodes(host)[0], self._data_nodes(source)[0]
        if read is not data:
            host.replace_input_with(read, data)
            self._refresh([host])
        if root is not host:
            carriers = self._own_carriers(root)
            name, meta = carriers[0].name, dict(carriers[0].meta)
            self._read_instead(carriers, host)
            carriers[0]._rename(f"{name}_merged")
            take_name(host, name)
            host.meta = {**host.meta, **{key: meta[key] for key in ("val", "tensor_meta") if key in meta}}
            self._facts.copy(carriers[0], host)

    def remove(self, node: fx.Node) -> None:
        self.changed.add(node)
        self._erase(node, self._data_nodes(node))

    def stand(self, node: fx.Node) -> fx.Node:
        """The node that stands now for the value that a node stood for; part of no protocol."""
        while node in self.stands:
            node = self.stands[node]
        return node

    def renew(self, value: Value) -> None:
        carriers = self._carriers(value)
        self.changed.update(carriers, (node for node in self.stands if self.stand(node) in carriers))
        for carrier in carriers:
            self._store.rename(carrier, f"{carrier.name}_folded")


def _outside(meta: dict[str, Any]) -> dict[str, Any]:
    """What is noted of a node of a torch.nn BatchNorm, for one in the module around that."""
    stack = meta.get("nn_module_stack") or {}
    last = next(reversed(stack), None)
    if last is None or not str(stack[last][1]).startswith(("torch.nn.modules.batchnorm.", "torch.nn.modules.instance")):
        return meta
    return {**meta, "nn_module_stack": {key: entry for key, entry in stack.items() if key != last}}


def _unevenly(total: Sum) -> Sum:
    """A sum that carries affines, but from which no part is merged: its batch size becomes unknown."""
    return replace(total, shapes=tuple((None, *shape[1:]) if shape else shape for shape in total.shapes))


def occurrences(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of a node, as often as they are there."""
    nodes: list[fx.Node] = []
    map_arg((node.args, node.kwargs), nodes.append)
    return nodes


def _are_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _scalars(graph: fx.Graph, calls: Mapping[fx.Node, Call]) -> set[fx.Node]:
    """Nodes that compute with sizes alone."""
    scalars: set[fx.Node] = set()
    for node in graph.nodes:
        if node in calls:
            sources = node.all_input_nodes
            if calls[node].op == "shape" or (sources and all(source in scalars for source in sources)):
                scalars.add(node)
    return scalars


def _distinct(labels: dict[fx.Node, str]) -> dict[fx.Node, str]:
    """Labels with a running number behind those that occur again."""
    counts: Counter[str] = Counter()
    names: dict[fx.Node, str] = {}
    for node, label in labels.items():
        names[node] = f"{label}@{counts[label]}" if counts[label] else label
        counts[label] += 1
    return names


def _holds_batchnorms(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def _title(node: fx.Node, call: Call) -> str:
    if call.module is not None:
        return type(call.module).__name__
    name = getattr(node.target, "__name__", str(node.target))
    return name if call.op == UNKNOWN else str(name).removesuffix(".default")


VALUE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Hooks that see what enters or leaves a module."""

HOOKS = (
    *VALUE_HOOKS,
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def hook_of(module: nn.Module, kinds: Sequence[str] = HOOKS) -> str | None:
    """The name of a hook on the module that a fold would mislead or lose. Hooks of torch.nn.utils do not count."""
    for kind in kinds:
        for hook in getattr(module, kind, {}).values():
            function = getattr(hook, "hook", hook)
            if str(getattr(function, "__module__", "")).startswith("torch.nn.utils."):
                continue
            return str(getattr(function, "__qualname__", type(function).__qualname__))
    return None


__all__ = ["Handle", "Slot", "TorchGraph", "hook_of", "occurrences"]
