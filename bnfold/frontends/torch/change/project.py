"""A folded graph, back on the module that it was captured from.

Where the code of a module still does what the graph says, it stays: parameters are replaced, and `nn.Identity` takes
the place of a BatchNorm. Where it does not, the smallest module around the place gets generated code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.torch.capture.borders import Border
from bnfold.frontends.torch.capture.decisions import Decision
from bnfold.frontends.torch.capture.source import CALLS, Source, is_check, is_scalar, stack
from bnfold.frontends.torch.change.draft import Draft, OpenError, Region, code_of, is_simple
from bnfold.frontends.torch.change.folded import FoldedBatchNorm
from bnfold.frontends.torch.change.generated import install
from bnfold.frontends.torch.change.store import note_channels, put
from bnfold.frontends.torch.operators.spelling import is_known_forward, is_parametrized, is_plain_module
from bnfold.frontends.torch.view import TorchGraph, occurrences


@dataclass(frozen=True, eq=False)
class _Before:
    """A node as it was captured."""

    target: Any
    arguments: Any
    stack: list[str]


@dataclass(frozen=True, eq=False)
class Attempt:
    """What the result may be.

    Attributes:
        module: the module without what folded.
        has_sizes: whether code that it got computes with sizes.
        undone: decisions by sizes in code that stays, which with other answers might undo a fold.
        keeps_code: whether the forward of the model stays, which knows other arguments than those of the example.
    """

    module: nn.Module
    has_sizes: bool
    undone: tuple[Decision, ...]
    keeps_code: bool


class Projection:
    """What a graph was before it is folded, to tell what has to change in the module.

    Args:
        source: what is folded.
        view: by which it is.
        module: like the one that was captured, whose code has not run.
        hooked: paths of modules whose hooks see what they are called with.
    """

    def __init__(self, source: Source, view: TorchGraph, module: nn.Module, hooked: Collection[str] = ()) -> None:
        self._source = source
        self._view = view
        self._module = module
        self._hooked = hooked
        self._closed: dict[str, bool] = {}
        self._before = {node: _Before(node.target, (node.args, node.kwargs), stack(node)) for node in source.calls()}
        self._tensors = source.tensors()
        self._names = {node: name for node in source.graph.nodes if (name := source.name(node)) is not None}
        self._read = {name for node, name in self._names.items() if node.users}
        if source.graph.find_nodes(op="call_module"):
            self._read = set(self._tensors)

    def attempts(self, make: Callable[[], nn.Module], *, keep_code: bool) -> Iterator[Attempt]:
        """The module without what folded: with the least other code, then with the code of the whole graph.

        Where forward itself has other code, further methods of the module may do what it does, or have to be refused.

        Forward code that looks at its modules or holds old parameters does something else in the first; so each attempt
        has to be captured again.

        Args:
            make: the module as it was; called for each attempt.
            keep_code: leave out what has other code.
        """
        if keep_code:
            if not self._differences():
                yield self._attempt(make(), {})
            return
        try:
            regions = self._regions()
            yield self._attempt(make(), regions)
            if undone := self._undone(regions):
                regions = self._regions(undone)
                yield self._attempt(make(), regions)
        except OpenError:
            pass
        else:
            if "" in regions and self._source.methods:
                yield self._attempt(make(), regions, lost=tuple(self._source.methods))
        yield self._attempt(make(), {"": self._whole()}, lost=tuple(self._source.methods))

    def _attempt(self, module: nn.Module, regions: Mapping[str, Region], lost: tuple[str, ...] = ()) -> Attempt:
        changed = self._changed(module, regions, lost)
        has_sizes = any(map(_has_sizes, regions.values()))
        return Attempt(changed, has_sizes, self._undone(regions), keeps_code="" not in regions)

    def _whole(self) -> Region:
        try:
            return self._draft("", None)
        except OpenError as error:
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

    def _regions(self, undone: Iterable[Decision] = ()) -> dict[str, Region]:
        """The modules that need generated code, by their paths: with that, those that decide by sizes do so no more."""
        deciding = [[list(decision.stack)] for decision in undone]
        chosen = [(self._smallest(_common(stacks)), stacks) for stacks in (*self._parts(), *deciding)]
        spoiled = {path for place, stacks in chosen for one in stacks for path in one[one.index(place) + 1 :]}
        return {place: self._draft(place, spoiled) for place, _ in chosen}

    def _parts(self) -> Iterator[list[list[str]]]:
        """What has to be changed together: all that is connected, unless each module in it can be changed alone."""
        for stacks in self._differences():
            is_apart = all(self._smallest(one) == one[-1] for one in stacks)
            yield from [[one] for one in stacks] if is_apart else [stacks]

    def _undone(self, regions: Mapping[str, Region]) -> tuple[Decision, ...]:
        """Decisions of code that stays, and that another answer might let do something else with what changed.

        Other code neither sees a changed value, nor calls a module that changed: it is as right at all sizes as these.
        """
        return tuple(
            decision
            for decision in self._source.decisions
            if not decision.is_inside
            and decision.stack[-1] in self._passing | self._holding
            and not any(region.holds(decision) for region in regions.values())
        )

    @cached_property
    def _passing(self) -> frozenset[str]:
        """Paths of the modules through whose code a changed value goes from the node that makes it to its readers."""
        changed = set(self._view.changed)
        for node in self._view.pulled & self._before.keys():
            map_arg(self._before[node].arguments, changed.add)
        found: set[str] = set()
        for before in self._before.values():
            read: set[fx.Node] = set()
            map_arg(before.arguments, read.add)
            for node in read & changed & self._before.keys():
                made, used = self._before[node].stack, before.stack
                shared = len(_common([made, used])) - 1
                found.update((*made[shared:], *used[shared:]))
        return frozenset(found)

    @cached_property
    def _holding(self) -> frozenset[str]:
        """Paths of the modules that changed, and of those around them, whose code may call them."""
        tensors = self._source.tensors().items()
        owners = {self._place(name).rpartition(".")[0] for name, held in tensors if held is not self._tensors.get(name)}
        changed = [_submodule(self._module, path) for path in owners | self._gone | self._silenced]
        found: set[str] = set()
        for path, each in self._module.named_modules(remove_duplicate=False):
            if path and any(each is one for one in changed):
                parts = path.split(".")
                found.update(".".join(parts[:count]) for count in range(len(parts) + 1))
        return frozenset(found)

    def _smallest(self, places: list[str]) -> str:
        """The smallest of some modules, of which each holds the next, whose call passes all that its code needs."""
        return next(filter(self._is_closed, reversed(places[1:])), "")

    def _is_closed(self, path: str) -> bool:
        if path not in self._closed:
            try:
                self._closed[path] = path in self._borders and bool(self._draft(path, None))
            except OpenError:
                self._closed[path] = False
        return self._closed[path]

    def _draft(self, path: str, spoiled: Collection[str] | None) -> Region:
        """The code of a module; it calls the modules in it, but for some, and none if that is None."""

        def called(inner: str) -> Border | None:
            if spoiled is None or inner in spoiled or not self._is_closed(inner):
                return None
            border = self._borders[inner]
            passed = [self._view.stand(leaf) for leaf in border.leaves if isinstance(leaf, fx.Node)]
            is_there = not any(node._erased for node in passed)  # a value may be passed, not read, and merged away
            return border if is_there and is_simple(border) else None

        return Draft(self._source, self._borders[path], self._view.stand, self._place, called, self._hooked).region()

    def _differences(self) -> list[list[list[str]]]:
        """For each place where the code has to change, the stacks of what differs there."""
        gone = self._gone
        nodes: dict[fx.Node, list[str]] = {}
        computed = {source for node in self._materialised for source in self._ancestors(node)}
        for node, before in self._before.items():
            if node in computed or node in self._materialised:
                is_changed = not (node._erased or node in self._materialised)
            elif node._erased:
                is_changed = before.stack[-1] not in gone
            elif node in self._view.released:
                is_changed = before.stack[-1] not in self._silenced or not self._reads_the_same(node, before)
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
        return _components(nodes, self._before)

    @cached_property
    def _silenced(self) -> set[str]:
        """Paths of activation modules of torch.nn of which no call writes in place any more."""
        found: set[str] = set()
        for path in {self._before[node].stack[-1] for node in self._view.released & self._before.keys()}:
            owner = _submodule(self._module, path)
            calls = [
                node for node, before in self._before.items() if _submodule(self._module, before.stack[-1]) is owner
            ]
            if owner is not None and is_plain_module(owner) and self._view.released.issuperset(calls):
                found.add(path)
        return found

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
        taken: dict[tuple[int, str], str] = {}
        for node in self._source.graph.nodes:
            held = self._source.name(node)
            if held is not None and node.users:
                taken.setdefault(self._spot(found.get(held, held)), held)
        for name, place in wishes.items():
            if name not in self._tensors and taken.setdefault(self._spot(place), name) == name:
                found[name] = place
        return found

    def _spot(self, place: str) -> tuple[int, str]:
        """What tells places apart, since a module may have several paths."""
        path, _, last = place.rpartition(".")
        owner = _submodule(self._module, path)
        return (0, place) if owner is None else (id(owner), last)

    def _wish(self, node: fx.Node) -> Iterator[tuple[str, str]]:
        name = self._source.name(node)
        paths = {stack(user)[-1] for user in node.users}
        if name is None or len(paths) != 1 or paths == {""}:
            return
        path = paths.pop()
        place = f"{path}.{name.rpartition('.')[2].partition('_folded')[0]}"
        weight = next((each for each in self._materialised if each.args[1] is node), None)
        if weight is not None:
            yield name, f"{path}.weight"
        is_sole = sum(before.stack[-1] == path for before in self._before.values()) == 1
        held = self._tensors.get(name)
        is_there = held is None or held is _tensor(self._module, place)
        if is_sole and is_there and is_plain_module(self._module.get_submodule(path)) and self._has(place):
            yield name, place

    @cached_property
    def _materialised(self) -> dict[fx.Node, str]:
        """Calls of modules whose weight was computed from other parameters, and is one itself now, by their paths."""
        found: dict[fx.Node, str] = {}
        for node, before in self._before.items():
            owner = _submodule(self._module, before.stack[-1])
            is_computed = owner is not None and is_parametrized(owner) and is_known_forward(owner)
            if is_computed and not node._erased and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
                name = self._source.name(node.args[1])
                if name is not None and name not in self._tensors:
                    found[node] = before.stack[-1]
        return found

    def _ancestors(self, node: fx.Node) -> set[fx.Node]:
        """What the weight of a node was computed from."""
        found: set[fx.Node] = set()
        todo: list[Any] = [self._before[node].arguments[0][1]]
        while todo:
            top = todo.pop()
            if isinstance(top, fx.Node) and top in self._before and top not in found:
                found.add(top)
                map_arg(self._before[top].arguments, todo.append)
        return found

    @cached_property
    def _origins(self) -> dict[str, torch.Tensor | None]:
        """What the module held in the places that the graph reads, before anything is changed."""
        return {place: _tensor(self._module, place) for place in map(self._place, self._source.tensors())}

    def _reads_the_same(self, node: fx.Node, before: _Before) -> bool:
        def old(each: fx.Node) -> Any:
            name = self._names.get(each)
            held = self._tensors.get(name) if name is not None else None
            return _Name(f"tensor {name if held is None else id(held)}" if name else str(id(self._view.stand(each))))

        def new(each: fx.Node) -> Any:
            name = self._source.name(each)
            if name is None:
                return _Name(str(id(self._view.stand(each))))
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

    def _changed(self, module: nn.Module, regions: Mapping[str, Region], lost: tuple[str, ...] = ()) -> nn.Module:
        gone = self._gone
        now = self._source.tensors()
        for path in self._materialised.values():
            materialise(module.get_submodule(path))  # the weight is put below
        for name, tensor in now.items():
            path, _, last = self._place(name).rpartition(".")
            if tensor is not self._tensors.get(name) and _submodule(module, path) is not None:
                owner = module.get_submodule(path)
                put(owner, last, tensor)
                note_channels(owner)
        placed = {self._spot(self._place(each)) for each in now if now[each] is not self._tensors.get(each)}
        unread = self._read - set(now) - {self._place(each) for each in now}
        unread = {name for name in unread if self._spot(name) not in placed}
        for path, region in regions.items():
            owner = module.get_submodule(path)
            for name, held in region.attributes.items():
                _attach(owner, name, held)
            code = code_of(region)
            below = f"{path}." if path else ""
            inside = (name for name in sorted(unread) if name.startswith(below) and name.rpartition(".")[0] not in gone)
            code = replace(code, gone=tuple(name.removeprefix(below) for name in inside))
            install(owner, code if path else replace(code, lost=lost))
        for path in self._silenced:
            vars(module.get_submodule(path))["inplace"] = False
        for path in gone:
            owner = module.get_submodule(path)
            replace_module(module, owner, FoldedBatchNorm().train(owner.training))
        for name in unread:
            path, _, last = name.rpartition(".")
            reader = _submodule(module, path)
            if reader is not None and any(not each or f"{path}.".startswith(f"{each}.") for each in regions):
                for held in (reader._parameters, reader._buffers):
                    for each in (last, "num_batches_tracked") if last == "running_mean" else (last,):
                        if each in held:
                            del held[each]
                            held[each] = None  # behind the others: torch.export counts the buffers of a model with it
        return module


def _has_sizes(region: Region) -> bool:
    return any(is_scalar(node) or "sym_size" in str(node.target) for node in region.graph.nodes)


class _Name(str):
    """What stands for a node, which is no literal text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _components(nodes: Mapping[fx.Node, list[str]], captured: Mapping[fx.Node, _Before]) -> list[list[list[str]]]:
    """The stacks of nodes, those together that are connected, before or now."""
    links: dict[fx.Node, set[fx.Node]] = {node: set() for node in nodes}
    for node in nodes:
        read: list[fx.Node] = [] if node._erased else occurrences(node)
        if node in captured:
            map_arg(captured[node].arguments, read.append)
        for each in read:
            if each in nodes:
                links[node].add(each)
                links[each].add(node)
    found: list[list[list[str]]] = []
    seen: set[fx.Node] = set()
    for start in nodes:
        todo = [] if start in seen else [start]
        seen.add(start)
        stacks: list[list[str]] = []
        while todo:
            node = todo.pop()
            stacks.append(nodes[node])
            fresh = links[node] - seen
            seen |= fresh
            todo.extend(fresh)
        if stacks:
            found.append(stacks)
    return found


def _common(stacks: list[list[str]]) -> list[str]:
    """What stacks begin with, all of them."""
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*stacks, strict=False))]


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


def materialise(module: nn.Module) -> None:
    """Let the weights of a module that are computed from other parameters be parameters.

    torch's own functions for this write into the class, or the tensors, that a copy shares with the original.
    """
    names: set[str] = set()
    if isinstance(parametrizations := module._modules.pop("parametrizations", None), nn.ModuleDict):
        names.update(parametrizations)
        module.__class__ = type(module).__bases__[0]
    for hooks in (module._forward_pre_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            function = getattr(hook, "hook", hook)
            if str(getattr(function, "__module__", "")).startswith("torch.nn.utils."):
                names.update(filter(None, (getattr(hook, each, None) for each in ("name", "_tensor_name"))))
                del hooks[key]
    for name in names:
        for held in (module._parameters, module._buffers):
            for part in ("orig", "mask", "g", "v", "u"):
                held.pop(f"{name}_{part}", None)
        vars(module).pop(name, None)
        module.register_parameter(name, None)


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Let every module that has `old` as a submodule, under whatever name, have `new` instead."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
