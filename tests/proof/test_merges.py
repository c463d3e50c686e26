"""Merges in which a fault shows at some sizes of an image alone."""

from __future__ import annotations

import onnx
import pytest

from bnfold.api import certify
from bnfold.proof.checker import check_pair
from bnfold.proof.models import Files
from tests.toys.onnx_branches import C, build, conv
from tests.toys.onnx_graphs import node, norm


def strided(stride: int, shape: list[int | str]) -> onnx.ModelProto:
    window = {"strides": [stride, stride], "pads": [1, 1, 1, 1]}
    branches = [
        conv("x w", "c", **window),
        conv("x w2 b", "d", **window),
        node("Add", "c d", "e"),
        norm("e", "y", "p_"),
    ]
    return build(branches, shape)


def is_proved_with(model: onnx.ModelProto, pads: list[int]) -> bool:
    """Whether the one convolution of the result is proved to be right with this padding."""
    result, certificate = certify(model)
    (merged,) = [each for each in result.graph.node if each.op_type == "Conv"]
    (told,) = [each for each in merged.attribute if each.name == "pads"]
    told.ints[:] = pads
    return check_pair(Files(model), Files(result), certificate).is_proved


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("more", [1, 2, 3])
def test_a_border_that_some_sizes_do_not_see_is_found(stride: int, more: int) -> None:
    """A strided window begins no more often for a wider border at the end, unless the size is right for that."""
    model = strided(stride, ["n", C, "h", "w"])
    assert is_proved_with(model, [1, 1, 1, 1])
    assert not is_proved_with(model, [1, 1, 1 + more, 1 + more])
    assert not is_proved_with(model, [1, 1, 1, 1 + more])


@pytest.mark.parametrize("size", range(19, 25))
def test_known_sizes_are_tried_as_they_are(size: int) -> None:
    """With a stride of 2, a border that is wider by one is seen where the size is even."""
    assert is_proved_with(strided(2, [1, C, size, size]), [1, 1, 2, 2]) == bool(size % 2)
