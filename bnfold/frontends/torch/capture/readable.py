"""Modules that cannot be read as they are, and the way out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from bnfold.errors import UnsupportedModelError


def insist_on_readable(module: nn.Module) -> None:
    """Refuse what cannot be read as it is, with the way out.

    Raises:
        UnsupportedModelError: training mode, lazy or meta parameters, or code that is no Python any more.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError("a ScriptModule cannot be traced: pass the module that it was scripted from")
    for name, each in module.named_modules():
        where = f"{name or 'the model'} ({type(each).__name__})"
        if isinstance(each, torch.jit.ScriptModule) and _holds_batchnorm_buffers(each):
            raise UnsupportedModelError(f"{where} is a ScriptModule: pass the module that it was scripted from")
        if any(map(nn.parameter.is_lazy, (*each._parameters.values(), *each._buffers.values()))):
            raise UnsupportedModelError(f"{where} is not initialised: run the model once on an example")
    norms = [each.training for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    if module.training and norms and all(norms):
        raise UnsupportedModelError(f"{type(module).__name__} is in training mode: call .eval() on the model first")
    for name, tensor in _tensors(module):
        if tensor.device.type == "meta":
            raise UnsupportedModelError(f"{name} is on the meta device and holds no values: load the weights first")
    hooks = [nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks, nn_module._global_backward_hooks]
    if any(hooks):
        raise UnsupportedModelError("a global module hook is registered, and would see other values: remove it first")


def _holds_batchnorm_buffers(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "running_mean" for name, _ in module.named_buffers())


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
