"""Which fold makes a difference, where a result differs from its original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from glob import escape
from pathlib import Path

from bnfold.api.deciding import Request, Selection, decide
from bnfold.frontends.door import open_model
from bnfold.frontends.limits import UNLIMITED, Limits
from bnfold.graph.outcome import Fold, Outcome
from bnfold.verification.equivalence import Comparison
from bnfold.verification.options import CompareOptions


def find_guilty(
    model: Path,
    folder: Path,
    outcomes: Sequence[Outcome],
    request: Request,
    comparison: CompareOptions,
    limits: Limits,
    verify: Callable[..., Comparison],
) -> str | None:
    """The step that makes the difference, found by bisection in a folder for trials; None where none stands out.

    It is a merge, or the first fold such that the result of the folds before it is still equivalent.
    """
    names = [outcome.batchnorm for outcome in outcomes if isinstance(outcome, Fold)]
    escaped = [escape(name) for name in names]

    def is_equivalent(count: int) -> bool:
        trial = Request(Selection(tuple(escaped[:count]) or ("",)), merge=False)
        opened = open_model(model, trial.options(limits, comparison.inputs, inplace=True))
        decide(opened, trial).apply()
        written = opened.save(folder / f"trial{model.suffix}")
        return verify(model, written.model, comparison, limits=UNLIMITED).verdict.is_equivalent

    good, bad = 0, len(names)
    if not is_equivalent(good):
        return None
    if is_equivalent(bad):
        return "a merge of linear operators (--no-merge goes without)" if request.merge else None
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if is_equivalent(middle) else (good, middle)
    return f"the fold of {names[bad - 1]!r}"
