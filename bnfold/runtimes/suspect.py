"""Finds the node of an ONNX model in which its runtime dies or hangs.

The runtime's log does not tell it. So beginnings of the model are tried, each in a process of its own: the node is the
last of the shortest beginning that does not survive.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import onnx

LONGEST = 5.0
"""After how many seconds a beginning hangs."""

SHARE = 0.1
"""The most of that time that all nodes before may take. Else the time is spread over nodes, and none is to blame."""


@dataclass(frozen=True)
class _Trial:
    has_survived: bool
    is_late: bool
    seconds: float


def find_node(model: onnx.ModelProto, attempt: Callable[[bytes], object], seconds: float) -> str | None:
    """The node in which `attempt` dies or hangs on a model; None where none stands out, or no process can be forked.

    Args:
        model: the model, with its nodes in order. Its external data is not loaded.
        attempt: loads or runs a model.
        seconds: the time after which the model hangs.
    """
    if not hasattr(os, "fork"):
        return None
    limit = min(seconds, LONGEST)

    def trial(count: int) -> _Trial:
        part = _beginning(model, count)
        return _try(lambda: attempt(part), limit)

    low, high = 0, len(model.graph.node)
    before, last = _Trial(has_survived=True, is_late=False, seconds=0.0), trial(high)
    if last.has_survived:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        found = trial(middle)
        if found.has_survived:
            low, before = middle, found
        else:
            high, last = middle, found
    if last.is_late and before.seconds > SHARE * limit:
        return None
    node = model.graph.node[high - 1]
    return node.name or f"{node.op_type}:{next(iter(node.output), '')}"


def _beginning(model: onnx.ModelProto, count: int) -> bytes:
    """The model cut off behind some nodes. What none of them reads is an output, since a runtime drops it otherwise."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    del graph.node[count:]
    del graph.output[:]
    read = {name for node in graph.node for name in node.input}
    leaves = [name for node in graph.node for name in node.output if name and name not in read]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in leaves)
    serialized: bytes = part.SerializeToString()
    return serialized


def _try(attempt: Callable[[], object], limit: float) -> _Trial:
    began = time.monotonic()
    child = os.fork()
    if not child:
        try:
            attempt()
        finally:  # an error is no crash, and nothing of this process may run on here
            os._exit(0)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        passed = time.monotonic() - began
        if ended:
            return _Trial(not os.WIFSIGNALED(status), is_late=False, seconds=passed)
        if passed > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return _Trial(has_survived=False, is_late=True, seconds=passed)
        time.sleep(0.01)
