"""The places of a model that hold tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir


class Slot:
    """One initializer, or one tensor of an attribute; `tensor` can be replaced."""

    def __init__(self, owner: ir.Value | ir.Node, attribute: str = "", index: int | None = None) -> None:
        self._owner, self._attribute, self._index = owner, attribute, index

    @property
    def is_initializer(self) -> bool:
        """Whether it belongs to a graph rather than to a node."""
        return isinstance(self._owner, ir.Value)

    @property
    def tensor(self) -> ir.TensorProtocol:
        """What it holds."""
        if isinstance(self._owner, ir.Value):
            assert self._owner.const_value is not None
            return self._owner.const_value
        attribute = self._owner.attributes[self._attribute]
        return attribute.as_tensor() if self._index is None else attribute.as_tensors()[self._index]

    @tensor.setter
    def tensor(self, tensor: ir.TensorProtocol) -> None:
        if isinstance(self._owner, ir.Value):
            self._owner.const_value = tensor
            return
        old = self._owner.attributes[self._attribute]
        if self._index is None:
            new = ir.AttrTensor(old.name, tensor, doc_string=old.doc_string)
        else:
            tensors = list(old.as_tensors())
            tensors[self._index] = tensor
            new = ir.AttrTensors(old.name, tensors, doc_string=old.doc_string)
        self._owner.attributes[self._attribute] = new


def slots(model: ir.Model) -> Iterator[Slot]:
    """Every place of a tensor, in all graphs and functions."""
    roots: list[ir.Graph] = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        for graph in [root, *root.subgraphs()]:
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield Slot(value)
            for node in graph:
                for name, attribute in node.attributes.items():
                    if attribute.is_ref():
                        continue
                    if attribute.type == ir.AttributeType.TENSOR:
                        yield Slot(node, name)
                    elif attribute.type == ir.AttributeType.TENSORS:
                        yield from (Slot(node, name, index) for index in range(len(attribute.as_tensors())))


def placeholder(tensor: ir.TensorProtocol, location: str = "-", offset: int = 0) -> ir.ExternalTensor:
    """A tensor of the same name, type and shape that holds nothing, as if its data were in a file."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


@contextmanager
def lending(held: Sequence[Slot], others: Sequence[ir.TensorProtocol]) -> Iterator[None]:
    """For a while, let slots hold other tensors."""
    tensors = [slot.tensor for slot in held]
    try:
        for slot, tensor in zip(held, others, strict=True):
            slot.tensor = tensor
        yield
    finally:
        for slot, tensor in zip(held, tensors, strict=True):
            slot.tensor = tensor
