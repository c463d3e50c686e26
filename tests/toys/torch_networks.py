"""A small residual network, and the image that it takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from tests.toys.torch_models import drawn, trained

IMAGE = drawn(2, 4, 8, 8)


class Block(nn.Module):
    """A residual block in the usual spelling."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    """Blocks, a head, and things that no fold may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 3)
        self.register_buffer("counter", torch.zeros(()))
        self.note = {"classes": ["a", "b", "c"]}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def net() -> Net:
    found = trained(Net())
    assert isinstance(found, Net)
    return found
