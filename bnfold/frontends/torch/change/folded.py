"""What stands where a BatchNorm module was, and keeps the state of the unfolded model from being loaded without it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn


class FoldedBatchNorm(nn.Identity):
    """An `nn.Identity` that refuses the state of a BatchNorm, even with ``strict=False``.

    It is pickled as a plain `nn.Identity`, so that a folded model can be loaded where bnfold is not installed.
    """

    def _get_name(self) -> str:
        return "Identity"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        refuse_unfolded(state_dict, [key for key in state_dict if key.startswith(prefix)], rest[-1])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Identity, (), vars(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldedBatchNorm:
        made = FoldedBatchNorm()
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made


class StateGuard:
    """A hook of `nn.Module.load_state_dict` that refuses a state with names that folding took away.

    A pickle of it is of a function that does nothing, which needs no bnfold.
    """

    def __init__(self, gone: Collection[str]) -> None:
        self._gone = tuple(gone)

    def __call__(
        self,
        state: Mapping[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        refuse_unfolded(state, [prefix + name for name in self._gone], errors)

    def __deepcopy__(self, memo: dict[int, Any]) -> StateGuard:
        return self

    def __reduce__(self) -> Any:
        return getattr, ("", "format")


def guard_state(module: nn.Module, names: Collection[str]) -> None:
    """Let a module, whose state had some names, refuse a state with those that it has no more."""
    left = {*module.state_dict()}
    if gone := [name for name in names if name not in left]:
        module._register_load_state_dict_pre_hook(StateGuard(gone))  # type: ignore[no-untyped-call]


def refuse_unfolded(state: Mapping[str, Any], names: Iterable[str], errors: list[str]) -> None:
    """Note an error, for `nn.Module.load_state_dict`, where a state has one of the names that folding took away."""
    name = next((name for name in names if name in state), None)
    if name is not None:
        errors.append(f"{name!r} is of the model before it was folded: load it into that, and fuse again.")
