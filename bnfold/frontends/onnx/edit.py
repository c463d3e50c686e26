"""Edits of an ONNX model: fresh parameters and names, nodes taken out and put in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.frontends.onnx.files.original import original_of
from bnfold.frontends.onnx.nesting import graphs
from bnfold.frontends.onnx.scopes import Scopes


@dataclass(frozen=True)
class Stage:
    """One of several operators in a row, with the constants that it reads behind its data."""

    operator: str
    constants: tuple[npt.NDArray[Any], ...]
    attributes: tuple[ir.Attr, ...]


class Editor:
    """Changes a model in place, and removes constants and nodes that an edit left without a reader.

    A constant that had no reader before stays.

    Args:
        model: what is changed.
        scopes: its graphs.
        is_constant: whether a value is a constant. One may be computed from the type or shape of data, which stays.
    """

    def __init__(self, model: ir.Model, scopes: Scopes, is_constant: Callable[[ir.Value | None], bool]) -> None:
        self._model = model
        self._scopes = scopes
        self._is_constant = is_constant
        original = original_of(model)
        self._names = {*_names(model), *(original.names() if original is not None else ())}
        self._read_elsewhere = frozenset(original.names_read_elsewhere() if original is not None else ())
        self._counts: dict[str, int] = {}
        self._readers: dict[ir.Value, int] = {}

    def fresh(self, wish: str) -> str:
        """A name like `wish` that is free in the model."""
        name = wish
        while name in self._names:
            self._counts[wish] = self._counts.get(wish, 1) + 1
            name = f"{wish}_{self._counts[wish]}"
        self._names.add(name)
        return name

    def rename(self, value: ir.Value, wish: str) -> None:
        """Give a value a fresh name like `wish`."""
        value.name = self.fresh(wish)

    def set_parameter(self, node: ir.Node, index: int, tensor: ir.TensorProtocol, what: str = "parameter") -> None:
        """Give input `index` of a node a fresh initializer; the old value goes away if nothing else reads it."""
        old = node.inputs[index] if index < len(node.inputs) else None
        wish = f"{old.name}_folded" if old is not None else f"{node.outputs[0].name}_{what}"
        self._read(node, index, self._initializer(node, tensor, wish))

    def read_alike(self, node: ir.Node, index: int, other: ir.Node) -> None:
        """Give input `index` of a node what another one reads there; the old value goes as in `set_parameter`."""
        self._read(node, index, other.inputs[index])

    def _read(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if old is not None:
            self.release(old)

    def _initializer(self, node: ir.Node, tensor: ir.TensorProtocol, wish: str) -> ir.Value:
        """A fresh constant for a node.

        Functions hold no initializers, so there it is a Constant node. Models below IR version 4 list every initializer
        as an input of the main graph.
        """
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        tensor.name = self.fresh(wish)
        if self._scopes.is_in_function(graph):
            constant = ir.Node(
                "", "Constant", [], [ir.AttrTensor("value", tensor)], name=self.fresh(f"{wish}_constant")
            )
            self._insert(node, constant, after=False)
            constant.outputs[0].name = tensor.name
            return constant.outputs[0]
        if self._model.ir_version < 4:
            graph = self._model.graph
        value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        graph.register_initializer(value)
        if self._model.ir_version < 4:
            graph.inputs.append(value)
        return value

    def release(self, value: ir.Value, readings: int = 1) -> None:
        """Count readings of a constant that ended. After the last one, remove it and the nodes that compute it.

        The count is kept because asking for the readers of a value that thousands share takes as long each time.
        """
        stack = [(value, readings)]
        while stack:
            unread, ended = stack.pop()
            known = self._readers.get(unread)
            self._readers[unread] = len(unread.uses()) if known is None else known - ended
            if self._readers[unread] > 0:
                continue
            node = unread.producer()
            if node is None:
                self._drop_initializer(unread)
            elif (graph := node.graph) is not None and not any(
                output.uses() or output.is_graph_output() for output in node.outputs
            ):  # its node may be gone already, by another of its outputs or readers
                stack.extend(Counter(each for each in node.inputs if each and self._is_constant(each)).items())
                graph.remove(node, safe=True)

    def _drop_initializer(self, value: ir.Value) -> None:
        is_read = value.uses() or value.is_graph_output() or value.name in self._read_elsewhere
        if is_read or not value.is_initializer():
            return
        graph = value.graph
        assert graph is not None
        assert value.name is not None
        if value.is_graph_input():
            if self._model.ir_version >= 4:
                return
            graph.inputs.remove(value)
        graph.initializers.pop(value.name)

    def drop_attributes(self, node: ir.Node, *names: str) -> None:
        """Let attributes fall back to their defaults."""
        for name in names:
            node.attributes.pop(name, None)

    def bypass(self, node: ir.Node, index: int, parameters: Sequence[int], *, keep_output_name: bool) -> None:
        """Take out a node whose readers shall read its input `index`, under the output's name or under its own."""
        kept, gone = node.inputs[index], node.outputs[0]
        assert kept is not None
        if keep_output_name:
            self._take_over(kept, gone)
        gone.replace_all_uses_with(kept, replace_graph_outputs=True)
        self.remove(node, parameters)

    def settle(self, node: ir.Node, tensor: ir.TensorProtocol) -> None:
        """Put a constant in the place of a node, of which only the first output is read."""
        value = node.outputs[0]
        constant = self._initializer(node, tensor, f"{value.name}_computed")
        self.replace(value, constant)
        constant.type, constant.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        self.remove(node, range(len(node.inputs)))

    def read(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Let input `index` of a node be another value."""
        if node.inputs[index] is not value:
            node.replace_input_with(index, value)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let all readers of a value read another, which takes over its name."""
        if old is not new:
            self._take_over(new, old)
            old.replace_all_uses_with(new, replace_graph_outputs=True)

    def remove(self, node: ir.Node, parameters: Sequence[int]) -> None:
        """Take out a node whose output nothing reads, with those of its inputs `parameters` that only it read."""
        released = Counter(value for index in parameters if (value := node.inputs[index]) is not None)
        graph = node.graph
        assert graph is not None
        graph.remove(node, safe=True)
        for value, readings in released.items():
            self.release(value, readings)

    def _take_over(self, value: ir.Value, other: ir.Value) -> None:
        """Give `value` the name, type and metadata of `other`. Its own declaration may be wrong under that name."""
        name = other.name
        other.name = None
        value.name = name
        value.doc_string = other.doc_string or value.doc_string
        value.type, value.shape = other.type, other.shape
        value.metadata_props.clear()
        value.metadata_props.update(other.metadata_props)

    def insert_add(self, node: ir.Node, bias: ir.TensorProtocol, attributes: Sequence[ir.Attr]) -> ir.Value:
        """Put an Add of a constant behind a node; the sum, which is returned, takes over the name of its output."""
        product = node.outputs[0]
        uses = list(product.uses())
        constant = self._initializer(node, bias, f"{product.name}_bias")
        add = ir.Node("", "Add", [product, constant], attributes, name=self.fresh(f"{node.name or product.name}_bias"))
        self._insert(node, add, after=True)
        total = add.outputs[0]
        self._take_over(total, product)
        self.rename(product, f"{total.name}_product")
        for reader, index in uses:
            reader.replace_input_with(index, total)
        if product.is_graph_output():
            product.replace_all_uses_with(total, replace_graph_outputs=True)
            add.replace_input_with(0, product)
        return total

    def requantize(
        self,
        node: ir.Node,
        index: int,
        old: ir.Node,
        integers: npt.NDArray[Any] | None,
        scales: npt.NDArray[Any],
        zero_points: npt.NDArray[Any],
        axis: int,
        weights: npt.NDArray[Any] | None = None,
        turn: ir.Node | None = None,
    ) -> None:
        """Give input `index` of a node a DequantizeLinear of its own, like `old` with other scales, maybe integers.

        If given, `weights` are what a QuantizeLinear of its own, like that before `old`, makes the integers of, and the
        node reads what a node like `turn` makes of all this.
        """
        name = self.fresh(f"{old.name or old.outputs[0].name}_folded")
        made = old.inputs[0] if integers is None else self._initializer(node, ir.tensor(integers), f"{name}_integers")
        parameters = [
            self._initializer(node, ir.tensor(scales), f"{name}_scale"),
            self._initializer(node, ir.tensor(zero_points), f"{name}_zero_point"),
        ]
        if weights is not None:
            assert made is not None
            quantize = made.producer()
            assert quantize is not None
            read = quantize.inputs[0]
            assert read is not None
            fresh_weights = self._initializer(node, ir.tensor(weights), f"{read.name}_folded")
            made = self._insert_like(quantize, node, [fresh_weights, *parameters], axis)
        value, fresh = old.outputs[0], self._insert_like(old, node, [made, *parameters], axis, name)
        fresh.type, fresh.shape = value.type, value.shape
        if turn is not None:
            copy = ir.Node("", turn.op_type, [fresh], [*turn.attributes.values()])
            copy.name = self.fresh(f"{turn.name or turn.outputs[0].name}_folded")
            self._insert(node, copy, after=False)
            value, fresh = turn.outputs[0], copy.outputs[0]
            fresh.name = self.fresh(f"{value.name}_folded")
            fresh.type, fresh.shape = value.type, value.shape
        node.replace_input_with(index, fresh)
        self.release(value)
        if turn is not None and turn.graph is None:  # what is dequantised is no constant that goes by itself
            self.release(old.outputs[0])

    def _insert_like(
        self, old: ir.Node, reader: ir.Node, inputs: Sequence[ir.Value | None], axis: int, name: str | None = None
    ) -> ir.Value:
        """Put a node like `old`, along another axis, before what is going to read it. Returns its output."""
        attributes = [each for each in old.attributes.values() if each.name != "axis"]
        fresh = ir.Node("", old.op_type, inputs, [*attributes, ir.AttrInt64("axis", axis)])
        fresh.name = name or self.fresh(f"{old.name or old.outputs[0].name}_folded")
        self._insert(reader, fresh, after=False)
        fresh.outputs[0].name = self.fresh(f"{old.outputs[0].name}_folded")
        return fresh.outputs[0]

    def replace_operator(self, node: ir.Node, stages: Sequence[Stage]) -> None:
        """Make a node with one input of data the last of several operators in a row, and put the others before it."""
        value, old = node.inputs[0], list(node.inputs[1:])
        for stage in stages[:-1]:
            inputs = [value, *self._constants(node, stage)]
            name = self.fresh(f"{node.name or node.outputs[0].name}_{stage.operator.lower()}")
            fresh = ir.Node("", stage.operator, inputs, stage.attributes, name=name)
            self._insert(node, fresh, after=False)
            value = fresh.outputs[0]
            value.name = self.fresh(f"{name}_output")
        inputs = [value, *self._constants(node, stages[-1])]
        node.resize_inputs(len(inputs))
        for index, read in enumerate(inputs):
            node.replace_input_with(index, read)
        node.op_type = stages[-1].operator
        node.attributes.clear()
        node.attributes.update({attribute.name: attribute for attribute in stages[-1].attributes})
        for constant, readings in Counter(read for read in old if read is not None).items():
            self.release(constant, readings)

    def _constants(self, node: ir.Node, stage: Stage) -> list[ir.Value]:
        wish = f"{node.outputs[0].name}_{stage.operator.lower()}"
        return [self._initializer(node, ir.tensor(constant), wish) for constant in stage.constants]

    def pad_explicitly(self, node: ir.Node, fill: float, dtype: np.dtype[np.generic], version: int) -> None:
        """Replace the zero padding of a convolution by a Pad with the constant `fill`."""
        padding = node.attributes.pop("pads")
        begins, ends = _halves(padding.as_ints())
        pads = np.asarray([0, 0, *begins, 0, 0, *ends], np.int64)
        data = node.inputs[0]
        assert data is not None
        name = self.fresh(f"{node.name or node.outputs[0].name}_pad")
        if version < 11:
            attributes = [
                ir.AttrInt64s("pads" if version > 1 else "paddings", pads.tolist()),
                ir.AttrFloat32("value", fill),
            ]
            pad = ir.Node("", "Pad", [data], attributes, name=name)
        else:
            sizes = self._initializer(node, ir.tensor(pads), f"{name}_pads")
            value = self._initializer(node, ir.tensor(np.asarray(fill, dtype)), f"{name}_value")
            pad = ir.Node("", "Pad", [data, sizes, value], name=name)
        self._insert(node, pad, after=False)
        pad.outputs[0].name = self.fresh(f"{name}_output")
        node.replace_input_with(0, pad.outputs[0])

    def _insert(self, node: ir.Node, new: ir.Node, *, after: bool) -> None:
        graph = node.graph
        assert graph is not None
        if after:
            graph.insert_after(node, new)
        else:
            graph.insert_before(node, new)


def _halves(values: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]


def _names(model: ir.Model) -> list[str]:
    """Every name of a value or a node anywhere in the model."""
    names: list[str] = []
    for graph in graphs(model):
        names.extend(value.name or "" for value in graph.inputs)
        names.extend(graph.initializers)
        for node in graph:
            names.append(node.name or "")
            names.extend(value.name or "" for value in node.outputs)
    return names
