"""A class of a module's own class, whose forward is generated code."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.graph_module import _forward_from_src

from bnfold.frontends.torch.capture.structure import Structure, flatten
from bnfold.frontends.torch.change.folded import refuse_unfolded

GENERATED = "bnfold generated the forward of"
"""What code says first of a call for which it was not made."""


@dataclass(frozen=True, eq=False)
class Code:
    """A forward as what can be pickled.

    Attributes:
        body: the source of a function of the module and of the tensors among the leaves of its arguments.
        imports: what its names are.
        head: the parameters of the forward, as they are written; a default is an entry of `_defaults`.
        names: of the parameters.
        defaults: of the parameters.
        arguments: what holds the leaves of the arguments.
        constants: those leaves that the code was generated for, by their index.
        sizes: names of sizes among the other leaves, each with the index of the leaf, and the axis of a tensor.
        conditions: on these, under which forward takes the way that the code was generated for.
        results, result: the leaves of what is given back, where they are constants, and what holds them.
        lost: methods that would go on with what forward computed before.
        gone: names of tensors that the module had, and that forward reads no more.
    """

    body: str
    imports: str
    head: str
    names: tuple[str, ...]
    defaults: tuple[Any, ...]
    arguments: Structure
    constants: dict[int, Any]
    sizes: dict[str, tuple[int, int | None]]
    conditions: tuple[str, ...]
    results: tuple[Any, ...]
    result: Structure
    lost: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What stands in `Code.results` for a leaf that the code makes."""

    index: int


def install(module: nn.Module, code: Code) -> None:
    """Give a module a forward, by a class of its own."""
    vars(module).pop("forward", None)
    module.__class__ = _derive(getattr(type(module), "_bnfold_base", type(module)), code)


def written(signature: inspect.Signature) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
    """Parameters as they are written, their names, and their defaults."""
    defaults: list[Any] = []
    parts: list[str] = []
    kinds = inspect.Parameter
    has_star = False
    parameters = list(signature.parameters.values())
    for index, each in enumerate(parameters):
        text = str(each.replace(default=kinds.empty, annotation=kinds.empty))
        if each.kind is kinds.KEYWORD_ONLY and not has_star:
            parts.append("*")
            has_star = True
        has_star |= each.kind is kinds.VAR_POSITIONAL
        if each.default is not kinds.empty:
            text += f"=_defaults[{len(defaults)}]"
            defaults.append(each.default)
        parts.append(text)
        is_last = index + 1 == len(parameters) or parameters[index + 1].kind is not kinds.POSITIONAL_ONLY
        if each.kind is kinds.POSITIONAL_ONLY and is_last:
            parts.append("/")
    return ", ".join(parts), tuple(signature.parameters), tuple(defaults)


def _checks(base: type, code: Code) -> Callable[[Sequence[Any]], None]:
    """A function of the leaves of the arguments that raises an error where a condition on their sizes does not hold.

    It is written out, with a function of torch, for tracers and compilers.
    """
    lines = ["def forward(leaves):", "    pass"]
    for name, (index, axis) in code.sizes.items():
        lines.append(f"    {name} = leaves[{index}]" + ("" if axis is None else f".shape[{axis}]"))
    for condition in code.conditions:
        text = f"{GENERATED} {base.__name__} for sizes with {condition}: fuse with sizes like these"
        lines.append(f"    torch._assert({condition}, {text!r})")
    check: Callable[[Sequence[Any]], None] = _forward_from_src("\n".join([*lines, ""]), {"torch": torch, "math": math})
    return check


def _derive(base: type, code: Code) -> type:
    run = _forward_from_src(code.imports + code.body, {})
    given = ", ".join(f"{name!r}: {name}" for name in code.names)
    source = f"def forward(self, {code.head}):\n    return _call(self, {{{given}}})\n"

    check = _checks(base, code)

    def call(module: nn.Module, arguments: dict[str, Any]) -> Any:
        leaves = _leaves(code, base, arguments)
        check(leaves)
        made = run(module, *(leaf for index, leaf in enumerate(leaves) if index not in code.constants))
        return code.result.build([made[each.index] if isinstance(each, Made) else each for each in code.results])

    held = {"_call": call, "_defaults": code.defaults}
    members = {
        "forward": _forward_from_src(source, held),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        "__deepcopy__": _deepcopy,
        "_load_from_state_dict": _guard(base, code.gone),
        "_bnfold_base": base,
        "_bnfold_code": code,
    }
    members.update({name: _refuse(base, name) for name in code.lost})
    return type(base.__name__, (base,), members)


def _guard(base: Any, gone: tuple[str, ...]) -> Callable[..., None]:
    def load(self: Any, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        base._load_from_state_dict(self, state, prefix, *rest)
        refuse_unfolded(state, [prefix + name for name in gone], rest[-1])

    return load


def _refuse(base: type, name: str) -> Any:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        text = f"{base.__name__}.{name}: bnfold gave forward other code, which this method does not call"
        raise RuntimeError(f"{text}; take it from the original, or fuse with code='keep'")

    vars(refuse)["_bnfold_lost"] = True
    return refuse


def is_lost(method: object) -> bool:
    """Whether a method of a module only says that it is gone."""
    return hasattr(method, "_bnfold_lost")


def _leaves(code: Code, base: type, arguments: dict[str, Any]) -> list[Any]:
    """The leaves of the arguments.

    Raises:
        ValueError: the call is not of the kind that the code was generated for.
    """
    leaves, structure = flatten(arguments)
    if structure != code.arguments:
        raise ValueError(f"{GENERATED} {base.__name__} for other arguments: fuse with these")
    for index, constant in code.constants.items():
        if leaves[index] is not constant and leaves[index] != constant:
            raise ValueError(f"{GENERATED} {base.__name__} for {constant!r}: fuse with this value")
    return leaves


def _rebuild(base: type, code: Code) -> Any:
    return object.__new__(_derive(base, code))


def _reduce(self: Any, protocol: int) -> Any:
    return _rebuild, (type(self)._bnfold_base, type(self)._bnfold_code), dict(vars(self))


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    made = object.__new__(type(self))
    memo[id(self)] = made
    vars(made).update(copy.deepcopy(vars(self), memo))
    return made
