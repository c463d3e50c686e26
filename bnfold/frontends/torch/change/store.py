"""Where a graph keeps its parameters, and how it is changed: modules and attributes, or lifted inputs."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import fx, nn

from bnfold.frontends.torch.operators.calls import Slot
from bnfold.frontends.torch.operators.spelling import is_plain_module, spell
from bnfold.frontends.torch.operators.table import FUNCTIONS, METHODS
from bnfold.frontends.torch.tensors import AnyArray, like


class Store(Protocol):
    """The parameters of one graph."""

    def tensor(self, handle: object) -> torch.Tensor | None:
        """The tensor of a node or of a place in a module; None where there is none, or where it changes."""
        ...

    def place_of_source(self, handle: object) -> str | None:
        """The qualified name of the (first) stored tensor that a node stands for or is computed from."""
        ...

    def exclude(self, nodes: Collection[fx.Node]) -> None:
        """Take note that what these nodes hold changes."""
        ...

    def nested_batchnorms(self, graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
        """BatchNorms in graphs below, with the path of nodes that leads there."""
        ...

    def write(self, nodes: Sequence[fx.Node], arrays: dict[str, AnyArray], old: dict[str, Any], pattern: Any) -> None:
        """Give arguments of nodes that read the same fresh tensors, made like those they had, or like `pattern`."""
        ...

    def insert_add(self, node: fx.Node, bias: AnyArray, pattern: Any, wish: str | None = None) -> fx.Node:
        """Put an addition of a constant behind a node; the sum, which is returned, takes over its name.

        The constant gets a name like `wish`, or is the bias of the module that holds `pattern`.
        """
        ...

    def drop_factors(self, node: fx.Node) -> None:
        """Remove alpha and beta, which went into the parameters."""
        ...

    def erase(self, node: fx.Node, parameters: list[fx.Node]) -> None:
        """Take out a node that nothing reads, with those of its parameters that it alone read."""
        ...

    def rename(self, node: fx.Node, wish: str) -> None:
        """Give a node a fresh name like `wish`."""
        ...


def set_argument(node: fx.Node, name: str, value: fx.Node) -> None:
    """Replace an argument by its name in the call's description, however it is spelled."""
    if name.startswith("operands."):
        index = int(name.rpartition(".")[2])
        if isinstance(node.args[1], list | tuple):
            listed = list(node.args[1])
            listed[index] = value
            node.update_arg(1, listed)
        else:
            node.update_arg(1 + index, value)
        return
    for key in (name, *(("self",) if name == "input" else ())):
        if key in node.kwargs:
            node.update_kwarg(key, value)
            return
    position = positions(node).index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    elif position == len(node.args):
        node.args = (*node.args, value)
    else:
        node.update_kwarg(name, value)


def positions(node: fx.Node) -> list[str]:
    """The names of a call's positional parameters."""
    if isinstance(node.target, torch._ops.OpOverload):
        return ["input" if each.name == "self" else each.name for each in node.target._schema.arguments]
    entry = METHODS[str(node.target)] if node.op == "call_method" else FUNCTIONS[node.target]
    return entry[1].split()


def take_name(node: fx.Node, name: str) -> None:
    """Give a node the name of one that was erased."""
    node.graph._graph_namespace._used_names.discard(name)
    node._rename(name)


def erase_node(node: fx.Node) -> None:
    """Erase a node that nothing reads, with what picks outputs from it."""
    for user in list(node.users):
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def insert_add_node(node: fx.Node, constant: fx.Node) -> fx.Node:
    """A node that adds a constant to what `node` makes; it takes over the name."""
    graph, name = node.graph, node.name
    made = node.args[0] if node.target is operator.getitem else node
    is_aten = isinstance(made, fx.Node) and isinstance(made.target, torch._ops.OpOverload)
    target = torch.ops.aten.add.Tensor if is_aten else torch.add
    with graph.inserting_after(max(node, constant, key=_position(graph))):
        total = graph.call_function(target, (node, constant))
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total, propagate_meta=False)
    total.meta = dict(node.meta)
    node._rename(f"{name}_product")
    take_name(total, name)
    return total


def _position(graph: fx.Graph) -> Any:
    order = {node: index for index, node in enumerate(graph.nodes)}
    return order.__getitem__


def release(nodes: list[fx.Node], drop: Any) -> None:
    """Erase constants that nothing reads any more, and what they were computed from; `drop` gets the stored ones."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.users or node._erased:
            continue
        sources = node.all_input_nodes
        if node.op in ("get_attr", "placeholder"):
            drop(node)
        else:
            node.graph.erase_node(node)
        stack.extend(sources)


def nested(graph: fx.Graph, root: nn.Module, scope: str = "main") -> Iterator[tuple[fx.Node, str]]:
    """BatchNorms in the graphs that `get_attr` and `call_module` nodes name, with the path that leads there."""
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        module: Any = root
        for name in str(node.target).split("."):
            module = getattr(module, name, None)
        if isinstance(module, fx.GraphModule):
            inside = f"{scope}/{node.target}"
            for inner in module.graph.nodes:
                is_call = inner.op in ("call_function", "call_method", "call_module")
                if is_call and spell(inner, module).operator.is_batchnorm:
                    yield inner, inside
            yield from nested(module.graph, module, inside)


class ModuleStore:
    """Parameters in the modules of a `GraphModule`."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self._root = root
        self._graph = graph
        self._given = {*vars(root), *root._parameters, *root._buffers, *root._modules}
        self._changing: dict[int, torch.Tensor] = {}  # by memory; held so that nothing else gets it

    def _owner(self, handle: object) -> tuple[nn.Module, str] | None:
        if isinstance(handle, Slot):
            return self._root.get_submodule(handle.path), handle.attribute
        if isinstance(handle, fx.Node) and handle.op == "get_attr":
            path, _, name = str(handle.target).rpartition(".")
            try:
                return self._root.get_submodule(path), name
            except AttributeError:
                return None
        return None

    def tensor(self, handle: object) -> torch.Tensor | None:
        owner = self._owner(handle)
        attribute = getattr(*owner, None) if owner is not None else None
        return attribute if isinstance(attribute, torch.Tensor) and _memory(attribute) not in self._changing else None

    def place_of_source(self, handle: object) -> str | None:
        if isinstance(handle, Slot):
            return f"{handle.path}.{handle.attribute}"
        stack = [handle] if isinstance(handle, fx.Node) else []
        while stack:
            node = stack.pop()
            if node.op == "get_attr":
                return str(node.target)
            stack.extend(reversed(node.all_input_nodes))
        return None

    def exclude(self, nodes: Collection[fx.Node]) -> None:
        for node in nodes:
            tensor = self.tensor(node)
            if tensor is not None:
                self._changing[_memory(tensor)] = tensor

    def nested_batchnorms(self, graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
        return nested(graph, self._root)

    def write(self, nodes: Sequence[fx.Node], arrays: dict[str, AnyArray], old: dict[str, Any], pattern: Any) -> None:
        if nodes[0].op == "call_module":
            self._write_module(nodes, arrays)
            return
        unread: list[fx.Node] = []
        for name, array in arrays.items():
            handle = old[name]
            held = self.tensor(handle)
            if held is not None and held.shape == array.shape and self._count_readings(handle) == len(nodes):
                owner = self._owner(handle)
                assert owner is not None
                put(*owner, like(array, held))
                continue
            wish = self.place_of_source(handle) or self._wish(pattern, name)
            fresh = self._attribute(nodes[0], like(array, self._like(handle, pattern)), wish)
            set_argument(nodes[0], name, fresh)
            for node in nodes[1:]:
                with self._graph.inserting_before(node):
                    set_argument(node, name, self._graph.get_attr(str(fresh.target)))
            if isinstance(handle, fx.Node):
                unread.append(handle)
        release(unread, self._drop)

    def _wish(self, pattern: Any, name: str) -> str:
        path = (self.place_of_source(pattern) or "").rpartition(".")[0]
        last = "bias" if name == "input" else name
        return f"{path}.{last}" if path else last

    def _like(self, handle: Any, pattern: Any) -> torch.Tensor:
        held = self.tensor(handle)
        if held is None:
            held = self.tensor(pattern)
        if held is not None:
            return held
        place = self.place_of_source(pattern)
        assert place is not None
        path, _, name = place.rpartition(".")
        found = getattr(self._root.get_submodule(path), name)
        assert isinstance(found, torch.Tensor)
        return found

    def _attribute(self, node: fx.Node, tensor: torch.Tensor, wish: str) -> fx.Node:
        """A fresh attribute of the root, read by a node in front of `node`. No name means another one than before."""
        base = wish.replace(".", "_")
        name, count = base, 1
        while name in self._given or hasattr(self._root, name):
            count += 1
            name = f"{base}_folded" if count == 2 else f"{base}_folded_{count}"
        put(self._root, name, tensor)
        with self._graph.inserting_before(node):
            return self._graph.get_attr(name)

    def _count_readings(self, handle: Any) -> int:
        owner = self._owner(handle)
        assert owner is not None
        readings = 0
        for node in self._graph.nodes:
            if node.op == "get_attr":
                place = self._owner(node)
                same = place is not None and place[0] is owner[0] and place[1] == owner[1]
                readings += len(node.users) if same else 0
            elif node.op == "call_module":
                readings += any(each is owner[0] for each in self._root.get_submodule(str(node.target)).modules())
        return readings

    def _write_module(self, nodes: Sequence[fx.Node], arrays: dict[str, AnyArray]) -> None:
        target = str(nodes[0].target)
        module = self._root.get_submodule(target)
        callers = [
            each
            for each in self._graph.nodes
            if each not in nodes
            and (
                (each.op == "call_module" and self._contains(str(each.target), module))
                or (each.op == "get_attr" and (self._owner(each) or (None,))[0] is module)
            )
        ]
        if callers:
            module = clone(module)
            path = f"{target}_folded"
            count = 1
            while _has(self._root, path):
                count += 1
                path = f"{target}_folded_{count}"
            self._root.add_submodule(path, module)  # type: ignore[operator]
            for node in nodes:
                node.target = path
        put_all(module, arrays)

    def _contains(self, path: str, module: nn.Module) -> bool:
        return any(each is module for each in self._root.get_submodule(path).modules())

    def insert_add(self, node: fx.Node, bias: AnyArray, pattern: Any, wish: str | None = None) -> fx.Node:
        held = nn.Parameter(like(bias, self._like(None, pattern)))
        return insert_add_node(node, self._attribute(node, held, wish or self._wish(pattern, "bias")))

    def drop_factors(self, node: fx.Node) -> None:
        drop_factors(node)

    def erase(self, node: fx.Node, parameters: list[fx.Node]) -> None:
        path = str(node.target) if node.op == "call_module" else None
        erase_node(node)
        release(parameters, self._drop)
        if path is not None and not self._is_read(path):
            self._root.delete_submodule(path)  # type: ignore[operator]

    def _is_read(self, path: str) -> bool:
        """Whether a node still names the module, or something in it."""
        return any(
            node.op in ("call_module", "get_attr") and (str(node.target) + ".").startswith(path + ".")
            for node in self._graph.nodes
        )

    def _drop(self, node: fx.Node) -> None:
        owner = self._owner(node)
        self._graph.erase_node(node)
        if owner is None or any(self._owner(each) == owner for each in self._graph.nodes if each.op == "get_attr"):
            return
        called = (str(each.target) for each in self._graph.nodes if each.op == "call_module")
        if not any(self._contains(path, owner[0]) for path in called):
            delattr(*owner)

    def rename(self, node: fx.Node, wish: str) -> None:
        node._rename(wish)


def _memory(tensor: torch.Tensor) -> int:
    """A key that tensors share if they share memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return id(tensor)


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def clone(module: nn.Module) -> nn.Module:
    """A module with the same tensors, whose parameters can be replaced without changing the original's."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        vars(twin)[name] = dict(vars(module)[name])
    return twin


def put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Let an attribute of a module be another tensor, of the same kind as before."""
    if name not in module._parameters and name not in module._buffers and isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    elif name not in module._parameters and name not in module._buffers and name not in vars(module):
        module.register_buffer(name, tensor)
    else:
        setattr(module, name, tensor)


CHANNELS = {"in_channels": 1, "in_features": 1, "out_channels": 0, "out_features": 0}
"""Attributes of linear modules that repeat a size of their weight, and its axis."""


def put_all(module: nn.Module, arrays: dict[str, AnyArray]) -> None:
    """Give a torch.nn module fresh parameters; one that it did not have is made like its weight or running mean."""
    for name, array in arrays.items():
        old = getattr(module, name)
        if old is None:
            pattern = module.weight if isinstance(module.weight, torch.Tensor) else module.running_mean
            assert isinstance(pattern, torch.Tensor)
            fresh = like(array, pattern)
            requires_grad = bool(getattr(module.weight, "requires_grad", False))
            setattr(module, name, nn.Parameter(fresh.detach(), requires_grad))
        else:
            setattr(module, name, like(array, old))
    note_channels(module)


def note_channels(module: nn.Module) -> None:
    """Let the sizes that a torch.nn module tells be those of its weight; and a BatchNorm tell that it has one."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        module.affine = module.weight is not None
    weight = module._parameters.get("weight")
    if is_plain_module(module) and weight is not None and not isinstance(module, nn.modules.conv._ConvTransposeNd):
        for name, axis in CHANNELS.items():
            if hasattr(module, name):
                groups = int(getattr(module, "groups", 1)) if name == "in_channels" else 1
                setattr(module, name, weight.shape[axis] * groups)


def drop_factors(node: fx.Node) -> None:
    """Remove alpha and beta from a call."""
    if any(name in node.kwargs for name in ("alpha", "beta")) and "mm" in str(node.target):
        node.kwargs = {name: value for name, value in node.kwargs.items() if name not in ("alpha", "beta")}
