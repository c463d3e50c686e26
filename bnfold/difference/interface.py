"""What a caller of two models meets that is not the same in both."""

from __future__ import annotations

from typing import Any

from bnfold.errors import IncomparableError
from bnfold.frontends.door import find_entry
from bnfold.frontends.limits import Limits
from bnfold.frontends.protocol import OpenModel
from bnfold.verification.interface import find_changes, find_retyped, pair_interfaces
from bnfold.verification.subject import Subject


def find_interface_changes(
    one: OpenModel, other: OpenModel, labels: tuple[str, str], limits: Limits
) -> tuple[str, ...]:
    """A sentence for each input or output that came, went, or is declared in another way.

    Args:
        one: A, as it was read.
        other: B.
        labels: what to call them.
        limits: how much a file may ask for.

    Raises:
        BnfoldError: a file cannot be read.
    """
    first, second = (
        _subject(model.as_opened(), label, limits) for model, label in zip((one, other), labels, strict=True)
    )
    try:
        pairing = pair_interfaces(first, second, {}, by_position=True)
    except IncomparableError as error:
        return (str(error).removesuffix(" (--map OLD=NEW pairs names)"),)
    renamed = [note.replace("is compared with", "is called") for note in pairing.notes]
    return (*renamed, *find_retyped(first, pairing), *find_changes(first, second, pairing))


def _subject(model: Any, label: str, limits: Limits) -> Subject:
    entry = find_entry(model)
    subject: Subject = entry.part(entry.subject).open_subject(model, label, limits, None, None)
    return subject
