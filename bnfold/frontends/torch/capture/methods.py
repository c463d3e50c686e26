"""Further methods of a module, whose results are outputs of the graph beside those of its forward.

`forward_features` and its kind give back what forward only passes on: a fold across it would change that. A method that
forward calls gives back what it gave back there. Another one is called after forward, and where it does what forward
did, on the same tensors, it gets what forward got: so there is one graph, and nothing in it twice.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.torch.capture.copies import snapshot
from bnfold.frontends.torch.capture.structure import Together

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


def methods_of(module: nn.Module, preserve: Sequence[str] | None) -> tuple[str, ...]:
    """The methods to keep beside forward: those named, or the public ones whose names begin with ``forward_``.

    Raises:
        UnsupportedModelError: there is no such method.
    """
    kind = type(module)
    for name in preserve or ():
        if not callable(getattr(module, name, None)):
            raise UnsupportedModelError(f"{kind.__name__} has no method {name!r} to preserve")
    if not hasattr(module.forward, "__func__"):
        return ()
    if preserve is not None:
        return tuple(name for name in dict.fromkeys(preserve) if name != "forward")
    return tuple(
        name
        for name in dir(kind)
        if name.startswith("forward_") and isinstance(inspect.getattr_static(kind, name), FunctionType)
    )


class Joint:
    """Lets the forward of a module, while it is captured, give back what other methods do on the same inputs.

    Args:
        module: whose attributes are changed.
        names: of the methods.
        is_replayed: whether to call those that forward does not call; its calls are noted then.

    Attributes:
        inner: methods that forward calls with something else.
        failed: the method that raised something, or computes something anew; the capture is in pieces then.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], *, is_replayed: bool) -> None:
        self.failed: str | None = None
        self._results: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self.inner: set[str] = set()
        self._restore = snapshot(module)
        methods = {name: getattr(module, name) for name in names}
        run = self._forward(module.forward, methods, Replay(module) if is_replayed else None)
        for name, method in methods.items():
            vars(module)[name] = self._noting(name, method)
        vars(module)["forward"] = MethodType(run, module)

    def __enter__(self) -> Joint:
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            leaves = _values((args, kwargs))
            if len(leaves) != len(self._inputs) or not all(map(_is, leaves, self._inputs)):
                self.inner.add(name)
            else:
                self._results.setdefault(name, made)
            return made

        return call

    def _forward(self, forward: Any, methods: Mapping[str, Callable[..., Any]], replay: Replay | None) -> Any:
        @functools.wraps(forward.__func__)
        def call(_: nn.Module, *args: Any, **kwargs: Any) -> Together:
            self._results, self._inputs = {}, _values((args, kwargs))
            if replay is None:
                made = forward(*args, **kwargs)
            else:
                with replay.noting():
                    made = forward(*args, **kwargs)
                    for name in [name for name in methods if name not in (*self._results, *self.inner)]:
                        self.failed = name
                        self._results[name] = replay.run(methods[name], args, kwargs)
                        self.failed = None
            return Together(made, {name: self._results[name] for name in methods if name in self._results})

        return call


def _values(value: Any) -> list[Any]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor | fx.Proxy)]


def _is(one: object, other: object) -> bool:
    return one is other


class RecomputedError(Exception):
    """A method computes something anew from parameters, or meets what was written over."""


class _Noted(NamedTuple):
    """A call: what it was about (so that nothing else gets these identities), and what it gave back."""

    about: Any
    made: Any
    versions: Mapping[int, int]


class Replay(TorchFunctionMode):
    """Notes the calls of functions and submodules; called again on the same tensors, they give back the same.

    A tensor counts as the same as long as nothing was written into its memory. In a replay, memory is as old as what
    was given back last; a call that is new must not meet memory that is older than it really is.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._noted: dict[Any, _Noted] = {}
        self._age: dict[int, int] | None = None
        self._module = module
        self._called: nn.Module = module
        for each in module.modules():
            if each is not module and not isinstance(each, torch.jit.ScriptModule):
                vars(each)["forward"] = self._watched(each, each.forward)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Notes calls inside."""

        def note(module: nn.Module, _: Any) -> None:
            self._called = module

        hook = register_module_forward_pre_hook(note)
        try:
            with self:
                yield
        finally:
            hook.remove()

    def run(self, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a method gives back, after forward ran.

        Raises:
            RecomputedError: it is not the same as what forward computes.
        """
        self._age = {}
        try:
            made = method(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                self._insist_on_present(_pytree.tree_leaves(made))
        finally:
            self._age = None
        return made

    def _watched(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that is noted. An export calls a module that has several paths by a proxy, which knows the path."""

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            run = forward
            if isinstance(forward, MethodType) and forward.__self__ is module and vars(self._called) is vars(module):
                run = MethodType(forward.__func__, self._called)
            return self._call(("module", id(module)), run, args, kwargs)  # outside of this mode

        return call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKS:
            return func(*args, **kwargs or {})
        return self._call(func, func, args, kwargs or {})

    def _call(self, what: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        leaves, spec = _pytree.tree_flatten((args, kwargs))
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return function(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # which this mode would see
            key = what, spec, tuple(map(self._portray, leaves))
        if self._age is not None:
            if key in self._noted:
                self._age.update(self._noted[key].versions)
                return self._noted[key].made
            if isinstance(what, tuple):
                return function(*args, **kwargs)
            return self._compute(function, leaves, args, kwargs)
        made = function(*args, **kwargs)
        results = _pytree.tree_leaves(made)
        if any(isinstance(leaf, torch.Tensor) for leaf in results):
            tensors = [leaf for leaf in (*leaves, *results) if isinstance(leaf, torch.Tensor)]
            with torch._C.DisableTorchFunction():
                self._noted[key] = _Noted((what, leaves), made, {_memory(each): each._version for each in tensors})
        return made

    def _compute(self, function: Callable[..., Any], leaves: list[Any], args: Any, kwargs: Any) -> Any:
        """What a method does that forward does not: it must not need parameters, nor write."""
        self._insist_on_present(leaves)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        before = [each._version for each in tensors]
        made = function(*args, **kwargs)
        if isinstance(made, torch.Tensor) and any(id(each) in self._held() for each in tensors):
            raise RecomputedError
        if before != [each._version for each in tensors]:
            raise RecomputedError
        return made

    def _held(self) -> set[int]:
        return {id(each) for each in (*self._module.parameters(), *self._module.buffers())}

    def _insist_on_present(self, leaves: Sequence[Any]) -> None:
        assert self._age is not None
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and self._version(leaf) != leaf._version:
                raise RecomputedError

    def _version(self, tensor: torch.Tensor) -> int:
        return tensor._version if self._age is None else self._age.get(_memory(tensor), tensor._version)

    def _portray(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return id(leaf), self._version(leaf)
        if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
            return "symbol", leaf.node.expr
        if isinstance(leaf, int | float | str | bool | torch.dtype | torch.device | None):
            return type(leaf), leaf
        return "object", id(leaf)


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
