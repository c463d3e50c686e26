"""Compares `bnfold.fuse` with `torch.fx.experimental.optimization.fuse`, and writes the table of docs/comparison.md.

Run `python scripts/benchmarks/compare_torch.py` from the repository root (CPU only, some seconds); with ``--check`` it
writes nothing and fails where the page says otherwise. Both get the same modules, in eval mode and float64, and what
they give back is run beside the original.

- solved: no BatchNorm is left, and the outputs agree to 1e-9;
- left: the outputs agree, and a BatchNorm is left;
- wrong: the outputs differ;
- crashed: an exception, on fusing or on running.
"""

from __future__ import annotations

import operator
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse as fuse_by_torch

import bnfold

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"
START, END = "<!-- torch: start -->", "<!-- torch: end -->"
LIMIT = 1e-9


class Code(nn.Module):
    """Modules by name, and a function that calls them."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with an activation, in the manner of timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "expected 4 axes")
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(y)


class Frozen(nn.Module):
    """A BatchNorm of buffers, in the manner of torchvision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


def conv(fan_in: int = 4, out: int = 4, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(fan_in, out, size, **options)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


IMAGE = (2, 4, 8, 8)
Row = nn.Sequential

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d, BatchNorm1d": (lambda: Row(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (2, 4, 9)),
    "Conv2d, BatchNorm2d": (lambda: Row(conv(), norm()), IMAGE),
    "Conv3d, BatchNorm3d": (lambda: Row(nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6)), (2, 4, 5, 5, 5)),
    "without bias, grouped, dilated": (lambda: Row(conv(groups=2, dilation=2, bias=False), norm()), IMAGE),
    "BatchNorm without affine": (lambda: Row(conv(), nn.BatchNorm2d(4, affine=False)), IMAGE),
    "ConvTranspose2d": (lambda: Row(nn.ConvTranspose2d(4, 6, 3), norm(6)), IMAGE),
    "ConvTranspose2d, as many channels out as in": (lambda: Row(nn.ConvTranspose2d(4, 4, 3), norm()), IMAGE),
    "ConvTranspose2d, grouped": (lambda: Row(nn.ConvTranspose2d(4, 6, 3, groups=2), norm(6)), IMAGE),
    "Linear, BatchNorm1d": (lambda: Row(nn.Linear(4, 6), nn.BatchNorm1d(6)), (3, 4)),
    "Linear over as many tokens as features (must stay)": (lambda: Row(nn.Linear(5, 5), nn.BatchNorm1d(5)), (2, 5, 5)),
    "a convolution called twice": (
        lambda: Code(lambda m, x: m.b(m.a(torch.sin(m.a(x)))), a=conv(size=1), b=norm()),
        IMAGE,
    ),
    "a BatchNorm behind two convolutions": (
        lambda: Code(lambda m, x: torch.maximum(m.b(m.a(x)), m.b(m.c(x))), a=conv(), b=norm(), c=conv()),
        IMAGE,
    ),
    "one convolution, two BatchNorms": (
        lambda: Code(lambda m, x: torch.maximum(m.b(m.a(x)), m.c(m.a(x))), a=conv(), b=norm(), c=norm()),
        IMAGE,
    ),
    "tied weights": (lambda: tied(), IMAGE),
    "an output that is read elsewhere (must stay)": (
        lambda: Code(lambda m, x: (lambda y: torch.maximum(m.b(y), y))(m.a(x)), a=conv(), b=norm()),
        IMAGE,
    ),
    "two BatchNorms in a row": (lambda: Row(conv(), norm(), norm()), IMAGE),
    "BatchNorm in front of a convolution": (lambda: Row(nn.SiLU(), norm(), conv()), IMAGE),
    "SyncBatchNorm": (lambda: Row(conv(), nn.SyncBatchNorm(4)), IMAGE),
    "InstanceNorm with running statistics": (
        lambda: Row(conv(), nn.InstanceNorm2d(4, track_running_stats=True)),
        IMAGE,
    ),
    "a subclass of BatchNorm with an activation": (lambda: Row(conv(), NormAct(4)), IMAGE),
    "a frozen BatchNorm of buffers": (lambda: Row(conv(), Frozen(4)), IMAGE),
    "F.batch_norm": (
        lambda: Code(
            lambda m, x: F.batch_norm(m.a(x), m.b.running_mean, m.b.running_var, m.b.weight, m.b.bias),
            a=conv(), b=norm(),
        ),
        IMAGE,
    ),
    "behind a pool": (lambda: Row(conv(), nn.AvgPool2d(2), norm()), IMAGE),
    "behind Dropout": (lambda: Row(conv(), nn.Dropout(), norm()), IMAGE),
    "behind a concatenation": (
        lambda: Code(lambda m, x: m.b(torch.cat([m.a(x), m.c(x)], 1)), a=conv(), c=conv(), b=norm(8)),
        IMAGE,
    ),
    "behind a pixel shuffle": (lambda: Row(conv(4, 8), nn.PixelShuffle(2), norm(2)), IMAGE),
    "behind Relu (must stay)": (lambda: Row(conv(), nn.ReLU(), norm()), IMAGE),
    "behind a token transpose": (
        lambda: Code(lambda m, x: m.b(m.a(x).transpose(1, 2)), a=nn.Linear(4, 6), b=nn.BatchNorm1d(6)),
        (2, 5, 4),
    ),
    "identity branch (RepVGG)": (
        lambda: Code(
            lambda m, x: (lambda y: torch.relu(m.b(m.a(y)) + m.c(y)))(torch.relu(m.d(x))),
            a=conv(padding=1), b=norm(), c=norm(), d=conv(),
        ),
        IMAGE,
    ),
    "weight_norm, old": (lambda: Row(nn.utils.weight_norm(conv()), norm()), IMAGE),
    "weight_norm, new": (lambda: Row(nn.utils.parametrizations.weight_norm(conv()), norm()), IMAGE),
    "a forward hook on the convolution": (lambda: hooked(), IMAGE),
    "no running statistics (must stay)": (lambda: Row(conv(), nn.BatchNorm2d(4, track_running_stats=False)), IMAGE),
    "control flow on a size": (
        lambda: Code(lambda m, x: m.b(m.a(x)) if x.shape[1] == 4 else x, a=conv(), b=norm()), IMAGE
    ),
}  # fmt: skip


def tied() -> nn.Module:
    model = Row(conv(size=1), norm(), nn.SiLU(), conv(size=1))
    model[3].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    """A hook that changes what the convolution gives."""
    model = Row(conv(), norm())
    model[0].register_forward_hook(lambda module, args, output: torch.tanh(output))
    return model


def prepared(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make().double()
    for each in model.modules():
        if isinstance(each, nn.modules.batchnorm._NormBase) and each.running_mean is not None:
            each.running_mean.normal_(0, 0.5)
            each.running_var.uniform_(0.5, 2.0)
            if each.weight is not None:
                nn.init.uniform_(each.weight, -1.5, 1.5)
                nn.init.normal_(each.bias, 0, 0.5)
    return model.eval()


def by_bnfold(model: nn.Module, x: Tensor) -> Any:
    return bnfold.fuse(model, example_inputs=x)


def by_bnfold_as_graph(model: nn.Module, x: Tensor) -> Any:
    return bnfold.fuse(fx.symbolic_trace(model), example_inputs=x)


def by_bnfold_as_program(model: nn.Module, x: Tensor) -> Any:
    return bnfold.fuse(torch.export.export(model, (x,), strict=False)).module()


TOOLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "torch.fx fuse": lambda model, x: fuse_by_torch(model),
    "bnfold, module": by_bnfold,
    "bnfold, GraphModule": by_bnfold_as_graph,
    "bnfold, ExportedProgram": by_bnfold_as_program,
}


AFFINES = {str(each) for each in (operator.add, operator.mul, torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor)}
"""What is left of a frozen BatchNorm; nothing else in the cases adds or multiplies, once all is solved."""


def is_normalised(model: nn.Module, x: Tensor) -> bool:
    """Whether a normalisation is left in what the model does; an export tells, whatever classes its modules have."""
    try:
        graphs = [torch.export.export(model, (x,), strict=False).graph]
    except Exception:  # what cannot be exported is judged by its modules, and by its graphs
        if any(isinstance(each, nn.modules.batchnorm._NormBase) for each in model.modules()):
            return True
        graphs = [each.graph for each in model.modules() if isinstance(each, fx.GraphModule)]
    calls = [str(node.target) for graph in graphs for node in graph.nodes if node.op.startswith("call")]
    return any("_norm" in call or "rsqrt" in call or call in AFFINES for call in calls)


def judge(make: Callable[[], nn.Module], tool: Callable[[nn.Module, Tensor], Any], shape: tuple[int, ...]) -> str:
    model, x = prepared(make), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected = prepared(make)(x)
        try:
            fused = tool(model, x)
            actual = fused(x)
        except Exception:  # whatever a tool raises: that is what is counted
            return "crashed"
    error = (expected - actual).abs().max() / expected.abs().max()
    if not error <= LIMIT:
        return "wrong"
    return "left" if is_normalised(fused, x) else "solved"


def table() -> str:
    found = {
        name: {tool: judge(make, run, shape) for tool, run in TOOLS.items()} for name, (make, shape) in CASES.items()
    }
    head = ["| case | " + " | ".join(TOOLS) + " |", "|---" * (len(TOOLS) + 1) + "|"]
    rows = [f"| {name} | " + " | ".join(results.values()) + " |" for name, results in found.items()]
    counts = {tool: Counter(results[tool] for results in found.values()) for tool in TOOLS}
    sums = [
        f"| *{what}* | " + " | ".join(str(counts[tool][what]) for tool in TOOLS) + " |"
        for what in ("solved", "left", "wrong", "crashed")
    ]
    return "\n".join(head + rows + sums)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = f"{START}\n{table()}\n{END}"
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    wanted = before + made + after
    if "--check" in sys.argv[1:]:
        sys.exit(0 if wanted == page else f"{PAGE} says otherwise; run scripts/benchmarks/compare_torch.py")
    PAGE.write_text(wanted)
    print(made)


if __name__ == "__main__":
    main()
