"""What torch computes of each node of an export, and nothing here reads, or knows sooner: left out while one runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo import config
from torch._subclasses.fake_impls import get_fast_op_impls
from torch.fx.experimental import proxy_tensor


@contextmanager
def leaner(*, is_static: bool) -> Iterator[None]:
    """Lets an export take less time.

    Args:
        is_static: whether its sizes are numbers; what torch remembers of calls on symbols takes longer to check than
            another call.
    """
    with ExitStack() as stack:
        # memory formats and the like, of which only the names are told by a graph
        stack.enter_context(patch.object(proxy_tensor, "_extract_tensor_metadata", lambda *_: None))
        if not is_static:
            stack.enter_context(config.patch(fake_tensor_cache_enabled=False))
            operator = torch.ops.aten._native_batch_norm_legit_no_training.default
            stack.enter_context(patch.dict(get_fast_op_impls(), {operator: _batchnorm}))
        yield


def _batchnorm(mode: Any, value: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    """What an eval-mode BatchNorm makes of a fake tensor; torch runs a dozen operators for it, each on symbols."""
    with mode:
        return torch.empty_like(value), value.new_empty(0), value.new_empty(0)
