"""Folds the real models and prints, as a Markdown table, what became of them.

The models are those of `models/`, and the architectures with generated weights that the onnx package ships.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from bnfold.api import FileResult, fuse_file
from bnfold.graph.outcome import Refusal
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.options import CompareOptions

MODELS = Path(__file__).parents[2] / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
ARCHITECTURES = ("resnet50", "densenet121", "inception_v2", "shufflenet")


def correct(model: Path) -> tuple[int, int]:
    """How many held-out digits a model gets right, and how many there are."""
    with np.load(MODELS / "digits_test.npz") as data:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {"image": data["image"]})[0]
        return int((logits.argmax(axis=1) == data["label"]).sum()), len(data["label"])


def row(result: FileResult, accuracy: str) -> str:
    """One line of the table."""
    outcomes = [each for each in result.outcomes if each.is_batchnorm]
    kept = Counter(str(each.reason) for each in outcomes if isinstance(each, Refusal))
    reasons = ", ".join(f"{count} {reason}" for reason, count in kept.items()) or "-"
    assert result.after is not None
    assert result.verdict is not None
    cells = (
        result.model.stem,
        len(outcomes),
        len(outcomes) - kept.total(),
        reasons,
        f"{result.before.nodes} -> {result.after.nodes}",
        f"{max(each.error for each in result.verdict.outputs if not each.is_deployed):.1e}",
        accuracy,
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    print("| model | BatchNorms | folded | kept | nodes | largest error | held-out digits right |")
    print("|---|---:|---:|---|---|---:|---|")
    with tempfile.TemporaryDirectory() as folder:
        for model in sorted(MODELS.glob("*.onnx")):
            output = Path(folder) / model.name
            result = fuse_file(
                model, output, checks="full", comparison=CompareOptions(InputOptions((MODELS / "digits_test.npz",)))
            )
            (before, total), (after, _) = correct(model), correct(output)
            print(row(result, f"{before} -> {after} of {total}"), flush=True)
        for name in ARCHITECTURES:
            model = LIGHT / f"light_{name}.onnx"
            print(row(fuse_file(model, Path(folder) / model.name, checks="full"), ""), flush=True)


if __name__ == "__main__":
    main()
