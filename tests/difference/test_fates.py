"""Where each BatchNorm went, for pairs of models with a known truth, however the second one names its parts."""

from __future__ import annotations

from typing import Any

import pytest

from bnfold import api
from bnfold.difference.compare import Difference
from tests.difference.pairs import NAMINGS, PAIRS


def difference(one: Any, other: Any) -> Difference:
    return api.diff(one, other)


def told(found: Difference, titles: dict[str, str] | None = None) -> dict[str, tuple[str, frozenset[str]]]:
    """What a comparison says of each BatchNorm, by the names of outputs before they were renamed."""
    back = {new: old for old, new in (titles or {}).items()}
    trace = found.trace
    return {
        trace.one.title(fate.batchnorm.outputs[0]): (
            str(fate.way),
            frozenset(back.get(title, title) for title in (trace.other.title(item.outputs[0]) for item in fate.into)),
        )
        for fate in found.fates
    }


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("name", PAIRS)
def test_each_batchnorm_is_named_correctly(name: str, naming: str) -> None:
    pair = PAIRS[name]()
    titles = NAMINGS[naming](pair.other)
    found = told(difference(pair.one, pair.other), titles)
    assert found == pair.truth


def test_there_are_enough_pairs() -> None:
    assert len(PAIRS) * len(NAMINGS) >= 60
