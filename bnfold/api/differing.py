"""What changed between two models."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.api.deciding import Request, decide
from bnfold.difference.compare import Difference, compare
from bnfold.difference.interface import find_interface_changes
from bnfold.errors import InvalidModelError, UnreadableTensorError
from bnfold.frontends.door import find_entry, open_model
from bnfold.frontends.limits import LIMITS, Limits
from bnfold.frontends.protocol import OpenModel
from bnfold.graph.outcome import Outcome
from bnfold.planning.plan import Plan


def diff(one: Any, other: Any, *, example_inputs: Any = None, limits: Limits = LIMITS) -> Difference:
    """What changed from one model to another, and where each BatchNorm of the first went, whatever tool did it.

    Args:
        one: a model as for `fuse`, which is only read, like the other.
        other: another one, of the same kind or not.
        example_inputs: as for `fuse`, for both. Without them, little is known of the weights of a graph module.
        limits: how much a model may ask for.

    Raises:
        BnfoldError: a model cannot be read.
    """
    opened = _open_for_reading(one, other, limits, example_inputs)
    return _compare(*opened, is_one_kind=find_entry(one) is find_entry(other))


def _open_for_reading(one: Any, other: Any, limits: Limits, example_inputs: Any = None) -> tuple[OpenModel, OpenModel]:
    options = Request().options(limits, example_inputs=example_inputs, spell_out=True)
    return open_model(one, options), open_model(other, options)


def _compare(one: OpenModel, other: OpenModel, *, is_one_kind: bool) -> Difference:
    def plan(model: OpenModel) -> Plan[Any, Any]:
        return decide(model, Request()).plan

    def explain(model: OpenModel) -> tuple[Outcome, ...]:
        return decide(model, Request()).explain()

    return compare(one, other, plan, explain, is_one_kind=is_one_kind)


@dataclass(frozen=True)
class DiffResult:
    """The result of comparing two files.

    Attributes:
        one: A.
        other: B.
        difference: what changed.
        interface: a sentence for each thing that a caller meets and that is not the same.
        seconds: the time that it took.
    """

    one: Path
    other: Path
    difference: Difference
    interface: tuple[str, ...]
    seconds: float

    @property
    def is_identical(self) -> bool:
        """Whether nothing differs."""
        return self.difference.is_empty and not self.interface


def diff_files(one: Path, other: Path, *, limits: Limits = LIMITS) -> DiffResult:
    """What changed from one file to another; see `diff`.

    Raises:
        BnfoldError: a file cannot be read.
    """
    start = time.perf_counter()
    try:
        opened = _open_for_reading(one, other, limits)
        found = _compare(*opened, is_one_kind=find_entry(one) is find_entry(other))
    except UnreadableTensorError as error:
        raise InvalidModelError(f"{one} or {other}: {error}") from error
    interface = find_interface_changes(*opened, (str(one), str(other)), limits)
    return DiffResult(one, other, found, interface, time.perf_counter() - start)
