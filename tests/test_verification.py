"""The comparison notices what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_graphs import model, node, random

from bnfold import IncomparableError
from bnfold.verification.compare import compare_files
from bnfold.verification.inputs import InputOptions


def write(path: Path, kernel: np.ndarray, *, op: str = "Relu") -> Path:
    nodes = [node("Conv", "x w", "c"), node(op, "c", "y")]
    onnx.save(model(nodes, {"w": kernel.astype(np.float32)}, ("N", 4, 8, 8), dtype=np.float32), path)
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return write(tmp_path / "reference.onnx", random(3, 4, 3, 3))


def test_a_model_equals_itself(reference: Path) -> None:
    verdict = compare_files(reference, reference, InputOptions())
    assert verdict.is_equivalent
    assert verdict.worst.error == 0


@pytest.mark.parametrize("fault", [1e-3, -0.5, np.nan, np.inf])
def test_one_wrong_weight_is_seen(reference: Path, tmp_path: Path, fault: float) -> None:
    kernel = random(3, 4, 3, 3)
    kernel[1, 2, 1, 1] += fault
    assert not compare_files(reference, write(tmp_path / "other.onnx", kernel), InputOptions()).is_equivalent


def test_nowhere_finite_is_no_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "nan.onnx", np.full((3, 4, 3, 3), np.nan))
    assert not compare_files(path, path, InputOptions()).is_equivalent


def test_other_outputs_cannot_be_compared(reference: Path, tmp_path: Path) -> None:
    other = onnx.load(reference)
    other.graph.output[0].name = "c"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(IncomparableError, match="other inputs or outputs"):
        compare_files(reference, tmp_path / "other.onnx", InputOptions())


def test_inputs_are_found_in_every_form(reference: Path, tmp_path: Path) -> None:
    x = random(5, 4, 8, 8, dtype=np.float32)
    np.savez(tmp_path / "inputs.npz", x=x, label=np.arange(5))
    for folder in ("npy", "pb"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "npy" / "x.npy", x)
    (tmp_path / "pb" / "input_0.pb").write_bytes(numpy_helper.from_array(x).SerializeToString())
    for name in ("inputs.npz", "npy", "pb"):
        assert compare_files(reference, reference, InputOptions(tmp_path / name)).is_equivalent


def test_inputs_that_do_not_fit_are_an_error(reference: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=random(5, 3, 8, 8, dtype=np.float32))
    with pytest.raises(IncomparableError, match="the model wants"):
        compare_files(reference, reference, InputOptions(tmp_path / "inputs.npz"))
