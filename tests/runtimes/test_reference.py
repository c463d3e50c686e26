"""The reference evaluator of ONNX, and the time that it may take."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference.op_run import OpRun

from bnfold.runtimes import reference

SECONDS = 0.05


class Relu(OpRun):
    """A Relu that waits, as if other work had the processor."""

    def _run(self, x: Any) -> Any:
        time.sleep(4 * SECONDS)
        return (np.maximum(x, 0),)


class Neg(OpRun):
    """A Neg that works hard."""

    def _run(self, x: Any) -> Any:
        began = time.process_time()
        while time.process_time() < began + 4 * SECONDS:
            pass
        return (-x,)


@pytest.mark.parametrize(("operator", "is_there"), [("Relu", True), ("Neg", False)])
def test_a_busy_machine_costs_no_opinion(operator: str, is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        waits (double[2] x) => (double[2] y) {{ h = {operator}(x)  y = Neg(h) }}
    """)
    monkeypatch.setattr(reference, "own_operators", lambda opsets: [Relu, Neg])
    found = reference.evaluate(model, {"x": np.ones(2)}, ["y"], SECONDS)
    assert (found is not None) == is_there
