"""Folds, verifies and times models on a CUDA device, and writes docs/gpu.md with the device's name.

    python scripts/benchmarks/gpu_check.py                 # needs bnfold[gpu], bnfold[torch] with CUDA, and a GPU
    python scripts/benchmarks/gpu_check.py --engine torch  # one engine alone, where the other's libraries are missing

The repository's models, and two of the size of ResNet-50: the light one that the onnx package ships with, through ONNX
Runtime, and one built here, through ONNX Runtime and PyTorch. Everything goes by the command line. Where there is no
GPU, or an engine cannot use it, it ends with exit code 3 and one line, and writes nothing: it never falls back to the
CPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "gpu.md"
ENGINES = ("onnxruntime", "torch")


class NoGpuError(Exception):
    """There is no GPU, or an engine cannot use it."""


@dataclass(frozen=True)
class Case:
    """A model to check, with real inputs where there are some."""

    model: Path
    inputs: Path | None = None
    dims: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """Of the command line."""
        inputs = ["--inputs", str(self.inputs)] if self.inputs else []
        return inputs + [word for dim in self.dims for word in ("--dim", dim)]


def find_gpu(engines: tuple[str, ...]) -> dict[str, str]:
    """The GPU by the driver's own tool, usable by each engine."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise NoGpuError("no NVIDIA driver is installed here (nvidia-smi is missing)")
    fields = ("name", "driver_version", "memory.total")
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise NoGpuError(f"the driver finds no GPU ({(done.stderr or done.stdout).strip() or 'nvidia-smi lists none'})")
    for engine in engines:
        require_engine(engine)
    first = done.stdout.splitlines()[0]
    return dict(zip(fields, map(str.strip, first.split(",")), strict=True))


def require_engine(engine: str) -> None:
    if engine == "torch":
        try:
            import torch
        except ImportError as error:
            raise NoGpuError(f"PyTorch cannot be imported ({error})") from error
        if not torch.cuda.is_available():
            raise NoGpuError(f"PyTorch {torch.__version__} finds no CUDA device")
        return
    try:
        import onnxruntime
    except ImportError as error:
        raise NoGpuError(f"onnxruntime-gpu cannot be imported ({error})") from error
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NoGpuError("the installed onnxruntime has no CUDAExecutionProvider; pip install 'bnfold[gpu]'")


def bnfold(*arguments: str | Path) -> dict[str, Any]:
    """The record of a command; whatever is wrong ends the check."""
    command = [sys.executable, "-m", "bnfold", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoGpuError(f"bnfold {' '.join(map(str, arguments))}: exit {done.returncode}: {done.stderr.strip()}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def resnet50() -> Any:
    """ResNet-50 (He et al. 2016) with random weights and running statistics that a trained one might have."""
    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            out = 4 * width
            self.conv1, self.norm1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.conv3, self.norm3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
            self.shortcut = nn.Identity()
            if stride != 1 or channels != out:
                self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.norm1(self.conv1(x)))
            y = torch.relu(self.norm2(self.conv2(y)))
            return torch.relu(self.norm3(self.conv3(y)) + self.shortcut(x))

    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def export(folder: Path, batch: int) -> tuple[Path, Path]:
    """ResNet-50 as ONNX, with its BatchNorms, and as a saved program."""
    import torch

    model, example = resnet50(), torch.randn(batch, 3, 224, 224)
    onnx_path, program = folder / "resnet50.onnx", folder / "resnet50.pt2"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(onnx_path),
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            output_names=["logits"],
        )
    torch.export.save(torch.export.export(model, (example,)), program)
    return onnx_path, program


def cases(engines: tuple[str, ...], folder: Path, batch: int) -> Iterator[Case]:
    if "onnxruntime" in engines:
        import onnx

        for path in sorted((ROOT / "models").glob("*.onnx")):
            yield Case(path, ROOT / "models" / "digits_test.npz")
        yield Case(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_resnet50.onnx")
    try:
        exported, program = export(folder, batch)
    except ImportError as error:
        raise NoGpuError(f"PyTorch cannot be imported ({error}); it builds the ResNet-50") from error
    if "onnxruntime" in engines:
        yield Case(exported)
    if "torch" in engines:
        yield Case(program)


def check(case: Case, folder: Path) -> Iterator[str]:
    """Rows of the table: one for each level."""
    fused = folder / f"fused-{case.model.name}"
    folded = bnfold("fuse", case.model, "-o", fused, "--overwrite", *case.options)["batchnorms"]
    verified = bnfold("verify", case.model, fused, "--provider", "cuda", *case.options)
    on_gpu = [output for output in verified["outputs"] if output["provider"] == "cuda"]
    if not on_gpu:
        raise NoGpuError(f"{case.model.name}: the verification names no output on cuda")
    worst = max(on_gpu, key=lambda output: output["excess"])
    timed = bnfold("bench", case.model, fused, "--provider", "cuda", *case.options)
    for entry in timed["entries"]:
        if entry["verdict"] is None:
            first = entry
            continue
        cells = (
            case.model.name,
            entry["engine"],
            entry["level"] or "",
            f"{folded['folded']} of {folded['found']}",
            f"{worst['error']:.1e} of {worst['budget']:.1e}",
            f"{first['median_ms']:.3f}",
            f"{entry['median_ms']:.3f}",
            f"{entry['ratio']:.3f} ({entry['ratio_low']:.3f} to {entry['ratio_high']:.3f})",
            entry["verdict"],
            f"{len(first['handed_back'])}, {len(entry['handed_back'])}",
        )
        yield f"| {' | '.join(map(str, cells))} |"


HEADER = """# On a GPU

Written by `{command}` on one {name}, driver {driver_version}, {memory}; {libraries}.
Every model was folded, verified on the device (`bnfold verify --provider cuda`) and timed there
(`bnfold bench --provider cuda`, TensorFloat-32 off; see [benchmarks](benchmarks.md) for the method).

| model | engine | level | folded | error of budget | ms before | ms after | ratio | verdict | nodes left to the CPU |
|---|---|---|---|---|---:|---:|---|---|---|
"""


def libraries() -> str:
    from bnfold.bench.fingerprint import fingerprint

    return ", ".join(f"{name} {version}" for name, version in fingerprint()["libraries"].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, action="append", help="repeatable; both by default")
    parser.add_argument("--batch", type=int, default=8, help="images of the ResNet-50 that is built here")
    parser.add_argument("--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    engines = tuple(arguments.engine or ENGINES)
    try:
        gpu = find_gpu(engines)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = []
            for case in cases(engines, folder, arguments.batch):
                for row in check(case, folder):
                    print(row, flush=True)
                    rows.append(row)
    except NoGpuError as error:
        print(f"gpu_check: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(3)
    command = " ".join(["python scripts/benchmarks/gpu_check.py", *sys.argv[1:]])
    header = HEADER.format(
        command=command,
        name=gpu["name"],
        driver_version=gpu["driver_version"],
        memory=gpu["memory.total"],
        libraries=libraries(),
    )
    arguments.output.write_text(header + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
