"""Torch models for tests, and the check that a fold left a model as it was: in float64, against the original."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

import bnfold
from bnfold import Fold, Outcome, Reason, Refusal

torch.set_num_threads(1)

EXACT = 1e-12
"""Largest relative difference of two float64 results; some thousand roundings of 1e-16."""


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode and float64, with statistics and parameters as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._NormBase) and each.running_mean is not None:
            each.running_mean.normal_(0, 0.5, generator=generator)
            each.running_var.uniform_(0.5, 2.0, generator=generator)
            if each.weight is not None:
                each.weight.data.uniform_(-1.5, 1.5, generator=generator)
                each.bias.data.normal_(0, 0.5, generator=generator)
    for name, parameter in module.named_parameters():
        if name.endswith(("weight", "bias")) and parameter.dim() > 1:
            parameter.data.normal_(0, 0.5, generator=generator)
    return module.eval()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    """A float64 tensor of random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Row(nn.Module):
    """Modules in a row, with functions between them."""

    def __init__(self, *steps: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.steps = steps
        for index, step in enumerate(steps):
            if isinstance(step, nn.Module):
                self.add_module(f"step{index}", step)

    def forward(self, x: Tensor) -> Tensor:
        for index, step in enumerate(self.steps):
            x = getattr(self, f"step{index}")(x) if isinstance(step, nn.Module) else step(x)
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> Row:
        now = [getattr(self, f"step{index}", step) for index, step in enumerate(self.steps)]  # a fold replaces modules
        steps = [copy.deepcopy(step, memo) if isinstance(step, nn.Module) else step for step in now]
        twin = Row(*steps)
        twin.train(self.training)
        return twin


def run(model: Any, *inputs: Any) -> list[Tensor]:
    """All tensors of a model's output."""
    module = model.module() if isinstance(model, ExportedProgram) else model
    with torch.no_grad():
        return [each for each in _pytree.tree_leaves(module(*inputs)) if isinstance(each, Tensor)]


def assert_same(expected: list[Tensor], actual: list[Tensor], limit: float = EXACT) -> None:
    assert len(expected) == len(actual)
    for mine, other in zip(expected, actual, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        assert bool(torch.isfinite(mine.double()).all())
        difference, peak = (mine.double() - other.double()).abs().max(), mine.double().abs().max()
        assert difference <= limit * peak, f"{float(difference / peak):.2e}"


def fuse(model: Any, *inputs: Any, **options: Any) -> tuple[Any, tuple[Outcome, ...]]:
    """`bnfold.fuse`, with the outcomes; the result equals the original, which is as it was, in float64."""
    before = run(model, *inputs)
    state = (
        {name: tensor.clone() for name, tensor in model.state_dict.items()}
        if isinstance(model, ExportedProgram)
        else {name: tensor.clone() for name, tensor in model.state_dict().items()}
    )
    fused, outcomes = bnfold.fuse(model, return_outcomes=True, **options)
    after = run(model, *inputs)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True)), "the argument changed"
    now = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert isinstance(fused, type(model)) or isinstance(model, fx.GraphModule)
    assert type(fused).__name__ == type(model).__name__ or isinstance(model, fx.GraphModule)
    assert_same(before, run(fused, *inputs))
    assert_settled(fused, **options)
    return fused, outcomes


def assert_settled(fused: Any, **options: Any) -> None:
    """A second fold finds nothing, and changes nothing."""
    again, outcomes = bnfold.fuse(fused, return_outcomes=True, **{**options, "inplace": False})
    found = [each for each in outcomes if not isinstance(each, Refusal)]
    assert not found, f"a second fold finds {found}"
    assert describe(again) == describe(fused)


def describe(model: Any) -> tuple[list[str], dict[str, bytes]]:
    """The code of a model's graphs, and its tensors."""
    if isinstance(model, ExportedProgram):
        graphs, state = [str(model.graph)], model.state_dict
    else:
        graphs = [str(each.graph) for each in model.modules() if isinstance(each, fx.GraphModule)]
        state = model.state_dict()
    return graphs, {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in state.items()
    }


def of_batchnorms(outcomes: tuple[Outcome, ...]) -> list[Fold | Refusal]:
    """The outcomes of BatchNorms."""
    return [each for each in outcomes if isinstance(each, Fold | Refusal) and each.is_batchnorm]


def sole(outcomes: tuple[Outcome, ...]) -> Fold | Refusal:
    """The outcome of the only BatchNorm."""
    (found,) = of_batchnorms(outcomes)
    return found


def norms(model: nn.Module) -> list[str]:
    """Names of the BatchNorm modules."""
    return [name for name, each in model.named_modules() if isinstance(each, nn.modules.batchnorm._NormBase)]


def assert_folds(model: Any, *inputs: Any, **options: Any) -> Any:
    """Every BatchNorm folds."""
    fused, outcomes = fuse(model, *inputs, **options)
    found = of_batchnorms(outcomes)
    assert found
    assert all(isinstance(each, Fold) for each in found), found
    return fused


def assert_stays(model: Any, reason: Reason, *inputs: Any, **options: Any) -> Refusal:
    """The only BatchNorm stays, for a reason."""
    _, outcomes = fuse(model, *inputs, **options)
    found = sole(outcomes)
    assert isinstance(found, Refusal), found
    assert found.reason is reason, found
    return found


def traced(module: nn.Module) -> fx.GraphModule:
    """The module as an fx graph."""
    return fx.symbolic_trace(module)


def exported(module: nn.Module, *inputs: Any, **options: Any) -> ExportedProgram:
    """The module as an exported program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, inputs, strict=False, **options)


def to_onnx(module: nn.Module, *inputs: Any) -> onnx.ModelProto:
    """The module as ONNX, by the exporter that keeps BatchNorms and is fast."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            file,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    return onnx.load_from_string(file.getvalue())


def to_onnx_by_export(module: nn.Module, *inputs: Any) -> onnx.ModelProto:
    """The module as ONNX, by the exporter that goes by way of an exported program; it keeps BatchNorms."""
    logging.disable(logging.WARNING)  # of operators of torchvision, which is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(module, inputs, dynamo=True, optimize=False, verbose=False)
    finally:
        logging.disable(logging.NOTSET)
    assert made is not None
    return made.model_proto
