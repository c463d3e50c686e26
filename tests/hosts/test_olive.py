"""The pass within workflows of Olive."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import bnfold

RESIDUAL = Path(__file__).parents[2] / "models" / "digits_residual.onnx"

pytestmark = pytest.mark.filterwarnings("ignore")  # those of Olive and what it imports


FOLD = {"type": "BatchNormFolding"}
ALONE = {"fold": {**FOLD, "skip": ["/0/*"], "merge": False}}
AMONG_OTHERS = {"fold": FOLD, "peephole": {"type": "OnnxPeepholeOptimizer"}}


@pytest.mark.parametrize(("passes", "left"), [(ALONE, 1), (AMONG_OTHERS, 0)])
def test_a_workflow_folds_by_the_pass(
    passes: dict[str, object], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLIVE_DISABLE_TELEMETRY", "1")
    olive = pytest.importorskip("olive", reason="needs olive-ai")
    from bnfold.hosts.olive import package_config

    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": str(RESIDUAL)},
        "passes": passes,
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    result = olive.run(workflow, package_config=package_config())
    made = result.get_best_candidate().model_path
    model = onnx.load(made)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == left
    assert bnfold.verify(RESIDUAL, made, allow_interface=True).is_equivalent
