"""The node in which a runtime dies: the last of the shortest beginning of the model that does not survive."""

from __future__ import annotations

import os
import signal
import time

import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.runtimes.suspect import find_node


def chain(length: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", [f"v{index}"], [f"v{index + 1}"], f"node{index}") for index in range(length)]
    first, last = (helper.make_tensor_value_info(f"v{index}", TensorProto.FLOAT, [1]) for index in (0, length))
    return helper.make_model(helper.make_graph(nodes, "g", [first], [last]))


def count(part: bytes) -> int:
    return len(onnx.load_model_from_string(part).graph.node)


@pytest.mark.parametrize("culprit", [0, 1, 6, 11])
def test_the_node_that_kills_is_found(culprit: int) -> None:
    def attempt(part: bytes) -> None:
        if count(part) > culprit:
            os.kill(os.getpid(), signal.SIGSEGV)

    assert find_node(chain(12), attempt, 60) == f"node{culprit}"


def test_the_node_that_hangs_is_found() -> None:
    assert find_node(chain(5), lambda part: time.sleep(60 if count(part) > 3 else 0), 3) == "node3"


def test_no_node_is_blamed_for_the_time_of_all() -> None:
    assert find_node(chain(8), lambda part: time.sleep(0.1 * count(part)), 0.5) is None


def test_an_error_is_no_crash() -> None:
    def attempt(part: bytes) -> None:
        raise ValueError(part)

    assert find_node(chain(3), attempt, 60) is None


def test_a_node_without_a_name_is_known_by_its_output() -> None:
    model = chain(1)
    model.graph.node[0].name = ""
    assert find_node(model, lambda part: os.kill(os.getpid(), signal.SIGABRT), 60) == "Relu:v1"
