"""Merged kernels are rounded once, and never in memory as a whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold import Fold, api
from bnfold.algebra import kernels, terms
from bnfold.algebra.linear import Linear
from tests.toys.onnx_branches import BOTH, CONSTANTS, MERGE, SAME, C, build, conv, merges
from tests.toys.onnx_graphs import model, node, norm, operators, random, statistics


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16], ids=["float16", "float32", "bfloat16"])
def test_a_sum_is_rounded_once(dtype: Any) -> None:
    """The written weight is the nearest to the exact sum of three weights times their scales."""
    arrays = {name: CONSTANTS[name].astype(dtype) for name in ("w", "w2", "v")}
    stats = {name: array.astype(dtype) for name, array in {**statistics(C, "p_"), **statistics(C, "q_")}.items()}
    nodes = [*BOTH, conv("x w2", "e", **SAME), norm("c", "f", "p_"), norm("x", "g", "q_"), node("Sum", "d e f g", "y")]
    fused = bnfold.fuse(model(nodes, {**arrays, **stats}, (2, C, 6, 6), dtype=dtype))
    wide = {name: array.astype(np.float64) for name, array in {**arrays, **stats}.items()}
    eps = float(np.float32(1e-5))
    one, two = (wide[f"{k}gamma"] / np.sqrt(wide[f"{k}var"] + eps) for k in ("p_", "q_"))
    exact = wide["w"] * one.reshape(-1, 1, 1, 1) + wide["w2"]
    exact[:, :, 1, 1] += wide["v"][:, :, 0, 0] + np.diag(two)
    stored = {each.name: each for each in fused.graph.initializer}
    kernel = numpy_helper.to_array(stored[fused.graph.node[0].input[1]])
    assert kernel.dtype == dtype
    spacing = float(ml_dtypes.finfo(dtype).eps)
    assert np.all(np.abs(kernel.astype(np.float64) - exact) <= 0.5000001 * spacing * np.maximum(np.abs(exact), 2**-14))


def test_a_sum_that_would_overflow_is_barred_and_the_rest_folds() -> None:
    large = np.full((C, C, 1, 1), 4e4, np.float16)
    stats = {name: array.astype(np.float16) for name, array in statistics(C, "p_").items()}
    stats["p_gamma"], stats["p_var"] = np.ones(C, np.float16), np.ones(C, np.float16)
    nodes = [conv("x a", "c"), conv("x b", "d"), norm("c", "n", "p_"), node("Add", "n d", "y")]
    proto = model(nodes, {"a": large, "b": large, **stats}, (1, C, 2, 2), dtype=np.float16)
    fused, outcomes = bnfold.fuse(proto, return_outcomes=True)
    assert operators(fused) == ["Conv", "Conv", "Add"]
    assert not merges(outcomes)
    (found,) = outcomes
    assert isinstance(found, Fold)
    assert found.direction == "upstream"


BY_ROWS = ["RepVGG", "layer scale inside", "depthwise in a grouped host", "a chain on a branch", "an unpadded average"]


@pytest.mark.parametrize("case", BY_ROWS)
def test_a_merged_kernel_is_the_same_in_blocks_of_any_size(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bnfold.fuse(build(MERGE[case]))
    read: list[slice] = []
    kernel_rows = terms.kernel_rows

    def spy(linear: Linear, load: terms.Load, rows: slice = terms.EVERY_ROW) -> np.ndarray:
        read.append(rows)
        return kernel_rows(linear, load, rows)

    monkeypatch.setattr(kernels, "ELEMENTS", 9)
    monkeypatch.setattr(terms, "kernel_rows", spy)
    assert bnfold.fuse(build(MERGE[case])).SerializeToString() == whole.SerializeToString()
    assert (terms.EVERY_ROW in read) == (case == "a chain on a branch")


def test_a_merged_kernel_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ELEMENTS", 1 << 15)
    channels = 640
    weights = {name: random(channels, channels, 3, 3, seed=seed, dtype=np.float32) for seed, name in enumerate("wv")}
    nodes = [conv("x w", "c", **SAME), conv("x v", "d", **SAME), node("Add", "c d", "y")]
    proto = model(nodes, weights, (1, channels, 3, 3), dtype=np.float32)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    del proto, weights
    tracemalloc.start()
    result = api.fuse_file(tmp_path / "m.onnx", tmp_path / "out.onnx", checks="none")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert merges(result.outcomes)
    assert peak < channels**2 * 9 * 4 / 2
