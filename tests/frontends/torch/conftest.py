"""Whatever a test of this folder folds as a program or a graph module is proved as well."""

from __future__ import annotations

from typing import Any

import pytest

import bnfold
from tests.toys.torch_proofs import is_provable, prove


@pytest.fixture(autouse=True)
def _every_fold_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = bnfold.fuse

    def proved(model: Any, **options: Any) -> Any:
        if is_provable(model):
            proof = prove(model, **options)
            assert proof.failures == (), (proof.failures, model)
        return fuse(model, **options)

    monkeypatch.setattr(bnfold, "fuse", proved)
