"""The code of one module, made of the nodes of a graph that was captured of the whole model."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.graph_module import _format_import_block
from torch.package.importer import sys_importer
from torch.utils import _pytree

from bnfold.frontends.torch.capture.borders import UNSEEN, Border
from bnfold.frontends.torch.capture.decisions import Decision, expressions, fixed, stated
from bnfold.frontends.torch.capture.source import Source, is_check, is_scalar, stack
from bnfold.frontends.torch.change.generated import Code, Made, written


@dataclass(frozen=True, eq=False)
class Region:
    """A module that gets generated code.

    Attributes:
        border: of its call.
        graph: of its forward.
        attributes: tensors and modules that the code reads, and that the module does not have yet.
        sizes, conditions: on which the code depends, as in `Code`.
        called: paths of the modules that the code calls.
    """

    border: Border
    graph: fx.Graph
    attributes: Mapping[str, Any]
    sizes: Mapping[str, tuple[int, int | None]]
    conditions: tuple[str, ...]
    called: frozenset[str]

    def holds(self, decision: Decision) -> bool:
        """Whether the code that decides is a part of this code now."""
        return self.border.path in decision.stack and self.called.isdisjoint(decision.stack)


class OpenError(Exception):
    """A module reads or makes something that its call does not pass."""


class Draft:
    """The code of one module, made of the nodes of a graph.

    Args:
        source: the graph.
        border: of the only call of the module.
        stand: the node that stands now for the value of one that was captured.
        place: the name in the module for that of a tensor in the graph.
        called: the border of a module that the code calls, by its path; None for one whose nodes become code.
        hooked: paths of modules whose hooks see what they are called with.
    """

    def __init__(
        self,
        source: Source,
        border: Border,
        stand: Callable[[fx.Node], fx.Node],
        place: Callable[[str], str],
        called: Callable[[str], Border | None],
        hooked: Collection[str] = (),
    ) -> None:
        self._source = source
        self._border = border
        self._stand = stand
        self._place = place
        self._called = called
        self._hooked = hooked
        self._graph = fx.Graph()
        self._copies: dict[fx.Node, fx.Node] = {}
        self._attributes: dict[str, Any] = {}
        self._sizes: dict[Any, tuple[fx.Node, int]] = {}
        path = border.path
        self._inside = {node: None for node in source.calls() if not path or path in stack(node)}

    def region(self) -> Region:
        """The module's code.

        Raises:
            OpenError: it needs more than its call passes.
        """
        border = self._border
        if any(leaf is UNSEEN for leaf in (*border.leaves, *border.results)):
            raise OpenError("a tensor enters or leaves it that the capture does not show")
        for leaf in border.leaves:
            if isinstance(leaf, fx.Node):
                self._enter(self._stand(leaf), leaf.name)
        done: set[str] = set()
        for node in self._inside:
            inner = None if is_check(node) else self._inner(node)
            if inner is None and not is_check(node):
                self._copies[node] = self._copy(node)
            elif inner is not None and inner.path not in done:
                done.add(inner.path)
                self._call(inner)
        made = [self._read(self._stand(leaf)) for leaf in border.results if isinstance(leaf, fx.Node)]
        self._insist_on_closed()
        self._insist_on_hooks()
        self._write_buffers()
        self._graph.output(tuple(made))
        self._graph.lint()
        sizes, conditions = self._conditions(done)
        return Region(border, self._graph, self._attributes, sizes, conditions, frozenset(done))

    def _conditions(self, called: Set[str]) -> tuple[dict[str, tuple[int, int | None]], tuple[str, ...]]:
        """What the sizes of the arguments have to be, since code decided by them, or holds them as numbers."""
        inside = [
            decision
            for decision in self._source.decisions
            if self._border.path in decision.stack and called.isdisjoint(decision.stack)
        ]
        holds = self._source.is_static or any(each.is_known for each in inside) or _has_sizes(self._graph)
        places: dict[str, tuple[int, int | None]] = {}
        named: dict[Any, str] = {}
        equal: dict[Any, str] = {}
        found: dict[str, list[str]] = {}
        for index, leaf in enumerate(self._border.leaves):
            if not isinstance(leaf, fx.Node):
                continue
            value = leaf.meta.get("val")
            for axis, size in enumerate(value.shape) if isinstance(value, torch.Tensor) else [(None, value)]:
                name = f"{leaf.name}_size" + ("" if axis is None else f"_{axis}")
                places[name] = index, axis
                for each, names in zip(expressions(size), (named, equal), strict=False):
                    names.setdefault(each, name)
                if holds and (number := fixed(size)) is not None:
                    found[f"{name} == {number}"] = [name]
        for decision in inside:
            if decision.is_known:
                continue
            made = stated(decision, {**equal, **named})
            if made is None:
                raise OpenError(f"its code decides by {decision.condition}, which its call does not pass")
            found[made[0]] = made[1]
        needed = {name for names in found.values() for name in names}
        return {name: place for name, place in places.items() if name in needed}, tuple(found)

    def _enter(self, node: fx.Node, name: str) -> None:
        if node in self._inside:
            raise OpenError("what enters it is made in it")
        placeholder = self._graph.placeholder(name)
        placeholder.meta = dict(node.meta)
        self._copies.setdefault(node, placeholder)
        self._note_sizes(placeholder)

    def _note_sizes(self, node: fx.Node) -> None:
        """Where sizes are found that are symbols."""
        value = node.meta.get("val")
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                self._sizes.setdefault(size.node.expr, (node, axis))

    def _copy(self, node: fx.Node) -> fx.Node:
        if node in self._copies:
            return self._copies[node]
        made = self._size(node) if is_scalar(node) else self._graph.node_copy(node, self._read)
        if node.op == "call_module":
            made.target = self._module(str(node.target))
        self._note_sizes(made)
        return made

    def _inner(self, node: fx.Node) -> Border | None:
        """The largest module inside that is called, and makes the node."""
        places = stack(node)
        inside = places[places.index(self._border.path) + 1 :] if self._border.path in places else []
        return next(filter(None, map(self._called, inside)), None)

    def _call(self, border: Border) -> None:
        read = [self._read(self._stand(leaf)) if isinstance(leaf, fx.Node) else leaf for leaf in border.leaves]
        args, kwargs = _arguments(border.signature, border.arguments.build(read))
        made = self._graph.call_module(self._module(border.path), args, kwargs)
        paths, _ = _pytree.tree_flatten_with_path(border.result.build(list(range(len(border.results)))))
        for keys, index in paths:
            leaf = border.results[index]
            if isinstance(leaf, fx.Node) and self._stand(leaf) not in self._copies:
                picked = made
                for key in keys:
                    picked = self._graph.call_function(operator.getitem, (picked, _key(key)))
                picked.meta = {**picked.meta, "val": self._stand(leaf).meta.get("val")}
                self._copies[self._stand(leaf)] = picked
                self._note_sizes(picked)

    def _module(self, target: str) -> str:
        path = self._border.path
        if target not in self._source.owners:
            name = target.replace(".", "_")
            self._attributes[name] = self._source.root.get_submodule(target)
            return name
        if path and not target.startswith(f"{path}."):
            raise OpenError(f"it calls {target}")
        return target.removeprefix(f"{path}.") if path else target

    def _read(self, node: fx.Node) -> fx.Node:
        if node not in self._copies:
            self._copies[node] = self._fetch(node)
        return self._copies[node]

    def _fetch(self, node: fx.Node) -> fx.Node:
        name = self._source.name(node)
        if name is not None:
            return self._graph.get_attr(self._tensor(name))
        if node.op == "get_attr":
            self._attributes[str(node.target)] = getattr(self._source.root, str(node.target))
            return self._graph.get_attr(str(node.target))
        if is_scalar(node):
            return self._size(node)
        raise OpenError(f"it reads {node.name}, which is made elsewhere")

    def _tensor(self, name: str) -> str:
        """Where the code finds a tensor."""
        path, place = self._border.path, self._place(name)
        is_below = not path or place.startswith(f"{path}.")
        if place in self._source.places:
            if not is_below:
                raise OpenError(f"it reads {place}")
            return place.removeprefix(f"{path}.") if path else place
        owner = place.rpartition(".")[0]
        if is_below and owner in self._source.owners and name not in self._source.lifted:
            return place.removeprefix(f"{path}.") if path else place
        attribute = place.replace(".", "_")
        self._attributes[attribute] = self._source.tensors()[name]
        return attribute

    def _size(self, node: fx.Node) -> fx.Node:
        """A size, as that of a tensor at hand if there is one: it may be computed from others."""
        value = node.meta.get("val")
        place = self._sizes.get(value.node.expr) if isinstance(value, torch.SymInt) else None
        if place is not None:
            return self._graph.call_function(torch.ops.aten.sym_size.int, place)
        return self._graph.node_copy(node, self._read)

    def _insist_on_closed(self) -> None:
        """Refuse where something else reads what is made inside, but for what the call gives back."""
        leaving = {self._stand(leaf) for leaf in self._border.results if isinstance(leaf, fx.Node)}
        for node in self._inside:
            if node in leaving or is_scalar(node):
                continue
            for user in node.users:
                is_outside = user not in self._inside and not is_scalar(user) and not is_check(user)
                if is_outside and (self._border.path or user.op != "output"):
                    raise OpenError(f"{user.name} reads {node.name}")

    def _insist_on_hooks(self) -> None:
        """Refuse where a module with a hook would not be called any more, which the code of one around it calls."""
        path = self._border.path
        calls = [str(node.target) for node in self._graph.nodes if node.op == "call_module"]
        below = [each for each in self._hooked if each != path and (not path or each.startswith(f"{path}."))]
        for each in below:
            inside = each.removeprefix(f"{path}.") if path else each
            if not any(inside == call or inside.startswith(f"{call}.") for call in calls):
                raise OpenError(f"a hook on {each} would not be called")

    def _write_buffers(self) -> None:
        names = {node.name: node for node in self._copies}
        for target, name in self._source.writes.items():
            if name in names and names[name] in self._inside:
                held = self._graph.get_attr(self._tensor(target))
                self._graph.call_function(torch.ops.aten.copy_.default, (held, self._copies[names[name]]))


def _has_sizes(graph: fx.Graph) -> bool:
    """Whether numbers are in the code that may be sizes: those of a kernel or a stride are none."""
    return any(
        isinstance(number, int) and number != -1
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and "conv" not in str(node.target)
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False)
        if _is_size(argument.real_type)
        for number in _pytree.tree_leaves(value)
    )


def _is_size(kind: Any) -> bool:
    """Whether an argument of an operator may be a size, or several."""
    while kind.kind() in ("ListType", "OptionalType"):
        kind = kind.getElementType()
    return bool(kind.kind() == "SymIntType")


def code_of(region: Region) -> Code:
    """A module's code as what can be pickled."""
    border = region.border
    text = region.graph.python_code("self")
    head, names, defaults = written(border.signature)
    made = iter(range(len(border.results)))
    constants = {index: leaf for index, leaf in enumerate(border.leaves) if not isinstance(leaf, fx.Node)}
    return Code(
        text.src,
        _format_import_block(text.globals, sys_importer),
        head,
        names,
        defaults,
        border.arguments,
        constants,
        dict(region.sizes),
        region.conditions,
        tuple(Made(next(made)) if isinstance(leaf, fx.Node) else leaf for leaf in border.results),
        border.result,
    )


def is_simple(border: Border) -> bool:
    """Whether a call can be written down: with numbers, texts and nodes, in tuples, lists and dicts."""
    plain = (fx.Node, int, float, str, torch.dtype, torch.device, type(None))
    if border.arguments.records or border.result.records:
        return False
    keys, _ = _pytree.tree_flatten_with_path(border.result.build(list(range(len(border.results)))))
    known = all(isinstance(key, _pytree.SequenceKey | _pytree.MappingKey) for path, _ in keys for key in path)
    return known and all(isinstance(leaf, plain) for leaf in border.leaves)


def _key(key: Any) -> Any:
    return key.idx if isinstance(key, _pytree.SequenceKey) else key.key


def _arguments(signature: inspect.Signature, bound: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    made = inspect.BoundArguments(signature, dict(bound))
    return made.args, made.kwargs
