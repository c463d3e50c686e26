"""Opens an ONNX model: a view to plan on, and the model that the edits change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.errors import InvalidModelError
from bnfold.frontends.limits import Limits
from bnfold.frontends.onnx.calls import Inliner, Place, Trial, explain_call, find_calls
from bnfold.frontends.onnx.files.loading import EXTERNAL, external_files, file_bytes, load, parse, read_proto
from bnfold.frontends.onnx.files.original import as_read, detach, original_of
from bnfold.frontends.onnx.files.pieces import form, read
from bnfold.frontends.onnx.files.saving import Lent, lend, save, serialize
from bnfold.frontends.onnx.files.slots import slots
from bnfold.frontends.onnx.files.stored import StoredModel
from bnfold.frontends.onnx.nesting import nested_graphs
from bnfold.frontends.onnx.spelling import spell_out
from bnfold.frontends.onnx.view import Key, OnnxGraph
from bnfold.frontends.parameters import Tensor
from bnfold.frontends.protocol import Cautions, OpenOptions, Replan, Size, Written
from bnfold.graph.outcome import Outcome, Refusal

_NAMES = {dtype: str(dtype) for dtype in ir.DataType}


class OpenOnnxModel:
    """A `bnfold.frontends.protocol.OpenModel`.

    Args:
        given: what was opened: a ModelProto, an `onnx_ir.Model`, or a path.
        options: how.
    """

    def __init__(self, given: Any, options: OpenOptions) -> None:
        self._given, self._options = given, options
        self._model = _read(given, options)
        if options.spell_out:
            spell_out(self._model)
        is_file = isinstance(given, str | Path)
        external = external_files(self._model) if EXTERNAL in self._model.meta else []
        self.files: tuple[Path, ...] = (Path(given), *external) if is_file else ()
        self._bytes = file_bytes(self.files) if is_file else 0
        self._before: Lent | None = None
        self._origins: Mapping[Place, Place] = {}
        self._stays: Mapping[Place, Refusal] = {}
        original = None if isinstance(given, ir.Model) else as_read(self._model)
        self.graph = self._view(self._model, lambda: _original(given, options.limits), original=original)

    def _view(
        self,
        model: ir.Model,
        read: Callable[[], tuple[onnx.ModelProto, Path | None]],
        inlined: tuple[Key, ...] = (),
        original: onnx.ModelProto | StoredModel | None = None,
    ) -> OnnxGraph:
        observe = self._options.observe
        return OnnxGraph(model, observe and observe(read), inlined, original)

    def weights(self) -> Mapping[str, Tensor]:
        graph = self._model.graph
        held = [value for each in (graph, *graph.subgraphs()) for value in each.initializers.values()]
        return {
            value.name: Tensor(_NAMES[dtype], shape, partial(read, tensor, value.name))
            for value in held
            if value.name and (tensor := value.const_value) is not None
            for dtype, shape in [form(tensor)]
        }

    def measure(self) -> Size:
        return Size(sum(len(graph) for graph in nested_graphs(self._model.graph)), self._bytes)

    def as_opened(self) -> onnx.ModelProto:
        return self.original().proto

    def learn(self, outcomes: Sequence[Outcome], replan: Replan) -> bool:
        """Write out calls of functions, where that lets more fold, and try out declared shapes."""
        has_inlined = self._inline(outcomes, replan)
        return self.graph.try_out_hints() or has_inlined

    def _inline(self, outcomes: Sequence[Outcome], replan: Replan) -> bool:
        inliner: Inliner | None = self._options.inliner
        original = original_of(self._model)
        is_partial = isinstance(self._given, ir.Model) and original is not None and bool(original.left_out)
        if inliner is None or not self._model.functions or is_partial:
            return False
        lent = self.lend()
        functions = lent.proto.functions
        inlinable = frozenset(key_of(each) for each in functions if inliner.can_inline(lent.proto, each))
        first = Trial(frozenset(), self.graph, {}, outcomes)
        found, last = find_calls(first, inlinable, lambda keys: self._try(lent, keys, replan))
        self._stays = last.refused()
        if found is first or not self._take(found, replan):
            return False
        self._origins = found.origins
        return True

    def _try(self, lent: Lent, functions: frozenset[Key], replan: Replan) -> Trial | None:
        """A plan with the calls of some functions written out, in a model that shares the tensors; None without one."""
        keys = tuple(key_of(each) for each in lent.proto.functions if key_of(each) in functions)
        try:
            written_out = self._options.inliner.inline(lent.proto, keys)
            model = ir.serde.deserialize_model(written_out.proto)
        except (ValueError, TypeError):  # there is something that onnx_ir does not hold, or too much of it
            return None
        for slot in slots(model):
            if isinstance(slot.tensor, ir.ExternalTensor):
                if slot.tensor.location not in lent.held:
                    return None
                slot.lend(lent.held[slot.tensor.location])
        view = self._view(model, lambda: (serialize(model), lent.folder), keys)
        return Trial(functions, view, written_out.origins, _plan_twice(view, replan))

    def _take(self, found: Trial, replan: Replan) -> bool:
        """Let the model be what a trial is of; whether it can be."""
        before, keys = self.original(), found.view.inlined
        if isinstance(self._given, ir.Model):
            self._before, self.graph = before, found.view
            self._move(found.view.model)
            return True
        proto = self._options.inliner.inline(before.proto, keys).proto
        try:
            model = parse(proto, str(before.folder or "model"), before.folder, self._options.limits)
        except InvalidModelError:
            return False
        self._before, self._model = before, model
        self.graph = self._view(model, lambda: (proto, before.folder), keys, as_read(model))
        _plan_twice(self.graph, replan)
        return True

    def _move(self, model: ir.Model) -> None:
        """Let the model that was given hold what another one holds."""
        detach(self._model, "model")
        self._model.graph = model.graph
        self._model.functions.clear()
        self._model.functions.update(model.functions)
        self._model.opset_imports.update(model.opset_imports)

    def explain(self, outcomes: Sequence[Outcome], replan: Replan) -> tuple[Outcome, ...]:
        explained = map(self.graph.explain, outcomes)
        now = Trial(frozenset(), self.graph, self._origins, outcomes)
        return tuple(explain_call(each, now, self._stays) for each in explained)

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
        if self._before is not None:
            return self._before
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


def _plan_twice(view: OnnxGraph, replan: Replan) -> Sequence[Outcome]:
    """What a plan makes of a view, once with declared shapes that a run confirms if any BatchNorm stays without."""
    outcomes = replan(view)
    stays = any(isinstance(each, Refusal) for each in outcomes)
    return replan(view) if stays and view.try_out_hints() else outcomes


def key_of(function: onnx.FunctionProto) -> Key:
    """What calls name a function by."""
    return function.domain, function.name, function.overload


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
