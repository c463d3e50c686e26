"""The places of a model that hold tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import onnx_ir as ir

from bnfold.frontends.onnx.files.stored import StoredTensor
from bnfold.frontends.onnx.nesting import graphs


class Slot:
    """One initializer, or one tensor of an attribute."""

    def __init__(self, owner: ir.Value | ir.Node, attribute: str = "", index: int | None = None) -> None:
        self._owner, self._attribute, self._index = owner, attribute, index

    @property
    def is_initializer(self) -> bool:
        """Whether it belongs to a graph rather than to a node."""
        return isinstance(self._owner, ir.Value)

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The tensor in the slot."""
        if isinstance(self._owner, ir.Value):
            assert self._owner.const_value is not None
            return self._owner.const_value
        attribute = self._owner.attributes[self._attribute]
        held = attribute.value if self._index is None else attribute.value[self._index]
        return cast("ir.TensorProtocol", held)  # `as_tensor` checks a protocol, which takes long

    def lend(self, tensor: ir.TensorProtocol) -> Callable[[], None]:
        """Put another tensor into the slot; gives a function that puts the first one back."""
        owner, name = self._owner, self._attribute
        if isinstance(owner, ir.Value):
            held, owner.const_value = owner.const_value, tensor
            return partial(setattr, owner, "const_value", held)
        old = owner.attributes[name]
        if self._index is None:
            new = ir.AttrTensor(old.name, tensor, doc_string=old.doc_string)
        else:
            tensors = list(old.as_tensors())
            tensors[self._index] = tensor
            new = ir.AttrTensors(old.name, tensors, doc_string=old.doc_string)
        owner.attributes[name] = new
        return partial(owner.attributes.__setitem__, name, old)


def slots(model: ir.Model) -> Iterator[Slot]:
    """Every place of a tensor, in all graphs and functions."""
    for graph in graphs(model):
        for value in graph.initializers.data.values():
            if value.const_value is not None:
                yield Slot(value)
        for node in graph:
            for name, attribute in node.attributes.data.items():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield Slot(node, name)
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from (Slot(node, name, index) for index in range(len(attribute.as_tensors())))


INSIDE = (StoredTensor, ir.serde.TensorProtoTensor)
"""What tensors are that a model was read with, and that are in its own file."""


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of a model that is in a file."""
    for slot in slots(model):
        tensor = slot.tensor
        if type(tensor) not in INSIDE and isinstance(tensor, ir.ExternalTensor):  # a slow question
            yield tensor


class Placeholder(ir.ExternalTensor):
    """A tensor with the name, type and shape of another, but without its data, which seems to be in a file."""

    def __init__(self, tensor: ir.TensorProtocol, location: str, offset: int) -> None:
        super().__init__(
            location,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
        self.stands_for = tensor


def placeholder(tensor: ir.TensorProtocol, location: str = "-", offset: int = 0) -> Placeholder:
    """A placeholder of a tensor whose data is, or will be, in a file."""
    return Placeholder(tensor, location, offset)


class Token(ir.LazyTensor):
    """A tensor with the name, type and shape of another. Its few bytes mark where the other's data belongs."""

    def __init__(self, tensor: ir.TensorProtocol, content: bytes) -> None:
        super().__init__(
            lambda: tensor,
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
        self.stands_for = tensor
        self.content = content

    def tobytes(self) -> bytes:
        """The mark."""
        return self.content


@contextmanager
def lending(held: Sequence[Slot], others: Sequence[ir.TensorProtocol]) -> Iterator[None]:
    """For a while, let slots hold other tensors."""
    with ExitStack() as stack:
        for slot, tensor in zip(held, others, strict=True):
            stack.callback(slot.lend(tensor))
        yield
