"""The inputs and outputs of two models, side by side, and what a caller of both meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bnfold.errors import IncomparableError
from bnfold.runtimes.inputs import Declared, merge_declared
from bnfold.verification.observe import is_float_type
from bnfold.verification.subject import Subject


@dataclass(frozen=True)
class Pairing:
    """The inputs and outputs of the candidate, in the order of the reference's.

    Attributes:
        declared: the inputs that fit both, under the reference's names and in its types.
        inputs: the inputs as the candidate declares them.
        outputs: the names of the candidate's outputs.
        notes: sentences about other names.
    """

    declared: tuple[Declared, ...]
    inputs: tuple[Declared, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]


def pair_interfaces(
    reference: Subject, candidate: Subject, renamed: Mapping[str, str], *, by_position: bool
) -> Pairing:
    """Find the candidate's input and output for each of the reference's.

    Args:
        reference: one model.
        candidate: the other. Names of models of different kinds mean nothing: they are paired by position.
        renamed: the candidate's name for a name of the reference.
        by_position: whether other names that are left are paired by their position.

    Raises:
        IncomparableError: they do not fit.
    """
    both = f"{reference.label} and {candidate.label}"
    theirs = {entry.name: entry for entry in candidate.inputs}
    mine = [entry.name for entry in reference.inputs]
    _insist_on_names(renamed, [*mine, *reference.outputs], [*theirs, *candidate.outputs])
    is_free = reference.kind != candidate.kind
    inputs = _paired(mine, list(theirs), renamed, is_free=is_free, by_position=by_position)
    declared = None
    if inputs is not None:
        declared = merge_declared(reference.inputs, _as_typed(reference, [theirs[name] for name in inputs]))
    if inputs is None or declared is None:
        raise IncomparableError(
            f"{both} have other inputs: {_signature(reference.inputs)} against {_signature(candidate.inputs)}"
            f"{'' if inputs else HINT}"
        )
    names = list(reference.outputs), list(candidate.outputs)
    outputs = _paired(*names, renamed, is_free=is_free, by_position=by_position)
    if outputs is None:
        raise IncomparableError(f"{both} have other outputs: {' against '.join(map(', '.join, names))}{HINT}")
    notes: list[str] = []
    for kind, pairs in (("input", zip(mine, inputs, strict=True)), ("output", zip(names[0], outputs, strict=True))):
        notes += [f"{kind} {one!r} is compared with {other!r}" for one, other in pairs if one != other and not is_free]
    return Pairing(tuple(declared), tuple(theirs[name] for name in inputs), tuple(outputs), tuple(notes))


HINT = " (--map OLD=NEW pairs names)"


def _insist_on_names(renamed: Mapping[str, str], mine: Sequence[str], theirs: Sequence[str]) -> None:
    for old, new in renamed.items():
        for name, names, what in ((old, mine, "reference"), (new, theirs, "candidate")):
            if name not in names:
                has = ", ".join(names)
                raise IncomparableError(
                    f"--map {old}={new}: the {what} has no input or output {name!r} (it has: {has})"
                )


def _paired(
    mine: Sequence[str], theirs: Sequence[str], renamed: Mapping[str, str], *, is_free: bool, by_position: bool
) -> list[str] | None:
    """A name of `theirs` for each of `mine`; None where they do not fit."""
    if len(mine) != len(theirs):
        return None
    wanted = [renamed.get(name, name) for name in mine]
    if len(set(wanted)) < len(wanted):
        return None
    if wanted == list(theirs) or (is_free and not set(renamed) & set(mine)):
        return list(theirs)
    is_mapped = bool(set(renamed) & set(mine))
    if set(wanted) == set(theirs):  # in another order, which is another interface unless somebody meant it
        return wanted if is_mapped else None
    if not by_position:
        return None
    left = iter([name for name in theirs if name not in wanted])
    return [name if name in theirs else next(left) for name in wanted]


def _as_typed(reference: Subject, inputs: Sequence[Declared]) -> list[Declared]:
    """Inputs with the reference's type where both are floating point numbers."""
    return [
        replace(other, dtype=mine.dtype) if is_float_type(mine.dtype) and is_float_type(other.dtype) else other
        for mine, other in zip(reference.inputs, inputs, strict=True)
    ]


def _signature(declared: Sequence[Declared]) -> str:
    return ", ".join(f"{entry.name} {entry.dtype}{list(entry.shape)}" for entry in declared) or "none"


def find_retyped(reference: Subject, pairing: Pairing) -> list[str]:
    """A sentence for each input of another floating point type, to which the numbers are cast."""
    return [
        f"input {mine.name!r} was {mine.dtype} and is {other.dtype}"
        for mine, other in zip(reference.inputs, pairing.inputs, strict=True)
        if mine.dtype != other.dtype
    ]


def find_changes(reference: Subject, candidate: Subject, pairing: Pairing) -> list[str]:
    """A sentence for each: a size that is fixed now, a default that came or went, another declared output.

    Models of different kinds declare in different ways, and are not compared.
    """
    if reference.kind != candidate.kind:
        return []
    return [
        *_fixed(reference, pairing),
        *_defaults(reference, candidate),
        *_declared(reference, candidate, pairing),
    ]


def _fixed(reference: Subject, pairing: Pairing) -> Iterator[str]:
    for mine, other in zip(reference.inputs, pairing.inputs, strict=True):
        for axis, (was, now) in enumerate(zip(mine.shape, other.shape, strict=False)):
            if isinstance(now, int) and not isinstance(was, int):
                name = f" ({was!r})" if was else ""
                yield f"axis {axis} of input {mine.name!r} was dynamic{name} and is {now}"


def _defaults(reference: Subject, candidate: Subject) -> Iterator[str]:
    mine, other = set(reference.defaults), set(candidate.defaults)
    yield from (f"input {name!r} had a default and is a constant now, or gone" for name in sorted(mine - other))
    yield from (
        f"{name!r} was a constant, or not there, and is an input with a default" for name in sorted(other - mine)
    )


def _declared(reference: Subject, candidate: Subject, pairing: Pairing) -> Iterator[str]:
    theirs = {entry.name: entry for entry in candidate.declared_outputs}
    for mine, name in zip(reference.declared_outputs, pairing.outputs, strict=False):
        other = theirs.get(name, mine)
        if mine.has_rank and other.has_rank and not _agree(mine, other):
            yield f"output {mine.name!r} was declared {_shape(mine)} and is declared {_shape(other)}"


def _agree(mine: Declared, other: Declared) -> bool:
    """Whether no size that both know differs."""
    return len(mine.shape) == len(other.shape) and all(
        was == now or not (isinstance(was, int) and isinstance(now, int))
        for was, now in zip(mine.shape, other.shape, strict=True)
    )


def _shape(declared: Declared) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in declared.shape)}]"
