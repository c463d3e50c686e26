"""A module as an exported program, captured once, with the calls of its submodules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree

from bnfold.errors import UnsupportedModelError, one_line
from bnfold.frontends.inputs import Inputs
from bnfold.frontends.torch.capture.abbreviations import Abbreviations
from bnfold.frontends.torch.capture.borders import Border, Recorder
from bnfold.frontends.torch.capture.decisions import Decision, Watch
from bnfold.frontends.torch.capture.inputs import bind
from bnfold.frontends.torch.capture.leaner import leaner
from bnfold.frontends.torch.capture.methods import Joint
from bnfold.frontends.torch.capture.silence import quiet
from bnfold.frontends.torch.operators.spelling import spell
from bnfold.frontends.torch.view import VALUE_HOOKS, hook_of


@dataclass(frozen=True, eq=False)
class Export:
    """A program, and what its graph does not show.

    Attributes:
        program: whose outputs are the tensors that the module gives back.
        borders: of all calls of modules, unless its sizes were to be fixed; the last is that of the module itself.
        methods: what further methods of the module give back, by their names.
        is_static: whether it holds for the sizes of the example alone.
        decisions: what the code decided by sizes, where it does not.
    """

    program: ExportedProgram
    borders: tuple[Border, ...]
    methods: Mapping[str, Border]
    is_static: bool
    decisions: tuple[Decision, ...] = ()


def export(module: nn.Module, inputs: Inputs, methods: Sequence[str] = (), *, is_static: bool = False) -> Export:
    """An export of a module whose code may be run, with every size dynamic where that can be.

    A size of 1 is as free as any other, but where an operator gives another rank for it. Of the methods, those are left
    out that do not run, or compute something anew.

    Args:
        module: what is exported.
        inputs: what it is called with.
        methods: whose results are outputs beside those of forward.
        is_static: take the sizes of the example for all, which takes a fraction of the time.

    Raises:
        UnsupportedModelError: it cannot be exported.
    """
    dynamic = _pytree.tree_map(_every_size, (inputs.args, dict(inputs.kwargs)))
    sizes = dict(bind(module, Inputs(*dynamic)).arguments)
    failure: Exception | None = None
    for given, oblivious in ((sizes, True), (None, False))[is_static:]:
        try:
            found = _export_all(module, inputs, methods, given, oblivious=oblivious, is_whole=is_static)
            if oblivious and _squeezes_one(found.program):
                found = _export_all(module, inputs, methods, given, oblivious=False, is_whole=False)
            _insist_on_types(found.program)
            return found
        except Exception as error:  # an export runs the module's code, which may raise anything
            failure = failure or error
    text = f"{type(module).__name__} cannot be exported: {line(failure)}"
    if isinstance(failure, GuardOnDataDependentSymNode):
        text += "; its code decides by values: fuse the submodules that do not, each with example_inputs of its own"
    raise UnsupportedModelError(text) from failure


def _insist_on_types(program: ExportedProgram) -> None:
    """Check that no product mixes float32 and float64, as arrays of numpy easily make it do.

    Raises:
        TypeError: one does.
    """
    for node in program.graph.nodes:
        read = [source.meta.get("val") for source in node.all_input_nodes]
        kinds = {value.dtype for value in read if isinstance(value, torch.Tensor)}
        if kinds == {torch.float32, torch.float64} and (call := spell(node, None)).operator.linear:
            raise TypeError(f"{call.op} would multiply numbers in float32 by others in float64")


def _kept(module: nn.Module, inputs: Inputs, methods: Sequence[str]) -> Sequence[str]:
    """Those of the methods that run for the sizes of the example, and compute nothing anew; all if that is not known.

    An export of fixed sizes takes a fraction of the time, and each method that is left out spoils one more.
    """
    try:
        return tuple(_export_all(module, inputs, methods, None, oblivious=False, is_whole=True).methods)
    except Exception:  # an export runs the module's code, which may raise anything
        return methods


def _export_all(
    module: nn.Module,
    inputs: Inputs,
    methods: Sequence[str],
    sizes: Mapping[str, Any] | None,
    *,
    oblivious: bool,
    is_whole: bool,
) -> Export:
    """A method that raises something leaves a capture in pieces."""
    if not methods:
        return _export(module, inputs, sizes, oblivious=oblivious, is_whole=is_whole)
    with Joint(module, methods, is_replayed=True) as joint:
        try:
            return _export(module, inputs, sizes, oblivious=oblivious, is_whole=is_whole)
        except Exception:  # of the method, as noted; any other is raised again
            if joint.failed is None:
                raise
    rest: Sequence[str] = [name for name in methods if name != joint.failed]
    if sizes is not None:
        rest = _kept(module, inputs, rest)
    return _export_all(module, inputs, rest, sizes, oblivious=oblivious, is_whole=is_whole)


def _export(
    module: nn.Module, inputs: Inputs, sizes: Mapping[str, Any] | None, *, oblivious: bool, is_whole: bool
) -> Export:
    recorder = Recorder(module, is_whole=is_whole)
    watch = Watch(recorder.running)
    abbreviations = Abbreviations()
    oblivion = symbolic_config.patch(backed_size_oblivious=oblivious)  # type: ignore[attr-defined]
    shapes = dict(sizes) if sizes is not None else None
    try:
        with (
            quiet(),
            torch.no_grad(),
            oblivion,
            leaner(None if sizes is None else abbreviations.terms),
            abbreviations.in_use(),
            watch.watching() if sizes is not None else nullcontext(),
            redirect_stderr(StringIO()),
        ):  # which gets the graph of a failure
            args, kwargs = _pytree.tree_map(_unmarked, (inputs.args, dict(inputs.kwargs)))
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    finally:
        recorder.remove()
    return Export(
        program, tuple(recorder.borders), recorder.methods, sizes is None, watch.decisions(abbreviations.terms)
    )


def _squeezes_one(program: ExportedProgram) -> bool:
    """Whether an axis is dropped, or not, by a size that is 1 in the example and a symbol in the program."""
    for node in program.graph.nodes:
        if "squeeze" in str(node.target) and "unsqueeze" not in str(node.target):
            shape = node.all_input_nodes[0].meta["val"].shape
            axes = node.args[1] if len(node.args) > 1 else range(len(shape))
            sizes = [shape[axis] for axis in ([axes] if isinstance(axes, int) else axes)]
            if any(isinstance(size, torch.SymInt) and size.node.hint == 1 for size in sizes):
                return True
    return False


def _unmarked(value: Any) -> Any:
    """A copy of a tensor, on which an export may note which sizes are dynamic."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _every_size(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return dict.fromkeys(range(value.dim()), torch.export.Dim.AUTO)
    return None


def line(error: Exception | None) -> str:
    """The type of an error, and what it says on one line."""
    return f"{type(error).__name__}: {one_line(str(error), 200)}"


NOWHERE = "_empty_nn_module_stack_from_metadata_hook"


def stack(node: fx.Node) -> list[str]:
    """The paths of the modules in whose forward a node was made, the model's first, innermost last."""
    entries = (node.meta.get("nn_module_stack") or {}).values()
    paths = [str(path) for path, _ in entries if path != NOWHERE]
    return paths if paths[:1] == [""] else ["", *paths]


def hooked(module: nn.Module) -> dict[str, str]:
    """The name of a hook that sees values, for each submodule that has one."""
    found = {path: hook_of(each, VALUE_HOOKS) for path, each in module.named_modules()}
    return {path: name for path, name in found.items() if name is not None}


def strip_hooks(module: nn.Module) -> None:
    """Take away the hooks that see values, which might note what is no tensor."""
    for each in module.modules():
        for kind in VALUE_HOOKS:
            held = getattr(each, kind)
            for key in [key for key, hook in held.items() if not _is_torchs(hook)]:
                del held[key]
                for companion in (f"{kind}_with_kwargs", f"{kind}_always_called"):
                    getattr(each, companion, {}).pop(key, None)


def _is_torchs(hook: Any) -> bool:
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.nn.utils.")


def borders_of_hooked(
    hooked: Mapping[str, str], graph: fx.Graph, name: Callable[[fx.Node], str | None]
) -> dict[fx.Node, str]:
    """The values that enter and leave modules with hooks, with the hook's name.

    Args:
        hooked: the name of a hook on each module that has one, by its path.
        graph: what was captured.
        name: that of a tensor of the model; None for a value.
    """
    found: dict[fx.Node, str] = {}
    for path, hook in hooked.items():
        if path:
            inside = {node for node in graph.nodes if path in stack(node)}
            leaving = {node for node in inside if any(user not in inside for user in node.users)}
            read = {source for node in inside for source in node.all_input_nodes} - inside
            entering = {node for node in read if name(node) is None}
            found.update(dict.fromkeys(leaving | entering, f"{hook} on {path}"))
    return found


__all__ = ["Export", "borders_of_hooked", "export", "hooked", "inspect", "line", "stack", "strip_hooks"]
