"""A captured module, however it was captured: its graph, its tensors by name, and the calls of its submodules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import OutputKind
from torch.fx.node import map_arg

from bnfold.frontends.torch.capture.borders import Border
from bnfold.frontends.torch.capture.decisions import Decision
from bnfold.frontends.torch.capture.exporting import Export, stack
from bnfold.frontends.torch.capture.trace import Trace
from bnfold.frontends.torch.change.program import ProgramStore
from bnfold.frontends.torch.operators.spelling import is_plain_module

CALLS = ("call_function", "call_method", "call_module")


@dataclass(frozen=True, eq=False)
class Source:
    """What is folded in the place of a module.

    Attributes:
        graph: its nodes.
        root: holds what nodes of the graph name.
        borders: the calls of its submodules, and last its own.
        methods: what further methods of the module give back, by their names: outputs of the graph, behind its own.
        name: the qualified name of the tensor that a node stands for; None for another node.
        tensors: reads the tensors that the graph holds now, by their names.
        writes: buffers that get a new content at the end, with the nodes that make it.
        places: the names of the tensors that the module had.
        lifted: the names of those that it did not hold under a name, as what its code made, or a plain dict held.
        owners: the paths of its modules.
        is_static: whether it holds for the sizes of an example alone.
        decisions: what the code decided by sizes, where it does not.
    """

    graph: fx.Graph
    root: nn.Module
    borders: tuple[Border, ...]
    methods: Mapping[str, Border]
    name: Callable[[fx.Node], str | None]
    tensors: Callable[[], dict[str, torch.Tensor]]
    writes: Mapping[str, str]
    places: frozenset[str]
    lifted: frozenset[str]
    owners: frozenset[str]
    is_static: bool = False
    decisions: tuple[Decision, ...] = ()

    def calls(self) -> Iterator[fx.Node]:
        """The nodes that do something."""
        return (node for node in self.graph.nodes if node.op in CALLS)


def of_export(export: Export, store: ProgramStore, module: nn.Module) -> Source:
    """A program as what is folded; `module` is what was exported, `store` has its parameters."""
    program = export.program
    writes = {
        spec.target: spec.arg.name
        for spec in program.graph_signature.output_specs
        if spec.kind is OutputKind.BUFFER_MUTATION and spec.target is not None
    }
    root, owners = program.graph_module, _owners(module)
    captured = frozenset(store.tensors())
    places = frozenset(each for each in captured if isinstance(_get(module, each), torch.Tensor))
    return Source(
        graph=root.graph,
        root=root,
        borders=export.borders,
        methods=export.methods,
        name=store.place,
        tensors=store.tensors,
        writes=writes,
        places=places,
        lifted=captured - places,
        owners=owners,
        is_static=export.is_static,
        decisions=export.decisions,
    )


def of_trace(trace: Trace, root: fx.GraphModule, module: nn.Module) -> Source:
    """A trace as what is folded; `root` holds its graph, which is that of `module`."""

    def name(node: fx.Node) -> str | None:
        return (
            str(node.target)
            if node.op == "get_attr" and isinstance(_get(root, str(node.target)), torch.Tensor)
            else None
        )

    def tensors() -> dict[str, torch.Tensor]:
        held = {
            **dict(root.named_parameters(remove_duplicate=False)),
            **dict(root.named_buffers(remove_duplicate=False)),
        }
        plain = {str(node.target): _get(root, str(node.target)) for node in root.graph.nodes if name(node)}
        return {**plain, **held}

    captured = frozenset(tensors())
    lifted = frozenset(each for each in captured if each.startswith("_tensor_constant"))
    return Source(
        graph=root.graph,
        root=root,
        borders=trace.borders,
        methods=trace.methods,
        name=name,
        tensors=tensors,
        writes={},
        places=captured - lifted,
        lifted=lifted,
        owners=_owners(module),
    )


def _owners(module: nn.Module) -> frozenset[str]:
    return frozenset(path for path, _ in module.named_modules(remove_duplicate=False))


def _get(root: nn.Module, name: str) -> Any:
    found: Any = root
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def is_scalar(node: fx.Node) -> bool:
    """Whether a node computes with sizes alone."""
    value = node.meta.get("val")
    return node.op in CALLS and value is not None and not isinstance(value, torch.Tensor | list | tuple)


def is_check(node: fx.Node) -> bool:
    """Whether a node only insists on what an export saw."""
    return isinstance(node.target, torch._ops.OpOverload) and "_assert" in str(node.target)


def is_same(one: Source, two: Source, *, is_part: bool = False) -> bool:
    """Whether two graphs do the same with the same tensors, in the same order; in part, as far as the second goes.

    Where one of them is static, for the sizes of the example.
    """
    numbers: dict[Any, int] = {}
    is_example = one.is_static != two.is_static
    sides = [_portray(source, numbers, is_example=is_example) for source in (one, two)]
    if is_part:
        sides[0] = [mine[: len(its)] for mine, its in zip(*sides, strict=True)]
    return sides[0] == sides[1]


def _portray(source: Source, numbers: dict[Any, int], *, is_example: bool) -> list[list[Any]]:
    """What the nodes of a graph do, and what is given back."""
    seen: dict[fx.Node, Any] = {}
    lines: list[Any] = []
    tensors = source.tensors()
    returned: list[Any] = []
    sizes: dict[Any, tuple[Any, int]] = {}  # by their expressions, the first value that has each, and where
    inputs = 0
    for node in source.graph.nodes:
        name = source.name(node)
        if name is not None:
            key: Any = ("tensor", _identity(tensors[name])) if name in tensors else ("name", name)
        elif node.op == "placeholder":
            key, inputs = ("input", inputs), inputs + 1
        elif node.op == "output":
            returned = [_key(each, seen) for each in node.args[0]]
            continue
        elif node.op == "get_attr":
            key = ("attribute", _describe(_get(source.root, str(node.target))))
        elif is_check(node):
            continue
        elif is_example and (size := _size(node)) is not None:
            seen[node] = size
            continue
        elif _is_identity(node, source.root) or (is_example and _is_all_of_its_input(node)):
            seen[node] = seen[node.all_input_nodes[0]]
            continue
        elif (first := sizes.get(_expression(node))) is not None:
            key = ("size", first)  # which it is read from depends on what torch knows of it at the time
        else:
            what = _describe(_get(source.root, str(node.target))) if node.op == "call_module" else node.target
            args = node.args[:1] if node.target is torch._assert else node.args  # its message may name a proxy
            key = (node.op, what, _key(_trimmed(args), seen), _key(node.kwargs, seen))
        number = numbers.setdefault(key, len(numbers))
        seen[node] = _Name(f"<{number}>")
        for dim, size in enumerate(_shape(node)):
            if isinstance(size, torch.SymInt):
                sizes.setdefault(size.node.expr, (number, dim))
        if node.op in CALLS and not is_scalar(node) and node.target is not getattr:  # which is traced where it is read
            lines.append(number)
    return [lines, returned]


def _is_identity(node: fx.Node, root: nn.Module) -> bool:
    called = _get(root, str(node.target)) if node.op == "call_module" else None
    return isinstance(called, nn.Identity) and is_plain_module(called)


def _is_all_of_its_input(node: fx.Node) -> bool:
    """Whether a node gives back what it gets, for the sizes of the example: a static export leaves such a slice out."""
    if node.target is torch.ops.aten.slice.Tensor:
        sizes = _sizes(node)
        return sizes is not None and sizes == _sizes(node.all_input_nodes[0])
    return node.target is torch.ops.aten.alias.default


def _shape(node: fx.Node) -> Sequence[Any]:
    value = node.meta.get("val")
    return value.shape if isinstance(value, torch.Tensor) else ()


def _expression(node: fx.Node) -> Any:
    """What a size that is read from a tensor is in symbols; None for another node."""
    if node.target is not torch.ops.aten.sym_size.int:
        return None
    shape, dim = _shape(node.all_input_nodes[0]), node.args[1]
    size = shape[dim] if shape and isinstance(dim, int) else None
    return size.node.expr if isinstance(size, torch.SymInt) else None


def _sizes(node: fx.Node) -> list[int | float | None] | None:
    """The sizes of what a node makes of the example; None where they are not known."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    sizes = [_hint(size) for size in value.shape]
    return None if None in sizes else sizes


def _size(node: fx.Node) -> int | float | None:
    """What a node that computes with sizes makes of those of the example; None for another node, or one of data."""
    return _hint(node.meta.get("val")) if is_scalar(node) else None


def _hint(value: Any) -> int | float | None:
    if isinstance(value, torch.SymInt | torch.SymFloat):
        hint: int | float | None = value.node.hint if value.node.has_hint() else None
        return hint
    return value if isinstance(value, int | float) else None


def _trimmed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    while args and args[-1] is None:
        args = args[:-1]
    return args


def _key(value: Any, seen: Mapping[fx.Node, Any]) -> str:
    return repr(map_arg(value, seen.get))


class _Name(str):
    """What stands for a node, which is no literal text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _identity(tensor: torch.Tensor) -> Any:
    """What tells a tensor from others: its content, where it has one."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return id(tensor)
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tuple(tensor.shape), tensor.dtype, hashlib.sha256(content.data).digest()


def _describe(held: Any) -> Any:
    if isinstance(held, fx.GraphModule):
        return held.code
    if isinstance(held, nn.Module):
        return type(held), str(held), tuple(_identity(each) for each in (*held.parameters(), *held.buffers()))
    return repr(held)


__all__ = ["CALLS", "Source", "is_check", "is_same", "is_scalar", "of_export", "of_trace", "stack"]
