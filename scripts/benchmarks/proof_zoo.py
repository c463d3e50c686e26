"""Whether every fold of real architectures is proved: a search for false alarms of the checker.

    python scripts/benchmarks/proof_zoo.py [--docs docs/proof.md] [NAME...]

Architectures of timm (`pip install timm`, with the torchvision that fits torch), with random weights and statistics,
by both of torch's ONNX exporters, folded and checked. The time of the check is told beside that of hashing both files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import timm
import torch
from torch import nn

from bnfold.api import certify
from bnfold.proof.checker import Proof, check_proof
from bnfold.proof.models import Files, digest
from scripts.benchmarks.page import write_section

torch.set_num_threads(1)

SIZES = {
    "inception_v3": 299, "xception41p": 299, "levit_128s": 224, "efficientformer_l1": 224, "visformer_tiny": 224,
    "efficientformerv2_s0": 224, "swiftformer_xs": 224, "convmixer_768_32": 224, "vgg11_bn": 224,
}  # fmt: skip
"""Of images, where 128 are not enough."""

NAMES = (
    "convmixer_768_32", "cspresnet50", "darknet53", "densenet121", "dla34", "dpn48b", "edgenext_xx_small",
    "efficientformer_l1", "efficientformerv2_s0", "efficientnet_b0", "fastvit_t8", "ghostnet_100", "ghostnetv3_050",
    "hardcorenas_a", "hrnet_w18_small", "inception_v3", "lcnet_050", "levit_128s", "mixnet_s", "mnasnet_100",
    "mobilenetv2_100", "mobilenetv3_large_100", "mobileone_s0", "mobilevit_xs", "mobilevitv2_050", "nextvit_small",
    "nf_regnet_b0", "regnetx_002", "regnety_002", "repghostnet_050", "repvgg_a0", "repvit_m0_9", "resnet50",
    "resnest14d", "rexnet_100", "selecsls42", "skresnet18", "swiftformer_xs",
    "tf_efficientnetv2_b0", "tinynet_e", "vgg11_bn", "visformer_tiny", "xception41p",
)  # fmt: skip


def randomised(module: nn.Module) -> nn.Module:
    """The module in eval mode, its BatchNorms as if trained; some channels have a negative scale."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            if norm.affine:
                norm.weight.data.uniform_(-0.2, 1.0, generator=generator)
                norm.bias.data.normal_(0, 0.1, generator=generator)
    return module.eval()


def exported(module: nn.Module, x: torch.Tensor, *, dynamo: bool) -> onnx.ModelProto:
    """The module with its BatchNorms, by one of the exporters."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(module, (x,), dynamo=True, optimize=False, verbose=False)
            assert program is not None
            return program.model_proto
        torch.onnx.export(
            module, (x,), buffer, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False
        )
    return onnx.load_model_from_string(buffer.getvalue())


@dataclass(frozen=True)
class Row:
    """What became of one architecture from one exporter."""

    name: str
    exporter: str
    found: int
    folded: int
    proof: Proof
    seconds: float
    hashing: float

    def __str__(self) -> str:
        met, proof = self.proof.obligations, self.proof
        cells = (
            self.name,
            self.exporter,
            self.found,
            self.folded,
            f"{proof.weights:,}",
            met["carriers"],
            met["merges"],
            f"{proof.worst_ulp:.3f}",
            f"{self.seconds:.2f}",
            f"{self.seconds / self.hashing:.1f}",
            "yes" if proof.is_proved else f"**no**: {proof.failures[0]}",
        )
        return f"| {' | '.join(map(str, cells))} |"


def rows(name: str) -> Iterator[Row]:
    """One from each exporter that takes the architecture."""
    torch.manual_seed(0)
    size = SIZES.get(name, 128)
    module = randomised(timm.create_model(name, pretrained=False))
    for exporter in ("older", "dynamo"):
        try:
            original = exported(module, torch.randn(1, 3, size, size), dynamo=exporter == "dynamo")
        except torch.onnx.OnnxExporterError as error:
            print(f"{name}: not exported: {str(error).splitlines()[0][:100]}", flush=True)
            continue
        result, certificate = certify(original)
        began = time.perf_counter()
        for each in (original, result):
            digest(Files(each))
        hashed = time.perf_counter()
        proof = check_proof(Files(original), Files(result), certificate)
        seconds = time.perf_counter() - hashed
        found = sum(node.op_type == "BatchNormalization" for node in original.graph.node)
        left = sum(node.op_type == "BatchNormalization" for node in result.graph.node)
        yield Row(name, exporter, found, found - left, proof, seconds, hashed - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--docs", type=Path, help="write the table between its markers in this page")
    options = parser.parse_args()
    lines = [
        "| architecture | exporter | BatchNorms | folded | weights checked | carriers | merges | largest error, ulp "
        "| check, s | check / hashing | proved |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    print(*lines, sep="\n", flush=True)
    failed = 0
    for row in (row for name in options.names for row in rows(name)):
        lines.append(str(row))
        failed += not row.proof.is_proved
        print(row, flush=True)
    if options.docs:
        write_section(options.docs, "zoo", "\n".join(lines))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
