"""Example values of the nodes of a graph: what fake inputs, or recorded ones, lead to."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import sympy
import torch
from torch import fx, nn

from bnfold.frontends.inputs import Inputs
from bnfold.frontends.torch.capture.copies import snapshot
from bnfold.frontends.torch.capture.inputs import bind
from bnfold.frontends.torch.capture.silence import quiet
from bnfold.frontends.torch.operators import shapes


def propagate(module: nn.Module, graph: fx.Graph, inputs: Inputs) -> Mapping[fx.Node, Any] | None:
    """Fake tensors for every node: with sizes that are symbols, so that nothing follows from one example alone.

    Where an operator does not run on symbols, or decides by one, the example tells ranks and types only.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    bound = bind(module, inputs)
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
    recorder, restore = _Recorder(module, graph), snapshot(module)
    try:
        with mode, torch.no_grad(), quiet():
            recorder.run(*fakes, enable_io_processing=False)
    except Exception:  # of the module's code, or of an operator
        return None
    finally:
        restore()  # a hook may have noted fake tensors on its module
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
    runner, restore = _Recomputer(root, graph, mode, recorded), snapshot(root)
    try:
        # without the dispatcher in Python, some operators take the example's sizes for all
        with enable_python_dispatcher(), mode, unguarded, fresh, torch.no_grad(), quiet():
            for node in graph.nodes:
                if node.op != "output":
                    runner.visit(node)
    finally:
        mode.allow_non_fake_inputs = allows
        restore()
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
