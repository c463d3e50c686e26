"""Writes the pictures of HTML reports in docs/images, as headless Chromium shows them.

    pip install -e '.[dev]' && apt-get install chromium && python scripts/tools/make_screenshots.py

With `--review FOLDER`, the whole page of every command instead, in the light, in the dark and on a phone, to look at.
"""

from __future__ import annotations

import argparse
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
from onnx import numpy_helper
from PIL import Image

ROOT = Path(__file__).parents[2]

from tests.report import browser  # noqa: E402
from tests.toys.onnx_graphs import model, node, norm, random, statistics  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

IMAGES = ROOT / "docs" / "images"


FUSE_EXAMPLE = ("fuse", "example.onnx", "-o", "example.fused.onnx")
BENCH = ("bench", "digits_cnn.onnx", "digits_cnn.fused.onnx", "--threads", "1")
COMMANDS = {
    "fuse-some": FUSE_EXAMPLE,
    "fuse": ("fuse", "digits_residual.onnx", "-o", "digits_residual.fused.onnx", "--inputs", "digits_test.npz"),
    "inspect": ("inspect", "example.onnx"),
    "verify": ("verify", "digits_cnn.onnx", "digits_cnn.fused.onnx"),
    "verify-different": ("verify", "digits_cnn.onnx", "broken.onnx"),
    "bench": BENCH,
}


@dataclass(frozen=True)
class Screen:
    """How a page is looked at, from an anchor on; a height of 0 is that of the whole page."""

    width: int
    height: int
    scheme: Literal["light", "dark"]
    anchor: str = ""


SHOTS = {
    "report-desktop": (FUSE_EXAMPLE, Screen(1180, 1010, "light")),
    "report-phone": (BENCH, Screen(375, 930, "dark", "#latency")),
}
REVIEWED = {"light": Screen(1180, 0, "light"), "dark": Screen(1180, 0, "dark"), "phone": Screen(375, 0, "dark")}


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


def broken(path: Path) -> onnx.ModelProto:
    """A model with one channel of weights wrong by a hundredth."""
    proto = onnx.load(path)
    kernel = next(each for each in proto.graph.initializer if len(each.dims) == 4 and each.dims[1] > 1)
    weights = numpy_helper.to_array(kernel).copy()
    weights[3] *= 1.01
    kernel.CopyFrom(numpy_helper.from_array(weights, kernel.name))
    return proto


def bnfold(folder: Path, *arguments: str) -> None:
    """Run a command line; that models differ is an answer too."""
    command = [sys.executable, "-m", "bnfold", *arguments, "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(arguments)}: exit {done.returncode}")


def prepare(folder: Path) -> None:
    """The models that the commands name."""
    for path in (ROOT / "models").glob("digits_*"):
        shutil.copy(path, folder)
    onnx.save(example(), folder / "example.onnx")
    bnfold(folder, "fuse", "digits_cnn.onnx", "-o", "digits_cnn.fused.onnx")
    onnx.save(broken(folder / "digits_cnn.fused.onnx"), folder / "broken.onnx")


def photograph(page: Path, screen: Screen, target: Path, scale: float) -> None:
    """A picture of a page, with few colours to save space."""
    with browser.launched() as running:
        size: ViewportSize = {"width": screen.width, "height": screen.height or 800}
        tab = running.new_page(viewport=size, color_scheme=screen.scheme, device_scale_factor=scale)
        tab.goto(page.as_uri() + screen.anchor)
        tab.screenshot(path=target, full_page=not screen.height)
    with Image.open(target) as image:
        image.convert("RGB").quantize(128).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--review", type=Path, metavar="FOLDER", help="every command's whole page, into this folder")
    target = parser.parse_args().review
    if reason := browser.missing():
        sys.exit(reason)
    (target or IMAGES).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        report = folder / "report.html"
        if target is None:
            for name, (command, screen) in SHOTS.items():
                bnfold(folder, *command, "--report", report.name)
                photograph(report, screen, IMAGES / f"{name}.png", 1.5)
            return
        for name, command in COMMANDS.items():
            (folder / "example.fused.onnx").unlink(missing_ok=True)
            bnfold(folder, *command, "--report", report.name)
            for kind, screen in REVIEWED.items():
                photograph(report, screen, target / f"{name}-{kind}.png", 1)


if __name__ == "__main__":
    main()
