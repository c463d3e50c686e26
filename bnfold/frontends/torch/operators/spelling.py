"""One description of a call, however fx spells it: aten, function, method, operator or module."""

from __future__ import annotations

import inspect
import operator
import re
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import fx, nn
from torch.export._unlift import GuardsFn

from bnfold.frontends.torch.operators.calls import Call, Memory, Operator
from bnfold.frontends.torch.operators.table import ATEN, ATTRIBUTES, CASTS, FUNCTIONS, METHODS, MODULES, NOBODY_KNOWS


def spell(node: fx.Node, root: nn.Module | None) -> Call:
    """The description of a node's call.

    Args:
        node: a node of op `call_function`, `call_method` or `call_module`.
        root: where called modules are.
    """
    target = node.target
    if node.op == "call_module" and root is not None:
        module = root.get_submodule(str(target))
        return replace(_module(node, module), dims=_dims(type(module).__name__))
    if node.op == "call_method":
        return _bind(node, METHODS.get(str(target)), is_inplace=_ends_inplace(str(target)))
    if isinstance(target, torch._ops.OpOverload):
        return replace(_aten(node, target), dims=_dims(target._schema.name))
    if target is getattr and len(node.args) > 1 and node.args[1] in ATTRIBUTES:
        return Call(ATTRIBUTES[str(node.args[1])], {"input": node.args[0]})
    if target in REGIONS:
        return Call(NOBODY_KNOWS, {"args": node.args, **node.kwargs}, is_inplace=_writes_out(node, root))
    name = str(_DISPATCHED.get(target) or getattr(target, "__name__", ""))
    entry = FUNCTIONS.get(target) if callable(target) else None
    is_foreign = entry is None and getattr(target, "__module__", None) not in _HARMLESS
    is_inplace = _ends_inplace(name) or target in _WRITERS or is_foreign or _is_told_to_write(node)
    return replace(_bind(node, entry, is_inplace=is_inplace), dims=_dims(name))


REGIONS = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)
"""What an exported program calls for code under `torch.no_grad` or `torch.autocast`: a graph, with what it reads."""


def _writes_out(node: fx.Node, root: nn.Module | None) -> bool:
    """Whether a region may write into what it is given: into anything but what its own operators made."""
    graphs = [getattr(root, str(each.target), None) for each in node.all_input_nodes if each.op == "get_attr"]
    regions = [each for each in graphs if isinstance(each, fx.GraphModule)]
    if not regions:
        return True
    for region in regions:
        calls = {inner: spell(inner, region) for inner in region.graph.nodes if inner.op.startswith("call_")}
        own = set[fx.Node]()  # nodes whose memory is the region's
        for inner, call in calls.items():
            row, first = call.operator, call.get("input")
            if call.is_inplace and first not in own:
                return True
            if call.is_inplace or row.linear or row.is_batchnorm or row.name == "add":
                own.add(inner)
    return False


_DISPATCHED = {value: name for name, value in vars(F).items() if getattr(value, "__name__", "") == "fn"}
"""The names of functions that choose by a flag, and call themselves `fn`."""

_WRITERS = frozenset(
    getattr(operator, name)
    for name in ("setitem", "delitem", "iadd", "iand", "iconcat", "ifloordiv", "ilshift", "imatmul", "imod", "imul",
                 "ior", "ipow", "irshift", "isub", "itruediv", "ixor")
)  # fmt: skip
"""Operators of Python that write into their first operand."""

_HARMLESS = frozenset({None, "_operator", "builtins", "math", "torch", "torch.functional", "torch.nn.functional",
                       "torch._C._nn", "torch._C._special", "torch._C._linalg", "torch._C", "torch._VF",
                       "torch._assert", "torch.special", "torch.linalg", "torch.fx._symbolic_trace"})  # fmt: skip
"""Modules of functions that write into no argument, unless their name ends in an underscore."""


def _dims(name: str) -> int | None:
    match = re.search(r"([123])d(?![a-zA-Z0-9])", name.replace("_with_indices", ""))
    return int(match[1]) if match else None


def _ends_inplace(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name.endswith("__"))


def _is_told_to_write(node: fx.Node) -> bool:
    """Whether a function is given something to write into, or told to write into its input."""
    if "out" in node.kwargs or node.kwargs.get("inplace", False):
        return True
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # one of torch's in C, none of which has such a flag
        return False
    return "inplace" in names[: len(node.args)] and bool(node.args[names.index("inplace")])


def _aten(node: fx.Node, target: torch._ops.OpOverload) -> Call:
    schema = target._schema
    namespace, _, name = schema.name.partition("::")
    arguments: dict[str, Any] = {}
    for index, parameter in enumerate(schema.arguments):
        key = "input" if parameter.name == "self" else parameter.name
        if index < len(node.args) and not parameter.kwarg_only:
            arguments[key] = node.args[index]
        elif parameter.name in node.kwargs:
            arguments[key] = node.kwargs[parameter.name]
        elif parameter.has_default_value():
            arguments[key] = parameter.default_value
    writes = any(parameter.alias_info is not None and parameter.alias_info.is_write for parameter in schema.arguments)
    if namespace != "aten" or "out" in node.kwargs:
        return Call(NOBODY_KNOWS, arguments, is_inplace=writes)
    if name == "split" and target is torch.ops.aten.split.sizes:
        arguments["split_size"] = arguments.get("split_size", ())
    base = name.removesuffix("_") if writes else name
    row = ATEN.get(base) or Operator(base)
    if row.name in ("norm", "var"):
        arguments = {"input": arguments.get("input")}
    if name == "constant_pad_nd":
        arguments["mode"] = "constant"
    if name == "native_batch_norm" or name == "_native_batch_norm_legit":
        writes = bool(arguments.get("training"))
    return Call(row, arguments, is_inplace=writes)


def _bind(node: fx.Node, entry: tuple[Operator, str] | None, *, is_inplace: bool) -> Call:
    if entry is None or "out" in node.kwargs:
        return Call(NOBODY_KNOWS, {"args": node.args, **node.kwargs}, is_inplace=is_inplace)
    row, parameters = entry
    arguments: dict[str, Any] = dict(node.kwargs)
    for name, value in zip(parameters.split(), node.args, strict=False):
        if name.startswith("*"):
            rest = node.args[parameters.split().index(name) :]
            single = len(rest) == 1 and isinstance(rest[0], list | tuple)
            arguments[name[1:]] = tuple(rest[0]) if single else tuple(rest)  # type: ignore[arg-type]
        else:
            arguments[name] = value
    for alias, name in (
        ("self", "input"),
        ("tensor", "input"),
        ("split_size_or_sections", "split_size"),
        ("axis", "dim"),
        ("x", "input"),
        ("size", "shape"),
    ):
        if alias in arguments and name in parameters.replace("*", "").split() and name not in arguments:
            arguments[name] = arguments.pop(alias)
    if row.name == "cast":
        arguments["dtype"] = CASTS[str(node.target)]
    return Call(row, arguments, is_inplace=is_inplace or bool(arguments.get("inplace")))


_PARTS = ("_conv_forward", "_output_padding", "_check_input_dim", "_apply_instance_norm", "_get_no_batch_dim")
"""Methods that the forwards above call, and that a subclass may have changed as well."""


def is_known_forward(module: nn.Module) -> bool:
    """Whether the forward of the module is one of torch.nn's that are described here."""
    return _forward(module) in MODULES and "forward" not in vars(module)


def _forward(module: nn.Module) -> Any:
    """What the class does; None for a ScriptModule."""
    return getattr(type(module), "forward", None)


def is_plain_module(module: nn.Module) -> bool:
    """Whether calling the module is what its torch.nn class does: no forward of its own, on class or instance."""
    return _is_as_described(module) and not is_parametrized(module)


def _is_as_described(module: nn.Module) -> bool:
    kind = type(module)
    parts = [getattr(kind, name) for name in _PARTS if hasattr(kind, name)]
    is_inherited = all(map(is_code_of_torch, parts))
    return is_inherited and is_known_forward(module) and kind.__call__ is nn.Module.__call__


def is_parametrized(module: nn.Module) -> bool:
    """Whether a weight of the module is computed from other parameters (weight_norm, spectral_norm, ...)."""
    if "parametrizations" in module._modules:
        return True
    return any(type(hook).__module__.startswith("torch.nn.utils.") for hook in module._forward_pre_hooks.values())


def is_code_of_torch(function: object) -> bool:
    """Whether a function is one of torch.nn's modules; the generated forward of a `GraphModule` is in no module."""
    return (getattr(function, "__module__", None) or "").startswith("torch.nn.modules.")


def _is_from_torch(module: nn.Module) -> bool:
    """Whether it writes into nothing unless it is told to; an exported program's guards only read its inputs."""
    is_torchs = is_code_of_torch(_forward(module)) and "forward" not in vars(module)
    return type(module) is GuardsFn or is_torchs


def _module(node: fx.Node, module: nn.Module) -> Call:
    is_inplace = bool(getattr(module, "inplace", False))
    described = MODULES.get(_forward(module)) if _is_as_described(module) else None
    if described is None or is_parametrized(module):
        inside = [inner for path, inner in module.named_modules() if "parametrizations" not in path.split(".")]
        known = all(map(_is_from_torch, inside))
        is_inplace = any(getattr(inner, "inplace", False) for inner in inside)
        row = Operator("nonlinear", memory=described[0].memory if described else Memory.ANY) if known else NOBODY_KNOWS
        return Call(row, {"args": node.args, **node.kwargs}, module, is_inplace or not known)
    row, describe = described
    arguments = describe(module, str(node.target))
    passed = dict(zip(("input", "output_size"), node.args, strict=False))
    passed.update(node.kwargs)
    if "output_size" in passed and row.name.startswith("conv_transpose"):
        arguments["output_padding"] = passed["output_size"]
    return Call(row, {**arguments, "input": passed.get("input", passed.get("x"))}, module, is_inplace)
