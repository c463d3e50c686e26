"""What will be done to a model: which of its BatchNorms fold, decided before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any

from bnfold.errors import UnsupportedModelError
from bnfold.frontends.door import Entry
from bnfold.frontends.limits import Limits
from bnfold.frontends.protocol import Cautions, OpenModel, OpenOptions
from bnfold.graph.ops import Form
from bnfold.graph.outcome import Fold, Merge, Outcome, Refusal
from bnfold.graph.protocol import Graph
from bnfold.planning.changes import trace_changes
from bnfold.planning.fold import fold
from bnfold.planning.lowering import Lowering, describe_lowered, find_lowered
from bnfold.planning.plan import Plan
from bnfold.planning.planner import make_plan
from bnfold.proof import inlining
from bnfold.proof.ledger import Changes
from bnfold.runtimes.inputs import DRAWN, InputOptions
from bnfold.verification.confirm import confirmer
from bnfold.verification.proving import Prover, begin

Progress = Callable[[str, int, int], None]
"""A function that is called with a stage's name, the steps done and their total."""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody of progress."""


@dataclass(frozen=True)
class Selection:
    """The candidates that may fold, by node name: those that match `only` (all, if empty) and not `skip`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __call__(self, name: str) -> bool:
        """Whether the candidate of that name may fold."""
        wanted = not self.only or any(fnmatchcase(name, glob) for glob in self.only)
        return wanted and not any(fnmatchcase(name, glob) for glob in self.skip)


EVERYTHING = Selection()


@dataclass(frozen=True)
class Request:
    """What may be done to a model.

    Attributes:
        selection: the BatchNorms that may fold.
        merge: whether linear operators may become one.
        lower: what BatchNorms that stay are written as; None leaves them.
    """

    selection: Selection = EVERYTHING
    merge: bool = True
    lower: Form | None = None

    @classmethod
    def of(cls, selection: Selection = EVERYTHING, *, merge: bool = True, lower: str | None = None) -> Request:
        """A request of what a user gives."""
        return cls(selection, merge, None if lower is None else Form(lower))

    def plan(self, graph: Graph[Any, Any], progress: Progress = silent) -> Plan[Any, Any]:
        """The plan for a graph."""
        return make_plan(graph, selected=self.selection, merge=self.merge, progress=partial(progress, "plan"))

    def options(self, limits: Limits, inputs: InputOptions = DRAWN, **further: Any) -> OpenOptions:
        """The options for opening a model. One whose shapes are only declared is run on `inputs` to confirm them."""

        def rehearse(graph: Graph[Any, Any]) -> None:
            fold(graph, self.plan(graph))

        observe = partial(confirmer, inputs=inputs)
        return OpenOptions(limits=limits, observe=observe, rehearse=rehearse, inliner=inlining, **further)


@dataclass(frozen=True, eq=False)
class Decision:
    """An open model, and what will be done to it.

    Attributes:
        opened: the model.
        request: what may be done to it.
        plan: what folds where, and why the rest stays.
        has_learnt: whether knowledge about the model changed the plan.
    """

    opened: OpenModel
    request: Request
    plan: Plan[Any, Any]
    has_learnt: bool

    @cached_property
    def lowering(self) -> Lowering[Any]:
        """What becomes of the BatchNorms that the plan leaves; nothing where that is not asked for.

        Raises:
            UnsupportedModelError: the model is no ONNX model.
        """
        if self.request.lower is None:
            return Lowering({}, {})
        if not self.opened.graph.can_lower:
            raise UnsupportedModelError("only BatchNorms of ONNX models are written as other operators so far")
        return find_lowered(self.opened.graph, self.plan, self.request.lower)

    @cached_property
    def changes(self) -> Changes:
        """What will be done, in the words of the proof."""
        return trace_changes(self.opened.graph, self.plan)

    def explain(self) -> tuple[Outcome, ...]:
        """One outcome for each BatchNorm, and one for each merge. To be asked before the edits."""

        def replan(graph: Graph[Any, Any]) -> tuple[Outcome, ...]:
            return make_plan(graph, merge=self.request.merge).outcomes

        outcomes = self.opened.explain(self.plan.outcomes, replan)
        return describe_lowered(self.opened.graph, self.lowering, outcomes)

    def warn(self) -> Cautions:
        """Warnings about running statistics and declared shapes."""
        return self.opened.warn(has_learnt=self.has_learnt)

    def begin(self, entry: Entry) -> Prover | None:
        """The prover of the edits; None where there is none for models of this kind."""
        return begin(entry, self.opened, lambda: self.changes)

    def apply(self) -> None:
        """Edit the model."""
        fold(self.opened.graph, self.plan, self.lowering.written)


def decide(opened: OpenModel, request: Request, progress: Progress = silent) -> Decision:
    """Plan. Where a BatchNorm stays, find out more about the model, and if there is more, plan again."""

    def replan(graph: Graph[Any, Any]) -> tuple[Outcome, ...]:
        return _with_lowered(graph, request.plan(graph), request.lower)

    first = request.plan(opened.graph, progress)
    is_done = not any(isinstance(outcome, Refusal) for outcome in first.outcomes)
    if is_done or not opened.learn(_with_lowered(opened.graph, first, request.lower), replan):
        return Decision(opened, request, first, has_learnt=False)
    second = request.plan(opened.graph, progress)
    return Decision(opened, request, second, has_learnt=second.outcomes != first.outcomes)


def _with_lowered(graph: Graph[Any, Any], plan: Plan[Any, Any], form: Form | None) -> tuple[Outcome, ...]:
    """The outcomes of a plan, in which a BatchNorm that will be lowered is as good as one that folds."""
    if form is None or not graph.can_lower:
        return plan.outcomes
    gone = {(graph.name(node), graph.scope(node)) for node in find_lowered(graph, plan, form).written}
    return tuple(
        Fold(outcome.batchnorm, outcome.scope, form, (), ()) if (outcome.batchnorm, outcome.scope) in gone else outcome
        for outcome in plan.outcomes
        if not isinstance(outcome, Merge)
    )
