"""The graph of an `nn.Module`: a symbolic trace, else an export with example inputs."""

from __future__ import annotations

import inspect
import logging
import operator
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from bnfold.errors import UnsupportedModelError, one_line
from bnfold.frontends.torch.operators import shapes
from bnfold.frontends.torch.operators.spelling import (
    is_code_of_torch,
    is_known_forward,
    is_parametrized,
    is_plain_module,
    spell,
)
from bnfold.frontends.torch.view import VALUE_HOOKS, hook_of


class UntraceableError(UnsupportedModelError):
    """A forward that cannot be traced: its code was fed with proxies and raised something."""


LOOKS = {
    *(
        getattr(torch.Tensor, name).__get__
        for name in (
            *("device", "dtype", "grad_fn", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_mps", "is_nested"),
            *("is_quantized", "is_sparse", "is_xpu", "itemsize", "layout", "nbytes", "ndim"),
            *("requires_grad", "shape"),
        )
    ),
    *(
        getattr(torch.Tensor, name)
        for name in (
            *("__hash__", "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous"),
            *("is_floating_point", "ndimension", "nelement", "numel", "size", "stride"),
        )
    ),
    torch.is_complex,
    torch.is_floating_point,
    torch.is_tensor,
    torch.numel,
}
"""What tells nothing of the content of a tensor."""

LINEAR = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a module is called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, given: Any) -> Inputs | None:
        """From what a user passes: a tuple of arguments, a dict of keyword arguments, or the only argument."""
        if given is None:
            return None
        if isinstance(given, dict):
            return cls((), given)
        return cls(tuple(given) if isinstance(given, list | tuple) else (given,), {})


@dataclass(frozen=True, eq=False)
class Trace:
    """A symbolic trace.

    Attributes:
        graph: whose `call_module` nodes are torch.nn modules with their own forward.
        observed: nodes whose values a hook sees, with its name.
        recast: nodes that the code runs under an autocast of its own.
        values: an example value (a fake tensor) of each node, if there were example inputs.
    """

    graph: fx.Graph
    observed: Mapping[fx.Node, str]
    recast: frozenset[fx.Node]
    values: Mapping[fx.Node, Any] | None


class _TensorProxy(fx.Proxy):
    """A proxy that passes for a tensor: ``isinstance(x, torch.Tensor)`` then chooses the branch that a call takes."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return torch.Tensor

    def __getattr__(self, name: str) -> Any:
        return False if name in ("_is_param", "_is_buffer") else super().__getattr__(name)

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
    setattr(_TensorProxy, f"__{_name}__", _writing(getattr(operator, _name)))


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
            if any(id(each) in self._held for each in leaves) and not any(_is_proxy(each) for each in leaves):
                what = getattr(func, "__name__", str(func))
                self.refusal = f"it reads or changes the module's tensors outside of the trace, with {what}"
                raise RuntimeError(self.refusal)
        return func(*args, **kwargs)


def _is_proxy(value: Any) -> bool:
    return issubclass(type(value), fx.Proxy)


def _held(module: nn.Module) -> dict[int, torch.Tensor]:
    """The tensors of a module, wherever its attributes hold them, by their identity."""
    leaves = [leaf for each in module.modules() for leaf in _pytree.tree_leaves(dict(vars(each)))]
    return {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}


class _Tracer(fx.Tracer):
    """Stops at torch.nn modules that do what torch.nn says, and goes into every other one."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.observed: dict[fx.Node, str] = {}
        self.recast: set[fx.Node] = set()
        self._casting = _casting()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if _casting() != self._casting:
            self.recast.add(node)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _TensorProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_plain_module(m) or (is_parametrized(m) and is_known_forward(m)):
            return True
        if is_known_forward(m) or isinstance(m, CONTAINERS) or "forward" in vars(m):
            return False
        return is_code_of_torch(type(m).forward) and not _is_norm(m)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = super().call_module(m, forward, args, kwargs)
        if (hook := hook_of(m, VALUE_HOOKS)) is not None:
            for each in _pytree.tree_leaves((args, kwargs, made)):
                if issubclass(type(each), fx.Proxy):
                    self.observed[each.node] = f"{hook} on {self.path_of_module(m)}"
        return made


def _casting() -> list[tuple[bool, torch.dtype]]:
    """Whether autocast is on, and to which type, on each kind of device that has it."""
    return [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)


def trace(module: nn.Module, inputs: Inputs | None = None, *, is_outline: bool = False) -> Trace:
    """A symbolic trace of a module; without example values, where only its outline is asked for.

    With example inputs, optional arguments are what these give, or their defaults. Without, they may be anything:
    where the code does something else for them than for their defaults, the trace fails.

    Raises:
        UntraceableError: the module's code does not run on proxies.
        UnsupportedModelError: it does not take the example inputs.
    """
    if is_plain_module(module):
        return _trace_leaf()
    fixed = _fixed_arguments(module, inputs)
    tracer = _Tracer()
    graph = _quietly(tracer, module, fixed)
    if inputs is None and fixed:  # nothing may follow from a default: what is read is the trace without them
        tracer = _Tracer()
        try:
            free = _quietly(tracer, module, {})
        except UntraceableError:
            free = None
        if free is None or _outline(free) != _outline(graph):
            raise UntraceableError(f"its code depends on what {', '.join(fixed)} is")
        graph = free
    values = propagate(module, graph, inputs) if inputs is not None and not is_outline else None
    return Trace(graph, tracer.observed, frozenset(tracer.recast), values)


def _trace_leaf() -> Trace:
    graph = fx.Graph()
    graph.output(graph.call_module("", (graph.placeholder("input"),)))
    return Trace(graph, {}, frozenset(), None)


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


def _fixed_arguments(module: nn.Module, inputs: Inputs | None) -> dict[str, Any]:
    """The arguments that are no tensors: by example, else by default."""
    parameters = inspect.signature(module.forward).parameters
    defaults = {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}
    if inputs is None:
        return defaults
    bound = _bind(module, inputs).arguments
    given = {name: value for name, value in bound.items() if not isinstance(value, torch.Tensor)}
    return {**{name: value for name, value in defaults.items() if name not in bound}, **given}


def _bind(module: nn.Module, inputs: Inputs) -> inspect.BoundArguments:
    """Example inputs, by the names of the forward's parameters."""
    try:
        return inspect.signature(module.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise UnsupportedModelError(f"example_inputs do not fit {type(module).__name__}.forward: {error}") from error


def propagate(module: nn.Module, graph: fx.Graph, inputs: Inputs) -> Mapping[fx.Node, Any] | None:
    """Fake tensors for every node: with sizes that are symbols, so that nothing follows from one example alone.

    Where an operator does not run on symbols, or decides by one, the example tells ranks and types only.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    bound = _bind(module, inputs)
    bound.apply_defaults()
    names = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    if any(name.startswith("*") for name in names) or set(names) != set(bound.arguments):
        return None
    values = [bound.arguments[name] for name in names]
    environment = ShapeEnv(duck_shape=False, specialize_zero_one=False)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=environment)
    fakes: list[Any] = [mode.from_tensor(each) if isinstance(each, torch.Tensor) else each for each in values]
    symbols: dict[Any, tuple[int, int]] = {
        dim.node.expr: (index, axis)
        for index, each in enumerate(fakes)
        if isinstance(each, torch.Tensor)
        for axis, dim in enumerate(tuple[Any, ...](each.shape))
        if isinstance(dim, torch.SymInt)
    }
    seen = _record(module, graph, mode, fakes)
    if seen is not None:
        asked = {
            symbol for guard in environment.guards if guard.expr.has(sympy.Eq) for symbol in guard.expr.free_symbols
        }
        places = [place for symbol, place in symbols.items() if symbol in asked]
        if not any(_runs_with(module, graph, values, *place) for place in places):
            return seen
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    static = _record(module, graph, mode, [_fake(mode, each) for each in values])
    return None if static is None else shapes.sketched(static)


def _runs_with(module: nn.Module, graph: fx.Graph, values: list[Any], index: int, axis: int) -> bool:
    """Whether a graph runs with another size in one place.

    If so, it only decided by that size, and what is known of the example's way does not hold for all.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    size = values[index].shape[axis]
    for other in {2 * size, size + 1, 1} - {size}:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        fakes = [_fake(mode, each) for each in values]
        sizes = list(fakes[index].shape)
        sizes[axis] = other
        fakes[index] = fakes[index].new_empty(sizes)
        if _record(module, graph, mode, fakes) is not None:
            return True
    return False


def _record(module: nn.Module, graph: fx.Graph, mode: Any, fakes: list[Any]) -> dict[fx.Node, Any] | None:
    """What each node makes of fake inputs; None where it does not run."""
    recorder = _Recorder(module, graph)
    try:
        with mode, torch.no_grad(), _quiet():
            recorder.run(*fakes, enable_io_processing=False)
    except Exception:  # of the module's code, or of an operator
        return None
    return recorder.seen


def recompute(root: nn.Module, graph: fx.Graph, recorded: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    """The example values that graph inputs and parameters lead to; recorded ones may be older than the graph.

    Each operator runs again on fake tensors. A value that cannot be computed is left out, and what is computed from it.

    Args:
        root: holds the modules and tensors that the graph names.
        graph: the graph.
        recorded: the example value of each node that has one. That of a graph input is believed.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = detect_fake_mode([value for value in recorded.values() if isinstance(value, torch.Tensor)])
    mode = mode or FakeTensorMode()
    allows, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    environment = mode.shape_env
    unguarded = nullcontext() if environment is None else environment.suppress_guards()
    fresh = nullcontext() if environment is None else environment.ignore_fresh_unbacked_symbols()
    runner = _Recomputer(root, graph, mode, recorded)
    try:
        # without the dispatcher in Python, some operators take the example's sizes for all
        with enable_python_dispatcher(), mode, unguarded, fresh, torch.no_grad(), _quiet():
            for node in graph.nodes:
                if node.op != "output":
                    runner.visit(node)
    finally:
        mode.allow_non_fake_inputs = allows
    return dict(runner.env)


class _Recomputer(fx.Interpreter):
    """Runs those nodes of a graph whose inputs are known."""

    def __init__(self, root: nn.Module, graph: fx.Graph, mode: Any, recorded: Mapping[fx.Node, Any]) -> None:
        super().__init__(root, garbage_collect_values=False, graph=graph)
        self._mode = mode
        self._recorded = recorded

    def visit(self, node: fx.Node) -> None:
        """Note what a node makes, where that is known."""
        if node.op == "placeholder":
            if node in self._recorded:
                self.env[node] = self._fake(self._recorded[node])
            return
        if any(each not in self.env for each in node.all_input_nodes):
            return
        try:
            self.env[node] = self.run_node(node)
        except Exception:  # of an operator that does not run on fake tensors, or on what it is given now
            return

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        found = self.fetch_attr(target)
        return self._fake(found) if isinstance(found, torch.Tensor) else found

    def _fake(self, value: Any) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor

        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        return self._mode.from_tensor(value, static_shapes=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of operators that do not run on symbols, and of sizes that cannot vary."""
    loggers = [logging.getLogger(name) for name in ("torch._subclasses.fake_tensor", "torch._export", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fake(mode: Any, value: Any) -> Any:
    return mode.from_tensor(value, static_shapes=True) if isinstance(value, torch.Tensor) else value


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what each node makes."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        self.seen[n] = made
        return made


def export(module: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """An export of a module, with every size dynamic where its code allows that.

    Raises:
        UnsupportedModelError: it cannot be exported.
    """
    dynamic = _pytree.tree_map(_every_size, (inputs.args, dict(inputs.kwargs)))
    bound = _bind(module, Inputs(*dynamic))
    failure: Exception | None = None
    for sizes in (dict(bound.arguments), None):
        try:
            with _quiet():
                return torch.export.export(module, inputs.args, dict(inputs.kwargs), dynamic_shapes=sizes, strict=False)
        except Exception as error:  # an export runs the module's code, which may raise anything
            failure = error
    raise UnsupportedModelError(f"{type(module).__name__} cannot be exported: {line(failure)}") from failure


def _every_size(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return dict.fromkeys(range(value.dim()), torch.export.Dim.AUTO)
    return None


def line(error: Exception | None) -> str:
    """The type of an error, and what it says on one line."""
    return f"{type(error).__name__}: {one_line(str(error), 200)}"


def stack(node: fx.Node) -> list[str]:
    """The paths of the modules in whose forward a node was made, innermost last."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def portray(graph: fx.Graph, root: nn.Module) -> list[str]:
    """All that a trace says: what is called with what, literal arguments, and what is given back."""
    places = {
        node: f"constant {_content(getattr(root, str(node.target)))}"
        for node in graph.nodes
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant")
    }
    return _portray(graph, places, {})


def portray_program(program: torch.export.ExportedProgram, gone: Collection[str] = ()) -> list[str]:
    """All that an exported program says, but for BatchNorms at some paths, and for biases of linear modules."""
    graph = program.graph_module.graph
    places: dict[fx.Node, str] = {}
    for index, (node, spec) in enumerate(
        zip(graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True)
    ):
        held = program.constants.get(spec.target) if spec.target is not None else None
        is_constant = spec.kind is InputKind.CONSTANT_TENSOR and isinstance(held, torch.Tensor)
        places[node] = f"constant {_content(held)}" if is_constant else spec.target or f"input {index}"
    inputs = [node for node in places if places[node].startswith("input ")]
    places.update((node, f"input {index}") for index, node in enumerate(inputs))
    bypassed: dict[fx.Node, fx.Node | None] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        call = spell(node, None)
        if call.op == "batch_norm" and stack(node)[-1:] and stack(node)[-1] in gone:
            bypassed[node] = call.arguments["input"]
        elif isinstance(bias := call.get("bias"), fx.Node) and call.op in LINEAR:
            path = places.get(bias, "").removesuffix(".bias")
            if bias in places and stack(node)[-1:] == [path] and len(bias.users) == 1:
                bypassed[bias] = None
    return [*_portray(graph, places, bypassed), str(program.call_spec.out_spec)]


def _portray(graph: fx.Graph, places: Mapping[fx.Node, str], bypassed: Mapping[fx.Node, fx.Node | None]) -> list[str]:
    names: dict[fx.Node, str] = {}

    def name(node: fx.Node) -> Any:
        found: fx.Node | None = node
        while found is not None and found in bypassed:
            found = bypassed[found]
        return None if found is None else _Name(names[found])

    lines: list[str] = []
    for node in graph.nodes:
        if node in bypassed:
            continue
        if node.op in ("placeholder", "get_attr"):
            names[node] = places.get(node, str(node.target))
            continue
        names[node] = f"value {len(lines)}"
        args = list(fx.node.map_arg(node.args, name))
        while args and args[-1] is None and node.op != "output":
            args.pop()
        lines.append(f"{node.op} {node.target} {args!r} {fx.node.map_arg(node.kwargs, name)!r}")
    return lines


class _Name(str):
    """What stands for a node, which is no literal text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self}>"


def _content(tensor: Any) -> str:
    with torch.no_grad():
        held = tensor.detach().cpu().contiguous().reshape(-1)
        return f"{tuple(tensor.shape)} {tensor.dtype} {hash(held.view(torch.uint8).numpy().tobytes())}"


def insist_on_readable(module: nn.Module) -> None:
    """Refuse what cannot be read as it is, with the way out.

    Raises:
        UnsupportedModelError: training mode, lazy or meta parameters, or code that is no Python any more.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError("a ScriptModule cannot be traced: pass the module that it was scripted from")
    if hasattr(module, "_orig_mod"):
        raise UnsupportedModelError("the module is compiled: fuse first, then torch.compile (pass model._orig_mod)")
    for name, each in module.named_modules():
        where = f"{name or 'the model'} ({type(each).__name__})"
        if isinstance(each, torch.jit.ScriptModule) and _holds_batchnorm_buffers(each):
            raise UnsupportedModelError(f"{where} is a ScriptModule: pass the module that it was scripted from")
        if any(map(nn.parameter.is_lazy, (*each._parameters.values(), *each._buffers.values()))):
            raise UnsupportedModelError(f"{where} is not initialised: run the model once on an example")
        if _is_norm(each) and each.training and not isinstance(each, nn.modules.instancenorm._InstanceNorm):
            raise UnsupportedModelError(f"{where} is in training mode: call .eval() on the model first")
    for name, tensor in _tensors(module):
        if tensor.device.type == "meta":
            raise UnsupportedModelError(f"{name} is on the meta device and holds no values: load the weights first")
    hooks = [nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks, nn_module._global_backward_hooks]
    if any(hooks):
        raise UnsupportedModelError("a global module hook is registered, and would see other values: remove it first")


def borders_of_hooked(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """The values that enter and leave modules with hooks, in an exported graph, with the hook's name."""
    found: dict[fx.Node, str] = {}
    for path, each in module.named_modules():
        if path and (hook := hook_of(each, VALUE_HOOKS)) is not None:
            inside = {
                node
                for node in graph.nodes
                if path in [str(at) for at, _ in (node.meta.get("nn_module_stack") or {}).values()]
            }
            leaving = {node for node in inside if any(user not in inside for user in node.users)}
            entering = {source for node in inside for source in node.all_input_nodes if source not in inside}
            found.update(dict.fromkeys(leaving | entering, f"{hook} on {path}"))
    return found


def _holds_batchnorm_buffers(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "running_mean" for name, _ in module.named_buffers())


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
