"""Changes of a value, one move after the other, and the relations that a certificate makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.algebra.affine import Affine
from bnfold.planning.changes import Change
from bnfold.proof.certificate import Relation

LEFT = Affine.of([2.0, -0.5, 3.0], [1.0, 2.0, -1.0])
SHIFT = Affine.of(np.ones(3), [0.5, -4.0, 1.5])
CONSTANT = Affine.of([2.0, 0.0, 3.0], [1.0, 2.0, -1.0])


@pytest.mark.parametrize("pushed", [LEFT, CONSTANT], ids=["invertible", "a constant channel"])
@pytest.mark.parametrize("pulled", [None, LEFT], ids=["pushed alone", "pulled before"])
def test_a_shift_behind_what_was_pushed_needs_no_inverse(pushed: Affine, pulled: Affine | None) -> None:
    before = Change(pulled).then("downstream", pushed)
    after = before.then("upstream", SHIFT)
    w = np.random.default_rng(0).standard_normal((2, 3))
    assert after.is_known
    assert after.pulled is pulled
    assert after.pushed is not None
    np.testing.assert_allclose(after.pushed(SHIFT(w)), pushed(w), rtol=0, atol=1e-14)


@pytest.mark.parametrize("other", [None, LEFT], ids=["a shift alone", "beside another map"])
def test_a_relation_with_a_shift_is_a_map_both_ways(other: Affine | None) -> None:
    v = np.random.default_rng(0).standard_normal((2, 3))
    forth = Relation(other, SHIFT).forth
    assert forth is not None
    np.testing.assert_allclose(SHIFT(forth(v)), v if other is None else other(v), rtol=0, atol=1e-14)
    back = Relation(SHIFT, other).back
    assert back is not None
    np.testing.assert_allclose(SHIFT(back(v)), v if other is None else other(v), rtol=0, atol=1e-14)


def test_a_relation_with_a_scale_is_a_map_one_way() -> None:
    assert Relation(LEFT).back is None
    assert Relation(None, LEFT).forth is None
    assert Relation(LEFT).forth is LEFT
    assert Relation(None, LEFT).back is LEFT
