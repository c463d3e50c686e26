"""Opens an ONNX model: a view to plan on, and the model that the edits change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.frontends.limits import Limits
from bnfold.frontends.onnx.files.loading import external_files, file_bytes, load, parse, read_proto
from bnfold.frontends.onnx.files.original import detach, original_of
from bnfold.frontends.onnx.files.saving import Lent, lend, save, serialize
from bnfold.frontends.onnx.view import OnnxGraph
from bnfold.frontends.protocol import Cautions, OpenOptions, Replan, Size, Written
from bnfold.graph.outcome import Outcome


class OpenOnnxModel:
    """A `bnfold.frontends.protocol.OpenModel`.

    Args:
        given: what was opened: a ModelProto, an `onnx_ir.Model`, or a path.
        options: how.
    """

    def __init__(self, given: Any, options: OpenOptions) -> None:
        self._given, self._options = given, options
        self._model = _read(given, options)
        is_file = isinstance(given, str | Path)
        self._bytes = file_bytes(self._model, Path(given)) if is_file else 0
        self.files: tuple[Path, ...] = (Path(given), *external_files(self._model)) if is_file else ()
        observe = options.observe
        self.graph = OnnxGraph(self._model, observe and observe(lambda: _original(given, options.limits)))

    def measure(self) -> Size:
        return Size(sum(1 for _ in self._model.graph.all_nodes()), self._bytes)

    def learn(self) -> bool:
        return self.graph.try_out_hints()

    def explain(self, outcomes: Sequence[Outcome], replan: Replan) -> tuple[Outcome, ...]:
        return tuple(map(self.graph.explain, outcomes))

    def warn(self, *, has_learnt: bool) -> Cautions:
        return (*self.graph.warnings(), *(self.graph.confirmations() if has_learnt else ()))

    def finish(self) -> Any:
        """The model in the kind that was given; a file's model is an `onnx_ir.Model`."""
        if isinstance(self._given, ir.Model):
            return self._model
        if not isinstance(self._given, onnx.ModelProto):
            return detach(self._model, str(self._given))
        fused = serialize(self._model)
        if not self._options.inplace:
            return fused
        self._given.CopyFrom(fused)
        return self._given

    def save(self, path: Path) -> Written:
        return save(self._model, path)

    def original(self) -> Lent:
        """What was opened, before the edits; part of no protocol, like `lend`."""
        if isinstance(self._given, onnx.ModelProto):
            return Lent(self._given, None, {})
        if isinstance(self._given, ir.Model):
            return self.lend()
        found = original_of(self._model)
        assert found is not None
        return Lent(found.proto, Path(self._given).parent, {})

    def lend(self) -> Lent:
        """What the edits left so far; no weight is copied, or computed."""
        if isinstance(self._given, str | Path):
            return lend(self._model, Path(self._given).parent)
        return lend(self._model, _folder(self._model))


def is_model(model: object) -> bool:
    """Whether it is an ONNX model in memory."""
    return isinstance(model, onnx.ModelProto | ir.Model)


def open_model(model: Any, options: OpenOptions) -> OpenOnnxModel:
    """A view of a ModelProto, of an `onnx_ir.Model`, or of the model in a file.

    Raises:
        InvalidModelError: it cannot be read, or asks for more than the limits.
    """
    return OpenOnnxModel(model, options)


def _read(model: Any, options: OpenOptions) -> ir.Model:
    if isinstance(model, ir.Model):
        return model if options.inplace else model.clone()
    if isinstance(model, onnx.ModelProto):
        return parse(model, limits=options.limits)
    return load(Path(model), options.limits)


def _original(model: Any, limits: Limits) -> tuple[onnx.ModelProto, Path | None]:
    """The model as it was, and the folder of its external data."""
    if isinstance(model, onnx.ModelProto):
        return model, None
    if isinstance(model, ir.Model):
        return serialize(model), _folder(model)
    return read_proto(Path(model), limits), Path(model).parent


def _folder(model: ir.Model) -> Path | None:
    """That of a model's external data, where there is one for all."""
    folders = {file.parent for file in external_files(model)}
    return folders.pop() if len(folders) == 1 else None
