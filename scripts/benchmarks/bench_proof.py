"""What proving a fold costs: beside hashing the files, beside no check at all, and beside onnxsim without a check.

    python scripts/benchmarks/bench_proof.py [--rounds N] [--docs docs/proof.md]

Whole processes take turns; a ratio is the median over the rounds of that round's times. The models are architectures of
timm with random weights (`pip install timm`, with the torchvision that fits torch) and a chain of convolutions;
onnxsim is what `pip install onnxsim` gives.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx import TensorProto, helper, numpy_helper

from bnfold.api import certify
from bnfold.proof.checker import check_proof
from bnfold.proof.models import Files, digest
from scripts.benchmarks.page import write_section
from scripts.benchmarks.proof_zoo import exported, randomised

torch.set_num_threads(1)

ARCHITECTURES = ("resnet50", "efficientnet_b0", "densenet121", "mobilenetv2_100")


def chain(channels: int = 512, length: int = 11) -> onnx.ModelProto:
    """Convolutions in a row, each with a BatchNorm behind it: 104 MB."""
    generator = np.random.default_rng(0)
    nodes, constants, value = [], {}, "x"
    for number in range(length):
        constants[f"w{number}"] = generator.normal(0, (9 * channels) ** -0.5, (channels, channels, 3, 3))
        for name, low in (("gamma", 0.5), ("beta", -0.1), ("mean", -0.1), ("var", 0.5)):
            constants[f"{name}{number}"] = generator.uniform(low, 1.0, channels)
        names = [f"{name}{number}" for name in ("gamma", "beta", "mean", "var")]
        nodes.append(helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("BatchNormalization", [f"c{number}", *names], [f"n{number}"]))
        value = f"r{number}"
        nodes.append(helper.make_node("Relu", [f"n{number}"], [value]))
    shape = [1, channels, 14, 14]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value)]
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def models() -> dict[str, onnx.ModelProto]:
    torch.manual_seed(0)
    found = {
        name: exported(randomised(timm.create_model(name, pretrained=False)), torch.randn(1, 3, 224, 224), dynamo=False)
        for name in ARCHITECTURES
    }
    return {**found, "chain of 11 convolutions": chain()}


def process(*command: str) -> tuple[float, int]:
    """Seconds and peak bytes of a process."""
    began = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, *command], os.environ, file_actions=_SILENT)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage.ru_maxrss * 1024


_SILENT = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]


def inference(path: Path) -> float:
    """Seconds of one unoptimised inference, behind an untimed one."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    feeds = {given.name: np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)}
    session.run(None, feeds)
    began = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - began


def checked(original: onnx.ModelProto) -> tuple[float, float]:
    """Seconds of checking a certificate, without the digests in it, and of hashing both models."""
    result, certificate = certify(original)
    pair = Files(original), Files(result)
    began = time.perf_counter()
    for files in pair:
        digest(files)
    hashed = time.perf_counter()
    proof = check_proof(*pair, certificate)
    assert proof.is_proved
    hashing = hashed - began
    return time.perf_counter() - hashed - hashing, hashing


def row(name: str, original: onnx.ModelProto, rounds: int, folder: Path) -> str:
    """One line of the table."""
    model, result = folder / "model.onnx", folder / "result.onnx"
    onnx.save(original, model)
    fuse = ("-m", "bnfold", "fuse", str(model), "-o", str(result), "--overwrite", "-q")
    proved, bare, peers, both, checks, hashes = ([] for _ in range(6))
    for _ in range(rounds):
        bare.append(process(*fuse, "--no-verify"))
        proved.append(process(*fuse))
        peers.append(process("-m", "onnxsim", str(model), str(folder / "simplified.onnx"))[0])
        both.append(inference(model) + inference(result))
        check, hashing = checked(original)
        checks.append(check)
        hashes.append(hashing)

    def ratio(above: list[float], below: list[float]) -> str:
        return f"{median(a / b for a, b in zip(above, below, strict=True)):.2f}"

    seconds, plain = [each[0] for each in proved], [each[0] for each in bare]
    allowed = [2 * a + b for a, b in zip(plain, both, strict=True)]
    cells = (
        name,
        f"{model.stat().st_size / 1e6:.0f}",
        f"{median(checks):.2f}",
        ratio(checks, hashes),
        f"{median(seconds):.1f}",
        ratio(seconds, plain),
        ratio(seconds, allowed),
        ratio(seconds, peers),
        f"{median(each[1] for each in proved) / median(each[1] for each in bare):.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--docs", type=Path, help="write the section between its markers in this page")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, original in models().items():
            rows.append(row(name, original, options.rounds, Path(folder)))
            print(rows[-1], flush=True)
    text = "\n".join(
        [
            f"Medians of {options.rounds} rounds; onnxruntime {onnxruntime.__version__}, {os.cpu_count()} CPUs, "
            f"{platform.machine()}, load of the machine at the start {load:.1f}.",
            "`fuse` proves and runs both models once, `--no-verify` does neither, and onnxsim runs without a check.",
            "",
            "| model | MB | check, s | check / hashing both files | `fuse`, s | / `--no-verify` "
            "| / (2 `--no-verify` + one inference of each) | / onnxsim | memory / `--no-verify` |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
            *rows,
        ]
    )
    print(text)
    if options.docs:
        write_section(options.docs, "proof-cost", text)


if __name__ == "__main__":
    main()
