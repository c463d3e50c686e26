"""A folded graph, back on the module that it was captured from.

Where the code of a module still does what the graph says, it stays: parameters are replaced, and `nn.Identity` takes
the place of a BatchNorm. Where it does not, the smallest module around the place gets generated code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph_module import _format_import_block
from torch.fx.node import map_arg
from torch.package.importer import sys_importer

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.torch.capture.borders import UNSEEN, Border
from bnfold.frontends.torch.capture.source import CALLS, Source, is_check, is_same, is_scalar, stack
from bnfold.frontends.torch.change.generated import Code, Made, install, written
from bnfold.frontends.torch.change.store import note_channels, put
from bnfold.frontends.torch.operators.spelling import is_plain_module
from bnfold.frontends.torch.view import TorchGraph, occurrences


@dataclass(frozen=True, eq=False)
class _Before:
    """A node as it was captured."""

    target: Any
    arguments: Any
    stack: list[str]


@dataclass(frozen=True, eq=False)
class _Region:
    """A module that gets generated code.

    Attributes:
        border: of its call.
        graph: of its forward.
        attributes: tensors and modules that the code reads, and that the module does not have yet.
    """

    border: Border
    graph: fx.Graph
    attributes: Mapping[str, Any]


class _OpenError(Exception):
    """A module reads or makes something that its call does not pass."""


class Projection:
    """What a graph was before it is folded, to tell what has to change in the module.

    Args:
        source: what is folded.
        view: by which it is.
        twin: makes a module like the one that was captured, whose code has not run.
    """

    def __init__(self, source: Source, view: TorchGraph, twin: Callable[[], nn.Module]) -> None:
        self._source = source
        self._view = view
        self._twin = twin
        self._module = twin()
        self._before = {node: _Before(node.target, (node.args, node.kwargs), stack(node)) for node in source.calls()}
        self._tensors = source.tensors()
        self._names = {node: name for node in source.graph.nodes if (name := source.name(node)) is not None}
        self._read = {name for node, name in self._names.items() if node.users}
        if source.graph.find_nodes(op="call_module"):
            self._read = set(self._tensors)

    def apply(self, make: Callable[[], nn.Module], capture: Callable[[nn.Module], Source]) -> nn.Module:
        """The module without what folded, by other code where that is needed.

        Args:
            make: what is changed and given back.
            capture: of a changed module, in the way of the first one.
        """
        regions = self._regions()
        if not self._holds(regions, capture):
            regions = {"": self._whole()}
            if not self._holds(regions, capture):
                kind = type(self._module).__name__
                raise UnsupportedModelError(
                    f"{kind} is another graph each time it is captured: pass an ExportedProgram"
                )
        return self._changed(make(), regions)

    def apply_kept(self, make: Callable[[], nn.Module], capture: Callable[[nn.Module], Source]) -> nn.Module | None:
        """The module without what folded, with the code that it had; None where that would do something else."""
        if list(self._differences()) or not self._holds({}, capture):
            return None
        return self._changed(make(), {})

    def _holds(self, regions: Mapping[str, _Region], capture: Callable[[nn.Module], Source]) -> bool:
        """Whether the changed module, captured again, is what was folded."""
        try:
            return is_same(self._source, capture(self._changed(self._twin(), regions)))
        except UnsupportedModelError:
            return False

    def _whole(self) -> _Region:
        try:
            return _Draft(self._source, self._borders[""], self._stand, self._place).region()
        except _OpenError as error:
            raise UnsupportedModelError(f"{type(self._module).__name__} cannot get other code: {error}") from error

    @cached_property
    def _borders(self) -> dict[str, Border]:
        """The borders of modules that are called once; the model is, by who uses it."""
        counts: dict[int, int] = {}
        for border in self._source.borders[:-1]:
            owner = id(self._module.get_submodule(border.path))
            counts[owner] = counts.get(owner, 0) + 1
        borders = {
            border.path: border
            for border in self._source.borders[:-1]
            if counts[id(self._module.get_submodule(border.path))] == 1
        }
        return {**borders, "": self._source.borders[-1]}

    # What differs

    def _regions(self) -> dict[str, _Region]:
        """The modules that need generated code, by their paths; none lies in another."""
        found: dict[str, _Region] = {}
        for places in self._differences():
            if not any(path in found for path in places):
                region = self._smallest(places)
                path = region.border.path
                found = {other: each for other, each in found.items() if path not in self._around(other)}
                found[path] = region
        return found

    def _smallest(self, places: list[str]) -> _Region:
        for path in reversed(places[1:]):
            if path in self._borders:
                try:
                    return _Draft(self._source, self._borders[path], self._stand, self._place).region()
                except _OpenError:
                    continue
        return self._whole()

    def _around(self, path: str) -> list[str]:
        """The modules in whose forward a module is called."""
        stacks = (before.stack for before in self._before.values() if path in before.stack)
        return next((found[: found.index(path)] for found in stacks), [""])

    def _differences(self) -> Iterator[list[str]]:
        """For each place where the code has to change, the modules that hold all of it, the model first."""
        gone = self._gone
        nodes: dict[fx.Node, list[str]] = {}
        for node, before in self._before.items():
            if node._erased:
                is_changed = before.stack[-1] not in gone
            else:
                is_changed = node.target != before.target or not self._reads_the_same(node, before)
            if is_changed and not is_check(node):
                nodes[node] = before.stack
        nodes.update((node, stack(node)) for node in self._source.calls() if node not in self._before)
        for node in self._source.graph.nodes:
            name = self._source.name(node)
            is_new = name is not None and self._source.tensors()[name] is not self._tensors.get(name)
            if name is not None and is_new and not self._has(self._place(name)):
                nodes.update((user, stack(user)) for user in node.users if user.op in CALLS)
        yield from _components(nodes, self._before)

    @cached_property
    def _gone(self) -> set[str]:
        """Paths of BatchNorm modules whose tensors nothing reads any more."""
        owners = {name.rpartition(".")[0] for name in self._source.tensors() if not name.endswith("_tracked")}
        paths = {name.rpartition(".")[0] for name in self._read if name.endswith(".running_mean")} - owners
        return {path for path in paths if _is_batchnorm(self._module, path)}

    def _has(self, name: str) -> bool:
        """Whether a module of the model has a place of that name for a tensor."""
        path, _, last = name.rpartition(".")
        try:
            owner = self._module.get_submodule(path)
        except AttributeError:
            return False
        return last in owner._parameters or isinstance(getattr(owner, last, None), torch.Tensor)

    def _place(self, name: str) -> str:
        """The name in the module for one in the graph."""
        return self._places.get(name, name)

    @cached_property
    def _places(self) -> dict[str, str]:
        """Where tensors are found by code that reads them through the only module whose forward reads them."""
        wishes = {name: place for node in self._source.graph.nodes for name, place in self._wish(node)}
        found = {name: place for name, place in wishes.items() if name in self._tensors}
        read = {self._source.name(node) for node in self._source.graph.nodes if node.users}
        taken = {found.get(name, name) for name in read if name is not None}
        fresh = {name: place for name, place in wishes.items() if name not in self._tensors}
        return found | {name: place for name, place in fresh.items() if place not in taken}

    def _wish(self, node: fx.Node) -> Iterator[tuple[str, str]]:
        name = self._source.name(node)
        paths = {stack(user)[-1] for user in node.users}
        if name is None or len(paths) != 1 or paths == {""}:
            return
        path = paths.pop()
        place = f"{path}.{name.rpartition('.')[2].partition('_folded')[0]}"
        is_sole = sum(before.stack[-1] == path for before in self._before.values()) == 1
        held = self._tensors.get(name)
        is_there = held is None or held is _tensor(self._module, place)
        if is_sole and is_there and is_plain_module(self._module.get_submodule(path)) and self._has(place):
            yield name, place

    @cached_property
    def _origins(self) -> dict[str, torch.Tensor | None]:
        """What the module held in the places that the graph reads, before anything is changed."""
        return {place: _tensor(self._module, place) for place in map(self._place, self._source.tensors())}

    def _stand(self, node: fx.Node) -> fx.Node:
        """The node that stands for the value that a node stood for."""
        while node in self._view.stands:
            node = self._view.stands[node]
        return node

    def _reads_the_same(self, node: fx.Node, before: _Before) -> bool:
        def old(each: fx.Node) -> Any:
            name = self._names.get(each)
            held = self._tensors.get(name) if name is not None else None
            return _Name(f"tensor {name if held is None else id(held)}" if name else str(id(self._stand(each))))

        def new(each: fx.Node) -> Any:
            name = self._source.name(each)
            if name is None:
                return _Name(str(id(self._stand(each))))
            held = self._tensors.get(name, self._origins[self._place(name)])
            return _Name(f"tensor {self._place(name) if held is None else id(held)}")

        was = repr(map_arg(before.arguments, old))
        now = repr(map_arg((node.args, node.kwargs), new))
        if was == now:
            return True
        owner = self._module.get_submodule(before.stack[-1])
        if not is_plain_module(owner) or getattr(owner, "bias", "none of it") is not None:
            return False
        bias = f"tensor {before.stack[-1]}.bias"
        return was in (now.replace(bias, "None"), now.replace(f", {bias}", ""))

    # What changes

    def _changed(self, module: nn.Module, regions: Mapping[str, _Region]) -> nn.Module:
        gone = self._gone
        now = self._source.tensors()
        for name, tensor in now.items():
            path, _, last = self._place(name).rpartition(".")
            if tensor is not self._tensors.get(name) and _submodule(module, path) is not None:
                owner = module.get_submodule(path)
                put(owner, last, tensor)
                note_channels(owner)
        for path, region in regions.items():
            owner = module.get_submodule(path)
            for name, held in region.attributes.items():
                _attach(owner, name, held)
            install(owner, _code(region, is_static=self._source.is_static))
        for path in gone:
            owner = module.get_submodule(path)
            replace_module(module, owner, nn.Identity().train(owner.training))
        for name in self._read - set(now) - {self._place(each) for each in now}:
            path, _, last = name.rpartition(".")
            reader = _submodule(module, path)
            if reader is not None and any(not each or f"{path}.".startswith(f"{each}.") for each in regions):
                for held in (reader._parameters, reader._buffers):
                    for unread in (last, "num_batches_tracked") if last == "running_mean" else (last,):
                        if unread in held:
                            held[unread] = None
        return module


class _Draft:
    """The code of one module, made of the nodes of a graph.

    Args:
        source: the graph.
        border: of the only call of the module.
        stand: the node that stands now for the value of one that was captured.
        place: the name in the module for that of a tensor in the graph.
    """

    def __init__(
        self,
        source: Source,
        border: Border,
        stand: Callable[[fx.Node], fx.Node],
        place: Callable[[str], str],
    ) -> None:
        self._source = source
        self._border = border
        self._stand = stand
        self._place = place
        self._graph = fx.Graph()
        self._copies: dict[fx.Node, fx.Node] = {}
        self._attributes: dict[str, Any] = {}
        self._inputs: list[tuple[fx.Node, fx.Node]] = []
        path = border.path
        self._inside = {node: None for node in source.calls() if not path or path in stack(node)}

    def region(self) -> _Region:
        """The module's code.

        Raises:
            _OpenError: it needs more than its call passes.
        """
        border = self._border
        if any(leaf is UNSEEN for leaf in (*border.leaves, *border.results)):
            raise _OpenError("a tensor enters or leaves it that the capture does not show")
        for leaf in border.leaves:
            if isinstance(leaf, fx.Node):
                self._enter(self._stand(leaf), leaf.name)
        for node in self._inside:
            if not is_check(node):
                self._copies[node] = self._copy(node)
        made = [self._read(self._stand(leaf)) for leaf in border.results if isinstance(leaf, fx.Node)]
        self._insist_on_closed()
        self._write_buffers()
        self._graph.output(tuple(made))
        self._graph.lint()
        return _Region(border, self._graph, self._attributes)

    def _enter(self, node: fx.Node, name: str) -> None:
        if node in self._inside:
            raise _OpenError("what enters it is made in it")
        placeholder = self._graph.placeholder(name)
        placeholder.meta = dict(node.meta)
        self._copies.setdefault(node, placeholder)
        self._inputs.append((node, placeholder))

    def _copy(self, node: fx.Node) -> fx.Node:
        if node in self._copies:
            return self._copies[node]
        made = self._graph.node_copy(node, self._read)
        if node.op == "call_module":
            made.target = self._module(str(node.target))
        return made

    def _module(self, target: str) -> str:
        path = self._border.path
        if target not in self._source.owners:
            name = target.replace(".", "_")
            self._attributes[name] = self._source.root.get_submodule(target)
            return name
        if path and not target.startswith(f"{path}."):
            raise _OpenError(f"it calls {target}")
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
        raise _OpenError(f"it reads {node.name}, which is made elsewhere")

    def _tensor(self, name: str) -> str:
        """Where the code finds a tensor."""
        path, place = self._border.path, self._place(name)
        is_below = not path or place.startswith(f"{path}.")
        if place in self._source.places:
            if not is_below:
                raise _OpenError(f"it reads {place}")
            return place.removeprefix(f"{path}.") if path else place
        owner = place.rpartition(".")[0]
        if is_below and owner in self._source.owners:
            return place.removeprefix(f"{path}.") if path else place
        attribute = place.replace(".", "_")
        self._attributes[attribute] = self._source.tensors()[name]
        return attribute

    def _size(self, node: fx.Node) -> fx.Node:
        """A size that was computed elsewhere, by what enters."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            for _, placeholder in self._inputs:
                entering = placeholder.meta.get("val")
                for axis, size in enumerate(entering.shape if isinstance(entering, torch.Tensor) else ()):
                    if isinstance(size, torch.SymInt) and size.node.expr == value.node.expr:
                        return self._graph.call_function(torch.ops.aten.sym_size.int, (placeholder, axis))
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
                    raise _OpenError(f"{user.name} reads {node.name}")

    def _write_buffers(self) -> None:
        names = {node.name: node for node in self._copies}
        for target, name in self._source.writes.items():
            if name in names and names[name] in self._inside:
                held = self._graph.get_attr(self._tensor(target))
                self._graph.call_function(torch.ops.aten.copy_.default, (held, self._copies[names[name]]))


class _Name(str):
    """What stands for a node, which is no literal text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _components(nodes: Mapping[fx.Node, list[str]], captured: Mapping[fx.Node, _Before]) -> Iterator[list[str]]:
    """What all nodes that are connected, before or now, have in common of their stacks."""
    links: dict[fx.Node, set[fx.Node]] = {node: set() for node in nodes}
    for node in nodes:
        read: list[fx.Node] = [] if node._erased else occurrences(node)
        if node in captured:
            map_arg(captured[node].arguments, read.append)
        for each in read:
            if each in nodes:
                links[node].add(each)
                links[each].add(node)
    seen: set[fx.Node] = set()
    for start in nodes:
        if start in seen:
            continue
        common, todo = list(nodes[start]), [start]
        seen.add(start)
        while todo:
            node = todo.pop()
            common = _shared(common, nodes[node])
            fresh = links[node] - seen
            seen |= fresh
            todo.extend(fresh)
        yield common


def _shared(one: list[str], two: list[str]) -> list[str]:
    count = next((index for index, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), None)
    return one[: min(len(one), len(two))] if count is None else one[:count]


def _tensor(module: nn.Module, name: str) -> torch.Tensor | None:
    path, _, last = name.rpartition(".")
    found = getattr(_submodule(module, path), last, None)
    return found if isinstance(found, torch.Tensor) else None


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _is_batchnorm(module: nn.Module, path: str) -> bool:
    found = _submodule(module, path)
    return isinstance(found, nn.modules.batchnorm._NormBase) and is_plain_module(found)


def _attach(owner: nn.Module, name: str, held: Any) -> None:
    if isinstance(held, nn.Module):
        owner.add_module(name, held)
    elif isinstance(held, nn.Parameter):
        owner.register_parameter(name, held)
    elif not isinstance(getattr(owner, name, None), torch.Tensor):
        owner.register_buffer(name, held, persistent=False)


def _code(region: _Region, *, is_static: bool) -> Code:
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
        _sizes(border) if is_static else {},
        tuple(Made(next(made)) if isinstance(leaf, fx.Node) else leaf for leaf in border.results),
        border.result,
    )


def _sizes(border: Border) -> dict[int, tuple[int | None, ...]]:
    found: dict[int, tuple[int | None, ...]] = {}
    for index, leaf in enumerate(border.leaves):
        value = leaf.meta.get("val") if isinstance(leaf, fx.Node) else None
        if isinstance(value, torch.Tensor):
            found[index] = tuple(size if isinstance(size, int) else None for size in value.shape)
    return found


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Let every module that has `old` as a submodule, under whatever name, have `new` instead."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
