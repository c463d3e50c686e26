"""Two torch models, and the claims of a certificate about them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from bnfold.errors import InvalidModelError
from bnfold.proof.certificate import Certificate, Relation
from bnfold.proof.failure import ProofError
from bnfold.proof.torch.calls import BATCHNORMS, LINEAR
from bnfold.proof.torch.memory import find_tangled
from bnfold.proof.torch.shapes import Shapes
from bnfold.proof.torch.sides import Side, is_same_tensor

SCOPE = "main"


class Pair:
    """Original and result.

    Attributes:
        accounted: nodes of the result that an obligation was about.
        weights: identities of the tensors of the result that an obligation about weights was about.
        changed: nodes of the original that are not the same in the result.
    """

    def __init__(self, original: Side, result: Side, certificate: Certificate, shapes: Shapes) -> None:
        self.original, self.result, self.certificate, self.shapes = original, result, certificate, shapes
        for side in (original, result):
            side.tangled = find_tangled(side)
        for name, node in original.nodes.items():
            count = shapes.count(node)
            if count is not None:
                original.counts[node] = count
                if name in result.nodes:
                    result.counts[result.nodes[name]] = count
        self.accounted: set[fx.Node] = set()
        self.weights: set[int] = set()
        self.changed: set[fx.Node] = set()
        self._fresh: dict[fx.Node, bool] = {}

    def insist_on_names(self) -> None:
        """Check that the original has everything that the certificate names.

        Raises:
            InvalidModelError: it has not.
        """
        claim = self.certificate
        values = (*claim.names, *claim.relations)
        nodes = (*claim.vanished, *claim.merged, *((scope, into) for (scope, _), into in claim.merged.items()))
        for scope, name in (*values, *nodes):
            node = self.original.nodes.get(name.partition("[")[0])
            if scope != SCOPE or node is None or ((scope, name) in nodes and name not in self.original.calls_by_name):
                raise InvalidModelError(
                    f"the certificate names {name!r} in {scope!r}, which the original does not have"
                )
        for _, name in values:
            node = self.original.nodes[name.partition("[")[0]]
            if node not in self.original.calls or node in self.original.constants:
                raise ProofError("wiring", name, "an input or a constant cannot change")
            if self.original.pick(node) is not None or self.original.is_spread(node) != name.endswith("]"):
                raise InvalidModelError(f"the certificate names {name!r}, which is no value, but a tuple or its entry")

    def name(self, node: fx.Node) -> str:
        """The name of the value of the result that stands for one of the original."""
        return self.name_of(self.original.key(node))

    def name_of(self, key: str) -> str:
        """The name of what stands for a value of the original."""
        return self.certificate.names.get((SCOPE, key), key)

    def relation(self, node: object) -> Relation | None:
        """How the value of a node changed."""
        if not isinstance(node, fx.Node):
            return None
        return self.certificate.relations.get((SCOPE, self.original.key(node)))

    def relation_of(self, key: str) -> Relation | None:
        """How a value changed."""
        return self.certificate.relations.get((SCOPE, key))

    def mark(self, node: fx.Node) -> str | None:
        """The merged operator that a node became a part of."""
        return self.certificate.merged.get((SCOPE, node.name))

    def is_vanished(self, node: fx.Node) -> bool:
        """Whether a node is gone, and its input takes the place of its output."""
        return (SCOPE, node.name) in self.certificate.vanished

    def twin(self, node: fx.Node) -> fx.Node:
        """The node of the result that makes the same value as one of the original."""
        name = node.name if self.original.is_spread(node) else self.name(node)
        maker = self.result.nodes.get(name)
        if maker is None or maker.op not in ("call_function", "call_method", "call_module"):
            raise ProofError("wiring", node.name, "the result has no such node")
        for key in self.original.keys(node) if self.original.is_spread(node) else ():
            if self.certificate.names.get((SCOPE, key), key) != key:
                raise ProofError("wiring", key, "another entry of a tuple stands for it")
        return maker

    def account(self, node: fx.Node, twin: fx.Node) -> None:
        """Note that a node of the result has been checked."""
        if twin in self.accounted:
            raise ProofError("wiring", node.name, "two nodes became one, and nothing says so")
        self.accounted.add(twin)

    def account_weights(self, *handles: Any) -> None:
        """Note that nodes or tensors of the result are checked weights, with everything that they are computed from."""
        stack = list(handles)
        while stack:
            handle = stack.pop()
            if isinstance(handle, torch.Tensor):
                self.weights.add(id(handle))
            elif isinstance(handle, fx.Node) and handle in self.result.constants:
                self.accounted.add(handle)
                place = self.result.place(handle)
                if place is not None:
                    self.weights.add(id(self.result.tensors[place]))
                stack.extend(handle.all_input_nodes)

    def is_fresh(self, leaf: fx.Node) -> bool:
        """Whether a node of the result stands for another tensor than the node of that name in the original."""
        if leaf not in self._fresh:
            self._fresh[leaf] = self._differs(leaf)
        return self._fresh[leaf]

    def _differs(self, leaf: fx.Node) -> bool:
        before = self.original.nodes.get(leaf.name)
        if before is None or before.op != leaf.op or before.target != leaf.target:
            return True
        places = self.original.place(before), self.result.place(leaf)
        if places[0] != places[1]:
            return True
        if places[0] is None:
            return False
        one, other = self.original.tensors.get(places[0]), self.result.tensors.get(places[0])
        return one is None or other is None or not is_same_tensor(one, other)

    def stands(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether a value of the result stands for a value of the original."""
        if node.op in ("placeholder", "get_attr"):
            return node.name == other.name and not self.is_fresh(other)
        return self.result.key(other) == self.name(node)

    def same(self, one: Any, other: Any) -> bool:
        """Whether an argument of the result stands for one of the original."""
        if isinstance(one, fx.Node):
            return isinstance(other, fx.Node) and self.stands(one, other)
        if isinstance(one, tuple | list):
            is_alike = isinstance(other, tuple | list) and isinstance(one, tuple) == isinstance(other, tuple)
            return is_alike and len(one) == len(other) and all(map(self.same, one, other))
        if isinstance(one, dict):
            return (
                isinstance(other, dict)
                and list(one) == list(other)
                and all(map(self.same, one.values(), other.values()))
            )
        if isinstance(one, slice):
            parts = [(cut.start, cut.stop, cut.step) for cut in (one, other)] if isinstance(other, slice) else []
            return bool(parts) and self.same(*parts)
        if isinstance(one, torch.Tensor):
            return isinstance(other, torch.Tensor) and is_same_tensor(one, other)
        return type(one) is type(other) and (one is other or bool(one == other) or (one != one and other != other))

    def is_linear(self, node: fx.Node) -> bool:
        """Whether a node is a linear operator or a BatchNorm by its name."""
        return self.original.calls[node].name in LINEAR | BATCHNORMS
