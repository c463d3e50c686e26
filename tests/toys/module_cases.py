"""Modules whose forward is ordinary Python, each with a BatchNorm that folds or stays for a reason."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from bnfold import Reason
from tests.toys.torch_models import Row, drawn
from tests.toys.torch_networks import IMAGE, Block, Net

TOKENS = drawn(2, 5, 4)
ROWS = drawn(3, 4)
SIGNAL = drawn(2, 4, 9)
VOLUME = drawn(2, 4, 5, 5, 5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A module, what it is called with, and the reasons for which BatchNorms stay.

    Attributes:
        make: the module, whose statistics and parameters are drawn afterwards.
        inputs: a tuple of arguments, or a dict of keyword arguments.
        stays: the reasons of those BatchNorms that stay.
    """

    make: Callable[[], nn.Module]
    inputs: Any = (IMAGE,)
    stays: tuple[Reason, ...] = ()


class Code(nn.Module):
    """A convolution, a BatchNorm and what else is given, called by a function."""

    def __init__(self, call: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.call = call
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        for name, value in held.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self, *args, **kwargs)

    def both(self, x: Tensor) -> Tensor:
        """What folds."""
        y: Tensor = self.norm(self.conv(x))
        return y


def code(call: Callable[..., Any], *stays: Reason, inputs: Any = (IMAGE,), **held: Any) -> Case:
    """A case of a function that calls modules."""
    return Case(lambda: Code(call, **{name: _fresh(value) for name, value in held.items()}), inputs, stays)


def _fresh(value: Any) -> Any:
    return value() if isinstance(value, functools.partial) else copy.deepcopy(value)


def row(*steps: Any, inputs: Any = (IMAGE,), stays: tuple[Reason, ...] = ()) -> Case:
    """A case of modules in a row."""
    return Case(lambda: Row(*map(_fresh, steps)), inputs, stays)


def conv(fan_in: int = 4, out: int = 4, size: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(fan_in, out, size, **options)


def norm(channels: int = 4, **options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


# Tensors made from the sizes of an input

MADE_FROM_SIZES: dict[str, Callable[[Any, Tensor], Any]] = {
    "zeros": lambda m, x: m.both(x) + torch.zeros(x.shape[0], 1, 1, 1, dtype=x.dtype),
    "ones": lambda m, x: m.both(x) * torch.ones(x.shape[2], x.shape[3], dtype=x.dtype),
    "arange": lambda m, x: m.both(x) + torch.arange(x.shape[3]),
    "full": lambda m, x: m.both(x) + torch.full((x.shape[0], 1, 1, 1), 0.5, dtype=x.dtype),
    "linspace": lambda m, x: m.both(x) + torch.linspace(0, 1, x.shape[3], dtype=x.dtype),
    "logspace": lambda m, x: m.both(x) + torch.logspace(0, 1, x.shape[3], dtype=x.dtype),
    "eye": lambda m, x: m.both(x) + torch.eye(x.shape[2], x.shape[3], dtype=x.dtype),
    "randn": lambda m, x: m.both(x) + torch.randn(x.shape[0], 1, 1, 1, dtype=x.dtype),
    "randint": lambda m, x: m.both(x) + torch.randint(0, x.shape[3], (1, 1, 1, x.shape[3])),
    "randperm": lambda m, x: m.both(x)[..., torch.randperm(x.shape[3])],
    "rand_like": lambda m, x: m.both(x) + torch.rand_like(x),
    "tensor": lambda m, x: m.both(x) / torch.tensor(x.shape[3], dtype=x.dtype),
    "tensor of a list": lambda m, x: (
        m.both(x) * torch.tensor([1.0, 2.0, 3.0, x.shape[1]], dtype=x.dtype)[:, None, None]
    ),
    "tril": lambda m, x: m.both(x).masked_fill(torch.ones(x.shape[2], x.shape[3]).tril() == 0, 0.0),
    "triu_indices": lambda m, x: m.both(x)[:, :, *torch.triu_indices(x.shape[2], x.shape[3])],
    "meshgrid": lambda m, x: (
        m.both(x) + sum(torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij"))
    ),
    "hann_window": lambda m, x: m.both(x) * torch.hann_window(x.shape[3], dtype=x.dtype),
    "fft with sizes": lambda m, x: torch.fft.irfft2(torch.fft.rfft2(m.both(x)), s=x.shape[-2:]),
    "expand": lambda m, x: m.both(x) + torch.ones(1, dtype=x.dtype).expand(x.shape[0], 4, 1, 1),
    "new_zeros": lambda m, x: m.both(x) + x.new_zeros(x.shape[0], 1, 1, 1),
    "new_full": lambda m, x: m.both(x) + x.new_full(x.size(), 2.0),
    "empty, filled": lambda m, x: m.both(x) + torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype).fill_(1.0),
    "one_hot": lambda m, x: m.both(x) + F.one_hot(torch.arange(x.shape[2]), x.shape[3]),
    "a grid of anchors": lambda m, x: (
        m.both(x),
        torch.stack(torch.meshgrid(*(torch.arange(n) for n in x.shape[2:]), indexing="ij"), -1),
    ),
    "affine_grid": lambda m, x: F.grid_sample(
        m.both(x),
        F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(x.shape[0], 2, 3), x.shape, align_corners=False),
        align_corners=False,
    ),
    "a number of the square root": lambda m, x: m.both(x) / math.sqrt(x.shape[1]),
    "interpolate to the input's size": lambda m, x: F.interpolate(F.avg_pool2d(m.both(x), 2), size=x.shape[-2:]),
    "padding to a multiple": lambda m, x: F.pad(m.both(x), (0, -x.shape[3] % 3, 0, -x.shape[2] % 3)),
    "windows": lambda m, x: (
        m.both(x).reshape(x.shape[0], 4, x.shape[2] // 2, 2, x.shape[3] // 2, 2).permute(0, 2, 4, 3, 5, 1)
    ),
    "roll": lambda m, x: torch.roll(m.both(x), (x.shape[2] // 2, x.shape[3] // 2), (2, 3)),
    "split by a size": lambda m, x: m.both(x).split(x.shape[1] // 2, 1)[0],
    "a loop over the batch": lambda m, x: torch.stack([m.both(each[None])[0] for each in x]),
    "a loop over rows": lambda m, x: sum(m.both(x)[:, :, index] for index in range(4)),
    "states of an LSTM": lambda m, x: (lambda h: torch.tanh(m.both(x) + h) * h)(
        torch.zeros(x.shape[0], 4, *x.shape[2:], dtype=x.dtype)
    ),
}


class Cubed(torch.autograd.Function):
    """A function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


# Code that changes what the module holds


def _count(m: Any, x: Tensor) -> Tensor:
    m.n.add_(1)
    return m.both(x) * m.n


def _assign(m: Any, x: Tensor) -> Tensor:
    m.n = m.n + 1
    return m.both(x)


def _cache_in_dict(m: Any, x: Tensor) -> Tensor:
    key = str(x.device)
    if key not in m.cache:
        m.cache[key] = m.table[:, m.index]
    return m.both(x) + m.cache[key].mean()


def _cache_in_list(m: Any, x: Tensor) -> Tensor:
    m.seen.append(x.shape[2])
    return m.both(x)


def _cache_in_attribute(m: Any, x: Tensor) -> Tensor:
    if m.anchors is None or m.anchors.shape[0] != x.shape[3]:
        m.anchors = torch.arange(x.shape[3], dtype=x.dtype)
    return m.both(x) + m.anchors


def _keep_result(m: Any, x: Tensor) -> Tensor:
    m.last = m.both(x)
    return m.last.relu()


def _count_calls(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return m.both(x)


def _grow(m: Any, x: Tensor) -> Tensor:
    m.features = [m.both(x)]
    m.features.append(m.features[-1].relu())
    return m.features[-1]


def _draw(m: Any, x: Tensor) -> Tensor:
    return m.both(x) * float(np.random.rand() >= 0)


MARKS: dict[str, Case] = {
    "a counter in a buffer": code(_count, n=torch.zeros(())),
    "an assigned buffer": code(_assign, n=torch.zeros(())),
    "a cache in a dict": code(_cache_in_dict, cache={}, table=drawn(3, 6), index=torch.tensor([0, 2, 1])),
    "a cache in a list": code(_cache_in_list, seen=[]),
    "a cache in an attribute": code(_cache_in_attribute, anchors=functools.partial(lambda: None)),
    "a result kept in an attribute": code(_keep_result, last=functools.partial(lambda: None)),
    "a count of calls": code(_count_calls, calls=0),
    "a list of features": code(_grow, features=[]),
    "a draw of numpy": code(_draw),
}


class RunOnce(nn.Module):
    """Holds results of autograd from a first run, which nothing can copy by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()
        self.cache: dict[str, Tensor] = {}
        self.scale = nn.Parameter(torch.ones(4))
        self.cache["scale"] = self.scale * 2
        self.stages = [self.scale + 1]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.cache["scale"].double()[:, None, None]


class Flipping(nn.Module):
    """Its copies are in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def __deepcopy__(self, memo: dict[int, Any]) -> Flipping:
        made = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        made.train()
        return made


# Arguments and results


class Point(NamedTuple):
    """A named tuple."""

    x: Tensor
    y: Tensor


@dataclasses.dataclass
class Output:
    """A dataclass."""

    value: Tensor
    hidden: Tensor | None = None
    name: str = "output"


class ModelOutput(OrderedDict[str, Any]):
    """A dict with attributes, in the manner of transformers."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Optional(nn.Module):
    """Arguments with defaults, which the example leaves out or gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, flag: bool = False, mode: str = "a"
    ) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        if mask is not None:
            y = y * mask
        if flag:
            y = y.relu()
        return y * scale if mode == "a" else y - scale


class Loss(nn.Module):
    """Gives a loss where labels are given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = conv(), norm(), nn.Linear(4, 3)

    def forward(self, pixels: Tensor, labels: Tensor | None = None, return_dict: bool = True) -> Any:
        logits = self.head(self.norm(self.conv(pixels)).mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if not return_dict:
            return (logits,) if loss is None else (loss, logits)
        return {"loss": loss, "logits": logits}


MASK = drawn(2, 1, 8, 8, seed=5)

ARGUMENTS: dict[str, Case] = {
    "optional arguments left out": Case(Optional),
    "an optional argument by position": Case(Optional, (IMAGE, MASK)),
    "an optional argument by name": Case(Optional, {"x": IMAGE, "mask": MASK}),
    "a number given": Case(Optional, (IMAGE, None, 2.0)),
    "a flag given": Case(Optional, {"x": IMAGE, "flag": True}),
    "a text given": Case(Optional, {"x": IMAGE, "mode": "b"}),
    "a loss that is not asked for": Case(Loss),
    "a loss that is asked for": Case(Loss, {"pixels": IMAGE, "labels": torch.tensor([0, 2])}),
    "a tuple instead of a dict": Case(Loss, {"pixels": IMAGE, "return_dict": False}),
    "any number of arguments": code(lambda m, *xs: [m.both(x) for x in xs], inputs=(IMAGE, MASK.expand(2, 4, 8, 8))),
    "any keyword arguments": code(lambda m, x, **kw: m.both(x) + kw["bias"], inputs={"x": IMAGE, "bias": MASK}),
    "a dict": code(lambda m, batch: m.both(batch["x"]) + batch["y"], inputs=({"x": IMAGE, "y": MASK},)),
    "nested lists": code(lambda m, xs: m.both(xs[0][0]) + xs[1], inputs=([[IMAGE], MASK],)),
    "a named tuple": code(lambda m, p: Point(m.both(p.x), p.y), inputs=(Point(IMAGE, MASK),)),
    "numbers": code(lambda m, x, factor, power: m.both(x) * factor**power, inputs=(IMAGE, 2.0, 3)),
    "a dict goes out": code(lambda m, x: {"a": m.both(x), "b": {"c": x.mean()}}),
    "a list goes out": code(lambda m, x: [m.both(x), (x, x + 1)]),
    "a named tuple goes out": code(lambda m, x: Point(m.both(x), x)),
    "an OrderedDict goes out": code(lambda m, x: OrderedDict(a=m.both(x), b=x + 1)),
    "a dataclass goes out": code(lambda m, x: Output(m.both(x), None)),
    "a dict with attributes goes out": code(lambda m, x: dict(ModelOutput(a=m.both(x)))),
    "None goes out": code(lambda m, x: (m.both(x), None)),
    "numbers and texts go out": code(lambda m, x: (m.both(x), 3, "name", 0.5)),
    "the input goes out": code(lambda m, x: (m.both(x), x)),
    "one value goes out twice": code(lambda m, x: (lambda y: (y, [y, y]))(m.both(x))),
    "an inner dataclass": code(lambda m, x: (lambda out: out.value + 1)(Output(m.both(x)))),
}


# Constants, types and regions


def _no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.conv(x)
    return m.norm(y)  # type: ignore[no-any-return]


def _inference(m: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        size = x.mean()
    return m.both(x) + float(x.dim()) + size.new_zeros(())


def _profiled(m: Any, x: Tensor) -> Tensor:
    with torch.profiler.record_function("block"):
        return m.both(x)  # type: ignore[no-any-return]


def _numpy_constant(m: Any, x: Tensor) -> Tensor:
    return m.both(x) * torch.from_numpy(np.linspace(0.5, 1.0, 8))


def _asserts(m: Any, x: Tensor) -> Tensor:
    assert x.dim() == 4, f"expected 4 axes, got {x.dim()}"
    torch._assert(x.shape[1] == 4, "4 channels")  # type: ignore[no-untyped-call]
    if x.shape[2] < 2:
        raise ValueError(f"too small: {x.shape}")
    return m.both(x)  # type: ignore[no-any-return]


@torch.no_grad()
def _decorated(m: Any, x: Tensor) -> Tensor:
    return m.both(x)  # type: ignore[no-any-return]


REGIONS: dict[str, Case] = {
    "a constant that moves to a device": code(lambda m, x: m.both(x) + m.buf.to(x.device), buf=drawn(8)),
    "a constant that takes a type": code(lambda m, x: m.both(x) + m.buf.to(x.dtype), buf=torch.arange(8)),
    "a constant like the input": code(lambda m, x: m.both(x) + m.buf.type_as(x), buf=torch.arange(8)),
    "a plain tensor": code(lambda m, x: m.both(x) + m.plain[0], plain=[drawn(8)]),
    "a constant of numpy": code(_numpy_constant),
    "a constant in the code": code(lambda m, x: m.both(x) + torch.tensor([0.5])),
    "a mean and deviation of the input": code(
        lambda m, x: m.both((x - m.mean) / m.std), mean=drawn(1, 4, 1, 1), std=drawn(1, 4, 1, 1).abs() + 0.5
    ),
    "no_grad around the convolution": code(_no_grad),
    "inference_mode elsewhere": code(_inference),
    "a region that is profiled": code(_profiled),
    "a checkpoint": code(lambda m, x: checkpoint(m.both, x, use_reentrant=False)),
    "a decorated function": code(_decorated),
    "checks of the input": code(_asserts),
    "a look at the training flag": code(lambda m, x: F.dropout(m.both(x), 0.5, m.training)),
    "a look at gradients": code(lambda m, x: m.both(x) if not torch.is_grad_enabled() else m.both(x.clone())),
    "a look at the compiler": code(lambda m, x: m.both(x) if not torch.jit.is_scripting() else x),
    "detach and clone": code(lambda m, x: m.norm(m.conv(x).detach().clone())),
    "contiguous": code(lambda m, x: m.norm(m.conv(x).contiguous())),
    "a function with its own derivative": code(lambda m, x: Cubed.apply(m.both(x))),
    "a type and back": code(lambda m, x: m.both(x).float().double(), inputs=(IMAGE,)),
    "a type between": code(lambda m, x: m.norm(m.conv(x).to(torch.float64))),
}


# Modules called several times, shared and tied


def _pair_loop(m: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.relu(m.both(x))
    return x


def _levels(m: Any, x: Tensor) -> list[Tensor]:
    """A head shared between levels, with a BatchNorm for each, in the manner of EfficientDet."""
    levels = [x, F.avg_pool2d(x, 2)]
    return [torch.relu(each(m.conv(level))) for level, each in zip(levels, m.norms, strict=True)]


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm, self.last = conv(), conv(), norm(), norm()
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(torch.relu(self.norm(self.one(x)))))


class TiedNorms(nn.Module):
    """Two BatchNorms with the same parameters and other statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm, self.last = conv(), conv(), norm(), norm()
        self.last.weight, self.last.bias = self.norm.weight, self.norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(torch.relu(self.norm(self.one(x)))))


class SharedBlocks(nn.Module):
    """One block in two places, and a list that holds it as well."""

    def __init__(self) -> None:
        super().__init__()
        block = Block()
        self.first, self.second = nn.Sequential(block, nn.ReLU()), nn.Sequential(block)
        self.all = [block]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


SHARING: dict[str, Case] = {
    "a convolution twice": code(lambda m, x: m.norm(m.conv(torch.relu(m.conv(x))))),
    "a convolution for two BatchNorms": code(lambda m, x: m.norm(m.conv(x)) * m.last(m.conv(x)), last=norm()),
    "a BatchNorm behind two convolutions": code(lambda m, x: m.norm(m.conv(x)) * m.norm(m.other(x)), other=conv()),
    "a pair several times": code(_pair_loop),
    "a pair on two inputs": code(lambda m, x, y: m.both(x) * m.both(y), inputs=(IMAGE, IMAGE + 1)),
    "a head shared between levels": code(_levels, norms=nn.ModuleList([norm(), norm()])),
    "tied weights": Case(Tied),
    "tied parameters of BatchNorms": Case(TiedNorms),
    "a block in two places": Case(SharedBlocks),
    "a module under two names": code(lambda m, x: m.same(m.conv(x)), same=norm()),
    "a BatchNorm that is not called": code(lambda m, x: m.norm(m.conv(x)), spare=nn.Conv2d(1, 1, 1)),
    "siamese": code(
        lambda m, a, b: (m.net(a) - m.net(b)).abs(),
        net=nn.Sequential(conv(), norm(), nn.ReLU()),
        inputs=(IMAGE, IMAGE * 2),
    ),
    "a convolution read elsewhere": code(lambda m, x: (lambda y: m.norm(y) * y)(m.conv(x)), Reason.SECOND_USE),
    "a convolution that goes out": code(lambda m, x: (lambda y: (m.norm(y), y))(m.conv(x)), Reason.GRAPH_OUTPUT),
}


# Kinds of BatchNorms and convolutions


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with dropout and an activation, in the manner of timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "expected 4 axes")  # type: ignore[no-untyped-call]
        momentum = 0.0 if self.momentum is None else self.momentum
        training = self.training or (self.running_mean is None and self.running_var is None)
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, momentum, self.eps)
        return self.act(self.drop(y))  # type: ignore[no-any-return]


class Frozen(nn.Module):
    """A BatchNorm of buffers, in the manner of torchvision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for index, name in enumerate(("weight", "bias", "running_mean", "running_var")):
            self.register_buffer(name, drawn(channels, seed=index).abs() + 0.5)
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        mean, variance = self.running_mean.reshape(1, -1, 1, 1), self.running_var.reshape(1, -1, 1, 1)
        scale = weight * (variance + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)  # type: ignore[no-any-return]


class Inline(nn.Module):
    """The formula of BatchNorm, written down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.gamma, self.beta = nn.Parameter(drawn(4, seed=7)), nn.Parameter(drawn(4, seed=8))
        self.register_buffer("mean", drawn(4, seed=9))
        self.register_buffer("variance", drawn(4, seed=10).abs() + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = (y - self.mean[None, :, None, None]) / torch.sqrt(self.variance[None, :, None, None] + 1e-5)
        return y * self.gamma[None, :, None, None] + self.beta[None, :, None, None]  # type: ignore[no-any-return]


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised in the forward."""

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 1e-5), self.bias)


class StandardisedByNorm(nn.Conv2d):
    """The same by F.batch_norm of the weight, in the manner of timm."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SamePadding(nn.Conv2d):
    """A convolution that pads by itself, in the manner of TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((-(size // -2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
        x = F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        return F.conv2d(x, self.weight, self.bias, 2)


class ConvNormAct(nn.Sequential):
    """A convolution, a BatchNorm and an activation, in the manner of torchvision."""

    def __init__(self, fan_in: int, out: int, act: bool = True) -> None:
        super().__init__(
            conv(fan_in, out, 3, padding=1, bias=False), norm(out), nn.ReLU(inplace=True) if act else nn.Identity()
        )


class LinearNorm(nn.Module):
    """A Linear of tokens and a BatchNorm of the flattened ones, in the manner of LeViT."""

    def __init__(self, fan_in: int, out: int) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(fan_in, out, bias=False), nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)  # type: ignore[no-any-return]


class BatchNormOfTokens(nn.Module):
    """A BatchNorm1d on the last axis, by transposes, in the manner of PatchTST."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.batchnorm(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class Training(nn.Sequential):
    """A model in eval mode with a BatchNorm in training mode."""

    def __init__(self) -> None:
        super().__init__(conv(), norm(), nn.ReLU(), conv(), norm())

    def train(self, mode: bool = True) -> Training:
        super().train(mode)
        self[1].train()
        return self


KINDS: dict[str, Case] = {
    "Conv1d": row(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), inputs=(SIGNAL,)),
    "Conv3d": row(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), inputs=(VOLUME,)),
    "ConvTranspose1d": row(nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), inputs=(SIGNAL,)),
    "ConvTranspose2d": row(nn.ConvTranspose2d(4, 6, 3, groups=2, output_padding=1, stride=2), norm(6)),
    "ConvTranspose3d": row(nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), inputs=(VOLUME,)),
    "Linear": row(nn.Linear(4, 6), nn.BatchNorm1d(6), inputs=(ROWS,)),
    "depthwise": row(conv(4, 8, 3, groups=4, bias=False), norm(8), conv(8, 4), norm(4)),
    "reflecting padding": row(conv(4, 6, 3, padding=1, padding_mode="reflect"), norm(6)),
    "circular padding, BatchNorm in front": row(nn.SiLU(), norm(), conv(4, 6, 3, padding=1, padding_mode="circular")),
    "SyncBatchNorm": row(conv(), nn.SyncBatchNorm(4)),
    "without affine": row(conv(), norm(affine=False)),
    "without momentum": row(conv(), norm(momentum=None)),
    "without statistics": row(conv(), norm(track_running_stats=False), stays=(Reason.TRAINING_MODE,)),
    "InstanceNorm with statistics": row(conv(), nn.InstanceNorm2d(4, track_running_stats=True)),
    "two in a row": row(conv(), norm(), norm()),
    "a BatchNorm with an activation": row(conv(), NormAct(4)),
    "a frozen BatchNorm": row(conv(), Frozen(4)),
    "an inline BatchNorm": Case(Inline),
    "a standardised convolution": row(Standardised(4, 4, 3), norm()),
    "a convolution standardised by F.batch_norm": row(StandardisedByNorm(4, 4, 3), norm()),
    "a convolution that pads": row(SamePadding(4, 4, 3), norm()),
    "a block in a Sequential of its own class": row(ConvNormAct(4, 6), ConvNormAct(6, 4, act=False)),
    "Linear of flattened tokens": row(LinearNorm(4, 6), inputs=(TOKENS,)),
    "BatchNorm of tokens": row(nn.Linear(4, 6), BatchNormOfTokens(6), inputs=(TOKENS,)),
    "BatchNorm of tokens, Linear behind": row(nn.SiLU(), BatchNormOfTokens(4), nn.Linear(4, 6), inputs=(TOKENS,)),
    "training mode inside": Case(Training, stays=(Reason.TRAINING_MODE,)),
    "behind an activation": row(conv(), nn.ReLU(), norm(), stays=(Reason.NONLINEAR,)),
    "of the input": row(norm(), nn.ReLU(), stays=(Reason.GRAPH_INPUT,)),
}


# Weights that are computed from other parameters


class Symmetric(nn.Module):
    """A matrix made symmetric."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.transpose(0, 1)


def of_conv(change: Callable[[nn.Module], object]) -> nn.Module:
    """A convolution whose weight is changed, and a BatchNorm."""
    model = nn.Sequential(conv(), norm())
    change(model[0])
    return model


PARAMETRIZED: dict[str, Case] = {
    "weight_norm": Case(lambda: of_conv(nn.utils.parametrizations.weight_norm)),
    "weight_norm, older": Case(lambda: of_conv(nn.utils.weight_norm)),
    "spectral_norm": Case(lambda: of_conv(nn.utils.parametrizations.spectral_norm)),
    "spectral_norm, older": Case(lambda: of_conv(nn.utils.spectral_norm)),
    "a parametrization of one's own": Case(
        lambda: of_conv(lambda m: nn.utils.parametrize.register_parametrization(m, "weight", Symmetric()))
    ),
    "a pruning mask": Case(lambda: of_conv(lambda m: prune.l1_unstructured(m, "weight", 0.5))),
}


# Hooks


class Hooked(nn.Module):
    """Blocks with a hook, which sees what it saw before."""

    def __init__(self, register: Callable[[Any], object]) -> None:
        super().__init__()
        self.block, self.head = Block(), conv()
        register(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


def see(*args: Any) -> None:
    """Changes nothing."""


def shifted(module: nn.Module, args: Any) -> Any:
    """Changes what a module gets."""
    return tuple(each + 1 for each in args)


class Noted(nn.Module):
    """Computes with what hooks of its own noted, in the manner of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(conv(), nn.SiLU()), nn.Sequential(conv(), norm())
        self.notes: list[Tensor] = []
        self.body[1].register_forward_hook(functools.partial(note, self.notes))

    def forward(self, x: Tensor) -> Tensor:
        self.notes.clear()
        self.body(x)
        return self.head(self.notes[0])


def doubled(module: nn.Module, args: Any, made: Any) -> Any:
    """Changes what a module gives back."""
    return made * 2


def note(notes: list[Tensor], module: nn.Module, args: Any, made: Tensor) -> None:
    """Notes a result."""
    notes.append(made)


HOOKS: dict[str, Case] = {
    "a hook that the forward relies on": Case(Noted),
    "a hook on a block": Case(lambda: Hooked(lambda m: m.block.register_forward_hook(see))),
    "a hook of gradients on a block": Case(lambda: Hooked(lambda m: m.block.register_full_backward_hook(see))),
    "a hook that changes a result": Case(lambda: Hooked(lambda m: m.block.register_forward_hook(doubled))),
    "a hook on the head": Case(lambda: Hooked(lambda m: m.head.register_forward_pre_hook(see))),
    "a hook on the model": Case(lambda: Hooked(lambda m: m.register_forward_hook(see))),
    "a hook of state dicts on a block": Case(lambda: Hooked(lambda m: m.block.register_state_dict_post_hook(see))),
    "a hook that changes an argument": Case(lambda: Hooked(lambda m: m.head.register_forward_pre_hook(shifted))),
    "a hook on a convolution": Case(
        lambda: Hooked(lambda m: m.block.conv1.register_forward_hook(see)), stays=(Reason.HOOK,)
    ),
    "a hook on a BatchNorm": Case(
        lambda: Hooked(lambda m: m.block.bn1.register_forward_hook(see)), stays=(Reason.HOOK,)
    ),
}


# Ways to hold and to call modules


class Plain:
    """No module, and holds some."""

    def __init__(self) -> None:
        self.layers = [conv().double(), norm().double().eval()]

    def __call__(self, x: Tensor) -> Tensor:
        for each in self.layers:
            x = each(x)
        return x


class Methods(nn.Module):
    """A forward that goes through other methods."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = ConvNormAct(4, 4), nn.ModuleList([Block(), Block()]), nn.Linear(4, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Wrapper(nn.Module):
    """Delegates attributes to what it holds."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["inner"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Calls(nn.Module):
    """A class with a call of its own around the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Slotted(nn.Module):
    """Has properties, class attributes and a cached value."""

    kernel = 1

    def __init__(self) -> None:
        super().__init__()
        self._conv, self._norm = conv(4, 4, self.kernel), norm()

    @property
    def layers(self) -> nn.Sequential:
        return nn.Sequential(self._conv, self._norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def patched() -> nn.Module:
    """A BatchNorm's forward replaced on the instance."""
    model = nn.Sequential(conv(), norm(), nn.ReLU())
    inner = model[1]
    inner.forward = lambda x: F.batch_norm(x, inner.running_mean, inner.running_var, inner.weight, inner.bias)  # type: ignore[method-assign]
    return model


def deleted() -> nn.Module:
    """A network without its head."""
    model = Net()
    model.head = nn.Identity()  # type: ignore[assignment]
    return model


def _steps(m: Any, x: Tensor) -> Tensor:
    for name in ("conv", "norm"):
        x = getattr(m, name)(x)
    return x


def _by_name(m: Any, x: Tensor) -> Tensor:
    for each in m.layers.values():
        x = each(x)
    return x


def _weights_in_a_list(m: Any, x: Tensor) -> Tensor:
    return m.norm(F.conv2d(x, m.weights[0], m.weights[1]))  # type: ignore[no-any-return]


def _try(m: Any, x: Tensor) -> Tensor:
    try:
        return m.norm(m.missing(x))  # type: ignore[no-any-return]
    except AttributeError:
        return m.both(x)  # type: ignore[no-any-return]


HOLDING: dict[str, Case] = {
    "a plain list": code(
        lambda m, x: m.layers[1](m.layers[0](x)),
        layers=functools.partial(lambda: [conv().double(), norm().double().eval()]),
    ),
    "an object that is no module": code(lambda m, x: m.plain(x), plain=functools.partial(Plain)),
    "a ModuleList": code(lambda m, x: m.layers[1](m.layers[0](x)), layers=nn.ModuleList([conv(), norm()])),
    "a ModuleDict": code(_by_name, layers=nn.ModuleDict({"a": conv(), "b": norm()})),
    "a ParameterList": code(_weights_in_a_list, weights=nn.ParameterList([drawn(4, 4, 1, 1), drawn(4)])),
    "a ParameterDict": code(
        lambda m, x: m.norm(F.conv2d(x, m.held["weight"])), held=nn.ParameterDict({"weight": drawn(4, 4, 1, 1)})
    ),
    "names of attributes": code(_steps),
    "functools.reduce": code(lambda m, x: functools.reduce(lambda y, each: each(y), [m.conv, m.norm], x)),
    "an attribute that is missing": code(_try),
    "methods of the class": Case(Methods),
    "a wrapper that delegates": Case(lambda: Wrapper(Net())),
    "a call of its own": Case(Calls),
    "a property": Case(Slotted),
    "a forward on the instance": Case(patched),
    "a head that was removed": Case(deleted),
    "a Sequential": Case(lambda: nn.Sequential(OrderedDict(conv=conv(), bn=norm(), act=nn.ReLU(inplace=True)))),
    "nested Sequentials": Case(lambda: nn.Sequential(nn.Sequential(conv(), nn.Sequential(norm())), nn.ReLU())),
    "a slice of a Sequential": code(lambda m, x: m.layers[:2](x), layers=nn.Sequential(conv(), norm(), nn.ReLU())),
    "DataParallel": Case(lambda: nn.DataParallel(Net())),
    "a graph module": Case(lambda: fx.symbolic_trace(Net().eval())),
    "a scripted module inside": Case(lambda: nn.Sequential(torch.jit.script(nn.ReLU()), conv(), norm())),
    "a graph module inside": Case(lambda: nn.Sequential(fx.symbolic_trace(Net().eval()), nn.ReLU())),
    "a network": Case(Net),
}


# Functional code


FUNCTIONAL: dict[str, Case] = {
    "F.batch_norm": code(
        lambda m, x: F.batch_norm(m.conv(x), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias)
    ),
    "F.conv2d": code(lambda m, x: m.norm(F.conv2d(x, m.conv.weight, m.conv.bias))),
    "F.conv2d without bias": code(lambda m, x: m.norm(F.conv2d(x, m.conv.weight))),
    "torch.conv2d": code(lambda m, x: m.norm(torch.conv2d(x, m.conv.weight, padding="same"))),
    "F.conv_transpose2d": code(lambda m, x: m.norm(F.conv_transpose2d(x, m.conv.weight, stride=2))),
    "F.linear": code(
        lambda m, x: m.bn(F.linear(x, m.w)), w=nn.Parameter(drawn(6, 4)), bn=nn.BatchNorm1d(6), inputs=(ROWS,)
    ),
    "matmul": code(lambda m, x: m.bn(x @ m.w), w=nn.Parameter(drawn(4, 6)), bn=nn.BatchNorm1d(6), inputs=(ROWS,)),
    "matmul of a transposed weight": code(
        lambda m, x: m.bn(torch.matmul(x, m.w.t())), w=nn.Parameter(drawn(6, 4)), bn=nn.BatchNorm1d(6), inputs=(ROWS,)
    ),
    "addmm": code(
        lambda m, x: m.bn(torch.addmm(m.b, x, m.w)),
        w=nn.Parameter(drawn(4, 6)),
        b=nn.Parameter(drawn(6)),
        bn=nn.BatchNorm1d(6),
        inputs=(ROWS,),
    ),
    "einsum": code(
        lambda m, x: m.bn(torch.einsum("bi,oi->bo", x, m.w)),
        w=nn.Parameter(drawn(6, 4)),
        bn=nn.BatchNorm1d(6),
        inputs=(ROWS,),
    ),
    "einsum of an image": code(lambda m, x: m.norm(torch.einsum("bchw,oc->bohw", x, m.w)), w=nn.Parameter(drawn(4, 4))),
    "a scale and a shift": code(
        lambda m, x: m.norm(m.conv(x) * m.scale + m.shift),
        scale=nn.Parameter(drawn(4, 1, 1)),
        shift=nn.Parameter(drawn(4, 1, 1)),
    ),
    "in place": code(lambda m, x: m.norm(m.conv(x).mul_(2).add_(1))),
    "in place behind": code(lambda m, x: m.norm(m.conv(x)).relu_().mul_(0.5)),
    "into a buffer of zeros": code(lambda m, x: torch.zeros_like(x).add_(m.both(x))),
    "a slice that is written": code(lambda m, x: _written(m, x)),
}


def _written(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, 1:] = m.both(x)[:, :, 1:]
    return out


# What carries, and what merges


class RepVgg(nn.Module):
    """Three branches that are added up, of which one is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()
        self.conv3, self.bn3 = conv(4, 4, 3, padding=1, bias=False), norm()
        self.conv1, self.bn1 = conv(4, 4, 1, bias=False), norm()
        self.bn0 = norm()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(self.bn3(self.conv3(x)) + self.bn1(self.conv1(x)) + self.bn0(x))


class PreActivation(nn.Module):
    """A residual block that begins with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1, self.conv1, self.bn2, self.conv2 = conv(), norm(), conv(), norm(), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.relu(self.bn1(x))
        return self.conv2(torch.relu(self.bn2(self.conv1(y)))) + x


class SqueezeExcite(nn.Module):
    """Weights of channels from their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc1, self.fc2 = conv(), norm(), conv(4, 2), conv(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Attention(nn.Module):
    """Queries, keys and values by one convolution with a BatchNorm, in the manner of LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Sequential(conv(4, 12), norm(12)), nn.Sequential(nn.SiLU(), conv(), norm())

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        q, k, v = self.qkv(x).view(count, 2, 6, height * width).split([2, 2, 2], dim=2)
        weights = (q.transpose(-2, -1) @ k * 0.5).softmax(dim=-1)
        return self.proj((v @ weights.transpose(-2, -1)).reshape(count, 4, height, width))


class Unet(nn.Module):
    """Down and up again, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner, self.up = ConvNormAct(4, 6), ConvNormAct(6, 8), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.norm, self.last = norm(6), ConvNormAct(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        y = self.norm(self.up(self.inner(F.max_pool2d(skip, 2))))
        return self.last(torch.cat([y, skip], 1))


CARRIED: dict[str, Case] = {
    "an identity branch": Case(RepVgg),
    "a residual block that begins with a BatchNorm": Case(PreActivation, stays=(Reason.NEGATIVE_SCALE,)),
    "squeeze and excite": Case(SqueezeExcite),
    "attention by convolutions": Case(Attention),
    "a U-net": Case(Unet),
    "behind an average pool": row(conv(), nn.AvgPool2d(2), norm()),
    "behind an adaptive pool": row(conv(), nn.AdaptiveAvgPool2d(1), norm()),
    "behind dropout": row(conv(), nn.Dropout(0.5), norm()),
    "behind a resize": row(conv(), nn.Upsample(scale_factor=2), norm()),
    "behind a pixel shuffle": row(conv(4, 8), nn.PixelShuffle(2), norm(2)),
    "behind a channel shuffle": row(conv(), nn.ChannelShuffle(2), norm()),
    "behind a concatenation": code(lambda m, x: m.bn(torch.cat([m.conv(x), m.other(x)], 1)), other=conv(), bn=norm(8)),
    "behind a sum": code(lambda m, x: m.norm(m.conv(x) + m.other(x)), other=conv()),
    "behind a chunk": code(lambda m, x: m.bn(m.conv(x).chunk(2, 1)[0]), bn=norm(2)),
    "behind a token transpose": row(nn.Linear(4, 6), lambda x: x.transpose(1, 2), nn.BatchNorm1d(6), inputs=(TOKENS,)),
    "behind a flatten": row(conv(), nn.Flatten(), nn.Linear(256, 5), nn.BatchNorm1d(5)),
    "in front of a convolution": row(nn.SiLU(), norm(), conv()),
    "in front of a Linear": row(nn.SiLU(), norm(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    "in front of a padded convolution": row(nn.SiLU(), norm(), conv(4, 4, 3, padding=1), stays=(Reason.NOT_LINEAR,)),
    "a stochastic depth that is off": code(lambda m, x: x + F.dropout(m.both(x), 0.3, False)),
    "a scale of layers": code(lambda m, x: x + m.scale * m.both(x), scale=nn.Parameter(drawn(4, 1, 1))),
}


CASES: Mapping[str, Case] = {
    **{f"sizes: {name}": code(call) for name, call in MADE_FROM_SIZES.items()},
    **{f"marks: {name}": case for name, case in MARKS.items()},
    "marks: results of a first run": Case(RunOnce),
    "marks: copies in training mode": Case(Flipping),
    **{f"arguments: {name}": case for name, case in ARGUMENTS.items()},
    **{f"regions: {name}": case for name, case in REGIONS.items()},
    **{f"sharing: {name}": case for name, case in SHARING.items()},
    **{f"kinds: {name}": case for name, case in KINDS.items()},
    **{f"parametrized: {name}": case for name, case in PARAMETRIZED.items()},
    **{f"hooks: {name}": case for name, case in HOOKS.items()},
    **{f"holding: {name}": case for name, case in HOLDING.items()},
    **{f"functional: {name}": case for name, case in FUNCTIONAL.items()},
    **{f"carried: {name}": case for name, case in CARRIED.items()},
}
