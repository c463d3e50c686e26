"""Real models fold as stated, and still do what they did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bnfold.api import fuse_file
from bnfold.graph.outcome import Fold, Reason, Refusal
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.options import CompareOptions

MODELS = Path(__file__).parent.parent / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def logits(model: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


@pytest.mark.parametrize("model", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_digits_keep_their_answers(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    result = fuse_file(model, output, comparison=CompareOptions(InputOptions((MODELS / "digits_test.npz",))))
    assert all(isinstance(outcome, Fold) for outcome in result.outcomes)
    proto = onnx.load(output)
    onnx.checker.check_model(proto, full_check=True)
    assert all(node.op_type != "BatchNormalization" for node in proto.graph.node)
    with np.load(MODELS / "digits_test.npz") as data:
        before, after = (logits(path, data["image"]).argmax(axis=1) for path in (model, output))
        assert np.array_equal(before, after)
        assert (after == data["label"]).mean() >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batchnorms", "kept"),
    [("resnet50", 53, 0), ("inception_v2", 69, 0), ("shufflenet", 49, 0), ("densenet121", 121, 62)],
)
def test_architectures_fold(name: str, batchnorms: int, kept: int, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    result = fuse_file(LIGHT / f"light_{name}.onnx", output)
    found = [each for each in result.outcomes if each.is_batchnorm]
    refused = [each for each in found if isinstance(each, Refusal)]
    assert (len(found), len(refused)) == (batchnorms, kept)
    # densenet: each concatenation is read by the next layer as well, and a Relu follows; generated shifts are large
    assert {each.reason for each in refused} <= {Reason.CANCELLATION, Reason.NONLINEAR}
    proto = onnx.load(output)
    onnx.checker.check_model(proto, full_check=True)
    assert sum(node.op_type == "BatchNormalization" for node in proto.graph.node) == kept
