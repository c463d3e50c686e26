"""Declared shapes and types of inner values and outputs: hints, which may be older than the graph.

A hint that contradicts what is known is not used. One that nothing contradicts is used once a run of the model has
confirmed it. The model is run only if the planner missed a shape or type that a hint declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx_ir as ir

from bnfold.frontends.onnx.nesting import bodies_of, graphs
from bnfold.frontends.onnx.operators.shapes import KINDS, Inference, Kind, Known, graph_values, read_shape
from bnfold.frontends.onnx.scopes import Scopes
from bnfold.frontends.onnx.shape_inference import Confirm
from bnfold.frontends.traversal import reach
from bnfold.graph.cautions import DeclarationCaution
from bnfold.graph.ops import Shape

T = TypeVar("T")


class Lookup(MutableMapping[ir.Value, T]):
    """Facts about values, which reports every question that it cannot answer in full.

    Args:
        known: the facts.
        is_whole: whether nothing is missing in an answer.
        miss: called with a value of which something is missing.
    """

    def __init__(self, known: Known[T], is_whole: Callable[[T], bool], miss: Callable[[ir.Value], None]) -> None:
        self.known = known
        self._is_whole = is_whole
        self._miss = miss

    def __getitem__(self, value: ir.Value) -> T:
        answer: T | None = self.known.get(value)
        if answer is None:
            self._miss(value)
            raise KeyError(value)
        if not self._is_whole(answer):
            self._miss(value)
        return answer

    def __setitem__(self, value: ir.Value, answer: T) -> None:
        self.known[value] = answer

    def __delitem__(self, value: ir.Value) -> None:
        del self.known[value]

    def __iter__(self) -> Iterator[ir.Value]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


@dataclass(frozen=True, eq=False)
class _Hint:
    """The declaration of one value."""

    value: ir.Value
    graph: ir.Graph
    declared: Kind


class Hints:
    """The declarations of a model, and the facts that they add to.

    Args:
        model: not changed.
        inferred: what is known.
        scopes: of the model.

    Attributes:
        shapes, types: what is known, with what a run has confirmed.
        misses: how often something was asked for that hints alone could tell.
    """

    def __init__(self, model: ir.Model, inferred: Inference, scopes: Scopes) -> None:
        self._model = model
        self._inferred = inferred
        self._scopes = scopes
        self._stale: list[DeclarationCaution] = []
        self._confirmed: list[_Hint] = []
        self._open: list[_Hint] = []
        self._reached: frozenset[ir.Value] | None = None
        self._whole: dict[Shape, bool] = {}
        self.misses = 0
        self.shapes: Lookup[Shape] = Lookup(inferred.shapes, self._is_whole, self._miss)
        self.types: Lookup[ir.DataType] = Lookup(inferred.types, lambda dtype: True, self._miss)
        self._sort([_Hint(value, graph, kind) for graph in graphs(model) for value, kind in self._declared_in(graph)])
        if not self._open:
            inferred.release()

    def _is_whole(self, shape: Shape) -> bool:
        if (known := self._whole.get(shape)) is None:
            known = all(isinstance(dim, int) or dim in self._inferred.symbols for dim in shape)
            self._whole[shape] = known
        return known

    def _declared_in(self, graph: ir.Graph) -> Iterator[tuple[ir.Value, Kind]]:
        for value in graph_values(graph):
            is_contract = graph is self._model.graph and value.is_graph_input()
            if not is_contract and not self._is_of_tensor(value) and (kind := _declared(value)) is not None:
                yield value, kind

    def _is_of_tensor(self, value: ir.Value) -> bool:
        """Whether a shape is that of a stored tensor, which onnx-ir gives each that the file declares nothing of."""
        shape = value.shape
        return (
            value.const_value is not None
            and shape is not None
            and shape.frozen
            and shape.dims == self._inferred.shapes.get(value)
        )

    def _sort(self, hints: list[_Hint]) -> None:
        """Reject hints that contradict a fact, and keep open those that add to one."""
        self._open, self._reached = [], None
        for hint in hints:
            known = Kind(self.shapes.known.get(hint.value), self.types.known.get(hint.value))
            if _contradict(hint.declared, known):
                self._reject(hint, f"but it is {_write(known)}")
            elif self._adds(hint.declared, known):
                self._open.append(hint)

    def _reject(self, hint: _Hint, truth: str) -> None:
        detail = f"declared as {_write(hint.declared)}, {truth}; the declaration is not used"
        scope = self._scopes.graph_name(hint.graph)
        self._stale.append(DeclarationCaution(hint.value.name or "", scope, "stale-declaration", detail))

    def _adds(self, declared: Kind, known: Kind) -> bool:
        """Whether a declaration adds a type, a rank or a number. A size that a graph input leaves open stays open."""
        if known.dtype is None and declared.dtype is not None:
            return True
        if declared.shape is None or known.shape is None:
            return declared.shape is not None
        return any(
            isinstance(claim, int) and not isinstance(fact, int) and fact not in self._inferred.symbols
            for claim, fact in zip(declared.shape, known.shape, strict=True)
        )

    def _miss(self, value: ir.Value) -> None:
        """Count a question that a hint could answer."""
        if self._open and value in self._reach():
            self.misses += 1

    def _reach(self) -> frozenset[ir.Value]:
        """The values of open hints, and everything that is computed from them."""
        if self._reached is None:
            self._reached = _downstream([hint.value for hint in self._open], self._model)
        return self._reached

    def try_out(self, confirm: Confirm) -> bool:
        """Run the model once for all hints of the main graph; whether that could be done."""
        asked = {hint.value.name or "": hint for hint in self._open if hint.graph is self._model.graph}
        runs_of = confirm(list(asked)) if asked else None
        if not runs_of:
            return False
        confirmed: dict[str, Kind] = {}
        for name, hint in asked.items():
            if name not in runs_of:
                continue
            self._open.remove(hint)
            dtype = ir.DataType(runs_of[name].dtype)
            runs = [Kind(shape, dtype) for shape in runs_of[name].shapes]
            refuted = [run for run in runs if _contradict(hint.declared, run)]
            if refuted:
                self._reject(hint, f"but in a run of the model it was {_write(refuted[0])}")
            else:
                confirmed[name] = Kind(self._numbers(hint), dtype)
                self._confirmed.append(hint)
        self._inferred.add(confirmed)
        self._sort(self._open)
        return True

    def _numbers(self, hint: _Hint) -> Shape | None:
        """The declared numbers, and facts for the other sizes. Two runs of a model cannot confirm a symbol."""
        declared = hint.declared.shape
        known: Shape | None = self.shapes.known.get(hint.value)
        if declared is None:
            return known
        facts = known or (None,) * len(declared)
        return tuple(claim if isinstance(claim, int) else fact for claim, fact in zip(declared, facts, strict=True))

    def agrees(self, value: ir.Value) -> bool:
        """Whether facts confirm the whole declaration of a value."""
        declared, shape = _declared(value) or Kind(), self.shapes.known.get(value)
        if declared.dtype not in (None, self.types.known.get(value)):
            return False
        if declared.shape is None or shape is None or len(declared.shape) != len(shape):
            return declared.shape is None
        pairs = zip(declared.shape, shape, strict=True)
        return all(claim == fact for claim, fact in pairs if isinstance(claim, int))

    def warnings(self) -> list[DeclarationCaution]:
        """The declarations that are wrong."""
        return list(self._stale)

    def confirmed(self) -> dict[ir.Value, Kind]:
        """What is believed since a run showed it."""
        return {hint.value: Kind(self._numbers(hint), self.types.known.get(hint.value)) for hint in self._confirmed}

    def confirmations(self) -> list[DeclarationCaution]:
        """One caution about all declarations that a run confirmed."""
        if not self._confirmed:
            return []
        others = "" if len(self._confirmed) == 1 else f" (so are those of {len(self._confirmed) - 1} values more)"
        detail = f"its shape is only declared{others}; a run of the model confirmed it"
        return [DeclarationCaution(self._confirmed[0].value.name or "", "main", "confirmed-declaration", detail)]


UNCONFIRMED = "its shape is only declared, and the model could not be run to confirm it"
"""The text that a refusal adds where a shape was missed."""


def _declared(value: ir.Value) -> Kind | None:
    """The declaration of a tensor; None where the file has none."""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return None
    dtype = value.dtype if value.dtype in KINDS else None
    shape = None if value.shape is None else read_shape(value.shape)
    return None if dtype is None and shape is None else Kind(shape, dtype)


def _contradict(declared: Kind, known: Kind) -> bool:
    """Whether type, rank or a number differ. An unknown one contradicts nothing."""
    if declared.dtype is not None and known.dtype not in (None, declared.dtype):
        return True
    if declared.shape is None or known.shape is None:
        return False
    if len(declared.shape) != len(known.shape):
        return True
    pairs = zip(declared.shape, known.shape, strict=True)
    return any(isinstance(one, int) and isinstance(two, int) and one != two for one, two in pairs)


def _write(kind: Kind) -> str:
    """``float[1, 3, ?, ?]``; a size that has no name is a question mark."""
    dtype = "" if kind.dtype is None else kind.dtype.name.lower()
    if kind.shape is None:
        return dtype
    return dtype + "[" + ", ".join("?" if dim is None else str(dim) for dim in kind.shape) + "]"


def _downstream(starts: Sequence[ir.Value], model: ir.Model) -> frozenset[ir.Value]:
    """Values and everything that is computed from them, in all graphs."""
    entries: dict[ir.Node, list[ir.Value]] = {}
    exits: dict[ir.Value, list[ir.Node]] = {}
    functions = {key: function.graph for key, function in model.functions.items()}
    for graph in graphs(model):
        for node in graph:
            inner = [body for _, body in bodies_of(node)]
            inner += [functions[node.op_identifier()]] if node.op_identifier() in functions else []
            for body in inner:
                entries.setdefault(node, []).extend(body.inputs)
                for output in body.outputs:
                    exits.setdefault(output, []).append(node)

    def following(value: ir.Value) -> Iterator[ir.Value]:
        for node in (*(use.node for use in value.uses()), *exits.get(value, ())):
            yield from node.outputs
        for use in value.uses():
            yield from entries.get(use.node, ())

    return frozenset(reach(starts, following))
