"""Networks with parallel branches in the manner of their papers, each with its hand-written deploy form.

`deploy` makes of each module what its authors' own `reparameterize` makes of it, with code that shares nothing with
bnfold: the yardstick for how few convolutions are left.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_norm(fan_in: int, out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with its BatchNorm."""
    conv = nn.Conv2d(fan_in, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


def as_kernel(branch: nn.Module, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a branch (Conv2d and BatchNorm2d, BatchNorm2d, identity) in the shape of `conv`."""
    size, groups = conv.kernel_size[0], conv.groups
    if isinstance(branch, nn.Sequential):
        own, norm = branch
        kernel = functional.pad(own.weight, [(size - own.kernel_size[0]) // 2] * 4)
    else:
        norm = branch
        kernel = torch.zeros_like(conv.weight)
        for channel in range(conv.out_channels):
            kernel[channel, channel % (conv.in_channels // groups), size // 2, size // 2] = 1
    if isinstance(norm, nn.Identity):
        return kernel, torch.zeros(conv.out_channels, dtype=kernel.dtype)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return kernel * scale.reshape(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def joined(branches: Sequence[nn.Module], like: nn.Conv2d) -> nn.Conv2d:
    """One convolution for the sum of all branches."""
    conv = nn.Conv2d(
        like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding, groups=like.groups
    ).to(like.weight.dtype)
    parts = [as_kernel(branch, conv) for branch in branches]
    conv.weight.data = torch.stack([kernel for kernel, _ in parts]).sum(0)
    conv.bias.data = torch.stack([bias for _, bias in parts]).sum(0)
    return conv


class Branches(nn.Module):
    """MobileOne's block, and with one large branch RepVGG's: k x k, 1 x 1 and identity, each with BatchNorm."""

    def __init__(
        self, fan_in: int, out: int, *, stride: int = 1, groups: int = 1, size: int = 3, many: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.large = nn.ModuleList(conv_norm(fan_in, out, size, stride, groups) for _ in range(many))
        self.small = conv_norm(fan_in, out, 1, stride, groups) if size > 1 else None
        self.skip = nn.BatchNorm2d(out) if fan_in == out and stride == 1 else None
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        total = 0 if self.skip is None else self.skip(x)
        if self.small is not None:
            total = self.small(x) + total
        for branch in self.large:
            total = total + branch(x)
        return self.act(total)

    def deploy(self) -> nn.Module:
        branches = [*self.large, *([self.small] if self.small else []), *([self.skip] if self.skip else [])]
        return nn.Sequential(joined(branches, self.large[0][0]), self.act)


def mobile_one_stage(fan_in: int, out: int, stride: int, many: int) -> nn.Sequential:
    """A depthwise block, then a pointwise one."""
    return nn.Sequential(
        Branches(fan_in, fan_in, stride=stride, groups=fan_in, many=many), Branches(fan_in, out, size=1, many=many)
    )


class RepVitMixer(nn.Module):
    """RepViT's token mixer: ``norm(conv_norm_3x3(x) + conv_1x1(x) + x)``, depthwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.large = conv_norm(width, width, 3, groups=width)
        self.small = nn.Conv2d(width, width, 1, groups=width)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm((self.large(x) + self.small(x)) + x)

    def deploy(self) -> nn.Module:
        plain = nn.Sequential(self.small, nn.Identity())
        conv = joined([self.large, plain, nn.Identity()], self.large[0])
        conv.bias.data += self.small.bias
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        conv.weight.data *= scale.reshape(-1, 1, 1, 1)
        conv.bias.data = conv.bias * scale + self.norm.bias - self.norm.running_mean * scale
        return conv


class FeedForward(nn.Module):
    """A residual pointwise pair with an activation between, as in RepViT and FastViT."""

    def __init__(self, width: int, scaled: bool) -> None:
        super().__init__()
        self.up, self.down = conv_norm(width, 2 * width, 1), conv_norm(2 * width, width, 1)
        self.scale = nn.Parameter(torch.rand(width, 1, 1)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(functional.gelu(self.up(x)))
        return x + (y if self.scale is None else self.scale * y)

    def deploy(self) -> nn.Module:
        made = copy.deepcopy(self)
        made.up, made.down = joined([self.up], self.up[0]), joined([self.down], self.down[0])
        if self.scale is not None:
            made.down.weight.data *= self.scale.reshape(-1, 1, 1, 1)
            made.down.bias.data *= self.scale.reshape(-1)
            made.scale = None
        return made


class RepMixer(nn.Module):
    """FastViT's token mixer: ``x + layer_scale * (mixer(x) - norm(x))``, depthwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.mixer = Branches(width, width, groups=width, act=False)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * (self.mixer(x) - self.norm(x))

    def deploy(self) -> nn.Module:
        conv = self.mixer.deploy()[0]
        kernel, bias = as_kernel(self.norm, conv)
        conv.weight.data = self.scale.reshape(-1, 1, 1, 1) * (conv.weight - kernel)
        conv.bias.data = self.scale.reshape(-1) * (conv.bias - bias)
        conv.weight.data += as_kernel(nn.Identity(), conv)[0]
        return conv


class Ghost(nn.Module):
    """RepGhost's module: a pointwise convolution, then ``relu(conv_norm_3x3(x) + norm(x))``, depthwise."""

    def __init__(self, fan_in: int, out: int) -> None:
        super().__init__()
        self.primary = conv_norm(fan_in, out, 1)
        self.cheap, self.fusion = conv_norm(out, out, 3, groups=out), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.primary(x))
        return functional.relu(self.cheap(x) + self.fusion(x))

    def deploy(self) -> nn.Module:
        first = joined([self.primary], self.primary[0])
        return nn.Sequential(first, nn.ReLU(), joined([self.cheap, self.fusion], self.cheap[0]), nn.ReLU())


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def repvgg(width: int = 8, depth: int = 2) -> nn.Module:
    blocks: list[nn.Module] = []
    fan_in = 3
    for stage in range(3):
        out = width * 2**stage
        blocks += [Branches(fan_in if k == 0 else out, out, stride=2 if k == 0 else 1) for k in range(depth)]
        fan_in = out
    return nn.Sequential(*blocks, *head(fan_in))


def mobileone(width: int = 8, many: int = 4, depth: int = 2) -> nn.Module:
    blocks: list[nn.Module] = [Branches(3, width, stride=2)]
    for stage in range(2):
        fan_in, out = width * 2**stage, width * 2 ** (stage + 1)
        blocks += [mobile_one_stage(fan_in if k == 0 else out, out, 2 if k == 0 else 1, many) for k in range(depth)]
    return nn.Sequential(*blocks, *head(4 * width))


def repvit(width: int = 8, depth: int = 2) -> nn.Module:
    blocks = [nn.Sequential(RepVitMixer(width), FeedForward(width, scaled=False)) for _ in range(depth)]
    return nn.Sequential(Branches(3, width, stride=2), *blocks, *head(width))


def fastvit(width: int = 8, depth: int = 2) -> nn.Module:
    blocks = [nn.Sequential(RepMixer(width), FeedForward(width, scaled=True)) for _ in range(depth)]
    stem = [Branches(3, width, stride=2), Branches(width, width, stride=2, groups=width)]
    return nn.Sequential(*stem, *blocks, *head(width))


def repghost(width: int = 8, depth: int = 2) -> nn.Module:
    blocks = [Ghost(width, width) for _ in range(depth)]
    return nn.Sequential(conv_norm(3, width, 3, 2), nn.ReLU(), *blocks, *head(width))


NETWORKS = {"RepVGG": repvgg, "MobileOne": mobileone, "RepViT": repvit, "FastViT": fastvit, "RepGhost": repghost}


def deploy(module: nn.Module) -> nn.Module:
    """The network that its authors would export."""
    if hasattr(module, "deploy"):
        return module.deploy()
    if isinstance(module, nn.Sequential) and [type(each) for each in module] == [nn.Conv2d, nn.BatchNorm2d]:
        return joined([module], module[0])
    made = copy.copy(module)
    made._modules = {name: deploy(each) for name, each in module.named_children()}
    return made


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, with statistics as if it had been trained; activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            norm.weight.data.uniform_(0.5, 1.0, generator=generator)
            norm.bias.data.normal_(0, 0.1, generator=generator)
    return module.eval()
