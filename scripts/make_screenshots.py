"""Writes the pictures of HTML reports in docs/images, as headless Chromium shows them.

pip install -e '.[dev]' && apt-get install chromium && python scripts/make_screenshots.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import browser  # noqa: E402
from onnx_graphs import model, node, norm, random, statistics  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

IMAGES = ROOT / "docs" / "images"


@dataclass(frozen=True)
class Shot:
    """A picture: the model whose fusion it shows, and the screen."""

    name: str
    model: str
    width: int
    height: int
    scheme: Literal["light", "dark"]


SHOTS = (
    Shot("report-desktop", "example.onnx", 1180, 1010, "light"),
    Shot("report-phone", "digits_autoencoder.onnx", 375, 780, "dark"),
)


def example() -> onnx.ModelProto:
    """A network whose BatchNorms fold upstream, downstream, through other operators, and not at all."""
    nodes = [
        node("Conv", "x w0", "stem", pads=[1] * 4),
        norm("stem", "stem_norm", "stem_"),
        node("Relu", "stem_norm", "stem_relu"),
        node("Conv", "stem_relu w1", "left"),
        node("Conv", "stem_relu w2", "right", pads=[1] * 4),
        node("Concat", "left right", "both", axis=1),
        norm("both", "both_norm", "both_"),
        node("Relu", "both_norm", "both_relu"),
        node("Conv", "both_relu w3", "shared"),
        norm("shared", "shared_norm", "shared_"),
        node("Sigmoid", "shared", "gate"),
        node("Mul", "shared_norm gate", "gated"),
        norm("gated", "head_norm", "head_"),
        node("GlobalAveragePool", "head_norm", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat w4", "y"),
    ]
    constants = {"w0": random(8, 3, 3, 3), "w1": random(8, 8, 1, 1), "w2": random(8, 8, 3, 3), "w4": random(16, 10)}
    constants["w3"] = random(16, 16, 1, 1)
    for prefix, channels in (("stem_", 8), ("both_", 16), ("shared_", 16), ("head_", 16)):
        constants |= statistics(channels, prefix)
    stored = {name: array.astype(np.float32) for name, array in constants.items()}
    return model(nodes, stored, (1, 3, 16, 16), dtype=np.float32)


def take(shot: Shot, folder: Path) -> None:
    """Fuse the model, and photograph the report."""
    command = [sys.executable, "-m", "bnfold.cli", "fuse", shot.model, "-o", f"{shot.model[:-5]}.fused.onnx"]
    command += ["--inputs", "digits_test.npz"] if shot.model.startswith("digits") else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--quiet", "--report", "report.html"], cwd=folder, env=environment, check=True)
    target = IMAGES / f"{shot.name}.png"
    with browser.launched() as running:
        screen: ViewportSize = {"width": shot.width, "height": shot.height}
        tab = running.new_page(viewport=screen, color_scheme=shot.scheme, device_scale_factor=1.5)
        tab.goto((folder / "report.html").as_uri())
        tab.screenshot(path=target)
    with Image.open(target) as image:
        image.convert("RGB").quantize(128).save(target, optimize=True)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes")


def main() -> None:
    if reason := browser.missing():
        sys.exit(reason)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in (ROOT / "models").glob("digits_*"):
            shutil.copy(path, folder)
        onnx.save(example(), folder / "example.onnx")
        for shot in SHOTS:
            take(shot, folder)


if __name__ == "__main__":
    main()
