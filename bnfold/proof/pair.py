"""Two models, and the claims of a certificate about them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from copy import copy
from dataclasses import replace
from functools import cached_property

import onnx

from bnfold.errors import InvalidModelError
from bnfold.proof.certificate import Certificate, Relation, Shape
from bnfold.proof.failure import ProofError
from bnfold.proof.instances import Instance, draw_instances
from bnfold.proof.linear import PRODUCTS
from bnfold.proof.models import Scope, Side, first_output


class Pair:
    """Original and result.

    Attributes:
        accounted: nodes of the result that an obligation was about.
        computed: constants of the result that stand for what a node made, which an obligation was about.
        parameters: names of the result's constants that an obligation was about.
    """

    def __init__(self, original: Side, result: Side, certificate: Certificate) -> None:
        self.original, self.result, self.certificate = original, result, certificate
        self.accounted: set[int] = set()
        self.computed: set[tuple[str, str]] = set()
        self.parameters: set[tuple[str, str]] = set()
        self.helpers: set[tuple[str, str]] = set()
        self._counterparts: dict[str, Scope] = {}
        self._instances: list[Instance] = []
        self._more = draw_instances(original.main)

    @cached_property
    def read_elsewhere(self) -> frozenset[str]:
        """Names in the original that training information and annotations, not nodes, read."""
        proto, names = self.original.files.proto, set[str]()
        for training in proto.training_info:
            for entry in (*training.initialization_binding, *training.update_binding):
                names.update((entry.key, entry.value))
            for graph in (training.initialization, training.algorithm):
                names.update(name for node in graph.node for name in node.input)
        for scope in self.original.scopes.values():
            for annotation in scope.message.quantization_annotation if not scope.is_function else ():
                names.update(entry.value for entry in annotation.quant_parameter_tensor_names)
        return frozenset(names)

    def instances(self) -> Iterator[Instance]:
        """Instances of the original's shapes, with growing sizes."""
        for place in itertools.count():
            if place == len(self._instances):
                instance = next(self._more, None)
                if instance is None:
                    return
                self._instances.append(instance)
            yield self._instances[place]

    def within(self, scope: Scope, values: Collection[str]) -> Pair:
        """The pair as seen from a branch of these values that leads to no output: values outside it are unchanged."""
        if not values:
            return self
        branch = copy(self)
        relations = {
            key: relation
            for key, relation in self.certificate.relations.items()
            if key[0] == scope.path and key[1] in values
        }
        branch.certificate = replace(self.certificate, relations=relations)
        return branch

    def insist_on_names(self) -> None:
        """Check that the original has everything that the certificate names.

        Raises:
            InvalidModelError: it has not.
        """
        claimed = (
            *self.certificate.names,
            *self.certificate.relations,
            *self.certificate.vanished,
            *self.certificate.merged,
            *self.certificate.shapes,
            *((scope, into) for (scope, _), into in self.certificate.merged.items()),
        )
        for path, name in claimed:
            scope = self.original.scopes.get(path)
            if scope is None or (name not in scope.makers and name not in scope.inputs):
                raise InvalidModelError(f"the certificate names {name!r} in {path!r}, which the original does not have")
        for path, name in (*self.certificate.vanished, *self.certificate.merged):
            maker = self.original.scopes[path].makers.get(name)
            if maker is None or first_output(maker) != name:
                raise InvalidModelError(f"the certificate names a node {name!r}, which the original does not have")
        for key, (shape, kind) in self.certificate.shapes.items():
            fact, known_kind = self.original.certain.get(key, (None, 0))
            if not _agree(shape, fact) or (known_kind and known_kind != kind) or key[0] != "main":
                raise InvalidModelError(f"the certificate assumes a shape of {key[1]!r} that it cannot have")
        for path, name in self.certificate.relations:
            if name not in self.original.scopes[path].makers:
                raise ProofError("wiring", name, "an input cannot change")

    def counterpart(self, path: str) -> Scope:
        """The graph of the result that stands for one of the original."""
        if path not in self._counterparts:
            self._counterparts[path] = self._find(path)
        return self._counterparts[path]

    def _find(self, path: str) -> Scope:
        around = self.original.scopes[path].around
        place = path
        if around is not None:
            output, _, rest = path[len(around.path) + 1 :].rpartition(".")[0].rpartition(".")
            index = path.rpartition(".")[2]
            place = f"{self.counterpart(around.path).path}/{self.name(around, output)}.{rest}.{index}"
        if place not in self.result.scopes:
            raise ProofError("wiring", path, "the result has no such graph")
        return self.result.scopes[place]

    def name(self, scope: Scope, value: str) -> str:
        """The name of the value of the result that stands for one of the original."""
        owner = scope.owner(value) if value else None
        return value if owner is None else self.certificate.names.get((owner.path, value), value)

    def home(self, scope: Scope, value: str) -> Scope | None:
        """The scope of the value of the result that stands for one of the original.

        It may be another scope than before, since a vanished node may have read a value from outside.
        """
        owner = scope.owner(value)
        while owner is not None:
            maker = owner.makers.get(value)
            if maker is None or (owner.path, first_output(maker)) not in self.certificate.vanished:
                return self.counterpart(owner.path)
            data = [read for read in maker.input if read and not owner.is_constant(read)]
            if not data:
                return self.counterpart(owner.path)
            value, owner = data[0], owner.owner(data[0])
        return None

    def relation(self, scope: Scope, value: str) -> Relation | None:
        """How a value changed."""
        owner = scope.owner(value)
        return None if owner is None else self.certificate.relations.get((owner.path, value))

    def shape(self, scope: Scope, value: str) -> Shape | None:
        """The shape of a value of the original, as far as it is known."""
        owner = scope.owner(value)
        return None if owner is None else self.original.shape((owner.path, value))

    def rank(self, scope: Scope, value: str) -> int | None:
        """The rank of a value, where it is known."""
        shape = self.shape(scope, value)
        return None if shape is None else len(shape)

    def has_kernel(self, scope: Scope, node: onnx.NodeProto) -> bool:
        """Whether a linear operator has one constant operand that is its kernel."""
        if len(node.input) < 2:
            return False
        constants = [value for value in node.input[:2] if scope.is_constant(value)]
        return len(constants) == 1 and (node.op_type in PRODUCTS or constants[0] == node.input[1])

    def bias_add(self, scope: Scope, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The Add that is the bias of a product with a constant matrix: its only reader, in the same graph."""
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx") or not self.has_kernel(scope, node):
            return None
        output = node.output[0]
        if scope.readers.get(output, 0) != 1:
            return None
        for reader in self._readers(scope).get(output, ()):
            if reader.op_type != "Add" or reader.domain not in ("", "ai.onnx") or len(reader.input) != 2:
                return None
            key = scope.path, first_output(reader)
            if key in self.certificate.vanished or key in self.certificate.merged:
                return None
            other = reader.input[1 if reader.input[0] == output else 0]
            relation = self.certificate.relations.get((scope.path, output))
            is_bias = relation is None and _is_along_channels(scope, node, other)
            return reader if is_bias else None
        return None

    def is_bias_add(self, scope: Scope, node: onnx.NodeProto) -> bool:
        """Whether a node is the bias of a matrix product that changes."""
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            return False
        for name in node.input:
            maker = scope.makers.get(name)
            if maker is not None and self.bias_add(scope, maker) is node:
                changed = (*maker.input, node.output[0])
                return any(self.relation(scope, value) is not None for value in changed if value)
        return False

    def _readers(self, scope: Scope) -> dict[str, list[onnx.NodeProto]]:
        cache: dict[str, dict[str, list[onnx.NodeProto]]] = self.__dict__.setdefault("_by_reader", {})
        if scope.path not in cache:
            readers: dict[str, list[onnx.NodeProto]] = {}
            for node in scope.nodes:
                for value in node.input:
                    readers.setdefault(value, []).append(node)
            cache[scope.path] = readers
        return cache[scope.path]

    def readers(self, scope: Scope, value: str) -> list[onnx.NodeProto]:
        """The nodes that read a value of the original, in the same graph."""
        return self._readers(scope).get(value, [])


def _is_along_channels(scope: Scope, product: onnx.NodeProto, name: str) -> bool:
    """Whether a value is a constant that varies at most along the channels of a matrix product."""
    constant = scope.constant(name)
    if constant is None or scope.version < 7:
        return constant is not None
    long = [axis - constant.ndim for axis, size in enumerate(constant.shape) if size != 1]
    return long in ([], [-2 if scope.is_constant(product.input[0]) else -1])


def _agree(one: Shape, other: Shape | None) -> bool:
    """Whether two shapes can belong to one value."""
    if other is None:
        return True
    return len(one) == len(other) and all(a == b for a, b in zip(one, other, strict=True) if None not in (a, b))
