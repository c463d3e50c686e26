"""That two graphs do the same, whatever their names are: the same calls in the same order, with the same tensors.

So a module is proved: what was captured of it became a folded graph, which `check_program` relates to the original; and
what is captured of the module that is given back has to be that graph. How the module was changed is nobody's concern.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx.node import map_arg

from bnfold.proof.failure import ProofError
from bnfold.proof.torch.calls import kind_of
from bnfold.proof.torch.memory import find_tangled
from bnfold.proof.torch.sides import Model, Side, content, has_same_content
from bnfold.proof.torch.wiring import is_same_module


def find_difference(one: Model, other: Model, *, is_part: bool = False) -> ProofError | None:
    """Where two models first do something else, if they do; the first one's names are told.

    Args:
        one: what the other has to be.
        other: the other.
        is_part: whether it may end earlier, and give back only the first outputs.
    """
    try:
        models = Side(one), Side(other)
    except ProofError as failure:
        return failure
    known = _Known(models[0].tensors.keys() & models[1].tensors.keys())
    sides = [_Portrait(side, known) for side in models]
    for mine, its in zip(sides[0].steps, sides[1].steps, strict=False):
        if mine[1] != its[1]:
            return ProofError("wiring", mine[0].name, f"the model that is given back has {_text(its[0])} in its place")
    steps, others = sides[0].steps, sides[1].steps
    returned = sides[0].returned
    if is_part:
        steps, returned = steps[: len(others)], returned[: len(sides[1].returned)]
    if len(steps) != len(others):
        longer, which = (steps, "lacks") if len(steps) > len(others) else (others, "has")
        return ProofError(
            "wiring", "", f"the model that is given back {which} {_text(longer[min(len(steps), len(others))][0])}"
        )
    if returned != sides[1].returned or sides[0].written != sides[1].written:
        return ProofError(
            "wiring", "", "the model that is given back returns, or writes into its buffers, other values"
        )
    return None


def _text(node: fx.Node) -> str:
    return f"{node.name!r} = {node.format_node()}"


START = 1 << 16
"""Bytes that mostly tell a tensor from others."""


class _Known:
    """Numbers for all that nodes of both graphs do, and for what they hold: equal things have one number."""

    def __init__(self, common: Collection[str]) -> None:
        self.common = common  # names of tensors
        self.numbers: dict[Any, int] = {}
        self._tensors: dict[int, tuple[torch.Tensor, Any]] = {}
        self._alike: dict[Any, list[torch.Tensor]] = {}
        self._modules: dict[Any, list[nn.Module]] = {}

    def number(self, key: Any) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def tensor(self, tensor: torch.Tensor) -> Any:
        """What is equal for tensors of the same bytes."""
        if id(tensor) not in self._tensors:
            start = hashlib.sha256(content(tensor)[:START]).digest()  # all of it would take longer than to compare
            kind = tensor.dtype, tuple(tensor.shape), start
            alike = self._alike.setdefault(kind, [])
            index = next((at for at, each in enumerate(alike) if has_same_content(each, tensor)), len(alike))
            if index == len(alike):
                alike.append(tensor)
            self._tensors[id(tensor)] = tensor, (kind, index)
        return self._tensors[id(tensor)][1]

    def module(self, module: nn.Module) -> Any:
        """What is equal for modules that are the same all the way down."""
        kind = fx.GraphModule if isinstance(module, fx.GraphModule) else type(module)
        held = tuple(self.tensor(each) for each in (*module.parameters(), *module.buffers()))
        alike = self._modules.setdefault((kind, held), [])
        for index, each in enumerate(alike):
            if is_same_module(each, module):
                return kind, held, index
        alike.append(module)
        return kind, held, len(alike) - 1


class _Portrait:
    """What a graph does.

    Attributes:
        steps: the nodes that do something, with what each does.
        returned: what is given back.
        written: what becomes of what the model holds.
    """

    def __init__(self, side: Side, known: _Known) -> None:
        side.tangled = find_tangled(side)
        self._side, self._known = side, known
        self._seen: dict[fx.Node, int] = {}
        self._counts: dict[Any, int] = {}
        self._inputs = 0
        self._sizes: dict[Any, tuple[int, int]] = {}  # by the expression
        self.steps: list[tuple[fx.Node, int]] = []
        for node in side.graph.nodes:
            self._visit(node)
        self.returned = [self._text(each) for node in side.graph.nodes if node.op == "output" for each in node.args[0]]
        self.written = self._written()

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output" or _is_check(node):
            return
        if self._is_identity(node):
            self._seen[node] = self._seen[node.all_input_nodes[0]]
            return
        key = self._size(node) or self._key(node)
        if (
            node in self._side.calls and node not in self._side.sizes and node.target is not getattr
        ):  # each by itself, since it may write or draw random numbers
            self._counts[key] = self._counts.get(key, 0) + 1
            key = key, self._counts[key]
            self.steps.append((node, self._known.number(key)))
        self._seen[node] = self._known.number(key)
        self._note_sizes(node)

    def _size(self, node: fx.Node) -> Any:
        """What tells a size from others: the first value that has it, and where. It may be read from any that has it.

        Torch noted the sizes of values when it captured a graph, and reads one from another value the next time.
        """
        if node.target is not torch.ops.aten.sym_size.int:
            return None
        (source,), dim = node.all_input_nodes, node.args[1]
        value = source.meta.get("val")
        size = value.shape[dim] if isinstance(value, torch.Tensor) and isinstance(dim, int) else None
        first = self._sizes.get(size.node.expr) if isinstance(size, torch.SymInt) else None
        return None if first is None else ("size", first)

    def _note_sizes(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        for dim, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                self._sizes.setdefault(size.node.expr, (self._seen[node], dim))

    def _key(self, node: fx.Node) -> Any:
        place = self._side.place(node)
        if place is not None:
            held = self._known.tensor(self._side.tensors[place])
            is_changing = self._side.held(node) is None  # then not only the content counts, but which one it is
            return "tensor", held, is_changing and (place if place in self._known.common else True)
        if node.op == "placeholder":
            spec = self._side.specs.get(node.name)
            self._inputs += 1
            return "input", self._inputs, spec and (str(spec.kind), spec.target)
        if node.op == "get_attr":
            return "attribute", self._held(str(node.target))
        what = self._held(str(node.target)) if node.op == "call_module" else node.target
        return node.op, what, self._arguments(node)

    def _held(self, path: str) -> Any:
        found: Any = self._side.root
        for name in path.split("."):
            found = getattr(found, name)
        return self._known.module(found) if isinstance(found, nn.Module) else repr(found)

    def _arguments(self, node: fx.Node) -> str:
        args = node.args
        if isinstance(node.target, torch._ops.OpOverload):  # a trailing default may be written or not
            schema = node.target._schema.arguments
            while args and args[-1] is None and schema[len(args) - 1].default_value is None:
                args = args[:-1]
        if node.target is torch._assert:
            args = args[:1]  # its message may name a proxy
        return self._text((args, node.kwargs))

    def _text(self, value: Any) -> str:
        return repr(map_arg(value, lambda node: _Name(f"<{self._seen.get(node)}>")))

    def _is_identity(self, node: fx.Node) -> bool:
        if node.op != "call_module" or len(node.all_input_nodes) != 1:
            return False
        is_identity = kind_of(self._side.root.get_submodule(str(node.target))) is nn.Identity
        return is_identity and not self._side.calls[node].writes

    def _written(self) -> list[tuple[str, str | None]]:
        if not isinstance(self._side.model, ExportedProgram):
            return []
        specs = self._side.model.graph_signature.output_specs
        return [(str(each.kind), each.target) for each in specs if each.kind is not OutputKind.USER_OUTPUT]


def _is_check(node: fx.Node) -> bool:
    """Whether it only insists on what an export saw."""
    return isinstance(node.target, torch._ops.OpOverload) and "_assert" in str(node.target)


class _Name(str):
    """What stands for a node, which is no literal text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
