"""The view of an `nn.Module`: what its code does is read, but only its parameters and submodules can change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.errors import UnsupportedModelError
from bnfold.frontends.torch.capture import tracing
from bnfold.frontends.torch.change.store import ModuleStore, Store, put, put_all
from bnfold.frontends.torch.operators import read_affine, read_linear
from bnfold.frontends.torch.operators.calls import Slot
from bnfold.frontends.torch.operators.reader import Value
from bnfold.frontends.torch.operators.spelling import is_known_forward, is_parametrized, is_plain_module, spell
from bnfold.frontends.torch.tensors import like
from bnfold.frontends.torch.view import CALLS, TorchGraph, hook_of, occurrences
from bnfold.graph.ops import Average, ChannelAffine, Op, Opaque
from bnfold.graph.outcome import Reason, Stop

TWICE = Stop(Reason.SECOND_USE, "it is called, or its parameters are read, more than once")


def _forward_code(detail: str) -> Stop:
    return Stop(Reason.FORWARD_CODE, detail)


class OwnedGraph(TorchGraph):
    """A graph whose edits are made on the module that it was captured from.

    An operator can change where its parameters belong to a module that is called once; a BatchNorm can go where it is
    such a module, which `nn.Identity` then replaces, or inside a module of its own that holds no linear operator.

    Args:
        module: what is changed; its qualified names are those of the store.
        fixed: paths of BatchNorms that cannot be replaced, because the forward code looks at them.
        is_replaceable: whether a module with a forward of its own can be, or other code looks at it.
    """

    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module | None,
        store: Store,
        values: Mapping[fx.Node, Any] | None,
        observed: Mapping[fx.Node, str],
        recast: frozenset[fx.Node],
        module: nn.Module,
        fixed: frozenset[str],
        is_replaceable: Callable[[str], bool],
    ) -> None:
        super().__init__(graph, root, store, values, observed, recast)
        self._is_replaceable = is_replaceable
        self._module = module
        self._fixed = fixed
        assert self._readings is not None  # counted before anything changes
        self._homes = _homes(module)
        self._shells: dict[str, TorchGraph | None] = {}
        self._twins: dict[fx.Node, tuple[str, fx.Node]] = {}
        self._changed: set[str] = set()

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
        return op if stop is None else Opaque(stop, isinstance(op, ChannelAffine) and op.is_batchnorm)

    def _place(self, handle: object) -> tuple[str, str] | None:
        """The path of the module that holds a tensor, and its name there; None for a computed one."""
        if isinstance(handle, Slot) or (isinstance(handle, fx.Node) and self._store.tensor(handle) is not None):
            place = self._store.place_of_source(handle)
            if place is not None:
                path, _, name = place.rpartition(".")
                return path, name
        return None

    def _stop_linear(self, node: fx.Node) -> Stop | None:
        reader = self._reader(node)
        read = read_linear.read_linear(reader)
        assert read is not None
        weights = read[1]
        kernel = read_linear.operand(reader, weights.kernel)
        place = self._place(kernel)
        if place is not None and place[0] in self._fixed:
            return _forward_code("the forward code reaches its parameters in another way, too")
        if place is None:
            if "parametrizations." in (self._store.place_of_source(kernel) or ""):
                return Stop(Reason.PARAMETRIZED, "its weight is computed from other parameters")
            return _forward_code("its weight is computed in the forward code")
        if (weights.kernel_factor, weights.bias_factor) != (1, 1):
            return _forward_code("its alpha and beta are set in the forward code")
        if (stop := self._stop_owner(place[0], [place[1]])) is not None:
            return stop
        bias = reader.call.get(weights.bias) if weights.bias is not None else None
        if bias is None:
            if weights.bias == "bias" and self._is_called_plainly(node, place[0]):
                return None
            return _forward_code("it has no bias, and its forward code would have to add one")
        held = self._place(bias)
        if held is None:
            return _forward_code("its bias is computed in the forward code")
        return self._stop_owner(held[0], [held[1]])

    def _is_called_plainly(self, node: fx.Node, path: str) -> bool:
        """Whether the node is the forward of the torch.nn module at `path`."""
        if not is_plain_module(self._module.get_submodule(path)):
            return False
        return node.op == "call_module" or self._stack(node)[-1:] == [path]

    def _stack(self, node: fx.Node) -> list[str]:
        """The paths of the modules in whose forward the node was made, innermost last."""
        return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]

    def _stop_owner(self, path: str, names: list[str]) -> Stop | None:
        try:
            owner = self._module.get_submodule(path)
        except AttributeError:  # held by a plain attribute
            return _forward_code("its parameters belong to no submodule")
        if is_parametrized(owner):
            return Stop(Reason.PARAMETRIZED, "its weight is computed from other parameters")
        if (hook := hook_of(owner)) is not None and path:
            return Stop(Reason.HOOK, f"the hook {hook} is registered on {path}")
        for name in names:
            tensor = owner._parameters.get(name, owner._buffers.get(name))
            if tensor is None:
                return _forward_code(f"its {name} is no parameter or buffer")
            if len(self._homes[id(tensor)]) > 1:
                return Stop(Reason.SECOND_USE, f"its {name} is tied: {', '.join(self._homes[id(tensor)])}")
            if self._readings[id(tensor)] > 1:
                return TWICE
        return None

    def _stop_affine(self, node: fx.Node) -> Stop | None:
        reader = self._reader(node)
        for each in (node, *node.all_input_nodes):
            if each in self._observed:
                return Stop(Reason.HOOK, f"the hook {self._observed[each]} sees a value that would change")
        if not read_affine.is_batchnorm(reader):
            return self._stop_inner(node, self._stack(node)[-1:])
        place = self._place(reader.call.get("running_mean"))
        if place is None or (not place[0] and node.op != "call_module"):
            return _forward_code("it is in the forward code, not in a module of its own")
        path = place[0]
        given = [self._place(reader.call.get(name)) for name in read_affine.STATISTICS if reader.call.get(name)]
        if any(each is None or each[0] != path for each in given):
            return _forward_code("its parameters belong to different modules")
        if (stop := self._stop_owner(path, [each[1] for each in given if each])) is not None:
            return stop
        if not path:
            return _forward_code("it is the model itself")
        if self._is_called_plainly(node, path):
            return _forward_code("the forward code looks at the module") if path in self._fixed else None
        if reader.call.get("weight") is None or reader.call.get("bias") is None:
            return _forward_code("it has a forward of its own, and no parameters that could change")
        return self._stop_inner(node, [path])

    def _stop_inner(self, node: fx.Node, paths: list[str]) -> Stop | None:
        """Whether a node inside a module's own forward can go: the module then becomes a graph of that forward."""
        path = paths[0] if paths else ""
        detail = "it is in the forward code, not in a module of its own"
        if not path or self._stack(node)[-1:] != [path]:
            return _forward_code(detail)
        if path in self._fixed:
            return _forward_code("the forward code looks at the module")
        owner = self._module.get_submodule(path)
        tensors = [id(each) for each in (*owner.parameters(recurse=False), *owner.buffers(recurse=False))]
        read = [self._readings[each] for each in tensors if self._readings[each]]
        if not read or max(read) > 1 or any(len(self._homes[each]) > 1 for each in tensors):
            return _forward_code(detail)
        if (hook := hook_of(owner)) is not None:
            return Stop(Reason.HOOK, f"the hook {hook} is registered on {path}")
        if self._twin(node, path) is None:
            return _forward_code(detail)
        return None if self._is_replaceable(path) else _forward_code("other code looks at the module")

    def _twin(self, node: fx.Node, path: str) -> fx.Node | None:
        """The node that does the same in the graph of the module at `path` alone."""
        if node not in self._twins:
            shell = self._shell(path)
            if shell is None:
                return None
            mine = [each for each in self.graph.nodes if each.op in CALLS and path in self._stack(each)]
            theirs = [each for each in shell.graph.nodes if each.op in CALLS]
            if not self._corresponds(mine, theirs, shell):
                return None
            self._twins.update((one, (path, two)) for one, two in zip(mine, theirs, strict=True))
        return self._twins[node][1] if node in self._twins else None

    def _corresponds(self, mine: list[fx.Node], theirs: list[fx.Node], shell: TorchGraph) -> bool:
        """Whether two lists of calls do the same with the same tensors, however they are spelled."""
        if [self._calls[each].op for each in mine] != [shell.call(each).op for each in theirs]:
            return False
        twins, entries = dict(zip(mine, theirs, strict=True)), dict[fx.Node, fx.Node]()
        for one, two in twins.items():
            reads, others = occurrences(one), occurrences(two)
            if len(reads) != len(others) or _numbers(one) != _numbers(two):
                return False
            for read, other in zip(reads, others, strict=True):
                if other.op == "placeholder":
                    same = entries.setdefault(other, read) is read
                elif other.op in CALLS:
                    same = twins.get(read) is other
                else:
                    held = self._store.tensor(read)
                    same = held is not None and held is shell.held(other)
                if not same:
                    return False
        return True

    def _shell(self, path: str) -> TorchGraph | None:
        """The module at `path` as a graph of its own forward, where that is traced and holds no linear operator."""
        if path not in self._shells:
            self._shells[path] = None
            owner = self._module.get_submodule(path)
            try:
                traced = tracing.trace(owner)
            except tracing.UntraceableError:
                return None
            calls = [spell(node, owner) for node in traced.graph.nodes if node.op in CALLS]
            if not any(call.operator.linear for call in calls):
                shell = fx.GraphModule(owner, traced.graph, type(owner).__name__)
                self._shells[path] = TorchGraph(shell.graph, shell, ModuleStore(shell, shell.graph))
        return self._shells[path]

    def write(self, node: fx.Node, absorbed: Linear | Affine) -> None:
        reader = self._reader(node)
        if isinstance(absorbed, Affine):
            place = self._place(reader.call.get("running_mean"))
            assert place is not None
            put_all(self._module.get_submodule(place[0]), self._batchnorm_arrays(node, absorbed))
            return
        stored, kernel, bias = self._linear_arrays(node, absorbed)
        place = self._place(read_linear.operand(reader, stored.weights.kernel))
        assert place is not None
        owner = self._module.get_submodule(place[0])
        put(owner, place[1], like(kernel, getattr(owner, place[1])))
        if bias is None or stored.weights.bias is None:
            return
        handle = reader.call.get(stored.weights.bias)
        if handle is None:
            put_all(owner, {"bias": bias})
            return
        held = self._place(handle)
        assert held is not None
        home = self._module.get_submodule(held[0])
        old = getattr(home, held[1])
        put(home, held[1], like(bias.reshape(old.shape), old))

    def bypass(self, node: fx.Node, *, keep_output_name: bool, index: int = 0) -> None:
        if node in self._twins:
            path, twin = self._twins[node]
            shell = self._shells[path]
            assert shell is not None
            shell.settle_data(twin, self.data_places(node))
            shell.bypass(twin, keep_output_name=False)
            self._changed.add(path)
            return
        place = self._place(self._reader(node).call.get("running_mean"))
        assert place is not None
        owner = self._module.get_submodule(place[0])
        replace_module(self._module, owner, nn.Identity().train(owner.training))

    def join(self, host: fx.Node, source: fx.Node, root: fx.Node) -> None:
        raise AssertionError("nothing merges where the forward code stays")

    def remove(self, node: fx.Node) -> None:
        raise AssertionError("nothing merges where the forward code stays")

    def renew(self, value: Value) -> None:
        """Modules have no names for values."""

    def finish(self) -> None:
        """Put the graphs of changed forwards in the place of the modules that they were traced from."""
        for path in sorted(self._changed):
            shell = self._shells[path]
            assert shell is not None
            assert isinstance(shell.root, fx.GraphModule)
            shell.graph.lint()
            shell.root.recompile()
            owner = self._module.get_submodule(path)
            shell.root.training = owner.training
            replace_module(self._module, owner, shell.root)


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Let every module that has `old` as a submodule, under whatever name, have `new` instead."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _homes(module: nn.Module) -> dict[int, list[str]]:
    """The qualified names of each parameter and buffer, by its identity; a module counts under its first name."""
    found: dict[int, list[str]] = {}
    for path, each in module.named_modules():
        for name, tensor in (*each._parameters.items(), *each._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append(f"{path}.{name}".removeprefix("."))
    return found


class _StandIn(nn.Module):
    """The forward of a module, with its tensors and submodules, and nothing else of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.run = module.forward
        held = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
        vars(self).update({name: vars(module)[name] for name in held})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class Replaceable:
    """Which modules with a forward of their own another module can replace, since nothing but their calls is used.

    Args:
        module: the model; it is as it was after each question.
        survives: whether a capture, now, shows the same as the first one, except for the BatchNorms at given paths.
    """

    def __init__(self, module: nn.Module, survives: Callable[[list[str]], bool]) -> None:
        self._module = module
        self._survives = survives
        self._known: dict[str, bool] = {}

    def __call__(self, path: str) -> bool:
        if not self._known:  # most often all of them, which one capture tells
            owners = {each for each in self._module.modules() if not is_known_forward(each) and not _is_empty(each)}
            paths = [found for found, each in self._module.named_modules() if found and each in owners]
            self._known = dict.fromkeys(paths, True) if self._stand(paths) else {"": False}
        if path not in self._known:
            self._known[path] = self._stand([path])
        return self._known[path]

    def _stand(self, paths: list[str]) -> bool:
        swapped = {id(owner): _StandIn(owner) for owner in map(self._module.get_submodule, paths)}
        places = [
            (parent, name, child)
            for parent in [*self._module.modules()]
            for name, child in parent._modules.items()
            if id(child) in swapped
        ]
        try:
            for parent, name, child in places:
                parent._modules[name] = swapped[id(child)]
            return self._survives([])
        except UnsupportedModelError:  # the trace or the export, without the module's attributes
            return False
        finally:
            for parent, name, child in places:
                parent._modules[name] = child


def _is_empty(module: nn.Module) -> bool:
    return not module._parameters and not module._buffers


def fixed_batchnorms(
    module: nn.Module, called: Collection[str], survives: Callable[[list[str]], bool]
) -> frozenset[str]:
    """Paths of BatchNorm modules whose absence changes what the forward code does, because it looks at them.

    Where fresh parameters alone change it, since the code also reaches the old ones in another way, that is every path.

    Args:
        module: the model; it is as it was afterwards.
        called: paths of modules whose forward runs.
        survives: whether a capture, now, shows the same as the first one, except for the BatchNorms at given paths.
    """
    paths = [
        path
        for path, each in module.named_modules()
        if path and is_plain_module(each) and isinstance(each, nn.modules.batchnorm._NormBase)
    ]

    def stands(chosen: list[str]) -> bool:
        try:
            with _replaced(module, chosen, called):
                return survives(chosen)
        except UnsupportedModelError:  # the trace or the export, with a module taken out
            return False

    if stands(paths):
        return frozenset()
    everything = frozenset(path for path, _ in module.named_modules(remove_duplicate=False))
    if not stands([]):
        return everything
    free = [path for path in paths if stands([path])]
    return frozenset(paths) - frozenset(free) if stands(free) else everything


@contextmanager
def _replaced(module: nn.Module, paths: list[str], called: Collection[str]) -> Iterator[None]:
    """A module as a fold leaves it, for a while.

    It has `nn.Identity` for some BatchNorms, a bias wherever one could be added, and fresh parameters and buffers.
    """
    swapped = [(module.get_submodule(path), nn.Identity()) for path in paths]
    held = [
        (each, name, tensor)
        for each in module.modules()
        for name, tensor in (*each._parameters.items(), *each._buffers.items())
        if tensor is not None
    ]
    fresh = {id(tensor): _afresh(tensor) for _, _, tensor in held}
    biased: list[nn.Module] = []
    try:
        for old, new in swapped:
            replace_module(module, old, new.train(old.training))
        for each, name, tensor in held:
            setattr(each, name, fresh[id(tensor)])
        for path, each in module.named_modules():
            if path in called and is_plain_module(each) and "bias" in each._parameters and each.bias is None:
                size = getattr(each, "out_channels", getattr(each, "out_features", None))
                if isinstance(size, int) and isinstance(each.weight, torch.Tensor):
                    each.bias = nn.Parameter(each.weight.new_zeros(size))
                    biased.append(each)
        yield
    finally:
        for each in biased:
            each.register_parameter("bias", None)
        for each, name, tensor in held:
            setattr(each, name, tensor)
        for old, new in swapped:
            replace_module(module, new, old)


def _afresh(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor object with the same memory."""
    other = tensor.detach()
    return nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other


def _numbers(node: fx.Node) -> list[int | float]:
    """The numbers among the arguments of a node."""
    leaves = _pytree.tree_leaves((node.args, node.kwargs))
    return [each for each in leaves if isinstance(each, int | float)]
