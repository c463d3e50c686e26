"""Differences that a caller of two ONNX models meets, though they compute the same."""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.runtimes.inputs import Declared
from bnfold.verification.subject import Subject


def find_changes(reference: Subject, candidate: Subject) -> list[str]:
    """A sentence for each: a size that is fixed now, a default that came or went, another declared output.

    Models of different kinds declare in different ways, and are not compared.
    """
    if reference.kind != candidate.kind:
        return []
    return [
        *_fixed(reference, candidate),
        *_defaults(reference, candidate),
        *_declared(reference, candidate),
    ]


def _fixed(reference: Subject, candidate: Subject) -> Iterator[str]:
    for mine, other in zip(reference.inputs, candidate.inputs, strict=True):
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


def _declared(reference: Subject, candidate: Subject) -> Iterator[str]:
    for mine, other in zip(reference.declared_outputs, candidate.declared_outputs, strict=True):
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
