"""Warnings about running statistics name the kind and the channels, and block nothing."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.graph.cautions import examine


def kinds(gamma: list[float], mean: list[float], var: list[float]) -> dict[str, tuple[int, ...]]:
    arrays = (np.asarray(each, np.float32) for each in (gamma, mean, var))
    return {each.kind: each.channels for each in examine("norm", "main", *arrays, 1e-5)}


@pytest.mark.parametrize(
    ("gamma", "mean", "var", "expected"),
    [
        ([1, 1], [0, 0], [1, 1], {"untrained": (0, 1)}),
        ([1, 1], [0, 0.1], [1, 1], {}),
        ([1, 1], [0.5, 0.1], [1, 0], {"small-variance": (1,)}),
        ([0, 1], [0.5, 0.1], [1, 2], {"small-gamma": (0,)}),
        ([1, 2000], [0.5, 0.1], [1, 1], {"large-scale": (1,)}),
        ([1, 5], [0.5, 0.1], [1, 1e-9], {"small-variance": (1,), "large-scale": (1,)}),
    ],
)
def test_statistics_are_examined(
    gamma: list[float], mean: list[float], var: list[float], expected: dict[str, tuple[int, ...]]
) -> None:
    assert kinds(gamma, mean, var) == expected


def test_a_warning_names_channels() -> None:
    (warning,) = examine("norm", "main", np.ones(20), np.ones(20), np.zeros(20), 1e-5)[:1]
    assert "0, 1, 2, 3, 4, 5, 6, 7, ..." in warning.detail
