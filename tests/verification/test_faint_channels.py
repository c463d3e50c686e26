"""A channel far fainter than the others is judged by its own noise, wherever channels lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32

ENDS: dict[str, list[onnx.NodeProto]] = {
    "NCHW": [node("Identity", "c", "y")],
    "NHWC": [node("Transpose", "c", "y", perm=[0, 2, 3, 1])],
    "mean": [node("GlobalAveragePool", "c", "y")],
}

FAINT = 5


def network(end: str, size: float, factor: float, side: int = 12) -> onnx.ModelProto:
    """Two convolutions; one channel of the second is `size` times as large as the others, and then times `factor`."""
    first, second = random(16, 3, 3, 3, dtype=FLOAT) / 5, random(16, 16, 3, 3, dtype=FLOAT, seed=1) / 12
    bias = random(16, dtype=FLOAT, seed=2) / 5
    for array in (second, bias):
        array[FAINT] *= FLOAT(size)
        array[FAINT] *= FLOAT(factor)
    nodes = [node("Conv", "x w", "a", pads=[1] * 4), node("Relu", "a", "r"), node("Conv", "r v b", "c", pads=[1] * 4)]
    constants = {"w": first, "v": second, "b": bias}
    held = {name: array.astype(FLOAT) for name, array in constants.items()}
    return model([*nodes, *ENDS[end]], held, (2, 3, side, side), dtype=FLOAT)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("factor", [1.001, 1.01, 2.0])
def test_a_faint_channel_that_is_off_is_a_difference(end: str, size: float, factor: float) -> None:
    assert not bnfold.verify(network(end, size, 1.0), network(end, size, factor)).is_equivalent


@pytest.mark.parametrize("end", ["NCHW", "NHWC"])
def test_it_is_one_where_only_outputs_are_compared(end: str) -> None:
    found = bnfold.verify(network(end, 1e-5, 1.0), network(end, 1e-5, 1.01), outputs_only=True)
    assert not found.is_equivalent


@pytest.mark.parametrize("seed", range(12))
def test_folds_into_channels_of_any_size_are_the_same_model(seed: int) -> None:
    """Scales over eight decades, and channels in which large terms cancel."""
    generator = np.random.default_rng(seed)
    nodes, constants, last, width = [], dict[str, Any](), "x", 3
    for index in range(3):
        nodes += [
            node("Conv", f"{last} w{index}", f"c{index}", pads=[1] * 4),
            norm(f"c{index}", f"n{index}", f"p{index}_"),
        ]
        nodes.append(node("Relu", f"n{index}", f"r{index}"))
        kernel = generator.standard_normal((16, width, 3, 3)) / np.sqrt(9 * width)
        kernel[1] = np.repeat(kernel[1, :1], width, axis=0) * np.where(np.arange(width) % 2, -1, 1)[:, None, None]
        held = statistics(16, f"p{index}_")
        held[f"p{index}_gamma"] = generator.standard_normal(16) * 10.0 ** generator.integers(-8, 1, 16)
        held[f"p{index}_beta"] = held[f"p{index}_beta"] * 10.0 ** generator.integers(-8, 1, 16)
        constants |= {f"w{index}": kernel, **held}
        last, width = f"r{index}", 16
    nodes += [node("GlobalAveragePool", last, "g"), node("Transpose", last, "y", perm=[0, 2, 3, 1])]
    proto = model(
        nodes,
        {name: each.astype(FLOAT) for name, each in constants.items()},
        (2, 3, 10, 10),
        outputs="y g",
        dtype=FLOAT,
    )
    for draw in range(2):
        assert bnfold.verify(proto, bnfold.fuse(proto), seed=draw).is_equivalent
