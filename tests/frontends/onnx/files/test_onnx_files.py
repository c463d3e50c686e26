"""Files: external data, all or nothing, the same bytes for the same input."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bnfold
from bnfold import InvalidModelError, NotEquivalentError
from bnfold.algebra.linear import Linear
from bnfold.api import fuse_file
from bnfold.proof.checker import Proof
from bnfold.verification import onnx_proof
from tests.toys.onnx_graphs import model, node, norm, random, statistics


def proto() -> onnx.ModelProto:
    constants = {"w": random(16, 4, 3, 3, dtype=np.float32), "v": random(8, 4, 3, 3, dtype=np.float32)}
    nodes = [node("Conv", "x w", "c"), norm("c", "y"), node("Conv", "x v", "z")]
    stats = statistics(16, dtype=np.float32)
    return model(nodes, {**constants, **stats}, ("N", 4, 8, 8), outputs="y z", dtype=np.float32)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def data_of(path: Path) -> str:
    """The name of the one file that holds a model's external data; it follows from the content."""
    bare = onnx.load(path, load_external_data=False)
    found = {entry.value for each in bare.graph.initializer for entry in each.external_data if entry.key == "location"}
    assert len(found) == 1
    assert re.fullmatch(re.escape(path.name) + r"\.[0-9a-f]{12}\.data", *found)
    return found.pop()


@pytest.fixture
def external(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(proto(), source / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    assert names(source) == ["m.onnx", "weights.bin"]
    return source / "m.onnx"


def test_external_data_stays_external(external: Path, tmp_path: Path) -> None:
    result = fuse_file(external, tmp_path / "out.onnx")
    assert result.proof is not None
    assert result.proof.is_proved
    assert result.smoke is not None
    assert result.smoke.error is not None
    assert names(tmp_path) == ["out.onnx", data_of(tmp_path / "out.onnx"), "source"]
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    bare = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    outside = {each.name for each in bare.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL}
    assert outside == {"w_folded", "v"}


def test_a_model_with_external_data_is_replaced_by_itself(external: Path) -> None:
    fuse_file(external, external, overwrite=True)
    fused = onnx.load(external)
    assert [each.op_type for each in fused.graph.node] == ["Conv", "Conv"]
    assert names(external.parent) == ["m.onnx", data_of(external), "weights.bin"]


def test_the_same_input_makes_the_same_bytes(external: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        fuse_file(external, tmp_path / folder / "out.onnx")
    for name in ("out.onnx", data_of(tmp_path / "one" / "out.onnx")):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_missing_external_data_is_one_error(external: Path, tmp_path: Path) -> None:
    (external.parent / "weights.bin").unlink()
    with pytest.raises(InvalidModelError):
        fuse_file(external, tmp_path / "out.onnx")
    assert names(tmp_path) == ["source"]


@pytest.fixture
def bias_is_wrong_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A model of three folds, of which the second one will be wrong."""
    kernels = {"u": random(4, 4, 3, 3) / 4, "v": random(5, 4, 3, 3) / 4, "w": random(6, 5, 3, 3) / 4}
    nodes = [node("Conv", "x u", "a"), norm("a", "b", "p"), node("Conv", "b v", "c"), norm("c", "d", "q")]
    nodes += [node("Conv", "d w", "e"), norm("e", "y", "r")]
    constants = kernels | statistics(4, "p") | statistics(5, "q") | statistics(6, "r")
    typed = {name: np.asarray(array, np.float32) for name, array in constants.items()}
    onnx.save(model(nodes, typed, (1, 4, 12, 12), dtype=np.float32), tmp_path / "m.onnx")
    solve = Linear.solve_bias

    def err(error: float) -> None:
        def solve_wrongly(self: Linear, *arguments: Any) -> np.ndarray | None:
            bias = solve(self, *arguments)
            return bias + error if bias is not None and self.out_channels == 5 else bias

        monkeypatch.setattr(Linear, "solve_bias", solve_wrongly)

    return err


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker that finds nothing."""
    proof = Proof({"wiring": 1, "weights": 3, "carriers": 0, "merges": 0}, 3, 0, 0.0, (), 0.0)
    monkeypatch.setattr(onnx_proof, "check_pair", lambda *_: proof)


def test_a_result_that_is_not_proved_is_not_written(bias_is_wrong_by: Callable[[float], None], tmp_path: Path) -> None:
    bias_is_wrong_by(1e-6)
    told = r"not proved: weights: 'c': channel 0 of its bias is .* and should be .* ulp away; please report"
    for checks in ("proof", "full"):
        with pytest.raises(NotEquivalentError, match=told) as raised:
            fuse_file(tmp_path / "m.onnx", tmp_path / "out.onnx", checks=checks)
        again = pickle.loads(pickle.dumps(raised.value))
        assert again.result.outcomes == raised.value.result.outcomes
        assert str(again.result.proof.failures[0]) == str(raised.value.result.proof.failures[0])
        assert names(tmp_path) == ["m.onnx"]


def test_a_model_in_memory_that_is_not_proved_is_not_returned(
    bias_is_wrong_by: Callable[[float], None], tmp_path: Path
) -> None:
    bias_is_wrong_by(1e-6)
    given = onnx.load(tmp_path / "m.onnx")
    before = given.SerializeToString()
    for held in (given, ir.from_proto(given), tmp_path / "m.onnx"):
        with pytest.raises(NotEquivalentError, match="not proved: weights: 'c': channel 0") as raised:
            bnfold.fuse(held)
        assert not pickle.loads(pickle.dumps(raised.value)).result.is_proved
        assert bnfold.fuse(held, prove=False) is not None
    with pytest.raises(NotEquivalentError):
        bnfold.fuse(given, inplace=True)
    assert given.SerializeToString() == before


@pytest.mark.usefixtures("blind")
def test_a_result_that_runs_otherwise_is_not_written(bias_is_wrong_by: Callable[[float], None], tmp_path: Path) -> None:
    bias_is_wrong_by(10.0)
    with pytest.raises(NotEquivalentError, match=r"output 'y' is off by .* and rounding alone moves it by") as raised:
        fuse_file(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert pickle.loads(pickle.dumps(raised.value)).result.smoke == raised.value.result.smoke
    assert names(tmp_path) == ["m.onnx"]


@pytest.mark.usefixtures("blind")
def test_a_full_comparison_names_the_guilty_fold(bias_is_wrong_by: Callable[[float], None], tmp_path: Path) -> None:
    bias_is_wrong_by(1e-3)
    with pytest.raises(NotEquivalentError, match="the fold of 'BatchNormalization_d' is the first") as raised:
        fuse_file(tmp_path / "m.onnx", tmp_path / "out.onnx", checks="full")
    assert "'d' differs" in str(raised.value)
    assert pickle.loads(pickle.dumps(raised.value)).result.outcomes == raised.value.result.outcomes
    assert names(tmp_path) == ["m.onnx"]
