"""Describes the PyTorch models of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from bnfold.bench.models import Subject, digest
from bnfold.errors import UnsupportedModelError
from bnfold.frontends.torch import load
from bnfold.runtimes.inputs import Declared
from bnfold.runtimes.setting import Engine


def describe_model(model: Any, stem: Path, name: str) -> Subject:
    """Describe a module, an exported program (written to a file for cold starts), or the program in a file.

    Args:
        model: the model, or a path.
        stem: the stem of the file that is written.
        name: its name in messages.

    Raises:
        InvalidModelError: the file is missing, unreadable or unsafe.
        UnsupportedModelError: the model has an input that is no tensor.
    """
    if isinstance(model, nn.Module):
        kind = nn.modules.batchnorm._BatchNorm
        batchnorms = sum(isinstance(module, kind) for module in model.modules())
        return Subject(name, Engine.TORCH, model, None, None, None, None, None, None, batchnorms)
    program, file = (load(model), model) if isinstance(model, Path) else (model, stem.with_suffix(".pt2"))
    if not isinstance(model, Path):
        torch.export.save(program, file)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    return Subject(
        name,
        Engine.TORCH,
        program,
        file,
        tuple(_declared(program, name) for name in program.graph_signature.user_inputs),
        tuple(str(name) for name in program.graph_signature.user_outputs),
        digest([file]),
        file.stat().st_size,
        len(nodes),
        sum("batch_norm" in str(node.target) for node in nodes),
    )


def _declared(program: ExportedProgram, name: Any) -> Declared:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    value = values.get(str(name))
    if not isinstance(value, torch.Tensor):
        raise UnsupportedModelError(f"input {name!r} of the exported program is no tensor")
    shape = tuple(int(size) if str(size).isdecimal() else str(size) for size in value.shape)
    return Declared(str(name), _numpy_type(value.dtype, str(name)), shape)


def _numpy_type(dtype: torch.dtype, name: str) -> np.dtype[Any]:
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError as error:
        raise UnsupportedModelError(f"input {name!r} is {dtype}, which numpy does not have") from error
