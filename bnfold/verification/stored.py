"""Compares the outputs that a test data set holds with those of the reference.

The candidate is judged against the reference. If the reference itself does not give the stored outputs, the data belong
to another model, and whatever is judged on them shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt

from bnfold.errors import IncomparableError
from bnfold.runtimes.inputs import Sample
from bnfold.verification.smoke import judge, measure
from bnfold.verification.subject import Subject

AnyArray = npt.NDArray[Any]

FOREIGN = 0.05
"""A difference of this share of an output's size is no matter of precision."""


def compare_stored(reference: Subject, sample: Sample, outputs: Sequence[AnyArray]) -> Iterator[str]:
    """A sentence on the stored outputs of an input, if it has any.

    Args:
        reference: the reference.
        sample: the input.
        outputs: what the reference gives on it.

    Raises:
        IncomparableError: the reference gives something else; the message names the output.
    """
    if not sample.stored:
        return
    given = dict(zip(reference.outputs, outputs, strict=True))
    stored: dict[str, AnyArray] = {}
    for index, (key, array) in enumerate(sample.stored.items()):
        name = key if key in given else next(iter(reference.outputs[index : index + 1]), "")
        if not name or name in stored:
            raise IncomparableError(f"{sample.label}: {reference.label} has no output for its stored output {key!r}")
        stored[name] = array
    distances = {name: measure(array, given[name]) for name, array in stored.items()}
    suspects = {name: distance for name, distance in distances.items() if distance.is_beyond(given[name].dtype)}
    notes, difference = judge(reference, sample.feeds, given, suspects) if suspects else ([], "")
    yield from (f"{sample.label}, stored outputs: {note}" for note in notes)
    if difference:
        if any(distance.what or distance.error > FOREIGN for distance in suspects.values()):
            raise IncomparableError(
                f"{sample.label}: {reference.label} does not give the stored outputs, so it shows nothing: {difference}"
            )
        yield f"{sample.label}, stored outputs: {difference}"
    errors = [distance.error for name, distance in distances.items() if name not in suspects]
    if errors:
        yield f"{sample.label}: the reference gives the stored outputs (largest difference {max(errors):.0e})"
