"""The reference evaluator of ONNX: for the truth in float64, and for models for which the runtime has no kernels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from bnfold.errors import IncomparableError, one_line
from bnfold.proof.evaluate import own_operators
from bnfold.runtimes.inputs import Feeds
from bnfold.runtimes.stages import stage


class _Timed:
    """A node of the evaluator that does not start after the deadline."""

    def __init__(self, node: Any, deadline: float) -> None:
        self._node, self._deadline = node, deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def run(self, *args: Any, **options: Any) -> Any:
        if time.process_time() > self._deadline:
            raise TimeoutError
        return self._node.run(*args, **options)


def evaluate(
    wide: onnx.ModelProto, feeds: Feeds, fetch: Sequence[str], seconds: float
) -> list[npt.NDArray[Any]] | None:
    """The named values in float64; None where that takes too long, or the evaluator cannot do it.

    Args:
        wide: the model, all of float64; what is fetched becomes an output of it.
        feeds: its inputs, in their own types.
        fetch: the outputs and inner values to return.
        seconds: the time of this process after which no node starts.
    """
    deadline = time.process_time() + seconds
    names = {info.name for info in wide.graph.output}
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fetch if name not in names)
    inputs = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feeds.items()}
    try:
        evaluator = ReferenceEvaluator(wide, new_ops=own_operators(wide.opset_import))
        evaluator.rt_nodes_ = [_Timed(node, deadline) for node in evaluator.rt_nodes_]
        with np.errstate(all="ignore"):
            outputs = evaluator.run(list(fetch), inputs)
    except Exception:  # it may raise anything on an operator that it knows badly or not at all: then there is no truth
        return None
    return [np.asarray(output) for output in outputs]


SECONDS = 10.0
"""How long one run may take, since the evaluator is for small models."""


class ReferenceSession:
    """A model that is ready to run, in its own types.

    Args:
        model: the bytes of the model.
        label: its name in messages.
        folder: the folder of its external data.
        seconds: the time of this process in a run after which no node starts.

    Raises:
        IncomparableError: the evaluator does not take it.
    """

    def __init__(self, model: bytes, label: str, folder: Path | None = None, seconds: float = SECONDS) -> None:
        self._label, self._seconds = label, seconds
        proto = onnx.load_model_from_string(model)
        try:
            if folder is not None:
                onnx.load_external_data_for_model(proto, str(folder))
            self._evaluator = ReferenceEvaluator(proto, new_ops=own_operators(proto.opset_import))
        except Exception as error:  # it raises anything on an operator that it knows badly or not at all
            raise self._failed("load", error) from error
        self._nodes = list(self._evaluator.rt_nodes_)

    def __call__(self, feeds: Feeds, fetch: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Run one inference, for the outputs named in `fetch`.

        Raises:
            IncomparableError: the evaluator cannot do it, or not in time.
        """
        deadline = time.process_time() + self._seconds
        self._evaluator.rt_nodes_ = [_Timed(node, deadline) for node in self._nodes]
        try:
            with np.errstate(all="ignore"), stage(self._label, "running", "the reference evaluator of onnx"):
                return [np.asarray(output) for output in self._evaluator.run(list(fetch), feeds)]
        except TimeoutError as error:
            took = f"takes more than {self._seconds:g} seconds for one run"
            raise IncomparableError(f"{self._label}: the reference evaluator of onnx {took}") from error
        except Exception as error:  # as when it is loaded
            raise self._failed("run", error) from error

    def _failed(self, what: str, error: Exception) -> IncomparableError:
        said = one_line(f"{type(error).__name__}: {error}", 200)
        return IncomparableError(f"{self._label}: the reference evaluator of onnx cannot {what} it ({said})")
