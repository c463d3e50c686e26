"""What the code of modules decided by sizes while it was captured, and would at other sizes decide otherwise.

A loop over a size, or a branch on one, leaves no trace in a graph, which shows one way through the code. What an
operator asks of a size is no such decision, but where it takes a size as a number, as `unbind` does.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import Any, TypeVar
from unittest.mock import patch

import sympy
import torch
from torch import fx
from torch._export.non_strict_utils import _NonStrictTorchFunctionHandler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.symbol import SymT, symbol_is_type

from bnfold.frontends.inputs import Inputs
from bnfold.frontends.torch.capture.borders import Border
from bnfold.frontends.torch.capture.structure import Structure, flatten

P = TypeVar("P")


@dataclass(frozen=True)
class Decision:
    """A condition on sizes that was true, and that code depends on.

    Attributes:
        stack: the paths of the modules whose forward ran, the model's first; the last one asked.
        condition: in the symbols of the sizes of the inputs, and of terms.
        simplified: the same by what the export found out of these symbols.
        is_number: whether the code asked for a number, of which it may do anything, not whether the condition holds.
        is_inside: whether an operator asked that torch then spelt by others; it does the same whatever the answer.
        is_asserted: whether code raises an error where the condition does not hold.
        is_known: whether code read sizes of a tensor which might be that number by a decision of other code.
        terms: what other symbols stand for, in those of the sizes of the inputs and in earlier ones.
    """

    stack: tuple[str, ...]
    condition: Any
    simplified: Any
    is_number: bool
    is_inside: bool = False
    is_asserted: bool = False
    is_known: bool = False
    terms: dict[Any, Any] = field(default_factory=dict, compare=False)

    def is_taken(self, sizes: Mapping[Any, int]) -> bool:
        """Whether the condition holds for some sizes, or has no meaning there: code on its way decided otherwise."""
        values: dict[Any, Any] = dict(sizes)
        needed = self._needed()
        try:
            for symbol, term in self.terms.items():
                if symbol in needed:
                    values[symbol] = term.xreplace(values)
            return bool(self.condition.xreplace(values) != sympy.false)
        except ZeroDivisionError:
            return True

    def symbols(self) -> set[Any]:
        """The symbols of the sizes of the inputs in the condition."""
        return self._needed() - self.terms.keys()

    def _needed(self) -> set[Any]:
        found: set[Any] = set(self.condition.free_symbols)
        for symbol in reversed(self.terms):
            if symbol in found:
                found |= self.terms[symbol].free_symbols
        return found


class Watch:
    """Notes the decisions of a module's code while it is exported.

    Args:
        running: tells the paths of the modules whose forward runs.
    """

    def __init__(self, running: Callable[[], tuple[str, ...]]) -> None:
        self._running = running
        self._noted: dict[tuple[tuple[str, ...], Any, bool, bool, bool], Any] = {}
        self._reading: dict[tuple[str, ...], None] = {}

    def decisions(self, terms: dict[Any, Any]) -> tuple[Decision, ...]:
        """Each once; a size that one made a number is a number for all code that reads sizes."""
        found = [
            Decision(stack, condition, environment.replace(condition), number, inside, asserted, terms=terms)
            for (stack, condition, number, inside, asserted), environment in self._noted.items()
        ]
        numbers = dict.fromkeys(each.condition for each in found if each.simplified == sympy.true)
        found += [
            Decision(stack, each, sympy.true, is_number=True, is_known=True, terms=terms)
            for stack in self._reading
            for each in numbers
        ]
        return tuple(found)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes what is decided inside: in one place of torch a symbol becomes an answer, and one sees all calls."""
        evaluate = SymNode.evaluate

        def watched(node: SymNode, size_oblivious: bool = False) -> bool | int | float:
            value = evaluate(node, size_oblivious)
            if not size_oblivious:
                self._note(node, value)
            return value

        handle: Any = _NonStrictTorchFunctionHandler.__torch_function__

        def handled(handler: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in SIZES:
                self._note_reading()
            return handle(handler, func, types, args, kwargs)

        with (
            patch.object(SymNode, "evaluate", watched),
            patch.object(_NonStrictTorchFunctionHandler, "__torch_function__", handled),
        ):
            yield

    def _note(self, node: SymNode, value: Any) -> None:
        asked: Any = node._expr
        stack = self._running()
        symbols = asked.free_symbols
        if not stack or not symbols or any(symbol_is_type(each, UNBACKED) for each in symbols):
            return
        if not node.is_bool():
            self._noted[stack, sympy.Eq(asked, value), True, False, False] = node.shape_env
        elif not _is_asked_by_an_operator():
            condition = asked if value else sympy.Not(asked)
            asking = _asking()
            is_inside = asking not in (None, "bool_", "expect_true")
            self._noted[stack, condition, False, is_inside, bool(value) and _is_asserted()] = node.shape_env

    def _note_reading(self) -> None:
        stack = self._running()
        if stack and not _is_asked_by_an_operator():
            self._reading[stack] = None


SIZES = {
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
    torch.numel,
    *(getattr(torch.Tensor, name) for name in ("__len__", "nelement", "numel", "size", "stride")),
    *(getattr(torch.Tensor, name) for name in ("__iter__", "chunk", "split", "tensor_split", "unbind", "unsafe_chunk")),
    *(torch.chunk, torch.split, torch.tensor_split, torch.unbind, torch.unsafe_chunk),
}
"""What tells something of the sizes of a tensor: numbers, or that many tensors."""

UNBACKED = (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT)


def _is_asked_by_an_operator() -> bool:
    """Whether an operator asks, not the code of a module."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_call_impl":
        if frame.f_code.co_name == "__torch_dispatch__":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _asking() -> str | None:
    """The function that wants an answer: one for `bool` or a check of Python, or for an operator's own code in C++."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "guard_bool":
        frame = frame.f_back  # type: ignore[assignment]
    asking = None if frame is None else frame.f_back
    return None if asking is None else asking.f_code.co_name


def _is_asserted() -> bool:
    """Whether `torch._assert` asks, which raises an error if the answer is no, and does nothing else."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_call_impl":
        if frame.f_code is torch._assert.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def expressions(size: Any) -> tuple[Any, ...]:
    """What a size is in symbols: as it was made, and by what the export found out of them; nothing for a number."""
    if not isinstance(size, torch.SymInt):
        return ()
    return tuple(each for each in dict.fromkeys((size.node._expr, size.node.expr)) if each.free_symbols)


def fixed(size: Any) -> int | None:
    """A size that is a number, or a symbol that an export found to be one."""
    if isinstance(size, torch.SymInt):
        return int(size.node.expr) if size.node.expr.is_number else None
    return size if isinstance(size, int) else None


def stated(decision: Decision, sizes: Mapping[Any, str]) -> tuple[str, list[str]] | None:
    """A condition as Python code, and the names in it; None where it is about other sizes than those at hand.

    Args:
        decision: whose condition.
        sizes: the names of sizes, by what they are in symbols.
    """
    symbols = {size: sympy.Symbol(name, integer=True, positive=True) for size, name in sizes.items()}
    known: dict[Any, Any] = {}
    for size, symbol in symbols.items():
        offset, base = size.as_coeff_Add()  # so that ``n + 1`` is found in ``n + 3``
        known.setdefault(base, symbol - offset)
    names = set(symbols.values())
    for form in (decision.condition, decision.simplified):
        at_hand = form.xreplace(known)
        while (missing := at_hand.free_symbols - names) and missing <= decision.terms.keys():
            at_hand = at_hand.xreplace({each: decision.terms[each].xreplace(known) for each in missing})
        if at_hand.free_symbols and at_hand.free_symbols <= names:
            return PythonPrinter().doprint(at_hand), sorted(map(str, at_hand.free_symbols))
    return None


def elsewhere(decision: Decision, symbols: Sequence[Any], example: Mapping[Any, int]) -> Iterator[dict[Any, int]]:
    """Sizes at which code decides otherwise, the likeliest to matter first.

    Args:
        decision: of the code.
        symbols: of the sizes that are changed, all alike.
        example: the size that each symbol has.
    """
    for factor, summand in CHANGES:
        sizes = {symbol: int(example[symbol] * factor) + summand for symbol in symbols}
        if min(sizes.values()) > 0 and not decision.is_taken({**example, **sizes}):
            yield sizes


def combinations(decisions: Iterable[Decision], example: Mapping[Any, int]) -> Iterator[dict[Any, int]]:
    """Sizes for sets of answers that code may get, those first in which few are others than for the example.

    Not all there are: one size is changed alone, or several at random, near the example and near numbers in conditions.
    Behind these come other sizes that code takes as numbers.
    """
    deciding = list({each.condition: each for each in decisions if not each.is_asserted}.values())
    symbols = symbols_of(deciding)
    numbers = {int(number) for each in deciding for number in each.condition.atoms(sympy.Integer)}
    values = {symbol: _near(example[symbol], numbers) for symbol in symbols}
    found: dict[tuple[bool, ...], dict[Any, int]] = {}
    for sizes in islice(varied(values), ASKED // max(1, len(deciding))):
        answers = tuple(each.is_taken({**example, **sizes}) for each in deciding)
        if not all(answers):
            found.setdefault(answers, sizes)
    chosen = [found[answers] for answers in sorted(found, key=sum, reverse=True)[:ANSWERS]]
    yield from chosen
    for symbol in symbols_of(each for each in deciding if each.is_number):
        alone = ({symbol: size} for size in _changed(example[symbol])[:NUMBERED] if size <= 2 * example[symbol] + 2)
        yield from (sizes for sizes in alone if sizes not in chosen)


ASKED = 40_000
"""How often a decision is asked for other sizes."""

ANSWERS, NUMBERED = 12, 6
"""How many sets of answers are tried, and how many other sizes of each that code takes as a number."""


def varied(values: Mapping[P, Sequence[int]]) -> Iterator[dict[P, int]]:
    """Each size alone, the first of all before the second, and then several at random."""
    for index in range(max(map(len, values.values()), default=0)):
        yield from ({place: sizes[index]} for place, sizes in values.items() if index < len(sizes))
    generator = random.Random(0)  # so that a model is always treated alike
    for _ in range(SAMPLES if len(values) > 1 else 0):
        chosen = generator.sample(list(values), generator.randint(2, len(values)))
        yield {place: generator.choice(values[place]) for place in chosen}
        yield dict.fromkeys(chosen, generator.choice(values[chosen[0]]))  # as code may ask for equal ones


SAMPLES = 128
"""How often several sizes are changed at random."""


def _near(size: int, numbers: Iterable[int]) -> list[int]:
    near = sorted({number + more for number in numbers for more in (-1, 0, 1)})
    return [other for other in (*_changed(size), *near) if 0 < other <= max(LARGEST, 2 * size)]


LARGEST = 1 << 12
"""The largest size among these, or twice that of the example."""


def _changed(size: int) -> list[int]:
    changed = (int(size * factor) + summand for factor, summand in CHANGES)
    return [other for other in dict.fromkeys(changed) if other not in (0, size)]


def symbols_of(decisions: Iterable[Decision]) -> list[Any]:
    """The symbols of the sizes by which code decides."""
    return sorted({symbol for each in decisions for symbol in each.symbols()}, key=str)


CHANGES = (
    *((1, 1), (0, 1), (16, 1), (1, -1), (1, 2), (1, -2), (2, 0), (0.5, 0)),
    *((3, 0), (0, 2), (0, 3), (256, 1), (4096, 1)),
)
"""By what a size is multiplied, and what is added to it."""


def sizes_of(border: Border, inputs: Inputs) -> dict[Any, int]:
    """The sizes of inputs by their symbols, given the border of the model itself."""
    return {symbol: leaf.shape[axis] for symbol, leaf, axis in _symbols(border, _arguments(border, inputs)[0])}


def resized(border: Border, inputs: Inputs, sizes: Mapping[Any, int]) -> Inputs:
    """Inputs of which some sizes are others, and whose values then say nothing."""
    leaves, structure = _arguments(border, inputs)
    shapes: dict[int, list[int]] = {}
    for symbol, leaf, axis in _symbols(border, leaves):
        if symbol in sizes:
            shapes.setdefault(id(leaf), list(leaf.shape))[axis] = sizes[symbol]
    made = [_zeros(leaf, shapes[id(leaf)]) if id(leaf) in shapes else leaf for leaf in leaves]
    return _call(border, structure, made)


HELD = 1 << 24
"""Elements of the largest tensor that takes memory, though an export reads none of them."""


FEW = 2
"""How many other sizes of each axis are tried where a capture tells no decisions."""


def others(border: Border, inputs: Inputs) -> Iterator[Inputs]:
    """Inputs of other sizes than those of the example, for which a module was captured alone."""
    leaves, structure = _arguments(border, inputs)
    values = {
        (index, axis): _changed(size)[:FEW]
        for index, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
        for axis, size in enumerate(leaf.shape)
    }
    for sizes in varied(values):
        made = list(leaves)
        for index in {index for index, _ in sizes}:
            shape = [sizes.get((index, axis), size) for axis, size in enumerate(leaves[index].shape)]
            made[index] = _zeros(leaves[index], shape)
        yield _call(border, structure, made)


def flipped(border: Border, inputs: Inputs) -> Iterator[Inputs]:
    """Inputs of which one truth value is the other, or one number another; defaults are among them."""
    leaves, structure = _arguments(border, inputs)
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, bool | int | float):
            made = [*leaves[:index], not leaf if isinstance(leaf, bool) else leaf + 1, *leaves[index + 1 :]]
            yield _call(border, structure, made)


def _zeros(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    held: AbstractContextManager[Any] = nullcontext()
    if prod(shape) > HELD:
        held = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with held:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)


def _arguments(border: Border, inputs: Inputs) -> tuple[list[Any], Structure]:
    bound = border.signature.bind(*inputs.args, **inputs.kwargs)
    bound.apply_defaults()
    return flatten(dict(bound.arguments))


def _call(border: Border, structure: Structure, leaves: list[Any]) -> Inputs:
    arguments = inspect.BoundArguments(border.signature, structure.build(leaves))
    return Inputs(arguments.args, arguments.kwargs)


def _symbols(border: Border, leaves: list[Any]) -> Iterator[tuple[Any, torch.Tensor, int]]:
    for node, leaf in zip(border.leaves, leaves, strict=True):
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                yield size.node._expr, leaf, axis  # not the symbol of an axis that the code made its equal
