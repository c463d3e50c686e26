"""A symbolic trace of a module, for lack of example inputs."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.torch.capture.borders import Border, bound
from bnfold.frontends.torch.capture.exporting import line
from bnfold.frontends.torch.capture.methods import LOOKS
from bnfold.frontends.torch.capture.structure import Together, flatten
from bnfold.frontends.torch.operators.spelling import (
    is_code_of_torch,
    is_known_forward,
    is_parametrized,
    is_plain_module,
)


class UntraceableError(UnsupportedModelError):
    """A forward that cannot be traced: its code was fed with proxies and raised something."""


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, eq=False)
class Trace:
    """A symbolic trace.

    Attributes:
        graph: whose `call_module` nodes are torch.nn modules with their own forward.
        borders: of all calls of other modules; the last is that of the module itself.
        methods: what further methods of the module give back, by their names.
        recast: nodes that the code runs under an autocast of its own.
    """

    graph: fx.Graph
    borders: tuple[Border, ...]
    methods: Mapping[str, Border]
    recast: frozenset[fx.Node]


class _Proxy(fx.Proxy):
    """A proxy on which writing is recorded as what it is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(torch.Tensor, name):  # .data, .grad, ...: no graph can show it
            raise AttributeError(f"it assigns the attribute {name} of a tensor")
        super().__setattr__(name, value)


def _writing(function: Any) -> Any:
    """``x += y``, recorded as what it is: fx itself would record ``x + y``, which does not write into x."""

    def write(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _writing(getattr(operator, _name)))


class _Watch(TorchFunctionMode):
    """Refuses what is computed at once from a module's tensors, or written into them, while its code is traced.

    Such tensors are not proxies where the code reaches them past the module's attributes, as by ``parameters()``; the
    trace would hold the result as a constant.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = _held(module)
        self.refusal: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in LOOKS:
            leaves = _pytree.tree_leaves((args, kwargs))
            if any(id(each) in self._held for each in leaves) and not any(
                isinstance(each, fx.Proxy) for each in leaves
            ):
                what = getattr(func, "__name__", str(func))
                self.refusal = f"it reads or changes the module's tensors outside of the trace, with {what}"
                raise RuntimeError(self.refusal)
        return func(*args, **kwargs)


def _held(module: nn.Module) -> dict[int, torch.Tensor]:
    """The tensors of a module, wherever its attributes hold them, by their identity."""
    leaves = [leaf for each in module.modules() for leaf in _pytree.tree_leaves(dict(vars(each)))]
    return {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}


class _Tracer(fx.Tracer):
    """Stops at torch.nn modules that do what torch.nn says, and goes into every other one."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.borders: list[Border] = []
        self.recast: set[fx.Node] = set()
        self._casting = _casting()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if _casting() != self._casting:
            self.recast.add(node)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, torch.jit.ScriptModule):
            return True
        if is_plain_module(m) or (is_parametrized(m) and is_known_forward(m)):
            return True
        if is_known_forward(m) or isinstance(m, CONTAINERS) or "forward" in vars(m):
            return False
        return is_code_of_torch(type(m).forward) and not _is_norm(m)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = super().call_module(m, forward, args, kwargs)
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            arguments, structure = flatten(bound(m, args, kwargs))
            results, result = flatten(made)
            signature = inspect.signature(m.forward)
            self.borders.append(Border(path, signature, _nodes(arguments), structure, _nodes(results), result))
        return made


def _nodes(leaves: list[Any]) -> list[Any]:
    return [leaf.node if isinstance(leaf, fx.Proxy) else leaf for leaf in leaves]


def _casting() -> list[tuple[bool, torch.dtype]]:
    """Whether autocast is on, and to which type, on each kind of device that has it."""
    return [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


def trace(module: nn.Module) -> Trace:
    """A symbolic trace of a module, whose optional arguments may be anything.

    Raises:
        UntraceableError: the module's code does not run on proxies, or does something else for other arguments than for
            the defaults.
    """
    if is_plain_module(module):
        return _trace_leaf(module)
    _let_class_know(module)
    fixed = _defaults(module)
    found = _trace(module, fixed)
    if fixed:  # nothing may follow from a default: what is read is the trace without them
        try:
            free = _trace(module, {})
        except UntraceableError:
            free = None
        if free is None or _outline(free.graph) != _outline(found.graph):
            raise UntraceableError(f"its code depends on what {', '.join(fixed)} is")
        found = free
    return found


def _let_class_know(module: nn.Module) -> None:
    """Let a forward that is set on the instance be one of its class, which is what fx reads.

    Raises:
        UntraceableError: it is no method of the module.
    """
    own = vars(module).get("forward")
    if own is None:
        return
    if not isinstance(own, MethodType) or own.__self__ is not module:
        raise UntraceableError("its forward is set on the instance, and is no method")
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"forward": own.__func__, "__module__": kind.__module__})


def _trace(module: nn.Module, fixed: Mapping[str, Any]) -> Trace:
    tracer = _Tracer()
    graph = _quietly(tracer, module, fixed)
    leaves: list[Any] = [node for node in graph.nodes if node.op == "placeholder"]
    end = next(iter(reversed(graph.nodes)))
    made, methods = _apart(end)
    names = {str(node.target): node for node in leaves}
    signature = inspect.signature(module.forward)
    arguments = {name: names.get(name, names.get(f"*{name}", names.get(f"**{name}"))) for name in signature.parameters}
    leaves, structure = list(arguments.values()), flatten(arguments)[1]

    def border(name: str, made: Any) -> Border:
        return Border(name, signature, leaves, structure, *flatten(made))

    noted = {name: border(name, each) for name, each in methods.items()}
    return Trace(graph, (*tracer.borders, border("", made)), noted, frozenset(tracer.recast))


def _apart(end: fx.Node) -> tuple[Any, Mapping[str, Any]]:
    """What the forward gives back, and what further methods do; a tuple of these is what the graph gives back then."""
    made: Any = end.args[0]
    together = made if isinstance(made, fx.Node) and made.target is Together else None  # which fx notes as a call
    methods: Any = {}
    if together is not None or isinstance(made, Together):
        made, methods = made if together is None else together.args
    end.args = ((made, *methods.values()),)
    if together is not None:
        end.graph.erase_node(together)
    return made, methods


def _trace_leaf(module: nn.Module) -> Trace:
    graph = fx.Graph()
    node = graph.placeholder("input")
    made = graph.call_module("", (node,))
    graph.output((made,))
    signature = inspect.signature(module.forward)
    border = Border("", signature, [node], flatten({"input": node})[1], [made], flatten(made)[1])
    return Trace(graph, (border,), {}, frozenset())


def _quietly(tracer: fx.Tracer, module: nn.Module, fixed: Mapping[str, Any]) -> fx.Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watch = _Watch(module)
        try:
            with _restored(module), watch:
                graph = tracer.trace(module, dict(fixed))
        except UntraceableError:
            raise
        except Exception as error:  # a forward is any Python, and what it does with a proxy may raise anything
            raise UntraceableError(watch.refusal or line(error)) from error
        if watch.refusal is not None:  # the code caught it
            raise UntraceableError(watch.refusal)
        return graph


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Gives the modules back the parameters and buffers that they had.

    Raises:
        UntraceableError: the code inside put others in their place.
    """
    held = [(path, each, dict(each._parameters), dict(each._buffers)) for path, each in module.named_modules()]
    changed: list[str] = []
    try:
        yield
    finally:
        for path, each, *before in held:
            for now, old in zip((each._parameters, each._buffers), before, strict=True):
                names = [name for name in {**now, **old} if now.get(name) is not old.get(name) or name not in old]
                changed.extend(f"{path}.{name}".removeprefix(".") for name in names)
                if names:
                    now.clear()
                    now.update(old)
    if changed:
        raise UntraceableError(f"it assigns {', '.join(sorted(changed))}")


def _outline(graph: fx.Graph) -> list[tuple[str, str]]:
    return [
        (node.op, str(node.target))
        for node in graph.nodes
        if node.op not in ("placeholder", "output") and "_assert_is_none" not in str(node.target)
    ]


def _defaults(module: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(module.forward).parameters
    return {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)
