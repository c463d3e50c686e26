"""An ONNX model evaluated in float64: the truth that two rounded runs are measured against."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from bnfold.proof.evaluate import BatchNormalization
from bnfold.runtimes.inputs import Feeds


class _Timed:
    """A node of the evaluator that does not start after the deadline."""

    def __init__(self, node: Any, deadline: float) -> None:
        self._node, self._deadline = node, deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def run(self, *args: Any, **options: Any) -> Any:
        if time.monotonic() > self._deadline:
            raise TimeoutError
        return self._node.run(*args, **options)


def evaluate(
    wide: onnx.ModelProto, feeds: Feeds, fetch: Sequence[str], seconds: float
) -> list[npt.NDArray[Any]] | None:
    """The named values in float64; None where that takes too long, or the evaluator cannot do it.

    Args:
        wide: the model, all of float64; what is fetched becomes an output of it.
        feeds: its inputs, in their own types.
        fetch: outputs and inner values.
        seconds: no node starts later than that.
    """
    deadline = time.monotonic() + seconds
    names = {each.name for each in wide.graph.output}
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fetch if name not in names)
    inputs = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feeds.items()}
    try:
        evaluator = ReferenceEvaluator(wide, new_ops=[BatchNormalization])
        evaluator.rt_nodes_ = [_Timed(node, deadline) for node in evaluator.rt_nodes_]
        with np.errstate(all="ignore"):
            found = evaluator.run(list(fetch), inputs)
    except Exception:  # it raises anything on an operator that it knows badly or not at all: then there is no truth
        return None
    return [np.asarray(each) for each in found]
