"""Modules that only pass calls on to another one: what is inside, and how it is wrapped again."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

from bnfold.frontends.torch.change.store import clone

Rewrap = Callable[[nn.Module], nn.Module]


def unwrap(module: nn.Module) -> tuple[nn.Module, Rewrap]:
    """What a wrapper holds, and what puts another module in a wrapper of the same kind."""
    if isinstance(module, OptimizedModule):
        return module._orig_mod, lambda fused: OptimizedModule(fused, module.dynamo_ctx)
    if isinstance(module, DataParallel):
        return module.module, lambda fused: _replaced(module, fused)
    if isinstance(module, DistributedDataParallel):
        return module.module, lambda fused: _distributed(module, fused)
    return module, lambda fused: fused


def _replaced(module: DataParallel[nn.Module], fused: nn.Module) -> nn.Module:
    if module.module is fused:
        return module
    made = clone(module)
    made._modules["module"] = fused
    return made


def _distributed(module: DistributedDataParallel, fused: nn.Module) -> nn.Module:
    """It is made anew, since it watches the parameters that it was made with."""
    made = DistributedDataParallel(
        fused,
        device_ids=module.device_ids,
        output_device=module.output_device,
        dim=module.dim,
        broadcast_buffers=module.broadcast_buffers,
        process_group=module.process_group,
        find_unused_parameters=module.find_unused_parameters,
    )
    made.training = module.training
    return made
