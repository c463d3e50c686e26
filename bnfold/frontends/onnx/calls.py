"""Functions whose calls are written out, since BatchNorms in them fold only with what their calls give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx
import onnx_ir as ir

from bnfold.frontends.onnx.scopes import label
from bnfold.frontends.onnx.view import Key, OnnxGraph
from bnfold.frontends.traversal import reach
from bnfold.graph.ops import Opaque
from bnfold.graph.outcome import Fold, Outcome, Reason, Refusal

Place = tuple[Key | None, str]
"""A node: the function that it was in, and its first output there."""


class Inlined(Protocol):
    """A model with calls written out."""

    @property
    def proto(self) -> onnx.ModelProto:
        """The model."""

    @property
    def origins(self) -> Mapping[Place, tuple[Key, str]]:
        """Where the nodes were that were put in place of calls, by where they are."""


class Inliner(Protocol):
    """What writes out calls, such as `bnfold.proof.inlining`, which the checker of a proof believes."""

    def can_inline(self, proto: onnx.ModelProto, function: onnx.FunctionProto) -> bool:
        """Whether the calls of a function can be written out."""

    def inline(self, proto: onnx.ModelProto, functions: Collection[Key]) -> Inlined:
        """Write out all calls of some functions."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A model whose calls of some functions are written out, with its plan.

    Attributes:
        functions: these functions.
        view: of that model.
        origins: where its nodes were before.
        outcomes: of the plan.
    """

    functions: frozenset[Key]
    view: OnnxGraph
    origins: Mapping[Place, Place]
    outcomes: Sequence[Outcome]

    def place(self, node: ir.Node) -> Place:
        """Where a node was before any call was written out."""
        first = next((value.name for value in node.outputs if value.name), "")
        here = self.home(node), first
        return self.origins.get(here, here)

    def home(self, node: ir.Node) -> Key | None:
        """The function that a node is in; None for the main graph."""
        scope = self.view.scope(node)
        names = ((key, ".".join(key[:2]) + (f":{key[2]}" if key[2] else "")) for key in self.view.model.functions)
        return next((key for key, name in names if scope == name or scope.startswith(f"{name}/")), None)

    def labelled(self) -> dict[str, list[ir.Node]]:
        """All nodes by what outcomes call them."""
        nodes: dict[str, list[ir.Node]] = {}
        for node in self.view.nodes():
            nodes.setdefault(label(node), []).append(node)
        return nodes

    def folded(self) -> dict[Place, set[Key]]:
        """The BatchNorms that fold, each with the functions that what takes part in it was in."""
        nodes, folded = self.labelled(), dict[Place, set[Key]]()
        for outcome in self.outcomes:
            if isinstance(outcome, Fold) and outcome.is_batchnorm:
                taking = [node for name in (*outcome.into, *outcome.through) for node in nodes.get(name, ())]
                for node in self._own(nodes, outcome):
                    homes = {self.place(each)[0] for each in (node, *taking)}
                    folded.setdefault(self.place(node), set()).update(key for key in homes if key is not None)
        return folded

    def refused(self) -> dict[Place, Refusal]:
        """The BatchNorms that stay, each with the reason in the first of its places."""
        nodes, refused = self.labelled(), dict[Place, Refusal]()
        for outcome in self.outcomes:
            if isinstance(outcome, Refusal):
                for node in self._own(nodes, outcome):
                    refused.setdefault(self.place(node), outcome)
        return refused

    def lacking(self) -> set[Key]:
        """The functions that hold an operator whose parameters or attributes their calls give."""
        opaque = ((node, op) for node in self.view.nodes() if isinstance(op := self.view.op(node), Opaque))
        homes = {self.home(node) for node, op in opaque if op.stop.reason is Reason.FUNCTION_INPUT}
        return {key for key in homes if key is not None}

    def own(self, outcome: Fold | Refusal) -> Iterator[ir.Node]:
        """The node that an outcome is about."""
        return self._own(self.labelled(), outcome)

    def _own(self, nodes: Mapping[str, list[ir.Node]], outcome: Fold | Refusal) -> Iterator[ir.Node]:
        found = nodes.get(outcome.batchnorm, ())
        return (node for node in found if self.view.scope(node) == outcome.scope)


def find_calls(
    first: Trial, inlinable: frozenset[Key], write_out: Callable[[frozenset[Key]], Trial | None]
) -> tuple[Trial, Trial]:
    """The trial in which BatchNorms fold with what calls give, and the one in which all calls are written out.

    In the former, functions that take no part in these folds stay. It is the first trial if there are no such folds.

    Args:
        first: in which no call is written out.
        inlinable: functions whose calls can be.
        write_out: makes the trial for some functions; None where there is none.
    """
    lacking, stays = first.lacking(), first.refused()
    everything = write_out(inlinable) if lacking and inlinable else None
    if everything is None:
        return first, first
    folded, refused = everything.folded(), everything.refused().keys()
    gained = {place for place in stays.keys() & folded.keys() if not lacking.isdisjoint(folded[place])}
    needed = frozenset(key for place in gained for key in folded[place])
    tries = [needed, _with_callers(first, needed)] if refused.isdisjoint(gained) else [_with_callers(first, needed)]
    for keys in tries if gained else ():
        trial = everything if keys >= inlinable else write_out(keys & inlinable)
        if trial is not None and trial.folded().keys() >= gained and trial.refused().keys() & gained <= refused:
            return trial, everything
    return (everything if gained else first), everything


def _with_callers(first: Trial, needed: frozenset[Key]) -> frozenset[Key]:
    """Functions with all that call them."""
    functions = first.view.model.functions
    callers: dict[Key, set[Key]] = {}
    for key, function in functions.items():
        for node in function.graph.all_nodes():
            callers.setdefault((node.domain, node.op_type, node.overload), set()).add(key)
    reached: set[Key] = reach(needed, lambda key: callers.get(key, ()))
    return frozenset(reached)


def explain_call(outcome: Outcome, now: Trial, refused: Mapping[Place, Refusal]) -> Outcome:
    """A refusal for what a call gives, with the reason that would be left if the call were written out."""
    if not isinstance(outcome, Refusal) or outcome.reason is not Reason.FUNCTION_INPUT:
        return outcome
    found = next((refused[place] for node in now.own(outcome) if (place := now.place(node)) in refused), outcome)
    if found.reason is Reason.FUNCTION_INPUT:
        return outcome
    return replace(outcome, reason=found.reason, detail=f"with what a call gives: {found.detail}")
