"""Saved exported programs: `.pt2` files, read without running what is in them."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path

import torch
from torch.export import ExportedProgram

from bnfold.errors import InvalidModelError, OutputError, one_line
from bnfold.frontends.limits import LIMITS, Limits
from bnfold.frontends.torch.capture.silence import quiet
from bnfold.frontends.torch.files.archive import insist_on_harmless

EXTRA = "bnfold_extra_files"
"""The key in a program's graph module's `meta` under which its archive's extra files wait to be saved again."""


def load(path: Path, limits: Limits = LIMITS) -> ExportedProgram:
    """Read a saved program.

    Raises:
        InvalidModelError: the file is missing, unreadable, not a program, asks for more than `limits`, or loading it
            could run code.
    """
    if not path.exists():
        raise InvalidModelError(f"{path}: no such file")
    if path.is_dir():
        raise InvalidModelError(f"{path}: is a folder, not a .pt2 file")
    if not path.is_file():  # a pipe or a device might never end
        raise InvalidModelError(f"{path}: is not a plain file")
    try:
        with path.open("rb") as file:
            if path.stat().st_size > limits.bytes:
                raise InvalidModelError(f"{path}: its tensors have more than {limits.bytes} bytes (--max-bytes)")
            extra = dict.fromkeys(insist_on_harmless(file, str(path)), "")
            with quiet():
                _register_quantisers()
                program = torch.export.load(file, extra_files=extra)
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from error
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError) as error:
        text = one_line(str(error), 200)
        raise InvalidModelError(f"{path}: torch cannot load it ({type(error).__name__}: {text})") from error
    if len(program.graph.nodes) > limits.nodes:
        raise InvalidModelError(f"{path}: has more than {limits.nodes} nodes (--max-nodes)")
    program.graph_module.meta[EXTRA] = extra
    return program


def save(program: ExportedProgram, path: Path) -> None:
    """Write a program.

    Raises:
        OutputError: it cannot be written.
    """
    extra = program.graph_module.meta.get(EXTRA)
    try:
        with quiet():
            torch.export.save(program, path, extra_files=extra or None)
    except (OSError, RuntimeError) as error:
        text = one_line(str(error), 200)
        raise OutputError(f"{path}: cannot be written ({text})") from error


def _register_quantisers() -> None:
    """Let torch know `quantized_decomposed`, which programs of `convert_pt2e` call. Its operators come by an import."""
    with suppress(ImportError):  # a torch without them cannot load such a program, and says so
        importlib.import_module("torch.ao.quantization.fx._decomposed")


def count_nodes(program: ExportedProgram) -> int:
    """The operators of a program."""
    return sum(node.op == "call_function" for node in program.graph_module.graph.nodes)
