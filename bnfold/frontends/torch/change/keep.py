"""The view of a module whose code stays: what only other code would fold is opaque, with the reason."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from bnfold.algebra.linear import Linear
from bnfold.frontends.torch.capture.source import stack
from bnfold.frontends.torch.change.store import Store
from bnfold.frontends.torch.operators import read_affine, read_linear
from bnfold.frontends.torch.operators.calls import Slot
from bnfold.frontends.torch.operators.spelling import is_parametrized, is_plain_module
from bnfold.frontends.torch.view import TorchGraph, hook_of
from bnfold.graph.ops import Average, ChannelAffine, Form, Op, Opaque
from bnfold.graph.outcome import Fold, Reason, Stop

TWICE = Stop(Reason.SECOND_USE, "it is called, or its parameters are read, more than once")


def _forward_code(detail: str) -> Stop:
    return Stop(Reason.FORWARD_CODE, detail)


class KeptGraph(TorchGraph):
    """A graph in which only parameters change, and BatchNorm modules go that are called once.

    Args:
        module: like the one that was captured, with its hooks.
        is_fixed: let nothing fold, since the forward code looks at what a fold changes.
    """

    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module | None,
        store: Store,
        values: Mapping[fx.Node, Any] | None,
        observed: Mapping[fx.Node, str],
        recast: Collection[fx.Node],
        module: nn.Module,
        *,
        is_fixed: bool,
    ) -> None:
        super().__init__(graph, root, store, values, observed, recast)
        self._module = module
        self._is_fixed = is_fixed
        self._homes = _homes(module)

    def op(self, node: fx.Node) -> Op:
        op = super().op(node)
        if isinstance(op, Average):
            return replace(op, window=None)
        if isinstance(op, Linear):
            op = replace(op, window=None)  # merging would change the forward code
            stop = self._stop_linear(node)
        elif isinstance(op, ChannelAffine):
            stop = self._stop_affine(node)
        else:
            return op
        if self._is_fixed:
            stop = stop or _forward_code("the forward code looks at the module or its parameters")
        return op if stop is None else Opaque(stop, isinstance(op, ChannelAffine) and op.is_batchnorm)

    def find_form(self, node: fx.Node, form: Form) -> Form | str:
        """None: an addition would be other code."""
        return "an addition would be other code"

    def find_changing(self, folds: Collection[Fold]) -> set[str]:
        """The names of nodes that need other code if they change; of what is called twice, if its calls differ."""
        changing: set[str] = set()
        shared: dict[Hashable, list[fx.Node]] = {}
        for node in self.nodes():
            op = super().op(node)
            if not isinstance(op, Linear | ChannelAffine):
                continue
            find_stop = self._stop_linear if isinstance(op, Linear) else self._stop_affine
            if find_stop(node, may_share=True) is not None:
                changing.add(self.name(node))
            elif find_stop(node) is TWICE:
                shared.setdefault(self.signature(node), []).append(node)
        signatures = {self.name(node): signature for signature, nodes in shared.items() for node in nodes}
        moves: dict[str, list[Hashable]] = {}
        for each in folds:
            for name in (each.batchnorm, *each.into):
                moves.setdefault(name, []).append(
                    (signatures.get(each.batchnorm), each.direction, name == each.batchnorm)
                )
        for signature, nodes in shared.items():
            names = [self.name(node) for node in nodes]
            are_all = signature is not None and len(nodes) == self._count_readings(nodes[0])
            if not are_all or any(moves.get(name) != moves.get(names[0]) for name in names):
                changing.update(names)
        return changing

    def _count_readings(self, node: fx.Node) -> int:
        """How often the parameters of a node are read."""
        call = self._calls[node]
        places = [self._home(call.get(name)) for name in read_affine.STATISTICS if call.get(name)]
        return max((self._reads(*place) for place in places if place is not None), default=0)

    def _home(self, handle: object) -> tuple[str, str] | None:
        """The path of the module that holds a tensor, and its name there; None for a computed one."""
        if isinstance(handle, Slot) or (isinstance(handle, fx.Node) and self._store.tensor(handle) is not None):
            place = self._store.place_of_source(handle)
            if place is not None:
                path, _, name = place.rpartition(".")
                return path, name
        return None

    def _stop_linear(self, node: fx.Node, *, may_share: bool = False) -> Stop | None:
        reader = self._reader(node)
        read = read_linear.read_linear(reader)
        assert read is not None
        weights = read[1]
        kernel = read_linear.operand(reader, weights.kernel)
        place = self._home(kernel)
        if place is None:
            if "parametrizations." in (self._store.place_of_source(kernel) or ""):
                return Stop(Reason.PARAMETRIZED, "its weight is computed from other parameters")
            return _forward_code("its weight is computed in the forward code")
        if (weights.kernel_factor, weights.bias_factor) != (1, 1):
            return _forward_code("its alpha and beta are set in the forward code")
        if (stop := self._stop_owner(*place, may_share=may_share)) is not None:
            return stop
        bias = reader.call.get(weights.bias) if weights.bias is not None else None
        if bias is None:
            if weights.bias == "bias" and self._is_called_plainly(node, place[0]):
                return None
            return _forward_code("it has no bias, and its forward code would have to add one")
        if (held := self._home(bias)) is None:
            return _forward_code("its bias is computed in the forward code")
        return self._stop_owner(*held, may_share=may_share)

    def _is_called_plainly(self, node: fx.Node, path: str) -> bool:
        """Whether the node is the forward of the torch.nn module at `path`."""
        owner = self._module.get_submodule(path)
        return is_plain_module(owner) and (node.op == "call_module" or stack(node)[-1] == path)

    def _stop_owner(self, path: str, name: str, *, may_share: bool) -> Stop | None:
        try:
            owner = self._module.get_submodule(path)
        except AttributeError:  # held by a plain attribute
            return _forward_code("its parameters belong to no submodule")
        if is_parametrized(owner):
            return Stop(Reason.PARAMETRIZED, "its weight is computed from other parameters")
        if (hook := hook_of(owner)) is not None and path:
            return Stop(Reason.HOOK, f"the hook {hook} is registered on {path}")
        tensor = owner._parameters.get(name, owner._buffers.get(name))
        if tensor is None:
            return _forward_code(f"its {name} is no parameter or buffer")
        if len(self._homes[id(tensor)]) > 1:
            return Stop(Reason.SECOND_USE, f"its {name} is tied: {', '.join(self._homes[id(tensor)])}")
        return TWICE if self._reads(path, name) > 1 and not may_share else None

    def _is_silenced(self, writer: fx.Node) -> bool:
        """Whether an activation that writes in place is a module of torch.nn that is called once: its flag says so."""
        path = str(writer.target) if writer.op == "call_module" else stack(writer)[-1]
        owner = self._module.get_submodule(path)
        paths = {name for name, each in self._module.named_modules(remove_duplicate=False) if each is owner}
        calls = [
            node for node in self._calls if (str(node.target) if node.op == "call_module" else stack(node)[-1]) in paths
        ]
        return is_plain_module(owner) and calls == [writer]

    def _reads(self, path: str, name: str) -> int:
        """How often a tensor of the module is read."""
        held = self._held.get(f"{path}.{name}".removeprefix("."))
        if held is None:
            held = self._store.tensor(Slot(path, name))
        return 0 if held is None else self._readings[id(held)]

    @cached_property
    def _held(self) -> dict[str | None, torch.Tensor | None]:
        """The tensors that nodes stand for, by their names."""
        nodes = [node for node in self.graph.nodes if node.op in ("placeholder", "get_attr")]
        return {self._store.place_of_source(node): self._store.tensor(node) for node in nodes}

    def _stop_affine(self, node: fx.Node, *, may_share: bool = False) -> Stop | None:
        for each in (node, *node.all_input_nodes):
            if each in self._observed:
                return Stop(Reason.HOOK, f"the hook {self._observed[each]} sees a value that would change")
        reader = self._reader(node)
        place = self._home(reader.call.get("running_mean")) if read_affine.is_batchnorm(reader) else None
        if place is None or (not place[0] and node.op != "call_module"):
            return _forward_code("it is in the forward code, not in a module of its own")
        given = [self._home(reader.call.get(name)) for name in read_affine.STATISTICS if reader.call.get(name)]
        if any(each is None or each[0] != place[0] for each in given):
            return _forward_code("its parameters belong to different modules")
        stops = (self._stop_owner(*each, may_share=may_share) for each in given if each)
        if (stop := next(filter(None, stops), None)) is not None:
            return stop
        if not place[0]:
            return _forward_code("it is the model itself")
        if any(node in affines and not self._is_silenced(writer) for writer, affines in self.writers.items()):
            return _forward_code("an activation behind it would write in place into what else is read")
        return None if self._is_called_plainly(node, place[0]) else _forward_code("it has a forward of its own")


def _homes(module: nn.Module) -> dict[int, list[str]]:
    """The qualified names of each parameter and buffer, by its identity; a module counts under its first name."""
    found: dict[int, list[str]] = {}
    for path, each in module.named_modules():
        for name, tensor in (*each._parameters.items(), *each._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append(f"{path}.{name}".removeprefix("."))
    return found
