"""What a model is called with, in each form in which a caller may give it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of a call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, given: Any) -> Inputs:
        """From what a caller gives.

        Args:
            given: the only argument; a tuple or list of arguments; keyword arguments, as a dict or another mapping
                (a `BatchFeature` of transformers); or a tuple of a tuple of arguments and a dict of keyword arguments.
        """
        if isinstance(given, Mapping):
            return cls((), dict(given))
        if not isinstance(given, list | tuple):
            return cls((given,), {})
        if len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], Mapping):
            return cls(given[0], dict(given[1]))
        return cls(tuple(given), {})

    def arrays(self, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """The arguments as arrays, by name; those that are None are left out.

        Args:
            names: those of the positional arguments, in order. An argument behind the last is called by its number.

        Raises:
            IncomparableError: an argument is neither an array nor a number.
        """
        named = {names[index] if index < len(names) else f"#{index}": value for index, value in enumerate(self.args)}
        given = {**named, **{str(name): value for name, value in self.kwargs.items()}}
        return {name: to_array(value, name) for name, value in given.items() if value is not None}


def parameters(model: Any, *, by_name: bool = False) -> list[str]:
    """The names of the parameters of a module's forward, apart from ``*args`` and ``**kwargs``.

    Args:
        model: the module.
        by_name: leave out those that no call can name.
    """
    found = inspect.signature(model.forward).parameters.values()
    named = [each for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    return [each.name for each in named if not (by_name and each.kind is each.POSITIONAL_ONLY)]


def to_array(value: Any, name: str) -> npt.NDArray[Any]:
    """An array of what numpy or torch calls one, or of a number.

    Raises:
        IncomparableError: it is something else.
    """
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        is_brain = str(tensor.dtype) == "torch.bfloat16"  # a type that numpy does not know, and float32 holds
        return np.asarray(tensor.float()).astype(ml_dtypes.bfloat16) if is_brain else np.asarray(tensor)
    array = np.asarray(value) if isinstance(value, np.ndarray | np.generic | bool | int | float | complex) else None
    if array is None and isinstance(value, list | tuple) and not any(hasattr(each, "shape") for each in value):
        array = np.asarray(value)
    if array is None or array.dtype.kind in "OUSMm":
        raise IncomparableError(f"the argument {name!r} is of type {type(value).__name__}: give an array or a number")
    return array
