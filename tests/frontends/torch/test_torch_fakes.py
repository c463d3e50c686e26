"""What an export takes operators to make, against what they do make."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.nn import functional

from bnfold.frontends.torch.capture import fakes
from bnfold.frontends.torch.capture.exporting import export
from bnfold.frontends.torch.capture.inputs import read_inputs

Calls = dict[str, Callable[[Tensor], Any]]

ELEMENTWISE: Calls = {
    **{
        name: getattr(functional, name)
        for name in ("elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "softplus")
    },
    **{name: getattr(torch, name) for name in ("erf", "exp", "rsqrt", "sigmoid", "sqrt", "tanh")},
    "silu in place": lambda x: functional.silu(x * 1, inplace=True),
    "clamp": lambda x: x.clamp(0, 6),
    "clamp by a tensor": lambda x: x.clamp(torch.zeros(6, 1, 1), torch.ones(2, 1, 1, 1)),
    "exp of integers": lambda x: torch.exp(x.int()),
}
BINARY: Calls = {
    "add": lambda x: x + x * 2,
    "a row added": lambda x: x + x[:, :, :1],
    "an axis added": lambda x: x + x[0],
    "both widened": lambda x: x[:, :1] + x[:1],
    "a larger one added": lambda x: x.mean((2, 3), keepdim=True) + x,
    "gated": lambda x: x * x.mean((2, 3), keepdim=True),
    "in place": lambda x: (x * 1).add_(x, alpha=2).mul_(3).sub_(x[:1]),
    "divided": lambda x: x / x.exp(),
    "integers divided": lambda x: x.int() / 2,
    "of two types": lambda x: x + x.double(),
}
LINEAR: Calls = {
    "convolution": lambda x: functional.conv2d(x, torch.ones(4, 6, 3, 3), stride=2, padding=1),
    "grouped": lambda x: functional.conv2d(x, torch.ones(6, 1, 5, 5), groups=6, dilation=2, padding="same"),
    "transposed": lambda x: functional.conv_transpose2d(x, torch.ones(6, 4, 3, 3), stride=2, output_padding=1),
    "of a line": lambda x: functional.conv1d(x.flatten(2), torch.ones(4, 6, 3)),
    "without a batch": lambda x: functional.conv2d(x[0], torch.ones(4, 6, 3, 3)),
    "weights with channels last": lambda x: functional.conv2d(
        x, torch.ones(4, 6, 3, 3).to(memory_format=torch.channels_last), padding=1
    ),
}
OTHERS: Calls = {
    "cat": lambda x: torch.cat([x, x[:, :2], x], -3),
    "cat of sizes": lambda x: torch.cat([x, x[:, :, 1:]], 2),
    "cat of an empty one": lambda x: torch.cat([x, torch.zeros(0)], 1),
    "cat of two types": lambda x: torch.cat([x, x.double()], 1),
    "group norm": lambda x: functional.group_norm(x, 3),
    "layer norm": lambda x: functional.layer_norm(x.permute(0, 2, 3, 1).contiguous(), (6,)),
    "layer norm behind a permutation": lambda x: functional.layer_norm(x.permute(0, 2, 3, 1), (6,)),
    "view": lambda x: x.contiguous().view(2, 3, 2, -1),
    "view of products": lambda x: x.contiguous().view(6, 2, x.shape[2] * x.shape[3]),
    "view of all": lambda x: x.contiguous().view(-1),
    "linear": lambda x: functional.linear(x.transpose(1, 3), torch.ones(4, 6), torch.ones(4)),
    "linear without bias": lambda x: functional.linear(x.flatten(2).mT, torch.ones(4, 6)),
    "linear on channels": lambda x: functional.linear(
        functional.conv2d(x, torch.ones(6, 6, 1, 1)).transpose(1, 3), torch.ones(4, 6)
    ),
    "linear on a matrix": lambda x: functional.linear(x.mean((2, 3)), torch.ones(4, 6), torch.ones(4)),
    "product": lambda x: x.mT @ x,
    "product with a matrix": lambda x: x.transpose(1, 3) @ torch.ones(6, 4),
    "product of matrices": lambda x: x.mean((2, 3)) @ torch.ones(6, 4),
    "product with a wider batch": lambda x: x[:1].mT @ x,
    "product with a vector": lambda x: x.transpose(1, 3) @ torch.ones(6),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x[..., :5]),
    "attention with a mask of three axes": lambda x: functional.scaled_dot_product_attention(
        x, x, x[..., :5], (x @ x.mT)[0, :1]
    ),
    "attention with a mask of four": lambda x: functional.scaled_dot_product_attention(x, x, x[..., :5], x @ x.mT),
    "batch norm": lambda x: functional.batch_norm(x, torch.zeros(6), torch.ones(6)),
}
WHOLE: Calls = {
    "batch norm": lambda x: functional.batch_norm(x, torch.zeros(6), torch.ones(6)),
    "batch norm of channels": lambda x: functional.batch_norm(
        functional.conv2d(x, torch.ones(4, 6, 1, 1)), *(torch.ones(4) for _ in range(4))
    ),
    "batch norm of batches": lambda x: functional.batch_norm(x, None, None, training=True),
    "flatten": lambda x: x.flatten(1),
    "flatten of channels": lambda x: x.flatten(-3, 2),
    "flatten of one axis": lambda x: x.flatten(2, 2),
    "flatten of a permutation": lambda x: x.permute(0, 2, 3, 1).flatten(1, 2),
    "reshape": lambda x: x.reshape(-1, 3, *x.shape[2:]),
    "reshape of all": lambda x: x.reshape(-1),
    "reshape of a permutation": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 2, 3),
    "reshape of quotients": lambda x: functional.max_pool2d(x, 2).mT.reshape(2, 3, x.shape[3] // 2, -1),
    "reshape of a product of quotients": lambda x: functional.max_pool2d(x, 2).mT.reshape(
        6, -1, (x.shape[2] // 2) * (x.shape[3] // 2)
    ),
    "reshape back": lambda x: functional.max_pool2d(x, 2).flatten(2).mT.reshape(2, x.shape[2] // 2, -1, 6),
}
LAYOUTS: Calls = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "a part": lambda x: x[:, :, 1:],
    "widened": lambda x: x[:, :1].expand(-1, 6, -1, -1),
}


class Called(nn.Module):
    """A call on a tensor of each layout."""

    def __init__(self, call: Callable[[Tensor], Any], *layouts: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.layouts = call, layouts

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        return tuple(self.call(layout(x)) for layout in self.layouts)


def results(program: ExportedProgram) -> list[Tensor]:
    """What the export takes the program to give back."""
    (output,) = program.graph.find_nodes(op="output")
    return [each.meta["val"] for each in output.args[0]]


@pytest.mark.parametrize("name", [*ELEMENTWISE, *BINARY, *LINEAR, *OTHERS])
def test_an_export_takes_operators_to_make_what_they_make(name: str) -> None:
    call = {**ELEMENTWISE, **BINARY, **LINEAR, **OTHERS}[name]
    x = torch.rand(2, 6, 9, 11)
    module = Called(call, *LAYOUTS.values())
    for is_static in (False, True):
        program = export(module, read_inputs((x,)), is_static=is_static).program
        for layout, made, actual in zip(LAYOUTS, results(program), module(x), strict=True):
            assert [*map(int, made.shape)] == [*actual.shape], layout
            assert made.dtype == actual.dtype, layout
            if layout == "contiguous" or name not in OTHERS:  # of which torch itself says something else
                assert [*map(int, made.stride())] == [*actual.stride()], layout


@pytest.mark.parametrize("name", WHOLE)
def test_what_torch_takes_apart_has_the_layout_that_torch_gives_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def layouts() -> list[list[int]]:
        made = results(export(Called(WHOLE[name], *LAYOUTS.values()), read_inputs((x,))).program)
        return [[*map(int, (*each.shape, *each.stride()))] for each in made]

    x = torch.rand(2, 6, 9, 11)
    whole = layouts()
    monkeypatch.setattr(fakes, "_answered_by", lambda *_: nullcontext())
    assert whole == layouts()


def test_what_is_known_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[str] = []
    fresh = fakes._fresh
    monkeypatch.setattr(fakes, "_fresh", lambda *args: answered.append("") or fresh(*args))  # type: ignore[func-returns-value]
    modules = (nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Hardswish(), nn.GroupNorm(2, 6))
    export(nn.Sequential(*modules).eval(), read_inputs((torch.rand(2, 6, 9, 11),)))
    assert len(answered) == 1 + 1 + 1 + 3


@pytest.mark.parametrize(
    ("name", "is_static"),
    [
        *(("view", False), ("product", False), ("attention with a mask of three axes", False)),
        *(
            (name, is_static)
            for name in ("linear on channels", "batch norm of channels")
            for is_static in (False, True)
        ),
        *(("reshape of quotients", False), ("flatten", False)),
    ],
)
def test_what_torch_takes_apart_is_known(name: str, *, is_static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    place = "dispatch" if is_static else "_dispatch_impl"  # since torch remembers calls of fixed sizes
    dispatch = getattr(FakeTensorMode, place)
    monkeypatch.setattr(
        FakeTensorMode,
        place,
        lambda mode, func, *rest: asked.append(str(func)) or dispatch(mode, func, *rest),  # type: ignore[func-returns-value]
    )
    call = {**OTHERS, **WHOLE}[name]
    export(Called(call, lambda x: x * 1), read_inputs((torch.rand(2, 6, 9, 11),)), is_static=is_static)
    parts = "addmm bmm mm t view softmax _softmax _safe_softmax clone _unsafe_view _native_batch_norm_legit_no_training"
    assert not {f"aten.{part}.default" for part in parts.split()} & {*asked}
