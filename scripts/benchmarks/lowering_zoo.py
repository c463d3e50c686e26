"""How many BatchNorms are left for a runtime that has none: by `fuse`, and by `fuse --lower depthwise`.

    python scripts/benchmarks/lowering_zoo.py [NAME...]

The models of `models/`, and architectures of timm (`pip install timm`, with the torchvision that fits torch) by torch's
older exporter, with random weights and statistics, a sixth of all channels with a negative scale. `bnfold` proves each
result before it writes it, and runs it once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

from scripts.benchmarks.compare_peers import batchnorms
from scripts.benchmarks.peer_zoo import subject
from scripts.benchmarks.proof_zoo import NAMES

BNFOLD = (sys.executable, "-m", "bnfold")

MODELS = sorted(Path("models").glob("*.onnx"))


def left(source: Path, *options: str) -> str:
    """The BatchNorms in what `bnfold fuse` makes of a file; the error, if it makes nothing."""
    target = source.with_suffix(".left.onnx")
    command = [*BNFOLD, "fuse", source, "-o", target, "--overwrite", "--quiet", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return str(batchnorms(onnx.load(target).graph)) if not done.returncode else done.stderr.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[*(path.stem for path in MODELS), *NAMES])
    print(
        "| model | BatchNorms | left by `fuse` | left by `fuse --lower depthwise` |", "|---|---:|---:|---:|", sep="\n"
    )
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            own = next((path for path in MODELS if path.stem == name), None)
            source = Path(folder) / f"{name}.onnx"
            if own is None:
                subject(name, Path(folder))
            else:
                source.write_bytes(own.read_bytes())
            found = batchnorms(onnx.load(source).graph)
            print(f"| {name} | {found} | {left(source)} | {left(source, '--lower', 'depthwise')} |", flush=True)


if __name__ == "__main__":
    main()
