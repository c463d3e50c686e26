"""Libraries of custom operators reach every session that a command opens; one that cannot be loaded is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.errors import CustomOpsError
from tests.toys.command_line import run

MODELS = Path(__file__).parents[2] / "models"
DIGITS, MLP = (str(MODELS / f"digits_{name}.onnx") for name in ("cnn", "mlp"))

COMMANDS = {
    "verify": ["verify", DIGITS, MLP],
    "bench": ["bench", DIGITS, "--level", "all"],
    "fuse": ["fuse", DIGITS, "-o", "out.onnx"],
    "inspect": ["inspect", DIGITS, "--inputs", "x.npz"],
    "fuse in full": ["fuse", DIGITS, "-o", "out.onnx", "--verify", "full"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_library_that_cannot_be_loaded_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "ops.so").write_text("no library")
    np.savez(tmp_path / "x.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    done = run(tmp_path, *COMMANDS[command], "--custom-ops", "ops.so")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert done.stderr.startswith("bnfold: ops.so: onnxruntime cannot load it as custom operators (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ops.so", "x.npz"]


def test_every_session_has_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    registered: list[str] = []
    opened: list[object] = []
    create = onnxruntime.InferenceSession.__init__

    def init(self: object, *arguments: object, **options: object) -> None:
        opened.append(self)
        create(self, *arguments, **options)

    monkeypatch.setattr(
        onnxruntime.SessionOptions, "register_custom_ops_library", lambda self, path: registered.append(path)
    )
    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", init)
    library = tmp_path / "ops.so"
    assert bnfold.verify(DIGITS, DIGITS, custom_ops=[library]).is_equivalent
    assert registered == [str(library)] * len(opened)
    assert len(opened) > 2


def test_the_api_raises(tmp_path: Path) -> None:
    with pytest.raises(CustomOpsError, match=r"none\.so"):
        bnfold.verify(DIGITS, DIGITS, custom_ops=[tmp_path / "none.so"])
