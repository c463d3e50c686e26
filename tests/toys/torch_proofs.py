"""Folds torch models with a certificate, and proves what every test folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnfold.api import Selection
from bnfold.frontends.protocol import OpenOptions
from bnfold.frontends.torch.open import open_model
from bnfold.planning.changes import trace_changes
from bnfold.planning.fold import fold
from bnfold.planning.planner import make_plan
from bnfold.proof.certificate import Certificate
from bnfold.proof.torch.ledger import Ledger
from bnfold.proof.torch.sides import digest


def certify(
    model: Any,
    *,
    example_inputs: Any = None,
    merge: bool = True,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    **_: Any,
) -> tuple[Any, Certificate]:
    """The folded model of a program or a graph module, with its certificate."""
    opened = open_model(model, OpenOptions(example_inputs=example_inputs))
    decided = make_plan(opened.graph, selected=Selection(tuple(only), tuple(skip)), merge=merge)
    changes = trace_changes(opened.graph, decided)
    ledger = Ledger.of(opened.graph.graph, changes, opened.graph.stand)
    fold(opened.graph, decided)
    result = opened.settle(None)
    return result, ledger.certificate(changes, digest(model), digest(result))
