"""The random branches of the ONNX tests as modules: whatever merges, in whatever form, it is right and proved.

Every other one adds in place where it can. Set BNFOLD_EXAMPLES to draw more.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from onnx import helper, numpy_helper
from torch import Tensor, nn

import bnfold
from bnfold import Merge
from tests.frontends.onnx.test_random_branches import build, shape_of
from tests.toys.torch_models import exported, traced

EXAMPLES = int(os.environ.get("BNFOLD_EXAMPLES", "40"))
TOLERANCE = 1e-9

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCHNORMS: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
UNARY: dict[str, Any] = {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Neg": torch.neg,
    "ReduceSum": torch.sum,
    "Identity": lambda x: x,
    "Dropout": lambda x: x,
}
BINARY: dict[str, Any] = {"Add": lambda x, y: x.add_(y), "Sub": torch.sub, "Mul": torch.mul}


class ForeignError(Exception):
    """A graph with what is not written as a module here."""


class Branches(nn.Module):
    """A graph of ONNX, node by node."""

    def __init__(self, model: onnx.ModelProto, *, is_inplace: bool) -> None:
        super().__init__()
        self.nodes = list(model.graph.node)
        self.outputs = [info.name for info in model.graph.output]
        self.attributes = [
            {each.name: helper.get_attribute_value(each) for each in node.attribute} for node in self.nodes
        ]
        self.layers = nn.ModuleDict()
        stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
        self.axes = len(shape_of(model)) - 2
        if not {node.op_type for node in self.nodes} <= {*UNARY, *BINARY, *LAYERS, "Sum", "Concat", "AveragePool"}:
            raise ForeignError("an operator")
        for node, attributes in zip(self.nodes, self.attributes, strict=True):
            parameters = [stored[name] for name in node.input[1:]] if node.op_type in LAYERS else []
            if node.op_type in LAYERS:
                self.layers[node.output[0]] = LAYERS[node.op_type](self.axes, attributes, *parameters)
            for name in node.input if node.op_type not in LAYERS else ():
                if name in stored and not hasattr(self, name):
                    self.register_buffer(name, stored[name])
        self.written: set[str] = set()
        if is_inplace:
            reads = Counter(name for node in self.nodes for name in node.input)
            fresh = {node.output[0] for node in self.nodes if node.op_type in ("Conv", "Relu", "Tanh", "Add", "Sub")}
            self.written = {name for name in fresh if reads[name] == 1} - set(self.outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Tensor] = {"x": x}
        for node, attributes in zip(self.nodes, self.attributes, strict=True):
            values[node.output[0]] = self._made(node, attributes, values)
        return tuple(values[name] for name in self.outputs)

    def _made(self, node: onnx.NodeProto, attributes: dict[str, Any], values: dict[str, Tensor]) -> Tensor:
        operator, name = node.op_type, node.output[0]
        if name in self.layers:
            return self.layers[name](values[node.input[0]])
        first, *others = (values[name] if name in values else getattr(self, name) for name in node.input)
        if operator in UNARY:
            return UNARY[operator](first)
        if operator == "Concat":
            return torch.cat([first, *others], attributes["axis"])
        if operator == "AveragePool":
            padding = symmetric(self.axes, attributes)
            is_counted = bool(attributes.get("count_include_pad", 0))
            return POOLS[self.axes - 1](
                first, attributes["kernel_shape"], attributes["strides"], padding, count_include_pad=is_counted
            )
        if operator == "Sum" or (operator == "Add" and node.input[0] not in self.written):
            return sum(others, first)  # type: ignore[arg-type]
        return BINARY[operator](first, *others)


def symmetric(axes: int, attributes: dict[str, Any]) -> tuple[int, ...]:
    """The padding of a window, if torch can write it with the window."""
    pads = attributes.get("pads", [0] * 2 * axes)
    if attributes.get("auto_pad", b"VALID") != b"VALID" or pads[:axes] != pads[axes:]:
        raise ForeignError("padding")
    return tuple(pads[:axes])


def _convolution(axes: int, attributes: dict[str, Any], weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    groups, places = attributes["group"], range(axes)
    strides, dilations = (tuple(attributes.get(key, [1] * axes)) for key in ("strides", "dilations"))
    pads = attributes.get("pads", [0] * 2 * axes)
    is_symmetric = pads[:axes] == pads[axes:]
    if attributes.get("auto_pad", b"VALID") != b"VALID":
        raise ForeignError("padding")
    made = CONVOLUTIONS[axes - 1](
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        strides,
        tuple(pads[:axes]) if is_symmetric else 0,
        dilations,
        groups,
        bias is not None,
    ).double()
    made.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
    if is_symmetric:
        return made
    border = tuple(size for place in reversed(places) for size in (pads[place], pads[axes + place]))
    return nn.Sequential(nn.ZeroPad2d(border) if axes == 2 else nn.ConstantPad1d(border, 0.0), made)


def _batchnorm(axes: int, attributes: dict[str, Any], *parameters: Tensor) -> nn.Module:
    made = BATCHNORMS[axes - 1](len(parameters[0])).double()
    names = ("weight", "bias", "running_mean", "running_var")
    made.load_state_dict(dict(zip(names, parameters, strict=True)), strict=False)
    return made


LAYERS = {"Conv": _convolution, "BatchNormalization": _batchnorm}


def drawn(seed: int) -> tuple[nn.Module, Tensor] | None:
    """A module and its input; None where the graph cannot be written as one."""
    model = build(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape_of(model), dtype=torch.float64, generator=generator)
    try:
        module = Branches(model, is_inplace=bool(seed % 2)).eval()
        with torch.no_grad():
            module(x.clone())
    except (ForeignError, RuntimeError):  # torch takes no window that is larger than the image
        return None
    return module, x


def check(module: nn.Module, x: Tensor) -> int:
    """Fuse a module in each form, and assert all that must hold whatever it is. The number of merges is returned."""
    with torch.no_grad():
        expected = module(x.clone())
        fused, outcomes = bnfold.fuse(module, example_inputs=x.clone(), return_outcomes=True)
        forms = {
            "module": fused,
            "program": bnfold.fuse(exported(module, x.clone())).module(),
            "graph": bnfold.fuse(traced(module), example_inputs=x.clone()),
        }
        for form, model in forms.items():
            for made, wanted in zip(model(x.clone()), expected, strict=True):
                error = float((made - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
                assert error < TOLERANCE, f"{form}: {error:.1e}"
    return sum(isinstance(outcome, Merge) for outcome in outcomes)


@pytest.mark.parametrize("part", range(2))
def test_random_branches_are_never_wrong(part: int) -> None:
    merges = 0
    for seed in range(part, EXAMPLES, 2):
        if (found := drawn(seed)) is not None:
            merges += check(*found)
    assert merges >= EXAMPLES // 16
