"""Opens a torch model: a view to plan on, and how to finish what was changed."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.inputs import Inputs
from bnfold.frontends.parameters import Tensor
from bnfold.frontends.protocol import Cautions, OpenOptions, Replan, Size, Written
from bnfold.frontends.torch.capture import values
from bnfold.frontends.torch.capture.copies import (
    copy_module,
    copy_program,
    copy_structure,
    has_inference_tensors,
    separate,
    separate_program,
    snapshot,
)
from bnfold.frontends.torch.capture.decisions import (
    combinations,
    elsewhere,
    flipped,
    others,
    resized,
    sizes_of,
    symbols_of,
)
from bnfold.frontends.torch.capture.exporting import Export, borders_of_hooked, export, hooked, strip_hooks
from bnfold.frontends.torch.capture.inputs import bind, read_inputs
from bnfold.frontends.torch.capture.methods import Joint, methods_of
from bnfold.frontends.torch.capture.readable import insist_on_readable
from bnfold.frontends.torch.capture.running import is_runnable, run_alike
from bnfold.frontends.torch.capture.silence import same_randomness
from bnfold.frontends.torch.capture.source import CALLS, Source, is_same, of_export, of_trace
from bnfold.frontends.torch.capture.trace import UntraceableError, trace
from bnfold.frontends.torch.capture.wrappers import unwrap
from bnfold.frontends.torch.change.folded import guard_state
from bnfold.frontends.torch.change.generated import GENERATED, is_lost
from bnfold.frontends.torch.change.keep import KeptGraph
from bnfold.frontends.torch.change.program import ProgramStore
from bnfold.frontends.torch.change.project import Attempt, Projection
from bnfold.frontends.torch.change.store import ModuleStore, Store
from bnfold.frontends.torch.files.programs import count_nodes, load, save
from bnfold.frontends.torch.operators import shapes
from bnfold.frontends.torch.tensors import to_numpy
from bnfold.frontends.torch.view import TorchGraph
from bnfold.graph.outcome import Fold, Outcome, Reason, Refusal

Seen = tuple[
    fx.Graph, nn.Module, Store, Mapping[fx.Node, Any] | None, Mapping[fx.Node, str], frozenset[fx.Node]
]  # as the arguments of a view


@dataclass(frozen=True, eq=False)
class Captured:
    """A module as a graph, whichever way it was captured.

    Attributes:
        model: the graph, with what it holds.
        source: what is folded.
        store: where its parameters are.
        values: an example value of each node, as far as there is one.
        recast: nodes that run under an autocast of their own.
        lost: methods that were kept before, and are refused now.
    """

    model: ExportedProgram | fx.GraphModule
    source: Source
    store: Store
    values: Mapping[fx.Node, Any] | None
    recast: frozenset[fx.Node] = frozenset()
    lost: frozenset[str] = frozenset()

    def seen(self, hooks: Mapping[str, str]) -> Seen:
        """What a view is made of, where hooks see some values."""
        source = self.source
        observed = borders_of_hooked(hooks, source.graph, source.name)
        return source.graph, source.root, self.store, self.values, observed, self.recast

    def is_done_by(self, other: Captured) -> bool:
        """Whether another module does the same."""
        return is_same(self.source, other.source, is_part=bool(other.lost)) and self.gives_alike(other)

    def gives_alike(self, other: Captured) -> bool:
        """Whether another module gives back the same but for its tensors: how it holds them, and what else."""
        return {**self._results, **dict.fromkeys(other.lost)} == {**other._results, **dict.fromkeys(other.lost)}

    @property
    def _results(self) -> dict[str, Any]:
        borders = {"": self.source.borders[-1], **self.source.methods}
        return {
            name: (border.result, [None if isinstance(leaf, fx.Node) else leaf for leaf in border.results])
            for name, border in borders.items()
        }


Judge = Callable[[Captured], bool]
"""Whether what was captured of an attempt is what it has to be."""


@dataclass(frozen=True, eq=False)
class OpenTorchModel:
    """A `bnfold.frontends.protocol.OpenModel`.

    Attributes:
        graph: its view; edits change `model`.
        model: what was opened.
        settle: gives what the edits left; of a module, the first attempt that passes a judge of what is captured of it.
        free: where `graph` can change parameters and submodules only: a view of the same that could change the code as
            well, which tells what would then fold. It must not be edited.
        kept: where it can change the code as well: a view that could not. It must not be edited.
        bytes: of the file that it was read from.
        inputs: what a graph module is called with, where that was given.
        captured: what is folded in the place of a module.
        observed: values that hooks of a module see, with the hook.
        capture: captures the module again, of which nothing was changed.
        files: that file.
        state: the names that a graph module's state had before.
    """

    graph: TorchGraph
    model: Any
    settle: Callable[[Judge | None], Any]
    free: Callable[[], TorchGraph] | None = None
    kept: Callable[[], KeptGraph] | None = None
    bytes: int = 0
    inputs: Inputs | None = None
    captured: Captured | None = None
    observed: Mapping[fx.Node, str] = field(default_factory=dict)
    capture: Callable[[], Captured] | None = None
    files: tuple[Path, ...] = ()
    state: tuple[str, ...] = ()

    def measure(self) -> Size:
        return Size(count_nodes(self.model), self.bytes)

    def weights(self) -> Mapping[str, Tensor]:
        held = dict(self.model.state_dict if isinstance(self.model, ExportedProgram) else self.model.state_dict())
        if isinstance(self.model, ExportedProgram):
            held.update(
                (name, value) for name, value in self.model.constants.items() if isinstance(value, torch.Tensor)
            )
        return {
            name: Tensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), partial(to_numpy, tensor))
            for name, tensor in held.items()
        }

    def as_opened(self) -> Any:
        return self.files[0] if self.files else self.model

    def learn(self, outcomes: Sequence[Outcome], replan: Replan) -> bool:
        return False

    def explain(self, outcomes: Sequence[Outcome], replan: Replan) -> tuple[Outcome, ...]:
        """Mark the refusals that hold only because a module keeps its forward code, and the folds that change it."""
        if self.captured is not None:
            outcomes = [self._of_module(each) for each in outcomes]
        if self.kept is not None:
            view = self.kept()
            changing = view.find_changing([each for each in outcomes if isinstance(each, Fold)])
            return tuple(
                replace(each, changes_code=_adds(each) or not changing.isdisjoint((each.batchnorm, *each.into)))
                if isinstance(each, Fold)
                else each
                for each in outcomes
            )
        kept = {each.batchnorm for each in outcomes if isinstance(each, Refusal) and each.reason not in ADVISED}
        if self.free is None or not kept:
            return tuple(outcomes)
        free = replan(self.free())
        folds = {each.batchnorm: each for each in free if isinstance(each, Fold) and each.batchnorm in kept}
        return tuple(
            _for_lack_of_code(each, folds[each.batchnorm])
            if isinstance(each, Refusal) and each.batchnorm in folds
            else each
            for each in outcomes
        )

    def _of_module(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Fold):
            return replace(outcome, crosses=self._crossed(outcome))
        if isinstance(outcome, Refusal) and outcome.reason is Reason.GRAPH_OUTPUT:
            hooks = {self.graph.name(node): hook for node, hook in self.observed.items() if node.op in CALLS}
            hook = hooks.get(outcome.at, hooks.get(outcome.batchnorm))
            if hook is not None:
                return replace(outcome, reason=Reason.HOOK, detail=f"the hook {hook} sees a value that would change")
        return outcome

    def _crossed(self, fold: Fold) -> tuple[str, ...]:
        """The submodules of which a value changes that they give back."""
        assert self.captured is not None
        names = {*fold.through}
        names.update(fold.into if fold.direction != "downstream" else ())
        names.update([fold.batchnorm] if fold.direction != "upstream" else ())
        changed = {node for node in self.graph.nodes() if self.graph.name(node) in names}
        changed |= {user for node in changed for user in node.users if user.target is operator.getitem}
        found = {str(node.target) for node in changed if node.op == "call_module"}
        for border in self.captured.source.borders[:-1]:
            if any(isinstance(leaf, fx.Node) and leaf in changed for leaf in border.results):
                found.add(border.path)
        return tuple(sorted(found))

    def warn(self, *, has_learnt: bool) -> Cautions:
        return tuple(self.graph.warnings())

    def finish(self) -> Any:
        """A module, a GraphModule or a program. A GraphModule then refuses the state of the original."""
        made = self.settle(None)
        if isinstance(self.model, fx.GraphModule):
            guard_state(self.model, self.state)
        return made

    def save(self, path: Path) -> Written:
        save(self.finish(), path)
        return Written(path)


def _adds(fold: Fold) -> bool:
    """Whether an addition takes the place of the BatchNorm."""
    return fold.direction == "scale upstream"


NUMBERS = 2
"""At how many other sizes a fold is tried where code asks for a size as a number."""

FAILURES = 2
"""At how many the original may not run, before it is taken for one that does not run at others; one that asserts a
condition is asked once, since only code that catches the error goes on."""

UNTOLD = 12
"""With how many other values of arguments a fold is run, and other sizes where a capture tells no decisions."""

ADVISED = frozenset({Reason.FORWARD_CODE, Reason.HOOK, Reason.PARAMETRIZED, Reason.SKIPPED})
"""Reasons that say what to do, or that no other code would remove."""


def _for_lack_of_code(refusal: Refusal, fold: Fold) -> Refusal:
    into = ", ".join(fold.into)
    detail = f"to fold it into {into}, the forward code would have to change; as it is: {refusal.detail}"
    return replace(refusal, reason=Reason.FORWARD_CODE, detail=detail)


def is_model(model: object) -> bool:
    """Whether it is a torch model of a kind that is read here."""
    return isinstance(model, nn.Module | ExportedProgram)


def open_model(model: Any, options: OpenOptions) -> OpenTorchModel:
    """A view of an `nn.Module`, an `fx.GraphModule`, an `ExportedProgram`, or of the program in a `.pt2` file.

    Unless it is changed itself, a copy is what the edits change.

    Raises:
        UnsupportedModelError: it cannot be captured, or is in a state that has no meaning to keep.
        InvalidModelError: the file cannot be read.
    """
    if isinstance(model, str | Path):
        path = Path(model)
        return replace(open_program(load(path, options.limits)), bytes=path.stat().st_size, files=(path,))
    if isinstance(model, ExportedProgram):
        opened = open_program(model if options.inplace else copy_program(model))
        return opened if options.inplace or options.share else _separated(opened, separate_program, model)
    assert isinstance(model, nn.Module)
    inner, rewrap = unwrap(model)
    if inner is not model:
        opened = open_model(inner, options)
        return replace(opened, settle=lambda judge: rewrap(opened.settle(judge)))
    insist_on_readable(model)
    if isinstance(model, fx.GraphModule):
        copied = model if options.inplace else copy_module(model, share=True)
        opened = _open_graph_module(copied, read_inputs(options.example_inputs))
        return opened if options.inplace or options.share else _separated(opened, separate, model)
    with torch.inference_mode(False), same_randomness():
        return _open_module(model, options)


def _separated(opened: OpenTorchModel, separate: Callable[[Any, Any], None], original: Any) -> OpenTorchModel:
    """A model that shares no tensor with the original in the end."""

    def settle(judge: Judge | None) -> Any:
        made = opened.settle(judge)
        separate(made, original)
        return made

    return replace(opened, settle=settle)


def open_program(program: ExportedProgram) -> OpenTorchModel:
    """A view of a program, which the edits change."""
    graph_module = program.graph_module
    observed = _preserved(program)
    store = ProgramStore(program)
    recorded = shapes.recorded(graph_module.graph)
    for node, value in recorded.items():
        if (held := store.tensor(node)) is not None and (held.shape, held.dtype) != (value.shape, value.dtype):
            recorded[node] = held
    known = values.recompute(graph_module, graph_module.graph, recorded)
    graph = TorchGraph(graph_module.graph, graph_module, store, known, observed)

    def finish(_: Judge | None) -> ExportedProgram:
        graph_module.graph.lint()
        graph_module.recompile()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program.validate()  # type: ignore[no-untyped-call]
        return program

    return OpenTorchModel(graph, program, finish)


def _preserved(program: ExportedProgram) -> dict[fx.Node, str]:
    """Values at the borders of submodules whose calls the program keeps apart, with their names."""
    names: dict[str, str] = {}
    for entry in program.module_call_graph:
        if entry.fqn and entry.signature is not None:
            border = (*entry.signature.inputs, *entry.signature.outputs)
            names.update((each.name, f"call of {entry.fqn}") for each in border if hasattr(each, "name"))
    return {node: names[node.name] for node in program.graph_module.graph.nodes if node.name in names}


def _open_graph_module(module: fx.GraphModule, inputs: Inputs | None) -> OpenTorchModel:
    known = values.propagate(module, module.graph, inputs) if inputs is not None else None
    if known is None:
        recorded = shapes.recorded(module.graph)
        inputs_are_known = all(node in recorded or node.op != "placeholder" for node in module.graph.nodes) and any(
            isinstance(value, torch.Tensor) for value in recorded.values()
        )
        known = values.recompute(module, module.graph, recorded) if inputs_are_known else None
    graph = TorchGraph(module.graph, module, ModuleStore(module, module.graph), known)

    def finish(_: Judge | None) -> fx.GraphModule:
        module.graph.lint()
        module.recompile()
        return module

    return OpenTorchModel(graph, module, finish, inputs=inputs, state=tuple(module.state_dict()))


def _open_module(module: nn.Module, options: OpenOptions) -> OpenTorchModel:
    """A view of a module: it is not run."""
    inputs = read_inputs(options.example_inputs)
    if inputs is not None:
        bind(module, inputs)
    subject = _Subject.of(module, inputs, options.preserve)
    if options.code != "keep" and (not subject.hooks or _is_possible(subject, options)):
        return _open_captured(subject, options)
    is_fixed = not _is_possible(subject, options, is_kept=True)
    return _open_captured(subject, options, is_kept=True, is_fixed=is_fixed)


@dataclass(frozen=True, eq=False)
class _Subject:
    """A module that is captured.

    What is read and tried are twins, since running code leaves its marks in the attributes of a module.

    Attributes:
        module: what was given.
        model: that, or a copy where it was made in inference mode.
        inputs: what it is called with.
        hooks: that see values of it, by the paths of their modules.
        needs_hooks: whether its code runs only with them, as code may compute with what they note.
        captured: its graph.
    """

    module: nn.Module
    model: nn.Module
    inputs: Inputs | None
    hooks: Mapping[str, str]
    needs_hooks: bool
    captured: Captured

    @classmethod
    def of(cls, module: nn.Module, inputs: Inputs | None, preserve: Sequence[str] | None) -> _Subject:
        model = copy_module(module) if has_inference_tensors(module) else module
        hooks, methods, needs_hooks = hooked(model), methods_of(model, preserve), False
        try:
            if hooks and inputs is not None:
                _capture(_pristine(model), inputs, methods, is_static=True)  # which fails sooner, if it does
            captured = _capture(_pristine(model), inputs, methods)
        except UnsupportedModelError:
            if not hooks:
                raise
            needs_hooks = True
            captured = _capture(_twin(model), inputs, methods)
        _insist_on_methods(module, captured.source, preserve)
        return cls(module, model, inputs, hooks, needs_hooks, captured)

    def pristine(self, module: nn.Module) -> nn.Module:
        """A twin of the module, or of one like it, that may be run."""
        return _twin(module) if self.needs_hooks else _pristine(module)

    def recapture(self, module: nn.Module, inputs: Inputs | None, *, is_static: bool) -> Captured:
        """The graph of a module like it."""
        return _capture(self.pristine(module), inputs, tuple(self.captured.source.methods), is_static=is_static)

    def copy(self) -> _Subject:
        """One with a graph of its own."""
        source, program = self.captured.source, self.captured.model
        if not isinstance(program, ExportedProgram):
            return replace(self, captured=self.recapture(self.model, self.inputs, is_static=False))
        twin = copy_program(program)
        nodes = dict(zip(program.graph.nodes, twin.graph.nodes, strict=True))
        borders = tuple(border.moved(nodes) for border in source.borders)
        methods = {name: border.moved(nodes) for name, border in source.methods.items()}
        found = Export(twin, borders, methods, source.is_static, source.decisions)
        return replace(self, captured=_of_export(found, self.model, self.captured.lost))


def _is_possible(subject: _Subject, options: OpenOptions, *, is_kept: bool = False) -> bool:
    """Whether all that would fold can be put back on the module: with the hooks that it has, or the code."""
    if options.rehearse is None:
        return is_kept
    trial = _open_captured(subject.copy(), replace(options, inplace=False, share=True), is_kept=is_kept)
    options.rehearse(trial.graph)
    try:
        trial.finish()
    except UnsupportedModelError:
        return False
    return True


def _open_captured(
    subject: _Subject, options: OpenOptions, *, is_kept: bool = False, is_fixed: bool = False
) -> OpenTorchModel:
    """A view of what was captured, which the edits change."""
    module, inputs, hooks, captured = subject.module, subject.inputs, subject.hooks, subject.captured
    source = captured.source
    observed = borders_of_hooked(hooks, source.graph, source.name)
    unchanged = _twin(subject.model)

    def free(captured: Captured = captured) -> TorchGraph:
        return TorchGraph(*captured.seen(hooks))

    def kept(captured: Captured = captured) -> KeptGraph:
        return KeptGraph(*captured.seen(hooks), unchanged, is_fixed=is_fixed)

    view = kept if is_kept else free
    graph = view()
    projection = Projection(source, graph, subject.pristine(subject.model), hooks)
    restore = snapshot(module) if options.inplace else None

    def make() -> nn.Module:
        if restore is None:
            return copy_module(module, share=options.share)
        restore()
        return module

    settled: list[nn.Module] = []

    def settle(judge: Judge | None) -> nn.Module:
        if not settled:
            with torch.inference_mode(False), same_randomness():
                settled.append(choose(judge))
        return settled[0]

    def choose(judge: Judge | None) -> nn.Module:
        failure: UnsupportedModelError | None = None
        for attempt in projection.attempts(make, keep_code=is_kept):
            failure = None
            try:
                if is_right(attempt, judge):
                    return attempt.module
            except UnsupportedModelError as error:  # its code does not run without what folded
                failure = error
        if restore is not None:
            restore()
        kind = type(module).__name__
        if is_kept:
            raise UnsupportedModelError(f"the forward code of {kind} looks at what these folds change")
        why = "is another graph each time it is captured" if failure is None else f"does not run as folded ({failure})"
        raise UnsupportedModelError(f"{kind} {why}: pass an ExportedProgram") from failure

    def is_right(attempt: Attempt, judge: Judge | None) -> bool:
        return is_folded(attempt, judge) and is_folded_elsewhere(attempt)

    def is_folded(attempt: Attempt, judge: Judge | None) -> bool:
        """A proof is for all sizes; else those of the example are enough, but for new code that computes with them."""
        if judge is not None:
            return judge(recapture(attempt.module))
        is_static_enough = inputs is not None and not attempt.has_sizes and not source.is_static
        if is_static_enough and captured.is_done_by(recapture(attempt.module, is_static=True)):
            return True
        return captured.is_done_by(recapture(attempt.module))

    def is_folded_elsewhere(attempt: Attempt) -> bool:
        """Whether an attempt is what folds where code that it keeps decides otherwise, by other sizes.

        An answer may be yes or no, and is tried the other way once, with all sizes changed alike. Of a number, several
        others are tried. Then each is tried where few others change: a fold may be wrong at one of them alone.
        """
        if inputs is None:
            return True
        border = source.borders[-1]
        # of both, to be run: they may change themselves alike
        pair = cache(lambda: [subject.pristine(copy_module(each)) for each in (unchanged, attempt.module)])
        further = others(border, inputs) if attempt.keeps_code and source.is_static else iter(())
        untold = chain(flipped(border, inputs) if attempt.keeps_code else (), further)
        if not all(runs_as_folded(each, attempt, pair) for each in islice(untold, UNTOLD)):
            return False
        example = sizes_of(border, inputs)
        everything = symbols_of(attempt.undone)
        found: dict[frozenset[Any], bool | None] = {}

        for decision in attempt.undone:
            own = symbols_of([decision])
            one_by_one = [[symbol] for symbol in own if len(own) > 1]
            wanted = NUMBERS if decision.is_number else 1
            enough = 1 if decision.is_asserted else FAILURES
            for symbols in (everything,) if decision.is_asserted else (everything, own, *one_by_one):
                right = failed = 0
                for sizes in elsewhere(decision, symbols, example):
                    key = frozenset(sizes.items())
                    if key not in found:
                        found[key] = is_folded_at(resized(border, inputs, sizes), attempt)
                    if found[key] is False:
                        return False
                    right, failed = right + bool(found[key]), failed + (not found[key])
                    if right == wanted or failed == enough:
                        break
                if right == wanted:
                    break
        rest = (sizes for sizes in combinations(attempt.undone, example) if frozenset(sizes.items()) not in found)
        return all(runs_as_folded(resized(border, inputs, sizes), attempt, pair) for sizes in rest)

    def runs_as_folded(other: Inputs, attempt: Attempt, pair: Callable[[], Sequence[nn.Module]]) -> bool:
        """Whether an attempt is what folds for other inputs, or one of both is not made for them; run at first."""
        if is_runnable(other):
            with suppress(UnsupportedModelError):  # of a module that cannot be copied
                original, result = pair()
                if run_alike(original, result, other):
                    return True
        return is_folded_at(other, attempt) is not False

    def is_folded_at(other: Inputs, attempt: Attempt) -> bool | None:
        """Whether an attempt is what folds for other inputs; None where it, or the original, is not made for them."""
        assert options.rehearse is not None
        result: Captured | None = None
        try:
            result = subject.recapture(attempt.module, other, is_static=True)
        except UnsupportedModelError as error:
            if GENERATED in str(error):
                return None
        try:
            wanted = subject.recapture(unchanged, other, is_static=True)
        except UnsupportedModelError:
            return None
        options.rehearse(view(wanted))
        return result is not None and wanted.is_done_by(result)

    def recapture(module: nn.Module, *, is_static: bool = source.is_static) -> Captured:
        return subject.recapture(module, inputs, is_static=is_static)

    def again() -> Captured:
        with torch.inference_mode(False), same_randomness():
            return recapture(subject.model)

    opened = OpenTorchModel(graph, module, settle, captured=captured, capture=again, observed=observed)
    return replace(opened, free=free) if is_kept else replace(opened, kept=kept)


def _twin(module: nn.Module) -> nn.Module:
    try:
        return copy_module(module, share=True)
    except UnsupportedModelError:
        return copy_structure(module)


def _pristine(module: nn.Module) -> nn.Module:
    """A twin without hooks that see values."""
    made = _twin(module)
    strip_hooks(made)
    return made


def _insist_on_methods(module: nn.Module, source: Source, preserve: Sequence[str] | None) -> None:
    for name in preserve or ():
        if name != "forward" and name not in source.methods:
            kind = type(module).__name__
            raise UnsupportedModelError(
                f"{kind}.{name} cannot be preserved: forward has to call it, or to do what it does on the same inputs"
            )


def _capture(module: nn.Module, inputs: Inputs | None, methods: Sequence[str], *, is_static: bool = False) -> Captured:
    """A module as a graph, for the sizes of the example alone if that is enough; its code runs.

    Raises:
        UnsupportedModelError: it cannot be captured.
    """
    lost = frozenset(name for name in methods if is_lost(getattr(module, name)))
    kept = [name for name in methods if name not in lost]
    if inputs is not None:
        return _of_export(export(module, inputs, kept, is_static=is_static), module, lost)
    try:
        with Joint(module, kept, is_replayed=False) if kept else nullcontext():
            traced = trace(module)
    except UntraceableError as error:
        kind = type(module).__name__
        raise UnsupportedModelError(
            f"the forward of {kind} cannot be traced ({error}): pass example_inputs, or an ExportedProgram"
        ) from error
    root = fx.GraphModule(module, traced.graph)
    source = of_trace(traced, root, module)
    return Captured(root, source, ModuleStore(root, root.graph), None, traced.recast, lost)


def _of_export(found: Export, module: nn.Module, lost: frozenset[str]) -> Captured:
    store = ProgramStore(found.program)
    source = of_export(found, store, module)
    return Captured(found.program, source, store, shapes.recorded(source.graph), lost=lost)
