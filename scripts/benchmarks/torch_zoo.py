"""What `bnfold.fuse` folds of real architectures as modules and as programs, in what time, beside PyTorch's own tools.

    python scripts/benchmarks/torch_zoo.py [--only GLOB...] [--results FILE.jsonl] [--docs docs/comparison.md]

Architectures of timm and transformers (`pip install timm transformers`, with the torchvision that fits torch), with
random weights and statistics, in float64 and eval mode. Each is measured in a process of its own, on one thread, in
seconds of the processor; its line is added to the results at once, and what has one already is not measured again.

BatchNorms are counted as they run: the calls of the operator in one run of the original, and of what a tool gives back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold
from bnfold import Fold, Refusal
from scripts.benchmarks.page import write_section

LIMIT = 1e-9
"""Largest difference from the original, of its largest value, that is not called wrong."""

SECONDS = 900
"""After which a process is ended."""

SIZES = {
    "efficientformer_l1": 224, "efficientformerv2_s0": 224, "efficientvit_m0": 224, "halonet26t": 256,
    "inception_v3": 299, "levit_128s": 224, "levit_conv_128s": 224, "swiftformer_xs": 224, "tiny_vit_5m_224": 224,
    "visformer_tiny": 224, "xception41p": 299, "xcit_nano_12_p16_224": 224,
}  # fmt: skip
"""Of images, where 96 are not enough."""

TIMM = (
    "convmixer_768_32", "cs3darknet_s", "cspresnet50", "cspnext_tiny", "darknet53", "densenet121", "dla34",
    "dpn48b", "eca_resnet33ts", "efficientformer_l1", "efficientformerv2_s0",
    "efficientnet_b0", "efficientvit_b0", "efficientvit_m0", "ese_vovnet19b_slim_dw", "fasternet_t0", "fastvit_t8",
    "gernet_s", "ghostnet_100", "ghostnetv3_050", "halonet26t", "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small",
    "inception_next_atto", "inception_v3", "lcnet_050", "legacy_seresnet18", "levit_128s", "levit_conv_128s",
    "mixnet_s", "mnasnet_100", "mobilenetv2_100", "mobilenetv3_large_100", "mobileone_s0", "mobilevit_xs",
    "mobilevitv2_050", "nextvit_small", "regnetx_002", "regnety_002", "repghostnet_050", "repvgg_a0", "repvit_m0_9",
    "res2net50d", "resnest14d", "resnet18", "resnet50", "resnetv2_18", "rexnet_100", "selecsls42", "semnasnet_075",
    "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "tf_efficientnetv2_b0", "tiny_vit_5m_224",
    "tinynet_e", "vgg11_bn", "visformer_tiny", "xception41p", "xcit_nano_12_p16_224",
)  # fmt: skip

Maker = Callable[[Any], nn.Module]
SMALL_VIT = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL_STAGES = {"hidden_sizes": [32, 64, 96, 128], "layer_type": "basic"}
SMALL_SPEECH = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
}  # fmt: skip


def image(size: int, batch: int = 2, channels: int = 3) -> dict[str, torch.Tensor]:
    """Images as most models of transformers take them."""
    return {"pixel_values": torch.randn(batch, channels, size, size)}


TRANSFORMERS: Mapping[str, tuple[Maker, Callable[[], dict[str, torch.Tensor]]]] = {
    "ALIGN, vision": (
        lambda t: t.AlignVisionModel(t.AlignVisionConfig(width_coefficient=0.5, depth_coefficient=1.0, hidden_dim=640)),
        lambda: image(64),
    ),
    "BEiT, segmentation": (
        lambda t: t.BeitForSemanticSegmentation(
            t.BeitConfig(**SMALL_VIT, image_size=64, intermediate_size=128, out_indices=[0, 1, 2, 3])
        ),
        lambda: image(64),
    ),
    "CLAP, audio": (
        lambda t: t.ClapAudioModel(
            t.ClapAudioConfig(
                depths=[1, 1, 1, 1], num_attention_heads=[2, 2, 2, 2], patch_embeds_hidden_size=32, hidden_size=256
            )
        ),
        lambda: {"input_features": torch.randn(1, 1, 1001, 64), "is_longer": torch.tensor([[False]])},
    ),
    "Data2Vec, segmentation": (
        lambda t: t.Data2VecVisionForSemanticSegmentation(
            t.Data2VecVisionConfig(**SMALL_VIT, image_size=64, intermediate_size=128, out_indices=[0, 1, 2, 3])
        ),
        lambda: image(64),
    ),
    "DPT, depth": (
        lambda t: t.DPTForDepthEstimation(
            t.DPTConfig(
                **SMALL_VIT,
                image_size=64,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[16, 32, 48, 48],
                fusion_hidden_size=32,
                use_batch_norm_in_fusion_residual=True,
            )
        ),
        lambda: image(64),
    ),
    "EfficientNet": (
        lambda t: t.EfficientNetForImageClassification(
            t.EfficientNetConfig(width_coefficient=0.5, depth_coefficient=1.0, hidden_dim=640)
        ),
        lambda: image(64),
    ),
    "HGNet V2": (lambda t: t.HGNetV2ForImageClassification(t.HGNetV2Config()), lambda: image(64)),
    "HuBERT": (
        lambda t: t.HubertModel(
            t.HubertConfig(
                **SMALL_SPEECH,
                conv_dim=(32, 32, 32),
                conv_stride=(5, 2, 2),
                conv_kernel=(10, 3, 3),
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
                conv_pos_batch_norm=True,
            )
        ),
        lambda: {"input_values": torch.randn(2, 2000)},
    ),
    "LeViT": (lambda t: t.LevitForImageClassification(t.LevitConfig()), lambda: image(224)),
    "MobileNet V1": (
        lambda t: t.MobileNetV1ForImageClassification(t.MobileNetV1Config(depth_multiplier=0.25)),
        lambda: image(64),
    ),
    "MobileNet V2": (
        lambda t: t.MobileNetV2ForImageClassification(t.MobileNetV2Config(depth_multiplier=0.35)),
        lambda: image(64),
    ),
    "MobileNet V2, segmentation": (
        lambda t: t.MobileNetV2ForSemanticSegmentation(t.MobileNetV2Config(depth_multiplier=0.35)),
        lambda: image(64),
    ),
    "MobileViT": (lambda t: t.MobileViTForImageClassification(t.MobileViTConfig()), lambda: image(64)),
    "MobileViT V2": (
        lambda t: t.MobileViTV2ForImageClassification(t.MobileViTV2Config(width_multiplier=0.5)),
        lambda: image(64),
    ),
    "Parakeet, encoder": (
        lambda t: t.ParakeetEncoder(
            t.ParakeetEncoderConfig(**SMALL_SPEECH, subsampling_conv_channels=32, num_mel_bins=16)
        ),
        lambda: {"input_features": torch.randn(2, 64, 16)},
    ),
    "PatchTSMixer": (
        lambda t: t.PatchTSMixerForPrediction(
            t.PatchTSMixerConfig(
                context_length=32,
                num_input_channels=3,
                patch_length=4,
                patch_stride=4,
                d_model=16,
                norm_mlp="BatchNorm",
            )
        ),
        lambda: {"past_values": torch.randn(2, 32, 3)},
    ),
    "PatchTST": (
        lambda t: t.PatchTSTForPrediction(
            t.PatchTSTConfig(
                num_input_channels=3,
                context_length=32,
                patch_length=4,
                patch_stride=4,
                d_model=32,
                num_attention_heads=4,
                ffn_dim=48,
                norm_type="batchnorm",
            )
        ),
        lambda: {"past_values": torch.randn(2, 32, 3)},
    ),
    "Perceiver, convolutional": (
        lambda t: t.PerceiverForImageClassificationConvProcessing(
            t.PerceiverConfig(
                num_latents=8,
                d_latents=64,
                num_blocks=1,
                num_self_attends_per_block=2,
                num_self_attention_heads=4,
                num_cross_attention_heads=1,
            )
        ),
        lambda: {"inputs": image(224)["pixel_values"]},
    ),
    "PP-LCNet": (lambda t: t.PPLCNetForImageClassification(t.PPLCNetConfig()), lambda: image(64)),
    "RegNet": (
        lambda t: t.RegNetForImageClassification(
            t.RegNetConfig(depths=[1, 2, 2, 1], hidden_sizes=[32, 64, 128, 128], groups_width=32)
        ),
        lambda: image(64),
    ),
    "ResNet": (
        lambda t: t.ResNetForImageClassification(
            t.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 96, 128], layer_type="bottleneck")
        ),
        lambda: image(64),
    ),
    "ResNet, backbone": (
        lambda t: t.ResNetBackbone(
            t.ResNetConfig(**SMALL_STAGES, depths=[2, 2, 2, 2], out_features=["stage2", "stage4"])
        ),
        lambda: image(64),
    ),
    "RT-DETR": (
        lambda t: t.RTDetrForObjectDetection(
            t.RTDetrConfig(
                backbone_config=t.RTDetrResNetConfig(
                    **SMALL_STAGES, depths=[1, 1, 1, 1], embedding_size=32, out_features=["stage2", "stage3", "stage4"]
                ),
                encoder_in_channels=[64, 96, 128],
                decoder_in_channels=[64, 64, 64],
                d_model=64,
                encoder_hidden_dim=64,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                decoder_layers=1,
                num_queries=20,
                num_denoising=0,
                freeze_backbone_batch_norms=False,
            )
        ),
        lambda: image(128),
    ),
    "RT-DETR, backbone": (
        lambda t: t.RTDetrResNetBackbone(
            t.RTDetrResNetConfig(
                **SMALL_STAGES, depths=[1, 1, 1, 1], embedding_size=32, out_features=["stage2", "stage3", "stage4"]
            )
        ),
        lambda: image(64),
    ),
    "SegFormer": (
        lambda t: t.SegformerForSemanticSegmentation(t.SegformerConfig(depths=[1, 1, 1, 1])),
        lambda: image(64),
    ),
    "SwiftFormer": (lambda t: t.SwiftFormerForImageClassification(t.SwiftFormerConfig()), lambda: image(128)),
    "TextNet": (lambda t: t.TextNetForImageClassification(t.TextNetConfig()), lambda: image(64)),
    "UPerNet": (
        lambda t: t.UperNetForSemanticSegmentation(
            t.UperNetConfig(
                backbone_config=t.ResNetConfig(
                    **SMALL_STAGES, depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
                ),
                hidden_size=64,
                auxiliary_in_channels=96,
            )
        ),
        lambda: image(64),
    ),
    "ViTMatte": (
        lambda t: t.VitMatteForImageMatting(
            t.VitMatteConfig(
                backbone_config=t.VitDetConfig(
                    hidden_size=96,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    image_size=64,
                    pretrain_image_size=64,
                    num_channels=4,
                    out_features=["stage2"],
                ),
                hidden_size=96,
                convstream_hidden_sizes=[16, 24, 32],
                fusion_hidden_sizes=[64, 32, 24, 16],
            )
        ),
        lambda: image(64, channels=4),
    ),
    "ViTPose": (
        lambda t: t.VitPoseForPoseEstimation(
            t.VitPoseConfig(
                backbone_config=t.VitPoseBackboneConfig(
                    image_size=[64, 48], hidden_size=96, num_hidden_layers=2, num_attention_heads=4, out_indices=[2]
                ),
                use_simple_decoder=False,
            )
        ),
        lambda: {"pixel_values": torch.randn(2, 3, 64, 48)},
    ),
}

Kwargs = dict[str, torch.Tensor]


def made(name: str) -> tuple[nn.Module, Kwargs]:
    """An architecture as if it had been trained, in float64 and eval mode, and what it is called with."""
    torch.manual_seed(0)
    if name in TRANSFORMERS:
        import transformers

        make, draw = TRANSFORMERS[name]
        module, inputs = make(transformers), draw()
    else:
        import timm

        module = timm.create_model(name, pretrained=False)
        inputs = {"x": torch.randn(2, 3, *(2 * [SIZES.get(name, 96)]))}
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            if norm.affine:
                norm.weight.data.uniform_(-0.2, 1.0)
                norm.bias.data.normal_(0, 0.1)
    wide = {key: each.double() if each.is_floating_point() else each for key, each in inputs.items()}
    return module.eval().double(), wide


class Counter(TorchDispatchMode):
    """Counts BatchNorms that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "batch_norm" in str(func)
        return func(*args, **(kwargs or {}))


def run(model: Any, inputs: Kwargs) -> tuple[list[torch.Tensor], int]:
    """The tensors of a model's output, and the number of BatchNorms that ran."""
    torch.manual_seed(0)
    with torch.no_grad(), Counter() as counter:
        leaves = _pytree.tree_leaves(model(**{key: each.clone() for key, each in inputs.items()}))
    return [each for each in leaves if isinstance(each, torch.Tensor)], counter.count


def difference(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> float:
    """The largest difference of two outputs, of the largest value of its tensor."""
    if [each.shape for each in expected] != [each.shape for each in actual]:
        return float("inf")
    pairs = [(one.double(), two.double()) for one, two in zip(expected, actual, strict=True) if one.numel()]
    return max(float((one - two).abs().max() / one.abs().max().clamp_min(1e-300)) for one, two in pairs)


def exported(module: nn.Module, inputs: Kwargs) -> torch.export.ExportedProgram:
    return torch.export.export(module, (), inputs, strict=False)


def frozen(module: nn.Module, inputs: Kwargs) -> Any:
    """The module by TorchScript: traced, frozen, and what freezing optimises."""
    return torch.jit.freeze(torch.jit.trace(module, example_kwarg_inputs=inputs, strict=False, check_trace=False))


def fused_by_fx(module: nn.Module, inputs: Kwargs) -> Any:
    from torch.fx.experimental.optimization import fuse

    return fuse(module)


def fused_by_ao(module: nn.Module, inputs: Kwargs) -> Any:
    from torch.ao.quantization.quantize_fx import fuse_fx

    return fuse_fx(module)


TOOLS: Mapping[str, Callable[[nn.Module, Kwargs], Any]] = {
    "torch.fx": fused_by_fx,
    "torch.ao": fused_by_ao,
    "torch.jit": frozen,
}


def measure(name: str) -> dict[str, Any]:
    """What became of one architecture, as what JSON holds."""
    warm, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), {"input": torch.randn(2, 3, 8, 8)}
    bnfold.fuse(exported(warm, x))
    bnfold.fuse(warm, example_inputs=x, preserve=("forward",))
    module, inputs = made(name)
    expected, runs = run(module, inputs)
    row: dict[str, Any] = {"name": name, "batchnorms": runs}
    programs: list[Any] = []
    row["export_s"] = min(_timed(lambda: programs.append(exported(module, inputs))) for _ in range(2))
    ways: dict[str, Callable[[], Any]] = {
        "module": lambda: bnfold.fuse(
            module, example_inputs=inputs, preserve=("forward",), return_outcomes=True
        ),  # a program has no other methods
        "program": lambda: bnfold.fuse(programs[0], return_outcomes=True),
    }
    for way, fuse in ways.items():
        row[way] = _tried(lambda fuse=fuse, way=way: _folded(fuse, way, inputs, expected))  # type: ignore[misc]
    for tool, apply in TOOLS.items():
        row[tool] = _tried(lambda apply=apply: _judged(apply(module, inputs), inputs, expected))  # type: ignore[misc]
    return row


def _timed(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _tried(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measured()
    except Exception as error:  # of a tool, or of what it gives back
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"}


def _folded(fuse: Callable[[], Any], way: str, inputs: Kwargs, expected: list[torch.Tensor]) -> dict[str, Any]:
    results: list[Any] = []
    seconds = _timed(lambda: results.append(fuse()))
    result, outcomes = results[0]
    norms = [each for each in outcomes if isinstance(each, Fold | Refusal) and each.is_batchnorm]
    kept = sorted(f"{each.batchnorm}: {each.reason}" for each in norms if isinstance(each, Refusal))
    judged = _judged(result if way == "module" else result.module(), inputs, expected)
    return {**judged, "seconds": seconds, "found": len(norms), "folded": len(norms) - len(kept), "kept": kept}


def _judged(result: Any, inputs: Kwargs, expected: list[torch.Tensor]) -> dict[str, Any]:
    actual, left = run(result, inputs)
    return {"left": left, "error": difference(expected, actual)}


def in_a_process(name: str) -> dict[str, Any]:
    """What `measure` gives, by a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "scripts.benchmarks.torch_zoo", "--measure", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "failure": f"not done after {SECONDS} s"}
    if done.returncode:
        return {"name": name, "failure": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of the page."""
    yield (
        "| architecture | BatchNorms | left: bnfold, module | left: bnfold, program | left: torch.fx | left: torch.ao "
        "| left: torch.jit | error: module | error: program | export, s | fuse module, s | fuse program, s |"
    )
    yield "|---|" + "---:|" * 11
    for row in rows:
        if "failure" in row:
            yield f"| {row['name']} | *{row['failure']}* |" + " |" * 10
            continue
        ways = [row["module"], row["program"]]
        cells = [
            row["name"],
            row["batchnorms"],
            *(_left(row[key]) for key in ("module", "program", *TOOLS)),
            *(f"{way['error']:.0e}" if "error" in way else "" for way in ways),
            f"{row['export_s']:.1f}",
            *(f"{way['seconds']:.1f}" if "seconds" in way else "" for way in ways),
        ]
        yield f"| {' | '.join(map(str, cells))} |"
    measured = [row for row in rows if "failure" not in row]
    totals = ["*all*", sum(row["batchnorms"] for row in measured)]
    for key in ("module", "program", *TOOLS):
        held = [row[key]["left"] if _is_right(row[key]) else row["batchnorms"] for row in measured]
        totals.append(sum(held))
    yield f"| {' | '.join(map(str, totals))} |" + " |" * 5


def _is_right(found: Mapping[str, Any]) -> bool:
    return "failure" not in found and found["error"] <= LIMIT


def _left(found: Mapping[str, Any]) -> str:
    if "failure" in found:
        return "fails"
    return str(found["left"]) if _is_right(found) else "**wrong**"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names")
    parser.add_argument(
        "--results", type=Path, default=Path("torch_zoo.jsonl"), help="lines of JSON, which are added to"
    )
    parser.add_argument("--docs", type=Path, help="write the table between its markers in this page")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options.measure)))
        return
    known = {}
    if options.results.exists():
        known = {row["name"]: row for row in map(json.loads, options.results.read_text().splitlines())}
    names = [name for name in (*TIMM, *TRANSFORMERS) if any(fnmatch(name, pattern) for pattern in options.only)]
    for name in names:
        if name not in known:
            known[name] = in_a_process(name)
            with options.results.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
            print(json.dumps(known[name]), flush=True)
    lines = list(table([known[name] for name in names]))
    print(*lines, sep="\n")
    if options.docs:
        write_section(options.docs, "torch zoo", "\n".join(lines))


if __name__ == "__main__":
    main()
