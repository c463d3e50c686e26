"""Networks of many kinds, as ONNX files with their BatchNorms: what `scripts/benchmarks/faults.py` puts faults into.

Weights are random; the statistics of every BatchNorm come from training-mode passes over random images, so that the
activations are as large as in a trained network.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

torch.set_num_threads(1)


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Twice(nn.Module):
    """A convolution that its BatchNorm and a second branch read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.relu(self.norm(y)) + torch.sigmoid(y)


class Heads(nn.Module):
    """One trunk and three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*block(3, 16), *block(16, 16))
        self.heads = nn.ModuleList([nn.Sequential(*block(16, 8), nn.Conv2d(8, 8, 1)) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.trunk(x)
        return tuple(head(y) for head in self.heads)


class Dense(nn.Module):
    """Concatenates what a pre-activated convolution makes to what it read."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], dim=1)


class Scaled(nn.Module):
    """A network whose output is multiplied by a constant in its last convolution."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*block(3, 16), *block(16, 16), nn.Conv2d(16, 4, 1))
        with torch.no_grad():
            last = self.layers[-1]
            last.weight.mul_(factor)
            last.bias.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class ArgMax(nn.Module):
    """The index of the largest class."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


class Noise(nn.Module):
    """Adds random numbers that are others in each run."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class Gain(nn.Module):
    """Multiplies by a number, which saturates what comes next."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def block(fan_in: int, fan_out: int, *, groups: int = 1, window: int = 3, bias: bool = True) -> list[nn.Module]:
    conv = nn.Conv2d(fan_in, fan_out, window, padding=window // 2, groups=groups, bias=bias)
    return [conv, nn.BatchNorm2d(fan_out), nn.ReLU()]


def head(width: int, classes: int = 10) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def deep() -> nn.Module:
    layers = [Residual(*block(16, 16), *block(16, 16)[:2]) for _ in range(15)]
    return nn.Sequential(*block(3, 16), *layers, *head(16))


def cnn() -> nn.Module:
    return nn.Sequential(*block(3, 16), *block(16, 16), nn.MaxPool2d(2), *block(16, 32, bias=False), *head(32))


def separable() -> nn.Module:
    stage = [*block(16, 16, groups=16), *block(16, 16, window=1, bias=False)]
    return nn.Sequential(*block(3, 16), *stage, *block(16, 16, groups=16), *block(16, 32, window=1), *head(32))


def grouped() -> nn.Module:
    return nn.Sequential(*block(3, 16), *block(16, 16, groups=4), *block(16, 16, groups=2), *head(16))


def mlp() -> nn.Module:
    widths = [3 * 16 * 16, 64, 64, 64]
    layers = [
        layer
        for fan_in, fan_out in pairwise(widths)
        for layer in (nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU())
    ]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))


def decoder() -> nn.Module:
    up = [
        layer
        for _ in range(2)
        for layer in (nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    ]
    return nn.Sequential(*block(3, 16), nn.MaxPool2d(4), *up, nn.Conv2d(16, 3, 3, padding=1), nn.Tanh())


def preactivated() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Dense(16, 8), Dense(24, 8), nn.BatchNorm2d(32), *head(32))


def second_use() -> nn.Module:
    return nn.Sequential(*block(3, 16), Twice(16), *block(16, 16), *head(16))


def saturating() -> nn.Module:
    return nn.Sequential(*block(3, 16), *block(16, 16), nn.ReLU6(), *head(16), Gain(200.0), nn.Softmax(1))


def classes() -> nn.Module:
    return nn.Sequential(*block(3, 16), *block(16, 16), *head(16), ArgMax())


def random() -> nn.Module:
    return nn.Sequential(*block(3, 16), Noise(), *block(16, 16), *head(16))


def fully_convolutional() -> nn.Module:
    return nn.Sequential(*block(3, 16), *block(16, 16), nn.Conv2d(16, 4, 1))


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        make: builds it.
        dynamic: dynamic axes of the input and of the first output.
        half: whether it is of float16.
        stored_half: whether convolutions and products read weights of float16 through a Cast.
    """

    make: Callable[[], nn.Module]
    dynamic: dict[int, str] = field(default_factory=lambda: {0: "batch"})
    half: bool = False
    stored_half: bool = False


KINDS = {
    "deep": Kind(deep),
    "cnn": Kind(cnn),
    "separable": Kind(separable),
    "grouped": Kind(grouped),
    "mlp": Kind(mlp),
    "decoder": Kind(decoder),
    "preactivated": Kind(preactivated),
    "second use": Kind(second_use),
    "three outputs": Kind(Heads),
    "dynamic shapes": Kind(fully_convolutional, {0: "batch", 2: "height", 3: "width"}),
    "saturating": Kind(saturating),
    "argmax": Kind(classes),
    "outputs of 1e6": Kind(lambda: Scaled(1e6)),
    "outputs of 1e-6": Kind(lambda: Scaled(1e-6)),
    "float16": Kind(cnn, half=True),
    "stored in float16": Kind(cnn, stored_half=True),
    "random numbers": Kind(random),
}


def make(kind: Kind, seed: int = 0) -> onnx.ModelProto:
    """The ONNX model of a kind, BatchNorms and all."""
    torch.manual_seed(seed)
    network = kind.make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    network.train()
    with torch.no_grad():
        for _ in range(30):
            network(torch.randn(16, 3, 16, 16))
    network.eval()
    x = torch.randn(2, 3, 16, 16)
    if kind.half:
        network, x = network.half(), x.half()
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (x,),
            buffer,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["x"],
            dynamic_axes={"x": kind.dynamic},
            opset_version=17,
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    if kind.stored_half:
        store_half(model)
    return model


def store_half(model: onnx.ModelProto) -> None:
    """Round the weights of convolutions and products to float16, and read them through a Cast."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            tensor = tensors[node.input[1]]
            node.input[1] = f"{tensor.name}_wide"
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
            casts.append(helper.make_node("Cast", [tensor.name], [node.input[1]], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
