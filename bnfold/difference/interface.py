"""What a caller of two models meets that is not the same in both."""

from __future__ import annotations

from pathlib import Path

from bnfold.errors import IncomparableError
from bnfold.frontends.door import find_entry
from bnfold.frontends.limits import Limits
from bnfold.verification.interface import find_changes, find_retyped, pair_interfaces
from bnfold.verification.subject import Subject


def find_interface_changes(one: Path, other: Path, limits: Limits) -> tuple[str, ...]:
    """A sentence for each input or output that came, went, or is declared in another way.

    Raises:
        BnfoldError: a file cannot be read.
    """
    first, second = (_subject(path, limits) for path in (one, other))
    try:
        pairing = pair_interfaces(first, second, {}, by_position=True)
    except IncomparableError as error:
        return (str(error).removesuffix(" (--map OLD=NEW pairs names)"),)
    renamed = [note.replace("is compared with", "is called") for note in pairing.notes]
    return (*renamed, *find_retyped(first, pairing), *find_changes(first, second, pairing))


def _subject(path: Path, limits: Limits) -> Subject:
    entry = find_entry(path)
    subject: Subject = entry.part(entry.subject).open_subject(path, str(path), limits, None, None)
    return subject
