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
from bnfold.graph.outcome import Fold, Outcome, Reason, Refusal

BORDERS = frozenset({Reason.FUNCTION_INPUT, Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT})
"""Reasons that the border of a function gives to what lies in it."""

ROUNDS = 8
"""How often functions are added to those whose calls are written out, from calls to calls around them."""

Place = tuple[Key | None, str]
"""A node: the function that it was in, and its first output there."""


class Inlined(Protocol):
    """A model with calls written out."""

    @property
    def proto(self) -> onnx.ModelProto:
        """The model."""

    @property
    def origins(self) -> Mapping[str, tuple[Key, str]]:
        """The function that a node was in, and its first output there, by its first output now."""


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
    origins: Mapping[str, Place]
    outcomes: Sequence[Outcome]

    def place(self, node: ir.Node) -> Place:
        """Where a node was before any call was written out."""
        first = next((value.name for value in node.outputs if value.name), "")
        return self.origins.get(first, (self.home(node), first))

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

    def wanted(self, reasons: Collection[Reason]) -> set[Key]:
        """Functions that hold a BatchNorm which is refused for one of these reasons, or calls that stop one."""
        nodes, wanted = self.labelled(), set[Key]()
        for outcome in self.outcomes:
            if not isinstance(outcome, Refusal):
                continue
            if outcome.reason in reasons:
                wanted.update(key for node in self._own(nodes, outcome) if (key := self.home(node)) is not None)
            if self.functions:
                wanted.update(_called(node) for node in nodes.get(outcome.at, ()))
        return wanted & self.view.model.functions.keys()

    def own(self, outcome: Fold | Refusal) -> Iterator[ir.Node]:
        """The node that an outcome is about."""
        return self._own(self.labelled(), outcome)

    def _own(self, nodes: Mapping[str, list[ir.Node]], outcome: Fold | Refusal) -> Iterator[ir.Node]:
        found = nodes.get(outcome.batchnorm, ())
        return (node for node in found if self.view.scope(node) == outcome.scope)


def find_calls(
    first: Trial, inlinable: Collection[Key], write_out: Callable[[frozenset[Key]], Trial | None]
) -> tuple[Trial, Trial]:
    """The trial in which most of the BatchNorms fold that stay in the first, with no function in vain; and the last.

    Args:
        first: in which no call is written out.
        inlinable: functions whose calls can be.
        write_out: makes the trial for some functions; None where there is none.
    """
    refused, best, most, last = first.refused().keys(), first, 0, first
    wanted = first.wanted({Reason.FUNCTION_INPUT}).intersection(inlinable)
    for _ in range(ROUNDS):
        trial = write_out(last.functions | wanted) if wanted else None
        if trial is None:
            break
        last = trial
        if len(gained := refused & trial.folded().keys()) > most:
            best, most = trial, len(gained)
        wanted = trial.wanted(BORDERS).intersection(inlinable)
    return (best if best is first else _without_vain(best, first, write_out)), last


def explain_call(outcome: Outcome, now: Trial, refused: Mapping[Place, Refusal]) -> Outcome:
    """A refusal for what a call gives, with the reason that would be left if the call were written out."""
    if not isinstance(outcome, Refusal) or outcome.reason is not Reason.FUNCTION_INPUT:
        return outcome
    found = next((refused[place] for node in now.own(outcome) if (place := now.place(node)) in refused), outcome)
    if found.reason is Reason.FUNCTION_INPUT:
        return outcome
    return replace(outcome, reason=found.reason, detail=f"with what a call gives: {found.detail}")


def _without_vain(best: Trial, first: Trial, write_out: Callable[[frozenset[Key]], Trial | None]) -> Trial:
    """The same without the functions that neither take part in what folds nor call one that does."""
    refused, folded = first.refused().keys(), best.folded()
    gained = refused & folded.keys()
    needed = {key for place in gained for key in folded[place]}
    functions = first.view.model.functions
    calling = {
        key: {_called(node) for node in functions[key].graph.all_nodes()} & functions.keys() for key in best.functions
    }

    def takes_part(key: Key) -> bool:
        reached: set[Key] = reach([key], lambda caller: calling.get(caller, ()))
        return not needed.isdisjoint(reached)

    fewer = frozenset(filter(takes_part, best.functions))
    if fewer == best.functions:
        return best
    trial = write_out(fewer)
    return trial if trial is not None and refused & trial.folded().keys() >= gained else best


def _called(node: ir.Node) -> Key:
    return node.domain, node.op_type, node.overload
