"""What torch computes of each node of an export, and nothing here reads, or knows sooner: left out while one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import _prims_common
from torch._dynamo import config
from torch.export import _trace
from torch.fx import GraphModule
from torch.fx import config as fx_config
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental import proxy_tensor

from bnfold.frontends.torch.capture.fakes import Fakes, Layouts


@contextmanager
def leaner(terms: Mapping[Any, Any] | None) -> Iterator[None]:
    """Lets an export take less time.

    Args:
        terms: what symbols stand for of which nothing follows; None where all sizes are numbers. What torch remembers
            of calls on symbols takes longer to check than another call.
    """
    layouts = Layouts()
    with ExitStack() as stack:
        # the line of code behind each node, and code for graphs that nobody runs
        stack.enter_context(patch.object(fx_config, "do_not_emit_stack_traces", True))
        stack.enter_context(_use_lazy_graph_module(True))
        # memory formats and the like, of which only the names are told by a graph
        stack.enter_context(patch.object(proxy_tensor, "_extract_tensor_metadata", lambda *_: None))
        # where each symbol for a number of data comes from, of which there is mostly none
        stack.enter_context(patch.object(_trace, "_replace_unbacked_bindings", _where_needed()))
        stack.enter_context(Fakes(layouts, terms).in_use())
        if terms is not None:
            stack.enter_context(config.patch(fake_tensor_cache_enabled=False))
            stack.enter_context(patch.object(_prims_common, "is_contiguous", _answered(layouts)))
        yield


def _where_needed() -> Callable[[GraphModule], None]:
    replace = _trace._replace_unbacked_bindings

    def replace_bindings(program: GraphModule) -> None:
        if any("unbacked_bindings" in node.meta for node in program.graph.nodes):
            replace(program)

    return replace_bindings


def _answered(layouts: Layouts) -> Callable[..., bool]:
    ask = _prims_common.is_contiguous

    def is_contiguous(value: Any, false_if_dde: bool = False) -> bool:
        if value._has_symbolic_sizes_strides and layouts.is_contiguous(value):
            return True
        return ask(value, false_if_dde)

    return is_contiguous
