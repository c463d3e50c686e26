"""The models that take part: what they are, whatever form they come in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.errors import IncomparableError, InvalidModelError, UnsupportedModelError
from bnfold.frontends import onnx as _onnx
from bnfold.runtimes.inputs import Declared, Feeds
from bnfold.runtimes.setting import Engine


@dataclass(frozen=True)
class Subject:
    """A model that takes part.

    Attributes:
        name: what to call it.
        engine: what runs it.
        source: what the engine opens: a path, a module or an exported program.
        file: the model's file; None where it is in memory alone.
        inputs, outputs: what it reads and makes; None where only running it would tell.
        sha256: of the file and its external data.
        file_bytes: likewise.
        nodes, batchnorms: counted in the graph with its subgraphs and functions.
    """

    name: str
    engine: Engine
    source: Any
    file: Path | None
    inputs: tuple[Declared, ...] | None
    outputs: tuple[str, ...] | None
    sha256: str | None
    file_bytes: int | None
    nodes: int | None
    batchnorms: int | None

    def renamed(self, feed: Feeds, names: Sequence[str]) -> Feeds:
        """The same arrays under this model's names, by position where the names are another engine's."""
        if self.inputs is None:
            return feed
        if {each.name for each in self.inputs} <= set(feed):
            return {each.name: feed[each.name] for each in self.inputs}
        return {each.name: feed[name] for each, name in zip(self.inputs, names, strict=True)}


def find_subjects(models: Sequence[Any], folder: Path) -> list[Subject]:
    """What is known of models before they run.

    Args:
        models: paths of `.onnx` and `.pt2` files, ModelProtos, onnx_ir.Models, modules, exported programs.
        folder: where those that must be files are written.

    Raises:
        InvalidModelError: one cannot be read.
        UnsupportedModelError: one is no model.
    """
    return [_subject(model, folder / f"{number}", f"model {number}") for number, model in enumerate(models, 1)]


def _subject(model: Any, stem: Path, name: str) -> Subject:
    if isinstance(model, onnx.ModelProto):
        model = _onnx.parse(model, name)
    if isinstance(model, ir.Model):
        file = stem.with_suffix(".onnx")
        _onnx.save(model, file)
        return _onnx_subject(file, name)
    if isinstance(model, str | Path):
        path = Path(model)
        return _torch_subject(path, stem, str(path)) if path.suffix == ".pt2" else _onnx_subject(path, str(path))
    if type(model).__module__.split(".")[0] != "torch" and not hasattr(model, "state_dict"):
        raise UnsupportedModelError(f"bnfold cannot run a {type(model).__module__}.{type(model).__qualname__}")
    return _torch_subject(model, stem, name)


def _onnx_subject(path: Path, name: str) -> Subject:
    model = _onnx.load(path)
    nodes = [*model.graph.all_nodes(), *(node for each in model.functions.values() for node in each.all_nodes())]
    inputs = tuple(_declared(value, name) for value in model.graph.inputs if not value.is_initializer())
    return Subject(
        name,
        Engine.ONNXRUNTIME,
        path,
        path,
        inputs,
        tuple(str(value.name) for value in model.graph.outputs),
        digest([path, *_onnx.external_files(model)]),
        _onnx.file_bytes(model, path),
        len(nodes),
        sum(node.op_type == "BatchNormalization" for node in nodes),
    )


def _declared(value: ir.Value, name: str) -> Declared:
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        raise IncomparableError(f"{name}: input {value.name!r} is no tensor of a declared shape")
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return Declared(str(value.name), value.type.dtype.numpy(), shape)


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of files, one behind the other."""
    total = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    total.update(block)
        except OSError as error:
            raise InvalidModelError(f"{file}: {error.strerror}") from error
    return total.hexdigest()


def _torch_subject(model: Any, stem: Path, name: str) -> Subject:
    """A `.pt2` file, an exported program (written to one, for the processes that start it), or a module."""
    from bnfold.runtimes import timed_torch_session

    program = timed_torch_session.load(model) if isinstance(model, Path) else model
    file = model if isinstance(model, Path) else timed_torch_session.write(program, stem.with_suffix(".pt2"))
    described = timed_torch_session.describe(program)
    return Subject(
        name,
        Engine.TORCH,
        program,
        file,
        described.inputs,
        described.outputs,
        None if file is None else digest([file]),
        None if file is None else file.stat().st_size,
        described.nodes,
        described.batchnorms,
    )
