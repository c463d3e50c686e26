"""Runs a saved `torch.export` program, eagerly and on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree

from bnfold.errors import IncomparableError
from bnfold.verification.inputs import Declared, Feeds


class TorchRunner:
    """A program whose file was checked before: `torch.export.load` runs code from a hostile one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._program = torch.export.load(path.open("rb"))
            self._module = self._program.module()

    @property
    def inputs(self) -> list[Declared]:
        """The tensors that a caller must give.

        Raises:
            IncomparableError: one is of a type that cannot be drawn.
        """
        declared: list[Declared] = []
        placeholders = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        for spec in self._program.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument):
                value = placeholders[spec.arg.name].meta["val"]
                if not isinstance(value, torch.Tensor):
                    raise IncomparableError(f"{self.path}: input {spec.arg.name!r} is no tensor and cannot be drawn")
                shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
                declared.append(Declared(spec.arg.name, self._dtype(value), shape))
        return declared

    def _dtype(self, value: torch.Tensor) -> np.dtype[Any]:
        if value.dtype is torch.bfloat16:
            return np.dtype(np.float32)
        name = str(value.dtype).removeprefix("torch.")
        return np.dtype(np.bool_ if name == "bool" else name)

    @property
    def outputs(self) -> list[str]:
        """The outputs, in order."""
        return [f"output_{index}" for index, _ in enumerate(self._program.graph_signature.output_specs)]

    def run(self, feeds: Feeds) -> list[npt.NDArray[Any]]:
        """One inference."""
        flat: list[Any] = []
        placeholders = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        for spec in self._program.graph_signature.input_specs:
            if spec.kind is not InputKind.USER_INPUT:
                continue
            if isinstance(spec.arg, ConstantArgument):
                flat.append(spec.arg.value)
            else:
                dtype = placeholders[spec.arg.name].meta["val"].dtype
                flat.append(torch.from_numpy(feeds[spec.arg.name]).to(dtype))
        args, kwargs = _pytree.tree_unflatten(flat, self._program.call_spec.in_spec)
        try:
            with torch.no_grad():
                made = self._module(*args, **kwargs)
        except Exception as error:  # a guard or an operator may raise anything
            raise IncomparableError(
                f"{self.path}: torch cannot run it ({' '.join(str(error).split())[:300]})"
            ) from error
        tensors = [each for each in _pytree.tree_leaves(made) if isinstance(each, torch.Tensor)]
        return [(each.float() if each.dtype is torch.bfloat16 else each).numpy() for each in tensors]
